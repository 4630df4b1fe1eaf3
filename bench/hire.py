"""How long `recruiter hire 32` takes, from the start of the command to its end.

It returns when all workers hold their slots. Each round is in a new project, and the backends take turns. One worker is
hired before, unmeasured, so that the byte code of everything is on the disk.
"""

from __future__ import annotations

import shutil

from bench.figures import Figure, Measurement, median
from bench.rig import Rig

__all__ = ["measure"]


def measure(folder: str, workers: int = 32, rounds: int = 3) -> Measurement:
    """The median of `rounds`, with tmux (where it is installed) and as plain processes."""
    backends = ["tmux", "local"] if shutil.which("tmux") else ["local"]
    for backend in backends:
        _hire(folder, 1, backend)
    samples: dict[str, list[float]] = {backend: [] for backend in backends}
    for _ in range(rounds):
        for backend in backends:
            samples[backend].append(_hire(folder, workers, backend))
    return Measurement(
        "hire",
        [
            Figure(f"recruiter hire {workers} --backend {backend}", median(samples[backend]), "s", "< 4")
            for backend in backends
        ],
        {"workers": workers, "rounds": rounds},
        {f"{backend}_seconds": seconds for backend, seconds in samples.items()},
    )


def _hire(folder: str, workers: int, backend: str) -> float:
    with Rig(folder) as rig:
        return rig.hire(workers, backend)
