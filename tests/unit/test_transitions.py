"""Guards the table of transitions: the docstring of spool.py, docs/INTERNALS.md and the code say the same.

Each row is run on a real project, and the directories before and after are compared with what the row says.
"""

from __future__ import annotations

import ast
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fjd import slot as slots
from fjd import spool
from fjd.names import JobName
from fjd.project import Project
from fjd.slot import Claim, Identity, LostSlot, OwnSlot

INTERNALS = Path(__file__).parents[2] / "docs" / "INTERNALS.md"
HEADER = ["from -> to", "function", "who", "dies before", "dies after"]
JOB = JobName("job3", "abcdef012345", 1, ".conf")
SLOT, OTHER = "vm-1.k3f9", "vm-2.aaaa"


class Row(NamedTuple):
    """A row of the table."""

    move: str
    function: str
    who: str
    dies_before: str
    dies_after: str

    @property
    def moves(self) -> list[tuple[str, str]]:
        """From which state to which: `running -> done, failed` are two."""
        source, _, targets = self.move.partition(" -> ")
        return [(source, target) for target in targets.split(", ")]


def rows_of(text: str) -> list[Row]:
    """The rows of the table with HEADER in a text, with or without bars at the ends of the lines."""
    rows: list[Row] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if cells == HEADER:
            inside = True
        elif inside and len(cells) != len(HEADER):
            break
        elif inside and set("".join(cells)) != {"-"}:
            rows.append(Row(*cells))
    return rows


ROWS = rows_of(spool.__doc__ or "")
MOVES = [(row.function, source, target) for row in ROWS for source, target in row.moves]


def transition_functions() -> set[str]:
    """The public functions of spool.py that commit something themselves, as their code says."""
    commits = {"_move", "disk.move", "disk.publish", "slots.remove_slot", "holder.leave"}
    found = set()
    for node in ast.parse(inspect.getsource(spool)).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            calls = {ast.unparse(call.func) for call in ast.walk(node) if isinstance(call, ast.Call)}
            if calls & commits:
                found.add(node.name)
    return found


def test_table_names_exactly_the_transition_functions() -> None:
    assert {row.function for row in ROWS} == transition_functions()


def test_table_names_only_public_functions() -> None:
    assert {row.function for row in ROWS} <= set(spool.__all__)


def test_table_in_the_internals_is_that_of_the_docstring() -> None:
    assert rows_of(INTERNALS.read_text(encoding="utf-8")) == ROWS


def test_table_has_no_empty_cell_and_no_row_twice() -> None:
    assert all(cell for row in ROWS for cell in row)
    assert len(set(MOVES)) == len(MOVES)


# Running the rows


class Stage:
    """A project with two slots, and one job where the row says that it comes from."""

    def __init__(self, project: Project, source: str) -> None:
        self.project = project
        self.own = OwnSlot.take(project.workerqueue, SLOT, Identity.of_this_process("vm-1"))
        self.other = OwnSlot.take(project.workerqueue, OTHER, Identity.of_this_process("vm-2"))
        self.lost = LostSlot(self.own.path, self.own.name, None, "")
        self.claims = [claim for own in (self.own, self.other) if (claim := Claim.try_take(own.path))]
        folders = {"jobqueue": project.jobqueue, "slot": self.own.path, "running": self.own.running}
        if source in folders:
            Path(folders[source], JOB.filename).write_text("[control]\nexecutable: ./sim\n")

    def close(self) -> None:
        for claim in self.claims:
            claim.release()
        self.own.close()
        self.other.close()

    def where(self) -> list[str]:
        """The state of every job file, by the directory that it lies in."""
        states = []
        for folder, _, filenames in os.walk(self.project.path):
            path = os.path.relpath(folder, self.project.path).split("/")
            for name in filenames:
                if name in (*slots.FILES, "fjd.conf") or name.endswith(".reason"):
                    continue
                states.append({"workerqueue": path[-1], "jobrecord": path[-1]}.get(path[0], path[0]))
        return ["slot" if state in (SLOT, OTHER) else state for state in states]


# How each move is made. A row that is new must be added here, so that it is run too.
RUNS: dict[tuple[str, str, str], Callable[[Stage], object]] = {
    ("submit", "(none)", "jobqueue"): lambda s: spool.submit(s.project, "job3.conf", b"#!/bin/sh\n"),
    ("assign", "jobqueue", "slot"): lambda s: spool.assign(s.project, JOB.filename, JOB, s.claims[0]),
    ("hand_over", "slot", "slot"): lambda s: spool.hand_over(JOB.filename, s.claims[0], s.claims[1]),
    ("take_back", "slot", "jobqueue"): lambda s: spool.take_back(s.project, JOB.filename, s.own),
    ("start", "slot", "running"): lambda s: spool.start(s.own, JOB.filename),
    ("finish", "running", "done"): lambda s: spool.finish(s.project, s.own, JOB, succeeded=True),
    ("finish", "running", "failed"): lambda s: spool.finish(s.project, s.own, JOB, succeeded=False),
    ("give_back", "running", "jobqueue"): lambda s: spool.give_back(s.project, s.own, JOB),
    ("reclaim", "running", "jobqueue"): lambda s: spool.reclaim(s.project, s.lost, JOB, hold=False),
    ("reclaim", "running", "held"): lambda s: spool.reclaim(s.project, s.lost, JOB, hold=True),
    ("reject", "jobqueue", "rejected"): lambda s: spool.reject(s.project, JOB.filename, "not a job"),
    ("remove_slot", "slot", "(none)"): lambda s: spool.remove_slot(s.own),
}


def test_every_move_of_the_table_is_run() -> None:
    assert set(RUNS) == set(MOVES)


@pytest.fixture
def stage(project: Project, request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = Stage(project, request.param)
    yield made
    made.close()


JOB_MOVES = [pytest.param(move, move[1], id=" ".join(move)) for move in MOVES if move[0] != "remove_slot"]


@pytest.mark.parametrize(("move", "stage"), JOB_MOVES, indirect=["stage"])
def test_transition_moves_from_and_to_where_its_row_says(move: tuple[str, str, str], stage: Stage) -> None:
    _, source, target = move
    assert stage.where() == ([] if source == "(none)" else [source])
    in_other_slot = os.path.exists(f"{stage.other.path}/{JOB.filename}")
    assert RUNS[move](stage)
    assert stage.where() == [target]
    if (source, target) == ("slot", "slot"):
        assert os.path.exists(f"{stage.other.path}/{JOB.filename}") != in_other_slot


@pytest.mark.parametrize("stage", ["(none)"], indirect=True)
def test_removing_a_slot_moves_from_and_to_where_its_row_says(stage: Stage) -> None:
    assert sorted(os.listdir(stage.project.workerqueue)) == [SLOT, OTHER]
    assert RUNS["remove_slot", "slot", "(none)"](stage)
    assert os.listdir(stage.project.workerqueue) == [OTHER]


@pytest.mark.parametrize(("move", "stage"), JOB_MOVES, indirect=["stage"])
def test_transition_takes_a_job_round_as_its_next_attempt_where_its_row_says(
    move: tuple[str, str, str], stage: Stage
) -> None:
    row = next(row for row in ROWS if row.function == move[0] and move[1:] in row.moves)
    moved = RUNS[move](stage)
    if isinstance(moved, JobName):
        assert (moved.attempt == 2) == ("next attempt" in row.dies_after)
