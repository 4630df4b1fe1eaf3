"""Run the benchmarks, print one table, keep the numbers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from types import FrameType

from bench import hire, idle, latency, machine, memory, throughput
from bench.figures import Measurement

__all__ = ["main"]

# In the order of the table.
_MEASUREMENTS: dict[str, Callable[[str], Measurement]] = {
    "latency": latency.measure,
    "idle": idle.measure,
    "hire": hire.measure,
    "memory": memory.measure,
    "throughput": throughput.measure,
}
_RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results")


def main() -> int:
    made = argparse.ArgumentParser(prog="python -m bench", description="Measure fjd, and print one table.")
    made.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(_MEASUREMENTS)}")
    made.add_argument("--json", metavar="FILE", help="where the numbers go (default: a new file in bench/results/)")
    made.add_argument("--folder", default=tempfile.gettempdir(), help="make the projects here (default: %(default)s)")
    options = made.parse_args()
    if unknown := [name for name in options.names if name not in _MEASUREMENTS]:
        made.error(f"unknown: {', '.join(unknown)}; there are {', '.join(_MEASUREMENTS)}")
    # So that workers are fired and directories removed when somebody ends this.
    signal.signal(signal.SIGTERM, _leave)
    folder = os.path.abspath(options.folder)
    where = machine.describe(folder)
    began = time.time()
    load_before = machine.load()
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    measurements = []
    for name in options.names or _MEASUREMENTS:
        print(f"\n{name} (load {machine.load()})", flush=True)
        measurement = _MEASUREMENTS[name](folder)
        measurements.append(measurement)
        _print(measurement)
    path = options.json or f"{_RESULTS}/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(began))}.json"
    _keep(
        path,
        {
            "machine": where,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
            "load_before": load_before,
            "load_after": machine.load(),
            "measurements": [dataclasses.asdict(measurement) for measurement in measurements],
        },
    )
    print(f"\nkept in {os.path.relpath(path)}")
    return 0


def _print(measurement: Measurement) -> None:
    for figure in measurement.figures:
        goal = f"  {figure.goal}" if figure.goal else ""
        print(f"  {figure.what:<52} {_number(figure.value):>8} {figure.unit:<8}{goal}", flush=True)


def _number(value: float) -> str:
    """Three digits that mean something."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _keep(path: str, content: dict[str, object]) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
