"""Guards one child process: what it is started with, that no output is lost, and that nothing of it is left.

The children are real, and each test waits for what they do, never for a time.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from lab import Clock

from fjd import disk, host, process
from fjd.errors import CommandError
from fjd.process import Child, Output, Stopper, kill_strays

ENVIRONMENT = {b"PATH": os.environb[b"PATH"]}


class Yard:
    """A directory in which children run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.children: list[Child] = []

    def start(self, program: str, *words: str, directory: Path | None = None, **environment: str) -> Child:
        extra = {name.encode(): value.encode() for name, value in environment.items()}
        child = Child(
            [program, *words],
            program,
            {**ENVIRONMENT, **extra},
            str(directory or self.path),
            f"{self.path}/log",
            self._home,
        )
        self.children.append(child)
        return child

    def sh(self, script: str, **environment: str) -> Child:
        return self.start("/bin/sh", "-c", script, **environment)

    @property
    def _home(self) -> str:
        return str(self.path)

    def run(self, script: str, **environment: str) -> Child:
        return self.ended(self.sh(script, **environment))

    def ended(self, child: Child) -> Child:
        """Take its output until nobody can write any more, and collect it."""
        for output in child.outputs:
            while output.pump():
                select.select([output.fd], [], [])
        wait_end(child)
        return child

    def said(self, ending: str = "out") -> str:
        return Path(self.path, f"log.{ending}").read_text()

    def close(self) -> None:
        for child in self.children:
            if not child.has_ended:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                wait_end(child)
            child.close()


def wait_end(child: Child) -> None:
    with suppress(ChildProcessError):
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.reap()


def wait_output(child: Child) -> None:
    select.select([child.outputs[0].fd], [], [])


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    before = os.getcwd()
    made = Yard(tmp_path)
    yield made
    made.close()
    os.chdir(before)


# The start


def test_child_gets_its_words_and_only_its_environment(yard: Yard) -> None:
    child = yard.ended(yard.start("/usr/bin/env", "-u", "PATH", FJD_ID="abc"))
    assert yard.said() == "FJD_ID=abc\n"
    assert child.status == 0


def test_child_has_a_session_of_its_own(yard: Yard) -> None:
    child = yard.sh("echo; read never < /dev/zero")
    wait_output(child)
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    assert os.getpgid(child.pid) == child.pid


def test_child_has_an_empty_stdin(yard: Yard) -> None:
    yard.run('cat; echo "end $?"')
    assert yard.said() == "end 0\n"


def test_child_holds_only_its_own_ends_of_the_pipes(yard: Yard) -> None:
    child = yard.sh("exec ls -l /proc/self/fd")
    pipes = [f"pipe:[{os.fstat(output.fd).st_ino}]" for output in child.outputs]
    yard.ended(child)
    assert [yard.said().count(pipe) for pipe in pipes] == [1, 1]


def test_child_has_the_signals_that_programs_expect(yard: Yard) -> None:
    """Python ignores SIGPIPE; a program that does not know writes on for ever behind `| head`."""
    yard.run("grep -E '^Sig(Blk|Ign)' /proc/self/status")
    blocked, ignored = (int(line.split()[1], 16) for line in yard.said().splitlines())
    assert not blocked
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT):
        assert not ignored & 1 << (number - 1), number


def test_child_runs_in_its_directory_and_the_worker_goes_back(yard: Yard) -> None:
    (yard.path / "run").mkdir()
    child = yard.ended(yard.start("/bin/pwd", directory=yard.path / "run"))
    assert yard.said() == f"{yard.path}/run\n"
    assert os.getcwd() == str(yard.path)
    assert child.has_ended


def test_child_is_run_by_sh_when_a_script_has_no_first_line(yard: Yard) -> None:
    script = yard.path / "script"
    script.write_text('echo "ran with $1"\n')
    script.chmod(0o755)
    yard.ended(yard.start(str(script), "job.conf"))
    assert yard.said() == "ran with job.conf\n"


def failing_start(yard: Yard, *words: str) -> CommandError:
    with pytest.raises(CommandError) as caught:
        yard.start(*words)
    return caught.value


def test_start_says_so_when_the_interpreter_is_missing(yard: Yard) -> None:
    script = yard.path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    error = failing_start(yard, str(script))
    assert (error.path, error.reason, error.exit_code) == (str(script), "its interpreter is missing", 127)


def test_start_says_so_when_the_arguments_are_too_long(yard: Yard) -> None:
    error = failing_start(yard, "/bin/true", "x" * (1 << 18))
    assert (error.reason, error.exit_code) == ("its arguments and environment are too long", 126)


def test_start_says_what_the_system_says_when_the_program_cannot_be_run(yard: Yard) -> None:
    error = failing_start(yard, str(yard.path))
    assert (error.path, error.reason, error.exit_code) == (str(yard.path), "permission denied", 126)


def test_start_says_so_when_the_workdir_is_gone(yard: Yard) -> None:
    with pytest.raises(CommandError, match="workdir: no such file or directory"):
        yard.start("/bin/true", directory=yard.path / "gone")
    assert os.getcwd() == str(yard.path)


@pytest.mark.parametrize("number", sorted(process.TRANSIENT))
def test_start_leaves_it_to_the_worker_when_the_machine_has_no_room(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def posix_spawn(*arguments: Any, **more: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_spawn", posix_spawn)
    with pytest.raises(OSError, match=os.strerror(number)):
        yard.start("/bin/true")


# The end


def test_child_keeps_its_status_and_what_it_used(yard: Yard) -> None:
    child = yard.run("exit 3")
    assert child.status is not None
    assert os.waitstatus_to_exitcode(child.status) == 3
    assert child.usage is not None
    assert child.usage.ru_maxrss > 0
    assert child.seconds > 0


def test_child_tells_the_signal_that_ended_it(yard: Yard) -> None:
    child = yard.run("kill -KILL $$")
    assert child.status is not None
    assert os.waitstatus_to_exitcode(child.status) == -signal.SIGKILL


def test_reap_tells_whether_a_process_is_left(yard: Yard) -> None:
    child = yard.sh("read never < /dev/zero")
    assert child.reap()
    assert not child.has_ended
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not child.reap()
    assert child.has_ended


def test_reap_sees_more_than_the_child_itself(yard: Yard) -> None:
    """Whatever else is a child of the worker was inherited from the job."""
    child = yard.sh("exit 0")
    with subprocess.Popen(["sleep", "60"]) as other:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert child.reap()
        assert child.has_ended
        other.kill()


# Output


def test_output_is_kept_as_it_was_and_counted(yard: Yard) -> None:
    child = yard.run("printf out; printf error >&2")
    assert (yard.said("out"), yard.said("err")) == ("out", "error")
    assert [output.bytes_seen for output in child.outputs] == [3, 5]
    assert stat.S_IMODE(os.stat(yard.path / "log.out").st_mode) == 0o600


def test_output_makes_no_file_when_there_is_none(yard: Yard) -> None:
    yard.run("exit 0")
    assert os.listdir(yard.path) == []


def test_output_is_in_the_file_while_the_child_runs(yard: Yard) -> None:
    child = yard.sh("echo ready; read never < /dev/zero")
    wait_output(child)
    assert child.outputs[0].pump()
    assert yard.said() == "ready\n"


class Pipe:
    """An output whose writing end is in the test's hand."""

    def __init__(self, path: Path) -> None:
        self.output = Output(f"{path}/log.out")
        self.path = path / "log.out"

    def write(self, data: bytes) -> None:
        assert os.write(self.output.child_fd, data) == len(data)

    def close_writer(self) -> None:
        os.close(self.output.child_fd)
        self.output.child_fd = -1


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipe]:
    made = Pipe(tmp_path)
    yield made
    if made.output.child_fd >= 0:
        os.close(made.output.child_fd)
    made.output.close()


def test_pump_takes_all_and_tells_the_end(pipe: Pipe) -> None:
    assert pipe.output.pump()
    assert not pipe.output.has_more
    pipe.write(b"one")
    assert pipe.output.pump()
    pipe.write(b"two")
    pipe.close_writer()
    assert not pipe.output.pump()
    assert pipe.path.read_bytes() == b"onetwo"


def test_pump_takes_a_part_in_each_turn_when_there_is_much(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_CHUNK_BYTES", 10)
    monkeypatch.setattr(process, "_CHUNKS_A_TURN", 2)
    pipe.write(b"0123456789" * 3 + b"end")
    assert pipe.output.pump()
    assert (pipe.output.has_more, pipe.path.read_bytes()) == (True, b"0123456789" * 2)
    pipe.close_writer()
    # Two chunks again, and the end is only seen by the next turn.
    assert pipe.output.pump()
    assert not pipe.output.pump()
    assert pipe.path.read_bytes() == b"0123456789" * 3 + b"end"
    assert pipe.output.bytes_seen == 33


@pytest.mark.parametrize("taken", [0, 4])
def test_pump_loses_nothing_when_the_disk_is_full(pipe: Pipe, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    """Neither what was taken out of the pipe nor its order; and the writer is held up by a full pipe."""
    real = disk.write
    room = [taken]

    def write(fd: int, data: bytes) -> int:
        if not room:
            return real(fd, data)
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(fd, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(disk, "write", write)
    pipe.write(b"0123456789")
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            pipe.output.pump()
        assert pipe.output.is_stalled
        assert pipe.path.read_bytes() == b"0123456789"[:taken]
        pipe.write(b"more")
        # Nothing is taken while what was taken cannot be kept.
        assert len(os.read(pipe.output.fd, 4)) == 4
    room.clear()
    pipe.write(b"end")
    assert pipe.output.pump()
    assert not pipe.output.is_stalled
    assert pipe.path.read_bytes() == b"0123456789end"


def test_pump_makes_the_file_later_when_it_could_not_be_made(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_to_append(path: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    pipe.write(b"data")
    with monkeypatch.context() as patch:
        patch.setattr(disk, "open_to_append", open_to_append)
        with pytest.raises(OSError, match="No space"):
            pipe.output.pump()
    assert pipe.output.pump()
    assert pipe.path.read_bytes() == b"data"


# Stopping


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[signal.Signals]:
    """The signals that were sent, SIGCONT left out."""
    sent: list[signal.Signals] = []
    real = psutil.Process.send_signal

    def send_signal(self: psutil.Process, number: signal.Signals) -> None:
        if number != signal.SIGCONT:
            sent.append(number)
        real(self, number)

    monkeypatch.setattr(psutil.Process, "send_signal", send_signal)
    return sent


def test_stopper_asks_first(yard: Yard, clock: Clock, signals: list[signal.Signals]) -> None:
    child = yard.sh("echo; exec sleep 60")
    wait_output(child)
    Stopper(5.0, clock).step()
    wait_end(child)
    assert child.status == signal.SIGTERM
    assert signals == [signal.SIGTERM]


def test_stopper_kills_only_after_the_grace(yard: Yard, clock: Clock, signals: list[signal.Signals]) -> None:
    child = yard.sh("trap '' TERM; echo; read never < /dev/zero")
    wait_output(child)
    stopper = Stopper(5.0, clock)
    stopper.step()
    clock.advance(4.99)
    stopper.step()
    # Asked once: a program may take a second TERM for impatience.
    assert signals == [signal.SIGTERM]
    clock.advance(0.01)
    stopper.step()
    wait_end(child)
    assert child.status == signal.SIGKILL


def test_stopper_kills_at_once_when_there_is_no_grace(yard: Yard, clock: Clock, signals: list[signal.Signals]) -> None:
    child = yard.sh("echo; exec sleep 60")
    wait_output(child)
    Stopper(0.0, clock).step()
    wait_end(child)
    assert child.status == signal.SIGKILL


def test_stopper_wakes_a_stopped_process_so_that_it_hears(yard: Yard, clock: Clock) -> None:
    child = yard.sh("kill -STOP $$; exec sleep 60")
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    Stopper(5.0, clock).step()
    wait_end(child)
    assert child.status == signal.SIGTERM


def test_stopper_asks_who_comes_later(yard: Yard, clock: Clock, signals: list[signal.Signals]) -> None:
    stopper = Stopper(5.0, clock)
    stopper.step()
    child = yard.sh("echo; exec sleep 60")
    wait_output(child)
    stopper.step()
    wait_end(child)
    assert child.status == signal.SIGTERM


def test_stopper_reaches_grandchildren_in_other_sessions(yard: Yard, clock: Clock) -> None:
    child = yard.sh("setsid sh -c 'echo $$; exec sleep 60' & wait")
    wait_output(child)
    child.outputs[0].pump()
    grandchild = psutil.Process(int(yard.said()))
    Stopper(0.0, clock).step()
    wait_end(child)
    assert has_ended(grandchild)


def has_ended(gone: psutil.Process) -> bool:
    """Waits for it, since a signal takes a moment; a zombie that nobody collects has ended too."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if gone.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        select.select([], [], [], 0.002)
    return False


# What a dead worker left


class Left:
    """Processes that a worker's job left, by what they say of themselves; killed at the end."""

    def __init__(self) -> None:
        self._sessions: list[subprocess.Popen[str]] = []
        self.found: list[psutil.Process] = []

    def start(self, script: str, **environment: str) -> list[psutil.Process]:
        """The process and what it starts; each says its pid."""
        job = subprocess.Popen(
            ["/bin/sh", "-c", script],
            env={"PATH": os.environ["PATH"], **environment},
            stdout=subprocess.PIPE,
            text=True,
            # Whoever shares a session with a marked process is killed: this must not be the one of the tests.
            start_new_session=True,
        )
        self._sessions.append(job)
        assert job.stdout is not None
        pids = [int(word) for word in job.stdout.readline().split()]
        found = [psutil.Process(pid) for pid in pids]
        self.found += found
        return found

    def close(self) -> None:
        for one in self.found:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        for job in self._sessions:
            job.kill()
            job.wait()
            assert job.stdout is not None
            job.stdout.close()


@pytest.fixture
def left() -> Iterator[Left]:
    made = Left()
    yield made
    made.close()


MARKS = {"FJD_WORKER": "vm-1.k3f9", "FJD_PROJECT_DIR": "/the/project"}
# Does not end by itself; and does not exec, since a process has no environment while it does.
ALONE = "echo $$; kill -STOP $$"


def test_kill_strays_finds_the_job_by_its_environment(left: Left) -> None:
    (job,) = left.start(ALONE, **MARKS)
    assert kill_strays("vm-1.k3f9", "/the/project")
    assert has_ended(job)


@pytest.mark.parametrize(
    "script",
    [
        "setsid sleep 60 & echo $$ $!; wait",
        "env -i sleep 60 & echo $$ $!; wait",
        "setsid env -i sleep 60 & echo $$ $!; wait",
    ],
    ids=["in a session of its own", "without environment", "both"],
)
def test_kill_strays_finds_what_the_job_detached(left: Left, script: str) -> None:
    job, child = left.start(script, **MARKS)
    assert kill_strays("vm-1.k3f9", "/the/project")
    assert has_ended(job)
    assert has_ended(child)


def test_kill_strays_finds_an_orphan_without_environment_by_its_session(left: Left) -> None:
    """Its parent has ended, but another process of the job is in the same session."""
    script = "orphan=$( (env -i sleep 60 > /dev/null & echo $!) ); echo $$ $orphan; exec sleep 60"
    job, orphan = left.start(script, **MARKS)
    assert orphan.ppid() != job.pid
    assert kill_strays("vm-1.k3f9", "/the/project")
    assert has_ended(job)
    assert has_ended(orphan)


@pytest.mark.parametrize(
    "marks",
    [
        {},
        {**MARKS, "FJD_WORKER": "vm-1.zzzz"},
        {**MARKS, "FJD_WORKER": "vm-1.k3f9x"},
        {**MARKS, "FJD_PROJECT_DIR": "/another/project"},
        {"FJD_WORKER": "vm-1.k3f9"},
    ],
    ids=["no job", "another worker", "a longer name", "another project", "no project"],
)
def test_kill_strays_spares_others_that_run_the_same_program(left: Left, marks: dict[str, str]) -> None:
    (other,) = left.start(ALONE, **marks)
    (job,) = left.start(ALONE, **MARKS)
    assert kill_strays("vm-1.k3f9", "/the/project")
    assert has_ended(job)
    assert other.status() != psutil.STATUS_ZOMBIE


def test_kill_strays_is_content_when_nothing_is_left() -> None:
    assert kill_strays("vm-1.k3f9", "/the/project")


def test_kill_strays_spares_the_process_that_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job may run `recruiter fire` or a dispatcher of its own."""
    killed: list[int] = []

    class Marked:
        pid = os.getpid()

        def status(self) -> str:
            return psutil.STATUS_RUNNING

        def environ(self) -> dict[str, str]:
            return MARKS

        def children(self, recursive: bool) -> list[Any]:
            return []

        def send_signal(self, number: int) -> None:
            killed.append(number)

    monkeypatch.setattr(psutil, "process_iter", lambda: [Marked()])
    assert kill_strays("vm-1.k3f9", "/the/project", wait_seconds=0.0)
    assert killed == []


def test_kill_strays_says_no_when_one_does_not_die(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = left.start(ALONE, **MARKS)
    monkeypatch.setattr(psutil.Process, "send_signal", ignore_all)
    monkeypatch.setattr(psutil, "wait_procs", ignore_all)
    assert not kill_strays("vm-1.k3f9", "/the/project", wait_seconds=0.0)
    assert job.status() != psutil.STATUS_ZOMBIE


def ignore_all(*arguments: Any, **more: Any) -> None:
    """Stands in for calls that would do something."""


def test_kill_strays_finds_a_job_that_changed_its_environment_by_its_session(left: Left) -> None:
    """What `env -i`, or a program that writes over its own environment, leaves."""
    (job,) = left.start(ALONE)
    assert kill_strays("vm-1.k3f9", "/the/project", (job.pid, host.start_ticks(job.pid) or 0))
    assert host.start_ticks(job.pid) is None


def test_kill_strays_spares_a_session_whose_number_is_used_again(left: Left) -> None:
    (job,) = left.start(ALONE)
    assert kill_strays("vm-1.k3f9", "/the/project", (job.pid, (host.start_ticks(job.pid) or 0) - 1))
    assert host.start_ticks(job.pid) is not None


def test_kill_strays_finds_the_job_when_its_project_is_named_by_another_path(left: Left, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "link").symlink_to("project")
    (job,) = left.start(ALONE, FJD_WORKER="vm-1.k3f9", FJD_PROJECT_DIR=str(tmp_path / "link"))
    assert kill_strays("vm-1.k3f9", str(tmp_path / "project"))
    assert host.start_ticks(job.pid) is None
