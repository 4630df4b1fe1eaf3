"""A project in which nothing has to settle, and the forcing of interleavings."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from fjd import disk, spool
from fjd.dispatcher import Dispatcher, Picture
from fjd.journal import Journal, Record
from fjd.names import JobName
from fjd.project import Project
from fjd.reclaim import Reclaimer
from fjd.report import Tally
from fjd.slot import Claim, Identity, LostSlot, OwnSlot

SCRIPT = b"#!/bin/sh\nexit 0\n"


class Silent:
    """A listener."""

    def found(self) -> None: ...

    def rejected(self, filename: str, reason: str) -> None: ...

    def passed(self, picture: Picture, tally: Tally) -> None: ...


class Scene:
    """A project, and the actors that a test lets meet."""

    def __init__(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project = project
        self._patch = monkeypatch
        self._opened: list[Any] = []
        # What is still to be forced.
        self.pending: list[str] = []

    def patch(self, thing: object, name: str, value: object) -> None:
        self._patch.setattr(thing, name, value)

    def close(self) -> None:
        assert not self.pending, f"what the test was to force never came: {self.pending}"
        for opened in self._opened:
            opened.close()

    def drop(self, name: str, data: bytes = SCRIPT) -> str:
        with open(f"{self.project.jobqueue}/{name}", "wb") as file:
            file.write(data)
        return name

    def worker(self, name: str = "vm-1.aaaaaa") -> OwnSlot:
        own = OwnSlot.take(self.project.workerqueue, name, Identity.of_this_process("vm-1"))
        self._opened.append(own)
        return own

    def dispatcher(self) -> Dispatcher:
        made = Dispatcher(self.project, Silent())
        self._opened.append(made)
        return made

    def reclaimer(self) -> Reclaimer:
        made = Reclaimer(self.project, "here")
        self._opened.append(made)
        return made

    def assigned(self, own: OwnSlot, name: str = "job.conf", attempt: int = 1) -> JobName:
        """A job that is assigned to a worker."""
        claim = Claim.try_take(own.path)
        assert claim is not None
        job = JobName.parse(name).renewed()._replace(attempt=attempt)
        moved = spool.assign(self.project, self.drop(name), job, claim)
        claim.release()
        assert moved is not None
        return moved

    def running(self, own: OwnSlot, name: str = "job.conf", attempt: int = 1) -> JobName:
        """A job that a worker has started."""
        started = spool.start(own, self.assigned(own, name, attempt).filename)
        assert started is not None
        return started

    def record(self, own: OwnSlot, job: JobName, outcome: str = "succeeded") -> None:
        writer = Journal(self.project.journal, own.name, durable=False)
        writer.append(
            Record(
                job=job.name,
                id=job.id,
                attempt=job.attempt,
                file=job.filename,
                worker=own.name,
                host="",
                command="",
                outcome=outcome,
            )
        )
        writer.close()

    def finish(self, own: OwnSlot, job: JobName, outcome: str = "succeeded") -> JobName | None:
        """What a worker does at the end of a job."""
        self.record(own, job, outcome)
        return spool.conclude(self.project, own, job, outcome)

    def judged_lost(self, own: OwnSlot) -> LostSlot:
        """A judgement that may be wrong: the worker lives and knows nothing of it."""
        return LostSlot(own.path, own.name, None, "no heartbeat")

    def before(self, call: str, path_part: str, action: Callable[[], object]) -> None:
        """Have `action` happen right before the first os.`call` whose first path contains `path_part`."""
        real = getattr(os, call)
        self.pending.append(f"{call} {path_part}")

        def patched(path: str, *args: Any) -> Any:
            if path_part in path and f"{call} {path_part}" in self.pending:
                self.pending.remove(f"{call} {path_part}")
                action()
            return real(path, *args)

        self._patch.setattr(os, call, patched)

    def lose_answer(self, path_part: str, action: Callable[[], object], error: int) -> None:
        """Have the first rename of such a path take effect, then `action` happen, and then the rename fail."""
        real = os.rename

        def patched(source: str, target: str) -> None:
            real(source, target)
            if path_part in source and "answer" in self.pending:
                self.pending.remove("answer")
                action()
                raise OSError(error, os.strerror(error), source)

        self.pending.append("answer")
        self._patch.setattr(os, "rename", patched)

    def names(self, folder: str) -> list[str]:
        return sorted(disk.list_names(folder))
