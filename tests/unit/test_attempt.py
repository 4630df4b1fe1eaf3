"""Guards how an attempt is launched: words, environment, folders, whose file it is; and what its record says."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from fjd import attempt as attempt_module
from fjd import disk
from fjd.attempt import Attempt, base_environment, utc
from fjd.errors import CommandError, JobFileError
from fjd.names import JobName
from fjd.project import Project
from fjd.slot import OwnSlot

ID = "abcdef012345"
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")


class FakeChild:
    """Keeps what a child would be started with."""

    status = usage = None

    def __init__(
        self, argv: list[str], program: str, environment: Any, directory: str, log_stem: str, worker_directory: str
    ) -> None:
        self.argv = argv
        self.program = program
        self.environment = {name.decode(): value.decode() for name, value in environment.items()}
        self.directory = directory
        self.log_stem = log_stem
        self.worker_directory = worker_directory


class Bench:
    """A slot with a job in running/, and its attempt."""

    def __init__(self, project: Project, own: OwnSlot) -> None:
        self.project = project
        self.own = own
        self.name = JobName("job", ID, 2, ".conf")
        self.path = f"{own.running}/{self.name.filename}"
        self.environment = {b"PATH": b"/usr/bin:/bin", b"HOME": b"/home/me"}

    def attempt(self, text: str) -> Attempt:
        Path(self.path).write_text(text)
        return Attempt(self.project, self.own, self.name, self.environment)

    def launch(self, text: str) -> FakeChild:
        return self.attempt(text).launch()  # what it returns is the FakeChild

    def control(self, *lines: str) -> FakeChild:
        return self.launch("\n".join(["[control]", *lines, ""]))

    def program(self, name: str) -> str:
        path = Path(self.project.path, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return str(path)


@pytest.fixture
def bench(project: Project, own_slot: OwnSlot, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(attempt_module, "Child", FakeChild)
    return Bench(project, own_slot)


# Words


def test_launch_adds_the_absolute_path_of_the_job_file(bench: Bench) -> None:
    child = bench.control("executable: /bin/echo -n 'two words'")
    assert child.argv == ["/bin/echo", "-n", "two words", bench.path]
    assert child.program == "/bin/echo"


def test_launch_runs_shell_syntax_in_sh(bench: Bench) -> None:
    child = bench.control("executable: cd run && ./sim")
    assert child.argv == ["/bin/sh", "-c", 'cd run && ./sim "$1"', "sh", bench.path]
    assert child.program == "/bin/sh"


@pytest.mark.parametrize("line", ["/bin/sh", "/usr/bin/env -S python3 -u"])
def test_launch_runs_a_script_as_the_kernel_would(bench: Bench, line: str) -> None:
    child = bench.launch(f"#!{line}\nexit 0\n")
    assert child.argv == [*line.split(None, 1), bench.path]


def test_launch_puts_nice_in_front_when_it_is_asked_for(bench: Bench) -> None:
    program = bench.program("sim")
    child = bench.control("executable: ./sim -x", "nice: 10")
    assert child.argv == ["nice", "-n", "10", f"{bench.project.path}/./sim", "-x", bench.path]
    assert os.path.basename(child.program) == "nice"
    assert os.path.samefile(child.argv[3], program)


def test_launch_finds_a_program_on_the_workers_path(bench: Bench) -> None:
    bench.program("tools/my-sim")
    bench.environment[b"PATH"] = f"/usr/bin:{bench.project.path}/tools".encode()
    assert bench.control("executable: my-sim").program == f"{bench.project.path}/tools/my-sim"


def test_launch_takes_a_relative_executable_from_the_project_also_with_workdir(bench: Bench) -> None:
    bench.program("sim")
    bench.program("run/sim")
    child = bench.control("executable: ./sim", "workdir: run")
    assert child.program == f"{bench.project.path}/./sim"
    assert child.directory == f"{bench.project.path}/run"


# Environment and folders


def test_launch_tells_the_job_what_it_is(bench: Bench) -> None:
    child = bench.control("executable: true", "name: my run")
    assert child.environment == {
        "PATH": "/usr/bin:/bin",
        "HOME": "/home/me",
        "FJD_JOB": "my run",
        "FJD_JOBFILE": bench.path,
        "FJD_ID": ID,
        "FJD_ATTEMPT": "2",
        "FJD_PROJECT_DIR": bench.project.path,
        "FJD_WORKER": "vm-1.k3f9",
    }
    # The next job's environment begins anew.
    assert b"FJD_JOB" not in bench.environment


def test_launch_keeps_output_under_the_name_of_the_attempt(bench: Bench) -> None:
    child = bench.control("executable: true")
    assert child.log_stem == f"{bench.project.logs}/job.{ID}~2"
    assert (child.directory, child.worker_directory) == (f"{bench.project.path}/", bench.project.path)


def test_base_environment_passes_on_all_but_the_marks_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that a job started is not that job."""
    monkeypatch.setenv("FJD_WORKER", "another")
    monkeypatch.setenv("FJD_DIR", "/elsewhere")
    monkeypatch.setenv("MINE", "stays")
    made = base_environment()
    assert made[b"MINE"] == b"stays"
    assert not [name for name in made if name.startswith(b"FJD_")]


def test_launch_makes_the_folders_that_the_job_asks_for(bench: Bench) -> None:
    bench.control("executable: true", "workdir: runs/1", "logfile: logs/deep/sim.log")
    assert os.path.isdir(f"{bench.project.path}/runs/1/logs/deep")
    assert not os.path.exists(f"{bench.project.path}/runs/1/logs/deep/sim.log")


@pytest.mark.parametrize("key", ["workdir", "logfile"])
def test_launch_fails_when_a_folder_cannot_be_made(bench: Bench, key: str) -> None:
    Path(bench.project.path, "file").write_text("")
    with pytest.raises(CommandError, match=rf"file/x: {key}: ") as caught:
        bench.control("executable: true", f"{key}: file/x{'/log' if key == 'logfile' else ''}")
    assert caught.value.exit_code == 126


def test_launch_leaves_it_to_the_worker_when_the_disk_is_full(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_user_folders(path: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(disk, "make_user_folders", make_user_folders)
    with pytest.raises(OSError, match="No space"):
        bench.control("executable: true", "workdir: run")


# The job file


@as_root
def test_launch_refuses_the_file_of_another_user(bench: Bench) -> None:
    made = bench.attempt("[control]\nexecutable: true\n")
    os.chown(bench.path, 65534, 65534)
    with pytest.raises(JobFileError, match=r"belongs to another user \(uid 65534\), not run"):
        made.launch()
    assert made.child is None


def test_launch_refuses_a_link(bench: Bench) -> None:
    """Its target may be anybody's, and be changed while we look."""
    made = bench.attempt("")
    target = Path(bench.project.path, "target.conf")
    target.write_text("[control]\nexecutable: true\n")
    os.unlink(bench.path)
    os.symlink(target, bench.path)
    with pytest.raises(JobFileError, match="cannot be read"):
        made.launch()


def test_launch_leaves_it_to_the_worker_when_the_file_server_hiccups(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_job(path: str) -> tuple[int, os.stat_result]:
        raise OSError(errno.ESTALE, "Stale file handle", path)

    monkeypatch.setattr(attempt_module, "open_job", open_job)
    with pytest.raises(OSError, match="Stale"):
        bench.control("executable: true")


@pytest.mark.parametrize(
    ("executable", "reason", "exit_code"),
    [("./missing", "no such file", 127), ("missing-program", "command not found in /usr/bin:/bin", 127)],
)
def test_record_names_the_path_tried_when_the_executable_is_missing(
    bench: Bench, executable: str, reason: str, exit_code: int
) -> None:
    made = bench.attempt(f"[control]\nexecutable: {executable}\n")
    with pytest.raises(CommandError) as caught:
        made.launch()
    record = made.record_failure(caught.value)
    assert (record.outcome, record.exit_code, record.command) == ("failed", exit_code, executable)
    assert record.reason.endswith(reason)
    assert executable.removeprefix("./") in record.reason


# Records


class Ended:
    """A child that has ended."""

    def __init__(self, status: int) -> None:
        self.status = status
        self.usage = os.times()  # replaced below
        self.seconds = 1.23456789
        self.outputs = [type("Stream", (), {"bytes_seen": size})() for size in (10, 20)]
        fields = {"ru_utime": 0.5, "ru_stime": 0.25, "ru_maxrss": 1000}
        self.usage = type("Usage", (), fields)()


@pytest.mark.parametrize(
    ("status", "stopped", "outcome", "exit_code", "signal", "reason"),
    [
        (0, False, "succeeded", 0, None, ""),
        (3 << 8, False, "failed", 3, None, ""),
        (9, False, "failed", None, 9, ""),
        (15, True, "stopped", None, 15, "stopped with its worker"),
        # It was told to go, and went well; it was not finished all the same.
        (0, True, "stopped", 0, None, "stopped with its worker"),
    ],
)
def test_record_says_how_the_child_ended(
    bench: Bench,
    status: int,
    stopped: bool,
    outcome: str,
    exit_code: int | None,
    signal: int | None,
    reason: str,
) -> None:
    made = bench.attempt("[control]\nexecutable: true\n")
    made.launch()
    made.child = Ended(status)
    record = made.record_end(stopped)
    assert (record.outcome, record.exit_code, record.signal, record.reason) == (outcome, exit_code, signal, reason)
    assert (record.seconds, record.user_seconds, record.system_seconds) == (1.234568, 0.5, 0.25)
    assert (record.peak_memory_bytes, record.stdout_bytes, record.stderr_bytes) == (1024000, 10, 20)
    assert (record.job, record.id, record.attempt, record.file) == ("job", ID, 2, f"job.{ID}~2.conf")
    assert (record.worker, record.command) == ("vm-1.k3f9", "true")
    json.dumps(record)


def test_record_says_stopped_when_nothing_was_started(bench: Bench) -> None:
    record = bench.attempt("").record_end(stopped=True)
    assert (record.outcome, record.reason) == ("stopped", "stopped before it started")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1792000000.5, "2026-10-14T17:46:40.500Z"),
        (1.9996, "1970-01-01T00:00:01.999Z"),
    ],
)
def test_utc_is_iso_8601_with_milliseconds(seconds: float, text: str) -> None:
    assert utc(seconds) == text
