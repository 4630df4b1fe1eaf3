"""Guards what a worker does between its order to run and its order to leave: fence, orders, trouble, leaving.

A worker collects every child of its process, so each runs in a process of its own (`work`), forked from this one, and
what the test does to it happens in there: at its heartbeats, when it asks for orders, or from within its job. So
nothing is waited for by time, except where the clock is said to stand in for it.
"""

from __future__ import annotations

import errno
import faulthandler
import json
import logging
import math
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import Clock, make_project

from fjd import disk, journal, spool, watch
from fjd import worker as worker_module
from fjd.journal import Record
from fjd.names import JobName
from fjd.project import Project
from fjd.slot import Identity, Order, OwnSlot, give_order
from fjd.worker import Worker

# A worker that does not end is ended, and the test fails.
_TOO_LONG_SECONDS = 20

Beat = Callable[[], None]


class Shop:
    """A project with one slot, the jobs in it, and what its worker said."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.own = OwnSlot.take(project.workerqueue, "vm-1.k3f9", Identity.of_this_process("vm-1"))
        self.said: list[str] = []
        self.clock: Clock | None = None
        self._next_id = 0xABCDEF000000

    def assign(self, name: str, script: str) -> str:
        self._next_id += 1
        filename = f"{name}.{self._next_id:x}.sh"
        # Shown in one go, as a dispatcher would.
        draft = f"{self.project.path}/{filename}"
        Path(draft).write_text(f"#!/bin/sh\nslot={self.own.path}\nproject={self.project.path}\n{script}\n")
        os.rename(draft, f"{self.own.path}/{filename}")
        return filename

    def work(self) -> str:
        """Run the worker until it has left; what it left with: an order, or the error."""
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_fd)
            os._exit(self._work_in_child(write_fd))
        os.close(write_fd)
        with open(read_fd, encoding="utf-8") as answer:
            text = answer.read()
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"the worker died (status {status})"
        result, self.said = json.loads(text)
        return result

    def _work_in_child(self, write_fd: int) -> int:
        try:
            signal.alarm(_TOO_LONG_SECONDS)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            faulthandler.disable()
            said = _Said()
            logging.getLogger("fjd").handlers = [said]
            logging.getLogger("fjd").setLevel(logging.INFO)
            try:
                clock = [self.clock] if self.clock is not None else []
                result = str(Worker(self.project, self.own, *clock).run())
            except Exception as error:
                result = f"{type(error).__name__}: {error}"
            os.write(write_fd, json.dumps([result, said.lines]).encode())
            return 0
        except BaseException:
            traceback.print_exc()
            return 70

    def names(self, folder: str) -> list[str]:
        return sorted(JobName.parse(name).name for name in os.listdir(folder))

    @property
    def records(self) -> list[Record]:
        return list(journal.Journals(self.project.journal).new_records())

    @property
    def outcomes(self) -> dict[str, str]:
        return {record.job: record.outcome for record in self.records}

    @property
    def has_left(self) -> bool:
        return not os.path.exists(self.own.path)


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def shop(tmp_path: Path) -> Any:
    """Its heart beats all the time, so nothing is waited for; a missing event is found by a beat."""
    project = make_project(tmp_path / "p", filesystem="local", heartbeat_seconds=0.01, lost_seconds=30, grace_seconds=2)
    made = Shop(project)
    yield made
    made.own.close()


@pytest.fixture
def calm_shop(tmp_path: Path) -> Any:
    """Here it beats once a minute, so whatever has to be heard is heard by an event."""
    project = make_project(tmp_path / "p", filesystem="local", heartbeat_seconds=60, lost_seconds=300, grace_seconds=2)
    made = Shop(project)
    yield made
    made.own.close()


# Jobs that tell their worker something. Their parent is the worker.
DRAIN = 'echo drain > "$slot/.fire"; mv "$slot/.fire" "$slot/fire"'
NOW = 'echo now > "$slot/.fire"; mv "$slot/.fire" "$slot/fire"'
LAST = "kill -INT $PPID"
STAY = "exec sleep 60"


def on_log(part: str, action: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Have `action` happen when the worker logs a line with this part."""
    real = _Said.emit

    def emit(self: _Said, record: logging.LogRecord) -> None:
        real(self, record)
        if part in record.getMessage():
            action()

    patch.setattr(_Said, "emit", emit)


# The ordinary case


def test_worker_runs_its_jobs_in_the_order_of_their_numbers(calm_shop: Shop) -> None:
    calm_shop.assign("job10", LAST)
    calm_shop.assign("job2", "exit 3")
    calm_shop.assign("job1", "exit 0")
    assert calm_shop.work() == "drain"
    assert [(r.job, r.outcome, r.exit_code) for r in calm_shop.records] == [
        ("job1", "succeeded", 0),
        ("job2", "failed", 3),
        ("job10", "succeeded", 0),
    ]
    assert calm_shop.names(calm_shop.project.done) == ["job1", "job10"]
    assert calm_shop.names(calm_shop.project.failed) == ["job2"]
    assert calm_shop.has_left


def test_worker_fails_a_job_that_cannot_be_run_and_goes_on(calm_shop: Shop) -> None:
    bad = calm_shop.assign("job1", "")
    Path(calm_shop.own.path, bad).write_text("[control]\nexecutable: /no/such/program\n")
    calm_shop.assign("job2", LAST)
    calm_shop.work()
    assert calm_shop.outcomes == {"job1": "failed", "job2": "succeeded"}
    assert (calm_shop.records[0].exit_code, calm_shop.records[0].reason) == (127, "/no/such/program: no such file")


def test_worker_hears_at_once_of_a_job_that_comes_while_it_is_idle(
    calm_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OwnSlot.beat

    def beat(own: OwnSlot) -> None:
        real(own)
        calm_shop.assign("job1", LAST)

    monkeypatch.setattr(OwnSlot, "beat", beat)
    calm_shop.work()
    assert calm_shop.outcomes == {"job1": "succeeded"}


def test_worker_looks_by_itself_when_the_doorbell_is_deaf(calm_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "inotify_add_watch", None)
    real = OwnSlot.beat

    def beat(own: OwnSlot) -> None:
        real(own)
        calm_shop.assign("job1", LAST)

    monkeypatch.setattr(OwnSlot, "beat", beat)
    calm_shop.work()
    assert calm_shop.outcomes == {"job1": "succeeded"}
    assert calm_shop.said[0].startswith("no events from")


def test_worker_stops_what_a_job_left_behind_before_it_ends(calm_shop: Shop) -> None:
    calm_shop.assign("job1", f'setsid sleep 60 & echo $! > "$project/pid"; {LAST}')
    calm_shop.work()
    assert calm_shop.outcomes == {"job1": "succeeded"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path(calm_shop.project.path, "pid").read_text()), 0)
    assert any("left processes behind" in line for line in calm_shop.said)


# The heartbeat's fence


def test_worker_starts_nothing_when_it_could_not_beat_for_half_of_the_limit(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.clock = clock = Clock()
    shop.assign("job1", LAST)
    beats: list[int] = []
    real_beat, real_start = OwnSlot.beat, spool.start

    def beat(own: OwnSlot) -> None:
        clock.advance(1.0)
        beats.append(1)
        if len(beats) < 20:
            raise OSError(errno.EIO, "Input/output error")
        real_beat(own)

    def start(own: OwnSlot, filename: str) -> JobName | None:
        assert len(beats) == 20, "started without a heartbeat"
        return real_start(own, filename)

    real_init = Worker.__init__

    def init(self: Worker, *arguments: Any) -> None:
        real_init(self, *arguments)
        clock.advance(shop.project.settings.fence_seconds)

    monkeypatch.setattr(Worker, "__init__", init)
    monkeypatch.setattr(OwnSlot, "beat", beat)
    monkeypatch.setattr(spool, "start", start)
    assert shop.work() == "drain"
    assert shop.outcomes == {"job1": "succeeded"}


def test_worker_still_starts_a_job_right_before_the_fence(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.clock = clock = Clock()
    shop.assign("job1", LAST)
    real_init = Worker.__init__

    def init(self: Worker, *arguments: Any) -> None:
        real_init(self, *arguments)
        clock.advance(shop.project.settings.fence_seconds - 0.01)

    def beat(own: OwnSlot) -> None:
        assert not spool.assigned(own.path), "waited without need"

    monkeypatch.setattr(Worker, "__init__", init)
    monkeypatch.setattr(OwnSlot, "beat", beat)
    assert shop.work() == "drain"
    assert shop.outcomes == {"job1": "succeeded"}


def test_worker_stops_its_job_when_it_could_not_beat_for_too_long(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.clock = clock = Clock()
    shop.assign("job1", STAY)
    limit = math.ceil(shop.project.settings.surrender_seconds)

    def beat(own: OwnSlot) -> None:
        if os.listdir(shop.project.jobqueue):
            # The job is back: let the worker go, or it would wait here for its disk for ever.
            give_order(own.path, Order.DRAIN)
            return
        if clock.now < 1000.0 + limit + 1.0:
            clock.advance(1.0)
        else:
            clock.advance(0.02)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(OwnSlot, "beat", beat)
    assert shop.work() == "drain"
    assert f"no heartbeat written for {limit} s: stopping the job" in shop.said
    assert shop.outcomes == {"job1": "stopped"}
    assert [JobName.parse(name).attempt for name in os.listdir(shop.project.jobqueue)] == [2]


def test_worker_stops_its_job_and_raises_when_its_slot_is_taken_away(shop: Shop) -> None:
    shop.assign(
        "job1", f'trap \'echo > "$project/stopped"; exit\' TERM; rm -r "$slot"; {STAY.removeprefix("exec ")} & wait'
    )
    assert shop.work().startswith("SlotLost: ")
    assert os.path.exists(f"{shop.project.path}/stopped")
    assert any("this outcome does not count" in line for line in shop.said)
    assert os.listdir(shop.project.done) == []


# Orders


def test_drain_lets_the_job_end_and_the_next_ones_go_back(calm_shop: Shop) -> None:
    calm_shop.assign("job1", DRAIN)
    second = calm_shop.assign("job2", "exit 0")
    assert calm_shop.work() == "drain"
    assert calm_shop.outcomes == {"job1": "succeeded"}
    assert os.listdir(calm_shop.project.jobqueue) == [second]
    assert calm_shop.has_left


def test_now_stops_the_job_and_puts_it_back(calm_shop: Shop) -> None:
    first = calm_shop.assign("job1", f"{NOW}; {STAY}")
    second = calm_shop.assign("job2", "exit 0")
    assert calm_shop.work() == "now"
    assert calm_shop.outcomes == {"job1": "stopped"}
    again = JobName.parse(first).next.filename
    assert sorted(os.listdir(calm_shop.project.jobqueue)) == sorted([again, second])
    assert calm_shop.has_left


def test_now_counts_when_it_comes_after_drain(calm_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    calm_shop.assign("job1", f"{DRAIN}; {STAY}")
    answers: list[Order | None] = []
    real = OwnSlot.order

    def order(own: OwnSlot) -> Order | None:
        answers.append(real(own))
        if answers[-1] is Order.DRAIN:
            give_order(own.path, Order.NOW)
        return answers[-1]

    monkeypatch.setattr(OwnSlot, "order", order)
    assert calm_shop.work() == "now"
    assert calm_shop.outcomes == {"job1": "stopped"}


def test_drain_takes_nothing_back_when_it_comes_after_now(calm_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    calm_shop.assign("job1", f"{NOW}; {STAY}")
    real = OwnSlot.order

    def order(own: OwnSlot) -> Order | None:
        answer = real(own)
        if answer is Order.NOW:
            give_order(own.path, Order.DRAIN)
        return answer

    monkeypatch.setattr(OwnSlot, "order", order)
    assert calm_shop.work() == "now"
    assert calm_shop.outcomes == {"job1": "stopped"}


def test_order_stands_when_its_file_is_removed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.assign("job1", f'{DRAIN}; while [ -e "$slot/fire" ]; do sleep 0.01; done; sleep 0.05')
    shop.assign("job2", "exit 0")
    real = OwnSlot.order

    def order(own: OwnSlot) -> Order | None:
        answer = real(own)
        if answer is not None:
            os.unlink(f"{own.path}/fire")
        return answer

    monkeypatch.setattr(OwnSlot, "order", order)
    assert shop.work() == "drain"
    assert shop.outcomes == {"job1": "succeeded"}


def test_order_is_found_by_a_heartbeat_when_no_event_came(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch.Doorbell, "watch_arrivals", lambda self, folder: None)
    beats: list[int] = []
    real = OwnSlot.beat

    def beat(own: OwnSlot) -> None:
        beats.append(1)
        if len(beats) == 2:
            give_order(own.path, Order.NOW)
        real(own)

    monkeypatch.setattr(OwnSlot, "beat", beat)
    assert shop.work() == "now"
    assert shop.has_left


def test_order_is_obeyed_before_the_first_job_when_it_was_there_first(calm_shop: Shop) -> None:
    calm_shop.assign("job1", "exit 0")
    give_order(calm_shop.own.path, Order.DRAIN)
    assert calm_shop.work() == "drain"
    assert calm_shop.outcomes == {}
    assert calm_shop.names(calm_shop.project.jobqueue) == ["job1"]


def test_first_interrupt_lets_the_job_end(calm_shop: Shop) -> None:
    calm_shop.assign("job1", f"{LAST}; exit 4")
    calm_shop.assign("job2", "exit 0")
    assert calm_shop.work() == "drain"
    assert [(r.job, r.exit_code) for r in calm_shop.records] == [("job1", 4)]
    assert calm_shop.names(calm_shop.project.jobqueue) == ["job2"]


@pytest.mark.parametrize("by", ["signal", "file"])
def test_order_counts_before_the_next_start_when_it_comes_while_a_job_is_recorded(
    calm_shop: Shop, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The next job may take hours."""
    calm_shop.assign("job1", "exit 0")
    calm_shop.assign("job2", LAST)
    real = spool.conclude

    def conclude(project: Project, own: OwnSlot, job: JobName, outcome: str) -> JobName | None:
        if by == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            give_order(own.path, Order.DRAIN)
        return real(project, own, job, outcome)

    monkeypatch.setattr(spool, "conclude", conclude)
    assert calm_shop.work() == "drain"
    assert calm_shop.outcomes == {"job1": "succeeded"}
    assert calm_shop.names(calm_shop.project.jobqueue) == ["job2"]


def test_second_interrupt_stops_the_job(calm_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    calm_shop.assign("job1", f"{LAST}; {STAY}")
    on_log("leaving after this job", lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    assert calm_shop.work() == "now"
    assert calm_shop.outcomes == {"job1": "stopped"}


@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_other_signals_stop_the_job_at_once(calm_shop: Shop, name: str) -> None:
    calm_shop.assign("job1", f"kill -{name} $PPID; {STAY}")
    assert calm_shop.work() == "now"
    assert calm_shop.outcomes == {"job1": "stopped"}
    assert calm_shop.has_left


def test_job_that_ended_by_itself_keeps_its_outcome_when_the_order_is_now(
    calm_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stopped then are the processes that it left, and not the job."""
    calm_shop.assign("job1", "sleep 60 & exit 0")
    on_log("left processes behind", lambda: give_order(calm_shop.own.path, Order.NOW), monkeypatch)
    assert calm_shop.work() == "now"
    assert calm_shop.outcomes == {"job1": "succeeded"}


# Trouble


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_start_is_tried_again_when_the_machine_has_no_room(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    shop.assign("job1", LAST)
    monkeypatch.setattr(worker_module, "_RETRY_SECONDS", 0.001)
    real = os.posix_spawn
    left = [number, number]

    def posix_spawn(*arguments: Any, **more: Any) -> int:
        if left:
            error = left.pop()
            raise OSError(error, os.strerror(error))
        return real(*arguments, **more)

    monkeypatch.setattr(os, "posix_spawn", posix_spawn)
    assert shop.work() == "drain"
    assert shop.outcomes == {"job1": "succeeded"}
    assert sum("trying again" in line for line in shop.said) == 1


def test_worker_ends_with_a_project_error_when_the_trouble_will_not_pass(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.assign("job1", "exit 0")

    def move(source: str, target: str) -> bool:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), source)

    monkeypatch.setattr(disk, "move", move)
    result = shop.work()
    assert result.startswith("ProjectError: ")
    assert "read-only" in result


def test_record_is_tried_again_before_the_job_is_moved_when_the_disk_is_full(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.assign("job1", LAST)
    monkeypatch.setattr(worker_module, "_RETRY_SECONDS", 0.001)
    real = journal.Journal.append
    left = [errno.ENOSPC]

    def append(self: journal.Journal, record: Record) -> None:
        assert len(os.listdir(shop.own.running)) == 1
        if left:
            raise OSError(left.pop(), "No space left on device")
        real(self, record)

    monkeypatch.setattr(journal.Journal, "append", append)
    assert shop.work() == "drain"
    assert len(shop.records) == 1
    assert shop.names(shop.project.done) == ["job1"]


def test_outcome_does_not_count_when_the_job_was_taken_over(shop: Shop) -> None:
    filename = shop.assign(
        "job1", f'mv "$slot/running/{{}}" "$project/jobqueue/mine"; echo other > "$project/jobrecord/done/{{}}"; {LAST}'
    )
    path = Path(shop.own.path, filename)
    path.write_text(path.read_text().replace("{}", filename))
    assert shop.work() == "drain"
    assert any("this outcome does not count" in line for line in shop.said)
    assert Path(shop.project.done, filename).read_text() == "other\n"
    assert os.listdir(shop.project.jobqueue) == ["mine"]
    assert not any(line.endswith("succeeded") for line in shop.said)


# Leaving


def test_leaving_moves_a_strangers_file_into_the_jobqueue(calm_shop: Shop) -> None:
    """Nothing that a user wrote is deleted."""
    Path(calm_shop.own.path, "notes.txt").write_text("mine")
    give_order(calm_shop.own.path, Order.DRAIN)
    assert calm_shop.work() == "drain"
    assert Path(calm_shop.project.jobqueue, "notes.txt").read_text() == "mine"
    assert calm_shop.has_left


def test_leaving_sets_aside_what_a_job_wrote_beside_its_file(calm_shop: Shop) -> None:
    Path(calm_shop.own.running, "notes.txt").write_text("mine")
    give_order(calm_shop.own.path, Order.DRAIN)
    assert calm_shop.work() == "drain"
    assert Path(calm_shop.project.logs, "vm-1.k3f9.notes.txt").read_text() == "mine"
    assert calm_shop.has_left


def test_leaving_gives_up_with_an_error_when_the_slot_cannot_be_emptied(
    calm_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_LEAVE_TRIES", 3)
    # What it started itself it has ended; this is somebody else's, and looks like a job.
    name = "job1.abcdef012345.conf"
    Path(calm_shop.own.running, name).write_text("mine")
    give_order(calm_shop.own.path, Order.DRAIN)
    assert calm_shop.work() == "drain"
    assert len(calm_shop.said) == 1
    assert calm_shop.said[0].startswith(f"{calm_shop.own.path} is not empty: ")
    assert Path(calm_shop.own.running, name).read_text() == "mine"


def test_leaving_ends_well_when_somebody_removed_the_slot(calm_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def order(own: OwnSlot) -> Order:
        shutil.rmtree(own.path)
        return Order.DRAIN

    monkeypatch.setattr(OwnSlot, "order", order)
    assert calm_shop.work() == "drain"
    assert calm_shop.said == []


def test_leaving_takes_back_what_is_assigned_at_that_moment(calm_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    give_order(calm_shop.own.path, Order.DRAIN)
    real = spool.remove_slot
    tries: list[int] = []

    def remove_slot(own: OwnSlot) -> bool:
        tries.append(1)
        if len(tries) == 1:
            calm_shop.assign("job1", "exit 0")
        return real(own)

    monkeypatch.setattr(spool, "remove_slot", remove_slot)
    assert calm_shop.work() == "drain"
    assert calm_shop.names(calm_shop.project.jobqueue) == ["job1"]
    assert calm_shop.has_left


def test_idle_worker_raises_when_its_slot_is_gone(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    real = OwnSlot.beat

    def beat(own: OwnSlot) -> None:
        shutil.rmtree(own.path, ignore_errors=True)
        real(own)

    monkeypatch.setattr(OwnSlot, "beat", beat)
    assert shop.work().startswith("SlotLost: ")
