"""Guards what a job's `executable` runs: with or without a shell, with the job file where the program looks for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from fjd import command
from fjd.errors import CommandError, JobFileError

JOB = "/p/workerqueue/vm-1.k3f9/running/job 3.conf"


@pytest.mark.parametrize(
    ("executable", "expected"),
    [
        ("./sim", ["./sim"]),
        ("python3 sim.py  --fast", ["python3", "sim.py", "--fast"]),
        ("sim 'two words' \"and three more\" a\\ b", ["sim", "two words", "and three more", "a b"]),
        ("sim --rate=2.5 a=b", ["sim", "--rate=2.5", "a=b"]),
        ("sim a~b c#d {e} 100% user@host a^b", ["sim", "a~b", "c#d", "{e}", "100%", "user@host", "a^b"]),
        ("echo done", ["echo", "done"]),
        # What stands in quotes is no syntax.
        ("grep -E 'a|b;c$' \"x & y *\" z", ["grep", "-E", "a|b;c$", "x & y *", "z"]),
        ("awk '{print $1}'", ["awk", "{print $1}"]),
        ("/opt/jürgen/sim\u00a0x", ["/opt/jürgen/sim", "x"]),
    ],
)
def test_words_are_split_as_a_shell_would_when_there_is_no_syntax(executable: str, expected: list[str]) -> None:
    assert command.words(executable) == expected


@pytest.mark.parametrize(
    "executable",
    [
        "a | b",
        "a && b",
        "a; b",
        "a < in",
        "a > out",
        "(a)",
        "a $HOME",
        "a `b`",
        "a *.dat",
        "a file?",
        "a [0-9]",
        "a\nb",
        "a ~/x",
        "~/bin/a",
        "a # why",
        'a "$HOME"',
        'a "`b`"',
        "a 'b' | c 'd'",
        # After a backslash a quote may begin nothing.
        "a \\'b | c\\'",
        "THREADS=2 a",
        "cd run",
        "exec a",
        "if a",
        ". ./env",
        "{ a",
        "! a",
    ],
)
def test_words_are_none_when_it_takes_a_shell(executable: str) -> None:
    assert command.words(executable) is None


@pytest.mark.parametrize("executable", ["sim 'open", 'sim "open', "sim \\"])
def test_words_refuse_quotes_that_do_not_end(executable: str) -> None:
    with pytest.raises(JobFileError, match="executable: no"):
        command.words(executable)


@pytest.mark.parametrize("executable", ["''", '"" x', "   "])
def test_words_refuse_an_empty_command(executable: str) -> None:
    with pytest.raises(JobFileError, match="the command is empty"):
        command.words(executable)


def test_argument_vector_ends_with_the_job_file_when_there_is_no_shell() -> None:
    assert command.argument_vector("./sim --fast", JOB) == ["./sim", "--fast", JOB]


@pytest.mark.parametrize(
    "executable",
    [
        "THREADS=2 ./sim",
        "cd run && ./sim",
        "a || b",
        "./sim > out.txt",
        "cd run && grep -E 'a|b;'",
        'X=1 grep "a|b"',
        "cd run && echo 'done'",
    ],
)
def test_argument_vector_appends_the_job_file_to_a_shell_line(executable: str) -> None:
    assert command.argument_vector(executable, JOB) == ["/bin/sh", "-c", f'{executable} "$1"', "sh", JOB]


@pytest.mark.parametrize(
    "executable",
    [
        'sim < "$1"',
        'sim "$@" > out',
        "sim $* | sort",
        "sim ${1} | sort",
        "sim $FJD_JOBFILE | sort",
        "sim ${FJD_JOBFILE} | sort",
        # The last command of a pipeline is a filter: tee would overwrite the job file.
        "sim | tee log",
        "sim|sort",
        "(a; b)",
        "{ a; b; }",
        "a; b;",
        "a &",
        "if a; then b; fi",
        "for i in 1 2; do a; done ",
        "case x in x) a;; esac",
    ],
)
def test_argument_vector_leaves_a_shell_line_alone_when_it_takes_no_argument(executable: str) -> None:
    assert command.argument_vector(executable, JOB) == ["/bin/sh", "-c", executable, "sh", JOB]


@pytest.mark.parametrize(
    ("executable", "output"),
    [
        ("X=2 printf %s", JOB),
        ("true && printf '<%s>' a", f"<a><{JOB}>"),
        ('printf "%s" "$1" | tr a-z A-Z', JOB.upper()),
        ("if true; then printf yes; fi", "yes"),
        ("for i in a b; do printf $i; done", "ab"),
        ("printf '%s.' 'a;b' \"c d\"", f"a;b.c d.{JOB}."),
        ("echo one\necho", f"one\n{JOB}\n"),
    ],
)
def test_argument_vector_does_what_it_says_when_it_is_run(executable: str, output: str) -> None:
    run = subprocess.run(command.argument_vector(executable, JOB), capture_output=True, text=True, check=True)
    assert run.stdout == output


@pytest.mark.parametrize(
    ("line", "vector"),
    [
        ("/bin/sh", ["/bin/sh", JOB]),
        ("/usr/bin/env python3", ["/usr/bin/env", "python3", JOB]),
        ("/usr/bin/env  -S python3 -u", ["/usr/bin/env", "-S python3 -u", JOB]),
    ],
)
def test_script_vector_is_what_the_kernel_makes_of_the_first_line(line: str, vector: list[str]) -> None:
    assert command.script_vector(line, JOB) == vector


def _program(path: Path, mode: int = 0o755) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return str(path)


def test_find_program_looks_in_the_directory_when_the_name_has_a_slash(tmp_path: Path) -> None:
    path = _program(tmp_path / "bin" / "sim")
    assert command.find_program("bin/sim", str(tmp_path), "") == path
    assert os.path.samefile(command.find_program("./bin/sim", str(tmp_path), ""), path)
    assert command.find_program(path, "/", "") == path


def test_find_program_takes_the_first_of_the_search_path_that_can_be_run(tmp_path: Path) -> None:
    _program(tmp_path / "a" / "sim", mode=0o644)
    (tmp_path / "b" / "sim").mkdir(parents=True)
    path = _program(tmp_path / "c" / "sim")
    _program(tmp_path / "d" / "sim")
    search_path = ":".join(str(tmp_path / folder) for folder in ("none", "a", "b", "c", "d"))
    assert command.find_program("sim", "/", search_path) == path


def test_find_program_takes_relative_folders_of_the_search_path_from_the_directory(tmp_path: Path) -> None:
    path = _program(tmp_path / "bin" / "sim")
    assert command.find_program("sim", str(tmp_path), "bin") == path
    assert os.path.samefile(command.find_program("sim", str(tmp_path / "bin"), ""), path)


def test_find_program_says_not_found_when_it_is_nowhere(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="command not found in /a:/b") as caught:
        command.find_program("sim", str(tmp_path), "/a:/b")
    assert (caught.value.exit_code, caught.value.path) == (127, "sim")


@pytest.mark.parametrize(
    ("name", "reason", "exit_code"),
    [("none", "no such file", 127), ("folder", "is a directory", 126), ("plain", "permission denied", 126)],
)
def test_find_program_names_the_path_tried_when_it_cannot_be_run(
    name: str, reason: str, exit_code: int, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    _program(tmp_path / "plain", mode=0o644)
    with pytest.raises(CommandError, match=reason) as caught:
        command.find_program(f"./{name}", str(tmp_path), "")
    assert caught.value.exit_code == exit_code
    assert caught.value.path == f"{tmp_path}/./{name}"
