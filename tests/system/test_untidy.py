"""What jobs and people leave where it does not belong: nothing hangs, nothing of theirs is lost."""

from __future__ import annotations

import os
import shutil
import signal

from rig import PATIENCE_SECONDS, Rig, is_running, wait_until


def test_jobs_may_write_beside_their_job_file(rig: Rig) -> None:
    rig.hire(1)
    rig.drop("result.conf", '[control]\nexecutable: echo result > "$1.txt"; echo more > "$(dirname "$1")/.cache"\n')
    rig.drop_command("next.conf", "true")
    rig.dispatch()
    rig.run("recruiter", "fire")
    assert not rig.slots()
    kept = {path.read_text() for path in (rig.path / "jobrecord/logs").iterdir() if path.suffix != ".log"}
    assert kept == {"result\n", "more\n"}
    assert rig.record("rejected") == []
    rig.check(drained=True)


def test_job_that_renames_its_own_file_holds_nobody_up(rig: Rig) -> None:
    rig.hire(1)
    rig.drop("renames.conf", '[control]\nexecutable: mv "$1" "$1.bak"\n')
    rig.drop_command("next.conf", "true")
    rig.dispatch()
    rig.run("recruiter", "fire")
    assert not rig.slots()
    assert len(rig.record("done")) == 1
    assert [name for name in os.listdir(rig.path / "jobrecord/logs") if name.endswith(".conf.bak")]


def test_job_in_another_environment_is_ended_before_it_runs_again(rig: Rig) -> None:
    (first,) = rig.hire(1)
    dispatcher = rig.start("dispatcher")
    pids = rig.folder / "pids"
    rig.drop("hides.conf", f"[control]\nexecutable: exec env -i sh -c 'echo $$ >>{pids}; exec sleep 1000' sh \"$1\"\n")
    wait_until(lambda: pids.exists() and pids.read_text(), PATIENCE_SECONDS, rig.report)
    rig.hire(1)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(pids.read_text().split()) == 2, PATIENCE_SECONDS, rig.report)
    old, new = map(int, pids.read_text().split())
    assert not is_running(old)
    assert is_running(new)
    dispatcher.process.kill()
    rig.run("recruiter", "fire", "--now")
    rig.check_nothing_left()


def test_stopped_dispatcher_does_not_keep_the_others_from_its_slots(rig: Rig) -> None:
    rig.hire(2)
    stopped = rig.start("dispatcher", "--stay")
    for n in range(600):
        rig.drop_command(f"job{n}.conf", "true")
    wait_until(lambda: len(rig.record("done")) > 20, PATIENCE_SECONDS, rig.report)
    os.kill(stopped.process.pid, signal.SIGSTOP)
    try:
        rig.dispatch()
    finally:
        os.kill(stopped.process.pid, signal.SIGCONT)
    assert len(rig.record("done")) == 600
    rig.check()


def test_journal_folder_that_was_removed_comes_back(rig: Rig) -> None:
    rig.hire(1)
    rig.drop_command("before.conf", "true")
    rig.dispatch()
    shutil.rmtree(rig.path / "jobrecord/journal")
    rig.drop_command("after.conf", "false")
    result = rig.dispatch(code=1)
    assert "1 of 1 job failed" in result.err
    assert rig.outcome("after")["exit_code"] == 1


def test_logs_folder_that_was_removed_comes_back_while_a_job_prints(rig: Rig) -> None:
    rig.hire(1)
    dispatcher = rig.start("dispatcher")
    go = rig.flag("go")
    rig.drop_script("prints.sh", rig.tell_pid("prints"), rig.await_flag(go), "seq 200000")
    rig.wait_running("prints")
    shutil.rmtree(rig.path / "jobrecord/logs")
    go.touch()
    assert dispatcher.wait().code == 0
    assert rig.log_path(rig.outcome("prints")).read_text().split()[-1] == "200000"
