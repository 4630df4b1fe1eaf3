"""Guards how a process is told from another one that got its pid, here and on another machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from fjd import host


@pytest.fixture
def no_cache() -> Iterator[None]:
    """host.py asks the machine once; these tests ask it again, and leave nothing of that behind."""
    host.host_name.cache_clear()
    host.machine_id.cache_clear()
    yield
    host.host_name.cache_clear()
    host.machine_id.cache_clear()


def test_start_ticks_is_the_same_for_one_process_each_time() -> None:
    ticks = host.start_ticks(os.getpid())
    assert ticks is not None
    assert ticks > 0
    assert host.start_ticks(os.getpid()) == ticks


def test_start_ticks_is_none_when_there_is_no_such_process() -> None:
    assert host.start_ticks(2**22 + 1) is None
    assert host.start_ticks(-1) is None


def test_start_ticks_is_none_when_the_process_is_a_zombie() -> None:
    child = subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert host.start_ticks(child.pid) is None
    finally:
        child.wait()


def test_start_ticks_reads_past_a_program_name_with_parentheses(tmp_path: object) -> None:
    program = os.path.join(str(tmp_path), "a) Z 1 (b")
    os.symlink("/bin/sleep", program)
    child = subprocess.Popen([program, "60"])
    try:
        assert host.start_ticks(child.pid) == _start_ticks_by_ps(child.pid)
    finally:
        child.kill()
        child.wait()


def _start_ticks_by_ps(pid: int) -> int:
    import psutil

    seconds = psutil.Process(pid).create_time() - psutil.boot_time()
    return round(seconds * os.sysconf("SC_CLK_TCK"))


def test_machine_id_names_boot_and_pid_namespace(no_cache: None) -> None:
    boot, _, namespace = host.machine_id().partition("/")
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        assert boot == file.read().strip()
    assert int(namespace) == os.stat("/proc/self/ns/pid").st_ino


def test_machine_id_is_shared_with_nobody_when_the_kernel_says_nothing(
    no_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_proc(path: str) -> os.stat_result:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "stat", no_proc)
    first = host.machine_id()
    host.machine_id.cache_clear()
    assert first.startswith("unknown/")
    assert host.machine_id() != first


@pytest.mark.parametrize(
    ("node", "name"), [("vm-1.example.org", "vm-1"), ("my_box", "my_box"), ("büro", "b-ro"), ("", "host")]
)
def test_host_name_has_only_what_a_slot_name_may_have(
    node: str, name: str, no_cache: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", node, "", "", "")))
    assert host.host_name() == name


def test_cores_counts_what_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5})
    assert host.cores() == 3
