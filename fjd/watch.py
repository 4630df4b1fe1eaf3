"""Wake-ups: something may have happened, look now.

A doorbell is a file descriptor that becomes readable when a watched directory gets a file, or when a signal arrives. It
says nothing about what happened, and may ring for nothing or not at all (a network filesystem, a full event queue):
everybody who waits for it also looks by itself from time to time, at the pace of a `Rhythm`.

The only module that imports watchdog, and of it only the bindings to inotify. Its Observer passes every event through
three threads, which cost a third of a worker's CPU time for short jobs, and holds renames back for half a second
(docs/decisions/0007). Where the bindings do not work, the doorbell is deaf.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import select
import signal
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Self

try:
    from watchdog.observers.inotify_c import InotifyConstants, inotify_add_watch, inotify_init
except (ImportError, RuntimeError):
    # A libc without inotify, or a watchdog that keeps it elsewhere: slower, never wrong.
    inotify_add_watch = None  # type: ignore[assignment]  # asked for before each use

__all__ = ["Doorbell", "Rhythm"]

log = logging.getLogger(__name__)


class Doorbell:
    """Rings for what appears in watched directories, and for signals. A context manager."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        # Readable when it rings; to wait for, never to read from.
        self.fd = self._poll.fileno()
        # No events come from a directory that was to be watched.
        self.is_deaf = False
        self._signals_fd, self._button = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll.register(self._signals_fd, select.EPOLLIN)
        self._events_fd = -1
        self._old_signals: dict[int, Any] = {}
        self._old_wakeup_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def watch_arrivals(self, folder: str) -> None:
        """Ring when something is renamed into `folder`. Raises FileNotFoundError.

        Not when something is renamed out of it: then workers would wake themselves with every job they start.
        """
        self._watch(folder, "IN_MOVED_TO")

    def watch_drops(self, folder: str) -> None:
        """Ring when something appears in `folder` in any way, and when a file that was written there is closed."""
        self._watch(folder, "IN_MOVED_TO", "IN_CREATE", "IN_CLOSE_WRITE")

    def _watch(self, folder: str, *events: str) -> None:
        try:
            if inotify_add_watch is None:
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            if self._events_fd < 0:
                self._events_fd = _checked(inotify_init())
                # Or every job would inherit it.
                os.set_inheritable(self._events_fd, False)
                os.set_blocking(self._events_fd, False)
                self._poll.register(self._events_fd, select.EPOLLIN)
            mask = InotifyConstants.IN_ONLYDIR
            for event in events:
                mask |= getattr(InotifyConstants, event)
            _checked(inotify_add_watch(self._events_fd, os.fsencode(folder), mask))
        except FileNotFoundError:
            raise
        except OSError as error:
            # Out of inotify instances or watches; looking by ourselves still finds everything, only later.
            self.is_deaf = True
            log.warning("no events from %s (%s): looking once a second instead", folder, error.strerror or error)

    def listen(self, signals: Iterable[signal.Signals]) -> None:
        """Ring for these signals instead of what they would do; `answer` tells which came. Main thread only."""
        self._old_wakeup_fd = signal.set_wakeup_fd(self._button, warn_on_full_buffer=False)
        for number in signals:
            self._old_signals[number] = signal.signal(number, _leave_to_wakeup_fd)

    def answer(self) -> bytes:
        """Stop the ringing. A byte for each ring: 0 for files, else the number of a signal."""
        rings = b"\0" if self._events_fd >= 0 and _drain(self._events_fd) else b""
        return rings + _drain(self._signals_fd)

    def close(self) -> None:
        """Restore the signals. May be called twice."""
        if self.fd < 0:
            return
        if self._old_signals:
            signal.set_wakeup_fd(self._old_wakeup_fd)
            for number, handler in self._old_signals.items():
                signal.signal(number, handler)
        self.fd = -1
        self._poll.close()
        for fd in (self._signals_fd, self._button, self._events_fd):
            if fd >= 0:
                os.close(fd)
        self._events_fd = -1


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _drain(fd: int) -> bytes:
    drained = b""
    while True:
        try:
            drained += os.read(fd, 1 << 16)
        except BlockingIOError:
            return drained


def _leave_to_wakeup_fd(number: int, frame: FrameType | None) -> None:
    """A handler must be there, or the signal would do its default; the wake-up byte carries the news."""


class Rhythm:
    """How long to wait before looking again: short after something happened, longer and longer while nothing does."""

    def __init__(self, shortest_seconds: float, longest_seconds: float) -> None:
        self._shortest = shortest_seconds
        self._longest = longest_seconds
        self.seconds = shortest_seconds

    def quicken(self) -> None:
        self.seconds = self._shortest

    def relax(self) -> None:
        self.seconds = min(2 * self.seconds, self._longest)
