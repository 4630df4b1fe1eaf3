"""What can happen to a process at one of its operations on the disk, and the counting of those operations.

An operation is a call that changes the disk or takes a lock. Two ways to count them exist side by side:

- For deaths, audit events, which Python raises before the call whoever makes it, also a library: nothing escapes them.
  Writing raises none, so the functions that write are counted in their place.
- For errors, the functions that fjd calls, replaced in the child. A test holds the two counts against each other.

Only ever armed in a child process: an audit hook cannot be taken away again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from fjd import disk

__all__ = ["FAULTS", "Fault", "Injector"]

_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_AUDITED = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "fcntl.flock", "open"})

# What each operation answers when it took effect and its answer was lost: the server got the question a second time.
_ASKED_TWICE = {
    "rename": errno.ENOENT,
    "replace": errno.ENOENT,
    "unlink": errno.ENOENT,
    "rmdir": errno.ENOENT,
    "mkdir": errno.EEXIST,
    "create": errno.EEXIST,
}
_RENAMES = frozenset({"rename", "replace"})
_WRITES = frozenset({"write"})
_CLOSES = frozenset({"close"})
_READS = frozenset({"read", "list"})
_CHANGES = frozenset(
    {"rename", "replace", "unlink", "rmdir", "mkdir", "create", "open", "write", "overwrite", "sync", "flock"}
)


class Fault(NamedTuple):
    """What happens, and to which operations. `error` is None where the process dies or the write is short."""

    name: str
    operations: frozenset[str]
    action: str
    error: int | None = None

    @property
    def is_special(self) -> bool:
        """Whether there are roles that it cannot happen to: not all of them write, or read. All rename."""
        return bool(self.operations) and not self.operations & _RENAMES


FAULTS = (
    Fault("death", frozenset(), "die"),
    Fault("death in a write", _WRITES, "die-half"),
    Fault("death before a newline", _WRITES, "die-last"),
    *(
        Fault(errno.errorcode[number], _CHANGES, "refuse", number)
        for number in (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EINTR)
    ),
    Fault("done but ENOENT", frozenset(_ASKED_TWICE), "lose-answer"),
    Fault("done but EIO", _RENAMES, "lose-answer", errno.EIO),
    Fault("short write", _WRITES, "shorten"),
    Fault("short write then ENOSPC", _WRITES, "shorten-full"),
    Fault("failed close EIO", _CLOSES, "do-and-fail", errno.EIO),
    Fault("failed close ENOSPC", _CLOSES, "do-and-fail", errno.ENOSPC),
    Fault("read EIO", _READS, "refuse", errno.EIO),
    Fault("read ESTALE", _READS, "refuse", errno.ESTALE),
)


class Injector:
    """Has `fault` happen to this process at its k-th operation on the project in the directory `root`."""

    def __init__(self, root: str, fault: Fault, k: int) -> None:
        self.count = 0
        # For the comparison of the two ways of counting.
        self.audited = 0
        self.replaced = 0
        self.what = ""
        self._root = root
        self._fault = fault
        self._k = k
        self._full = 0

    @property
    def has_hit(self) -> bool:
        return self.count >= self._k

    def arm(self) -> None:
        """From here on. Cannot be taken back."""
        self._replace(os, "rename", self._plain("rename"))
        self._replace(os, "replace", self._plain("replace"))
        self._replace(os, "unlink", self._plain("unlink"))
        self._replace(os, "mkdir", self._plain("mkdir"))
        self._replace(os, "rmdir", self._plain("rmdir"))
        self._replace(os, "open", self._kind_of_open)
        self._replace(os, "pwrite", self._plain("overwrite"))
        self._replace(os, "fdatasync", self._plain("sync"))
        self._replace(fcntl, "flock", self._plain("flock"))
        self._replace(disk, "write", self._plain("write"))
        self._replace(disk, "close", self._plain("close"))
        self._replace(disk, "list_names", self._plain("list"))
        sys.addaudithook(self._hear)

    def _replace(self, module: Any, name: str, kind_of: Callable[..., str | None]) -> None:
        real = getattr(module, name)

        def call(*args: Any, **named: Any) -> Any:
            kind = kind_of(*args, **named)
            return real(*args, **named) if kind is None else self._call(kind, real, args, named)

        setattr(module, name, call)

    @staticmethod
    def _plain(kind: str) -> Callable[..., str]:
        return lambda *args, **named: kind

    def _kind_of_open(self, path: Any, flags: int, *args: Any, **named: Any) -> str | None:
        if not self._is_ours(path):
            return None
        if not flags & _CHANGING:
            return "read"
        return "create" if flags & os.O_EXCL else "open"

    def _is_ours(self, path: Any) -> bool:
        return isinstance(path, (str, bytes)) and os.fsdecode(path).startswith(self._root)

    # Deaths

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in _AUDITED:
            return
        if event == "open":
            mode, flags = args[1], args[2]
            changes = flags & _CHANGING or (isinstance(mode, str) and set(mode) & set("wax+"))
            if not (changes and self._is_ours(args[0])):
                return
        elif event != "fcntl.flock" and not self._is_ours(args[0]):
            return
        self.audited += 1
        self._count_for_death(f"{event} {args[0]}")

    def _count_for_death(self, what: str) -> None:
        if self._fault.action == "die":
            self.count += 1
            if self.count == self._k:
                self._die(what)

    def _die(self, what: str) -> None:
        os.write(2, f"dies before {what}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    # Errors

    def _call(self, kind: str, real: Callable[..., Any], args: Any, named: Any) -> Any:
        if kind in _CHANGES:
            self.replaced += kind not in ("write", "overwrite", "sync")
            if kind in ("write", "overwrite", "sync"):
                self._count_for_death(kind)
        if self._full and kind == "write":
            self._full -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if kind not in self._fault.operations:
            return real(*args, **named)
        self.count += 1
        if self.count != self._k:
            return real(*args, **named)
        self.what = f"{kind} {args[0]}"
        return self._fail(kind, real, args, named)

    def _fail(self, kind: str, real: Callable[..., Any], args: Any, named: Any) -> Any:
        action, error = self._fault.action, self._fault.error
        path = args[0] if isinstance(args[0], str) else None
        if action in ("die-half", "die-last", "shorten", "shorten-full"):
            fd, data = args
            end = len(data) - 1 if action == "die-last" else len(data) // 2
            written: int = real(fd, data[:end])
            if action.startswith("die"):
                self._die(f"the end of {data!r}")
            self._full = action == "shorten-full"
            return written
        if action == "lose-answer":
            result = real(*args, **named)
            if kind == "create":
                os.close(result)
            error = error or _ASKED_TWICE[kind]
        elif action == "do-and-fail":
            real(*args, **named)
        assert error is not None
        raise OSError(error, os.strerror(error), path)
