"""This host, and whether a process on it is still the same one.

A pid alone proves nothing, since it is used again. A process is named by three things: its pid, the moment it
started (in clock ticks since boot), and the machine: boot id and pid namespace, so that a container on the same
kernel or the same host after a reboot is another machine.
"""

from __future__ import annotations

import functools
import os
import re

__all__ = ["cores", "host_name", "machine_id", "start_ticks"]


@functools.cache
def host_name() -> str:
    """The host's short name, with only letters, digits, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", os.uname().nodename.split(".")[0]) or "host"


@functools.cache
def machine_id() -> str:
    """A text that two processes share if and only if a pid means the same process to both."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        # Without /proc nobody can be shown to be dead; a name that nobody shares says so.
        return f"unknown/{os.urandom(8).hex()}"


def start_ticks(pid: int) -> int | None:
    """When the process `pid` started, or None if there is none, or only its zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the program's name in parentheses, and may hold anything, even parentheses.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
