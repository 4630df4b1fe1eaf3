"""Guards the dispatcher's decisions: which job goes to which slot and when, what it lets lie, and when it is done.

Each pass is made by hand, on a clock that stands still; slots are held by this process, and jobs are files. Where a
worker has to be another process, it is on another host, and its lock tells whether it lives.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab import Clock, make_project

import fjd.dispatcher
import fjd.queue
import fjd.reclaim
from fjd import disk, host, spool
from fjd.dispatcher import Dispatcher, Picture
from fjd.errors import ProjectError, SlotLost
from fjd.journal import Journal, Record
from fjd.names import JobName, natural_key
from fjd.project import Project
from fjd.report import Tally
from fjd.slot import Claim, Identity, Order, OwnSlot, give_order

JOB = "[control]\nexecutable: true\n"
NOBODY = 65534
HERE = Identity.of_this_process("vm-1")
DEAD_HERE = HERE._replace(start_ticks=1)
ELSEWHERE = Identity("far-1", "far", "another boot/1", 1, 1)

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")


class Enough(Exception):
    """Ends `run`, which would go on for ever."""


class Scripted:
    """A listener that keeps what it hears, and does one thing after each pass."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.after_pass: list[Callable[[], object]] = []
        self.passes = 0

    def found(self) -> None:
        self.heard.append("found")

    def rejected(self, filename: str, reason: str) -> None:
        self.heard.append(filename)

    def passed(self, picture: Picture, tally: Tally) -> None:
        self.passes += 1
        if self.after_pass:
            self.after_pass.pop(0)()


class Scene:
    """A project with what a test puts into it, and the dispatcher that serves it."""

    def __init__(self, project: Project, clock: Clock) -> None:
        self.project = project
        self.clock = clock
        self.listener = Scripted()
        self._opened = ExitStack()
        self.dispatcher = Dispatcher(project, self.listener, clock)
        self._opened.callback(self.dispatcher.close)
        self._next_id = 0xABCDEF000000

    def close(self) -> None:
        self._opened.close()

    def slot(self, name: str, running: int = 0, assigned: int = 0, identity: Identity = HERE) -> OwnSlot:
        own = OwnSlot.take(self.project.workerqueue, f"{name}.aaaa", identity)
        self._opened.callback(own.close)
        for number in range(running):
            self.put(own.running, f"{name}-running{number}")
        for number in range(1, assigned + 1):
            self.put(own.path, f"{name}-job{number}")
        return own

    def put(self, folder: str, name: str) -> str:
        """A job that has its ID."""
        self._next_id += 1
        filename = f"{name}.{self._next_id:x}.conf"
        Path(folder, filename).write_text(JOB)
        return filename

    def drop(self, *names: str, text: str = JOB) -> None:
        for name in names:
            Path(self.project.jobqueue, name).write_text(text)

    def jobs(self, count: int) -> None:
        self.drop(*(f"job{number}.conf" for number in range(1, count + 1)))

    def step(self, passes: int = 1) -> Picture:
        for _ in range(passes):
            self.dispatcher.step()
        return self.dispatcher.picture

    def ring(self) -> None:
        """What an event in jobqueue/ or workerqueue/ does."""
        bell = Bell()
        self.dispatcher._poll.register(bell.fd)
        try:
            self.dispatcher.wait(bell)
        finally:
            self.dispatcher._poll.unregister(bell.fd)
            os.close(bell.fd)

    def queued(self) -> list[str]:
        """The NAMEs in jobqueue/."""
        return short(self.project.jobqueue)


class Bell:
    """A doorbell that rings."""

    def __init__(self) -> None:
        self.fd = os.eventfd(1)

    def answer(self) -> bytes:
        os.eventfd_read(self.fd)
        return b"\0"


def short(folder: str) -> list[str]:
    """The NAMEs of the jobs in a directory, in the order in which they are worked on."""
    names = [name for name in os.listdir(folder) if "." in name and not name.startswith(".")]
    return [JobName.parse(name).name for name in sorted(names, key=natural_key)]


def records(project: Project, id: str = "abcdef012345", seconds: float = 1.0, attempt: int = 1) -> None:
    journal = Journal(project.journal, "far-9.aaaa", durable=False)
    journal.append(Record("job", id, attempt, f"job.{id}.conf", "far-9.aaaa", "far", "", "succeeded", seconds=seconds))
    journal.close()


@pytest.fixture
def scene(tmp_path: Path, clock: Clock) -> Iterator[Scene]:
    """Nothing has to settle here, so what is not a job is rejected at the first look."""
    made = Scene(make_project(tmp_path / "project", filesystem="local", settle_seconds=0), clock)
    yield made
    made.close()


# Who gets what


def test_step_gives_to_idle_slots_first_and_then_level_by_level(scene: Scene) -> None:
    busy, one, two = scene.slot("a", running=1), scene.slot("b"), scene.slot("c")
    scene.jobs(6)
    picture = scene.step()
    assert [short(own.path) for own in (busy, one, two)] == [["job3"], ["job1", "job4"], ["job2", "job5"]]
    assert scene.queued() == ["job6"]
    assert picture == Picture(queued=1, assigned=5, running=1, workers=3, foreign=0)
    assert picture.unfinished == 7


def test_step_gives_nothing_more_when_slots_hold_what_they_need(scene: Scene) -> None:
    own = scene.slot("a", running=1, assigned=1)
    scene.jobs(3)
    scene.step(2)
    assert short(own.path) == ["a-job1"]


def test_step_counts_the_first_job_of_an_idle_slot_as_started(scene: Scene) -> None:
    own = scene.slot("a", assigned=1)
    scene.jobs(3)
    scene.step()
    assert short(own.path) == ["a-job1", "job1"]


@pytest.mark.parametrize(
    ("job_seconds", "depth"), [(None, 1), (0.1, 3), (0.25, 1), (0.24, 2), (10.0, 1), (0.005, 50), (0.0, 64)]
)
def test_depth_is_a_quarter_of_a_second_of_work(scene: Scene, job_seconds: float | None, depth: int) -> None:
    own = scene.slot("a", running=1)
    scene.dispatcher.tally.job_seconds = job_seconds
    scene.jobs(200)
    scene.step()
    assert len(short(own.path)) == depth


def test_depth_follows_from_what_was_recorded(scene: Scene) -> None:
    own = scene.slot("a", running=1)
    records(scene.project, seconds=0.05)
    scene.step()
    scene.jobs(30)
    scene.step()
    assert len(short(own.path)) == 5


def test_depth_is_half_of_the_share_when_few_jobs_are_left(scene: Scene) -> None:
    slots = [scene.slot("a", running=1), scene.slot("b", running=1)]
    scene.dispatcher.tally.job_seconds = 0.001
    scene.jobs(8)
    scene.step()
    # 8 jobs for two slots: an even share is 4, and each takes 2 of it.
    assert [short(own.path) for own in slots] == [["job1", "job3"], ["job2", "job4"]]


def test_jobs_are_assigned_in_the_order_of_their_numbers(scene: Scene) -> None:
    own = scene.slot("a")
    scene.drop("job10.conf", "job9.conf")
    scene.step()
    assert short(own.path) == ["job9", "job10"]
    assert len(os.listdir(scene.project.jobqueue)) == 0


def test_leaving_slot_gets_nothing_and_the_others_do(scene: Scene) -> None:
    leaving, other = scene.slot("a"), scene.slot("b")
    give_order(leaving.path, Order.DRAIN)
    scene.jobs(4)
    scene.step()
    assert short(leaving.path) == []
    assert short(other.path) == ["job1", "job2"]


def test_slot_without_heartbeat_file_gets_nothing(scene: Scene) -> None:
    """Its worker is removing it at this moment."""
    own = scene.slot("a")
    os.unlink(f"{own.path}/alive")
    scene.jobs(1)
    scene.step()
    assert scene.queued() == ["job1"]


def test_claimed_slot_gets_nothing_in_this_pass_and_the_others_do(scene: Scene) -> None:
    claimed, other = scene.slot("a"), scene.slot("b")
    rival = Claim.try_take(claimed.path)
    assert rival is not None
    scene.jobs(3)
    scene.step()
    assert (short(claimed.path), short(other.path), scene.queued()) == ([], ["job1", "job2"], ["job3"])
    rival.release()
    scene.step()
    assert short(claimed.path) == ["job3"]


def test_claims_are_free_again_after_a_pass(scene: Scene) -> None:
    own = scene.slot("a")
    scene.jobs(1)
    scene.step()
    claim = Claim.try_take(own.path)
    assert claim is not None
    claim.release()


def test_claims_are_free_again_when_a_pass_fails(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    own = scene.slot("a")
    scene.jobs(1)

    def broken(*arguments: object) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(spool, "assign", broken)
    with pytest.raises(OSError, match="no"):
        scene.step()
    claim = Claim.try_take(own.path)
    assert claim is not None
    claim.release()


def lose_when_claimed(doomed: OwnSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Claim.try_take

    def try_take(path: str) -> Claim | None:
        claim = real(path)
        if path == doomed.path and claim is not None:
            shutil.rmtree(path)
        return claim

    monkeypatch.setattr(Claim, "try_take", try_take)


def test_job_goes_to_the_next_slot_when_the_first_vanishes_under_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed, other = scene.slot("a"), scene.slot("b")
    scene.jobs(1)
    lose_when_claimed(doomed, monkeypatch)
    scene.step()
    assert short(other.path) == ["job1"]
    assert scene.queued() == []


def test_job_stays_queued_when_the_only_slot_vanishes_under_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    doomed = scene.slot("a")
    scene.jobs(2)
    lose_when_claimed(doomed, monkeypatch)
    picture = scene.step()
    assert scene.queued() == ["job1", "job2"]
    assert picture.queued == 2


def test_room_stays_free_when_another_dispatcher_takes_the_job(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    own = scene.slot("a", running=1)
    scene.jobs(2)
    real = spool.assign

    def assign(project: Project, filename: str, job: JobName, claim: Claim) -> JobName | None:
        if filename == "job1.conf":
            os.unlink(f"{project.jobqueue}/{filename}")
        return real(project, filename, job, claim)

    monkeypatch.setattr(spool, "assign", assign)
    picture = scene.step()
    assert short(own.path) == ["job2"]
    assert (picture.queued, picture.assigned) == (0, 1)


def test_id_is_kept_when_the_job_comes_back_between_looking_and_listing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = scene.slot("a", assigned=1)
    (filename,) = spool.assigned(own.path)
    real = disk.list_names

    def list_names(path: str) -> list[str]:
        if path == scene.project.jobqueue and os.path.exists(f"{own.path}/{filename}"):
            os.rename(f"{own.path}/{filename}", f"{path}/{filename}")
        return real(path)

    monkeypatch.setattr(disk, "list_names", list_names)
    scene.step()
    assert spool.assigned(own.path) == [filename]


def test_copy_gets_an_id_of_its_own_when_the_original_is_in_a_slot(scene: Scene) -> None:
    own = scene.slot("a", assigned=1)
    (filename,) = spool.assigned(own.path)
    shutil.copy(f"{own.path}/{filename}", scene.project.jobqueue)
    scene.step()
    names = spool.assigned(own.path)
    assert len(names) == 2
    assert len({JobName.parse(name).id for name in names}) == 2


# Sharing out


def test_share_out_takes_the_newest_half_of_the_longest_backlog(scene: Scene) -> None:
    short_one, long_one, idle = (
        scene.slot("a", running=1, assigned=2),
        scene.slot("b", running=1, assigned=5),
        scene.slot("c"),
    )
    scene.step()
    assert short(short_one.path) == ["a-job1", "a-job2"]
    assert short(long_one.path) == ["b-job1", "b-job2"]
    assert short(idle.path) == ["b-job3", "b-job4", "b-job5"]


def test_share_out_serves_each_idle_slot_from_who_has_most_then(scene: Scene) -> None:
    giver, one, two = scene.slot("a", running=1, assigned=8), scene.slot("b"), scene.slot("c")
    scene.step()
    assert [len(short(own.path)) for own in (giver, one, two)] == [2, 4, 2]


def test_share_out_takes_nothing_from_a_slot_that_runs_nothing(scene: Scene) -> None:
    """Its worker starts them at this moment; taking them away would only have them go round."""
    giver, idle = scene.slot("a", assigned=4), scene.slot("b")
    scene.step()
    assert (len(short(giver.path)), len(short(idle.path))) == (4, 0)


def test_share_out_gives_nothing_to_a_leaving_slot(scene: Scene) -> None:
    giver, leaving = scene.slot("a", running=1, assigned=4), scene.slot("b")
    give_order(leaving.path, Order.DRAIN)
    scene.step()
    assert (len(short(giver.path)), len(short(leaving.path))) == (4, 0)


def test_share_out_waits_while_jobs_are_queued(scene: Scene) -> None:
    giver, idle = scene.slot("a", running=1, assigned=4), scene.slot("b")
    rival = Claim.try_take(idle.path)
    assert rival is not None
    scene.jobs(1)
    scene.step()
    rival.release()
    assert (len(short(giver.path)), scene.queued()) == (4, ["job1"])


@pytest.mark.parametrize("claimed", ["a", "b"])
def test_share_out_moves_nothing_when_another_dispatcher_has_a_claim(scene: Scene, claimed: str) -> None:
    slots = {"a": scene.slot("a", running=1, assigned=4), "b": scene.slot("b")}
    rival = Claim.try_take(slots[claimed].path)
    assert rival is not None
    scene.step()
    rival.release()
    assert [len(short(own.path)) for own in slots.values()] == [4, 0]
    # Both claims were let go.
    scene.step()
    assert [len(short(own.path)) for own in slots.values()] == [2, 2]


def test_share_out_leaves_the_rest_when_the_taker_vanishes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    giver, taker = scene.slot("a", running=1, assigned=4), scene.slot("b")

    def hand_over(filename: str, giving: Claim, taking: Claim) -> None:
        shutil.rmtree(taker.path)
        raise SlotLost(taking.path, "gone")

    monkeypatch.setattr(spool, "hand_over", hand_over)
    picture = scene.step()
    assert len(short(giver.path)) == 4
    assert picture.assigned == 4


# What lies in jobqueue/


def test_bad_files_are_rejected_in_order_when_no_worker_is_there(scene: Scene) -> None:
    scene.drop("bad10.conf", "bad9.conf", text="no job\n")
    scene.jobs(1)
    picture = scene.step(3)
    assert scene.listener.heard == ["found", "bad9.conf", "bad10.conf"]
    assert short(scene.project.rejected) == ["bad9", "bad9.conf", "bad10", "bad10.conf"]
    assert picture.queued == 1


def test_look_ahead_examines_each_file_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.jobs(3)
    looked: list[str] = []
    real = scene.dispatcher._intake.try_examine

    def try_examine(filename: str) -> object:
        looked.append(filename)
        return real(filename)

    monkeypatch.setattr(scene.dispatcher._intake, "try_examine", try_examine)
    scene.step(3)
    assert looked == ["job1.conf", "job2.conf", "job3.conf"]


def test_look_ahead_is_limited(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long queue must not be read from end to end before the first worker comes."""
    monkeypatch.setattr(fjd.queue, "_LOOK_AHEAD", 2)
    scene.jobs(2)
    scene.drop("zbad.conf", text="no job\n")
    picture = scene.step(3)
    assert scene.listener.heard == ["found"]
    assert picture.queued == 3


def test_found_is_told_again_only_when_the_queue_was_empty(scene: Scene) -> None:
    own = scene.slot("a")
    scene.jobs(1)
    scene.step(2)
    scene.jobs(1)
    scene.drop("job2.conf")
    scene.step()
    assert scene.listener.heard == ["found", "found"]
    assert len(short(own.path)) == 2


def test_unfinished_names_are_left_alone(scene: Scene) -> None:
    own = scene.slot("a")
    scene.drop(".job.conf", "job.conf.tmp", "job.conf~", "job.conf.part")
    picture = scene.step()
    assert (picture.queued, short(own.path), scene.listener.heard) == (0, [], [])


def test_file_with_a_writer_is_taken_at_the_first_ring_after_its_close(scene: Scene) -> None:
    own = scene.slot("a")
    with open(f"{scene.project.jobqueue}/job.conf", "w") as writer:
        writer.write(JOB)
        writer.flush()
        scene.step()
        scene.ring()
        scene.step()
        assert scene.queued() == ["job"]
    # The time that it was put off for is not over.
    scene.step()
    assert scene.queued() == ["job"]
    scene.ring()
    scene.step()
    assert short(own.path) == ["job"]


def test_file_with_a_writer_is_looked_at_again_without_a_ring(scene: Scene) -> None:
    own = scene.slot("a")
    with open(f"{scene.project.jobqueue}/job.conf", "w") as writer:
        writer.write(JOB)
        writer.flush()
        scene.step()
    scene.clock.advance(0.25)
    scene.step()
    assert short(own.path) == ["job"]


def test_files_behind_one_that_waits_are_assigned(scene: Scene) -> None:
    own = scene.slot("a")
    with open(f"{scene.project.jobqueue}/job1.conf", "w") as writer:
        scene.drop("job2.conf")
        scene.step()
        assert short(own.path) == ["job2"]
        writer.write(JOB)


@as_root
def test_foreign_file_is_skipped_and_does_not_keep_the_dispatcher(scene: Scene) -> None:
    own = scene.slot("a")
    scene.drop("job1.conf")
    os.chown(f"{scene.project.jobqueue}/job1.conf", NOBODY, NOBODY)
    picture = scene.step(2)
    assert (picture.queued, picture.foreign, picture.unfinished) == (1, 1, 0)
    assert scene.dispatcher.is_done(wait_for_jobs=False)
    assert not scene.dispatcher.is_done()
    assert (scene.queued(), short(own.path)) == (["job1"], [])


@as_root
def test_foreign_file_does_not_stop_the_own_ones_behind_it(scene: Scene) -> None:
    own = scene.slot("a")
    scene.jobs(2)
    os.chown(f"{scene.project.jobqueue}/job1.conf", NOBODY, NOBODY)
    scene.step()
    assert short(own.path) == ["job2"]


@as_root
def test_foreign_files_do_not_keep_the_dispatcher_when_they_are_many(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fjd.queue, "_LOOK_AHEAD", 2)
    scene.jobs(5)
    for filename in os.listdir(scene.project.jobqueue):
        os.chown(f"{scene.project.jobqueue}/{filename}", NOBODY, NOBODY)
    picture = scene.step(4)
    assert (picture.foreign, picture.unfinished) == (5, 0)
    assert scene.dispatcher.is_done(wait_for_jobs=False)


@as_root
def test_foreign_file_is_taken_when_its_owner_gives_it_to_us(scene: Scene) -> None:
    own = scene.slot("a")
    scene.jobs(1)
    path = f"{scene.project.jobqueue}/job1.conf"
    os.chown(path, NOBODY, NOBODY)
    scene.step()
    os.chown(path, os.getuid(), os.getgid())
    scene.clock.advance(1.0)
    scene.step()
    assert short(own.path) == ["job1"]


# How often jobqueue/ is listed


@pytest.fixture
def listings(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When jobqueue/ was listed. A listing takes as long as there are seconds in the name of a file."""
    seen: list[float] = []
    real = disk.list_names

    def list_names(path: str) -> list[str]:
        names = real(path)
        if path == scene.project.jobqueue:
            seen.append(scene.clock.now)
            scene.clock.advance(sum(int(name.removesuffix("s.conf")) for name in names if name.endswith("s.conf")))
        return names

    monkeypatch.setattr(disk, "list_names", list_names)
    return seen


def test_queue_is_listed_once_a_second_when_there_is_no_news(scene: Scene, listings: list[float]) -> None:
    scene.jobs(1)
    for _ in range(5):
        scene.step()
        scene.clock.advance(0.5)
    assert listings == [1000.0, 1001.0, 1002.0]


def test_queue_is_listed_at_once_when_there_is_news(scene: Scene, listings: list[float]) -> None:
    scene.jobs(1)
    scene.step()
    scene.drop("job2.conf")
    scene.ring()
    assert scene.step().queued == 2
    assert listings == [1000.0, 1000.0]


def test_queue_is_listed_in_each_pass_when_all_of_it_is_assigned(scene: Scene, listings: list[float]) -> None:
    scene.step(3)
    assert len(listings) == 3


@pytest.mark.parametrize("rings", [False, True])
def test_listing_takes_a_fifth_of_the_time_when_it_is_slow(scene: Scene, listings: list[float], rings: bool) -> None:
    scene.drop("2s.conf")
    for _ in range(25):
        scene.step()
        scene.clock.advance(1.0)
        if rings:
            scene.ring()
    gaps = [later - earlier for earlier, later in itertools.pairwise(listings)]
    assert gaps
    assert all(10 <= gap <= 13 for gap in gaps), gaps


# Being done


def test_done_needs_two_quiet_passes(scene: Scene) -> None:
    scene.jobs(1)
    scene.step()
    os.unlink(f"{scene.project.jobqueue}/job1.conf")
    assert not scene.dispatcher.is_done()
    scene.clock.advance(1.0)
    scene.step()
    assert not scene.dispatcher.is_done()
    scene.step()
    assert scene.dispatcher.is_done()


def test_done_begins_anew_when_work_appears_between_the_passes(scene: Scene) -> None:
    own = scene.slot("a")
    scene.step()
    filename = scene.put(own.running, "job1")
    scene.step()
    os.unlink(f"{own.running}/{filename}")
    scene.step()
    assert not scene.dispatcher.is_done()
    scene.step()
    assert scene.dispatcher.is_done()


@pytest.mark.parametrize("where", ["assigned", "running"])
def test_done_waits_for_what_slots_hold(scene: Scene, where: str) -> None:
    scene.slot("a", **{where: 1})
    scene.step(3)
    assert not scene.dispatcher.is_done(wait_for_jobs=False)


def test_done_waits_for_work_that_never_was(scene: Scene) -> None:
    scene.slot("a")
    scene.step(3)
    assert not scene.dispatcher.is_done()
    assert scene.dispatcher.is_done(wait_for_jobs=False)


def test_done_counts_a_rejected_file_as_work_that_was(scene: Scene) -> None:
    scene.drop("bad.conf", text="no job\n")
    scene.step(2)
    assert scene.dispatcher.is_done()


def test_done_counts_work_that_came_and_went_between_two_passes(scene: Scene) -> None:
    scene.step()
    records(scene.project)
    scene.step(2)
    assert scene.dispatcher.is_done()


def test_run_returns_when_the_last_job_is_gone(scene: Scene) -> None:
    own = scene.slot("a", running=1)
    scene.listener.after_pass = [lambda: shutil.rmtree(own.running)]
    scene.dispatcher.run()
    assert scene.listener.passes == 3


def test_run_goes_on_when_it_is_to_stay(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fjd.dispatcher, "_LONGEST_WAIT_SECONDS", 0.0)
    scene.drop("bad.conf", text="no job\n")

    def enough() -> None:
        raise Enough

    scene.listener.after_pass = [*[lambda: None] * 3, enough]
    with pytest.raises(Enough):
        scene.dispatcher.run(stay=True)
    assert scene.dispatcher.is_done()


# Lost workers


def test_lost_slot_is_reclaimed_and_told(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    lost = scene.slot("far-1", running=1, assigned=1, identity=ELSEWHERE)
    lost.close()
    other = scene.slot("b")
    picture = scene.step()
    assert not os.path.exists(lost.path)
    # In the same pass, what it had goes to others.
    assert short(other.path) == ["far-1-job1", "far-1-running0"]
    assert picture.workers == 1
    assert [r.getMessage() for r in caplog.records if " lost: " in r.getMessage()] == [
        "far-1.aaaa lost: far no longer holds its lock"
    ]


def test_lost_slot_is_told_once_when_it_cannot_be_reclaimed(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fjd.reclaim, "kill_strays", lambda slot_name, project_path, session: False)
    lost = scene.slot("vm-1", running=1, identity=DEAD_HERE)
    for _ in range(3):
        scene.step()
        scene.clock.advance(2.0)
    said = [record.getMessage() for record in caplog.records]
    assert sum(" lost: " in line for line in said) == 1
    # It was tried each time, all the same.
    assert sum("cannot be killed" in line for line in said) == 3
    assert short(lost.running) == ["vm-1-running0"]


def test_slots_are_judged_at_the_pace_of_heartbeats(scene: Scene) -> None:
    own = scene.slot("far-1", identity=ELSEWHERE)
    scene.step()
    own.close()
    scene.clock.advance(0.9)
    scene.step()
    assert os.path.exists(own.path)
    scene.clock.advance(0.1)
    scene.step()
    assert not os.path.exists(own.path)


def test_end_of_a_worker_on_this_host_is_seen_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fjd.reclaim, "kill_strays", lambda slot_name, project_path, session: True)
    with subprocess.Popen(["sleep", "60"]) as worker:
        identity = HERE._replace(pid=worker.pid, start_ticks=host.start_ticks(worker.pid) or 0)
        own = scene.slot("vm-1", running=1, identity=identity)
        scene.step()
        assert os.path.exists(own.path)
        worker.kill()
    # The clock stands still: without the kernel's word, the next judgement would be a second away.
    scene.dispatcher.wait(Silence())
    scene.step()
    assert not os.path.exists(own.path)
    assert scene.queued() == ["vm-1-running0"]


class Silence:
    """A doorbell that never rings."""

    fd = -1


@pytest.mark.parametrize(("identity", "stays"), [(HERE, True), (DEAD_HERE, False)], ids=["living", "dead"])
def test_unfinished_slot_stays_only_while_its_process_lives(scene: Scene, identity: Identity, stays: bool) -> None:
    own = scene.slot("a", identity=identity)
    own.close()
    hidden = f"{scene.project.workerqueue}/.a.aaaa"
    os.rename(own.path, hidden)
    scene.jobs(1)
    picture = scene.step(2)
    assert os.path.exists(hidden) is stays
    assert (picture.workers, picture.queued) == (0, 1)


@as_root
def test_slot_of_another_user_is_neither_served_nor_reclaimed(scene: Scene) -> None:
    alive, dead = scene.slot("a"), scene.slot("b", running=1, identity=DEAD_HERE)
    hidden = f"{scene.project.workerqueue}/.c.aaaa"
    os.rename(scene.slot("c", identity=DEAD_HERE).path, hidden)
    for path in (alive.path, dead.path, hidden):
        os.chown(path, NOBODY, NOBODY)
    scene.jobs(1)
    picture = scene.step()
    scene.clock.advance(60.0)
    scene.step()
    assert (short(alive.path), short(dead.running), os.path.exists(hidden)) == ([], ["b-running0"], True)
    assert picture == Picture(queued=1, assigned=0, running=0, workers=0, foreign=0)


def test_what_is_no_slot_is_passed_over(scene: Scene) -> None:
    Path(scene.project.workerqueue, "notes.txt").write_text("")
    os.mkdir(f"{scene.project.workerqueue}/a folder")
    scene.jobs(1)
    picture = scene.step()
    assert (picture.workers, scene.queued()) == (0, ["job1"])


# Trouble with the disk


def fail_listing(scene: Scene, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Let the next listings of jobqueue/ fail with these errors."""
    real = disk.list_names
    left = list(numbers)

    def list_names(path: str) -> list[str]:
        if path == scene.project.jobqueue and left:
            number = left.pop(0)
            raise OSError(number, os.strerror(number), path)
        return real(path)

    monkeypatch.setattr(disk, "list_names", list_names)
    monkeypatch.setattr(fjd.dispatcher, "_RETRY_SECONDS", 0.0)


def test_run_tries_again_and_says_so_once_when_the_trouble_may_pass(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scene.drop("bad.conf", text="no job\n")
    fail_listing(scene, monkeypatch, errno.EIO, errno.ESTALE, errno.ENOSPC)
    scene.dispatcher.run()
    assert scene.listener.heard == ["found", "bad.conf"]
    assert sum("trying again" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOENT, errno.EROFS])
def test_run_raises_a_project_error_when_the_trouble_will_not_pass(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fail_listing(scene, monkeypatch, number)
    with pytest.raises(ProjectError) as caught:
        scene.dispatcher.run()
    assert caught.value.path == scene.project.jobqueue


def test_run_does_not_blame_the_project_when_nobody_reads_what_it_prints(scene: Scene) -> None:
    def broken() -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    scene.listener.after_pass = [broken]
    with pytest.raises(BrokenPipeError):
        scene.dispatcher.run()


# What hangs, and what cannot be moved


def test_idle_slot_is_served_without_its_claim_when_the_holder_hangs(scene: Scene, clock: Clock) -> None:
    """Liveness must not hang on a lock: its holder may be stopped, or on a host that crashed and kept it."""
    own = scene.slot("a")
    held = Claim.try_take(own.path)
    assert held is not None
    scene.jobs(1)
    assert scene.step().queued == 1
    clock.advance(1.9)
    assert scene.step().queued == 1
    clock.advance(0.2)
    assert scene.step().queued == 0
    assert len(spool.assigned(own.path)) == 1
    held.release()


def test_file_that_cannot_be_moved_is_told_once_and_keeps_nobody(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = scene.slot("a")
    scene.drop("a-bad.conf", "b.conf")
    real = disk.move

    def move(source: str, target: str) -> bool:
        if source.endswith("a-bad.conf"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), source)
        return real(source, target)

    monkeypatch.setattr(disk, "move", move)
    for _ in range(3):
        scene.step()
    assert len(spool.assigned(own.path)) == 1
    assert (scene.dispatcher.picture.queued, scene.dispatcher.picture.unfinished) == (1, 1)
    assert [line for line in caplog.messages if "cannot be moved" in line] == [
        f"{scene.project.jobqueue}/a-bad.conf: cannot be moved: permission denied (take it away)"
    ]
