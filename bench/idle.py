"""CPU and wake-ups of workers and a dispatcher that have nothing to do.

4 workers and `dispatcher --stay` that did a few jobs and then had 3 s to come to rest are left alone for 20 s. CPU is
that of all their threads together (user and system), in percent of one CPU. A wake-up is a voluntary context switch.
"""

from __future__ import annotations

import time

from bench.figures import Figure, Measurement
from bench.machine import usage
from bench.rig import Rig

__all__ = ["measure"]

_REST_SECONDS = 3.0


def measure(folder: str, workers: int = 4, seconds: float = 20.0) -> Measurement:
    """CPU use and wake-ups of the workers and of the dispatcher."""
    with Rig(folder) as rig:
        rig.hire(workers)
        dispatcher = rig.start_dispatcher()
        rig.warm_up()
        time.sleep(_REST_SECONDS)
        pids = [*rig.worker_pids(), dispatcher.pid]
        begin = time.monotonic()
        before = [usage(pid) for pid in pids]
        time.sleep(seconds)
        used = [usage(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
        elapsed = time.monotonic() - begin
    percents = [100 * each.cpu_seconds / elapsed for each in used]
    rates = [each.wakeups / elapsed for each in used]
    return Measurement(
        "idle",
        [
            Figure(f"CPU, {workers} workers and a dispatcher", sum(percents), "% of one", "issue 4: < 0.2"),
            Figure("... of it the dispatcher", percents[-1], "% of one"),
            Figure("... of it one worker", sum(percents[:-1]) / workers, "% of one"),
            Figure("wake-ups of the dispatcher", rates[-1], "/s"),
            Figure("wake-ups of one worker", sum(rates[:-1]) / workers, "/s"),
        ],
        {"workers": workers, "seconds": seconds},
        {"cpu_percent": percents, "wakeups_per_second": rates},
    )
