"""One point of one role: a project, a child that plays the role until the fault hits it, the others, and the verdict.

    pytest ── supervisor, some of them side by side ──┬── victim: plays the role
                                                      └── rescuers: a worker for each held slot, or a fresh one

The supervisor is the dispatcher of the rescue. All are forked from a process without threads, and none ever
returns into pytest. Who does not end in time is killed by its pid.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import checker

# Imported here and not in each of a thousand children.
import psutil  # noqa: F401
from faults import Fault, Injector

from fjd import disk, reclaim, slot, spool
from fjd.dispatcher import Dispatcher, Picture
from fjd.errors import FjdError, SlotLost
from fjd.names import JobName
from fjd.project import Project
from fjd.report import Tally
from fjd.slot import Claim, Identity, Order, OwnSlot
from fjd.worker import Worker

__all__ = ["VICTIM", "Point", "Role", "Silent", "Stage", "dead_identity", "points"]

VICTIM = "victim.aaaaaa"
# As many points at a time; what they wait for is not the processor only.
LANES = 3
# A point takes some hundredths of a second.
VICTIM_SECONDS = 10.0
RESCUE_SECONDS = 12.0
POINT_SECONDS = VICTIM_SECONDS + 2 * RESCUE_SECONDS
_SETTINGS = "[fjd]\nsettle_seconds: 0\ngrace_seconds: 0.1\n"


class Silent:
    """A listener."""

    def found(self) -> None: ...

    def rejected(self, filename: str, reason: str) -> None: ...

    def passed(self, picture: Picture, tally: Tally) -> None: ...


def dead_identity(worker: str) -> Identity:
    """Of a process of this host that is gone: there is a process 1, but it never started then."""
    return Identity.of_this_process(worker)._replace(pid=1, start_ticks=-1)


def script(text: str, mark: str) -> bytes:
    """A job that is a shell script; `mark` makes its text its own."""
    return f"#!/bin/sh\n# {mark}\n{text}\n".encode()


class Stage:
    """A project with what a role needs, and what must become of each job."""

    def __init__(self, path: str) -> None:
        os.makedirs(path)
        with open(f"{path}/fjd.conf", "w", encoding="utf-8") as file:
            file.write(_SETTINGS)
        self.project = Project(path)
        self.project.prepare()
        self.submitted: dict[str, bytes] = {}
        # The state in which each job must end, by the name that its user gave it.
        self.ends: dict[str, str] = {}
        # Slots that the supervisor holds, whose workers carry on when the victim is gone.
        self.held: list[OwnSlot] = []
        # What the supervisor does before the others carry on.
        self.afterwards: list[Callable[[], None]] = []
        # What may be left when all is done: a stale draft, where the role says so.
        self.may_be_left: set[str] = set()

    def accept(self, name: str, data: bytes, end: str = "done") -> str:
        """A job that a user put into jobqueue/."""
        self.submitted[name] = data
        self.ends[name] = end
        with open(f"{self.project.jobqueue}/{name}", "wb") as file:
            file.write(data)
        return name

    def take_slot(self, name: str, identity: Identity | None = None) -> OwnSlot:
        worker = name.partition(".")[0]
        identity = identity or Identity.of_this_process(worker)
        return OwnSlot.take(self.project.workerqueue, name, identity)

    def hold_slot(self, name: str) -> OwnSlot:
        """A slot of a living worker, which works when the victim is gone."""
        own = self.take_slot(name)
        self.held.append(own)
        return own

    def assign(self, name: str, own: OwnSlot, job: JobName | None = None) -> JobName:
        claim = Claim.try_take(own.path)
        assert claim is not None
        try:
            moved = spool.assign(self.project, name, job or JobName.parse(name).renewed(), claim)
        finally:
            claim.release()
        assert moved is not None
        return moved

    def dispatcher(self) -> Dispatcher:
        return Dispatcher(self.project, Silent())


class Role:
    """Somebody who works on a project. `prepare` is called in the supervisor, the others in the victim."""

    name = ""
    # Whether the victim has jobs running. Looking for what is left of them reads all of /proc for each lost slot.
    has_processes = False

    def prepare(self, stage: Stage) -> None: ...

    def enter(self, stage: Stage) -> Any:
        """What comes before the first point; its result goes to `play`."""

    def play(self, stage: Stage, entered: Any) -> None:
        raise NotImplementedError

    def judge(self, stage: Stage, error: str | None, fault: Fault | None) -> list[str]:
        """What is wrong when the victim is gone and before the others carry on.

        `error`: what it raised, empty if nothing, None if it died. `fault`: None if it was over before.
        """
        return []


@dataclasses.dataclass
class Point:
    """What came of one point. `hit` is False where the role was over before its k-th operation."""

    k: int
    hit: bool
    what: str
    problems: list[str]
    # How many operations there were that the fault could have hit.
    operations: int = 0
    audited: int = 0
    replaced: int = 0


def points(role: Role, fault: Fault, folder: str) -> Iterator[Point]:
    """Every point of a role, k = 1, 2, ... and last the one that is never reached, because the role is over before."""
    # A forked child has only the thread that forked, and locks that the others held stay held.
    assert threading.active_count() == 1, threading.enumerate()
    # Else each child would copy all of pytest's memory as soon as it collects garbage.
    gc.freeze()
    (over,) = _Supervisor(role, fault, [sys.maxsize], folder).wait()
    # Lane 0 has the points 1, 1 + LANES, ...
    numbers = [range(first, over.operations + 1, LANES) for first in range(1, LANES + 1)]
    lanes = [_Supervisor(role, fault, ks, folder) for ks in numbers if ks]
    for lane in lanes:
        yield from lane.wait()
    yield over


class _Forked:
    """A child process that reports one JSON value, or dies."""

    def __init__(self, action: Callable[[], Any], log: str, deadline_seconds: float) -> None:
        self._read_fd, write_fd = os.pipe()
        self._deadline = time.monotonic() + deadline_seconds
        self.pid = os.fork()
        if self.pid == 0:
            self._be(action, write_fd, log)
        os.close(write_fd)

    @staticmethod
    def _be(action: Callable[[], Any], write_fd: int, log: str) -> NoReturn:
        gc.disable()
        try:
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            os.close(fd)
            # Those of pytest lead elsewhere.
            sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            os.write(write_fd, json.dumps(action()).encode())
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(0)

    def wait(self) -> Any:
        """What it reported; None if it died, `late` if it had to be killed."""
        data = b""
        late = False
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        while True:
            rest = self._deadline - time.monotonic()
            if rest <= 0 and not late:
                late = True
                os.kill(self.pid, signal.SIGKILL)
            if not late and not poll.poll(1000 * rest):
                continue
            chunk = b"" if late else os.read(self._read_fd, 1 << 16)
            if not chunk:
                break
            data += chunk
        os.close(self._read_fd)
        os.waitpid(self.pid, 0)
        if late:
            return "late"
        return json.loads(data) if data else None


class _Supervisor:
    """Goes through some of the points, one after the other."""

    def __init__(self, role: Role, fault: Fault, ks: Sequence[int], folder: str) -> None:
        self._ks = ks
        self._log = f"{folder}/supervisor-{ks[0]}.log"
        self._child = _Forked(
            lambda: [_supervise(role, fault, k, f"{folder}/{k}") for k in ks], self._log, len(ks) * POINT_SECONDS
        )

    def wait(self) -> list[Point]:
        reported = self._child.wait()
        if isinstance(reported, list):
            return [Point(**fields) for fields in reported]
        with open(self._log, encoding="utf-8", errors="replace") as file:
            return [Point(self._ks[0], True, "", [f"the supervisor {reported or 'died'}", file.read()[-3000:]])]


def _supervise(role: Role, fault: Fault, k: int, path: str) -> dict[str, Any]:
    stage = Stage(path)
    if not role.has_processes:
        vars(reclaim)["kill_strays"] = lambda slot_name, project_path, session: True
    role.prepare(stage)
    victim = _Forked(lambda: _play(role, stage, fault, k), f"{path}.log", VICTIM_SECONDS)
    reported = victim.wait()
    point = Point(k, True, "", [])
    if reported == "late":
        point.problems.append("the victim hangs")
    elif reported is None:
        if fault.action not in ("die", "die-half", "die-last"):
            point.problems.append("the victim died")
    else:
        point.hit, point.what = reported["hit"], reported["what"]
        point.operations = reported["operations"]
        point.audited, point.replaced = reported["audited"], reported["replaced"]
        if reported["unclean"]:
            point.problems.append(f"the victim raised {reported['error']}")
        if reported["error"] and not point.hit:
            point.problems.append(f"without a fault: {reported['error']}")
    error = reported["error"] if isinstance(reported, dict) else None
    point.problems += role.judge(stage, error, fault if point.hit else None)
    point.problems += [f"before the others: {line}" for line in checker.check(stage.project)]
    if not point.problems:
        for action in stage.afterwards:
            action()
        point.problems += _rescue(stage)
    if point.problems:
        with open(f"{path}.log", encoding="utf-8", errors="replace") as file:
            point.problems += [f"project: {path}", file.read()[-3000:]]
    else:
        shutil.rmtree(path)
    return dataclasses.asdict(point)


def _play(role: Role, stage: Stage, fault: Fault, k: int) -> dict[str, Any]:
    injector = Injector(stage.project.path, fault, k)
    entered = role.enter(stage)
    injector.arm()
    error = ""
    unclean = False
    try:
        role.play(stage, entered)
    except (FjdError, OSError) as caught:
        error = repr(caught)
    except BaseException as caught:
        error = repr(caught)
        unclean = True
        traceback.print_exc()
    print(f"{fault.name} at {injector.what}; then {error or 'fine'}")
    return {
        "hit": injector.has_hit,
        "operations": injector.count,
        "what": injector.what,
        "error": error,
        "unclean": unclean,
        "audited": injector.audited,
        "replaced": injector.replaced,
    }


def _work(project: Project, own: OwnSlot | None) -> str:
    held = own or OwnSlot.take(project.workerqueue, "rescue.bbbbbb", Identity.of_this_process("rescue"))
    Worker(project, held).run()
    return "left"


def _rescue(stage: Stage) -> list[str]:
    """The others carry on until all is done; what is wrong then."""
    project = Project(stage.project.path)
    # Judged often, and still with all the time of the world before somebody is called silent.
    project.settings = dataclasses.replace(project.settings, heartbeat_seconds=0.01, lost_seconds=30.0)
    holders: list[OwnSlot | None] = [*stage.held] if stage.held else [None]
    workers = [_Forked(lambda own=own: _work(project, own), f"{project.path}.log", RESCUE_SECONDS) for own in holders]
    dispatcher = Dispatcher(project, Silent())
    problems = _drain(stage, project, dispatcher)
    for name in disk.list_names(project.workerqueue):
        if slot.is_slot_name(name):
            with contextlib.suppress(SlotLost):
                slot.give_order(f"{project.workerqueue}/{name}", Order.DRAIN)
    for worker in workers:
        ended = worker.wait()
        if ended != "left":
            problems.append(f"the worker of the rescue {ended or 'died'}")
    dispatcher.close()
    for own in stage.held:
        own.close()
    problems += [
        line
        for line in checker.check(project, stage.submitted, drained=True)
        if line.partition(":")[0] not in stage.may_be_left
    ]
    by_name = {place.name: place.state for place in checker.places(project)}
    for name, end in stage.ends.items():
        wanted = JobName.parse(name)
        if by_name.get(wanted.name + wanted.ending) != end:
            problems.append(f"{name} is {by_name.get(wanted.name + wanted.ending)}, not {end}")
    return problems


def _drain(stage: Stage, project: Project, dispatcher: Dispatcher) -> list[str]:
    """Dispatch until every job has ended and only living workers have slots."""
    living = {own.name for own in stage.held} or {"rescue.bbbbbb"}
    # A worker that has come up can be told to leave; one that the victim told to leave is missing.
    needed = set() if stage.held else living
    deadline = time.monotonic() + RESCUE_SECONDS / 2
    while time.monotonic() < deadline:
        dispatcher.step()
        here = {name for name in disk.list_names(project.workerqueue) if slot.is_slot_name(name)}
        if dispatcher.is_done(wait_for_jobs=False) and needed <= here <= living:
            return []
        time.sleep(0.002)
    return [f"not drained: {dispatcher.picture}, slots: {here}, not: {living}"]
