"""Guards the shape of the code: imports point one way, and each of the calls and packages that matter has one home."""

from __future__ import annotations

import ast
import functools
from collections import defaultdict
from pathlib import Path

import pytest

import fjd

PACKAGE = Path(fjd.__file__).parent

# From the ground up. A module, or a package as a whole, imports only what stands before it.
LAYERS = [
    "errors",
    "names",
    "host",
    "disk",
    "filesystem",
    "command",
    "jobfile",
    "settings",
    "project",
    "slot",
    "judge",
    "spool",
    "journal",
    "intake",
    "watch",
    "process",
    "attempt",
    "worker",
    "reclaim",
    "lookout",
    "queue",
    "report",
    "dispatcher",
    "recruiter",
    "cli",
]

# What changes the disk, apart from open() and write(). A bare name stands for one that `from os import` would bring.
CHANGES = {
    "os": {
        "link",
        "makedirs",
        "mkdir",
        "mkfifo",
        "mknod",
        "remove",
        "removedirs",
        "rename",
        "renames",
        "replace",
        "rmdir",
        "symlink",
        "truncate",
        "unlink",
    },
    "shutil": {"copy", "copy2", "copyfile", "copytree", "move", "rmtree"},
}
# What is no file of a project, so that no promise is made about it.
ELSEWHERE = {("recruiter/staff.py", "shutil.rmtree")}


@functools.cache
def sources() -> list[tuple[str, str, ast.Module]]:
    """Each module of fjd: its path in the package, its layer, its syntax tree."""
    paths = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "__pycache__"]
    return [
        (str(path), path.parts[0].removesuffix(".py"), ast.parse((PACKAGE / path).read_text()))
        for path in paths
        if str(path) != "__init__.py"
    ]


def imported(tree: ast.Module) -> set[str]:
    """The modules that a module imports, wherever it does so, by their full names."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their module in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_a_layer() -> None:
    assert {layer for _, layer, _ in sources()} == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_upwards_only_in(layer: str) -> None:
    below = {*LAYERS[: LAYERS.index(layer)], layer, "__version__"}
    for path, found_layer, tree in sources():
        if found_layer != layer:
            continue
        names = {name.split(".")[1] for name in imported(tree) if name.startswith("fjd.")}
        assert names <= below, f"{path} imports {names - below}"


def test_the_package_itself_imports_nothing() -> None:
    """Each command, and each worker, would pay for it."""
    assert imported(ast.parse((PACKAGE / "__init__.py").read_text())) == set()


@pytest.mark.parametrize(
    ("package", "home"), [("watchdog", "watch.py"), ("filelock", "slot.py"), ("libtmux", "recruiter/tmux.py")]
)
def test_package_is_imported_by_one_module(package: str, home: str) -> None:
    users = {path for path, _, tree in sources() if any(name.split(".")[0] == package for name in imported(tree))}
    assert users == {home}


def changes(tree: ast.Module) -> set[str]:
    """The calls of CHANGES that a module mentions, under whatever name it imported them."""
    modules: dict[str, str] = {}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in CHANGES}
        elif isinstance(node, ast.ImportFrom) and node.module in CHANGES:
            found |= {f"{node.module}.{a.name}" for a in node.names if a.name in CHANGES[node.module]}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module and node.attr in CHANGES[module]:
                found.add(f"{module}.{node.attr}")
    return found


def test_only_disk_changes_the_disk() -> None:
    found = {(path, call) for path, _, tree in sources() for call in changes(tree) if path != "disk.py"}
    assert found == ELSEWHERE


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.rename(a, b)",
        "import os as o\no.rename(a, b)",
        "from os import rename",
        "from os import rename as move",
        "def f():\n    import os\n    return map(os.rename, a, b)",
    ],
)
def test_a_changing_call_is_found_in_every_form(text: str) -> None:
    assert changes(ast.parse(text)) == {"os.rename"}


def test_disk_is_where_the_changing_calls_are() -> None:
    """Else the test above might look for the wrong ones."""
    calls: dict[str, set[str]] = defaultdict(set)
    for path, _, tree in sources():
        calls[path] |= changes(tree)
    assert calls["disk.py"] >= {"os.rename", "os.replace", "os.unlink", "os.mkdir", "os.rmdir"}
    assert "os.link" not in calls["disk.py"]


def test_nothing_is_changed_through_pathlib() -> None:
    """Its methods cannot be told from others of their names (str.replace), so it is not used at all."""
    assert not [path for path, _, tree in sources() if any(name.startswith("pathlib") for name in imported(tree))]
