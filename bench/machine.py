"""Where it was measured, and what /proc says about a process."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import NamedTuple

import fjd
from fjd import filesystem, host

__all__ = ["Usage", "describe", "load", "memory_kilobytes", "usage"]


def describe(folder: str) -> dict[str, str | int]:
    """The machine, for the head of the table; `folder` is where the projects are made."""
    return {
        "fjd": f"{fjd.__version__} {_commit()}".strip(),
        "cores": host.cores(),
        "processor": _processor(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": filesystem.of(folder).kind,
        "folder": folder,
    }


def load() -> str:
    """How many processes wanted to run, on average over the last 1, 5 and 15 minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")


def _commit() -> str:
    root = os.path.dirname(os.path.dirname(os.path.abspath(fjd.__file__)))
    try:
        found = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return found.stdout.strip()


class Usage(NamedTuple):
    """What a process has used since it started, all of its threads together."""

    cpu_seconds: float
    # How often a thread went to sleep by itself, and so was woken.
    wakeups: int

    def __sub__(self, before: Usage) -> Usage:
        return Usage(self.cpu_seconds - before.cpu_seconds, self.wakeups - before.wakeups)


def usage(pid: int) -> Usage:
    """CPU time from schedstat, in nanoseconds: the same as utime + stime of stat, which only count 10 ms ticks."""
    nanoseconds = wakeups = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            nanoseconds += int(file.read().split()[0])
        with open(f"/proc/{pid}/task/{thread}/status", encoding="utf-8") as file:
            wakeups += sum(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))
    return Usage(nanoseconds / 1e9, wakeups)


def memory_kilobytes(pid: int) -> dict[str, int]:
    """Rss, Pss, Private_Dirty and the like of a process, as /proc/PID/smaps_rollup names them."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        fields = [line.split() for line in file][1:]
    return {words[0].rstrip(":"): int(words[1]) for words in fields}
