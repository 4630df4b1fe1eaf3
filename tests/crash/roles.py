"""Who is killed, or gets errors: every role that changes the disk, with all the transitions that it makes."""

from __future__ import annotations

import os
from typing import Any

import checker
from faults import Fault
from stage import VICTIM, Role, Stage, dead_identity, script

from fjd import journal, slot, spool, worker
from fjd.names import JobName
from fjd.slot import Identity, Order, OwnSlot
from fjd.watch import Doorbell
from fjd.worker import Worker

__all__ = ["ROLES"]

INI = b"[control]\nexecutable: true\n# "


def record(stage: Stage, own: str, job: JobName, outcome: str) -> None:
    writer = journal.Journal(stage.project.journal, own, durable=False)
    writer.append(
        journal.Record(
            job=job.name,
            id=job.id,
            attempt=job.attempt,
            file=job.filename,
            worker=own,
            host="",
            command="",
            outcome=outcome,
        )
    )
    writer.close()


class Submit(Role):
    """One job, by spool.submit."""

    name = "submit"

    def __init__(self) -> None:
        self.data = script("exit 0", "submitted")

    def play(self, stage: Stage, entered: Any) -> None:
        spool.submit(stage.project, "job.conf", self.data)

    def judge(self, stage: Stage, error: str | None, fault: Fault | None) -> list[str]:
        here = checker.places(stage.project)
        left = [name for name in os.listdir(stage.project.jobqueue) if name.startswith(".")]
        if here:
            stage.submitted["job.conf"] = self.data
            stage.ends["job.conf"] = "done"
        if error is None:
            # Dead: nobody was told, and at worst the draft is there. Or done, see `accepted`.
            stage.may_be_left.add("stale draft")
            return []
        if error.startswith("FileExistsError"):
            # The server made the draft and was asked again: to us it is somebody else's.
            stage.may_be_left.add("stale draft")
            left = []
        if error:
            return ["said no, but it is queued"] if here else [f"left: {name}" for name in left]
        if fault is not None and fault.name.startswith("failed close"):
            return ["said yes, but nobody knows what the file server has"]
        return [] if here else ["said yes, but nothing is queued"]


class TakeSlot(Role):
    """A worker that comes up and leaves at once."""

    name = "take a slot"

    def prepare(self, stage: Stage) -> None:
        stage.accept("job.conf", script("exit 0", "1"))

    def play(self, stage: Stage, entered: Any) -> None:
        stage.take_slot(VICTIM)

    def judge(self, stage: Stage, error: str | None, fault: Fault | None) -> list[str]:
        hidden = [name for name in os.listdir(stage.project.workerqueue) if name.startswith(".")]
        if error is None:
            # Dead: nobody removes a slot that was never published.
            stage.may_be_left.add("stale slot")
            return []
        if error.startswith("FileExistsError"):
            # The server made the file and was asked again: to us it is somebody else's.
            stage.may_be_left.add("stale slot")
            return []
        return [f"left: {name}" for name in hidden]


class GiveOrder(Role):
    """An order to leave, given to a worker that is at work."""

    name = "give an order"

    def prepare(self, stage: Stage) -> None:
        stage.accept("job.conf", script("exit 0", "1"))
        stage.hold_slot("living.cccccc")
        stage.hold_slot("other.dddddd")

    def play(self, stage: Stage, entered: Any) -> None:
        slot.give_order(f"{stage.project.workerqueue}/living.cccccc", Order.DRAIN)

    def judge(self, stage: Stage, error: str | None, fault: Fault | None) -> list[str]:
        there = os.path.exists(f"{stage.project.workerqueue}/living.cccccc/fire")
        return ["said done, but there is no order"] if error == "" and not there else []


class Assign(Role):
    """A dispatcher with three new jobs, one that comes back, and two idle slots."""

    name = "assign"

    def prepare(self, stage: Stage) -> None:
        for number in (1, 2, 3):
            stage.accept(f"job{number}.conf", INI + b"%d\n" % number)
        again = JobName.parse("again.conf").renewed()
        record(stage, "gone.eeeeee", again, "failed")
        stage.accept(again.filename, INI + b"again\n")
        stage.hold_slot("one.cccccc")
        stage.hold_slot("two.dddddd")

    def play(self, stage: Stage, entered: Any) -> None:
        stage.dispatcher().step()


class Reject(Role):
    """A dispatcher with files that are no jobs: text, a name that is taken in rejected/, a directory, a link."""

    name = "reject"

    def prepare(self, stage: Stage) -> None:
        for name in ("bad.conf", "taken.conf"):
            stage.accept(name, b"not a job %s\n" % name.encode(), end="rejected")
        for name in ("taken.conf", "taken.conf.reason"):
            with open(f"{stage.project.rejected}/{name}", "w", encoding="utf-8") as file:
                file.write("of another one")
        os.mkdir(f"{stage.project.jobqueue}/folder")
        os.symlink("bad.conf", f"{stage.project.jobqueue}/link")
        stage.ends["folder"] = stage.ends["link"] = "rejected"
        # There are two of them now, so it is known by its text.
        del stage.ends["taken.conf"]
        stage.submitted["taken-2.conf"] = stage.submitted.pop("taken.conf")

    def play(self, stage: Stage, entered: Any) -> None:
        stage.dispatcher().step()

    def judge(self, stage: Stage, error: str | None, fault: Fault | None) -> list[str]:
        with open(f"{stage.project.rejected}/taken.conf", encoding="utf-8") as file:
            return [] if file.read() == "of another one" else ["overwritten: taken.conf"]


class ShareOut(Role):
    """A dispatcher with an empty queue, a busy slot with three jobs that wait, and an idle slot."""

    name = "share out"

    def prepare(self, stage: Stage) -> None:
        busy = stage.hold_slot("busy.cccccc")
        stage.hold_slot("idle.dddddd")
        running = stage.assign(stage.accept("job0.conf", INI + b"0\n"), busy)
        for number in (1, 2, 3):
            stage.assign(stage.accept(f"job{number}.conf", INI + b"%d\n" % number), busy)
        assert spool.start(busy, running.filename) is not None

        def finish() -> None:
            record(stage, busy.name, running, "succeeded")
            assert spool.finish(stage.project, busy, running, succeeded=True) is not None

        stage.afterwards.append(finish)

    def play(self, stage: Stage, entered: Any) -> None:
        stage.dispatcher().step()


class Reclaim(Role):
    """A dispatcher that finds lost slots: with and without a record, jobs that never started, the third loss."""

    name = "reclaim"

    def prepare(self, stage: Stage) -> None:
        for number, (outcome, attempt, end) in enumerate(
            (
                ("", 1, "done"),
                ("succeeded", 1, "done"),
                ("failed", 1, "failed"),
                ("stopped", 1, "done"),
                ("", 3, "held"),
            )
        ):
            lost = stage.take_slot(f"lost{number}.cccccc", dead_identity(f"lost{number}"))
            name = stage.accept(f"job{number}.conf", INI + b"%d\n" % number, end)
            job = stage.assign(name, lost, JobName.parse(name).renewed()._replace(attempt=attempt))
            assert spool.start(lost, job.filename) is not None
            if outcome:
                record(stage, lost.name, job, outcome)
            if number == 0:
                stage.assign(stage.accept("waits.conf", INI + b"waits\n"), lost)
            lost.close()
        # A worker that died in the middle of leaving.
        half = f"{stage.project.workerqueue}/half.cccccc"
        os.mkdir(half)
        name = stage.accept("late.conf", INI + b"late\n")
        os.rename(f"{stage.project.jobqueue}/{name}", f"{half}/{JobName.parse(name).renewed().filename}")

    def play(self, stage: Stage, entered: Any) -> None:
        # Before anything is assigned, so that the slots alone are what changes.
        dispatcher = stage.dispatcher()
        dispatcher.step()
        dispatcher.close()


class _QuietDoorbell(Doorbell):
    """Without threads, so that a worker does the same each time: its directory is looked at when a process ends."""

    def watch_arrivals(self, folder: str) -> None: ...

    def answer(self) -> bytes:
        return super().answer() + b"\0"


# Says that there is news and gives its worker the time to hear it, unless this is another worker.
_ORDERS = f"""[ "$FJD_WORKER" = {VICTIM} ] || exit 0
echo %s > "$FJD_PROJECT_DIR/workerqueue/$FJD_WORKER/fire"
kill -CHLD $PPID
exec sleep %s"""


class _Works(Role):
    """A worker with the jobs of `jobs`; the last but one of them orders it to leave."""

    has_processes = True
    jobs: tuple[tuple[str, str, str], ...] = ()

    def prepare(self, stage: Stage) -> None:
        for name, text, end in self.jobs:
            stage.accept(name, script(text, name), end)

    def enter(self, stage: Stage) -> OwnSlot:
        own = stage.take_slot(VICTIM, Identity.of_this_process("victim"))
        for name, _, _ in self.jobs:
            stage.assign(name, own)
        return own

    def play(self, stage: Stage, entered: OwnSlot) -> None:
        vars(worker).update(Doorbell=_QuietDoorbell, _RETRY_SECONDS=0.005)
        try:
            Worker(stage.project, entered).run()
        finally:
            entered.close()


class Work(_Works):
    """A worker that runs a job that succeeds, one that prints and fails, one that cannot be started, and drains."""

    name = "work and drain"
    jobs = (
        ("job1.conf", "sleep 0.01", "done"),
        ("job2.conf", "echo out\nsleep 0.01\necho err >&2\nexit 3", "failed"),
        ("job4.conf", _ORDERS % ("drain", "0.03"), "done"),
        ("job5.conf", "exit 0", "done"),
    )

    def prepare(self, stage: Stage) -> None:
        super().prepare(stage)
        stage.accept("job3.conf", b"[control]\nexecutable: ./missing\n", "failed")

    def enter(self, stage: Stage) -> OwnSlot:
        own = super().enter(stage)
        stage.assign("job3.conf", own)
        return own


class StopNow(_Works):
    """A worker that is told to leave at once, in the middle of a job, with another one assigned."""

    name = "stop now"
    jobs = (
        ("job1.conf", _ORDERS % ("now", "60"), "done"),
        ("job2.conf", "exit 0", "done"),
    )


ROLES = (Submit(), TakeSlot(), GiveOrder(), Assign(), Reject(), ShareOut(), Reclaim(), Work(), StopNow())
