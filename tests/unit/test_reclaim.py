"""Guards what becomes of a lost worker's jobs: run again, finished from the record, or held; and that its slot goes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import make_project

import fjd.reclaim
from fjd import journal, spool
from fjd.journal import Journal, Journals, Record
from fjd.names import JobName
from fjd.project import Project
from fjd.reclaim import Reclaimer
from fjd.slot import Identity, LostSlot, OwnSlot

ID = "abcdef012345"
HERE = Identity.of_this_process("vm-1")


class Wreck:
    """A slot whose worker is lost, and who reclaims it."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.own = OwnSlot.take(project.workerqueue, "vm-1.k3f9", HERE)
        self.lost = LostSlot(self.own.path, self.own.name, None, "no heartbeat")
        self.reclaimer = Reclaimer(project, "here")

    def close(self) -> None:
        self.own.close()
        self.reclaimer.close()

    def running(self, attempt: int = 1, id: str = ID) -> str:
        filename = JobName("job", id, attempt, ".conf").filename
        Path(self.own.running, filename).write_text("mine")
        return filename

    def record(self, attempt: int, outcome: str, worker: str = "vm-1.k3f9") -> None:
        writer = Journal(self.project.journal, worker, durable=False)
        name = JobName("job", ID, attempt, ".conf").filename
        writer.append(Record("job", ID, attempt, name, worker, "vm-1", "true", outcome))
        writer.close()

    def reclaim(self) -> bool:
        return self.reclaimer.reclaim(self.lost)

    def where(self) -> dict[str, list[str]]:
        """The folders that hold jobs, and which."""
        folders = ("jobqueue", "jobrecord/done", "jobrecord/failed", "jobrecord/held")
        found = {name.rpartition("/")[2]: sorted(os.listdir(f"{self.project.path}/{name}")) for name in folders}
        return {name: jobs for name, jobs in found.items() if jobs}

    def new_records(self) -> list[Record]:
        """What the reclaimer recorded."""
        return [r for r in Journals(self.project.journal).new_records() if r.outcome in ("lost", "held")]


@pytest.fixture
def wreck(tmp_path: Path) -> Iterator[Wreck]:
    made = Wreck(make_project(tmp_path / "project", filesystem="local", max_lost=3))
    yield made
    made.close()


def test_reclaim_queues_a_job_without_record_as_its_next_attempt(wreck: Wreck) -> None:
    wreck.running()
    assert wreck.reclaim()
    assert wreck.where() == {"jobqueue": [f"job.{ID}~2.conf"]}
    assert Path(wreck.project.jobqueue, f"job.{ID}~2.conf").read_text() == "mine"
    assert not os.path.exists(wreck.own.path)


def test_reclaim_writes_a_line_that_says_lost(wreck: Wreck) -> None:
    filename = wreck.running(attempt=2)
    wreck.reclaim()
    (record,) = wreck.new_records()
    assert (record.job, record.id, record.attempt, record.file) == ("job", ID, 2, filename)
    assert (record.worker, record.outcome, record.reason) == ("vm-1.k3f9", "lost", "worker lost: no heartbeat")
    # In a journal of its own: two writers in one file corrupt each other on a network filesystem.
    assert not os.path.exists(f"{wreck.project.journal}/vm-1.k3f9.jsonl")


@pytest.mark.parametrize(
    ("outcome", "folder", "attempt"), [("succeeded", "done", 1), ("failed", "failed", 1), ("stopped", "jobqueue", 2)]
)
def test_reclaim_makes_the_move_that_the_record_asks_for(wreck: Wreck, outcome: str, folder: str, attempt: int) -> None:
    wreck.running()
    wreck.record(1, outcome)
    assert wreck.reclaim()
    assert wreck.where() == {folder: [JobName("job", ID, attempt, ".conf").filename]}
    # The attempt has its line already.
    assert wreck.new_records() == []


@pytest.mark.parametrize("other", [{"attempt": 1}, {"worker": "vm-2.zzzz", "attempt": 2}])
def test_reclaim_queues_the_job_when_the_record_is_of_another_attempt_or_worker(
    wreck: Wreck, other: dict[str, object]
) -> None:
    wreck.running(attempt=2)
    wreck.record(outcome="succeeded", **other)  # a line that is not about what lies in running/
    assert wreck.reclaim()
    assert wreck.where() == {"jobqueue": [f"job.{ID}~3.conf"]}


@pytest.mark.parametrize(
    ("earlier", "attempt", "is_held"),
    [
        ([], 1, False),
        (["lost"], 2, False),
        (["lost", "lost"], 3, True),
        # A journal that was removed tells nothing; the number of the attempt does.
        ([], 3, True),
        (["failed", "lost"], 3, False),
        (["stopped", "stopped"], 3, False),
        (["lost", "failed", "lost"], 4, True),
        (["failed", "failed", "lost"], 4, False),
        (["lost", "lost", "lost"], 4, True),
    ],
)
def test_reclaim_holds_a_job_that_lost_too_many_workers(
    wreck: Wreck, earlier: list[str], attempt: int, is_held: bool
) -> None:
    for number, outcome in enumerate(earlier, 1):
        wreck.record(number, outcome, worker="vm-9.aaaa")
    wreck.running(attempt=attempt)
    assert wreck.reclaim()
    assert wreck.where() == {"held" if is_held else "jobqueue": [f"job.{ID}~{attempt + 1}.conf"]}


def test_reclaim_counts_only_the_jobs_own_attempts(wreck: Wreck) -> None:
    wreck.record(1, "failed", worker="vm-9.aaaa")
    wreck.running(attempt=3, id="fedcba543210")
    wreck.reclaim()
    assert list(wreck.where()) == ["held"]


def test_reclaim_says_so_when_it_holds_a_job(wreck: Wreck, caplog: pytest.LogCaptureFixture) -> None:
    wreck.running(attempt=3)
    wreck.reclaim()
    assert f"job.{ID}~4 held: it lost 3 workers" in [record.getMessage() for record in caplog.records]
    (record,) = wreck.new_records()
    assert (record.attempt, record.outcome) == (3, "held")


def test_reclaim_moves_every_file_when_there_are_several_in_running(wreck: Wreck) -> None:
    wreck.running()
    wreck.running(id="fedcba543210")
    assert wreck.reclaim()
    assert wreck.where() == {"jobqueue": [f"job.{ID}~2.conf", "job.fedcba543210~2.conf"]}


def test_reclaim_takes_back_what_was_assigned_as_the_same_attempt(wreck: Wreck) -> None:
    Path(wreck.own.path, f"job.{ID}~2.conf").write_text("")
    Path(wreck.own.path, "notes.txt").write_text("a stranger's file")
    assert wreck.reclaim()
    assert wreck.where() == {"jobqueue": [f"job.{ID}~2.conf", "notes.txt"]}
    assert wreck.new_records() == []


def test_reclaim_is_content_when_the_slot_is_gone(wreck: Wreck) -> None:
    shutil.rmtree(wreck.own.path)
    assert wreck.reclaim()


def test_reclaim_comes_back_when_a_job_is_assigned_at_the_last_moment(
    wreck: Wreck, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # What a listing that was too early says.
        patch.setattr(spool, "contents", lambda path: [])
        Path(wreck.own.path, f"job.{ID}.conf").write_text("")
        assert not wreck.reclaim()
    assert wreck.reclaim()
    assert wreck.where() == {"jobqueue": [f"job.{ID}.conf"]}


@pytest.mark.parametrize(
    ("identity", "waits"),
    [(HERE, True), (HERE._replace(machine="another boot/1"), False), (None, False)],
    ids=["here", "elsewhere", "nobody knows"],
)
def test_reclaim_waits_while_the_job_cannot_be_killed_here(
    wreck: Wreck, monkeypatch: pytest.MonkeyPatch, identity: Identity | None, waits: bool
) -> None:
    """Before it runs again: two of one job on one host would write into the same files."""
    asked: list[tuple[str, str]] = []

    def kill_strays(slot_name: str, project_path: str, session: tuple[int, int]) -> bool:
        asked.append((slot_name, project_path))
        return False

    monkeypatch.setattr(fjd.reclaim, "kill_strays", kill_strays)
    filename = wreck.running()
    wreck.lost = wreck.lost._replace(identity=identity)
    assert wreck.reclaim() is not waits
    assert os.path.exists(f"{wreck.own.running}/{filename}") is waits
    assert asked == ([("vm-1.k3f9", wreck.project.path)] if waits else [])


def test_reclaim_goes_on_when_the_line_cannot_be_written(
    wreck: Wreck, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def append(self: Journal, record: Record) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal.Journal, "append", append)
    wreck.running()
    assert wreck.reclaim()
    assert list(wreck.where()) == ["jobqueue"]
    assert "journal: No space left on device" in [record.getMessage() for record in caplog.records]


def test_reclaim_writes_nothing_when_somebody_else_moved_the_job(wreck: Wreck, monkeypatch: pytest.MonkeyPatch) -> None:
    filename = wreck.running()

    def running(path: str) -> list[str]:
        os.rename(f"{path}/running/{filename}", f"{wreck.project.done}/{filename}")
        return [filename]

    monkeypatch.setattr(spool, "running", running)
    assert wreck.reclaim()
    assert wreck.where() == {"done": [filename]}
    assert wreck.new_records() == []
