"""A temporary project with its workers and its dispatcher, and how all of it goes away again.

Everything is started by the real commands. On leaving, also by an error or a signal, workers are fired, and whoever is
still there then is killed by its pid.

PYTHONDONTWRITEBYTECODE is taken out of the environment: with it, every Python that starts would compile all of fjd
anew, and hiring would measure the compiler.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import fjd
from fjd.project import Project
from fjd.slot import is_slot_name, read_identity

__all__ = ["NO_OP", "Rig", "wait_until"]

# The shortest job there is, as the text of its file.
NO_OP = "[control]\nexecutable: /bin/true\n"

_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.02


def wait_until(condition: Callable[[], bool], what: str, patience_seconds: float = _PATIENCE_SECONDS) -> None:
    """Look every 20 ms until `condition` holds. Raises TimeoutError: nothing to measure came of it."""
    deadline = time.monotonic() + patience_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience_seconds:g} s in vain: {what}")
        time.sleep(_LOOK_SECONDS)


def environment() -> dict[str, str]:
    """What the commands are run with."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(fjd.__file__)))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FJD_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, "PYTHONPATH": root}


class Rig:
    """A context manager: a new project in a new directory, which is removed with all that runs in it."""

    def __init__(self, folder: str) -> None:
        """`folder`: the directory to make the project in, which decides the filesystem."""
        self.path = tempfile.mkdtemp(prefix="fjd-bench-", dir=folder)
        self.project = Project(self.path)
        self.project.prepare()
        # Files are made here and dropped by a rename, so it is on the same filesystem.
        self.staging = f"{self.path}/staging"
        os.mkdir(self.staging)
        self._dispatchers: list[subprocess.Popen[bytes]] = []
        self._dropped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whoever wants to end this has to wait until all is gone.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        try:
            self._remove_all()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def _remove_all(self) -> None:
        for dispatcher in self._dispatchers:
            _end(dispatcher)
        pids = self.worker_pids()
        try:
            if pids:
                self.command("recruiter", "fire", "--now")
        finally:
            for pid in self.worker_pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "the workers' end", 10.0)
            shutil.rmtree(self.path)

    def arguments(self, name: str, *words: str) -> list[str]:
        """The command line of one of fjd's commands for this project."""
        return [sys.executable, "-m", f"fjd.cli.{name}", *words, "--dir", self.path]

    def command(self, name: str, *words: str) -> float:
        """Run one of fjd's commands; how many seconds it took. Raises RuntimeError with what it said if it failed."""
        start = time.perf_counter()
        # In a session of its own, out of reach of Ctrl-C: cut short, it leaves workers that nobody knows of yet.
        with subprocess.Popen(
            self.arguments(name, *words),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            try:
                _, said = process.communicate()
            except BaseException:
                process.wait(_PATIENCE_SECONDS)
                raise
        seconds = time.perf_counter() - start
        if process.returncode:
            raise RuntimeError(f"{name} {' '.join(words)} ended with {process.returncode}: {said.decode()}")
        return seconds

    def hire(self, count: int, backend: str = "local") -> float:
        """Hire workers; how many seconds that took until they were ready."""
        return self.command("recruiter", "hire", str(count), "--backend", backend)

    def start_dispatcher(self) -> subprocess.Popen[bytes]:
        """A dispatcher that stays."""
        with open(f"{self.path}/dispatcher.log", "ab") as log:
            dispatcher = subprocess.Popen(
                self.arguments("dispatcher", "--stay", "--plain"),
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._dispatchers.append(dispatcher)
        return dispatcher

    def warm_up(self, jobs: int = 4) -> None:
        """Have some jobs run, so that whatever happens only once has happened."""
        finished = self.finished()
        for _ in range(jobs):
            self.drop(self.stage(NO_OP))
        wait_until(lambda: self.finished() == finished + jobs, f"the {jobs} jobs of the warm-up")

    def stage(self, text: str, mode: int = 0o600) -> str:
        """Make a complete job file, not yet dropped; its name, which says how many there were before."""
        name = f"drop{self._dropped}.conf"
        self._dropped += 1
        with open(os.open(f"{self.staging}/{name}", os.O_WRONLY | os.O_CREAT, mode), "w", encoding="utf-8") as file:
            file.write(text)
        return name

    def drop(self, name: str) -> None:
        """Rename a staged file into jobqueue/."""
        os.rename(f"{self.staging}/{name}", f"{self.project.jobqueue}/{name}")

    def finished(self) -> int:
        """How many jobs have ended. Raises RuntimeError if one of them, or a dispatcher, has failed."""
        for dispatcher in self._dispatchers:
            if dispatcher.poll() is not None:
                with open(f"{self.path}/dispatcher.log", encoding="utf-8", errors="replace") as log:
                    raise RuntimeError(f"the dispatcher ended with {dispatcher.returncode}: {log.read()[-2000:]}")
        if failed := os.listdir(self.project.failed) + os.listdir(self.project.rejected):
            raise RuntimeError(f"jobs failed or were rejected: {', '.join(failed[:3])}")
        return len(os.listdir(self.project.done))

    def worker_pids(self) -> list[int]:
        """The processes of the workers that hold a slot."""
        slots = [name for name in os.listdir(self.project.workerqueue) if is_slot_name(name)]
        identities = [read_identity(f"{self.project.workerqueue}/{name}") for name in sorted(slots)]
        return [identity.pid for identity in identities if identity is not None]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
