"""kill -9 at any moment: nothing is lost, nothing has two outcomes, and the queue goes on."""

from __future__ import annotations

import os
import random
import signal
import time

from rig import PATIENCE_SECONDS, Rig, is_running, stays_so, wait_until


def kill_worker_of(rig: Rig, job: str) -> int:
    """kill -9 the worker that runs a job; its pid."""
    (slot,) = (slot for slot in rig.slots() if any(n.startswith(f"{job}.") for n in rig.files(f"{slot}/running")))
    pid = int(rig.identity(slot)["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


def test_job_of_a_killed_worker_runs_again_at_once(rig: Rig) -> None:
    rig.hire(2)
    rig.dispatcher()
    times, left = rig.flag("times"), rig.flag("left")
    rig.drop_script(
        "job.sh",
        f"date +%s.%N >>{times}",
        '[ "$FJD_ATTEMPT" = 1 ] || exit 0',
        # Two that detach themselves, one of them with an environment that says nothing.
        f"setsid sh -c 'trap \"\" HUP TERM; echo $$ >>{left}; while :; do sleep 1; done' &",
        f"setsid env -i sh -c 'trap \"\" HUP TERM; echo $$ >>{left}; while :; do sleep 1; done' &",
        rig.tell_pid("job"),
        "while :; do sleep 1; done",
    )
    job_pid = rig.wait_running("job")
    wait_until(lambda: left.exists() and len(left.read_text().split()) == 2, PATIENCE_SECONDS, rig.report)
    orphans = [job_pid, *map(int, left.read_text().split())]
    assert all(map(is_running, orphans))
    killed = time.time()
    kill_worker_of(rig, "job")
    rig.wait_done("job")
    again = float(times.read_text().split()[1])
    print(f"kill -9 to running again: {1000 * (again - killed):.0f} ms")
    assert again - killed < 5
    assert not any(map(is_running, orphans)), "the first attempt still runs beside the second"
    assert len(times.read_text().split()) == 2
    lost, done = rig.outcomes("job")
    assert (lost["attempt"], lost["outcome"]) == (1, "lost")
    assert "worker lost" in lost["reason"]
    assert (done["attempt"], done["outcome"]) == (2, "succeeded")
    (name,) = rig.record("done")
    assert name == f"job.{done['id']}~2.sh"
    assert len(rig.slots()) == 1
    rig.run("recruiter", "fire")
    rig.check(drained=True)


def test_job_waits_for_a_new_worker_when_the_only_one_was_killed(rig: Rig) -> None:
    rig.hire(1)
    dispatcher = rig.start("dispatcher")
    rig.drop_script("job.sh", rig.tell_pid("job"), '[ "$FJD_ATTEMPT" = 2 ] || sleep 1000')
    rig.wait_running("job")
    kill_worker_of(rig, "job")
    wait_until(rig.queued, PATIENCE_SECONDS, rig.report)
    stays_so(lambda: dispatcher.process.poll() is None, 0.5, rig.report)
    rig.hire(1)
    assert dispatcher.wait().code == 0
    assert rig.outcome("job")["attempt"] == 2
    rig.check()


def test_dispatcher_reclaims_when_it_starts_after_the_kill(rig: Rig) -> None:
    (pid,) = rig.hire(1)
    dispatcher = rig.dispatcher()
    rig.drop_script("job.sh", rig.tell_pid("job"), '[ "$FJD_ATTEMPT" = 2 ] || sleep 1000')
    rig.drop_command("assigned.conf", "true")
    rig.wait_running("job")
    dispatcher.process.kill()
    os.kill(pid, signal.SIGKILL)
    rig.hire(1)
    rig.dispatch()
    assert rig.outcome("job")["attempt"] == 2
    assert rig.outcome("assigned")["attempt"] == 1
    assert len(rig.slots()) == 1
    rig.check()


def test_job_that_loses_three_workers_is_held_and_the_queue_goes_on(rig: Rig) -> None:
    rig.hire(4)
    dispatcher = rig.start("dispatcher")
    # It does the same to its worker each time: what a job that uses up all memory does.
    rig.drop_script("killer.sh", "kill -9 $PPID", "sleep 1000")
    for n in range(20):
        rig.drop_script(f"good{n}.sh", "true")
    result = dispatcher.wait()
    assert len(rig.record("done")) == 20
    (held,) = rig.record("held")
    assert held.startswith("killer.")
    assert [line["outcome"] for line in rig.outcomes("killer")] == ["lost", "lost", "held"]
    assert result.code == 1
    assert "killer (held, worker lost: its process" in result.err
    assert "jobrecord/held/" in result.err
    assert len(rig.slots()) == 1
    rig.check()
    # A person who knows better puts it back; it keeps its history, and a number is used once.
    os.rename(rig.path / "jobrecord/held" / held, rig.path / "jobqueue" / held)
    rig.dispatch(code=1)
    assert {line["attempt"] for line in rig.outcomes("killer")} == {1, 2, 3, 4}
    assert len({line["id"] for line in rig.outcomes("killer")}) == 1
    assert len(rig.record("held")) == 1


def test_dispatchers_are_killed_at_random_while_others_carry_on(rig: Rig) -> None:
    rig.hire(2)
    runs = rig.folder / "runs"
    for n in range(90):
        rig.drop_script(f"job{n}.sh", f"echo $FJD_ID >>{runs}", "sleep .02")
    dispatchers = [rig.start("dispatcher") for _ in range(3)]
    killed = 0
    while len(rig.record("done")) < 75:
        victim = random.randrange(3)
        due = time.monotonic() + random.uniform(0.05, 0.4)
        wait_until(lambda due=due: time.monotonic() > due, 1, rig.report)
        dispatchers[victim].process.kill()
        dispatchers[victim].process.wait()
        dispatchers[victim] = rig.start("dispatcher", "--no-wait")
        killed += 1
        assert killed < 100, rig.report()
    for dispatcher in dispatchers:
        assert dispatcher.wait().code == 0, rig.report()
    print(f"{killed} dispatchers killed")
    assert len(runs.read_text().split()) == len(set(runs.read_text().split())) == 90, "a job ran twice"
    assert len(rig.journal()) == 90
    rig.run("recruiter", "fire")
    rig.check(drained=True)


def test_workers_are_killed_at_random_and_every_job_has_one_outcome(rig: Rig) -> None:
    rig.hire(2)
    for n in range(80):
        rig.drop_script(f"job{n}.sh", "sleep .02")
    dispatcher = rig.start("dispatcher")
    for _ in range(6):
        due = time.monotonic() + random.uniform(0.1, 0.3)
        wait_until(lambda due=due: time.monotonic() > due, 1, rig.report)
        slot = random.choice(rig.slots())
        try:
            os.kill(rig.identity(slot)["pid"], signal.SIGKILL)
        except (OSError, IndexError):
            continue
        rig.run("recruiter", "hire", "1", "--backend", "local")
    result = dispatcher.wait(2 * PATIENCE_SECONDS)
    rig.run("recruiter", "fire")
    # A job may have had bad luck three times; it is held then, and not lost.
    held = rig.record("held")
    assert len(rig.record("done")) + len(held) == 80
    assert result.code == bool(held), rig.report()
    rig.check()
    rig.check_nothing_left()


def test_worker_that_everybody_thought_dead_does_not_make_a_second_outcome(rig: Rig) -> None:
    with open(rig.path / "fjd.conf", "a") as conf:
        conf.write("heartbeat_seconds: 0.2\nlost_seconds: 1.8\n")
    (first,) = rig.hire(1)
    dispatcher = rig.start("dispatcher")
    rig.drop_script("job.sh", rig.tell_pid("job"), 'echo "$FJD_ATTEMPT"', rig.await_flag(rig.flag("go")))
    rig.wait_running("job")
    os.kill(first, signal.SIGSTOP)
    # A stopped process is alive, and no proof of anything: only its silence counts.
    wait_until(rig.queued, PATIENCE_SECONDS, rig.report)
    rig.flag("go").touch()
    os.kill(first, signal.SIGCONT)
    rig.wait_done("job")
    # What the first attempt came to is in the journal, perhaps, and does not count.
    assert dispatcher.wait().code == 0, rig.report()
    wait_until(lambda: len(rig.slots()) == 1, PATIENCE_SECONDS, rig.report)
    assert rig.outcome("job")["attempt"] == 2
    assert rig.output("job") == b"2\n"
    assert rig.run("recruiter", "fire").out == "[FJD] Fired 1 worker on localhost.\n"
    rig.check(drained=True)
