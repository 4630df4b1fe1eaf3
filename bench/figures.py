"""What a measurement returns: figures for the table, and the samples that they come from."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

__all__ = ["Figure", "Measurement", "median", "percentile"]


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One number of the table. `goal` is what the issues ask for, as text; nothing here judges it."""

    what: str
    value: float
    unit: str
    goal: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """`name` is the measurement's file. `parameters` says what was run, `samples` holds every single value."""

    name: str
    figures: list[Figure]
    parameters: dict[str, str | int | float]
    samples: dict[str, list[float]]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(percent / 100 * len(ranked)) - 1)]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)
