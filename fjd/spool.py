"""The spool: the states of a job, and the transitions between them, one function each.

A job's state is the directory that its file lies in. Nothing else in fjd moves a job, and each transition commits by
one rename, so a process that dies leaves the job on one side of it or on the other:

    from -> to              | function    | who                   | dies before             | dies after
    ------------------------|-------------|-----------------------|-------------------------|----------------------
    (none) -> jobqueue      | submit      | any program           | a stale draft           | queued
    jobqueue -> slot        | assign      | a dispatcher          | queued                  | assigned
    slot -> slot            | hand_over   | a dispatcher          | assigned there          | assigned here
    slot -> jobqueue        | take_back   | whoever empties it    | assigned                | queued
    slot -> running         | start       | its worker            | assigned                | running; reclaimed
    running -> done, failed | finish      | its worker            | reclaimed, or finished  | the outcome stands
    running -> jobqueue     | give_back   | its worker, fired     | given back by the next  | queued, next attempt
    running -> jobqueue     | reclaim     | whoever sees it lost  | the next one does it    | queued, next attempt
    running -> held         | reclaim     | whoever sees it lost  | the next one does it    | held, next attempt
    jobqueue -> rejected    | reject      | a dispatcher          | queued, a stale reason  | rejected
    slot -> (none)          | remove_slot | its worker, reclaimer | drained again           | gone

The record of an attempt is in the journal before `finish` and `give_back`; whoever reclaims a job that has one makes
the transition that the record asks for, instead of `reclaim`.

Rules (DESIGN.md): the rename decides; locks, clocks, events and listings are hints. `finish`, `give_back` and
`reclaim` rename the same source, so the file server lets one of them win, and a job has one outcome. A job's name in
its new place is one that only that transition can create: it has the ID, and the next attempt where the job goes round.

Every function takes the proof it needs (a Claim, the OwnSlot, a LostSlot) and not a name. It returns the job under
the name it has now, or None if it lost the race. It raises SlotLost if the slot it moves into is gone, and OSError
when the disk does not do it; then the job is where it was.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable

from fjd import disk
from fjd import slot as slots
from fjd.errors import SlotLost, TargetTaken, printable
from fjd.names import JobName, new_id
from fjd.project import Project
from fjd.slot import Claim, LostSlot, OwnSlot

__all__ = [
    "assign",
    "assigned",
    "assigned_among",
    "conclude",
    "contents",
    "finish",
    "give_back",
    "hand_over",
    "reclaim",
    "reject",
    "remove_slot",
    "running",
    "start",
    "submit",
    "take_back",
]

log = logging.getLogger(__name__)


def submit(project: Project, filename: str, data: bytes) -> JobName:
    """(none) -> jobqueue. Commits by renaming a complete draft beside it. Raises OSError if the disk is full.

    The job gets its ID here, so that its writer knows it, and no two submitted files can have one name.
    """
    job = JobName.parse(filename).renewed()
    disk.publish(data, f"{project.jobqueue}/.{new_id()}.draft", f"{project.jobqueue}/{job.filename}")
    log.info("%s queued", printable(job.stem))
    return job


def assign(project: Project, filename: str, job: JobName, claim: Claim) -> JobName | None:
    """jobqueue -> slot, as `job`, which must have an ID.

    Two dispatchers may both try, with different IDs: the rename of the one source decides.
    """
    try:
        moved = _move(f"{project.jobqueue}/{filename}", claim.path, job)
    except FileNotFoundError:
        raise SlotLost(claim.path, "the slot is gone") from None
    return _said(moved, "%s assigned to %s", claim.name)


def hand_over(filename: str, giver: Claim, taker: Claim) -> JobName | None:
    """slot -> another slot, while no worker of the first has started it."""
    try:
        moved = _move(f"{giver.path}/{filename}", taker.path, JobName.parse(filename))
    except FileNotFoundError:
        raise SlotLost(taker.path, "the slot is gone") from None
    return _said(moved, "%s handed over to %s", taker.name)


def take_back(project: Project, filename: str, holder: OwnSlot | LostSlot | Claim) -> JobName | None:
    """slot -> jobqueue, under the same name: it was never started."""
    moved = _move(f"{holder.path}/{filename}", project.jobqueue, JobName.parse(filename))
    return _said(moved, "%s taken back from %s", holder.name)


def start(own: OwnSlot, filename: str) -> JobName | None:
    """slot -> running. What runs it comes after; dying in between leaves a job that is running with no process."""
    try:
        return _move(f"{own.path}/{filename}", own.running, JobName.parse(filename))
    except FileNotFoundError:
        raise SlotLost(own.path, "the slot is gone: another process judged this worker lost") from None


def finish(project: Project, holder: OwnSlot | LostSlot, job: JobName, succeeded: bool) -> JobName | None:
    """running -> done or failed. The record of the attempt must be in the journal before."""
    folder = project.done if succeeded else project.failed
    return _move(f"{holder.path}/running/{job.filename}", folder, job)


def give_back(project: Project, holder: OwnSlot | LostSlot, job: JobName) -> JobName | None:
    """running -> jobqueue, as the next attempt. Its processes are stopped, and the record that says so is written."""
    moved = _move(f"{holder.path}/running/{job.filename}", project.jobqueue, job.next)
    return _said(moved, "%s put back by %s", holder.name)


def reclaim(project: Project, lost: LostSlot, job: JobName, hold: bool) -> JobName | None:
    """running -> jobqueue or held, as the next attempt. Its processes on this host must be stopped."""
    folder = project.held if hold else project.jobqueue
    moved = _move(f"{lost.path}/running/{job.filename}", folder, job.next)
    return _said(moved, "%s held: %s was lost with it" if hold else "%s reclaimed from %s", lost.name)


def reject(project: Project, filename: str, reason: str) -> str | None:
    """jobqueue -> rejected, with the one line `reason` beside it. The name it has there, or None.

    Whoever creates `X.reason` owns the name X, so nothing that lies there is overwritten. It comes first, because
    a reason without a file misleads nobody.
    """
    name = filename
    while (reason_fd := _own_name(project, name)) is None:
        name = JobName.parse(filename).renewed().filename
    reason_path = f"{project.rejected}/{name}.reason"
    moved = False
    try:
        try:
            disk.append_whole(reason_fd, f"{printable(reason)}\n".encode(), reason_path)
            moved = disk.move(f"{project.jobqueue}/{filename}", f"{project.rejected}/{name}")
        except TargetTaken:
            # A person put a file of this name there just now. The next look finds another name.
            pass
        finally:
            disk.close(reason_fd)
    finally:
        if not moved:
            disk.remove(reason_path)
    return name if moved else None


def _own_name(project: Project, name: str) -> int | None:
    path = f"{project.rejected}/{name}"
    try:
        fd = disk.create(f"{path}.reason")
    except FileExistsError:
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise
    if not disk.exists(path):
        return fd
    # A file without its reason: somebody removed that, and the name is taken all the same.
    disk.close(fd)
    disk.remove(f"{path}.reason")
    return None


def conclude(project: Project, holder: OwnSlot | LostSlot, job: JobName, outcome: str) -> JobName | None:
    """The transition that follows from a recorded outcome: `give_back` after stopped, else `finish`."""
    if outcome == "stopped":
        return give_back(project, holder, job)
    return finish(project, holder, job, outcome == "succeeded")


def remove_slot(holder: OwnSlot | LostSlot) -> bool:
    """slot -> (none); False if there is a job in it, which was assigned in the meantime: drain it again."""
    return holder.leave() if isinstance(holder, OwnSlot) else slots.remove_slot(holder.path)


def contents(slot_path: str) -> list[str]:
    """The names of all that lies in a slot and is not fjd's own: what must be moved before the slot can go.

    Raises FileNotFoundError.
    """
    return [name for name in disk.list_names(slot_path) if name[0] != "." and name not in slots.FILES]


def assigned(slot_path: str) -> list[str]:
    """The file names of the jobs in a slot that are not started. Raises FileNotFoundError.

    What has no ID was not assigned by anybody: a copy that somebody is still writing, perhaps.
    """
    return assigned_among(disk.list_names(slot_path))


def assigned_among(inside: Iterable[str]) -> list[str]:
    """Those of the names in a slot, or in its running/, that are jobs."""
    return [name for name in inside if name[0] != "." and JobName.parse(name).id]


def running(slot_path: str) -> list[str]:
    """The file names of the jobs that a slot's worker has started: one, or none."""
    try:
        return assigned_among(disk.list_names(f"{slot_path}/running"))
    except FileNotFoundError:
        return []


def _move(source: str, folder: str, job: JobName) -> JobName | None:
    """Move a job, and give it a new ID if a copy that somebody made by hand has its name there."""
    try:
        return job if disk.move(source, f"{folder}/{job.filename}") else None
    except TargetTaken:
        copy = job.renewed()
        if not disk.move(source, f"{folder}/{copy.filename}"):
            return None
        log.warning("%s: there is such a job already; this one goes on as %s", printable(source), printable(copy.stem))
        return copy


def _said(job: JobName | None, message: str, slot_name: str) -> JobName | None:
    if job is not None:
        log.info(message, printable(job.stem), slot_name)
    return job
