"""Two processes meet at one file, in the order that the test's name tells; the job is in one place, with one outcome.

Where a test says that locks lie, everybody gets every lock, as on a filesystem without them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checker import check, places
from conftest import make_project
from scene import Scene

from fjd import disk, slot, spool
from fjd.attempt import Attempt, base_environment
from fjd.errors import JobFileError, SlotLost
from fjd.names import JobName
from fjd.slot import Claim, OwnSlot

pytestmark = pytest.mark.race

DATA = b"#!/bin/sh\nexit 0\n"
JOB = {"job.conf": DATA}
NOBODY = 65534


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(make_project(tmp_path / "project", filesystem="local", settle_seconds=0), monkeypatch)
    yield made
    made.close()


def states(scene: Scene) -> list[str]:
    return sorted(place.state for place in places(scene.project))


def claim_on(own: OwnSlot) -> Claim:
    claim = Claim.try_take(own.path)
    assert claim is not None
    return claim


@pytest.fixture(params=["locks exclude", "locks lie"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "locks lie":
        monkeypatch.setattr(slot, "_try_lock", lambda fd: True)


# Assigning


@pytest.mark.usefixtures("locks")
def test_one_dispatcher_gets_the_file_when_another_assigns_it_right_before(scene: Scene) -> None:
    scene.worker("one.aaaaaa")
    scene.worker("two.aaaaaa")
    scene.drop("job.conf")
    first, second = scene.dispatcher(), scene.dispatcher()
    scene.before("rename", "jobqueue/job.conf", second.step)
    first.step()
    assert states(scene) == ["assigned"]
    assert check(scene.project, JOB) == []


@pytest.mark.usefixtures("locks")
def test_all_files_are_assigned_once_when_two_dispatchers_take_turns_at_each(scene: Scene) -> None:
    for number in range(4):
        scene.worker(f"w{number}.aaaaaa")
        scene.drop(f"job{number}.conf", DATA + b"# %d" % number)
    submitted = {f"job{number}.conf": DATA + b"# %d" % number for number in range(4)}
    first, second = scene.dispatcher(), scene.dispatcher()
    scene.before("rename", "jobqueue/job2.conf", second.step)
    first.step()
    assert states(scene) == ["assigned"] * 4
    assert check(scene.project, submitted) == []


@pytest.mark.parametrize("folder", ["/running", ""], ids=["before running goes", "after running is gone"])
def test_job_is_taken_back_when_it_is_assigned_while_its_worker_leaves(scene: Scene, folder: str) -> None:
    own = scene.worker()
    name = scene.drop("job.conf")
    claim = claim_on(own)
    job = JobName.parse(name).renewed()
    scene.before("rmdir", own.path + folder, lambda: spool.assign(scene.project, name, job, claim))
    assert not own.leave()
    claim.release()
    (filename,) = spool.assigned(own.path)
    assert spool.take_back(scene.project, filename, own) == job
    assert own.leave()
    assert scene.names(scene.project.workerqueue) == []
    assert states(scene) == ["queued"]
    assert check(scene.project, JOB) == []


def test_job_stays_queued_when_the_slot_has_left_right_before_it_is_assigned(scene: Scene) -> None:
    own = scene.worker()
    name = scene.drop("job.conf")
    claim = claim_on(own)
    scene.before("rename", "jobqueue/job.conf", own.leave)
    with pytest.raises(SlotLost):
        spool.assign(scene.project, name, JobName.parse(name).renewed(), claim)
    claim.release()
    assert states(scene) == ["queued"]
    assert check(scene.project, JOB) == []


def test_dispatcher_goes_on_when_the_slot_leaves_in_the_middle_of_a_pass(scene: Scene) -> None:
    leaving = scene.worker("a.aaaaaa")
    scene.worker("b.aaaaaa")
    scene.drop("job.conf")
    scene.before("rename", "jobqueue/job.conf", leaving.leave)
    scene.dispatcher().step()
    assert scene.names(scene.project.workerqueue) == ["b.aaaaaa"]
    assert states(scene) == ["assigned"]
    assert check(scene.project, JOB) == []


def test_job_keeps_its_id_when_its_worker_gives_it_back_after_the_dispatcher_saw_it_assigned(scene: Scene) -> None:
    own = scene.worker("a.aaaaaa")
    scene.worker("b.aaaaaa")
    job = scene.assigned(own)
    dispatcher = scene.dispatcher()
    real = disk.list_names

    def give_back_first(path: str) -> list[str]:
        if path == scene.project.jobqueue and disk.exists(own.path):
            spool.take_back(scene.project, job.filename, own)
            own.leave()
        return real(path)

    scene.patch(disk, "list_names", give_back_first)
    dispatcher.step()
    (place,) = places(scene.project)
    assert (place.state, place.job) == ("assigned", job)
    assert check(scene.project, JOB) == []


# Users


def test_nothing_is_assigned_when_the_user_takes_the_file_away_right_before(scene: Scene) -> None:
    own = scene.worker()
    name = scene.drop("job.conf")
    away = f"{scene.project.path}/kept.conf"
    real = os.rename
    scene.before("rename", "jobqueue/job.conf", lambda: real(f"{scene.project.jobqueue}/{name}", away))
    scene.dispatcher().step()
    assert spool.assigned(own.path) == []
    assert places(scene.project) == []
    with open(away, "rb") as file:
        assert file.read() == DATA


@pytest.mark.parametrize("state", ["done", "failed", "held"])
@pytest.mark.parametrize("new_name", ["job", "other"])
def test_copy_is_a_job_of_its_own_when_it_is_copied_into_the_queue(scene: Scene, state: str, new_name: str) -> None:
    gone = scene.worker("gone.aaaaaa")
    job = scene.running(gone)
    if state == "held":
        scene.record(gone, job, "lost")
        os.rename(f"{gone.running}/{job.filename}", f"{scene.project.held}/{job.next.filename}")
        job = job.next
    else:
        scene.finish(gone, job, "succeeded" if state == "done" else "failed")
    gone.leave()
    own = scene.worker()
    scene.drop(job._replace(name=new_name).filename, DATA + b"# the copy")
    scene.dispatcher().step()
    (filename,) = spool.assigned(own.path)
    copy = JobName.parse(filename)
    assert copy.id != job.id
    assert states(scene) == sorted(["assigned", state])
    assert check(scene.project, {job.filename: DATA}) == []


@pytest.mark.parametrize("new_name", ["job", "other"])
def test_copy_is_a_job_of_its_own_when_the_original_is_running(scene: Scene, new_name: str) -> None:
    own = scene.worker("a.aaaaaa")
    scene.worker("b.aaaaaa")
    job = scene.running(own)
    scene.drop(job._replace(name=new_name).filename, DATA + b"# the copy")
    scene.dispatcher().step()
    assert len({place.job.id for place in places(scene.project)}) == 2
    assert states(scene) == ["assigned", "running"]
    assert check(scene.project, {job.filename: DATA}) == []


def test_both_are_jobs_when_the_user_copies_a_submitted_file_beside_itself(scene: Scene) -> None:
    scene.worker("a.aaaaaa")
    scene.worker("b.aaaaaa")
    job = spool.submit(scene.project, "job.conf", DATA)
    scene.drop(job._replace(name="other").filename, DATA + b"# the copy")
    scene.dispatcher().step()
    assert states(scene) == ["assigned", "assigned"]
    assert check(scene.project) == []


def test_nothing_is_overwritten_when_the_place_of_an_outcome_is_taken(scene: Scene) -> None:
    own = scene.worker()
    job = scene.running(own)
    with open(f"{scene.project.done}/{job.filename}", "wb") as file:
        file.write(b"put there by hand")
    moved = scene.finish(own, job)
    assert moved is not None
    assert moved.id != job.id
    contents = set()
    for name in scene.names(scene.project.done):
        with open(f"{scene.project.done}/{name}", "rb") as file:
            contents.add(file.read())
    assert contents == {b"put there by hand", DATA}


def _as_nobody(path: str) -> None:
    os.unlink(path)
    with open(path, "wb") as file:
        file.write(b"#!/bin/sh\ntouch stolen\n")
    os.chown(path, NOBODY, NOBODY)


def _as_link(path: str) -> None:
    os.rename(path, path + ".real")
    os.symlink(path + ".real", path)


@pytest.mark.parametrize("swap", [_as_nobody, _as_link])
@pytest.mark.parametrize("when", ["assigned", "started"])
def test_file_is_not_run_when_a_stranger_swaps_it_after_it_was_examined(
    scene: Scene, swap: Callable[[str], None], when: str
) -> None:
    if swap is _as_nobody and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    own = scene.worker()
    scene.drop("job.conf")
    if when == "assigned":
        scene.before("rename", "jobqueue/job.conf", lambda: swap(f"{scene.project.jobqueue}/job.conf"))
    scene.dispatcher().step()
    (filename,) = [name for name in spool.assigned(own.path) if not name.endswith(".real")]
    if when == "started":
        scene.before("rename", f"{own.path}/job", lambda: swap(f"{own.path}/{filename}"))
    job = spool.start(own, filename)
    assert job is not None
    attempt = Attempt(scene.project, own, job, base_environment())
    with pytest.raises(JobFileError):
        attempt.launch()
    assert not os.path.exists(f"{scene.project.path}/stolen")


# Handing over and taking back


@pytest.mark.parametrize("first", ["start", "other"])
@pytest.mark.parametrize("to", ["another slot", "the queue"])
def test_one_of_them_has_the_job_when_its_worker_starts_it_while_the_dispatcher_moves_it(
    scene: Scene, first: str, to: str
) -> None:
    own, idle = scene.worker("a.aaaaaa"), scene.worker("b.aaaaaa")
    job = scene.assigned(own)
    giving, taking = claim_on(own), claim_on(idle)
    got: list[JobName | None] = []

    def start() -> JobName | None:
        return spool.start(own, job.filename)

    def move() -> JobName | None:
        if to == "the queue":
            return spool.take_back(scene.project, job.filename, giving)
        return spool.hand_over(job.filename, giving, taking)

    early, late = (start, move) if first == "start" else (move, start)
    scene.before("rename", f"{own.path}/job", lambda: got.append(early()))
    got.append(late())
    giving.release()
    taking.release()
    assert got == [job, None]
    expected = "running" if first == "start" else "queued" if to == "the queue" else "assigned"
    assert states(scene) == [expected]
    assert check(scene.project, JOB) == []


def test_job_stays_where_it_is_when_the_taker_leaves_right_before_it_is_handed_over(scene: Scene) -> None:
    own, idle = scene.worker("a.aaaaaa"), scene.worker("b.aaaaaa")
    job = scene.assigned(own)
    giving, taking = claim_on(own), claim_on(idle)
    scene.before("rename", f"{own.path}/job", idle.leave)
    with pytest.raises(SlotLost):
        spool.hand_over(job.filename, giving, taking)
    giving.release()
    taking.release()
    assert spool.assigned(own.path) == [job.filename]
    assert check(scene.project, JOB) == []


# Reclaiming


@pytest.mark.parametrize("call", ["rename running", "rename waits", "rmdir running", "unlink alive", "rmdir slot"])
def test_jobs_go_round_once_when_two_reclaim_one_slot(scene: Scene, call: str) -> None:
    own = scene.worker("lost.aaaaaa")
    waits = scene.assigned(own, "waits.conf")
    job = scene.running(own)
    lost = scene.judged_lost(own)
    first, second = scene.reclaimer(), scene.reclaimer()
    what, _, where = call.partition(" ")
    part = {"running": f"{own.path}/running", "waits": f"{own.path}/waits", "alive": "alive", "slot": own.path}[where]
    scene.before(what, part, lambda: second.reclaim(lost))
    first.reclaim(lost)
    assert scene.names(scene.project.jobqueue) == sorted([job.next.filename, waits.filename])
    assert scene.names(scene.project.workerqueue) == []
    assert check(scene.project) == []


def test_outcome_stands_when_the_worker_finishes_right_before_the_job_is_reclaimed(scene: Scene) -> None:
    own = scene.worker()
    job = scene.running(own)
    scene.before("rename", f"{own.path}/running/job", lambda: scene.finish(own, job))
    scene.reclaimer().reclaim(scene.judged_lost(own))
    assert states(scene) == ["done"]
    assert check(scene.project, JOB) == []


def test_zombie_is_refused_when_the_job_is_reclaimed_before_it_has_a_record(scene: Scene) -> None:
    own = scene.worker()
    job = scene.running(own)
    assert scene.reclaimer().reclaim(scene.judged_lost(own))
    assert scene.finish(own, job) is None
    assert scene.names(scene.project.jobqueue) == [job.next.filename]
    assert check(scene.project, JOB) == []


def test_zombie_is_refused_when_its_record_comes_after_the_reclaimer_looked_for_it(scene: Scene) -> None:
    own = scene.worker()
    job = scene.running(own)
    scene.before("rename", f"{own.path}/running/job", lambda: scene.record(own, job))
    scene.reclaimer().reclaim(scene.judged_lost(own))
    assert spool.conclude(scene.project, own, job, "succeeded") is None
    assert scene.names(scene.project.jobqueue) == [job.next.filename]
    assert check(scene.project, JOB) == []


@pytest.mark.parametrize(("outcome", "state"), [("succeeded", "done"), ("failed", "failed"), ("stopped", "queued")])
def test_record_decides_when_the_job_is_reclaimed_right_before_its_worker_moves_it(
    scene: Scene, outcome: str, state: str
) -> None:
    own = scene.worker()
    job = scene.running(own)
    reclaimer, lost = scene.reclaimer(), scene.judged_lost(own)
    scene.before("rename", f"{own.path}/running/job", lambda: reclaimer.reclaim(lost))
    # Both make the one move that the record demands; who of them did it, nobody can tell, and it does not matter.
    scene.finish(own, job, outcome)
    assert states(scene) == [state]
    assert check(scene.project, JOB) == []


def test_job_has_one_outcome_when_the_zombie_wakes_after_it_succeeded_elsewhere(scene: Scene) -> None:
    zombie = scene.worker("zombie.aaaaaa")
    job = scene.running(zombie)
    assert scene.reclaimer().reclaim(scene.judged_lost(zombie))
    other = scene.worker("other.aaaaaa")
    scene.dispatcher().step()
    again = spool.start(other, job.next.filename)
    assert again == job.next
    assert scene.finish(other, again) == again
    assert scene.finish(zombie, job, "failed") is None
    with pytest.raises(SlotLost):
        zombie.beat()
    assert scene.names(scene.project.done) == [again.filename]
    assert states(scene) == ["done"]
    assert check(scene.project, JOB) == []


def test_started_job_is_reclaimed_when_the_zombie_starts_it_right_before_it_is_taken_back(scene: Scene) -> None:
    own = scene.worker()
    job = scene.assigned(own)
    lost = scene.judged_lost(own)
    reclaimer = scene.reclaimer()
    scene.before("rename", f"{own.path}/job", lambda: spool.start(own, job.filename))
    assert not reclaimer.reclaim(lost)
    assert states(scene) == ["running"]
    assert reclaimer.reclaim(lost)
    assert scene.names(scene.project.jobqueue) == [job.next.filename]
    assert scene.finish(own, job) is None
    assert check(scene.project, JOB) == []


def test_nothing_starts_when_the_slot_is_reclaimed_right_before(scene: Scene) -> None:
    own = scene.worker()
    job = scene.assigned(own)
    reclaimer, lost = scene.reclaimer(), scene.judged_lost(own)
    scene.before("rename", f"{own.path}/job", lambda: reclaimer.reclaim(lost))
    try:
        started = spool.start(own, job.filename)
    except SlotLost:
        started = None
    assert started is None
    assert scene.names(scene.project.jobqueue) == [job.filename]
    assert check(scene.project, JOB) == []


def test_job_waits_for_the_next_reclaim_when_it_is_assigned_while_the_slot_is_removed(scene: Scene) -> None:
    own = scene.worker()
    name = scene.drop("job.conf")
    claim = claim_on(own)
    job = JobName.parse(name).renewed()
    reclaimer, lost = scene.reclaimer(), scene.judged_lost(own)
    scene.before("unlink", f"{own.path}/", lambda: spool.assign(scene.project, name, job, claim))
    assert not reclaimer.reclaim(lost)
    claim.release()
    assert states(scene) == ["assigned"]
    assert reclaimer.reclaim(lost)
    assert scene.names(scene.project.jobqueue) == [job.filename]
    assert check(scene.project, JOB) == []


def test_slot_shows_who_holds_it_when_the_zombie_starts_a_job_right_before_the_slot_is_removed(scene: Scene) -> None:
    own = scene.worker()
    job = scene.assigned(own)
    scene.before("rmdir", own.path, lambda: spool.start(own, job.filename))
    assert not slot.remove_slot(own.path)
    assert slot.read_identity(own.path) is not None
    assert states(scene) == ["running"]


# Rejecting


@pytest.mark.usefixtures("locks")
def test_file_is_rejected_once_when_another_dispatcher_rejects_it_right_before(scene: Scene) -> None:
    scene.drop("bad.conf", b"bad")
    first, second = scene.dispatcher(), scene.dispatcher()
    scene.before("rename", "jobqueue/bad.conf", second.step)
    first.step()
    assert states(scene) == ["rejected"]
    assert len(scene.names(scene.project.rejected)) == 2
    assert check(scene.project, {"bad.conf": b"bad"}) == []


@pytest.mark.parametrize("there", [("bad.conf", "bad.conf.reason"), ("bad.conf",), ("bad.conf.reason",)])
def test_nothing_is_overwritten_when_the_name_is_taken_in_rejected(scene: Scene, there: tuple[str, ...]) -> None:
    for name in there:
        with open(f"{scene.project.rejected}/{name}", "wb") as file:
            file.write(b"before")
    scene.drop("bad.conf", b"bad")
    name_there = spool.reject(scene.project, "bad.conf", "why")
    assert name_there is not None
    assert name_there not in there
    for name in there:
        with open(f"{scene.project.rejected}/{name}", "rb") as file:
            assert file.read() == b"before"
    with open(f"{scene.project.rejected}/{name_there}.reason", "rb") as file:
        assert file.read() == b"why\n"
    assert len(scene.names(scene.project.rejected)) == len(there) + 2


def test_file_stays_queued_when_its_name_in_rejected_is_taken_by_hand_at_that_moment(scene: Scene) -> None:
    scene.drop("bad.conf", b"bad")
    target = f"{scene.project.rejected}/bad.conf"
    real = disk.move

    def move(source: str, to: str) -> bool:
        with open(target, "wb") as file:
            file.write(b"by hand")
        return real(source, to)

    scene.patch(disk, "move", move)
    assert spool.reject(scene.project, "bad.conf", "why") is None
    assert scene.names(scene.project.jobqueue) == ["bad.conf"]
    assert scene.names(scene.project.rejected) == ["bad.conf"]
    with open(target, "rb") as file:
        assert file.read() == b"by hand"


def test_nothing_is_left_in_rejected_when_the_user_takes_the_file_away_right_before(scene: Scene) -> None:
    scene.drop("bad.conf", b"bad")
    path = f"{scene.project.jobqueue}/bad.conf"
    scene.before("rename", "jobqueue/bad.conf", lambda: os.unlink(path))
    assert spool.reject(scene.project, "bad.conf", "why") is None
    assert scene.names(scene.project.rejected) == []


# Submitting


def test_both_jobs_are_queued_when_two_submit_one_name_at_once(scene: Scene) -> None:
    scene.before("rename", ".draft", lambda: spool.submit(scene.project, "job.conf", DATA + b"# 2"))
    spool.submit(scene.project, "job.conf", DATA + b"# 1")
    contents = set()
    for place in places(scene.project):
        with open(place.path, "rb") as file:
            contents.add(file.read())
    assert contents == {DATA + b"# 1", DATA + b"# 2"}
    assert check(scene.project) == []


def test_submit_succeeds_when_the_job_is_assigned_before_the_answer_is_lost(scene: Scene) -> None:
    own = scene.worker()
    dispatcher = scene.dispatcher()
    scene.lose_answer(".draft", dispatcher.step, errno.ENOENT)
    job = spool.submit(scene.project, "job.conf", DATA)
    assert spool.assigned(own.path) == [job.filename]
    assert check(scene.project, JOB) == []


def test_submit_fails_when_the_project_is_removed_before_its_rename(scene: Scene) -> None:
    def remove() -> None:
        for name in scene.names(scene.project.jobqueue):
            os.unlink(f"{scene.project.jobqueue}/{name}")
        os.rmdir(scene.project.jobqueue)

    scene.before("rename", ".draft", remove)
    with pytest.raises(FileNotFoundError):
        spool.submit(scene.project, "job.conf", DATA)


# Orders


def test_order_is_refused_when_the_worker_leaves_right_before(scene: Scene) -> None:
    own = scene.worker()
    scene.before("replace", ".fire.", own.leave)
    with pytest.raises(SlotLost):
        slot.give_order(own.path, slot.Order.DRAIN)
    assert scene.names(scene.project.workerqueue) == []


def test_slot_goes_at_the_next_try_when_an_order_comes_while_its_worker_leaves(scene: Scene) -> None:
    own = scene.worker()
    scene.before("rmdir", own.path, lambda: slot.give_order(own.path, slot.Order.NOW))
    scene.before("rmdir", own.path + "/running", lambda: None)
    while not own.leave():
        pass
    assert scene.names(scene.project.workerqueue) == []
