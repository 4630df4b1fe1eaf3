"""Guards what the commands promise to a shell: options, exit codes, one line for an error, and a quick start."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fjd.cli import ExitCode, dispatcher, guarded, recruiter, worker
from fjd.cli import fjd as fjd_command
from fjd.cli.recruiter import _count
from fjd.errors import ProjectError, UsageError
from fjd.project import Project

JOB = "[control]\nexecutable: true\n"
Main = Callable[[list[str]], int]


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Commands set it for their whole process."""
    logger = logging.getLogger("fjd")
    before = logger.level
    yield
    logger.setLevel(before)


# Options

HELP = [
    (dispatcher.main, [], ["--stay", "--no-wait", "--plain", "--dir", "--project", "--debug"]),
    (worker.main, [], ["--name", "--dir", "--project"]),
    (recruiter.main, [], ["hire", "fire", "list", "--debug", "--version"]),
    (recruiter.main, ["hire"], ["N%", "--backend", "--dir", "--project"]),
    (recruiter.main, ["fire"], ["WORKER", "--now", "--wait"]),
    (recruiter.main, ["list"], ["--dir"]),
    (fjd_command.main, [], ["status", "submit"]),
    (fjd_command.main, ["status"], ["--json", "--dir"]),
    (fjd_command.main, ["submit"], ["FILE", "--dir"]),
]


@pytest.mark.parametrize(("main", "words", "options"), HELP)
def test_help_mentions_every_option(
    main: Main, words: list[str], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    said = capsys.readouterr()
    assert (caught.value.code, said.err) == (0, "")
    assert [option for option in options if option not in said.out] == []


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (dispatcher.main, ["--unknown"]),
        (worker.main, ["--dir", ".", "--project", "x"]),
        (recruiter.main, []),
        (recruiter.main, ["hire", "--backend", "cloud"]),
        (fjd_command.main, ["submit"]),
    ],
)
def test_wrong_options_end_with_2(main: Main, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == ExitCode.USAGE
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "cores", "count"),
    [
        (None, 1, 1),
        (None, 2, 1),
        (None, 8, 7),
        ("1", 8, 1),
        ("12", 2, 12),
        ("50%", 8, 4),
        ("50%", 3, 1),
        ("1%", 8, 1),
        ("200%", 8, 16),
    ],
)
def test_count_is_what_hire_means(text: str | None, cores: int, count: int) -> None:
    assert _count(text, cores) == count


@pytest.mark.parametrize("text", ["0", "0%", "-1", "", "%", "1.5", "four", "1e3", "9999999", " 4", "٣x"])
def test_count_refuses_what_is_no_number_of_workers(text: str) -> None:
    with pytest.raises(UsageError, match="not a number of workers"):
        _count(text, 8)


# Errors


def said_by(run: Callable[[argparse.Namespace], int], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = guarded(run, argparse.Namespace(debug=False))
    return code, capsys.readouterr().err


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("--x", "wrong", "say y"), 2, "[FJD] --x: wrong (say y)\n"),
        (ProjectError("/p", "is full\nof\x1b[31m it"), 75, "[FJD] /p: is full\\nof\\x1b[31m it\n"),
        (
            PermissionError(13, "Permission denied", "/p"),
            75,
            "[FJD] /p: permission denied (fjd needs a directory that you can write to)\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said_by(raising(error), capsys) == (code, line)


def test_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(raising(ZeroDivisionError()), argparse.Namespace(debug=False))


@pytest.mark.parametrize("error", [UsageError("", "wrong"), ProjectError("/p", "gone"), OSError(5, "EIO")])
def test_debug_gives_the_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        guarded(raising(error), argparse.Namespace(debug=True))


def test_missing_project_is_one_line_and_75(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fjd_command.main(["status", "--dir", f"{tmp_path}/gone"]) == 75
    assert capsys.readouterr().err.count("\n") == 1


def test_wrong_number_is_one_line_and_2(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert recruiter.main(["hire", "many", "--dir", project.path]) == 2
    assert capsys.readouterr().err.startswith("[FJD] many: not a number of workers (")


# fjd


def test_submit_queues_each_file_under_the_name_it_prints(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "one.conf", tmp_path / "two.sh"]
    files[0].write_text(JOB)
    files[1].write_text("#!/bin/sh\n")
    assert fjd_command.main(["submit", *map(str, files), "--dir", project.path]) == 0
    assert sorted(capsys.readouterr().out.split()) == sorted(os.listdir(project.jobqueue))


@pytest.mark.parametrize("bad", ["[control]\n", None], ids=["not a job", "missing"])
def test_submit_queues_nothing_when_one_is_not_a_job(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: str | None
) -> None:
    (tmp_path / "good.conf").write_text(JOB)
    if bad is not None:
        (tmp_path / "bad.conf").write_text(bad)
    words = ["submit", f"{tmp_path}/good.conf", f"{tmp_path}/bad.conf", "--dir", project.path]
    assert fjd_command.main(words) == 2
    assert os.listdir(project.jobqueue) == []
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert f"{tmp_path}/bad.conf" in said.err


def test_status_is_one_json_object_when_asked_for(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    Path(project.jobqueue, "job.conf").write_text(JOB)
    assert fjd_command.main(["status", "--json", "--dir", project.path]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["queued"] == 1
    assert list(counts) == "queued assigned running succeeded failed held rejected workers".split()


def test_dispatcher_ends_with_1_when_a_file_was_rejected(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    Path(project.path, "fjd.conf").write_text("[fjd]\nsettle_seconds: 0\nfilesystem: local\n")
    Path(project.jobqueue, "bad.conf").write_text("no job\n")
    assert dispatcher.main(["--dir", project.path, "--plain"]) == ExitCode.JOBS_FAILED
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "[FJD] Dispatcher started.",
        "[FJD] Found some jobs to dispatch",
        "[FJD] No more jobs to dispatch.",
    ]
    assert "[FJD] 1 file rejected; see jobrecord/rejected/." in said.err


# A process of its own: a start takes a tenth of a second


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("fjd.cli.fjd", {"watchdog", "filelock", "libtmux", "rich", "psutil"}),
        ("fjd.cli.recruiter", {"libtmux", "rich", "watchdog"}),
        ("fjd.cli.worker", {"libtmux", "rich"}),
        ("fjd.cli.dispatcher", {"libtmux", "rich"}),
    ],
)
def test_import_brings_nothing_that_is_not_needed_yet(module: str, unwanted: set[str]) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = python(code, stdout=subprocess.PIPE)
    assert ran.returncode == 0, ran.stderr
    assert unwanted & set(ran.stdout.split()) == set()


@pytest.mark.slow
@pytest.mark.parametrize("words", [["status"], ["status", "--json"]])
def test_command_ends_quietly_when_nobody_reads_its_answer(project: Project, words: list[str]) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    try:
        code = f"import sys; from fjd.cli.fjd import main; sys.exit(main({[*words, '--dir', project.path]!r}))"
        ran = python(code, stdout=write_fd)
    finally:
        os.close(write_fd)
    assert (ran.returncode, ran.stderr) == (0, "")
