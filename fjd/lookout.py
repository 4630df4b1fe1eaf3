"""Which slots there are, and which of their workers are lost: one dispatcher's watch over the workers.

It judges now and then, and at once when the kernel tells that a worker's process on this host has ended; what
a lost worker left is reclaimed on the spot. What other users made is theirs to serve, and theirs to reclaim.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable

from fjd import disk
from fjd.judge import Judge
from fjd.project import Project
from fjd.reclaim import Reclaimer
from fjd.slot import LostSlot, discard_unfinished, is_slot_name, is_unfinished

__all__ = ["Lookout"]

log = logging.getLogger(__name__)


class Lookout:
    """Looks at workerqueue/ for one dispatcher, which waits on `poll`."""

    def __init__(
        self, project: Project, poll: select.epoll, reclaimed_by: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._project = project
        self._poll = poll
        self._clock = clock
        self._judge = Judge(project.settings, project.filesystem, clock)
        self._reclaimer = Reclaimer(project, reclaimed_by)
        self._next_judgement = 0.0
        self._is_own: dict[str, bool] = {}
        self._told_lost: set[str] = set()
        # The descriptor that tells of the end of each worker's process on this host, by pid.
        self._process_fds: dict[int, int] = {}

    def close(self) -> None:
        for fd in self._process_fds.values():
            os.close(fd)
        self._process_fds.clear()
        self._reclaimer.close()

    def look(self) -> tuple[list[str], bool]:
        """The paths of the slots to serve, sorted; and whether jobs were reclaimed just now. Raises OSError."""
        found = [name for name in disk.list_names(self._project.workerqueue) if is_slot_name(name.removeprefix("."))]
        self._is_own = {name: own for name, own in self._is_own.items() if name in found}
        paths = {f"{self._project.workerqueue}/{name}" for name in found if self._is_own_slot(name)}
        reclaimed = False
        if self._clock() >= self._next_judgement:
            self._next_judgement = self._clock() + min(1.0, self._project.settings.heartbeat_seconds)
            self._forget_others(paths)
            lost = [proof for path in sorted(paths) if (proof := self._try_lost(path)) is not None]
            gone = {proof.path for proof in lost if self._reclaim(proof)}
            paths -= gone
            reclaimed = bool(lost)
        return sorted(path for path in paths if not is_unfinished(path)), reclaimed

    def process_ended(self, fd: int) -> None:
        """A worker's process has ended, says the descriptor `fd`: judge at the next look."""
        self._next_judgement = 0.0
        # It would ring for ever.
        for pid in [pid for pid, known in self._process_fds.items() if known == fd]:
            os.close(self._process_fds.pop(pid))

    def _is_own_slot(self, name: str) -> bool:
        if name not in self._is_own:
            try:
                found = os.lstat(f"{self._project.workerqueue}/{name}")
            except FileNotFoundError:
                return False
            self._is_own[name] = found.st_uid == os.geteuid()
        return self._is_own[name]

    def _forget_others(self, paths: set[str]) -> None:
        self._judge.forget_others(paths)
        self._told_lost &= paths
        identities = [self._judge.identity(path) for path in paths]
        pids = {identity.pid for identity in identities if identity is not None}
        for pid in self._process_fds.keys() - pids:
            os.close(self._process_fds.pop(pid))

    def _try_lost(self, path: str) -> LostSlot | None:
        lost = self._judge.try_lost(path)
        if lost is None:
            self._watch_process(path)
        return lost

    def _watch_process(self, path: str) -> None:
        """Have the kernel tell when a worker of this host ends."""
        identity = self._judge.identity(path)
        if identity is None or not identity.is_here or identity.pid in self._process_fds:
            return
        try:
            fd = os.pidfd_open(identity.pid)
        except (OSError, AttributeError):
            # Gone since, or an old kernel: the next judgement finds out.
            return
        self._process_fds[identity.pid] = fd
        self._poll.register(fd, select.EPOLLIN)

    def _reclaim(self, lost: LostSlot) -> bool:
        if is_unfinished(lost.path):
            # Nobody saw this slot, so nothing was assigned to it.
            discard_unfinished(lost)
            return True
        if lost.path not in self._told_lost:
            self._told_lost.add(lost.path)
            log.warning("%s lost: %s", lost.name, lost.reason)
        return self._reclaimer.reclaim(lost)
