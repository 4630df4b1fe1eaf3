"""dispatcher: waits, ends, sums up; what it shows on a terminal and what into a pipe."""

from __future__ import annotations

import os
import re
import signal

from rig import PATIENCE_SECONDS, Result, Rig, Terminal, stays_so, wait_until

PLAIN = ["[FJD] Dispatcher started.", "[FJD] Found some jobs to dispatch", "[FJD] No more jobs to dispatch."]


def test_dispatcher_waits_for_jobs_that_never_were(rig: Rig) -> None:
    rig.hire(1)
    dispatcher = rig.start("dispatcher")
    wait_until(lambda: "started" in dispatcher.out, PATIENCE_SECONDS, rig.report)
    stays_so(lambda: dispatcher.process.poll() is None, 0.5, rig.report)
    rig.drop_command("job.conf", "true")
    result = dispatcher.wait()
    assert (result.code, result.out.splitlines(), result.err) == (0, PLAIN, "")
    # So no second dispatcher waits for ever for what the first has done already.
    assert rig.dispatch("--no-wait").out.splitlines() == [PLAIN[0], PLAIN[-1]]


def test_dispatcher_prints_plain_lines_into_a_pipe(rig: Rig) -> None:
    rig.hire(2)
    for n in range(50):
        rig.drop_command(f"job{n}.conf", "true")
    result = rig.dispatch()
    assert result.out.splitlines() == PLAIN
    assert "\x1b" not in result.out
    assert result.err == ""


def test_dispatcher_does_not_mind_when_nobody_reads_on(rig: Rig) -> None:
    rig.hire(1)
    rig.drop_command("job.conf", "true")
    result = rig.run("sh", "-c", "dispatcher | head -1")
    assert result == Result(0, "[FJD] Dispatcher started.\n", "")
    rig.run("dispatcher", "--no-wait")
    rig.wait_done("job")


def test_two_dispatchers_serve_one_project(rig: Rig) -> None:
    rig.hire(2)
    runs = rig.folder / "runs"
    dispatchers = [rig.start("dispatcher") for _ in range(2)]
    # One that comes when all is done waits for more.
    wait_until(lambda: all("started" in dispatcher.out for dispatcher in dispatchers), PATIENCE_SECONDS, rig.report)
    for n in range(60):
        rig.drop_script(f"job{n}.sh", f"echo $FJD_ID >>{runs}")
    for dispatcher in dispatchers:
        result = dispatcher.wait()
        assert (result.code, result.err) == (0, ""), rig.report()
        assert result.out.splitlines()[-1] == PLAIN[-1]
    assert len(set(runs.read_text().split())) == len(runs.read_text().split()) == 60
    rig.run("recruiter", "fire")
    rig.check(drained=True)


def test_dispatcher_sums_up_what_failed(rig: Rig) -> None:
    rig.hire(2)
    for n in range(4):
        rig.drop_script(f"loud{n}.sh", "echo said on stdout", f"echo trouble {n} >&2", "exit 3")
    rig.drop_script("talks.sh", "echo only on stdout", "exit 4")
    rig.drop_script("silent.sh", "kill -9 $$")
    rig.drop_command("missing.conf", "nonexistent-program --x")
    rig.drop_script("good.sh", "true")
    result = rig.dispatch(code=1)
    assert result.out.splitlines() == PLAIN
    lines = result.err.splitlines()
    assert lines[0] == "[FJD] 7 of 8 jobs failed:"
    named = lines[1:6]
    assert lines[6] == "[FJD]   and 2 more"
    assert "jobrecord/failed/" in lines[7]
    assert len(lines) == 8
    for line in named:
        match = re.fullmatch(r"\[FJD\]   (\w+) \((.+)\): (.+)", line)
        assert match, line
        job, how, where = match.groups()
        if job.startswith("loud"):
            assert how == "exit code 3"
            assert (rig.path / where).read_text() == f"trouble {job[4:]}\n"
        elif job == "talks":
            assert (rig.path / where).read_text() == "only on stdout\n"
        elif job == "silent":
            assert (how, where) == ("signal 9", "it printed nothing")
        else:
            assert "nonexistent-program" in how
    # What it says to do: each runs again, as the second attempt, and its history stays.
    for name in rig.record("failed"):
        os.rename(rig.path / "jobrecord/failed" / name, rig.path / "jobqueue" / name)
    assert "7 of 7 jobs failed" in rig.dispatch(code=1).err
    assert [line["attempt"] for line in rig.outcomes("talks")] == [1, 2]
    rig.check()


def test_dispatcher_forgets_a_failure_that_was_mended_meanwhile(rig: Rig) -> None:
    rig.hire(1)
    blocker = rig.flag("go")
    rig.drop_script("a.sh", "[ $FJD_ATTEMPT = 2 ]")
    rig.drop_script("b.sh", rig.await_flag(blocker))
    dispatcher = rig.start("dispatcher")
    wait_until(lambda: rig.record("failed"), PATIENCE_SECONDS, rig.report)
    (name,) = rig.record("failed")
    os.rename(rig.path / "jobrecord/failed" / name, rig.path / "jobqueue" / name)
    blocker.touch()
    assert dispatcher.wait().code == 0


def test_dispatcher_stays_when_asked_and_ends_on_sigint(rig: Rig) -> None:
    rig.hire(1)
    dispatcher = rig.dispatcher()
    for name in ("first", "second"):
        rig.drop_command(f"{name}.conf", "true")
        rig.wait_done(name)
        stays_so(lambda: dispatcher.process.poll() is None, 0.3, rig.report)
    dispatcher.process.send_signal(signal.SIGINT)
    result = dispatcher.wait()
    # Nobody is there who could be asked.
    assert (result.code, result.err) == (130, "")
    assert "Fire" not in result.out
    assert len(rig.slots()) == 1


def live_lines(screen: str) -> list[str]:
    return [line for line in screen.splitlines() if re.search(r"\d+ queued", line)]


def test_dispatcher_shows_one_live_line_on_a_terminal(rig: Rig) -> None:
    rig.hire(2)
    # Enough for numbers of four digits; the screen is 80 columns wide.
    for n in range(1500):
        (rig.path / f"jobqueue/job{n}.sh").write_text("#!/bin/sh\nsleep .03\n")
    for n in range(30):
        rig.drop_script(f"a-bad{n}.sh", "exit 1")
    terminal = Terminal(rig)
    terminal.type('dispatcher; echo "exit code $?"')
    terminal.wait_for("running")
    number = r"(\d+) queued +(\d+) running +(\d+) done +(\d+) failed +([\d.]+)/s +(?:\d+[hms])+ left"
    seen = set()

    def watch() -> bool:
        lines = live_lines(terminal.screen(history=True))
        assert len(lines) <= 1, f"it scrolls: {lines}"
        match = re.search(number, lines[0]) if lines else None
        if match:
            seen.add(match.groups())
        return len(seen) >= 5

    wait_until(watch, PATIENCE_SECONDS, lambda: f"{seen}\n{terminal.screen()}")
    assert any(int(groups[0]) >= 1000 for groups in seen), "the numbers were not put to the test"
    assert any(groups[1] in "12" for groups in seen)
    wait_until(
        lambda: any(int(groups[2]) > 20 and int(groups[3]) == 30 for groups in seen) or (watch() and False),
        PATIENCE_SECONDS,
        lambda: f"{seen}\n{terminal.screen()}",
    )
    # No by default: Return alone, and the workers stay.
    terminal.press("C-c")
    terminal.wait_for("Fire the 2 workers on localhost, too? [y/N]")
    terminal.press("Enter")
    screen = terminal.wait_for("exit code 130")
    assert len(rig.slots()) == 2
    assert "30 of" in screen
    assert terminal.screen(history=True).count("[y/N]") == 1
    assert terminal.screen(history=True).count("Found some jobs") == 1
    assert not live_lines(terminal.screen(history=True)), "what was live stands there for ever"
    # And once more with y.
    terminal.type("clear; dispatcher")
    terminal.wait_for("running")
    terminal.press("C-c")
    terminal.wait_for("[y/N]")
    terminal.type("y")
    terminal.wait_for("Fired 2 workers on localhost.")
    wait_until(lambda: not rig.slots(), PATIENCE_SECONDS, rig.report)


def test_dispatcher_tells_on_a_terminal_that_there_are_no_workers(rig: Rig) -> None:
    rig.drop_command("job.conf", "true")
    terminal = Terminal(rig)
    terminal.type('dispatcher; echo "exit code $?"')
    screen = terminal.wait_for("no workers: recruiter hire")
    assert "1 queued" in screen
    # Nobody to fire, so nothing to ask.
    terminal.press("C-c")
    terminal.wait_for("exit code 130")
    assert "Fire" not in terminal.screen()
    terminal.type('clear; dispatcher; echo "exit code $?"')
    terminal.wait_for("no workers")
    rig.hire(1)
    terminal.wait_for("No more jobs to dispatch.")
    screen = terminal.wait_for("exit code 0")
    assert not live_lines(screen)
