"""The checker names each kind of damage, and nothing in a project that is right."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from checker import check, kinds

from fjd.project import Project

pytestmark = pytest.mark.unit

DATA = b"[control]\nexecutable: true\n"
ID = "abc123def456"
FILE = f"a.{ID}.conf"


def put(path: str, data: bytes = DATA) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def record(project: Project, outcome: str, attempt: int = 1, id: str = ID, writer: str = "w") -> None:
    with open(f"{project.journal}/{writer}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"id": id, "attempt": attempt, "outcome": outcome}) + "\n")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """One job of each state, all right."""
    made = Project(str(tmp_path))
    made.prepare()
    put(f"{made.jobqueue}/queued.conf", b"1")
    put(f"{made.jobqueue}/again.b11111111111~2.conf", b"2")
    put(f"{made.workerqueue}/w.k3f9/alive", b"")
    put(f"{made.workerqueue}/w.k3f9/fire", b"drain\n")
    put(f"{made.workerqueue}/w.k3f9/assigned.b22222222222.conf", b"3")
    put(f"{made.workerqueue}/w.k3f9/running/running.b33333333333.conf", b"4")
    put(f"{made.done}/{FILE}")
    put(f"{made.failed}/failed.b44444444444~3.conf", b"5")
    put(f"{made.held}/held.b55555555555~4.conf", b"6")
    put(f"{made.rejected}/rejected.conf", b"7")
    put(f"{made.rejected}/rejected.conf.reason", b"why")
    put(f"{made.rejected}/never-came.conf.reason", b"why")
    record(made, "succeeded")
    record(made, "lost")
    record(made, "lost", 2, "b44444444444")
    record(made, "failed", 3, "b44444444444")
    return made


SUBMITTED = {
    "queued.conf": b"1",
    "again.conf": b"2",
    "assigned.b22222222222.conf": b"3",
    "running.conf": b"4",
    "a.conf": DATA,
    "failed.conf": b"5",
    "held.conf": b"6",
    "rejected.conf": b"7",
}


def test_checker_finds_nothing_when_all_is_right(project: Project) -> None:
    assert check(project, SUBMITTED) == []


def test_checker_names_each_thing_that_is_left_when_drained(project: Project) -> None:
    put(f"{project.jobqueue}/.x.draft")
    os.mkdir(f"{project.workerqueue}/.v.aaaa")
    found = check(project, SUBMITTED, drained=True)
    assert sorted(violation.partition(":")[0] for violation in found) == [
        "stale draft",
        "stale slot",
        "stale slot",
        "unfinished",
        "unfinished",
        "unfinished",
        "unfinished",
    ]


def _remove(path: str) -> Callable[[Project], None]:
    return lambda project: os.unlink(f"{project.path}/{path}")


def _put(path: str, data: bytes = DATA) -> Callable[[Project], None]:
    return lambda project: put(f"{project.path}/{path}", data)


DAMAGE: dict[str, tuple[Callable[[Project], None], set[str]]] = {
    "a queued job removed": (_remove("jobqueue/queued.conf"), {"nowhere"}),
    "a running job removed": (_remove("workerqueue/w.k3f9/running/running.b33333333333.conf"), {"nowhere"}),
    "an ID queued and done": (_put(f"jobqueue/{FILE}"), {"two places"}),
    "a name queued twice": (_put("jobqueue/queued.a99999999999.conf", b"1"), {"two places"}),
    "the same text under another name": (_put("jobqueue/else.conf", b"6"), {"two places"}),
    "an ID assigned in two slots": (
        _put("workerqueue/v.aaaa/assigned.b22222222222.conf", b"3"),
        {"two places"},
    ),
    "an ID done and failed": (
        lambda project: (put(f"{project.failed}/{FILE}"), record(project, "failed", writer="v")),
        {"two places", "two outcomes", "contradiction"},
    ),
    "two attempts done": (
        lambda project: (put(f"{project.done}/a.{ID}~2.conf"), record(project, "succeeded", 2)),
        {"two places", "two outcomes"},
    ),
    "done and held": (_put(f"jobrecord/held/a.{ID}~2.conf"), {"two places", "two outcomes"}),
    "a journal lost": (_remove("jobrecord/journal/w.jsonl"), {"no record"}),
    "done by a journal that says failed": (
        lambda project: os.rename(
            f"{project.failed}/failed.b44444444444~3.conf", f"{project.done}/failed.b44444444444~3.conf"
        ),
        {"no record"},
    ),
    "done as another attempt": (
        lambda project: os.rename(f"{project.done}/{FILE}", f"{project.done}/a.{ID}~2.conf"),
        {"no record"},
    ),
    "a job shortened": (_put("jobrecord/held/held.b55555555555~4.conf", b""), {"changed"}),
    "a reason removed": (_remove("jobrecord/rejected/rejected.conf.reason"), {"no reason"}),
    "a file without an ID in done": (_put("jobrecord/done/b.conf", b"8"), {"no record", "stray"}),
    "a file among the slots": (_put("workerqueue/x"), {"stray"}),
    "a file without an ID in a slot": (_put("workerqueue/w.k3f9/notes.txt", b"8"), {"stray"}),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_checker_names_the_damage_when(project: Project, what: str) -> None:
    damage, expected = DAMAGE[what]
    damage(project)
    assert kinds(check(project, SUBMITTED)) == expected


def test_checker_does_not_believe_half_a_line_when_a_journal_is_torn(project: Project) -> None:
    path = f"{project.journal}/w.jsonl"
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:
        file.write(data[:-1])
    assert kinds(check(project)) == {"no record"}
