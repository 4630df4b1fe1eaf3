"""One attempt's processes: start, output, end, stop the whole tree.

A job runs in a session of its own, with an empty stdin and pipes for what it prints. Its worker is the reaper of all
its descendants (PR_SET_CHILD_SUBREAPER), so that a process that detaches itself, forks twice or leaves the process
group is still seen: when the executable has ended, whatever else is left of the job is stopped. A worker whose child
is anything but the job's would break that; workers have no others.

Output goes to a file only when there is some, since creating files for silent jobs halves the rate of short ones.

Known limits: peak memory is the kernel's ru_maxrss, which is never below the size of the worker (about 22 MB): a new
process counts what it shared with its parent before exec. Where PR_SET_CHILD_SUBREAPER does not exist, processes that
detach themselves are found by their environment only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from fjd import disk, host
from fjd.errors import CommandError

if TYPE_CHECKING:
    import psutil

__all__ = ["TRANSIENT", "Child", "Output", "Stopper", "become_reaper", "kill_strays"]

_PR_SET_CHILD_SUBREAPER = 36
# Python ignores these; a program expects their defaults.
_RESTORED_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
_CHUNK_BYTES = 1 << 16
# As much of an eager writer is taken in one turn, so that heartbeats and orders get theirs.
_CHUNKS_A_TURN = 16
# The kernel may refuse a process for a moment; that is no fault of the job.
TRANSIENT = frozenset({errno.EAGAIN, errno.ENOMEM, errno.ENFILE, errno.EMFILE})


def become_reaper() -> None:
    """Make this process the parent of all descendants whose own parents end."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except AttributeError:
        pass


class Output:
    """One stream of a child: a pipe, and the file it is kept in from the first byte on."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.bytes_seen = 0
        self.fd, self.child_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)
        # False once a read found the pipe empty or at its end.
        self.has_more = True
        self.is_stalled = False
        self._file_fd = -1
        self._unwritten = b""

    def pump(self) -> bool:
        """Take what is there into the file; False at its end.

        Raises OSError when the file cannot be written, usually because the disk is full. Nothing is lost then: the
        next call tries again, and the child has to wait when its pipe is full.
        """
        self._write()
        for _ in range(_CHUNKS_A_TURN):
            try:
                data = os.read(self.fd, _CHUNK_BYTES)
            except BlockingIOError:
                data = b""
                at_end = False
            else:
                at_end = not data
            self.has_more = bool(data)
            if not data:
                return not at_end
            self.bytes_seen += len(data)
            self._unwritten = data
            self._write()
        return True

    def _write(self) -> None:
        if not self._unwritten:
            return
        self.is_stalled = True
        if self._file_fd < 0:
            self._file_fd = disk.open_to_append(self.path)
        while self._unwritten:
            self._unwritten = self._unwritten[disk.append(self._file_fd, self._unwritten) :]
        self.is_stalled = False

    def close(self) -> None:
        os.close(self.fd)
        if self._file_fd >= 0:
            disk.close(self._file_fd)


class Child:
    """A running executable and its two outputs."""

    def __init__(
        self,
        argv: list[str],
        program: str,
        environment: Mapping[bytes, bytes],
        directory: str,
        log_stem: str,
        worker_directory: str,
    ) -> None:
        """Start `program` in `directory`; its outputs go to `log_stem`.out and .err.

        Raises CommandError if it cannot be run, OSError if no process can be had for the moment.
        """
        self.status: int | None = None
        self.usage: resource.struct_rusage | None = None
        self.seconds = 0.0
        self.outputs: list[Output] = []
        try:
            self.outputs.append(Output(f"{log_stem}.out"))
            self.outputs.append(Output(f"{log_stem}.err"))
            # The child inherits our directory, which costs less than a helper that changes its own.
            try:
                os.chdir(directory)
            except OSError as error:
                if error.errno in disk.CURABLE:
                    raise
                raise CommandError(
                    directory, f"workdir: {os.strerror(error.errno or 0).lower()}", exit_code=126
                ) from None
            self._started = time.monotonic()
            self.pid = self._spawn(argv, program, environment)
        except BaseException:
            self._close_ends()
            self.close()
            raise
        finally:
            # So that an idle worker keeps no job's directory busy. It needs none itself: all its paths are absolute.
            with contextlib.suppress(OSError):
                os.chdir(worker_directory)
        self._close_ends()

    def _spawn(self, argv: list[str], program: str, environment: Mapping[bytes, bytes]) -> int:
        out, err = self.outputs
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, out.child_fd, 1),
            (os.POSIX_SPAWN_DUP2, err.child_fd, 2),
        ]

        def spawn(path: str, words: list[str]) -> int:
            return os.posix_spawn(
                path,
                words,
                environment,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=_RESTORED_SIGNALS,
            )

        try:
            try:
                return spawn(program, argv)
            except OSError as error:
                if error.errno != errno.ENOEXEC:
                    raise
                # A script without #!: run by sh, as every shell does.
                return spawn("/bin/sh", ["/bin/sh", program, *argv[1:]])
        except OSError as error:
            if error.errno in TRANSIENT | disk.CURABLE - {errno.EIO}:
                raise
            raise _cannot_run(program, error) from None

    def _close_ends(self) -> None:
        for output in self.outputs:
            if output.child_fd >= 0:
                os.close(output.child_fd)
                output.child_fd = -1

    @property
    def has_ended(self) -> bool:
        return self.status is not None

    def reap(self) -> bool:
        """Collect every process that ended; whether any process of the job is left."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return False
            if found is None:
                return True
            pid, status, usage = os.wait4(found.si_pid, 0)
            if pid == self.pid:
                self.status, self.usage = status, usage
                self.seconds = time.monotonic() - self._started

    def close(self) -> None:
        """Close the outputs, without taking what is still in them. Raises OSError if a file may be incomplete."""
        with contextlib.ExitStack() as stack:
            for output in self.outputs:
                stack.callback(output.close)
        self.outputs = []


def _cannot_run(program: str, error: OSError) -> CommandError:
    if error.errno == errno.ENOENT and os.path.exists(program):
        return CommandError(program, "its interpreter is missing", "look at its #! line", exit_code=127)
    if error.errno == errno.E2BIG:
        return CommandError(program, "its arguments and environment are too long", exit_code=126)
    return CommandError(program, os.strerror(error.errno or 0).lower(), exit_code=126)


class Stopper:
    """Ends all that is left of a job: SIGTERM, grace, SIGKILL, again and again until nothing is left.

    The caller calls `step` now and then, and reaps.
    """

    def __init__(self, grace_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = clock() + grace_seconds
        self._asked: set[int] = set()

    def step(self) -> None:
        """Ask whoever was not asked yet; after the grace, kill."""
        import psutil

        left = psutil.Process().children(recursive=True)
        if self._clock() >= self._deadline:
            _signal(left, signal.SIGKILL)
            return
        new = [process for process in left if process.pid not in self._asked]
        self._asked.update(process.pid for process in new)
        _signal(new, signal.SIGTERM)
        # A stopped process hears nothing else until it goes on.
        _signal(new, signal.SIGCONT)

    @property
    def next_step_seconds(self) -> float:
        """When to call `step` again."""
        return 0.05


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    import psutil

    for process in processes:
        try:
            process.send_signal(number)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def kill_strays(
    slot_name: str, project_path: str, session: tuple[int, int] = (0, 0), wait_seconds: float = 2.0
) -> bool:
    """Kill what a dead worker's jobs left on this host; whether nothing is left of it.

    They are known by their environment, or by their session (`session`: pid and start of its leader), since a program
    may run in another environment, or write over its own; and so are the descendants of both, and the members of their
    sessions. Killed at once, since the job runs again next; there is no grace for an attempt that cannot be recorded.
    """
    import psutil

    deadline = time.monotonic() + wait_seconds
    while left := _strays(slot_name, project_path, session):
        _signal(left, signal.SIGKILL)
        psutil.wait_procs(left, timeout=0.1)
        if time.monotonic() > deadline:
            return False
    return True


def _strays(slot_name: str, project_path: str, session: tuple[int, int]) -> list[psutil.Process]:
    import psutil

    marked: dict[int, psutil.Process] = {}
    sessions: set[int] = set()
    others: list[tuple[int, psutil.Process]] = []
    leader, leader_start = session
    # While a session has members its number is not used again. If a process has it that started at another time, the
    # session of the job is gone, and this is a stranger's.
    if leader and host.start_ticks(leader) in (None, leader_start):
        sessions.add(leader)
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            number = os.getsid(process.pid)
            # Empty for a moment while it executes another program.
            environment = process.environ() or process.environ()
        except (psutil.Error, OSError):
            continue
        is_marked = environment.get("FJD_WORKER") == slot_name
        if is_marked and _is_same(environment.get("FJD_PROJECT_DIR"), project_path):
            sessions.add(number)
            for relative in (process, *_descendants(process)):
                marked[relative.pid] = relative
        else:
            others.append((number, process))
    for number, process in others:
        if number in sessions:
            for relative in (process, *_descendants(process)):
                marked[relative.pid] = relative
    marked.pop(os.getpid(), None)
    return list(marked.values())


def _is_same(one: str | None, other: str) -> bool:
    """Whether two paths name one directory; a worker may have come to its project through a link."""
    return one is not None and os.path.realpath(one) == os.path.realpath(other)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    import psutil

    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []
