"""Guards the check for leaks itself: a check that sees nothing would let everything pass."""

from __future__ import annotations

import os
import subprocess
import threading

from lab import children, open_files, threads


def test_leak_check_sees_an_open_file_while_it_is_open() -> None:
    before = open_files()
    fd = os.open("/dev/null", os.O_RDONLY)
    assert open_files() - before == {("file", f"{fd} -> /dev/null")}
    os.close(fd)
    assert open_files() == before


def test_leak_check_sees_a_thread_while_it_runs() -> None:
    before = threads()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="leaked")
    thread.start()
    assert threads() - before == {("thread", "leaked")}
    stop.set()
    thread.join()
    assert threads() == before


def test_leak_check_sees_a_child_also_when_it_is_dead_but_not_waited_for() -> None:
    before = children()
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert children() - before == {("process", str(child.pid))}
    child.wait()
    assert children() == before
