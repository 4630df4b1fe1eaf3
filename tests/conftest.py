"""What all tests share: a temporary project, a clock that is advanced by hand, a held slot, and a check for leaks.

Tests that need more than one of something make it with `make_project`, `OwnSlot.take` and the like; these fixtures are
the ordinary case, not a framework.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from lab import Clock, children, make_project, open_files, threads

from fjd.project import Project
from fjd.slot import Identity, OwnSlot

TESTS = Path(__file__).parent
NOBODY = 65534

# A time limit for a single example fails on a busy machine; a database of examples makes a run depend on earlier ones.
hypothesis.settings.register_profile("fjd", deadline=None, database=None)
hypothesis.settings.load_profile("fjd")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the folder it is in: unit, crash, race or system."""
    for item in items:
        if item.path.is_relative_to(TESTS):
            item.add_marker(item.path.relative_to(TESTS).parts[0])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project on what is taken for a local filesystem, wherever the tests run."""
    return make_project(tmp_path / "project", filesystem="local")


@pytest.fixture
def network_project(tmp_path: Path) -> Project:
    """A project on what is taken for a network filesystem."""
    return make_project(tmp_path / "network-project", filesystem="network")


@pytest.fixture
def own_slot(project: Project) -> Iterator[OwnSlot]:
    """The slot of a worker that is this process."""
    own = OwnSlot.take(project.workerqueue, "vm-1.k3f9", Identity.of_this_process("vm-1"))
    yield own
    own.close()


@pytest.fixture
def plain_user() -> Iterator[Path]:
    """A directory of a user whom permissions bind: the test runs as nobody where it was started by root."""
    # Not tmp_path: what lies above that is closed to everybody but root.
    home = Path(tempfile.mkdtemp(prefix="fjd-test-"))
    is_root = os.getuid() == 0
    if is_root:
        os.chown(home, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield home
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        shutil.rmtree(home)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread, a child process or an open file behind."""
    before = threads(), children(), open_files()
    yield
    after = threads(), children(), open_files()
    leaked = [f"{kind} {name}" for old, new in zip(before, after, strict=True) for kind, name in new - old]
    assert not leaked, f"leaked: {', '.join(sorted(leaked))}"
