"""Guards recruiting: the names of new workers, what they are started with, who is chosen, and how they are let go.

The backend is a fake that keeps what it is asked for; a worker that comes up is a slot.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from lab import make_project

import fjd.reclaim
from fjd import host
from fjd.errors import RecruitError, UsageError
from fjd.project import Project
from fjd.recruiter import Launch, staff
from fjd.recruiter.staff import Member
from fjd.slot import Identity, Order, OwnSlot

HERE = Identity.of_this_process("vm-1", "tmux", "look here")
ELSEWHERE = Identity("far-1", "far", "another boot/1", 1, 1)


class FakeBackend:
    """Starts nothing; `on_start` is what becomes of the launches."""

    name = "fake"

    def __init__(self, on_start: Callable[[Launch], object]) -> None:
        self.on_start = on_start
        self.launches: list[Launch] = []
        self.environment: dict[str, str] = {}

    def watch_hint(self, slot_name: str) -> str:
        return f"look at {slot_name}"

    def start(self, launches: list[Launch], environment: dict[str, str]) -> None:
        self.launches = launches
        self.environment = environment
        for launch in launches:
            self.on_start(launch)

    def ended(self, slot_names: list[str]) -> list[str]:
        return slot_names


class Office:
    """A project and its slots."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.opened = ExitStack()

    def slot(self, name: str, identity: Identity = HERE, running: str = "") -> OwnSlot:
        own = OwnSlot.take(self.project.workerqueue, name, identity)
        self.opened.callback(own.close)
        if running:
            Path(own.running, running).write_text("")
        return own

    def lost(self, name: str, running: str = "") -> OwnSlot:
        own = self.slot(name, ELSEWHERE, running)
        own.close()
        return own

    def roster(self) -> list[Member]:
        return staff.roster(self.project)

    def comes_up(self, launch: Launch) -> None:
        os.mkdir(f"{self.project.workerqueue}/{launch.slot_name}")


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    monkeypatch.setattr(staff, "_LEAVE_SECONDS", 0.0)
    monkeypatch.setattr(host, "host_name", lambda: "vm")
    made = Office(make_project(tmp_path / "project", filesystem="local", grace_seconds=0))
    yield made
    made.opened.close()


# Hiring


def test_hire_takes_the_lowest_free_numbers(office: Office) -> None:
    for name in ("vm-2.aaaa", "vm-4.bbbb", "far-1.cccc"):
        os.mkdir(f"{office.project.workerqueue}/{name}")
    names = staff.hire(office.project, 3, FakeBackend(office.comes_up))
    assert [name.partition(".")[0] for name in names] == ["vm-1", "vm-3", "vm-5"]


def test_hire_gives_each_worker_a_private_start_file_that_goes(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment may hold secrets."""
    monkeypatch.setenv("SECRET", "word")
    seen: list[tuple[int, int, dict[str, object]]] = []
    paths: list[str] = []

    def come_up(launch: Launch) -> None:
        path = launch.argv[launch.argv.index("--start-file") + 1]
        paths.append(path)
        folder = os.stat(os.path.dirname(path)).st_mode
        seen.append((stat.S_IMODE(os.stat(path).st_mode), stat.S_IMODE(folder), json.loads(Path(path).read_text())))
        office.comes_up(launch)

    chosen = FakeBackend(come_up)
    (name,) = staff.hire(office.project, 1, chosen)
    ((mode, folder_mode, start),) = seen
    assert (mode, folder_mode) == (0o600, 0o700)
    assert (start["dir"], start["backend"], start["watch"]) == (office.project.path, "fake", f"look at {name}")
    assert start["environment"]["SECRET"] == "word"
    assert "SECRET" not in chosen.environment
    assert not os.path.exists(os.path.dirname(paths[0]))


def test_hire_says_the_last_lines_when_a_worker_does_not_come_up(office: Office) -> None:
    paths: list[str] = []

    def fail(launch: Launch) -> None:
        paths.append(launch.error_path)
        Path(launch.error_path).write_text("".join(f"line {number}\n" for number in range(1, 11)))

    with pytest.raises(RecruitError) as caught:
        staff.hire(office.project, 2, FakeBackend(fail))
    assert caught.value.path == "worker vm-1"
    lines = " | ".join(f"line {number}" for number in range(3, 11))
    assert caught.value.reason == f"ended before it was ready, and 1 more with it (0 are ready); it said: {lines}"
    assert not os.path.exists(paths[0])


def test_hire_keeps_those_that_came_up_when_one_does_not(office: Office) -> None:
    def come_up(launch: Launch) -> None:
        if launch.worker == "vm-1":
            office.comes_up(launch)

    with pytest.raises(RecruitError, match=r"worker vm-2: ended before it was ready \(1 are ready\)"):
        staff.hire(office.project, 2, FakeBackend(come_up))
    assert len(os.listdir(office.project.workerqueue)) == 1


def test_hire_is_content_when_a_worker_came_and_went_meanwhile(office: Office) -> None:
    def come_and_go(launch: Launch) -> None:
        Path(office.project.worker_log(launch.slot_name)).write_text("has left\n")

    assert len(staff.hire(office.project, 1, FakeBackend(come_and_go))) == 1


def test_hire_gives_up_when_a_worker_is_not_ready_in_time(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staff, "_HIRE_SECONDS", -1.0)
    chosen = FakeBackend(lambda launch: None)
    chosen.ended = lambda slot_names: []
    with pytest.raises(RecruitError, match="is not ready after"):
        staff.hire(office.project, 1, chosen)


# The roster


def test_roster_tells_what_each_worker_does(office: Office) -> None:
    office.slot("vm-1.aaaa")
    office.slot("vm-2.aaaa", running="job.abcdef012345~2.conf")
    leaving = office.slot("vm-3.aaaa")
    Path(leaving.path, "fire").write_text("drain\n")
    office.lost("far-1.aaaa")
    os.mkdir(f"{office.project.workerqueue}/.vm-9.aaaa")
    assert [(m.worker, m.state, m.job) for m in office.roster()] == [
        ("far-1", "lost", ""),
        ("vm-1", "idle", ""),
        ("vm-2", "busy", "job.abcdef012345~2"),
        ("vm-3", "leaving", ""),
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_roster_leaves_out_the_workers_of_others(office: Office) -> None:
    os.chown(office.slot("vm-1.aaaa").path, 65534, 65534)
    assert office.roster() == []


def member(slot_name: str, host_name: str) -> Member:
    return Member(slot_name, "", HERE._replace(host=host_name), "idle", "", None)


MEMBERS = [member("vm-1.aaaa", "vm"), member("vm-2.bbbb", "vm"), member("far-1.cccc", "far")]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ([], ["vm-1.aaaa", "vm-2.bbbb"]),
        (["vm-2"], ["vm-2.bbbb"]),
        (["far-1.cccc"], ["far-1.cccc"]),
        (["far-1", "vm-1"], ["vm-1.aaaa", "far-1.cccc"]),
    ],
)
def test_select_takes_the_named_ones_or_those_of_this_host(
    office: Office, wanted: list[str], chosen: list[str]
) -> None:
    assert [m.slot_name for m in staff.select(MEMBERS, wanted)] == chosen


def test_select_refuses_a_name_that_nobody_has(office: Office) -> None:
    with pytest.raises(UsageError, match="vm-9: no such worker"):
        staff.select(MEMBERS, ["vm-1", "vm-9"])


# Firing


def test_fire_writes_the_order_and_does_not_wait_for_the_busy(office: Office) -> None:
    own = office.slot("vm-1.aaaa", running="job.abcdef012345.conf")
    fired = staff.fire(office.project, office.roster(), Order.DRAIN)
    assert Path(own.path, "fire").read_text() == "drain\n"
    assert ([m.worker for m in fired.busy], fired.gone, fired.lost) == (["vm-1"], [], [])


def test_fire_counts_as_gone_who_has_left_already(office: Office) -> None:
    own = office.slot("far-1.aaaa", ELSEWHERE)
    members = office.roster()
    own.leave()
    fired = staff.fire(office.project, members, Order.DRAIN)
    assert ([m.worker for m in fired.gone], fired.busy) == (["far-1"], [])


def test_fire_reclaims_a_lost_slot(office: Office) -> None:
    own = office.lost("far-1.aaaa", running="job.abcdef012345.conf")
    fired = staff.fire(office.project, office.roster(), Order.DRAIN)
    assert [m.worker for m in fired.lost] == ["far-1"]
    assert not os.path.exists(own.path)
    assert os.listdir(office.project.jobqueue) == ["job.abcdef012345~2.conf"]


def test_fire_reclaims_a_lost_slot_without_heartbeat_file(office: Office) -> None:
    own = office.lost("far-1.aaaa")
    members = office.roster()
    os.unlink(f"{own.path}/alive")
    staff.fire(office.project, members, Order.DRAIN)
    assert not os.path.exists(own.path)


def test_fire_kills_a_stubborn_worker_of_this_host_and_puts_its_job_back(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fjd.reclaim, "kill_strays", lambda slot_name, project_path, session: True)
    monkeypatch.setattr(staff, "_wait_ended", lambda identity: worker.wait())
    with subprocess.Popen(["sleep", "60"]) as worker:
        identity = HERE._replace(pid=worker.pid, start_ticks=host.start_ticks(worker.pid) or 0)
        own = office.slot("vm-1.aaaa", identity, running="job.abcdef012345.conf")
        fired = staff.fire(office.project, office.roster(), Order.NOW)
    assert [m.worker for m in fired.gone] == ["vm-1"]
    assert worker.returncode == -9
    assert not os.path.exists(own.path)
    assert os.listdir(office.project.jobqueue) == ["job.abcdef012345~2.conf"]


def test_fire_says_so_when_a_worker_of_another_host_does_not_go(office: Office) -> None:
    own = office.slot("far-1.aaaa", ELSEWHERE)
    with pytest.raises(RecruitError, match="worker far-1: did not leave in time"):
        staff.fire(office.project, office.roster(), Order.NOW)
    assert Path(own.path, "fire").read_text() == "now\n"
