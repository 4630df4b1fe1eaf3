"""A project that the real commands work in, everything they start, and its end.

All that a test starts carries a token in its environment, which workers, tmux servers and jobs inherit: so the rig
finds every process of its own, and ends each by its pid. None of it has to die by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn, TypeVar

import pytest
from checker import check

from fjd.project import Project

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534
# Longer than anything here takes on a busy machine; a test that waits so long has failed.
PATIENCE_SECONDS = 30.0
ENDINGS = ("succeeded", "failed")

T = TypeVar("T")


def command_folder() -> Path:
    """Where the commands are: beside this interpreter if fjd is installed there, else in bin/."""
    folder = Path(sys.executable).parent
    return folder if (folder / "recruiter").exists() else REPOSITORY / "bin"


def wait_until(condition: Callable[[], T], seconds: float, report: Callable[[], str]) -> T:
    """What `condition` answers once it is true; fails with `report` if that takes longer than so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            pytest.fail(f"not so within {seconds:g} s:\n{report()}")
        time.sleep(0.01)


def stays_so(condition: Callable[[], bool], seconds: float, report: Callable[[], str]) -> None:
    """Fail with `report` if `condition` is not true all the time for so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not condition():
            pytest.fail(f"not so for {seconds:g} s:\n{report()}")
        time.sleep(0.01)


def lacking(how: str) -> NoReturn:
    """Skip a test that this machine cannot do, and say how to get what it needs; in CI that is an error."""
    if os.environ.get("CI"):
        pytest.fail(how)
    pytest.skip(how)


def need_tmux() -> None:
    if shutil.which("tmux") is None:
        lacking("tmux is not installed: apt install tmux, or dnf install tmux")


def is_running(pid: int) -> bool:
    """Whether there is such a process that is not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of its error output; fails if there are more, or none."""
        lines = self.err.splitlines()
        assert len(lines) == 1, f"not one line: {self.err!r}"
        assert lines[0].startswith("[FJD] ")
        return lines[0]


class Started(NamedTuple):
    """A command that was started and not waited for; its output goes into files."""

    process: subprocess.Popen[bytes]
    out_path: Path
    err_path: Path

    @property
    def out(self) -> str:
        return self.out_path.read_text(errors="backslashreplace")

    @property
    def err(self) -> str:
        return self.err_path.read_text(errors="backslashreplace")

    def report(self) -> str:
        return f"{self.process.args!r}: {self.process.poll()}\n{self.out}{self.err}"

    def wait(self, seconds: float = PATIENCE_SECONDS) -> Result:
        wait_until(lambda: self.process.poll() is not None, seconds, self.report)
        return Result(self.process.returncode, self.out, self.err)


class Rig:
    """One project and what works in it."""

    def __init__(self, folder: Path, settings: Mapping[str, object] | None = None) -> None:
        """`settings`: for fjd.conf, by default short times; an empty mapping leaves the file out."""
        self.folder = folder
        self.path = folder / "project"
        self.path.mkdir(mode=0o700)
        home = folder / "home"
        home.mkdir()
        if settings is None:
            settings = {"settle_seconds": 0.2, "grace_seconds": 0.5}
        if settings:
            lines = [f"{key}: {value}\n" for key, value in settings.items()]
            (self.path / "fjd.conf").write_text("[fjd]\n" + "".join(lines))
        # Not in the test's own directory: the path of a socket may not be longer than 107 bytes.
        self.tmux_folder = Path(tempfile.mkdtemp(prefix="fjd-tmux-"))
        self.token = f"FJDTEST_TOKEN={os.path.basename(self.tmux_folder)}"
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("FJD_", "TMUX", "PYTEST_")) and name not in ("CI", "COLUMNS", "LINES")
        }
        name, _, value = self.token.partition("=")
        self.environment |= {
            name: value,
            "HOME": str(home),
            "TMUX_TMPDIR": str(self.tmux_folder),
            "PATH": f"{command_folder()}:{os.environ['PATH']}",
            "TERM": "xterm",
            "LC_ALL": "C.UTF-8",
        }
        self.submitted: dict[str, bytes] = {}
        self._started: list[Started] = []
        self._files: list[IO[bytes]] = []

    # Commands

    def run(self, *words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, **more: Any) -> Result:
        """Run one of the commands to its end. No traceback may ever be seen."""
        done = subprocess.run(
            words,
            cwd=cwd or self.path,
            env={**self.environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2 * PATIENCE_SECONDS,
            check=False,
            **more,
        )
        result = Result(done.returncode, _text(done.stdout), _text(done.stderr))
        assert "Traceback" not in result.out + result.err, result.err
        return result

    def start(self, *words: str, cwd: Path | None = None, **more: Any) -> Started:
        """Start a command without waiting for it."""
        number = len(self._started)
        paths = self.folder / f"started{number}.out", self.folder / f"started{number}.err"
        with open(paths[0], "wb") as out, open(paths[1], "wb") as err:
            process = subprocess.Popen(
                words,
                cwd=cwd or self.path,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                **more,
            )
        started = Started(process, *paths)
        self._started.append(started)
        return started

    def hire(self, count: int = 1, backend: str = "local", env: Mapping[str, str] | None = None) -> list[int]:
        """Hire workers; their pids, by worker name."""
        before = set(self.slots())
        result = self.run("recruiter", "hire", str(count), "--backend", backend, env=env)
        plural = "" if count == 1 else "s"
        assert result == Result(0, f"[FJD] Hired {count} worker{plural} on localhost.\n", "")
        new = sorted(set(self.slots()) - before)
        assert len(new) == count, "not ready, though hired"
        return [self.identity(slot)["pid"] for slot in new]

    def dispatch(self, *words: str, code: int = 0) -> Result:
        """Run a dispatcher until all is done."""
        started = self.start("dispatcher", *words)
        wait_until(lambda: started.process.poll() is not None, 2 * PATIENCE_SECONDS, self.report)
        result = started.wait()
        assert result.code == code, self.report()
        return result

    def dispatcher(self, *words: str) -> Started:
        """Start a dispatcher that stays."""
        started = self.start("dispatcher", "--stay", *words)
        wait_until(lambda: "started" in started.out, PATIENCE_SECONDS, self.report)
        return started

    def started(self, command: str) -> list[Started]:
        return [one for one in self._started if one.process.args[0] == command]

    # Jobs

    def drop(self, name: str, text: str | bytes) -> None:
        """Drop a job file as most programs should: complete, by a rename."""
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        (self.path / "jobqueue").mkdir(exist_ok=True)
        draft = self.path / "jobqueue" / f".draft{len(self.submitted)}"
        draft.write_bytes(data)
        os.rename(draft, f"{self.path}/jobqueue/{name}")
        self.submitted[name] = data

    def drop_command(self, name: str, executable: str, **keys: object) -> None:
        lines = [f"{key}: {value}\n" for key, value in {"executable": executable, **keys}.items()]
        self.drop(name, "[control]\n" + "".join(lines))

    def drop_script(self, name: str, *lines: str) -> None:
        """Drop a job that is a shell script."""
        self.drop(name, "".join(f"{line}\n" for line in ("#!/bin/sh", *lines)))

    def flag(self, name: str) -> Path:
        """A path outside the project, for jobs that wait (`until [ -e FLAG ]; do sleep .01; done`) or tell."""
        return self.folder / f"flag-{name}"

    @staticmethod
    def await_flag(flag: Path) -> str:
        """A line of shell that waits for a flag."""
        return f"until [ -e {flag} ]; do sleep .01; done"

    # Looking

    def slots(self) -> list[Path]:
        try:
            return sorted(path for path in (self.path / "workerqueue").iterdir() if path.name[0] != ".")
        except FileNotFoundError:
            return []

    def identity(self, slot: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((slot / "alive").read_text().splitlines()[1])
        return found

    def files(self, folder: str) -> list[str]:
        """What lies in a directory of the project, drafts left out."""
        try:
            return sorted(name for name in os.listdir(self.path / folder) if name[0] != ".")
        except FileNotFoundError:
            return []

    def queued(self) -> list[str]:
        return self.files("jobqueue")

    def running(self) -> list[str]:
        return sorted(name for slot in self.slots() for name in self.files(f"{slot}/running"))

    def record(self, state: str) -> list[str]:
        return self.files(f"jobrecord/{state}")

    def journal(self) -> list[dict[str, Any]]:
        """All whole lines of all journals."""
        lines = []
        for name in self.record("journal"):
            text = (self.path / "jobrecord/journal" / name).read_bytes()
            lines += [json.loads(line) for line in text.split(b"\n")[:-1] if line]
        return lines

    def outcomes(self, job: str) -> list[dict[str, Any]]:
        """The journal's lines about jobs of that name, by attempt."""
        return sorted((line for line in self.journal() if line["job"] == job), key=lambda line: line["attempt"])

    def outcome(self, job: str) -> dict[str, Any]:
        """The one final line about a job: of the attempt that the name in done/ or failed/ says."""
        ended = {*self.record("done"), *self.record("failed")}
        found = [line for line in self.outcomes(job) if line["outcome"] in ENDINGS and line["file"] in ended]
        assert len(found) == 1, f"{job}: {found}"
        return found[0]

    def log_path(self, record: Mapping[str, Any], ending: str = ".out") -> Path:
        """Where the output of an attempt is, by its journal line."""
        stem, dot, suffix = record["file"].rpartition(".")
        # An ID is no ending.
        name = record["file"] if not dot or suffix.startswith(record["id"]) else stem
        return self.path / "jobrecord/logs" / f"{name}{ending}"

    def output(self, job: str, ending: str = ".out") -> bytes:
        """What the last attempt of a job printed."""
        path = self.log_path(self.outcome(job), ending)
        return path.read_bytes() if path.exists() else b""

    def wait_done(self, job: str, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait until a job is in done/ or failed/; the final line about it."""
        wait_until(lambda: self._is_done(job), seconds, self.report)
        return self.outcome(job)

    def _is_done(self, job: str) -> bool:
        files = {line["file"] for line in self.outcomes(job) if line["outcome"] in ENDINGS}
        return bool(files & {*self.record("done"), *self.record("failed")})

    def wait_running(self, job: str) -> int:
        """Wait until the script of a job wrote its pid into its flag; the pid."""
        path = self.flag(f"{job}.pid")
        text = wait_until(lambda: path.exists() and path.read_text(), PATIENCE_SECONDS, self.report)
        return int(str(text).split()[-1])

    def tell_pid(self, job: str) -> str:
        """A line of shell with which a job tells that it runs."""
        path = self.flag(f"{job}.pid")
        return f"echo $$ >{path}.new && mv {path}.new {path}"

    def processes(self) -> dict[int, str]:
        """Every living process that comes from this rig: pid and command line."""
        found = {}
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == os.getpid():
                continue
            try:
                variables = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                if self.token.encode() in variables and is_running(int(name)):
                    words = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(name)] = words.decode(errors="backslashreplace")
            except OSError:
                continue
        return found

    def report(self) -> str:
        """Everything that may tell why a test waits in vain."""
        lines = [f"{path}" for path in sorted(self.path.rglob("*"))[:100]]
        lines += [str(line) for line in self.journal()[-20:]]
        for path in sorted(self.path.glob("jobrecord/logs/*.log")):
            lines += [f"--- {path.name}", path.read_text(errors="backslashreplace")[-2000:]]
        for started in self._started:
            lines += ["---", started.report()[-3000:]]
        return "\n".join([*lines, "---", *(f"{pid} {words}" for pid, words in self.processes().items())])

    # Judging

    def check_nothing_left(self) -> None:
        """No worker, no slot, no session, no process; dispatchers that a test started must have ended."""
        wait_until(lambda: not self.processes(), 5, self.report)
        assert not self.slots()

    def check(self, drained: bool = False) -> None:
        """Every job is in one place, unchanged, with at most one outcome; `drained`: and all is done."""
        assert check(Project(str(self.path)), self.submitted, drained) == [], self.report()

    def close(self) -> None:
        """End everything, and look once more for what nobody should ever see. May be called twice."""
        tracebacks = [path for path in self.path.glob("jobrecord/logs/*.log") if b"Traceback" in _read(path)]
        said = [_text(_read(path))[-3000:] for path in tracebacks]
        said += [started.err for started in self._started if "Traceback" in started.err]
        for number in (signal.SIGTERM, signal.SIGKILL):
            # In rounds, since some may be just about to start others.
            deadline = time.monotonic() + 3
            while (left := self.processes()) and time.monotonic() < deadline:
                for pid in left:
                    _kill(pid, number)
                    _kill(pid, signal.SIGCONT)
                time.sleep(0.02)
        for started in self._started:
            started.process.wait()
        shutil.rmtree(self.tmux_folder, ignore_errors=True)
        assert not said, f"a traceback in a log: {said}"


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")


class Terminal:
    """A shell on a real terminal of 80 x 24: a pane of a tmux server that has nothing to do with fjd's."""

    def __init__(self, rig: Rig, name: str = "person") -> None:
        need_tmux()
        self._rig = rig
        self._name = name
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "-s", name, "env PS1='$ ' ENV= sh")
        wait_until(lambda: "$" in self.screen(), PATIENCE_SECONDS, self.screen)

    def _tmux(self, *words: str) -> str:
        result = self._rig.run("tmux", "-L", self._name, *words)
        assert result.code == 0, result.err
        return result.out

    def type(self, line: str) -> None:
        """Type a line and Return."""
        self._tmux("send-keys", "-t", self._name, "-l", line)
        self.press("Enter")

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", "-t", self._name, *keys)

    def screen(self, history: bool = False) -> str:
        """What is to be seen now; with `history` also what was scrolled away."""
        words = ("-S", "-") if history else ()
        return self._tmux("capture-pane", "-p", *words, "-t", self._name).rstrip("\n")

    def wait_for(self, text: str, seconds: float = PATIENCE_SECONDS) -> str:
        """Wait until a text is to be seen; the screen."""
        wait_until(
            lambda: text in self.screen(), seconds, lambda: f"{text!r} in\n{self.screen()}\n{self._rig.report()}"
        )
        return self.screen()

    def kill(self) -> None:
        """What happens when a person logs out or the connection breaks."""
        self._tmux("kill-server")


def as_nobody() -> tuple[list[str], dict[str, Any]]:
    """The first words of a command line, and options of subprocess, that run a module of fjd as a user without rights.

    Raises a skip if no interpreter can be run by that user.
    """
    packages = os.pathsep.join(path for path in [str(REPOSITORY), *sys.path] if path)
    options: dict[str, Any] = {"env": {"PYTHONPATH": packages}}
    if os.getuid() == 0:
        options |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    for interpreter in (sys.executable, "/usr/bin/python3"):
        words = [interpreter, "-c", "import fjd.cli.worker, fjd.cli.dispatcher, fjd.cli.recruiter"]
        try:
            done = subprocess.run(
                words, check=False, capture_output=True, **{**options, "env": {**os.environ, **options["env"]}}
            )
        except OSError:
            continue
        if done.returncode == 0:
            return [interpreter, "-m"], options
    lacking("no Python that another user may run has the packages of fjd")


@contextlib.contextmanager
def nobodys_project() -> Iterator[tuple[Path, list[str], dict[str, Any]]]:
    """A directory of a user whom permissions bind, and how to run a module of fjd as that user: see as_nobody."""
    words, options = as_nobody()
    # Not in the test's own directory: what lies above that is closed to everybody else.
    folder = Path(tempfile.mkdtemp(prefix="fjd-nobody-"))
    try:
        give_to_nobody(folder)
        yield folder, words, options
    finally:
        folder.chmod(0o700)
        shutil.rmtree(folder)


def give_to_nobody(*paths: Path) -> None:
    for path in paths:
        if os.getuid() == 0:
            os.chown(path, NOBODY, NOBODY)


def rigs(folder: Path, settings: Mapping[str, object] | None = None) -> Iterator[Rig]:
    """For fixtures: a rig, and its end."""
    made = Rig(folder, settings)
    try:
        yield made
    finally:
        made.close()
