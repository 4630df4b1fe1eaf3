"""No-op jobs a second, beside other ways to start the same processes.

Each contender runs the same number of /bin/true, each with the path of its job file as the argument, on two workers.
They take turns, round by round, so that what else the machine does meets all of them alike. The ratio is that of the
medians.

- `xargs`: `xargs -P2 -n1 /bin/true`, which gets the paths from a file. It keeps nothing but whether all succeeded.
- `fjd`: two idle workers and a dispatcher are there. The time goes from the first of the renames into jobqueue/ to the
  last one into done/ (by that file's ctime), so the drops are in it.
- `fjd, from a start`: the files lie in jobqueue/ and two workers wait; the time is that of the command `dispatcher`,
  with the start of Python and the second look before it says that nothing is left.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from typing import NamedTuple

from bench.figures import Figure, Measurement, median
from bench.rig import NO_OP, Rig, wait_until

__all__ = ["CONTENDERS", "Contender", "measure"]

_WORKERS = 2


class Contender(NamedTuple):
    """A way to run jobs. `seconds` runs so many no-op ones in a new directory in a folder: how long it took."""

    name: str
    keeps: str
    seconds: Callable[[str, int], float]


def measure(folder: str, jobs: int = 2000, rounds: int = 5) -> Measurement:
    """The median rate of each contender, and its ratio to the first."""
    samples: dict[str, list[float]] = {contender.name: [] for contender in CONTENDERS}
    for _ in range(rounds):
        for contender in CONTENDERS:
            samples[contender.name].append(contender.seconds(folder, jobs))
    first = median(samples[CONTENDERS[0].name])
    figures = []
    for contender in CONTENDERS:
        seconds = median(samples[contender.name])
        figures.append(Figure(f"{contender.name} ({contender.keeps})", jobs / seconds, "jobs/s"))
        if contender is not CONTENDERS[0]:
            goal = "issue 4: >= 1.0" if contender.name == "fjd" else ""
            figures.append(Figure(f"... ratio to {CONTENDERS[0].name}", first / seconds, "x", goal))
    return Measurement(
        "throughput",
        figures,
        {"jobs": jobs, "rounds": rounds, "workers": _WORKERS},
        {f"{name}_seconds": seconds for name, seconds in samples.items()},
    )


def _xargs(folder: str, jobs: int) -> float:
    with Rig(folder) as rig:
        names = [rig.stage(NO_OP) for _ in range(jobs)]
        paths = f"{rig.path}/paths"
        with open(paths, "w", encoding="utf-8") as file:
            file.writelines(f"{rig.staging}/{name}\n" for name in names)
        start = time.perf_counter()
        subprocess.run(["xargs", "-a", paths, f"-P{_WORKERS}", "-n1", "/bin/true"], check=True)
        return time.perf_counter() - start


def _fjd(folder: str, jobs: int) -> float:
    with Rig(folder) as rig:
        rig.hire(_WORKERS)
        rig.start_dispatcher()
        rig.warm_up()
        names = [rig.stage(NO_OP) for _ in range(jobs)]
        finished = rig.finished()
        start = time.time()
        for name in names:
            rig.drop(name)
        # Looking counts a whole directory, so it is done seldom, and the time taken from the files instead.
        while rig.finished() < finished + jobs:
            time.sleep(0.1)
        with os.scandir(rig.project.done) as entries:
            return max(entry.stat().st_ctime for entry in entries) - start


def _fjd_from_start(folder: str, jobs: int) -> float:
    with Rig(folder) as rig:
        rig.hire(_WORKERS)
        for _ in range(jobs):
            rig.drop(rig.stage(NO_OP))
        seconds = rig.command("dispatcher", "--plain")
        wait_until(lambda: rig.finished() == jobs, "the last of the jobs")
        return seconds


CONTENDERS = (
    Contender("xargs", "keeps no record", _xargs),
    Contender("fjd", "exit code, times, usage, output", _fjd),
    Contender("fjd, from a start", "the same", _fjd_from_start),
)
