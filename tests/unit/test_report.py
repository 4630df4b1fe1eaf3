"""Guards the numbers that people see and that the dispatcher plans by: counts, outcomes, rate, time per job."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Clock

from fjd import report
from fjd.journal import Journal, Record
from fjd.project import Project
from fjd.report import Counts, Tally
from fjd.slot import OwnSlot

ID = "abcdef012345"
NOTHING = Counts(queued=0, assigned=0, running=0, succeeded=0, failed=0, held=0, rejected=0, workers=0)


def record_of(id: str = ID, attempt: int = 1, outcome: str = "succeeded", seconds: float = 1.0) -> Record:
    name = f"job.{id}.conf" if attempt == 1 else f"job.{id}~{attempt}.conf"
    return Record("job", id, attempt, name, "vm-1.k3f9", "vm-1", "./sim", outcome, seconds=seconds)


# Counting


def test_count_is_zero_when_there_is_nothing(project: Project) -> None:
    assert report.count(project) == NOTHING


def test_count_is_zero_when_nothing_was_prepared(tmp_path: Path) -> None:
    assert report.count(Project(str(tmp_path))) == NOTHING


def test_count_finds_each_job_in_its_state(project: Project, own_slot: OwnSlot) -> None:
    folders = {
        project.jobqueue: 6,
        own_slot.path: 5,
        own_slot.running: 1,
        project.done: 4,
        project.failed: 3,
        project.held: 2,
        project.rejected: 1,
    }
    for number, (folder, jobs) in enumerate(folders.items()):
        for job in range(jobs):
            Path(folder, f"job{job}.{number + 0xABCDEF012345:x}.conf").write_text("")
    Path(project.rejected, "odd.txt.reason").write_text("")
    assert report.count(project) == Counts(
        queued=6, assigned=5, running=1, succeeded=4, failed=3, held=2, rejected=1, workers=1
    )


def test_count_passes_over_what_is_no_job(project: Project, own_slot: OwnSlot) -> None:
    for folder in (project.jobqueue, own_slot.path, own_slot.running, project.done):
        for name in (".draft", "job.conf.tmp", "job.conf~"):
            Path(folder, name).write_text("")
    Path(own_slot.path, "fire").write_text("now")
    # A slot that is being made, one that is being removed, and a file that somebody dropped at the wrong place.
    Path(project.workerqueue, ".vm-2.aaaa").mkdir()
    Path(project.workerqueue, "vm-3.aaaa").mkdir()
    Path(project.workerqueue, "job.conf").write_text("")
    assert report.count(project) == NOTHING._replace(workers=1)


# The tally


@pytest.fixture
def ended(project: Project) -> Iterator[Callable[..., None]]:
    """Records the end of an attempt."""
    journal = Journal(project.journal, "vm-1.k3f9", durable=False)
    yield lambda *args, **more: journal.append(record_of(*args, **more))
    journal.close()


@pytest.fixture
def tally(project: Project, clock: Clock) -> Tally:
    return Tally(project, clock)


def test_tally_counts_what_ended_since_it_was_made(project: Project, clock: Clock, ended: Callable[..., None]) -> None:
    ended("a" * 12)
    tally = Tally(project, clock)
    assert tally.update() is False
    ended("b" * 12)
    ended("c" * 12, outcome="failed")
    assert tally.update() is True
    assert tally.ended == 2
    assert tally.update() is False


@pytest.mark.parametrize("outcome", ["stopped", "lost"])
def test_tally_does_not_count_an_attempt_that_did_not_end_its_job(
    outcome: str, tally: Tally, ended: Callable[..., None]
) -> None:
    ended(outcome=outcome)
    assert tally.update() is False
    assert (tally.ended, tally.job_seconds, tally.failures) == (0, None, {})


def test_tally_keeps_the_last_outcome_of_each_job_that_failed(tally: Tally, ended: Callable[..., None]) -> None:
    ended("a" * 12, outcome="failed")
    ended("b" * 12, outcome="failed")
    tally.update()
    assert tally.failures.keys() == {"a" * 12, "b" * 12}
    ended("a" * 12, attempt=2)
    ended("b" * 12, attempt=2, outcome="failed")
    tally.update()
    assert tally.failures == {"b" * 12: record_of("b" * 12, attempt=2, outcome="failed")}
    # A job that was tried again is still one job.
    assert tally.ended == 2


def test_tally_does_not_believe_an_earlier_attempt_that_is_told_later(tally: Tally, ended: Callable[..., None]) -> None:
    ended(attempt=2)
    tally.update()
    ended(attempt=1, outcome="failed")
    tally.update()
    assert (tally.ended, tally.failures) == (1, {})


def test_tally_smooths_the_time_that_a_job_takes(tally: Tally, ended: Callable[..., None]) -> None:
    found = [tally.job_seconds]
    for id, seconds in (("a" * 12, 10.0), ("b" * 12, 0.0)):
        ended(id, seconds=seconds)
        tally.update()
        found.append(tally.job_seconds)
    assert found == [None, 10.0, pytest.approx(8.0)]


def test_rate_is_zero_when_nothing_ended_or_no_time_passed(tally: Tally, ended: Callable[..., None]) -> None:
    assert tally.rate == 0.0
    ended()
    tally.update()
    assert tally.rate == 0.0


def test_rate_is_jobs_in_a_second(tally: Tally, clock: Clock, ended: Callable[..., None]) -> None:
    for id in ("a" * 12, "b" * 12, "c" * 12):
        ended(id)
    clock.advance(2.0)
    tally.update()
    assert tally.rate == 1.5


def test_rate_forgets_what_was_long_ago(tally: Tally, clock: Clock, ended: Callable[..., None]) -> None:
    ended()
    for _ in range(100):
        clock.advance(1.0)
        tally.update()
    assert tally.rate == 0.0


def test_rate_needs_no_more_memory_the_longer_it_is_asked(tally: Tally, clock: Clock) -> None:
    for _ in range(100):
        clock.advance(1.0)
        tally.update()
    assert len(tally._recent) <= Tally.RATE_SECONDS + 2


# Where the output is


@pytest.mark.parametrize(
    ("stdout_bytes", "stderr_bytes", "path"),
    [
        (10, 5, f"jobrecord/logs/job.{ID}~2.err"),
        (10, 0, f"jobrecord/logs/job.{ID}~2.out"),
        (0, 0, None),
    ],
)
def test_output_is_what_the_attempt_said_last(
    stdout_bytes: int, stderr_bytes: int, path: str | None, project: Project
) -> None:
    record = record_of(attempt=2)._replace(stdout_bytes=stdout_bytes, stderr_bytes=stderr_bytes)
    assert report.output_of(project, record) == path


def test_tally_is_content_when_the_journals_are_gone(project: Project, tally: Tally) -> None:
    shutil.rmtree(project.journal)
    assert tally.update() is False
