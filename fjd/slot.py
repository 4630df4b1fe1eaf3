"""A worker's slot: its locks, its heartbeat, alive or lost.

    workerqueue/vm-1.k3f9/     made under a hidden name and published by one rename, so it is never seen half made
        alive                  locked by the worker for life. First line: a counter, and the session of the last job
                               (its leader's pid and start); second line: who the worker is
        claim                  locked by a dispatcher while it assigns
        fire                   an order to leave: `drain` (after the job) or `now`
        running/

What the locks promise: nothing. A lock that is held saves wasted tries; a lock that is free says that its holder is
dead on filesystems where that was shown. Whether a worker is lost is a judgement, and may be wrong: the renames in
spool.py are right all the same.

The only module that imports filelock. Raises SlotLost when the slot's directory is gone.
"""

from __future__ import annotations

import enum
import json
import os
import re
from typing import Any, NamedTuple, Self

from filelock import lock_descriptor

from fjd import disk, host
from fjd.errors import InternalError, SlotLost, TargetTaken
from fjd.names import JobName, new_id

__all__ = [
    "FILES",
    "Claim",
    "Identity",
    "LostSlot",
    "Order",
    "OwnSlot",
    "discard_unfinished",
    "give_order",
    "is_slot_name",
    "is_unfinished",
    "lock_is_free",
    "new_slot_name",
    "read_alive",
    "read_identity",
    "read_session",
    "remove_slot",
    "set_aside",
    "take_new",
]

FILES = frozenset({"alive", "claim", "fire", "running"})

_SLOT_NAME = re.compile(r"[A-Za-z0-9_-]+\.[a-z0-9]{4,12}")
_COUNTER_DIGITS = 20
# No job yet: the pid and the start of no process.
_NO_SESSION = f"{0:010d} {0:0{_COUNTER_DIGITS}d}"


def is_slot_name(name: str) -> bool:
    return _SLOT_NAME.fullmatch(name) is not None


class Order(enum.StrEnum):
    """What the file `fire` says: leave after the job, or stop the job and leave."""

    DRAIN = "drain"
    NOW = "now"


class Identity(NamedTuple):
    """Who holds a slot, as it wrote into `alive`. `watch` tells a person how to look at the worker."""

    worker: str
    host: str
    machine: str
    pid: int
    start_ticks: int
    backend: str = ""
    watch: str = ""

    @property
    def is_here(self) -> bool:
        """Whether its pid means something to this process."""
        return self.machine == host.machine_id()

    @property
    def is_running(self) -> bool:
        """Whether its process still exists; only for one that is here."""
        return host.start_ticks(self.pid) == self.start_ticks

    @classmethod
    def of_this_process(cls, worker: str, backend: str = "", watch: str = "") -> Identity:
        ticks = host.start_ticks(os.getpid())
        return cls(worker, host.host_name(), host.machine_id(), os.getpid(), ticks or 0, backend, watch)


class OwnSlot:
    """The slot that this worker holds. Whoever has it is the worker: transitions take it as their proof."""

    def __init__(self, path: str, alive_fd: int) -> None:
        self.path = path
        self.name = os.path.basename(path)
        self.running = f"{path}/running"
        self._alive_fd = alive_fd
        self._beats = 0
        self._session = _NO_SESSION

    @classmethod
    def take(cls, workerqueue: str, name: str, identity: Identity) -> Self:
        """Make the slot `name` and hold it. Raises TargetTaken if there is one, OSError."""
        hidden = f"{workerqueue}/.{name}"
        disk.make_folder(hidden)
        try:
            fd = disk.create(f"{hidden}/alive")
        except BaseException:
            # Not empty if another process has the same name; then it is that one's.
            disk.remove_folder(hidden)
            raise
        try:
            _try_lock(fd)
            text = f"{0:0{_COUNTER_DIGITS}d} {_NO_SESSION}\n{json.dumps(identity._asdict())}\n".encode()
            # Of half a text nobody could tell who holds this slot, nor what is left of it on its host.
            disk.append_whole(fd, text, f"{hidden}/alive")
            os.close(disk.create(f"{hidden}/claim"))
            disk.make_folder(f"{hidden}/running")
            if not disk.move(hidden, f"{workerqueue}/{name}"):
                raise SlotLost(hidden, "somebody removed the slot while it was made")
        except BaseException:
            os.close(fd)
            _clear(hidden)
            raise
        return cls(f"{workerqueue}/{name}", fd)

    def note_session(self, pid: int) -> None:
        """Say which process leads the session of the job, for whoever has to end it when this worker cannot."""
        self._session = f"{pid:010d} {host.start_ticks(pid) or 0:0{_COUNTER_DIGITS}d}"
        self._write_first_line()

    def _write_first_line(self) -> None:
        disk.overwrite(self._alive_fd, f"{self._beats:0{_COUNTER_DIGITS}d} {self._session}".encode())

    def beat(self) -> None:
        """Show that this worker lives. Raises SlotLost if the slot was removed, OSError if it could not be told."""
        # Writing into a file that somebody removed succeeds; only its link count tells.
        if os.fstat(self._alive_fd).st_nlink == 0 or not disk.exists(self.path):
            raise SlotLost(self.path, "the slot is gone: another process judged this worker lost")
        self._beats += 1
        self._write_first_line()

    def order(self) -> Order | None:
        """The order to leave, if there is one."""
        try:
            text = disk.read(f"{self.path}/fire").decode("ascii", "replace").strip()
        except OSError:
            return None
        return Order.NOW if text == Order.NOW else Order.DRAIN

    def leave(self) -> bool:
        """Remove the empty slot; False if a job is in it, which was assigned in the meantime."""
        gone = remove_slot(self.path)
        if gone:
            self.close()
        return gone

    def close(self) -> None:
        """Let go of the lock, without removing anything."""
        if self._alive_fd >= 0:
            os.close(self._alive_fd)
            self._alive_fd = -1


def remove_slot(path: str) -> bool:
    """Remove a slot without jobs; False if there is one in it. For its worker, or with a LostSlot in hand.

    `running` goes first: a slot without it can start nothing, and one that still has jobs keeps the rest.
    """
    if not disk.remove_folder(f"{path}/running"):
        return False
    if any(name not in FILES and name[0] != "." for name in _names(path)):
        return False
    _clear(path)
    return disk.remove_folder(path)


def set_aside(path: str, folder: str, jobs: bool = False) -> None:
    """Move what is no job out of running/: jobs wrote there, beside their job files, and it would keep the slot.

    It goes to `folder`/SLOT.NAME. With `jobs`, what has an ID goes too: for a worker that runs nothing, and whose
    last job renamed its own file.
    """
    for name in _names(f"{path}/running"):
        # What NFS keeps for somebody who has a removed file open goes by itself.
        if (jobs or not JobName.parse(name).id) and not name.startswith(".nfs"):
            target = f"{folder}/{os.path.basename(path)}.{name}"
            try:
                disk.move(f"{path}/running/{name}", target)
            except TargetTaken:
                disk.move(f"{path}/running/{name}", f"{target}.{new_id()}")


def _clear(path: str) -> None:
    for name in _names(path):
        if name in FILES - {"running"} or name[0] == ".":
            disk.remove(f"{path}/{name}")
    disk.remove_folder(f"{path}/running")
    if is_unfinished(path):
        disk.remove_folder(path)


def _names(path: str) -> list[str]:
    try:
        return disk.list_names(path)
    except FileNotFoundError:
        return []


def is_unfinished(path: str) -> bool:
    """Whether this is a slot that was never published: its worker is making it, or died before it had."""
    return os.path.basename(path)[0] == "."


def discard_unfinished(lost: LostSlot) -> None:
    """Remove what is left of a slot whose worker died while it made it."""
    _clear(lost.path)


def give_order(path: str, order: Order) -> None:
    """Tell the worker of the slot at `path` to leave. Raises SlotLost if it has left."""
    try:
        disk.replace(f"{order}\n".encode(), f"{path}/.fire.{new_id()}", f"{path}/fire")
    except FileNotFoundError:
        raise SlotLost(path, "the slot is gone") from None


def _try_lock(fd: int) -> bool:
    # Where locks do not exist (ENOSYS, ENOLCK, ENOTSUP), everybody holds every lock: it was only a hint.
    try:
        return lock_descriptor(fd, blocking=False)
    except OSError:
        return True


class Claim:
    """The right to assign to one slot, as long as everybody plays along: a dispatcher holds it for one pass."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.name = os.path.basename(path)
        self._fd = fd

    @classmethod
    def try_take(cls, path: str) -> Self | None:
        """The claim on the slot at `path`, or None if another dispatcher has it or the slot is gone."""
        try:
            fd = os.open(f"{path}/claim", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        if not _try_lock(fd):
            os.close(fd)
            return None
        return cls(path, fd)

    @classmethod
    def without_lock(cls, path: str) -> Self:
        """The right to assign, taken where the lock cannot be had: two dispatchers then only waste some renames."""
        return cls(path, -1)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def read_identity(path: str) -> Identity | None:
    """Who holds the slot at `path`; None if `alive` is gone or says nothing that makes sense."""
    try:
        return read_alive(path)[1]
    except FileNotFoundError:
        return None


def read_session(path: str) -> tuple[int, int]:
    """Pid and start of the process that leads the session of the slot's last job; (0, 0) if it says none."""
    try:
        _, pid, ticks = disk.read(f"{path}/alive").partition(b"\n")[0].split()
        return int(pid), int(ticks)
    except (OSError, ValueError):
        return 0, 0


def read_alive(path: str) -> tuple[bytes, Identity | None]:
    """The first line of `alive`, which changes with every heartbeat, and who holds the slot.

    Empty and None if it cannot be read or makes no sense. Raises FileNotFoundError.
    """
    try:
        counter, _, line = disk.read(f"{path}/alive").partition(b"\n")
        return counter, _identity(json.loads(line))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, RecursionError):
        return b"", None


def _identity(fields: Any) -> Identity:
    identity = Identity(**fields)
    for value, kind in zip(identity, (str, str, str, int, int, str, str), strict=True):
        if not isinstance(value, kind):
            raise TypeError(value)
    return identity


class LostSlot(NamedTuple):
    """A slot whose worker was judged lost: the proof that reclaiming takes."""

    path: str
    name: str
    identity: Identity | None
    reason: str


def lock_is_free(path: str) -> bool:
    """Whether nobody holds the lock on a slot's `alive`; False where there are no locks, and so no proof."""
    try:
        fd = os.open(f"{path}/alive", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return lock_descriptor(fd, blocking=False)
    except OSError:
        # No locks here, so no proof.
        return False
    finally:
        os.close(fd)


def new_slot_name(worker: str) -> str:
    """A name for the next incarnation of `worker`."""
    name = f"{worker}.{new_id()[:6]}"
    if not is_slot_name(name):
        raise InternalError(f"not a slot name: {name!r}")
    return name


def take_new(workerqueue: str, worker: str, backend: str = "", watch: str = "") -> OwnSlot:
    """Hold a slot of a new incarnation of `worker`. Raises OSError."""
    while True:
        try:
            name = new_slot_name(worker)
            return OwnSlot.take(workerqueue, name, Identity.of_this_process(worker, backend, watch))
        except TargetTaken:
            continue
