"""From the drop of a job file to the first action of its job, on an idle worker.

The clock (CLOCK_REALTIME) is read right before the complete file is renamed into jobqueue/, and again by the job
itself, as the first thing in its main(). Nothing is subtracted. So it holds: the event, the dispatcher's assignment,
the second event, the worker's launch, and the start of the process. How long the last of these takes without fjd is a
row of its own: the same program started by this process.

`by cp` is the same for a file that is created, written and closed in jobqueue/, from the close on. `after a rest` waits
a second before each drop, in which caches and processor go cold, and nobody looks any more.

The job is a C program of ten lines. Where there is no compiler, it is a script that runs date: 1 to 2 ms more.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time

from bench.figures import Figure, Measurement, median, percentile
from bench.rig import Rig, wait_until

__all__ = ["measure"]

_PROBE = r"""
#include <stdio.h>
#include <time.h>
int main(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    printf("%lld%09ld\n", (long long)now.tv_sec, now.tv_nsec);
    return 0;
}
"""


def measure(folder: str, drops: int = 200, pause_seconds: float = 0.1, rested_drops: int = 30) -> Measurement:
    """p50 and p99 over `drops` jobs, one at a time, with a pause that is not always the same."""
    with Rig(folder) as rig:
        probe = _probe(rig.path)
        spawns = [_spawn_ms(probe) for _ in range(drops)]
        rig.hire(1)
        rig.start_dispatcher()
        rig.warm_up()
        moved = _series(rig, probe, drops, pause_seconds, by_copy=False)
        copied = _series(rig, probe, drops, pause_seconds, by_copy=True)
        rested = _series(rig, probe, rested_drops, 1.0, by_copy=False)
    return Measurement(
        "latency",
        [
            Figure("drop to first action, p50", median(moved), "ms", "< 10; issue 4: < 2"),
            Figure("drop to first action, p99", percentile(moved, 99), "ms", "issue 4: < 10"),
            Figure("... by cp, p50", median(copied), "ms"),
            Figure("... by cp, p99", percentile(copied, 99), "ms"),
            Figure("... after a rest, p50", median(rested), "ms"),
            Figure("... after a rest, p90", percentile(rested, 90), "ms"),
            Figure("starting that process without fjd, p50", median(spawns), "ms"),
        ],
        {
            "drops": drops,
            "pause_seconds": pause_seconds,
            "rested_drops": rested_drops,
            "probe": os.path.basename(probe),
        },
        {"moved_ms": moved, "copied_ms": copied, "rested_ms": rested, "spawn_ms": spawns},
    )


def _probe(folder: str) -> str:
    """The path of a program that prints the time, in nanoseconds, at which it began."""
    compiler = shutil.which("cc")
    if compiler is None:
        path = f"{folder}/probe.sh"
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o700), "w", encoding="ascii") as file:
            file.write("#!/bin/sh\nexec date +%s%N\n")
        return path
    path = f"{folder}/probe"
    subprocess.run([compiler, "-O2", "-x", "c", "-o", path, "-"], input=_PROBE.encode(), check=True)
    return path


def _spawn_ms(probe: str) -> float:
    reader, writer = os.pipe()
    try:
        start = time.time_ns()
        pid = os.posix_spawn(probe, [probe], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])
        os.waitpid(pid, 0)
        return (int(os.read(reader, 100)) - start) / 1e6
    finally:
        os.close(reader)
        os.close(writer)


def _series(rig: Rig, probe: str, drops: int, pause_seconds: float, by_copy: bool) -> list[float]:
    """Milliseconds of each drop. Nothing is read before the last one is through, so that nobody disturbs the others."""
    text = f"[control]\nexecutable: {probe}\n"
    finished = rig.finished()
    starts: dict[str, int] = {}
    for _ in range(drops):
        # Not in step with anybody's timer.
        time.sleep(pause_seconds * random.uniform(0.75, 1.25))
        name = rig.stage(text)
        if by_copy:
            with open(f"{rig.project.jobqueue}/{name}", "w", encoding="utf-8") as file:
                file.write(text)
            starts[name] = time.time_ns()
        else:
            starts[name] = time.time_ns()
            rig.drop(name)
    wait_until(lambda: rig.finished() == finished + drops, f"{drops} jobs")
    actions: dict[str, int] = {}
    for output in os.listdir(rig.project.logs):
        job = output.partition(".")[0] + ".conf"
        if output.endswith(".out") and job in starts:
            with open(f"{rig.project.logs}/{output}", encoding="ascii") as file:
                actions[job] = int(file.read())
    return [(actions[name] - start) / 1e6 for name, start in starts.items()]
