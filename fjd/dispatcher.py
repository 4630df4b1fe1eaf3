"""The dispatcher: which queued job goes to which slot, and when.

It holds nothing that matters. All it knows comes from looking at the directory, and everything it does is a
transition that another dispatcher may win, so any number of them, on any hosts, serve one project, and each may be
killed at any time.

A pass (`step`) looks at the slots and at jobqueue/, reclaims what lost workers left, assigns, and shares out
again what slots hold when the queue is empty. Between passes it waits for a doorbell, for the end of a worker's process
on this host, or, while jobs are unfinished, 5 to 250 ms.

How much a slot gets: as many jobs as make about a quarter of a second of work, so that short jobs do not wait for
the dispatcher; one where jobs are long; and never more than half of its even share of what is left (guided
self-scheduling), so that at the end no worker sits idle beside a full one.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import select
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from fjd import disk, host, spool
from fjd.errors import SlotLost
from fjd.intake import Intake
from fjd.lookout import Lookout
from fjd.names import JobName, natural_key
from fjd.project import Project, trouble
from fjd.queue import Queue, QueueListener
from fjd.report import Tally
from fjd.slot import Claim
from fjd.watch import Doorbell, Rhythm

__all__ = ["Dispatcher", "Listener", "Picture"]

log = logging.getLogger(__name__)

# Work that a slot holds beyond the job it runs, and the most jobs that may be.
_BACKLOG_SECONDS = 0.25
_LARGEST_BACKLOG = 64
# Even without any event, everything is looked at again after so long.
_LONGEST_WAIT_SECONDS = 5.0
_RETRY_SECONDS = 1.0
# A dispatcher holds a claim for a pass, which takes milliseconds.
_REFUSED_SECONDS = 2.0


class Picture(NamedTuple):
    """What the last pass saw."""

    queued: int
    assigned: int
    running: int
    workers: int
    # Of the queued: those that are left alone, which are other users', or which the disk does not let go.
    foreign: int

    @property
    def unfinished(self) -> int:
        return self.queued - self.foreign + self.assigned + self.running


class Listener(QueueListener, Protocol):
    """Who wants to hear what a dispatcher does."""

    def passed(self, picture: Picture, tally: Tally) -> None:
        """A pass is over."""


class _Slot:
    """A slot as this pass found it."""

    __slots__ = ("assigned", "claim", "leaving", "path", "running")

    def __init__(self, path: str, inside: list[str]) -> None:
        self.path = path
        self.assigned = spool.assigned_among(inside)
        self.leaving = "fire" in inside or "alive" not in inside
        # Listed after the jobs that wait, so that one which starts meanwhile is seen twice and not never.
        self.running = spool.running(path)
        self.claim: Claim | None = None

    @property
    def is_idle(self) -> bool:
        return not self.assigned and not self.running


class Dispatcher:
    """Serves one project. `step` does a pass, `wait` sleeps until the next one is due; `run` does both."""

    def __init__(self, project: Project, listener: Listener, clock: Callable[[], float] = time.monotonic) -> None:
        self._project = project
        self._listener = listener
        self._clock = clock
        self._intake = Intake(project, clock)
        self._poll = select.epoll()
        self._lookout = Lookout(project, self._poll, f"{host.host_name()}-dispatcher", clock)
        self.tally = Tally(project, clock)
        self.picture = Picture(0, 0, 0, 0, 0)
        self._queue = Queue(project, self._intake, listener, clock)
        self._pass_seconds = 0.0
        # Idle slots whose claim somebody else holds, and since when.
        self._refused_since: dict[str, float] = {}
        self._rhythm = Rhythm(0.005, 0.25)
        self._network_rhythm = Rhythm(0.02, 1.0)
        self._had_work = False
        self._quiet_passes = 0
        self._is_deaf = False

    def close(self) -> None:
        self._lookout.close()
        self._poll.close()

    # The loop

    def run(self, stay: bool = False, wait_for_jobs: bool = True) -> None:
        """Serve until nothing is queued, assigned or running any more; with `stay`, until interrupted.

        Work that never was is waited for, unless `wait_for_jobs` is False. Raises ProjectError.
        """
        with Doorbell() as doorbell:
            self._poll.register(doorbell.fd, select.EPOLLIN)
            try:
                # Watched first and listed then: nothing falls between the two.
                doorbell.watch_drops(self._project.jobqueue)
                doorbell.watch_arrivals(self._project.workerqueue)
                self._is_deaf = doorbell.is_deaf
                while True:
                    self._step_patiently(doorbell)
                    if not stay and self.is_done(wait_for_jobs):
                        return
                    self.wait(doorbell)
            except BrokenPipeError:
                # No file of the project, but whoever read what the listener prints.
                raise
            except OSError as error:
                raise trouble(error.filename or self._project.path, error) from error
            finally:
                self._poll.unregister(doorbell.fd)

    def _step_patiently(self, doorbell: Doorbell) -> None:
        """A pass, again and again while the disk is full or its server away."""
        said = False
        while True:
            try:
                return self.step()
            except OSError as error:
                if error.errno not in disk.CURABLE:
                    raise
                if not said:
                    log.warning("%s; trying again until it works", trouble(error.filename or self._project.path, error))
                said = True
                self._poll.poll(_RETRY_SECONDS)
                doorbell.answer()

    def is_done(self, wait_for_jobs: bool = True) -> bool:
        """Whether everything is finished, by two passes in a row, since one listing may miss a file that moves."""
        return self._quiet_passes >= 2 and (self._had_work or not wait_for_jobs)

    def wait(self, doorbell: Doorbell) -> None:
        """Sleep until a pass is due."""
        for fd, _ in self._poll.poll(self._wait_seconds()):
            if fd == doorbell.fd:
                doorbell.answer()
                self._queue.heard_something()
            else:
                self._lookout.process_ended(fd)

    def _wait_seconds(self) -> float:
        seconds = min(_LONGEST_WAIT_SECONDS, self._queue.next_look_seconds)
        if self.picture.unfinished or self._quiet_passes == 1:
            # Where the disk is slow, looking is; half of the time is left to everybody else.
            seconds = min(seconds, max(self._rhythm.seconds, self._pass_seconds))
            self._rhythm.relax()
        elif self._is_deaf or not self._project.filesystem.is_local:
            seconds = min(seconds, self._network_rhythm.seconds)
            self._network_rhythm.relax()
        return max(0.0, seconds)

    # A pass

    def step(self) -> None:
        """One pass. Raises OSError, ProjectError if the project's directory cannot be worked in."""
        start = self._clock()
        busy_before = self.picture.unfinished > 0
        slots = self._look_at_slots()
        if self._queue.look():
            self._network_rhythm.quicken()
        waiting = self._assign(slots)
        if not waiting:
            self._share_out(slots)
        if self.tally.update() or waiting or self._queue.rejected_count:
            self._had_work = True
        self.picture = Picture(
            queued=len(self._queue),
            assigned=sum(len(slot.assigned) for slot in slots),
            running=sum(len(slot.running) for slot in slots),
            workers=len(slots),
            foreign=self._queue.left_alone,
        )
        if self.picture.unfinished:
            self._had_work = True
            self._quiet_passes = 0
        else:
            self._quiet_passes += 1
            if busy_before:
                self._rhythm.quicken()
        self._pass_seconds = self._clock() - start
        self._listener.passed(self.picture, self.tally)

    def _look_at_slots(self) -> list[_Slot]:
        paths, reclaimed = self._lookout.look()
        if reclaimed:
            self._queue.has_news = True
            self._rhythm.quicken()
        slots = []
        for path in paths:
            try:
                slots.append(_Slot(path, disk.list_names(path)))
            except FileNotFoundError:
                continue
        here = {slot.path for slot in slots if slot.is_idle}
        self._refused_since = {path: since for path, since in self._refused_since.items() if path in here}
        return slots

    # Assigning

    def _assign(self, slots: list[_Slot]) -> int:
        """Give queued jobs to slots with room; how many of this user's are left in the queue."""
        in_slots = {JobName.parse(n).id: slot.path for slot in slots for n in (*slot.assigned, *slot.running)}
        rooms = _rooms(slots, self._depth(slots))
        room = next(rooms, None)
        try:
            with contextlib.closing(self._queue.ready(lambda: room is not None)) as ready:
                for filename in ready:
                    room = self._assign_one(filename, room, rooms, in_slots)
        finally:
            for slot in slots:
                if slot.claim is not None:
                    slot.claim.release()
                    slot.claim = None
        return len(self._queue) - self._queue.left_alone

    def _assign_one(
        self, filename: str, slot: _Slot | None, rooms: Iterator[_Slot], in_slots: dict[str, str]
    ) -> _Slot | None:
        """Assign a job that is ready to `slot`, or to the next one that works; the slot for the next job."""
        job = self._intake.name_for(filename, in_slots)
        while slot is not None:
            if slot.claim is None and not slot.leaving:
                slot.claim = self._try_claim(slot)
            if slot.claim is None or slot.leaving:
                # Another dispatcher serves it, or it goes.
                slot.leaving = True
                slot = next(rooms, None)
                continue
            try:
                moved = spool.assign(self._project, filename, job, slot.claim)
            except SlotLost:
                slot.leaving = True
                continue
            except OSError as error:
                self._queue.leave_alone(filename, error)
                self._queue.keep(filename)
                return slot
            if moved is not None:
                slot.assigned.append(moved.filename)
                in_slots[moved.id] = slot.path
                self._rhythm.quicken()
                return next(rooms, None)
            # Another dispatcher was faster; this room is still free.
            return slot
        self._queue.keep(filename)
        return None

    def _try_claim(self, slot: _Slot) -> Claim | None:
        """The claim on a slot; without its lock, if an idle slot was refused for so long that its holder must hang."""
        claim = Claim.try_take(slot.path)
        if claim is not None or not slot.is_idle:
            self._refused_since.pop(slot.path, None)
            return claim
        since = self._refused_since.setdefault(slot.path, self._clock())
        return Claim.without_lock(slot.path) if self._clock() - since > _REFUSED_SECONDS else None

    def _depth(self, slots: list[_Slot]) -> int:
        """How many jobs a slot may hold that it has not started."""
        if self.tally.job_seconds is None:
            return 1
        depth = math.ceil(_BACKLOG_SECONDS / max(self.tally.job_seconds, 0.001))
        share = math.ceil(len(self._queue) / (2 * max(1, len(slots))))
        return max(1, min(depth, _LARGEST_BACKLOG, share))

    def _share_out(self, slots: list[_Slot]) -> None:
        """Move half of the longest backlog of a busy slot to each idle one, the last ones first."""
        for taker in slots:
            if not taker.is_idle or taker.leaving:
                continue
            giver = max(slots, key=lambda slot: len(slot.assigned) if slot.running else 0)
            if not giver.running or not giver.assigned:
                return
            giving, taking = Claim.try_take(giver.path), Claim.try_take(taker.path)
            try:
                if giving and taking:
                    self._hand_over(giver, giving, taker, taking)
            finally:
                for claim in (giving, taking):
                    if claim is not None:
                        claim.release()

    def _hand_over(self, giver: _Slot, giving: Claim, taker: _Slot, taking: Claim) -> None:
        giver.assigned.sort(key=natural_key)
        for filename in reversed(giver.assigned[len(giver.assigned) // 2 :]):
            try:
                moved = spool.hand_over(filename, giving, taking)
            except SlotLost:
                return
            giver.assigned.remove(filename)
            if moved is not None:
                taker.assigned.append(filename)


def _rooms(slots: list[_Slot], depth: int) -> Iterator[_Slot]:
    """The slots that may take a job, each as often as it may: the idle ones first, then level by level.

    A slot that runs nothing starts its first job at once, which leaves the whole depth for jobs that wait.
    """
    first = [slot for slot in slots if slot.is_idle and not slot.leaving]

    def deeper() -> Iterator[_Slot]:
        for level in range(depth):
            for slot in slots:
                if not slot.leaving and len(slot.assigned) - (0 if slot.running else 1) <= level:
                    yield slot

    return itertools.chain(first, deeper())
