"""A worker: hold a slot, run what is assigned to it, record it.

One process, one thread that decides, one job at a time. It waits in one place (`_wait`), where it hears of assigned
jobs, orders, signals, the job's output and its end, and keeps its heartbeat; so nothing it waits for can silence it.

What it guarantees: it runs only what it moved into running/; it moves a job out of there only when the record of the
attempt is in the journal; if the disk is full it waits, and takes nothing new. A worker that could not show a
heartbeat for half of lost_seconds starts nothing, and stops its job before the whole of them has passed: others may
run it then.

Raises SlotLost when others judged it lost, ProjectError when the project is gone.
"""

from __future__ import annotations

import functools
import logging
import select
import signal
import time
from collections.abc import Callable
from typing import TypeVar

from fjd import disk, spool
from fjd.attempt import Attempt, base_environment
from fjd.errors import CommandError, JobFileError, SlotLost, printable
from fjd.journal import Journal, Record
from fjd.names import natural_key
from fjd.process import TRANSIENT, Child, Stopper, become_reaper
from fjd.project import Project, trouble
from fjd.slot import Order, OwnSlot, set_aside
from fjd.watch import Doorbell, Rhythm

__all__ = ["Worker"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGCHLD)
# The machine may get room for a process, as the disk may get space.
_CURABLE = disk.CURABLE | TRANSIENT
_RETRY_SECONDS = 1.0
_LEAVE_TRIES = 200


class Worker:
    """Runs the jobs of the slot it holds, in the order of their names, until it is told to leave."""

    def __init__(self, project: Project, own: OwnSlot, clock: Callable[[], float] = time.monotonic) -> None:
        self._project = project
        self._own = own
        self._clock = clock
        self._settings = project.settings
        self._environment = base_environment()
        self._journal = Journal(project.journal, own.name, durable=not project.filesystem.is_local)
        self._poll = select.epoll()
        self._doorbell = Doorbell()
        self._order: Order | None = None
        self._lost: SlotLost | None = None
        self._news = True
        self._backlog: list[str] = []
        # Outputs whose file could not be written, and when to try them again.
        self._stalled: dict[int, float] = {}
        self._last_beat = clock()
        self._next_beat = clock()
        # Where events do not arrive, the worker has to look by itself.
        self._rhythm = Rhythm(0.02, 1.0)

    def run(self) -> Order:
        """Work until an order to leave has come, leave no slot behind, and say what the order was."""
        with self._doorbell as doorbell:
            become_reaper()
            doorbell.listen(_SIGNALS)
            try:
                doorbell.watch_arrivals(self._own.path)
            except FileNotFoundError:
                raise _gone(self._own.path) from None
            if self._project.filesystem.is_local and not doorbell.is_deaf:
                self._rhythm = Rhythm(self._settings.heartbeat_seconds, self._settings.heartbeat_seconds)
            self._poll.register(doorbell.fd, select.EPOLLIN)
            try:
                while (filename := self._next()) is not None:
                    self._attempt(filename)
                self._leave()
            finally:
                self._poll.close()
                self._journal.close()
        return self._order or Order.DRAIN

    def _next(self) -> str | None:
        """The next assigned job, waited for; None when an order to leave has come."""
        while True:
            # An order that came while the last job ended counts before the next one starts, which may take hours.
            self._hear()
            self._read_order()
            if self._order is not None:
                return None
            if self._lost is not None:
                raise self._lost
            if not self._backlog:
                # Taken from the end, so the first comes last.
                self._backlog = sorted(self._inside(spool.assigned), key=natural_key, reverse=True)
            if self._backlog and self._silent_seconds < self._settings.fence_seconds:
                self._rhythm.quicken()
                return self._backlog.pop()
            self._wait(self._rhythm.seconds)
            self._rhythm.relax()

    def _read_order(self) -> None:
        if self._news:
            self._news = False
            # `now` may come after `drain`, and drain never takes it back.
            self._order = Order.NOW if self._order is Order.NOW else self._own.order() or self._order

    def _inside(self, listing: Callable[[str], list[str]]) -> list[str]:
        try:
            return listing(self._own.path)
        except FileNotFoundError:
            raise _gone(self._own.path) from None

    @property
    def _silent_seconds(self) -> float:
        return self._clock() - self._last_beat

    # Waiting

    def _wait(self, seconds: float, child: Child | None = None) -> None:
        """Wait for news, at most so long, while the heart beats and the output of `child` is taken."""
        self._beat()
        now = self._clock()
        seconds = max(0.0, min(seconds, self._next_beat - now))
        for fd in [fd for fd, due in self._stalled.items() if due <= now]:
            del self._stalled[fd]
            self._poll.register(fd, select.EPOLLIN)
        for fd, _ in self._poll.poll(min(seconds, _RETRY_SECONDS) if self._stalled else seconds):
            if fd == self._doorbell.fd:
                self._hear()
            elif child is not None:
                self._take_output(child, fd)

    def _hear(self) -> None:
        for ring in self._doorbell.answer():
            if ring == 0:
                self._news = True
            elif ring == signal.SIGINT and self._order is None:
                log.info("leaving after this job; once more to stop it")
                self._order = Order.DRAIN
            elif ring != signal.SIGCHLD:
                self._order = Order.NOW

    def _beat(self) -> None:
        now = self._clock()
        if now < self._next_beat:
            return
        self._next_beat = now + self._settings.heartbeat_seconds
        try:
            self._own.beat()
        except SlotLost as error:
            # Not thrown from here: a job may be running, which must be stopped first.
            self._lost = error
        except OSError as error:
            if self._last_beat > now - 2 * self._settings.heartbeat_seconds:
                log.warning("heartbeat: %s; nothing is started until it can be written", error.strerror)
        else:
            self._last_beat = now
            # Where events do not arrive or were lost, an order is found now at the latest.
            self._news = True

    def _patiently(self, what: str, action: Callable[[], T]) -> T:
        """Do what must be done, as often as it takes while the disk is full or its server away."""
        said = False
        while True:
            try:
                return action()
            except FileNotFoundError:
                # A directory of the project was removed; it comes back, unless the project is gone altogether.
                self._project.prepare()
            except OSError as error:
                if error.errno not in _CURABLE:
                    raise trouble(error.filename or self._project.path, error) from error
                if not said:
                    log.warning("%s: %s; trying again until it works", what, error.strerror)
                said = True
            self._wait(_RETRY_SECONDS)

    # One attempt

    def _attempt(self, filename: str) -> None:
        job = self._patiently("start", lambda: spool.start(self._own, filename))
        if job is None:
            return
        attempt = Attempt(self._project, self._own, job, self._environment)
        title = printable(job.stem)
        try:
            child = self._patiently(title, attempt.launch)
        except (CommandError, JobFileError) as error:
            self._finish(attempt, attempt.record_failure(error))
            return
        self._note_session(child.pid)
        log.info("%s started: %s", title, printable(attempt.command))
        stopped = self._follow(child, title)
        record = attempt.record_end(stopped)
        try:
            child.close()
        except OSError as error:
            # Only a network filesystem tells so late that it could not write what it had taken.
            log.warning("%s: some of its output may be lost: %s", title, error.strerror)
        self._finish(attempt, record)

    def _note_session(self, pid: int) -> None:
        try:
            self._own.note_session(pid)
        except OSError as error:
            # Only worth something if this worker dies, and then the job is also known by its environment.
            log.debug("heartbeat: %s", error.strerror)

    def _follow(self, child: Child, title: str) -> bool:
        """Wait for the end of a child and of all it started; whether it had to be stopped."""
        for output in child.outputs:
            self._poll.register(output.fd, select.EPOLLIN)
        stopper: Stopper | None = None
        stopped = False
        while child.reap():
            if stopper is None:
                stopped = not child.has_ended and self._must_stop()
                if stopped:
                    log.info("%s is stopped", title)
                elif child.has_ended:
                    log.info("%s left processes behind; they are stopped", title)
                if stopped or child.has_ended:
                    stopper = Stopper(self._settings.grace_seconds, self._clock)
            if stopper is not None:
                stopper.step()
            self._wait(stopper.next_step_seconds if stopper else self._settings.heartbeat_seconds, child)
            self._read_order()
        for output in child.outputs:
            self._forget(output.fd)
        for output in child.outputs:
            # What is in the pipes is all there is: nobody is left who could write more.
            while self._patiently(f"{title}: output", output.pump) and output.has_more:
                pass
        return stopped

    def _forget(self, fd: int) -> None:
        """Stop watching an output that may not be watched any more."""
        self._stalled.pop(fd, None)
        try:
            self._poll.unregister(fd)
        except FileNotFoundError:
            pass

    def _must_stop(self) -> bool:
        if self._lost is not None:
            log.warning("%s: stopping the job", self._lost)
            return True
        if self._silent_seconds >= self._settings.surrender_seconds:
            log.warning("no heartbeat written for %.0f s: stopping the job", self._silent_seconds)
            return True
        return self._order is Order.NOW

    def _take_output(self, child: Child, fd: int) -> None:
        for output in child.outputs:
            if output.fd != fd:
                continue
            was_stalled = output.is_stalled
            try:
                if not output.pump():
                    self._forget(fd)
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    # logs/ was removed; with it back, the next try succeeds.
                    self._project.prepare()
                if not was_stalled:
                    log.warning("%s: %s; its writer has to wait", printable(output.path), error.strerror)
                # The pipe stays ready; watching it would have us spin.
                self._forget(fd)
                self._stalled[fd] = self._clock() + _RETRY_SECONDS

    def _finish(self, attempt: Attempt, record: Record) -> None:
        title = printable(attempt.name.stem)
        self._patiently(f"{title}: journal", lambda: self._journal.append(record))
        moved = self._patiently(
            f"{title}: finish", lambda: spool.conclude(self._project, self._own, attempt.name, record.outcome)
        )
        if moved is None:
            log.warning("%s: this outcome does not count: the job file is gone, or was taken over by others", title)
            self._patiently(title, lambda: set_aside(self._own.path, self._project.logs, jobs=True))
        elif record.outcome == "succeeded":
            log.info("%s succeeded in %.2f s", title, record.seconds)
        elif record.outcome == "failed":
            log.info("%s failed: %s", title, record.how)

    # Leaving

    def _leave(self) -> None:
        try:
            for _ in range(_LEAVE_TRIES):
                for filename in self._inside(spool.contents):
                    self._patiently("leave", functools.partial(spool.take_back, self._project, filename, self._own))
                self._patiently("leave", lambda: set_aside(self._own.path, self._project.logs))
                if self._patiently("leave", lambda: spool.remove_slot(self._own)):
                    return
                # A job was assigned in the meantime; or it is a file that fjd did not put there.
                self._wait(0.01)
            log.error("%s is not empty: something lies in it that is not fjd's", self._own.path)
        except SlotLost:
            # Somebody saw it half gone, took it for lost, and did the rest.
            pass


def _gone(path: str) -> SlotLost:
    return SlotLost(path, "the slot is gone: another process judged this worker lost")
