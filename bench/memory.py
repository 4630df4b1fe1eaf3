"""What an idle worker holds in memory, and a dispatcher beside it.

RSS counts every page that a process has mapped, also those it shares. PSS counts a shared page in parts, one for each
process that shares it, so it falls with the number of workers on a host: given for one worker and for one of eight.
Taken after each worker has run some jobs, since the first makes it load more.
"""

from __future__ import annotations

from bench.figures import Figure, Measurement, median
from bench.machine import memory_kilobytes
from bench.rig import Rig

__all__ = ["measure"]


def measure(folder: str, workers: int = 8) -> Measurement:
    """Memory of the only worker, and of one of `workers`; medians, in MB of 2**20 bytes."""
    rss, pss, dispatcher_rss = _sizes(folder, 1)
    many_rss, many_pss, _ = _sizes(folder, workers)
    return Measurement(
        "memory",
        [
            Figure("RSS of a worker", median(rss), "MB", "< 30"),
            Figure("PSS of a worker, alone", median(pss), "MB", "< 30"),
            Figure(f"PSS of a worker, one of {workers}", median(many_pss), "MB"),
            Figure("RSS of the dispatcher", dispatcher_rss, "MB"),
        ],
        {"workers": workers},
        {"rss_mb": rss, "pss_mb": pss, "many_rss_mb": many_rss, "many_pss_mb": many_pss},
    )


def _sizes(folder: str, workers: int) -> tuple[list[float], list[float], float]:
    """RSS and PSS of each worker, and RSS of the dispatcher."""
    with Rig(folder) as rig:
        rig.hire(workers)
        dispatcher = rig.start_dispatcher()
        # Enough for each to get some.
        rig.warm_up(50 * workers)
        held = [memory_kilobytes(pid) for pid in rig.worker_pids()]
        return (
            [each["Rss"] / 1024 for each in held],
            [each["Pss"] / 1024 for each in held],
            memory_kilobytes(dispatcher.pid)["Rss"] / 1024,
        )
