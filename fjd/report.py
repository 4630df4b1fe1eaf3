"""A read-only picture of the project: counts, workers, outcomes, rate.

Reads the directories as they are and holds no lock; numbers that move while it looks may be off by the jobs that
moved.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from fjd import disk, names
from fjd.journal import ENDINGS, Journals, Record
from fjd.project import Project

__all__ = ["Counts", "Tally", "count", "output_of"]


class Counts(NamedTuple):
    """How many jobs are in each state, and how many slots there are."""

    queued: int
    assigned: int
    running: int
    succeeded: int
    failed: int
    held: int
    rejected: int
    workers: int


def count(project: Project) -> Counts:
    """Count by listing. A directory that is not there yet is empty."""
    assigned = running = workers = 0
    for slot in _names(project.workerqueue):
        inside = _names(f"{project.workerqueue}/{slot}")
        if "alive" not in inside:
            continue
        workers += 1
        assigned += _jobs(inside)
        running += _jobs(_names(f"{project.workerqueue}/{slot}/running"))
    return Counts(
        queued=len(_names(project.jobqueue)),
        assigned=assigned,
        running=running,
        succeeded=len(_names(project.done)),
        failed=len(_names(project.failed)),
        held=len(_names(project.held)),
        rejected=sum(not name.endswith(".reason") for name in _names(project.rejected)),
        workers=workers,
    )


def _jobs(inside: list[str]) -> int:
    return sum(names.JobName.parse(name).id != "" for name in inside)


def _names(folder: str) -> list[str]:
    try:
        return [name for name in disk.list_names(folder) if not names.is_ignored(name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


class Tally:
    """The outcomes that were recorded since it was made, kept up to date from the journals."""

    # Over so many seconds the rate is taken.
    RATE_SECONDS = 20.0

    def __init__(self, project: Project, clock: Callable[[], float] = time.monotonic) -> None:
        self._project = project
        self._clock = clock
        self._journals = Journals(project.journal)
        self._journals.skip()
        self._recent: deque[tuple[float, int]] = deque([(clock(), 0)])
        self.ended = 0
        # The last outcome of each job that failed or is held, by ID; not of one that was tried again and succeeded.
        self.failures: dict[str, Record] = {}
        # The last attempt that ended, of jobs that were tried more than once.
        self._retried: dict[str, int] = {}
        # Smoothed; None until the first job ended.
        self.job_seconds: float | None = None

    def update(self, fresh: bool = False) -> bool:
        """Read what was recorded since the last time; whether there was anything. `fresh`: see `Journals`."""
        before = self.ended
        for record in self._journals.new_records(fresh):
            if record.outcome in ENDINGS and self._counts(record):
                # A job that failed before is counted already.
                self.ended += self.failures.pop(record.id, None) is None
                if record.outcome != "succeeded":
                    self.failures[record.id] = record
                if record.outcome != "held":
                    self._smooth(record.seconds)
        now = self._clock()
        self._recent.append((now, self.ended))
        while len(self._recent) > 2 and self._recent[1][0] < now - self.RATE_SECONDS:
            self._recent.popleft()
        return self.ended > before

    def _counts(self, record: Record) -> bool:
        """False for a worker that was thought dead and recorded its attempt after a later one had ended."""
        if record.attempt < self._retried.get(record.id, 0):
            return False
        if record.attempt > 1:
            self._retried[record.id] = record.attempt
        return True

    def _smooth(self, seconds: float) -> None:
        weight = 0.2 if self.job_seconds is not None else 1.0
        self.job_seconds = (1 - weight) * (self.job_seconds or 0.0) + weight * seconds

    @property
    def rate(self) -> float:
        """Jobs ended in a second, over the last RATE_SECONDS."""
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        return (last - first) / (end - start) if end > start else 0.0


def output_of(project: Project, record: Record) -> str | None:
    """The file with what a failed attempt said last, relative to the project: its .err, or its .out; None if silent."""
    stem = names.JobName.parse(record.file).stem
    for said, ending in ((record.stderr_bytes, ".err"), (record.stdout_bytes, ".out")):
        if said:
            return os.path.relpath(f"{project.logs}/{stem}{ending}", project.path)
    return None
