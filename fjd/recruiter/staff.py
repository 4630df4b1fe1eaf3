"""Hire, fire and list workers.

Hiring writes a file for each new worker, outside the project and for its owner only, with the environment of
whoever hires; the workers read it when they start. It goes when they are ready.

Raises RecruitError, UsageError.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Iterable
from typing import NamedTuple

import fjd
from fjd import disk, host, spool
from fjd.errors import RecruitError, SlotLost, UsageError
from fjd.judge import Judge
from fjd.names import JobName
from fjd.project import Project
from fjd.reclaim import Reclaimer
from fjd.recruiter import Backend, Launch
from fjd.slot import Identity, Order, give_order, is_slot_name, new_slot_name

__all__ = ["Fired", "Member", "fire", "hire", "roster", "select", "wait_gone"]

_HIRE_SECONDS = 30.0
# How long an idle worker may take to leave. It hears of it at once, or on a network filesystem within a second.
_LEAVE_SECONDS = 5.0
_LOOK_SECONDS = 0.02
_LAST_LINES = 8


class Member(NamedTuple):
    """A worker of the project. `state` is idle, busy, leaving or lost; `since` is the time its job started."""

    slot_name: str
    path: str
    identity: Identity | None
    state: str
    job: str
    since: float | None

    @property
    def worker(self) -> str:
        return self.slot_name.partition(".")[0]

    @property
    def host(self) -> str:
        """The host it is on; from its name, where it does not say."""
        return self.identity.host if self.identity else self.worker.rpartition("-")[0]


def roster(project: Project) -> list[Member]:
    """All workers of this user, by name."""
    judge = Judge(project.settings, project.filesystem)
    members = []
    for name in sorted(filter(is_slot_name, _list(project.workerqueue))):
        path = f"{project.workerqueue}/{name}"
        try:
            if os.lstat(path).st_uid == os.geteuid():
                members.append(_member(path, name, judge))
        except FileNotFoundError:
            continue
    return members


def _list(folder: str) -> list[str]:
    try:
        return disk.list_names(folder)
    except FileNotFoundError:
        return []


def _member(path: str, name: str, judge: Judge) -> Member:
    lost = judge.try_lost(path)
    inside = disk.list_names(path)
    running = spool.running(path)
    since = None
    if running:
        try:
            since = os.lstat(f"{path}/running/{running[0]}").st_ctime
        except FileNotFoundError:
            running = []
    if lost is not None:
        state = "lost"
    elif "fire" in inside or "alive" not in inside:
        state = "leaving"
    else:
        state = "busy" if running else "idle"
    job = JobName.parse(running[0]).stem if running else ""
    return Member(name, path, judge.identity(path), state, job, since)


# Hiring


def hire(project: Project, count: int, chosen: Backend) -> list[str]:
    """Start `count` workers and wait until each has its slot; their slot names.

    Raises RecruitError with the last lines of the log if one does not come up. Those that did stay.
    """
    folder = tempfile.mkdtemp(prefix="fjd-hire-")
    try:
        names = _free_names(project, count)
        launches = [_launch(project, name, chosen, folder) for name in names]
        # From a checkout, the package is found by this path only; what it needs may be found by the user's.
        root = os.path.dirname(os.path.dirname(os.path.abspath(fjd.__file__)))
        paths = [path for path in (root, os.environ.get("PYTHONPATH")) if path]
        chosen.start(launches, {"PYTHONPATH": os.pathsep.join(paths)})
        _wait_ready(project, launches, chosen)
        return names
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _free_names(project: Project, count: int) -> list[str]:
    """Slot names HOST-1.xxxxxx, HOST-2.xxxxxx, ...: the lowest numbers that no slot of this host uses."""
    used = {name.removeprefix(".").partition(".")[0] for name in _list(project.workerqueue)}
    free = (f"{host.host_name()}-{number}" for number in range(1, len(used) + count + 1))
    return [new_slot_name(worker) for worker in free if worker not in used][:count]


def _launch(project: Project, slot_name: str, chosen: Backend, folder: str) -> Launch:
    start = {
        "dir": project.path,
        "backend": chosen.name,
        "watch": chosen.watch_hint(slot_name),
        "environment": dict(os.environ),
    }
    path = f"{folder}/{slot_name}.start"
    # Created for its owner only: an environment may hold secrets.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        json.dump(start, file)
    argv = [sys.executable, "-m", "fjd.cli.worker", "--slot", slot_name, "--start-file", path]
    return Launch(slot_name, argv, f"{folder}/{slot_name}.err")


def _wait_ready(project: Project, launches: list[Launch], chosen: Backend) -> None:
    deadline = time.monotonic() + _HIRE_SECONDS
    next_look = 0.0
    missing = {launch.slot_name: launch for launch in launches}
    while missing:
        for name in missing.keys() & set(_list(project.workerqueue)):
            del missing[name]
        now = time.monotonic()
        if missing and now >= next_look:
            next_look = now + 0.25
            ended = chosen.ended(list(missing))
            # One may have come and gone between the two looks; its log says so.
            failed = [missing[name] for name in ended if not os.path.exists(project.worker_log(name))]
            if failed:
                raise _not_up(failed, "ended before it was ready", len(launches) - len(missing))
            for name in ended:
                del missing[name]
            if now > deadline:
                raise _not_up(
                    list(missing.values()),
                    f"is not ready after {_HIRE_SECONDS:g} seconds",
                    len(launches) - len(missing),
                )
        if missing:
            time.sleep(_LOOK_SECONDS)


def _not_up(failed: list[Launch], reason: str, ready: int) -> RecruitError:
    try:
        with open(failed[0].error_path, errors="backslashreplace") as file:
            lines = [line.rstrip() for line in file.readlines()[-_LAST_LINES:]]
    except OSError:
        lines = []
    others = f", and {len(failed) - 1} more with it" if len(failed) > 1 else ""
    said = "; it said: " + " | ".join(lines) if lines else ""
    return RecruitError(f"worker {failed[0].worker}", f"{reason}{others} ({ready} are ready){said}")


# Firing


class Fired(NamedTuple):
    """Who was fired: gone already, or busy with its last job; and who was lost before."""

    gone: list[Member]
    busy: list[Member]
    lost: list[Member]


def select(members: Iterable[Member], wanted: Collection[str]) -> list[Member]:
    """Those of this host, or those named by worker or slot on any host. Raises UsageError for an unknown name."""
    members = list(members)
    if not wanted:
        return [m for m in members if m.host == host.host_name()]
    known = {name for member in members for name in (member.worker, member.slot_name)}
    for name in wanted:
        if name not in known:
            raise UsageError(name, "no such worker", "recruiter list shows all")
    return [m for m in members if m.worker in wanted or m.slot_name in wanted]


def fire(project: Project, members: list[Member], order: Order) -> Fired:
    """Tell workers to leave, and wait for those that can at once; after the order NOW, for all.

    Raises RecruitError if one of another host does not go in time; one of this host that does not is killed, and what
    it left is reclaimed.
    """
    reclaimer = Reclaimer(project, f"{host.host_name()}-recruiter")
    judge = Judge(project.settings, project.filesystem)
    try:
        lost = [member for member in members if member.state == "lost"]
        living = [member for member in members if member.state != "lost"]
        for member in living:
            _give_order(member, order)
        for member in lost:
            _reclaim(member, judge, reclaimer)
        if order is Order.NOW:
            wait_gone(living, project.settings.grace_seconds + _LEAVE_SECONDS)
            _remove_stubborn([m for m in living if not _has_left(m)], judge, reclaimer)
        else:
            wait_gone([m for m in living if m.state == "idle"], _LEAVE_SECONDS)
        gone = [member for member in living if _has_left(member)]
        return Fired(gone, [member for member in living if member not in gone], lost)
    finally:
        reclaimer.close()


def _give_order(member: Member, order: Order) -> None:
    """By a file, which reaches every host; by a signal, where the disk is full and the worker is here."""
    try:
        give_order(member.path, order)
    except SlotLost:
        pass
    except OSError as error:
        if error.errno not in disk.NO_SPACE or member.identity is None or not member.identity.is_here:
            raise
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.identity.pid, signal.SIGTERM if order is Order.NOW else signal.SIGINT)


def _has_left(member: Member) -> bool:
    """Whether its slot is gone, and its process too where that can be seen."""
    if disk.exists(member.path):
        return False
    return not (member.identity is not None and member.identity.is_here and member.identity.is_running)


def wait_gone(members: list[Member], seconds: float | None = None) -> None:
    """Wait until all of them have left, at most so long."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while any(not _has_left(member) for member in members):
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(_LOOK_SECONDS)


def _remove_stubborn(members: list[Member], judge: Judge, reclaimer: Reclaimer) -> None:
    for member in members:
        identity = member.identity
        if _has_left(member):
            continue
        if identity is None or not identity.is_here:
            raise RecruitError(f"worker {member.worker}", "did not leave in time", "look at its host, or wait")
        if identity.is_running:
            # Stopped, or hanging in the disk: it had its grace.
            with contextlib.suppress(ProcessLookupError):
                os.kill(identity.pid, signal.SIGKILL)
            _wait_ended(identity)
        _reclaim(member, judge, reclaimer)


def _wait_ended(identity: Identity) -> None:
    deadline = time.monotonic() + _LEAVE_SECONDS
    while identity.is_running and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def _reclaim(member: Member, judge: Judge, reclaimer: Reclaimer) -> None:
    # Twice, since a slot without a heartbeat file is only judged at the second look.
    lost = judge.try_lost(member.path) or judge.try_lost(member.path)
    if lost is None or not reclaimer.reclaim(lost):
        raise RecruitError(f"worker {member.worker}", "is lost, but its slot cannot be cleared yet", "try again")
