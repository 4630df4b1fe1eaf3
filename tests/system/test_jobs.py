"""What a job gets, what is kept of it, and what the journal says: many jobs of all kinds, run once for all tests."""

from __future__ import annotations

import datetime
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig import PATIENCE_SECONDS, Rig, is_running, rigs, stays_so, wait_until

MB = 1_000_000
# 50 MB in lines that differ, so that nothing missing, doubled or out of order goes unseen.
BIG = "import sys\nfor n in range(500_000):\n    sys.stdout.write(f'{n:099d}\\n')\n"
ODD_NAMES = {
    "spaces": "my job  1.sh",
    "newline": "two\nlines.sh",
    "quotes": 'it\'s "quoted" `now`.sh',
    "shell": "$(touch x);rm -rf *|&.sh",
    "long": "n" * 247 + ".sh",
    "long without ending": "ü" * 125,
    "not utf-8": os.fsdecode(b"caf\xe9-\xff.sh"),
    "dash": "-rf.sh",
    "no ending": "plain",
    "like a slot's file": "alive",
    "like another": "running",
    "like an order": "fire",
    "reason": "job.sh.reason",
    "like an id": "run.20261122.sh",
    "escape": "a\x1b[31mred\x07.sh",
    "backslash": "a\\nb.sh",
}


def ini(executable: str, **keys: object) -> str:
    return "[control]\n" + "".join(f"{key}: {value}\n" for key, value in {"executable": executable, **keys}.items())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A project in which all the jobs have run."""
    for rig in rigs(tmp_path_factory.mktemp("jobs")):
        drop_all(rig)
        rig.hire(2, env={"MARK": "from the hirer"})
        rig.dispatch(code=1)
        rig.run("recruiter", "fire")
        rig.check(drained=True)
        yield rig


def drop_all(rig: Rig) -> None:
    tools = rig.path / "tools"
    tools.mkdir()
    programs = {
        "args.sh": '#!/bin/sh\nfor word; do printf "<%s>" "$word"; done\n',
        "no-x-bit.sh": "#!/bin/sh\ntrue\n",
        "no-interpreter.sh": "#!/nonexistent/python9\n",
        "no-shebang": "echo run by sh\n",
        "big.py": BIG,
    }
    for name, text in programs.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o644 if name == "no-x-bit.sh" else 0o755)
    python = sys.executable
    commands = {
        "arguments": "tools/args.sh one 'two three' \"four\" fi\\ ve",
        "environment": "sh -c env",
        "stdin": "sh -c 'wc -c; readlink /proc/self/fd/0'",
        "equals": "tools/args.sh a=b",
        "pipe": "echo a b c | tr a-z A-Z;",
        "assignment": "WORD=here sh -c 'echo $WORD $0'",
        "shell-argument": 'cat $1 | wc -l; test -n "$1"',
        "and": "cd tools && ./args.sh",
        "redirect": f"echo to a file > {rig.folder}/redirected",
        "glob": "ls tools/*.py",
        "builtin": "exit 7",
        "shebang-less": "tools/no-shebang",
        "missing": "nonexistent-program --now",
        "missing-path": "./tools/nonexistent",
        "not-executable": "tools/no-x-bit.sh",
        "directory": "./tools",
        "interpreter": "tools/no-interpreter.sh",
        "shell-missing": "nonexistent-program | cat",
        "exit": "sh -c 'exit 3'",
        "big": f"{python} tools/big.py",
        "prints": "sh -c 'printf 12345; printf 123 >&2'",
        "silent": "true",
        "background": f"sh -c 'sleep 1000 & echo $! > {rig.folder}/background'",
        "daemon": f"sh -c 'setsid sh -c \"trap : HUP; echo \\$\\$ > {rig.folder}/daemon; sleep 1000\" & sleep .2'",
        "path": "printenv PATH",
        "pwd": "pwd",
    }
    for name, executable in commands.items():
        rig.drop_command(f"{name}.conf", executable)
    rig.drop(
        "burner.conf", ini(f"{python} -c 'import time\nwhile time.process_time() < .5: pass'".replace("\n", ";\n "))
    )
    rig.drop_script("burner2.sh", f"{python} - <<'END'", "import time", "while time.process_time() < 0.5: pass", "END")
    rig.drop("memory.sh", f"#!{python}\nx = b'x' * {100 * MB}\n")
    binary = bytes(range(256)) * 100
    rig.drop("binary.sh", f"#!{python}\nimport sys\nsys.stdout.buffer.write(bytes(range(256)) * 100)\n")
    assert len(binary) == 25_600
    rig.drop_script("session.sh", "ps -o sid= -p $$", "echo $$", "tty")
    rig.drop_script("kills-itself.sh", "kill -9 $$")
    rig.drop_script("segfault.sh", "kill -SEGV $$")
    rig.drop_script("closes.sh", "exec >&- 2>&-", "sleep .3", f"touch {rig.folder}/after-closing")
    rig.drop("folders.conf", ini("sh -c 'pwd; cat $0'", workdir="out/run 1", logfile="logs/deep/a.log", nice=5))
    rig.drop("absolute.conf", ini("pwd", workdir=rig.folder / "elsewhere/x", logfile=rig.folder / "elsewhere/y/z.log"))
    rig.drop("blocked.conf", ini("pwd", workdir="tools/args.sh/x"))
    rig.drop("nice.conf", ini("sh -c nice", nice=11))
    rig.drop("titled.conf", ini("printenv FJD_JOB", name="A nicer name"))
    rig.drop("fjd-section.conf", "[fjd]\nexecutable = echo equals\n[params]\na: %(b)s\n[more]\nexecutable: false\n")
    rig.drop("crlf.conf", "[control]\r\nexecutable: tools/args.sh x\r\n")
    rig.drop(
        "bom.conf", "\ufeff[Control]\n".replace("Control", "control") + "; comment\n# other\nEXECUTABLE: echo bom\n"
    )
    rig.drop("no-newline.conf", "[control]\nexecutable: echo no newline")
    rig.drop("python.py", "#!/usr/bin/env python3\nimport sys\nprint(len(sys.argv), sys.argv[-1])\n")
    os.chmod(rig.path / "jobqueue/python.py", 0o755)
    rig.drop("without-x.sh", "#!/bin/sh -e\nfalse\necho not reached\n")
    rig.drop("bad-interpreter.sh", "#!/nonexistent/interpreter -x\n")
    for number, name in enumerate(ODD_NAMES.values()):
        rig.drop(name, f"#!/bin/sh\n# {number}\necho odd {number}\n")


def said(rig: Rig, job: str, ending: str = ".out") -> str:
    return rig.output(job, ending).decode()


def test_command_runs_without_a_shell_and_gets_its_job_file_last(ran: Rig) -> None:
    record = ran.outcome("arguments")
    *words, path = re.findall("<(.*?)>", said(ran, "arguments"))
    assert words == ["one", "two three", "four", "fi ve"]
    assert re.fullmatch(rf"{ran.path}/workerqueue/[^/]+/running/{record['file']}", path)
    assert said(ran, "equals").startswith("<a=b><")
    assert said(ran, "crlf").startswith("<x></")


def test_command_gets_its_job_in_its_environment(ran: Rig) -> None:
    lines = dict(line.split("=", 1) for line in said(ran, "environment").splitlines() if "=" in line)
    record = ran.outcome("environment")
    assert lines["FJD_JOB"] == "environment"
    assert lines["FJD_ID"] == record["id"]
    assert lines["FJD_ATTEMPT"] == "1"
    assert lines["FJD_PROJECT_DIR"] == str(ran.path)
    assert lines["FJD_WORKER"] == record["worker"]
    assert lines["MARK"] == "from the hirer"
    assert said(ran, "path").strip() == ran.environment["PATH"]
    assert lines.get("PYTHONPATH") == os.environ.get("PYTHONPATH")


def test_stdin_is_empty(ran: Rig) -> None:
    assert said(ran, "stdin").split() == ["0", "/dev/null"]


def test_job_has_a_session_of_its_own(ran: Rig) -> None:
    session, pid, terminal = said(ran, "session").splitlines()
    assert session.strip() == pid
    assert terminal == "not a tty"


def test_job_runs_in_the_project_by_default(ran: Rig) -> None:
    assert said(ran, "pwd").strip() == str(ran.path)


def test_shell_syntax_takes_a_shell(ran: Rig) -> None:
    assert said(ran, "pipe") == "A B C\n"
    assert said(ran, "assignment").split()[0] == "here"
    assert said(ran, "shell-argument").strip() == "2"
    assert re.fullmatch(r"</.*/running/and\.\w+\.conf>", said(ran, "and"))
    assert (ran.folder / "redirected").read_text().startswith("to a file")
    assert "tools/big.py" in said(ran, "glob")
    assert ran.outcome("builtin")["exit_code"] == 7
    assert "run by sh" in said(ran, "shebang-less")


@pytest.mark.parametrize(
    ("job", "code", "tried"),
    [
        ("missing", 127, "nonexistent-program"),
        ("missing-path", 127, "{path}/./tools/nonexistent"),
        ("not-executable", 126, "{path}/tools/no-x-bit.sh"),
        ("directory", 126, "{path}/./tools"),
        ("interpreter", 127, "{path}/tools/no-interpreter.sh"),
        ("bad-interpreter", 127, "/nonexistent/interpreter"),
        ("blocked", 126, "{path}/tools/args.sh/x"),
    ],
)
def test_attempt_fails_with_the_path_tried_when_nothing_can_be_run(ran: Rig, job: str, code: int, tried: str) -> None:
    record = ran.outcome(job)
    assert (record["outcome"], record["exit_code"], record["signal"]) == ("failed", code, None)
    assert tried.format(path=ran.path) in record["reason"]
    assert "\n" not in record["reason"]
    assert record["file"] in ran.record("failed")
    if job == "missing":
        assert ran.environment["PATH"] in record["reason"]


def test_shell_says_itself_what_it_does_not_find(ran: Rig) -> None:
    assert "nonexistent-program" in said(ran, "shell-missing", ".err")


def test_exit_codes_and_signals_are_recorded(ran: Rig) -> None:
    for job, code, number in [
        ("exit", 3, None),
        ("kills-itself", None, 9),
        ("segfault", None, 11),
        ("silent", 0, None),
    ]:
        record = ran.outcome(job)
        assert (record["exit_code"], record["signal"]) == (code, number)
        assert record["outcome"] == ("succeeded" if code == 0 else "failed")


def test_journal_has_every_field(ran: Rig) -> None:
    host = os.uname().nodename.split(".")[0]
    for record in ran.journal():
        assert re.fullmatch("[a-f][0-9a-f]{11}", record["id"])
        assert record["attempt"] == 1
        assert record["host"] == host
        assert re.fullmatch(rf"{host}-\d+\.\w+", record["worker"])
        assert record["command"]
        start, end = (datetime.datetime.fromisoformat(record[key]) for key in ("start", "end"))
        assert start.utcoffset() == end.utcoffset() == datetime.timedelta(0)
        now = datetime.datetime.now(datetime.UTC)
        assert datetime.timedelta(0) <= end - start < datetime.timedelta(minutes=2)
        assert abs(now - end) < datetime.timedelta(minutes=10)
        if not record["reason"]:
            assert abs((end - start).total_seconds() - record["seconds"]) < 2
            assert record["peak_memory_bytes"] > MB
        for key in ("user_seconds", "system_seconds", "stdout_bytes", "stderr_bytes"):
            assert record[key] >= 0
    assert ran.outcome("exit")["command"] == "sh -c 'exit 3'"


def test_journal_measures_what_a_job_used(ran: Rig) -> None:
    # Also of a child that it waited for, not only of its first process.
    for job in ("burner", "burner2"):
        record = ran.outcome(job)
        assert record["outcome"] == "succeeded", record
        assert 0.45 < record["user_seconds"] + record["system_seconds"] < 5
        assert record["seconds"] > 0.45
    assert 100 * MB < ran.outcome("memory")["peak_memory_bytes"] < 200 * MB
    assert ran.outcome("silent")["peak_memory_bytes"] < 60 * MB
    record = ran.outcome("prints")
    assert (record["stdout_bytes"], record["stderr_bytes"]) == (5, 3)
    assert (said(ran, "prints"), said(ran, "prints", ".err")) == ("12345", "123")


def test_silent_job_leaves_no_output_files(ran: Rig) -> None:
    record = ran.outcome("silent")
    assert not ran.log_path(record).exists()
    assert not ran.log_path(record, ".err").exists()


def test_big_output_is_kept_whole(ran: Rig) -> None:
    wanted = hashlib.sha256()
    for n in range(500_000):
        wanted.update(f"{n:099d}\n".encode())
    assert ran.outcome("big")["stdout_bytes"] == 50 * MB
    assert hashlib.sha256(ran.output("big")).digest() == wanted.digest()


def test_binary_output_is_kept_as_it_is(ran: Rig) -> None:
    assert ran.output("binary") == bytes(range(256)) * 100


def test_job_that_closes_its_outputs_is_waited_for(ran: Rig) -> None:
    assert ran.outcome("closes")["outcome"] == "succeeded"
    assert ran.outcome("closes")["seconds"] >= 0.3
    assert (ran.folder / "after-closing").exists()


@pytest.mark.parametrize("job", ["background", "daemon"])
def test_what_a_job_leaves_running_is_stopped(ran: Rig, job: str) -> None:
    assert not is_running(int((ran.folder / job).read_text()))
    assert ran.outcome(job)["outcome"] == "succeeded"


def test_workdir_and_the_folder_of_logfile_are_made(ran: Rig) -> None:
    record = ran.outcome("folders")
    assert record["outcome"] == "succeeded", record
    assert said(ran, "folders").startswith(f"{ran.path}/out/run 1\n[control]")
    # As for any program, a relative name is meant from the directory that the job runs in.
    assert (ran.path / "out/run 1/logs/deep").is_dir()
    assert said(ran, "absolute").strip() == str(ran.folder / "elsewhere/x")
    assert (ran.folder / "elsewhere/y").is_dir()


def test_nice_is_obeyed(ran: Rig) -> None:
    assert said(ran, "nice") == "11\n"


def test_name_is_what_the_job_is_called(ran: Rig) -> None:
    record = ran.outcome("A nicer name")
    assert ran.log_path(record).read_text() == "A nicer name\n"


def test_job_files_are_read_as_ini(ran: Rig) -> None:
    assert said(ran, "fjd-section").startswith("equals")
    assert said(ran, "bom").startswith("bom")
    assert said(ran, "no-newline").startswith("no newline")


def test_script_is_a_job_with_and_without_x_bit(ran: Rig) -> None:
    count, path = said(ran, "python").split(maxsplit=1)
    assert count == "1"
    assert path.strip().endswith(f"/running/{ran.outcome('python')['file']}")
    assert (ran.outcome("without-x")["exit_code"], said(ran, "without-x")) == (1, "")


@pytest.mark.parametrize("kind", ODD_NAMES)
def test_odd_name_is_run_and_its_output_is_found(ran: Rig, kind: str) -> None:
    name = ODD_NAMES[kind]
    number = list(ODD_NAMES).index(kind)
    data = ran.submitted[name]
    (found,) = (
        record
        for record in ran.journal()
        if (path := ran.path / "jobrecord/done" / record["file"]).exists() and path.read_bytes() == data
    )
    assert found["outcome"] == "succeeded"
    assert name.startswith(found["job"]) or found["job"] == name
    assert ran.log_path(found).read_text() == f"odd {number}\n"


def test_output_is_there_while_the_job_runs(rig: Rig) -> None:
    rig.hire(1)
    dispatcher = rig.start("dispatcher")
    rig.drop_script("job.sh", "echo early", "echo trouble >&2", rig.await_flag(rig.flag("go")), "echo late")
    logs = rig.path / "jobrecord/logs"
    wait_until(lambda: len(list(logs.glob("job.*"))) == 2, PATIENCE_SECONDS, rig.report)
    out, err = next(logs.glob("job.*.out")), next(logs.glob("job.*.err"))
    wait_until(lambda: out.read_text() == "early\n" and err.read_text() == "trouble\n", PATIENCE_SECONDS, rig.report)
    assert len(rig.running()) == 1
    rig.flag("go").touch()
    assert dispatcher.wait().code == 0
    assert out.read_text() == "early\nlate\n"


def test_job_that_nobody_can_hold_up_gets_its_result_after_what_it_left_is_stopped(rig: Rig) -> None:
    rig.hire(1)
    pid_path = rig.folder / "left"
    rig.drop_script("job.sh", f"sh -c 'trap \"\" TERM HUP; echo $$ >{pid_path}; while :; do sleep 1; done' &", "exit 5")
    rig.dispatch(code=1)
    assert rig.outcome("job")["exit_code"] == 5
    # Its own time counts, and not the grace that others got.
    assert rig.outcome("job")["seconds"] < 0.45
    if pid_path.exists():
        assert not is_running(int(pid_path.read_text()))


def test_files_of_fjd_are_for_their_owner_only(rig: Rig) -> None:
    def modes() -> dict[Path, int]:
        found = {}
        for path in rig.path.rglob("*"):
            try:
                found[path] = path.lstat().st_mode & 0o777
            except FileNotFoundError:
                continue
        return found

    os.umask(os.umask(0o000))
    rig.start("dispatcher", "--stay", umask=0o000)
    wait_until(lambda: (rig.path / "jobrecord/logs").exists(), PATIENCE_SECONDS, rig.report)
    result = rig.run("recruiter", "hire", "2", "--backend", "local", umask=0o000)
    assert result.code == 0
    rig.drop_script("job.sh", rig.tell_pid("job"), "echo out", "echo err >&2", rig.await_flag(rig.flag("go")))
    rig.drop("bad.conf", "no job")
    rig.wait_running("job")
    rig.run("recruiter", "fire", umask=0o000)
    wait_until(lambda: "bad.conf.reason" in rig.record("rejected"), PATIENCE_SECONDS, rig.report)
    users = {"fjd.conf", "job.sh", "bad.conf"}
    seen = modes()
    rig.flag("go").touch()
    rig.wait_done("job")
    seen |= modes()
    kinds = {path.name for path in seen}
    assert {"alive", "claim", "fire", "running", "jobqueue", "bad.conf.reason"} <= kinds
    assert any(name.endswith(".jsonl") for name in kinds)
    assert any(name.endswith(".out") for name in kinds)
    for path, mode in seen.items():
        if path.suffix == ".sh" or path.name in users:
            continue
        wanted = 0o600 if path.suffix or path.name in ("alive", "claim", "fire") else 0o700
        wanted = 0o700 if path.parent.name == "workerqueue" else wanted
        if path == rig.path / "jobqueue":
            wanted = 0o700
        assert mode == wanted, f"{path} has {mode:o}"


def test_idle_workers_and_dispatcher_use_no_cpu(rig: Rig) -> None:
    rig.hire(2)
    rig.dispatcher()

    def ticks() -> int:
        total = 0
        for pid in rig.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total

    # Until they have settled.
    wait_until(lambda: len(rig.processes()) == 3, PATIENCE_SECONDS, rig.report)
    stays_so(lambda: True, 0.3, rig.report)
    before = ticks()
    stays_so(lambda: True, 1.5, rig.report)
    assert ticks() - before <= 4, "in hundredths of a second"
