"""Alive or lost: what one observer makes of the workers it looks at, by its own clock.

A judgement, and it may be wrong: the renames in spool.py are right all the same. It compares nothing between hosts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from fjd.filesystem import Filesystem
from fjd.settings import Settings
from fjd.slot import Identity, LostSlot, lock_is_free, read_alive

__all__ = ["Judge"]


class _Observed:
    """What one observer has seen of one slot."""

    __slots__ = ("counter", "identity", "is_headless", "last_look", "silent_seconds")

    def __init__(self, now: float) -> None:
        self.identity: Identity | None = None
        self.counter = b""
        self.last_look = now
        self.silent_seconds = 0.0
        # Seen without `alive`, as a slot is for a moment while its worker leaves.
        self.is_headless = False


class Judge:
    """Tells the living from the lost, for one observer, by its own clock."""

    def __init__(self, settings: Settings, filesystem: Filesystem, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._filesystem = filesystem
        self._clock = clock
        self._observed: dict[str, _Observed] = {}

    def identity(self, path: str) -> Identity | None:
        """Who holds the slot at `path`, as last seen by `try_lost`."""
        seen = self._observed.get(path)
        return seen.identity if seen else None

    def forget_others(self, paths: set[str]) -> None:
        """Drop what was seen of slots that are not among `paths`."""
        for path in self._observed.keys() - paths:
            del self._observed[path]

    def try_lost(self, path: str) -> LostSlot | None:
        """The proof that the worker of the slot at `path` is lost, or None if it may be alive."""
        now = self._clock()
        seen = self._observed.get(path)
        if seen is None:
            seen = self._observed[path] = _Observed(now)
        reason = self._reason(path, seen, now)
        seen.last_look = now
        if reason is None:
            return None
        return LostSlot(path, os.path.basename(path), seen.identity, reason)

    def _reason(self, path: str, seen: _Observed, now: float) -> str | None:
        # The process table of this host is cheaper than the disk, and is proof.
        if seen.identity is not None and seen.identity.is_here and not seen.identity.is_running:
            return f"its process {seen.identity.pid} is gone"
        try:
            counter, identity = read_alive(path)
        except FileNotFoundError:
            if seen.is_headless:
                return "its heartbeat file is gone"
            seen.is_headless = True
            return None
        seen.is_headless = False
        if identity is not None:
            seen.identity = identity
            if identity.is_here and not identity.is_running:
                return f"its process {identity.pid} is gone"
            if not identity.is_here and self._filesystem.locks_are_proof and lock_is_free(path):
                return f"{identity.host} no longer holds its lock"
        if counter != seen.counter:
            seen.counter = counter
            seen.silent_seconds = 0.0
            return None
        # An observer that slept itself saw nothing in that time: a long gap counts as one heartbeat.
        seen.silent_seconds += min(now - seen.last_look, self._settings.heartbeat_seconds)
        if seen.silent_seconds < self._settings.lost_seconds:
            return None
        return f"no heartbeat for {self._settings.lost_seconds:g} seconds"
