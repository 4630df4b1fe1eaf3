"""Guards a worker's slot: never seen half made, held by one, left clean; who is judged lost, and when.

The clock is the observer's, and never the worker's.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import Clock

from fjd import disk, judge, slot
from fjd.errors import InternalError, SlotLost, TargetTaken
from fjd.filesystem import Filesystem
from fjd.judge import Judge
from fjd.project import Project
from fjd.settings import Settings
from fjd.slot import Claim, Identity, Order, OwnSlot, give_order, read_identity, read_session, set_aside

HERE = Identity.of_this_process("vm-1", "tmux", "tmux attach")
DEAD_HERE = HERE._replace(start_ticks=1)
ELSEWHERE = Identity("vm-2", "vm-2", "another boot/1", os.getpid(), 1)

LOCKS = Filesystem("ext4", is_local=True, locks_are_proof=True)
NO_LOCKS = Filesystem("nfs4", is_local=False, locks_are_proof=False)
LIMITS = Settings(heartbeat_seconds=2, lost_seconds=30)


def tree(path: str) -> set[str]:
    """Everything below a directory, as paths relative to it."""
    return {str(found.relative_to(path)) for found in Path(path).rglob("*")}


@pytest.fixture
def queue(project: Project) -> str:
    return project.workerqueue


# Taking


def test_take_makes_a_slot_with_all_its_files(queue: str) -> None:
    own = OwnSlot.take(queue, "vm-1.k3f9", HERE)
    try:
        assert tree(queue) == {"vm-1.k3f9", "vm-1.k3f9/alive", "vm-1.k3f9/claim", "vm-1.k3f9/running"}
        assert (own.path, own.name, own.running) == (f"{queue}/vm-1.k3f9", "vm-1.k3f9", f"{queue}/vm-1.k3f9/running")
        assert read_identity(own.path) == HERE
        assert stat.S_IMODE(os.stat(own.path).st_mode) == 0o700
    finally:
        own.close()


def test_take_shows_the_slot_only_when_it_is_complete(queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    real_move = disk.move

    def look_and_move(source: str, target: str) -> bool:
        seen.append(tree(source))
        assert not [name for name in os.listdir(queue) if name[0] != "."]
        return real_move(source, target)

    monkeypatch.setattr(disk, "move", look_and_move)
    OwnSlot.take(queue, "vm-1.k3f9", HERE).close()
    assert seen == [{"alive", "claim", "running"}]


def test_take_refuses_and_leaves_nothing_when_the_name_is_taken(queue: str, own_slot: OwnSlot) -> None:
    before = tree(queue)
    with pytest.raises(TargetTaken):
        OwnSlot.take(queue, own_slot.name, ELSEWHERE)
    assert tree(queue) == before
    assert read_identity(own_slot.path) == Identity.of_this_process("vm-1")


def test_take_raises_and_leaves_nothing_when_the_disk_is_full(queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk, "write", full)
    with pytest.raises(OSError, match="full"):
        OwnSlot.take(queue, "vm-1.k3f9", HERE)
    assert tree(queue) == set()


def test_take_raises_when_the_disk_becomes_full_in_the_middle_of_the_identity(
    queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot of nobody could never be judged by its process, nor what is left of its jobs be killed."""
    sizes = [30]
    real_write = disk.write

    def write(fd: int, data: bytes) -> int:
        if not sizes:
            raise OSError(errno.ENOSPC, "full")
        return real_write(fd, data[: sizes.pop()])

    monkeypatch.setattr(disk, "write", write)
    with pytest.raises(OSError, match="No space left"):
        OwnSlot.take(queue, "vm-1.k3f9", HERE)
    assert tree(queue) == set()


def test_take_raises_when_the_hidden_slot_was_removed_while_it_was_made(
    queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "move", lambda source, target: False)
    with pytest.raises(SlotLost):
        OwnSlot.take(queue, "vm-1.k3f9", HERE)
    assert tree(queue) == set()


def test_take_raises_when_the_workerqueue_is_gone(queue: str) -> None:
    os.rmdir(queue)
    with pytest.raises(FileNotFoundError):
        OwnSlot.take(queue, "vm-1.k3f9", HERE)


def test_take_new_takes_another_name_when_one_is_taken(queue: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["vm-1.aaaa", "vm-1.aaaa", "vm-1.bbbb"]
    monkeypatch.setattr(slot, "new_slot_name", lambda worker: names.pop(0))
    one, two = slot.take_new(queue, "vm-1"), slot.take_new(queue, "vm-1", "tmux", "look")
    assert (one.name, two.name) == ("vm-1.aaaa", "vm-1.bbbb")
    assert read_identity(two.path) == Identity.of_this_process("vm-1", "tmux", "look")
    one.close()
    two.close()


def test_new_slot_name_is_a_slot_name_of_its_worker() -> None:
    name = slot.new_slot_name("vm-1")
    assert name.startswith("vm-1.")
    assert slot.is_slot_name(name)


def test_new_slot_name_is_a_bug_when_the_worker_has_no_slot_name() -> None:
    with pytest.raises(InternalError):
        slot.new_slot_name("../x")


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("vm-1.k3f9", True),
        ("a_B-9.abcdef", True),
        ("vm-1", False),
        (".vm-1.k3f9", False),
        ("vm-1.k3f", False),
        ("vm-1.K3F9", False),
        ("vm-1.k3f9\n", False),
        ("a.b.k3f9", False),
        ("../x.k3f9", False),
    ],
)
def test_is_slot_name_knows(name: str, is_one: bool) -> None:
    assert slot.is_slot_name(name) is is_one


# Beating


def counter(own: OwnSlot) -> int:
    return int(Path(own.path, "alive").read_text().split()[0])


def test_session_is_read_back_and_survives_a_beat(own_slot: OwnSlot) -> None:
    assert read_session(own_slot.path) == (0, 0)
    before = read_identity(own_slot.path)
    own_slot.note_session(os.getpid())
    own_slot.beat()
    assert read_session(own_slot.path) == (os.getpid(), before.start_ticks if before else 0)
    assert read_identity(own_slot.path) == before
    Path(own_slot.path, "alive").write_text("what is this")
    assert read_session(own_slot.path) == (0, 0)


def test_beat_changes_the_counter_and_nothing_else(own_slot: OwnSlot) -> None:
    before = read_identity(own_slot.path)
    counters = []
    for _ in range(3):
        own_slot.beat()
        counters.append(counter(own_slot))
    assert counters == [1, 2, 3]
    assert read_identity(own_slot.path) == before


def test_beat_needs_no_space_on_a_full_disk(own_slot: OwnSlot) -> None:
    size = os.stat(f"{own_slot.path}/alive").st_size
    own_slot.beat()
    assert os.stat(f"{own_slot.path}/alive").st_size == size


def test_beat_raises_when_the_heartbeat_file_was_removed(own_slot: OwnSlot) -> None:
    os.unlink(f"{own_slot.path}/alive")
    with pytest.raises(SlotLost):
        own_slot.beat()


def test_beat_raises_when_the_slot_was_moved_away(own_slot: OwnSlot) -> None:
    os.rename(own_slot.path, f"{own_slot.path}-away")
    with pytest.raises(SlotLost):
        own_slot.beat()


def test_beat_passes_the_error_on_when_the_server_does_not_answer(
    own_slot: OwnSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(fd: int, data: bytes) -> None:
        raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(disk, "overwrite", no_answer)
    with pytest.raises(OSError, match="no answer"):
        own_slot.beat()


# Orders


def test_order_is_none_when_there_is_none(own_slot: OwnSlot) -> None:
    assert own_slot.order() is None


@pytest.mark.parametrize("order", [Order.DRAIN, Order.NOW])
def test_order_is_what_was_given(order: Order, own_slot: OwnSlot) -> None:
    give_order(own_slot.path, order)
    assert own_slot.order() is order


def test_order_is_the_later_one_when_two_were_given(own_slot: OwnSlot) -> None:
    give_order(own_slot.path, Order.DRAIN)
    give_order(own_slot.path, Order.NOW)
    assert own_slot.order() is Order.NOW
    assert tree(own_slot.path) == {"alive", "claim", "fire", "running"}


@pytest.mark.parametrize("text", [b"", b"go away", b"\xff\0", b"NOW"])
def test_order_is_to_leave_after_the_job_when_the_file_says_anything_else(text: bytes, own_slot: OwnSlot) -> None:
    Path(own_slot.path, "fire").write_bytes(text)
    assert own_slot.order() is Order.DRAIN


def test_give_order_raises_when_the_worker_has_left(own_slot: OwnSlot) -> None:
    assert own_slot.leave()
    with pytest.raises(SlotLost):
        give_order(own_slot.path, Order.NOW)


def test_give_order_raises_when_the_worker_leaves_just_then(own_slot: OwnSlot, monkeypatch: pytest.MonkeyPatch) -> None:
    real_replace = os.replace

    def leave_first(source: str, target: str) -> None:
        assert own_slot.leave()
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", leave_first)
    with pytest.raises(SlotLost):
        give_order(own_slot.path, Order.NOW)


# Leaving


def test_leave_removes_an_empty_slot_with_its_orders_and_drafts(own_slot: OwnSlot, queue: str) -> None:
    give_order(own_slot.path, Order.NOW)
    Path(own_slot.path, ".fire.draft").write_text("")
    assert own_slot.leave() is True
    assert tree(queue) == set()


@pytest.mark.parametrize("place", ["job.abcdef012345.conf", "running/job.abcdef012345.conf", "job.conf"])
def test_leave_keeps_every_job_and_the_lock(place: str, own_slot: OwnSlot) -> None:
    Path(own_slot.path, place).write_text("")
    assert own_slot.leave() is False
    assert tree(own_slot.path) >= {place, "alive", "claim"}
    assert not slot.lock_is_free(own_slot.path)
    own_slot.beat()


def test_leave_is_content_when_the_slot_is_gone_already(own_slot: OwnSlot) -> None:
    assert slot.remove_slot(own_slot.path) is True
    assert own_slot.leave() is True


def test_leave_lets_a_job_start_no_more_when_one_came_at_the_last_moment(
    own_slot: OwnSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job assigned between the last look and the removal stays, and the slot with it, to be drained again."""
    real_remove_folder = disk.remove_folder

    def assign_first(path: str) -> bool:
        if path == own_slot.path:
            Path(path, "job.abcdef012345.conf").write_text("")
        return real_remove_folder(path)

    monkeypatch.setattr(disk, "remove_folder", assign_first)
    assert own_slot.leave() is False
    assert tree(own_slot.path) == {"job.abcdef012345.conf"}


def test_close_may_be_called_twice(queue: str) -> None:
    own = OwnSlot.take(queue, "vm-1.k3f9", HERE)
    own.close()
    own.close()


# Claims


def test_claim_is_held_by_one_at_a_time(own_slot: OwnSlot) -> None:
    claim = Claim.try_take(own_slot.path)
    assert claim is not None
    assert (claim.path, claim.name) == (own_slot.path, own_slot.name)
    assert Claim.try_take(own_slot.path) is None
    claim.release()
    again = Claim.try_take(own_slot.path)
    assert again is not None
    again.release()


def test_claim_is_none_when_the_slot_is_gone(own_slot: OwnSlot) -> None:
    own_slot.leave()
    assert Claim.try_take(own_slot.path) is None


def test_claim_is_everybodys_when_the_filesystem_has_no_locks(
    own_slot: OwnSlot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(fd: int, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(slot, "lock_descriptor", no_locks)
    claims = [Claim.try_take(own_slot.path), Claim.try_take(own_slot.path)]
    for claim in claims:
        assert claim is not None
        claim.release()


# Identities

LIES = [
    b"",
    b"\0" * 4096,
    b"1",
    b"00000000000000000001\n",
    b"1\nnot json\n",
    b"1\n[]\n",
    b"1\n5\n",
    b"1\nnull\n",
    b"1\n{}\n",
    b'1\n{"worker": "a"}\n',
    b"1\n" + json.dumps({**HERE._asdict(), "pid": "5"}).encode(),
    b"1\n" + json.dumps({**HERE._asdict(), "host": None}).encode(),
    b"1\n" + json.dumps({**HERE._asdict(), "start_ticks": 1.5}).encode(),
    b"1\n" + json.dumps({**HERE._asdict(), "more": 1}).encode(),
    b"1\n" + b"[" * 60_000,
    b"1\n" + b'{"a":' * 10_000,
    b"1\n\xff\xfe\n",
]


@pytest.mark.parametrize("text", LIES)
def test_identity_is_none_when_the_file_says_nothing_that_makes_sense(text: bytes, own_slot: OwnSlot) -> None:
    Path(own_slot.path, "alive").write_bytes(text)
    assert read_identity(own_slot.path) is None


def test_identity_is_here_only_on_the_same_machine() -> None:
    assert HERE.is_here
    assert HERE.is_running
    assert not DEAD_HERE.is_running
    assert not ELSEWHERE.is_here


# Judging


class Watched:
    """A slot that an observer looks at once a second."""

    def __init__(self, queue: str, identity: Identity, filesystem: Filesystem) -> None:
        self.clock = Clock()
        self.own = OwnSlot.take(queue, "vm-1.k3f9", identity)
        self.judge = Judge(LIMITS, filesystem, self.clock)

    def look(self, seconds: float = 1.0) -> str | None:
        """Why the worker is lost; None if it may be alive."""
        self.clock.advance(seconds)
        lost = self.judge.try_lost(self.own.path)
        assert lost is None or (lost.path, lost.name) == (self.own.path, self.own.name)
        return lost.reason if lost else None


@pytest.fixture
def here(queue: str) -> Iterator[Watched]:
    watched = Watched(queue, HERE, LOCKS)
    yield watched
    watched.own.close()


@pytest.fixture
def elsewhere(queue: str) -> Iterator[Watched]:
    watched = Watched(queue, ELSEWHERE, NO_LOCKS)
    yield watched
    watched.own.close()


def test_worker_is_never_lost_while_it_beats(elsewhere: Watched) -> None:
    for _ in range(100):
        elsewhere.own.beat()
        assert elsewhere.look() is None


def test_worker_is_lost_at_once_when_its_process_on_this_host_is_gone(queue: str) -> None:
    watched = Watched(queue, DEAD_HERE, NO_LOCKS)
    assert watched.look() == f"its process {DEAD_HERE.pid} is gone"
    watched.own.close()


def test_worker_is_lost_at_once_when_its_process_ends_between_two_looks(
    here: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert here.look() is None
    monkeypatch.setattr("fjd.host.start_ticks", lambda pid: None)
    # The process table is proof, so the disk is not even asked.
    monkeypatch.setattr(judge, "read_alive", None)
    assert here.look() == f"its process {HERE.pid} is gone"


def test_worker_is_not_lost_when_a_process_of_the_same_pid_is_gone_elsewhere(elsewhere: Watched) -> None:
    assert elsewhere.look() is None


def test_worker_here_is_lost_when_its_heart_stands_still_for_long_enough(here: Watched) -> None:
    """As a stopped process (SIGSTOP) does: its pid and its lock are still there."""
    here.own.beat()
    assert here.look() is None
    for _ in range(29):
        assert here.look() is None
    assert here.look() == "no heartbeat for 30 seconds"


def test_worker_elsewhere_is_lost_when_its_heart_stands_still_for_long_enough(elsewhere: Watched) -> None:
    elsewhere.own.beat()
    assert elsewhere.look() is None
    elsewhere.own.close()
    for _ in range(29):
        assert elsewhere.look() is None
    assert elsewhere.look() == "no heartbeat for 30 seconds"


def test_worker_is_given_the_whole_time_again_after_each_beat(elsewhere: Watched) -> None:
    for _ in range(3):
        elsewhere.own.beat()
        for _ in range(30):
            assert elsewhere.look() is None


def test_worker_is_not_lost_because_its_observer_slept(elsewhere: Watched) -> None:
    """A dispatcher that was stopped for an hour saw nothing in that time: the gap counts as one heartbeat."""
    elsewhere.own.beat()
    assert elsewhere.look() is None
    assert elsewhere.look(3600) is None
    for _ in range(27):
        assert elsewhere.look() is None
    assert elsewhere.look() == "no heartbeat for 30 seconds"


def test_worker_elsewhere_is_lost_at_once_when_its_lock_is_free_and_locks_are_proof(queue: str) -> None:
    watched = Watched(queue, ELSEWHERE, LOCKS)
    assert watched.look() is None
    watched.own.close()
    assert watched.look() == "vm-2 no longer holds its lock"


def test_worker_elsewhere_is_not_lost_by_its_lock_when_locks_prove_nothing(elsewhere: Watched) -> None:
    elsewhere.own.close()
    assert elsewhere.look() is None


def test_worker_elsewhere_is_not_lost_by_its_lock_when_the_filesystem_has_none(
    queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(queue, ELSEWHERE, LOCKS)
    watched.own.close()

    def no_locks(fd: int, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(slot, "lock_descriptor", no_locks)
    assert watched.look() is None


def test_observer_takes_no_lock_with_it(queue: str) -> None:
    watched = Watched(queue, ELSEWHERE, LOCKS)
    watched.own.close()
    assert watched.look() is not None
    assert slot.lock_is_free(watched.own.path)


def test_worker_is_lost_at_the_second_look_without_a_heartbeat_file(here: Watched) -> None:
    """A worker that leaves removes the file a moment before the slot; that moment is not its loss."""
    assert here.look() is None
    os.unlink(f"{here.own.path}/alive")
    assert here.look() is None
    assert here.look() == "its heartbeat file is gone"


def test_worker_is_not_lost_when_the_heartbeat_file_comes_back(elsewhere: Watched) -> None:
    path = Path(elsewhere.own.path, "alive")
    text = path.read_bytes()
    path.unlink()
    assert elsewhere.look() is None
    path.write_bytes(text)
    assert elsewhere.look() is None
    path.unlink()
    assert elsewhere.look() is None


@pytest.mark.parametrize("text", LIES)
def test_worker_that_lies_is_lost_only_after_the_whole_time(text: bytes, here: Watched) -> None:
    Path(here.own.path, "alive").write_bytes(text)
    looks = [here.look() for _ in range(32)]
    assert looks[:30] == [None] * 30
    assert looks[-1] == "no heartbeat for 30 seconds"


def test_judge_knows_who_holds_a_slot_after_it_looked(here: Watched) -> None:
    assert here.judge.identity(here.own.path) is None
    here.look()
    assert here.judge.identity(here.own.path) == HERE


def test_judge_keeps_the_identity_of_a_worker_whose_file_is_gone(here: Watched) -> None:
    """Whoever reclaims needs it to kill what is left of the worker's jobs."""
    here.look()
    os.unlink(f"{here.own.path}/alive")
    here.look()
    lost = here.judge.try_lost(here.own.path)
    assert lost is not None
    assert lost.identity == HERE


def test_judge_forgets_slots_that_are_not_there_any_more(elsewhere: Watched) -> None:
    for _ in range(25):
        elsewhere.look()
    elsewhere.judge.forget_others({elsewhere.own.path})
    assert elsewhere.judge.identity(elsewhere.own.path) is not None
    elsewhere.judge.forget_others(set())
    assert elsewhere.judge.identity(elsewhere.own.path) is None
    for _ in range(25):
        assert elsewhere.look() is None


# What jobs wrote into running/


def test_set_aside_keeps_what_a_job_wrote_and_frees_the_slot(project: Project) -> None:
    own = OwnSlot.take(project.workerqueue, "vm-1.aaaa", Identity.of_this_process("vm-1"))
    for text, name in (("a", "out.txt"), ("b", ".hidden")):
        Path(own.running, name).write_text(text)
    Path(own.running, "folder").mkdir()
    Path(project.logs, "vm-1.aaaa.out.txt").write_text("of an earlier job")
    assert not own.leave()
    set_aside(own.path, project.logs)
    assert own.leave()
    kept = sorted(path.read_text() for path in Path(project.logs).iterdir() if path.is_file())
    assert kept == ["a", "b", "of an earlier job"]
    assert Path(project.logs, "vm-1.aaaa.folder").is_dir()


def test_set_aside_leaves_jobs_and_what_nfs_keeps(project: Project, own_slot: OwnSlot) -> None:
    for name in ("job.abcdef012345.conf", ".nfs000001"):
        Path(own_slot.running, name).write_text("")
    set_aside(own_slot.path, project.logs)
    assert sorted(os.listdir(own_slot.running)) == [".nfs000001", "job.abcdef012345.conf"]
