"""The dispatcher: which queued job goes to which slot, and when.

It holds nothing that matters. All it knows comes from looking at the directory, and everything it does is a
transition that another dispatcher may win, so any number of them, on any hosts, serve one project, and each may be
killed at any time.

A pass (`step`) looks at the slots and at jobqueue/, reclaims what lost workers left, assigns, and shares out
again what slots hold when the queue is empty. Between passes it waits for a doorbell, for the end of a worker's process
on this host, or for the time when slots will need more.

How much a slot gets: as many jobs as make about a quarter of a second of work, so that short jobs do not wait for
the dispatcher; one where jobs are long; and never more than half of its even share of what is left (guided
self-scheduling), so that at the end no worker sits idle beside a full one.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from fjd import disk, host, names, spool
from fjd.errors import SlotLost, printable
from fjd.intake import Foreign, Intake, Ready, Rejected, Verdict, Waiting
from fjd.names import JobName, natural_key
from fjd.project import Project, trouble
from fjd.reclaim import Reclaimer
from fjd.report import Tally
from fjd.slot import Claim, Judge, discard_unfinished, is_slot_name, is_unfinished
from fjd.watch import Doorbell, Rhythm

__all__ = ["Dispatcher", "Listener", "Picture"]

log = logging.getLogger(__name__)

# Work that a slot holds beyond the job it runs, and the most jobs that may be.
_BACKLOG_SECONDS = 0.25
_LARGEST_BACKLOG = 64
# Even without any event, everything is looked at again after so long.
_LONGEST_WAIT_SECONDS = 5.0
_RETRY_SECONDS = 1.0
# What cannot be assigned yet is examined all the same, so many at a time: what is not a job is told at once.
_LOOK_AHEAD = 200


class Picture(NamedTuple):
    """What the last pass saw."""

    queued: int
    assigned: int
    running: int
    workers: int
    # Of the queued: those of other users, which wait for their own workers.
    foreign: int

    @property
    def unfinished(self) -> int:
        return self.queued - self.foreign + self.assigned + self.running


class Listener(Protocol):
    """Who wants to hear what a dispatcher does."""

    def found(self) -> None:
        """There are jobs to dispatch, after there were none."""

    def rejected(self, filename: str, reason: str) -> None: ...

    def passed(self, picture: Picture, tally: Tally) -> None:
        """A pass is over."""


class _Slot:
    """A slot as this pass found it."""

    __slots__ = ("assigned", "claim", "leaving", "name", "path", "running")

    def __init__(self, path: str, name: str, inside: list[str]) -> None:
        self.path = path
        self.name = name
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
        self._judge = Judge(project.settings, project.filesystem, clock)
        self._reclaimer = Reclaimer(project, f"{host.host_name()}-dispatcher")
        self.tally = Tally(project, clock)
        self.picture = Picture(0, 0, 0, 0, 0)
        # What jobqueue/ held when it was listed, in the order to assign; and when to look at a file again.
        self._queue: deque[str] = deque()
        self._not_before: dict[str, float] = {}
        self._being_written: set[str] = set()
        self._foreign: set[str] = set()
        self._examined: set[str] = set()
        # When jobqueue/ was last listed, and how long that took.
        self._listed = -math.inf
        self._listing_seconds = 0.0
        self._pass_seconds = 0.0
        self._next_judgement = 0.0
        self._own_slots: dict[str, bool] = {}
        self._told_lost: set[str] = set()
        self._process_fds: dict[int, int] = {}
        self._poll = select.epoll()
        self._rhythm = Rhythm(0.005, 0.25)
        self._network_rhythm = Rhythm(0.02, 1.0)
        self._news = True
        self._had_work = False
        self._quiet_passes = 0
        self._is_deaf = False

    def close(self) -> None:
        for fd in self._process_fds.values():
            os.close(fd)
        self._process_fds.clear()
        self._poll.close()
        self._reclaimer.close()

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
                self._news = True
                # One of them may have been closed.
                for filename in self._being_written:
                    self._not_before.pop(filename, None)
                self._being_written.clear()
            else:
                # A worker's process has ended: judge now. Its descriptor would ring for ever.
                self._next_judgement = 0.0
                for pid in [pid for pid, known in self._process_fds.items() if known == fd]:
                    os.close(self._process_fds.pop(pid))

    def _wait_seconds(self) -> float:
        now = self._clock()
        seconds = _LONGEST_WAIT_SECONDS
        if self._not_before:
            seconds = min(seconds, min(self._not_before.values()) - now)
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
        self._list_queue()
        waiting = self._assign(slots)
        if not waiting:
            self._share_out(slots)
        if self.tally.update() or waiting:
            self._had_work = True
        self.picture = Picture(
            queued=len(self._queue),
            assigned=sum(len(slot.assigned) for slot in slots),
            running=sum(len(slot.running) for slot in slots),
            workers=len(slots),
            foreign=len(self._foreign),
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
        names_now = [name for name in disk.list_names(self._project.workerqueue) if self._is_own_slot(name)]
        paths = {f"{self._project.workerqueue}/{name}" for name in names_now}
        if self._clock() >= self._next_judgement:
            self._judge_all(paths)
        slots = []
        for path in sorted(path for path in paths if not is_unfinished(path)):
            try:
                slots.append(_Slot(path, os.path.basename(path), disk.list_names(path)))
            except FileNotFoundError:
                continue
        return slots

    def _is_own_slot(self, name: str) -> bool:
        """Whether a slot is of this user; what others made is theirs to serve, and theirs to reclaim."""
        if not is_slot_name(name.removeprefix(".")):
            return False
        if name not in self._own_slots:
            try:
                found = os.lstat(f"{self._project.workerqueue}/{name}")
            except FileNotFoundError:
                return False
            self._own_slots[name] = found.st_uid == os.geteuid()
        return self._own_slots[name]

    def _judge_all(self, paths: set[str]) -> None:
        self._next_judgement = self._clock() + min(1.0, self._project.settings.heartbeat_seconds)
        self._judge.forget_others(paths)
        self._forget_processes(paths)
        for path in sorted(paths):
            lost = self._judge.try_lost(path)
            if lost is None:
                self._watch_process(path)
                continue
            if is_unfinished(path):
                # Nobody saw this slot, so nothing was assigned to it.
                discard_unfinished(lost)
                continue
            if path not in self._told_lost:
                self._told_lost.add(path)
                log.warning("%s lost: %s", lost.name, lost.reason)
            if self._reclaimer.reclaim(lost):
                paths.discard(path)
            self._news = True
            self._rhythm.quicken()

    def _watch_process(self, path: str) -> None:
        """Have the kernel tell when a worker of this host ends."""
        identity = self._judge.identity(path)
        if identity is None or not identity.is_here or identity.pid in self._process_fds:
            return
        try:
            fd = os.pidfd_open(identity.pid)
        except (OSError, AttributeError):
            # Gone since, or an old kernel: the next judgement finds out.
            return
        self._process_fds[identity.pid] = fd
        self._poll.register(fd, select.EPOLLIN)

    def _forget_processes(self, paths: set[str]) -> None:
        identities = [self._judge.identity(path) for path in paths]
        pids = {identity.pid for identity in identities if identity is not None}
        for pid in self._process_fds.keys() - pids:
            os.close(self._process_fds.pop(pid))

    def _list_queue(self) -> None:
        """List jobqueue/ if there is news, if all of it is assigned, or if a second has passed.

        A long queue takes long to list; no more than a fifth of the time goes into that.
        """
        start = self._clock()
        rest_seconds = 5 * self._listing_seconds if self._news else max(1.0, 5 * self._listing_seconds)
        if self._queue and start < self._listed + rest_seconds:
            return
        if self._news:
            self._network_rhythm.quicken()
        self._news = False
        found = [name for name in disk.list_names(self._project.jobqueue) if not names.is_ignored(name)]
        found.sort(key=natural_key)
        if found and not self._queue:
            self._listener.found()
            self._network_rhythm.quicken()
        here = set(found)
        self._queue = deque(found)
        self._foreign.clear()
        self._examined &= here
        self._not_before = {name: due for name, due in self._not_before.items() if name in here}
        self._intake.forget_others(here)
        self._listed = start
        self._listing_seconds = self._clock() - start

    # Assigning

    def _assign(self, slots: list[_Slot]) -> int:
        """Give queued jobs to slots with room; how many of this user's are left in the queue."""
        in_slots = {JobName.parse(n).id: slot.path for slot in slots for n in (*slot.assigned, *slot.running)}
        rooms = _rooms(slots, self._depth(slots))
        room = next(rooms, None)
        left: list[str] = []
        look_ahead = _LOOK_AHEAD
        try:
            while self._queue and look_ahead > 0:
                filename = self._queue.popleft()
                look_ahead -= room is None
                if room is None and filename in self._examined:
                    left.append(filename)
                elif self._may_be_assigned(filename, left):
                    if room is None:
                        self._examined.add(filename)
                        left.append(filename)
                    else:
                        room = self._assign_one(filename, room, rooms, in_slots, left)
        finally:
            self._queue.extendleft(reversed(left))
            for slot in slots:
                if slot.claim is not None:
                    slot.claim.release()
                    slot.claim = None
        return len(self._queue) - len(self._foreign)

    def _may_be_assigned(self, filename: str, left: list[str]) -> bool:
        """Whether a file of jobqueue/ is a job that can go now; if not, and it stays there, it is added to `left`."""
        if filename in self._foreign:
            left.append(filename)
            return False
        verdict = self._examine(filename)
        if isinstance(verdict, (Waiting, Foreign)):
            left.append(filename)
        return isinstance(verdict, Ready)

    def _assign_one(
        self, filename: str, room: _Slot, rooms: Iterator[_Slot], in_slots: dict[str, str], left: list[str]
    ) -> _Slot | None:
        """Assign a job that is ready to `room`, or the next one that works; the slot for the next job."""
        job = self._intake.name_for(filename, in_slots)
        slot: _Slot | None = room
        while slot is not None:
            if slot.claim is None and not slot.leaving:
                slot.claim = Claim.try_take(slot.path)
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
            if moved is not None:
                slot.assigned.append(moved.filename)
                in_slots[moved.id] = slot.path
                self._rhythm.quicken()
                return next(rooms, None)
            # Another dispatcher was faster; this room is still free.
            return slot
        left.append(filename)
        return None

    def _examine(self, filename: str) -> Verdict | None:
        if self._not_before.get(filename, 0.0) > self._clock():
            return Waiting(0.0)
        self._not_before.pop(filename, None)
        verdict = self._intake.try_examine(filename)
        if isinstance(verdict, Waiting):
            self._not_before[filename] = self._clock() + verdict.seconds
            if verdict.has_writer:
                self._being_written.add(filename)
        elif isinstance(verdict, Rejected):
            if spool.reject(self._project, filename, verdict.reason) is not None:
                self._listener.rejected(filename, verdict.reason)
                self._had_work = True
        elif isinstance(verdict, Foreign):
            log.debug("%s waits for workers of its owner (uid %d)", printable(filename), verdict.uid)
            self._foreign.add(filename)
        return verdict

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
