"""recruiter fire: idle workers at once, busy ones after their job, with --now the whole process tree."""

from __future__ import annotations

import os
import signal
import time

import pytest
from rig import PATIENCE_SECONDS, Result, Rig, is_running, need_tmux, stays_so, wait_until

FIRED_ONE = "[FJD] Fired 1 worker on localhost.\n"


def start_job(rig: Rig, name: str, *lines: str) -> int:
    """Have a busy worker: a job that tells its pid and waits for the flag `go`; the pid."""
    rig.drop_script(f"{name}.sh", *lines, rig.tell_pid(name), rig.await_flag(rig.flag("go")), "echo $FJD_ATTEMPT")
    return rig.wait_running(name)


def test_fire_says_so_when_there_is_nobody(rig: Rig) -> None:
    assert rig.run("recruiter", "fire") == Result(0, "[FJD] No workers on localhost.\n", "")
    assert rig.run("recruiter", "fire", "--now") == Result(0, "[FJD] No workers on localhost.\n", "")


def test_fire_lets_idle_workers_go_at_once(rig: Rig) -> None:
    rig.hire(3)
    start = time.monotonic()
    assert rig.run("recruiter", "fire") == Result(0, "[FJD] Fired 3 workers on localhost.\n", "")
    seconds = time.monotonic() - start
    print(f"fire 3 idle: {seconds:.2f} s")
    # No waiting for their processes: they are gone when fire says so.
    assert not rig.slots()
    assert not rig.processes()
    assert seconds < 3
    assert os.listdir(rig.path / "workerqueue") == []


def test_fire_lets_a_busy_worker_finish_its_job(rig: Rig) -> None:
    (pid,) = rig.hire(1)
    rig.dispatcher()
    start_job(rig, "long")
    # A second job that the busy worker may hold already must not be lost with it.
    rig.drop_script("next.sh", "true")
    result = rig.run("recruiter", "fire")
    assert result.code == 0
    first, second = result.out.splitlines()
    assert first + "\n" == FIRED_ONE
    assert second.startswith("[FJD] 1 of them finishes its job first")
    assert "leaving" in rig.run("recruiter", "list").out
    stays_so(lambda: is_running(pid) and not rig.record("done"), 0.3, rig.report)
    rig.flag("go").touch()
    assert rig.wait_done("long")["outcome"] == "succeeded"
    wait_until(lambda: not rig.slots() and not is_running(pid), PATIENCE_SECONDS, rig.report)
    assert [name.split(".")[0] for name in rig.queued()] == ["next"]
    rig.hire(1)
    assert rig.wait_done("next")["attempt"] == 1
    rig.check()


def test_fire_waits_for_busy_workers_when_asked(rig: Rig) -> None:
    rig.hire(1)
    rig.dispatcher()
    start_job(rig, "long")
    fire = rig.start("recruiter", "fire", "--wait")
    wait_until(lambda: "finishes its job first" in fire.out, PATIENCE_SECONDS, rig.report)
    assert fire.process.poll() is None
    rig.flag("go").touch()
    assert fire.wait().code == 0
    assert not rig.slots()


STUBBORN = {
    "ignores TERM": ["trap '' TERM HUP INT"],
    # The middle process ends at once, so its child has no parent of the job's any more; and it leaves the session.
    "detached": ["trap '' TERM HUP", "setsid sh -c 'trap \"\" HUP TERM; sleep 1000 & exit' &", "wait"],
    "another environment": ["setsid env -i sh -c 'trap \"\" HUP TERM; while :; do sleep 1; done' &"],
    "stopped": ["sh -c 'kill -STOP $$' &"],
    "pipeline": ["yes | sh -c 'trap \"\" PIPE TERM; cat >/dev/null' &"],
}


def descendants(pid: int) -> set[int]:
    """A process and all below it, those included that left its session."""
    found = {pid}
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            for child in file.read().split():
                found |= descendants(int(child))
    except OSError:
        pass
    return found


def test_fire_now_stops_the_whole_tree_and_puts_the_job_back(rig: Rig) -> None:
    workers = rig.hire(len(STUBBORN))
    dispatcher = rig.dispatcher()
    jobs = [kind.replace(" ", "-") for kind in STUBBORN]
    for name, lines in zip(jobs, STUBBORN.values(), strict=True):
        rig.drop_script(
            f"{name}.sh",
            'echo "attempt $FJD_ATTEMPT"',
            '[ "$FJD_ATTEMPT" = 1 ] || exit 0',
            *lines,
            rig.tell_pid(name),
            "while :; do sleep 1; done",
        )
    for name in jobs:
        rig.wait_running(name)
    # The workers are the reapers of everything that a job starts.
    trees = set().union(*(descendants(pid) for pid in workers))
    assert len(trees) > 3 * len(jobs)
    dispatcher.process.kill()
    start = time.monotonic()
    result = rig.run("recruiter", "fire", "--now")
    print(f"fire --now of stubborn jobs: {time.monotonic() - start:.2f} s, grace 0.5 s")
    assert result == Result(0, f"[FJD] Fired {len(jobs)} workers on localhost.\n", "")
    assert not [pid for pid in trees if is_running(pid)], rig.report()
    assert not rig.slots()
    assert [name.split(".")[0] for name in rig.queued()] == sorted(jobs)
    assert all("~2" in name for name in rig.queued())
    rig.check_nothing_left()
    rig.check()
    # They run again, as the second attempt of the same job.
    rig.hire(2)
    rig.dispatch()
    for name in jobs:
        first, second = rig.outcomes(name)
        assert (first["outcome"], first["attempt"]) == ("stopped", 1)
        assert (second["outcome"], second["attempt"]) == ("succeeded", 2)
        assert first["id"] == second["id"]
        assert rig.log_path(first).read_text() == "attempt 1\n"
        assert rig.log_path(second).read_text() == "attempt 2\n"
    rig.run("recruiter", "fire")
    rig.check(drained=True)


def test_fire_now_asks_a_job_to_end_before_it_kills(rig: Rig) -> None:
    rig.hire(1)
    rig.dispatcher().process.kill()
    rig.start("dispatcher", "--stay")
    start_job(rig, "tidy", f"trap 'sleep .2; echo tidied up; touch {rig.flag('tidied')}; exit 0' TERM")
    assert rig.run("recruiter", "fire", "--now").out == FIRED_ONE
    assert rig.flag("tidied").exists()
    (record,) = rig.outcomes("tidy")
    # It ended well, but because it was told to: it has to run again.
    assert record["outcome"] == "stopped"
    assert rig.log_path(record).read_text() == "tidied up\n"
    assert len(rig.queued()) == 1


def test_fire_takes_the_names_of_workers(rig: Rig) -> None:
    rig.hire(3)
    names = [rig.identity(slot)["worker"] for slot in rig.slots()]
    result = rig.run("recruiter", "fire", names[1])
    assert result.out == FIRED_ONE
    assert [rig.identity(slot)["worker"] for slot in rig.slots()] == [names[0], names[2]]
    result = rig.run("recruiter", "fire", "nobody-7", names[0])
    assert (result.code, result.out) == (2, "")
    assert "nobody-7: no such worker" in result.complaint
    assert len(rig.slots()) == 2, "a command with a mistake in it did half of it"
    # A slot's name means that one and no later worker.
    assert rig.run("recruiter", "fire", rig.slots()[0].name).out == FIRED_ONE
    assert len(rig.slots()) == 1


def test_fire_now_removes_a_worker_that_hears_nothing(rig: Rig) -> None:
    (pid,) = rig.hire(1)
    dispatcher = rig.dispatcher()
    job_pid = start_job(rig, "long")
    dispatcher.process.kill()
    os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    result = rig.run("recruiter", "fire", "--now")
    print(f"fire --now of a stopped worker: {time.monotonic() - start:.2f} s")
    assert (result.code, result.out) == (0, FIRED_ONE)
    assert not is_running(pid)
    assert not is_running(job_pid)
    assert not rig.slots()
    assert len(rig.queued()) == 1
    assert "~2" in rig.queued()[0]
    rig.check_nothing_left()
    rig.check()


@pytest.mark.parametrize("words", [(), ("--now",)], ids=["fire", "fire --now"])
def test_fire_clears_up_after_a_worker_that_was_killed(rig: Rig, words: tuple[str, ...]) -> None:
    pids = rig.hire(2)
    dispatcher = rig.dispatcher()
    job_pid = start_job(rig, "long", "setsid sleep 1000 &")
    dispatcher.process.kill()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, pids)), PATIENCE_SECONDS, rig.report)
    assert "lost" in rig.run("recruiter", "list").out
    result = rig.run("recruiter", "fire", *words)
    assert result.code == 0
    assert "[FJD] Fired 2 workers on localhost.\n" in result.out
    assert "lost" in result.out
    assert not is_running(job_pid)
    assert not rig.slots()
    assert len(rig.queued()) == 1
    assert "~2" in rig.queued()[0]
    rig.check_nothing_left()
    rig.check()


def test_fire_of_tmux_workers_ends_their_tmux_server(rig: Rig) -> None:
    need_tmux()
    rig.hire(2, backend="tmux")
    assert len(rig.processes()) == 3
    assert rig.run("recruiter", "fire").out == "[FJD] Fired 2 workers on localhost.\n"
    rig.check_nothing_left()


def test_workers_put_their_jobs_back_when_tmux_is_closed(rig: Rig) -> None:
    need_tmux()
    rig.hire(3, backend="tmux")
    rig.dispatcher().process.kill()
    rig.start("dispatcher", "--stay")
    pids = {name: start_job(rig, name, "setsid sleep 1000 &") for name in ("a", "b")}
    # Nobody takes what comes back.
    for started in rig.started("dispatcher"):
        started.process.kill()
    (socket,) = rig.tmux_folder.glob("*/fjd-*")
    sessions = rig.run("tmux", "-L", socket.name, "list-sessions", "-F", "#{session_name}").out.splitlines()
    (slot_of_a,) = (slot for slot in rig.slots() if any(n.startswith("a.") for n in rig.files(f"{slot}/running")))
    session = slot_of_a.name.replace(".", "-")
    assert session in sessions
    assert rig.run("tmux", "-L", socket.name, "kill-session", "-t", f"={session}").code == 0
    wait_until(lambda: not slot_of_a.exists(), PATIENCE_SECONDS, rig.report)
    assert len(rig.slots()) == 2
    assert rig.run("tmux", "-L", socket.name, "kill-server").code == 0
    wait_until(lambda: not rig.slots(), PATIENCE_SECONDS, rig.report)
    assert not any(map(is_running, pids.values()))
    assert [name.split(".")[0] for name in rig.queued()] == ["a", "b"]
    assert all("~2" in name for name in rig.queued())
    rig.check_nothing_left()
    rig.check()
    rig.flag("go").touch()
    rig.hire(1, backend="tmux")
    rig.dispatch()
    assert rig.output("a") == rig.output("b") == b"2\n"
