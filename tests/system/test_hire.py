"""recruiter hire and recruiter list: workers come up, and are seen."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from rig import PATIENCE_SECONDS, Rig, Terminal, command_folder, is_running, need_tmux, wait_until

CORES = len(os.sched_getaffinity(0))


def test_hire_starts_as_many_as_it_is_told(rig: Rig) -> None:
    total = 0
    for words, count in [((), max(1, CORES - 1)), (("3",), 3), (("100%",), CORES), (("1%",), 1)]:
        result = rig.run("recruiter", "hire", *words, "--backend", "local")
        total += count
        plural = "" if count == 1 else "s"
        assert (result.code, result.err) == (0, "")
        assert result.out == f"[FJD] Hired {count} worker{plural} on localhost.\n"
        # Ready is when it can be given jobs and can be found, not some time later.
        assert len(rig.slots()) == total
    assert len({rig.identity(slot)["worker"] for slot in rig.slots()}) == total


@pytest.mark.parametrize("count", ["0", "-1", "x", "0%", "1.5", "", "%", "99999999"])
def test_hire_refuses_what_is_no_number_of_workers(rig: Rig, count: str) -> None:
    result = rig.run("recruiter", "hire", count)
    assert (result.code, result.out) == (2, "")
    assert "not a number of workers" in result.complaint
    assert os.listdir(rig.path) == ["fjd.conf"]


def test_hire_says_how_to_get_tmux_when_it_is_missing(rig: Rig) -> None:
    empty = rig.folder / "bin"
    empty.mkdir()
    # What `#!/usr/bin/env python3` of a checkout needs.
    (empty / "python3").symlink_to(sys.executable)
    result = rig.run(str(command_folder() / "recruiter"), "hire", "2", env={"PATH": str(empty)})
    assert (result.code, result.out) == (75, "")
    assert "tmux" in result.complaint
    assert "apt install tmux" in result.complaint
    assert "--backend local" in result.complaint
    assert not rig.slots()


@pytest.mark.parametrize("folder", ["workerqueue", "jobrecord/logs", "jobrecord/journal"])
def test_hire_refuses_a_project_that_lacks_a_directory(rig: Rig, folder: str) -> None:
    # A directory that is to lie on another disk, which is not mounted.
    (rig.path / "jobrecord").mkdir()
    (rig.path / folder).symlink_to("/nonexistent/scratch")
    result = rig.run("recruiter", "hire", "2", "--backend", "local")
    assert (result.code, result.out) == (75, "")
    assert folder in result.complaint
    rig.check_nothing_left()


@pytest.mark.parametrize("backend", ["tmux", "local"])
def test_hire_shows_the_last_lines_of_a_worker_that_does_not_come_up(rig: Rig, backend: str) -> None:
    if backend == "tmux":
        need_tmux()
    # A Python that has what the recruiter needs, and breaks when it is to run a worker.
    site = rig.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys\nif 'fjd.cli.worker' in sys.orig_argv:\n    raise SystemExit('libssl.so.3: no such file')\n"
    )
    start = time.monotonic()
    result = rig.run("recruiter", "hire", "2", "--backend", backend, env={"PYTHONPATH": str(site)})
    assert (result.code, result.out) == (75, "")
    assert "libssl.so.3: no such file" in result.complaint
    assert "ended before it was ready" in result.complaint
    assert time.monotonic() - start < 10, "it waited for workers that had ended"
    assert not [name for name in rig.record("logs") if name.endswith(".log")]
    rig.check_nothing_left()


def test_hire_keeps_nothing_of_the_environment_on_the_disk(rig: Rig) -> None:
    folder = rig.folder / "tmp"
    folder.mkdir()
    rig.hire(2, env={"TMPDIR": str(folder), "SECRET": "xyzzy-12345"})
    assert os.listdir(folder) == []
    for path in rig.path.rglob("*"):
        assert not path.is_file() or b"xyzzy-12345" not in path.read_bytes()


def test_hire_of_many_workers_in_tmux_is_quick(rig: Rig) -> None:
    need_tmux()
    start = time.monotonic()
    rig.hire(8, backend="tmux")
    seconds = time.monotonic() - start
    print(f"hire 8: {seconds:.2f} s")
    assert seconds < 10
    sockets = list(rig.tmux_folder.glob("*/fjd-*"))
    assert len(sockets) == 1, "not one server of the project's own"
    sessions = rig.run("tmux", "-L", sockets[0].name, "list-sessions", "-F", "#{session_name}").out.splitlines()
    assert len(sessions) == 8
    start = time.monotonic()
    result = rig.run("recruiter", "fire")
    print(f"fire 8: {time.monotonic() - start:.2f} s")
    assert result.out == "[FJD] Fired 8 workers on localhost.\n"
    rig.check_nothing_left()


def test_workers_get_the_environment_of_whoever_hires(rig: Rig) -> None:
    need_tmux()
    odd = 'a b\n"c" $HOME `d` é #{e} %f \\g'
    # The first of them starts the tmux server, the second finds it running with the environment of the first.
    for number in (1, 2):
        path = f"{rig.folder}/tools{number}:{rig.environment['PATH']}"
        rig.hire(1, backend="tmux", env={"MARK": f"mark{number}", "ODD": odd, "PATH": path, "FJD_DIR": str(rig.path)})
    rig.dispatcher()
    meet = [
        f"touch {rig.folder}/ready-$MARK",
        *(f"until [ -e {rig.folder}/ready-mark{number} ]; do sleep .01; done" for number in (1, 2)),
    ]
    for number in (1, 2):
        rig.drop_script(f"job{number}.sh", *meet, 'printf "%s\\n%s\\n%s\\n%s" "$MARK" "$PATH" "$FJD_DIR" "$ODD"')
    outputs = []
    for number in (1, 2):
        rig.wait_done(f"job{number}")
        outputs.append(rig.output(f"job{number}").decode().split("\n", 3))
    for number, (mark, path, fjd_dir, said) in enumerate(sorted(outputs), 1):
        assert mark == f"mark{number}"
        assert path == f"{rig.folder}/tools{number}:{rig.environment['PATH']}"
        assert said == odd
        assert fjd_dir == ""


def test_list_shows_who_works_on_what(rig: Rig) -> None:
    assert rig.run("recruiter", "list").out == "[FJD] No workers. Hire some: recruiter hire\n"
    rig.hire(2)
    rig.dispatcher()
    rig.drop_script("train.sh", rig.tell_pid("train"), rig.await_flag(rig.flag("go")))
    rig.wait_running("train")
    result = rig.run("recruiter", "list")
    assert (result.code, result.err) == (0, "")
    header, *rows = result.out.splitlines()
    assert header.split() == ["WORKER", "HOST", "STATE", "JOB", "FOR", "WATCH"]
    host = os.uname().nodename.split(".")[0]
    assert all(re.match(rf"\S+ +{host} +(idle|busy) ", row) for row in rows)
    assert sorted(row.split()[2] for row in rows) == ["busy", "idle"]
    (busy,) = (row for row in rows if " busy " in row)
    assert re.search(r" train\.[0-9a-f]{12} +\d+s +tail -f /", busy)
    (idle,) = (row for row in rows if " idle " in row)
    assert re.search(r" - +- +tail -f /", idle)
    # What it says can be typed as it is.
    log = busy[busy.index("tail -f ") + 8 :]
    assert "train" in Path(log).read_text()
    rig.flag("go").touch()
    rig.wait_done("train")


def test_list_tells_how_to_watch_a_worker_in_tmux(rig: Rig) -> None:
    need_tmux()
    (pid,) = rig.hire(1, backend="tmux")
    rig.dispatcher()
    rig.drop_script("train.sh", rig.tell_pid("train"), rig.await_flag(rig.flag("go")))
    rig.wait_running("train")
    row = rig.run("recruiter", "list").out.splitlines()[1]
    terminal = Terminal(rig)
    # In a terminal of 80 columns, inside another tmux, by somebody who pastes it.
    terminal.type(row[row.index("tmux ") :])
    terminal.wait_for("started")
    rig.flag("go").touch()
    screen = terminal.wait_for("succeeded in")
    assert re.search(r"\d\d:\d\d:\d\d train\.[0-9a-f]{12} succeeded in \d+\.\d\d s", screen.replace("\n", "")), screen
    # The way out that the status line names; the worker stays.
    assert "detach: Ctrl-b d" in screen
    terminal.press("C-b", "d")
    terminal.wait_for("[detached")
    assert is_running(pid)


def test_workers_survive_the_terminal_that_hired_them(rig: Rig) -> None:
    terminal = Terminal(rig)
    terminal.type("recruiter hire 1; recruiter hire 1 --backend local; echo both")
    terminal.wait_for("\nboth")
    pids = [rig.identity(slot)["pid"] for slot in rig.slots()]
    assert len(pids) == 2, terminal.screen()
    terminal.kill()
    # Each of them has to do some work, or it could be dying just now.
    rig.dispatcher()
    meet = [f"touch {rig.folder}/here-$FJD_ID", f"until [ $(ls {rig.folder}/here-* | wc -l) = 2 ]; do sleep .01; done"]
    for name in ("a", "b"):
        rig.drop_script(f"{name}.sh", *meet)
    for name in ("a", "b"):
        assert rig.wait_done(name)["outcome"] == "succeeded"
    assert all(map(is_running, pids))


def test_workers_keep_a_readable_log(rig: Rig) -> None:
    rig.hire(1)
    rig.drop_command("good.conf", "true")
    rig.drop_script("bad.sh", "exit 3")
    rig.dispatch(code=1)
    rig.run("recruiter", "fire")
    (name,) = (name for name in rig.record("logs") if name.endswith(".log"))
    log = (rig.path / "jobrecord/logs" / name).read_text()
    for line in (r"is ready in", r"good\.\w+ started: true", r"good\.\w+ succeeded", r"bad\.\w+ failed: exit code 3"):
        assert re.search(rf"(?m)^\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d .*{line}", log), log
    assert "has left" in log
    rig.check(drained=True)


def test_worker_in_the_foreground_leaves_after_its_job_on_ctrl_c(rig: Rig) -> None:
    terminal = Terminal(rig)
    terminal.type(f"cd {rig.path}; clear; fjd-worker --name hand")
    terminal.wait_for("is ready")
    rig.dispatcher()
    rig.drop_script("job.sh", rig.tell_pid("job"), rig.await_flag(rig.flag("go")))
    pid = rig.wait_running("job")
    terminal.press("C-c")
    terminal.wait_for("once more to stop it")
    assert is_running(pid), "the job got the signal of its worker's terminal"
    rig.flag("go").touch()
    terminal.wait_for("has left")
    assert rig.wait_done("job")["outcome"] == "succeeded"
    wait_until(lambda: not rig.slots(), PATIENCE_SECONDS, rig.report)


def test_hire_works_from_a_project_with_an_odd_path(rig: Rig) -> None:
    need_tmux()
    odd = rig.folder / 'my $project\'s "dir"; é #{x} %d'
    shutil.move(rig.path, odd)
    rig.path = odd
    rig.drop_script("job.sh", 'printf %s "$FJD_PROJECT_DIR"')
    rig.hire(1, backend="tmux")
    rig.hire(1)
    rig.dispatch()
    assert rig.output("job").decode() == str(odd)
    for row in rig.run("recruiter", "list").out.splitlines()[1:]:
        if "tail -f" in row:
            command = row[row.index("tail -f") :].replace("tail -f", "head -1")
            assert "is ready in" in rig.run("sh", "-c", command).out, row
    assert rig.run("recruiter", "fire").out == "[FJD] Fired 2 workers on localhost.\n"
    rig.check_nothing_left()
