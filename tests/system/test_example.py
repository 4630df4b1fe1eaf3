"""The example: what the README runs first, with the three commands in any order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig import PATIENCE_SECONDS, REPOSITORY, Rig, need_tmux, rigs, wait_until

FOUND = "[FJD] Found some jobs to dispatch"


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Rig]:
    """A copy of example/ as a clone has it, as the project."""
    for rig in rigs(tmp_path, {}):
        for name in ("ajob.py", "create_jobs.py", "run-example.sh"):
            shutil.copy(REPOSITORY / "example" / name, rig.path)
        yield rig


def check_results(example: Rig) -> None:
    for n in range(10):
        assert (example.path / f"data/job{n}.dat").read_text() == f"The result for value{n}\n"
    assert [name.partition(".")[0] for name in example.record("done")] == [f"job{n}" for n in range(10)]
    assert len(example.journal()) == 10


def check_fire(example: Rig) -> None:
    result = example.run("recruiter", "fire")
    assert (result.code, result.out, result.err) == (0, "[FJD] Fired 4 workers on localhost.\n", "")
    example.check_nothing_left()
    example.check(drained=True)


def test_example_prints_its_lines_when_run_as_a_script(example: Rig) -> None:
    need_tmux()
    result = example.run(str(example.path / "run-example.sh"), cwd=example.folder)
    assert result.code == 0, result.err
    assert result.err == ""
    first, second, *middle, last = result.out.splitlines()
    assert first == "[FJD] Hired 4 workers on localhost."
    assert second == "[FJD] Dispatcher started."
    assert middle
    assert set(middle) == {FOUND}
    assert last == "[FJD] No more jobs to dispatch."
    check_results(example)
    check_fire(example)


ORDERS = [
    ("dispatcher", "hire", "jobs"),
    ("dispatcher", "jobs", "hire"),
    ("jobs", "dispatcher", "hire"),
]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_example_works_in_any_order(example: Rig, order: tuple[str, ...]) -> None:
    dispatchers = []
    for step in order:
        if step == "dispatcher":
            dispatchers.append(example.start("dispatcher"))
            wait_until(lambda: "Dispatcher started." in dispatchers[0].out, PATIENCE_SECONDS, example.report)
        elif step == "hire":
            example.hire(4)
        else:
            assert example.run("python3", "create_jobs.py").code == 0
    result = dispatchers[0].wait()
    assert (result.code, result.err) == (0, ""), example.report()
    first, *middle, last = result.out.splitlines()
    assert first == "[FJD] Dispatcher started."
    assert set(middle) == {FOUND}
    assert last == "[FJD] No more jobs to dispatch."
    check_results(example)
    check_fire(example)
