"""Guards the transitions: each from its right state, and from every wrong one, with exactly what becomes of the job.

The wrong states are: the source is gone (somebody else was faster), the folder it goes to is gone (the slot was
removed, the project damaged), the name there is taken (a copy made by hand), the disk refuses.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fjd import disk, spool
from fjd import slot as slots
from fjd.errors import SlotLost
from fjd.names import JobName
from fjd.project import Project
from fjd.slot import Claim, Identity, LostSlot, OwnSlot

ID = "abcdef012345"
JOB = JobName("job3", ID, 1, ".conf")
NEXT = JOB.next


class Spool:
    """A project with two slots, whose claims are held."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.own = OwnSlot.take(project.workerqueue, "vm-1.k3f9", Identity.of_this_process("vm-1"))
        self.other = OwnSlot.take(project.workerqueue, "vm-2.aaaa", Identity.of_this_process("vm-2"))
        self.lost = LostSlot(self.own.path, self.own.name, None, "its process is gone")
        self.claim = self._claim(self.own)
        self.other_claim = self._claim(self.other)

    def _claim(self, own: OwnSlot) -> Claim:
        claim = Claim.try_take(own.path)
        assert claim is not None
        return claim

    def close(self) -> None:
        self.claim.release()
        self.other_claim.release()
        self.own.close()
        self.other.close()

    def put(self, folder: str, filename: str = JOB.filename, text: str = "the job") -> None:
        Path(folder, filename).write_text(text)

    def jobs(self) -> dict[str, str]:
        """Where every file that is not fjd's own lies, relative to the project, with its text."""
        found = {}
        for path in Path(self.project.path).rglob("*"):
            if path.is_file() and path.name not in (*slots.FILES, "fjd.conf"):
                found[str(path.relative_to(self.project.path))] = path.read_text()
        return found

    def place(self, folder: str, job: JobName = JOB) -> str:
        return f"{os.path.relpath(folder, self.project.path)}/{job.filename}"


@pytest.fixture
def spooled(project: Project) -> Iterator[Spool]:
    made = Spool(project)
    yield made
    made.close()


class Transition(NamedTuple):
    """A transition of JOB: from which folder, by which call, to which folder, under which name."""

    source: Callable[[Spool], str]
    run: Callable[[Spool], JobName | None]
    target: Callable[[Spool], str]
    name: JobName
    # What is raised when the folder it goes to is gone: the slot, or a directory of the project.
    target_gone: type[Exception] = FileNotFoundError


def _own(s: Spool) -> str:
    return s.own.path


def _other(s: Spool) -> str:
    return s.other.path


def _running(s: Spool) -> str:
    return s.own.running


def _jobqueue(s: Spool) -> str:
    return s.project.jobqueue


def _done(s: Spool) -> str:
    return s.project.done


def _failed(s: Spool) -> str:
    return s.project.failed


def _held(s: Spool) -> str:
    return s.project.held


TRANSITIONS = {
    "assign": Transition(_jobqueue, lambda s: spool.assign(s.project, JOB.filename, JOB, s.claim), _own, JOB, SlotLost),
    "assign a later attempt": Transition(
        _jobqueue, lambda s: spool.assign(s.project, JOB.filename, NEXT, s.claim), _own, NEXT, SlotLost
    ),
    "hand_over": Transition(
        _own, lambda s: spool.hand_over(JOB.filename, s.claim, s.other_claim), _other, JOB, SlotLost
    ),
    "take_back by its worker": Transition(
        _own, lambda s: spool.take_back(s.project, JOB.filename, s.own), _jobqueue, JOB
    ),
    "take_back by a dispatcher": Transition(
        _own, lambda s: spool.take_back(s.project, JOB.filename, s.claim), _jobqueue, JOB
    ),
    "take_back by a reclaimer": Transition(
        _own, lambda s: spool.take_back(s.project, JOB.filename, s.lost), _jobqueue, JOB
    ),
    "start": Transition(_own, lambda s: spool.start(s.own, JOB.filename), _running, JOB, SlotLost),
    "finish as succeeded": Transition(
        _running, lambda s: spool.finish(s.project, s.own, JOB, succeeded=True), _done, JOB
    ),
    "finish as failed": Transition(
        _running, lambda s: spool.finish(s.project, s.own, JOB, succeeded=False), _failed, JOB
    ),
    "finish by a reclaimer": Transition(
        _running, lambda s: spool.finish(s.project, s.lost, JOB, succeeded=True), _done, JOB
    ),
    "give_back": Transition(_running, lambda s: spool.give_back(s.project, s.own, JOB), _jobqueue, NEXT),
    "give_back by a reclaimer": Transition(
        _running, lambda s: spool.give_back(s.project, s.lost, JOB), _jobqueue, NEXT
    ),
    "reclaim": Transition(_running, lambda s: spool.reclaim(s.project, s.lost, JOB, hold=False), _jobqueue, NEXT),
    "reclaim and hold": Transition(_running, lambda s: spool.reclaim(s.project, s.lost, JOB, hold=True), _held, NEXT),
    "conclude succeeded": Transition(
        _running, lambda s: spool.conclude(s.project, s.lost, JOB, "succeeded"), _done, JOB
    ),
    "conclude failed": Transition(_running, lambda s: spool.conclude(s.project, s.lost, JOB, "failed"), _failed, JOB),
    "conclude stopped": Transition(
        _running, lambda s: spool.conclude(s.project, s.lost, JOB, "stopped"), _jobqueue, NEXT
    ),
}


@pytest.fixture(params=TRANSITIONS)
def transition(request: pytest.FixtureRequest) -> Transition:
    return TRANSITIONS[request.param]


def test_transition_moves_the_job_when_it_is_there(transition: Transition, spooled: Spool) -> None:
    spooled.put(transition.source(spooled))
    assert transition.run(spooled) == transition.name
    assert spooled.jobs() == {spooled.place(transition.target(spooled), transition.name): "the job"}


def test_transition_is_none_when_the_source_is_gone(transition: Transition, spooled: Spool) -> None:
    assert transition.run(spooled) is None
    assert spooled.jobs() == {}


def test_transition_is_none_when_the_folder_of_the_source_is_gone(transition: Transition, spooled: Spool) -> None:
    shutil.rmtree(transition.source(spooled))
    assert transition.run(spooled) is None
    assert spooled.jobs() == {}


def test_transition_happens_once_when_it_is_tried_twice(transition: Transition, spooled: Spool) -> None:
    spooled.put(transition.source(spooled))
    assert transition.run(spooled) == transition.name
    assert transition.run(spooled) is None
    assert list(spooled.jobs().values()) == ["the job"]


def test_transition_leaves_the_job_where_it_was_when_the_folder_it_goes_to_is_gone(
    transition: Transition, spooled: Spool
) -> None:
    if transition.target(spooled).startswith(transition.source(spooled)):
        # running/ lies in the slot that the job comes from.
        os.rmdir(transition.target(spooled))
    else:
        shutil.rmtree(transition.target(spooled))
    spooled.put(transition.source(spooled))
    with pytest.raises(transition.target_gone):
        transition.run(spooled)
    assert spooled.jobs() == {spooled.place(transition.source(spooled)): "the job"}


def test_transition_is_none_when_both_source_and_target_folder_are_gone(transition: Transition, spooled: Spool) -> None:
    shutil.rmtree(transition.target(spooled))
    assert transition.run(spooled) is None


def test_transition_gives_a_new_id_when_the_name_is_taken(transition: Transition, spooled: Spool) -> None:
    spooled.put(transition.source(spooled))
    spooled.put(transition.target(spooled), transition.name.filename, "another job")
    moved = transition.run(spooled)
    assert moved is not None
    assert (moved.name, moved.attempt, moved.ending) == ("job3", 1, ".conf")
    assert moved.id not in ("", ID)
    assert spooled.jobs() == {
        spooled.place(transition.target(spooled), transition.name): "another job",
        spooled.place(transition.target(spooled), moved): "the job",
    }


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO, errno.ESTALE])
def test_transition_leaves_the_job_where_it_was_when_the_disk_refuses(
    number: int, transition: Transition, spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(number, "refused")

    spooled.put(transition.source(spooled))
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="refused"):
        transition.run(spooled)
    assert spooled.jobs() == {spooled.place(transition.source(spooled)): "the job"}


def test_transition_counts_when_the_rename_happened_and_reported_enoent(
    transition: Transition, spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_rename = os.rename

    def rename_and_fail(source: str, target: str) -> None:
        real_rename(source, target)
        raise FileNotFoundError(errno.ENOENT, "a lost answer")

    spooled.put(transition.source(spooled))
    monkeypatch.setattr(os, "rename", rename_and_fail)
    assert transition.run(spooled) == transition.name


def test_transition_commits_by_one_rename(
    transition: Transition, spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    renames = []
    real_rename = os.rename

    def rename_and_note(source: str, target: str) -> None:
        renames.append((source, target))
        real_rename(source, target)

    spooled.put(transition.source(spooled))
    monkeypatch.setattr(os, "rename", rename_and_note)
    transition.run(spooled)
    assert renames == [
        (
            f"{transition.source(spooled)}/{JOB.filename}",
            f"{transition.target(spooled)}/{transition.name.filename}",
        )
    ]


ENDS = ["finish as succeeded", "finish as failed", "give_back", "reclaim", "reclaim and hold"]


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ENDS)
def test_job_has_one_outcome_when_two_end_its_attempt(first: str, second: str, spooled: Spool) -> None:
    spooled.put(spooled.own.running)
    winner = TRANSITIONS[first].run(spooled)
    after = spooled.jobs()
    assert winner is not None
    assert len(after) == 1
    assert TRANSITIONS[second].run(spooled) is None
    assert spooled.jobs() == after


def test_start_and_hand_over_have_one_winner(spooled: Spool) -> None:
    spooled.put(spooled.own.path)
    assert TRANSITIONS["start"].run(spooled) == JOB
    assert TRANSITIONS["hand_over"].run(spooled) is None
    assert spooled.jobs() == {spooled.place(spooled.own.running): "the job"}


def test_job_that_went_round_is_told_from_the_one_it_was(spooled: Spool) -> None:
    """A worker that wakes up after its job was reclaimed and assigned to it again must not finish the later attempt."""
    spooled.put(spooled.own.running)
    again = spool.reclaim(spooled.project, spooled.lost, JOB, hold=False)
    assert again == NEXT
    assert spool.assign(spooled.project, NEXT.filename, NEXT, spooled.claim) == NEXT
    assert spool.start(spooled.own, NEXT.filename) == NEXT
    assert spool.finish(spooled.project, spooled.own, JOB, succeeded=True) is None
    assert spooled.jobs() == {spooled.place(spooled.own.running, NEXT): "the job"}


# submit


def test_submit_makes_a_queued_job_with_an_id(spooled: Spool) -> None:
    job = spool.submit(spooled.project, "job3.conf", b"the job")
    assert (job.name, job.attempt, job.ending) == ("job3", 1, ".conf")
    assert job.id
    assert spooled.jobs() == {spooled.place(spooled.project.jobqueue, job): "the job"}


def test_submit_makes_two_jobs_of_one_name(spooled: Spool) -> None:
    one = spool.submit(spooled.project, "job3.conf", b"one")
    two = spool.submit(spooled.project, one.filename, b"two")
    assert spooled.jobs() == {
        spooled.place(spooled.project.jobqueue, one): "one",
        spooled.place(spooled.project.jobqueue, two): "two",
    }


def test_submit_leaves_nothing_when_the_disk_is_full(spooled: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(OSError, match="full"):
        spool.submit(spooled.project, "job3.conf", b"the job")
    assert spooled.jobs() == {}


def test_submit_raises_when_the_jobqueue_is_gone(spooled: Spool) -> None:
    os.rmdir(spooled.project.jobqueue)
    with pytest.raises(FileNotFoundError):
        spool.submit(spooled.project, "job3.conf", b"the job")


def test_submit_shows_the_job_only_when_it_is_complete(spooled: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the drop box shows under a name without a dot is taken as it is."""
    names: list[str] = []
    real_write = disk.write

    def look_and_write(fd: int, data: bytes) -> int:
        names.extend(os.listdir(spooled.project.jobqueue))
        return real_write(fd, data[:1])

    monkeypatch.setattr(disk, "write", look_and_write)
    spool.submit(spooled.project, "job3.conf", b"the job")
    assert len(names) == len("the job")
    assert all(name[0] == "." for name in names)


# reject


def reject(s: Spool, filename: str = "odd.txt", reason: str = "not a job") -> str | None:
    return spool.reject(s.project, filename, reason)


def test_reject_moves_the_file_and_says_why(spooled: Spool) -> None:
    spooled.put(spooled.project.jobqueue, "odd.txt", "odd")
    assert reject(spooled) == "odd.txt"
    assert spooled.jobs() == {
        "jobrecord/rejected/odd.txt": "odd",
        "jobrecord/rejected/odd.txt.reason": "not a job\n",
    }


def test_reject_writes_one_harmless_line_whatever_the_reason(spooled: Spool) -> None:
    spooled.put(spooled.project.jobqueue, "odd.txt")
    reject(spooled, reason="a\nb\x1b[31m\udcff")
    assert Path(spooled.project.rejected, "odd.txt.reason").read_text() == "a\\nb\\x1b[31m\\udcff\n"


def test_reject_is_none_and_leaves_no_reason_when_the_source_is_gone(spooled: Spool) -> None:
    assert reject(spooled) is None
    assert spooled.jobs() == {}


def test_reject_leaves_the_file_where_it_was_when_the_folder_it_goes_to_is_gone(spooled: Spool) -> None:
    os.rmdir(spooled.project.rejected)
    spooled.put(spooled.project.jobqueue, "odd.txt")
    with pytest.raises(FileNotFoundError):
        reject(spooled)
    assert spooled.jobs() == {"jobqueue/odd.txt": "the job"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_reject_leaves_the_file_where_it_was_when_the_disk_refuses(
    number: int, spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(number, "refused")

    spooled.put(spooled.project.jobqueue, "odd.txt")
    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="refused"):
        reject(spooled)
    assert spooled.jobs() == {"jobqueue/odd.txt": "the job"}


def test_reject_leaves_the_file_where_it_was_when_the_reason_cannot_be_written(
    spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    spooled.put(spooled.project.jobqueue, "odd.txt")
    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(OSError, match="full"):
        reject(spooled)
    assert spooled.jobs() == {"jobqueue/odd.txt": "the job"}


def test_reject_is_none_and_overwrites_nothing_when_the_name_is_taken_at_the_last_moment(
    spooled: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_write = disk.write

    def take_and_write(fd: int, data: bytes) -> int:
        spooled.put(spooled.project.rejected, "odd.txt", "theirs")
        return real_write(fd, data)

    spooled.put(spooled.project.jobqueue, "odd.txt", "odd")
    monkeypatch.setattr(disk, "write", take_and_write)
    assert reject(spooled) is None
    assert spooled.jobs() == {"jobqueue/odd.txt": "odd", "jobrecord/rejected/odd.txt": "theirs"}


@pytest.mark.parametrize("taken", [["odd.txt", "odd.txt.reason"], ["odd.txt"], ["odd.txt.reason"]])
def test_reject_overwrites_nothing_when_the_name_is_taken(taken: list[str], spooled: Spool) -> None:
    for old in taken:
        spooled.put(spooled.project.rejected, old, "there before")
    spooled.put(spooled.project.jobqueue, "odd.txt", "odd")
    name = reject(spooled)
    assert name is not None
    job = JobName.parse(name)
    assert (job.name, job.ending) == ("odd", ".txt")
    assert job.id
    assert spooled.jobs() == {
        **{f"jobrecord/rejected/{old}": "there before" for old in taken},
        f"jobrecord/rejected/{name}": "odd",
        f"jobrecord/rejected/{name}.reason": "not a job\n",
    }


def test_reject_takes_a_file_whose_name_is_that_of_a_reason(spooled: Spool) -> None:
    for filename in ("odd.txt.reason", "odd.txt"):
        spooled.put(spooled.project.jobqueue, filename, filename)
        assert reject(spooled, filename) is not None
    texts = sorted(spooled.jobs().values())
    assert texts == ["not a job\n", "not a job\n", "odd.txt", "odd.txt.reason"]


def test_reject_shortens_a_name_that_has_no_room_for_a_reason(spooled: Spool) -> None:
    long = "x" * 251 + ".txt"
    spooled.put(spooled.project.jobqueue, long, "odd")
    name = reject(spooled, long)
    assert name is not None
    assert name.startswith("x" * 200 + ".")
    assert sorted(spooled.jobs().values()) == ["not a job\n", "odd"]


@pytest.mark.parametrize("kind", ["folder with files", "dangling link", "pipe"])
def test_reject_takes_whatever_lies_there(kind: str, spooled: Spool) -> None:
    path = Path(spooled.project.jobqueue, "odd.txt")
    if kind == "folder with files":
        path.mkdir()
        (path / "inside").write_text("kept")
    elif kind == "dangling link":
        path.symlink_to("/nowhere")
    else:
        os.mkfifo(path)
    assert reject(spooled) == "odd.txt"
    assert os.listdir(spooled.project.jobqueue) == []
    assert sorted(os.listdir(spooled.project.rejected)) == ["odd.txt", "odd.txt.reason"]
    if kind == "folder with files":
        assert Path(spooled.project.rejected, "odd.txt", "inside").read_text() == "kept"


# remove_slot and the two listings


@pytest.mark.parametrize("holder", ["own", "lost"])
def test_remove_slot_removes_it_when_it_is_empty(holder: str, spooled: Spool) -> None:
    assert spool.remove_slot(spooled.own if holder == "own" else spooled.lost) is True
    assert os.listdir(spooled.project.workerqueue) == [spooled.other.name]


@pytest.mark.parametrize("holder", ["own", "lost"])
def test_remove_slot_leaves_it_when_a_job_is_assigned(holder: str, spooled: Spool) -> None:
    spooled.put(spooled.own.path)
    assert spool.remove_slot(spooled.own if holder == "own" else spooled.lost) is False
    assert spooled.jobs() == {spooled.place(spooled.own.path): "the job"}
    # What is left can start nothing, so that nothing starts between two tries.
    with pytest.raises(SlotLost):
        spool.start(spooled.own, JOB.filename)
    assert spool.take_back(spooled.project, JOB.filename, spooled.own) == JOB
    assert spool.remove_slot(spooled.own if holder == "own" else spooled.lost) is True


@pytest.mark.parametrize("holder", ["own", "lost"])
def test_remove_slot_leaves_it_when_a_job_is_running(holder: str, spooled: Spool) -> None:
    spooled.put(spooled.own.running)
    assert spool.remove_slot(spooled.own if holder == "own" else spooled.lost) is False
    assert spooled.jobs() == {spooled.place(spooled.own.running): "the job"}
    assert os.path.exists(f"{spooled.own.path}/alive")


def test_remove_slot_is_content_when_somebody_else_removed_it(spooled: Spool) -> None:
    shutil.rmtree(spooled.own.path)
    assert spool.remove_slot(spooled.lost) is True


def test_listings_of_a_slot_tell_jobs_from_what_else_is_there(spooled: Spool) -> None:
    later = NEXT.filename
    for name in (later, JOB.filename, ".draft", "fire", "half-copied.conf"):
        spooled.put(spooled.own.path, name)
    spooled.put(spooled.own.running, JOB.filename)
    # What a job wrote beside its job file is none.
    spooled.put(spooled.own.running, "result.txt")
    spooled.put(spooled.own.running, ".nfs0001")
    assert sorted(spool.assigned(spooled.own.path)) == sorted([later, JOB.filename])
    # What nobody assigned is not run, but must go somewhere before the slot can.
    assert sorted(spool.contents(spooled.own.path)) == sorted([later, JOB.filename, "half-copied.conf"])
    assert spool.running(spooled.own.path) == [JOB.filename]


def test_listings_of_a_slot_raise_but_for_running_when_the_slot_is_gone(spooled: Spool) -> None:
    shutil.rmtree(spooled.own.path)
    for listing in (spool.assigned, spool.contents):
        with pytest.raises(FileNotFoundError):
            listing(spooled.own.path)
    assert spool.running(spooled.own.path) == []


# What the log says: one line for each transition, with the job's name and ID first.


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("assign", f"job3.{ID} assigned to vm-1.k3f9"),
        ("hand_over", f"job3.{ID} handed over to vm-2.aaaa"),
        ("take_back by its worker", f"job3.{ID} taken back from vm-1.k3f9"),
        ("give_back", f"job3.{ID}~2 put back by vm-1.k3f9"),
        ("reclaim", f"job3.{ID}~2 reclaimed from vm-1.k3f9"),
        ("reclaim and hold", f"job3.{ID}~2 held: vm-1.k3f9 was lost with it"),
    ],
)
def test_transition_is_logged_once_when_it_was_won(
    name: str, line: str, spooled: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    TRANSITIONS[name].run(spooled)
    assert caplog.messages == []
    spooled.put(TRANSITIONS[name].source(spooled))
    TRANSITIONS[name].run(spooled)
    assert caplog.messages == [line]
