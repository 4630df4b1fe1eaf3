"""jobqueue/ as one dispatcher last listed it: which of its files may be assigned now, in which order.

Examines each file before it is handed out, rejects what is no job, and leaves alone what belongs to others or what the
disk does not let go. Holds nothing that a new listing would not bring back.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Protocol

from fjd import disk, names, spool
from fjd.errors import printable
from fjd.intake import Foreign, Intake, Ready, Rejected, Verdict, Waiting
from fjd.names import natural_key
from fjd.project import Project

__all__ = ["Queue", "QueueListener"]

log = logging.getLogger(__name__)

# What cannot be assigned yet is examined all the same, so many at a time: what is not a job is told at once.
_LOOK_AHEAD = 200


class QueueListener(Protocol):
    """Who wants to hear what is found in jobqueue/."""

    def found(self) -> None:
        """There are jobs to dispatch, after there were none."""

    def rejected(self, filename: str, reason: str) -> None: ...


class Queue:
    """The queued files; a dispatcher lists them, and takes from `ready` what it has room for."""

    def __init__(
        self,
        project: Project,
        intake: Intake,
        listener: QueueListener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._project = project
        self._intake = intake
        self._listener = listener
        self._clock = clock
        # In the order to assign.
        self._names: deque[str] = deque()
        # Those that this pass has looked at and that stay.
        self._kept: list[str] = []
        # When to look at a file again.
        self._not_before: dict[str, float] = {}
        self._being_written: set[str] = set()
        self._foreign: set[str] = set()
        self._immovable: set[str] = set()
        self._examined: set[str] = set()
        self._listed = -math.inf
        self._listing_seconds = 0.0
        # Something may have come since the last listing.
        self.has_news = True
        self.rejected_count = 0

    def __len__(self) -> int:
        return len(self._names)

    @property
    def left_alone(self) -> int:
        """How many belong to other users, or cannot be moved."""
        return len(self._foreign) + len(self._immovable)

    @property
    def next_look_seconds(self) -> float:
        """When the first of the files that wait is to be looked at again; infinite if none waits."""
        return min(self._not_before.values(), default=math.inf) - self._clock()

    def heard_something(self) -> None:
        """An event: something appeared, or a file that was being written was closed."""
        self.has_news = True
        for filename in self._being_written:
            self._not_before.pop(filename, None)
        self._being_written.clear()

    def look(self) -> bool:
        """List jobqueue/ if there is news, if all of it is assigned, or if a second has passed; whether it was news.

        A long queue takes long to list; no more than a fifth of the time goes into that. Raises OSError.
        """
        start = self._clock()
        rest_seconds = 5 * self._listing_seconds if self.has_news else max(1.0, 5 * self._listing_seconds)
        if self._names and start < self._listed + rest_seconds:
            return False
        was_news, self.has_news = self.has_news, False
        found = [name for name in disk.list_names(self._project.jobqueue) if not names.is_ignored(name)]
        found.sort(key=natural_key)
        if found and not self._names:
            self._listener.found()
            was_news = True
        here = set(found)
        self._names = deque(found)
        self._foreign.clear()
        self._immovable &= here
        self._examined &= here
        self._not_before = {name: due for name, due in self._not_before.items() if name in here}
        self._intake.forget_others(here)
        self._listed = start
        self._listing_seconds = self._clock() - start
        return was_news

    def ready(self, has_room: Callable[[], bool]) -> Generator[str, None, None]:
        """The files that may be assigned, one after another, while `has_room` says so; and then a look ahead.

        Whoever does not assign what it got gives it back with `keep`. Must be closed, also after an error.
        """
        look_ahead = _LOOK_AHEAD
        try:
            while self._names and look_ahead > 0:
                filename = self._names.popleft()
                if not has_room() and filename in self._examined:
                    self.keep(filename)
                elif self._may_be_assigned(filename):
                    if has_room():
                        yield filename
                    else:
                        self._examined.add(filename)
                        self.keep(filename)
                # What is left alone must all be known, or it would count as work that is still to be done.
                look_ahead -= not has_room() and not self._is_left_alone(filename)
        finally:
            self._names.extendleft(reversed(self._kept))
            self._kept.clear()

    def keep(self, filename: str) -> None:
        """It stays in the queue, at its place."""
        self._kept.append(filename)

    def leave_alone(self, filename: str, error: OSError) -> None:
        """Go on without a file that cannot be moved: a directory without write permission, a mount point.

        Raises ProjectError or `error` if it is not the file's fault.
        """
        if error.errno in disk.CURABLE:
            raise error
        self._project.check()
        self._immovable.add(filename)
        path = f"{self._project.jobqueue}/{filename}"
        log.warning("%s: cannot be moved: %s (take it away)", printable(path), (error.strerror or "").lower())

    def _is_left_alone(self, filename: str) -> bool:
        return filename in self._foreign or filename in self._immovable

    def _may_be_assigned(self, filename: str) -> bool:
        if self._is_left_alone(filename):
            self.keep(filename)
            return False
        verdict = self._examine(filename)
        if isinstance(verdict, (Waiting, Foreign)) or filename in self._immovable:
            self.keep(filename)
        return isinstance(verdict, Ready)

    def _examine(self, filename: str) -> Verdict | None:
        if self._not_before.get(filename, 0.0) > self._clock():
            return Waiting(0.0)
        self._not_before.pop(filename, None)
        verdict = self._intake.try_examine(filename)
        if isinstance(verdict, Waiting):
            self._not_before[filename] = self._clock() + verdict.seconds
            if verdict.has_writer:
                self._being_written.add(filename)
        elif isinstance(verdict, Rejected):
            self._reject(filename, verdict.reason)
        elif isinstance(verdict, Foreign):
            log.debug("%s waits for workers of its owner (uid %d)", printable(filename), verdict.uid)
            self._foreign.add(filename)
        return verdict

    def _reject(self, filename: str, reason: str) -> None:
        try:
            rejected = spool.reject(self._project, filename, reason)
        except OSError as error:
            self.leave_alone(filename, error)
            return
        if rejected is not None:
            self.rejected_count += 1
            self._listener.rejected(filename, reason)
