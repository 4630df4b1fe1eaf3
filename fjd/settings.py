"""The settings of a project: `fjd.conf`, read once and checked as a whole.

    [fjd]
    format: 1
    lost_seconds: 60

All are optional. Every time limit has its unit in its name, and limits that depend on each other are checked here, so
that no module has to trust that somebody else chose well.
"""

from __future__ import annotations

import dataclasses
import math
import os

from fjd import disk, jobfile
from fjd.errors import JobFileError, UsageError

__all__ = ["FORMAT", "Settings", "load"]

# The version of the directory's layout. A project of a newer one is refused, never half understood.
FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The meaning of each setting, its default and its limits. Raises UsageError where they contradict each other."""

    format: int = FORMAT
    # How often a worker shows that it lives, and how long it must be silent, on its observer's clock, to be lost.
    heartbeat_seconds: float = 2.0
    lost_seconds: float = 30.0
    # How long a file must lie unchanged that may still be in the making.
    settle_seconds: float = 2.0
    # The time between asking a process to end (SIGTERM) and ending it (SIGKILL).
    grace_seconds: float = 5.0
    # A job is held when it has lost this many workers.
    max_lost: int = 3
    # auto, local or network: whether other hosts may change the directory unseen by this kernel.
    filesystem: str = "auto"

    def __post_init__(self) -> None:
        def demand(holds: bool, rule: str) -> None:
            if not holds:
                raise UsageError("fjd.conf", rule)

        demand(self.format >= 1, "format must be 1 or more")
        demand(self.format <= FORMAT, f"format {self.format} is newer than this fjd, which knows {FORMAT}")
        limits = (self.heartbeat_seconds, self.lost_seconds, self.settle_seconds, self.grace_seconds)
        demand(all(map(math.isfinite, limits)), "a time limit must be a number of seconds")
        demand(self.heartbeat_seconds > 0, "heartbeat_seconds must be more than 0")
        # From giving up to the end of its job a worker needs a look and the grace; others wait for the whole time.
        demand(
            self.surrender_seconds >= self.fence_seconds,
            "lost_seconds must be at least 2 x (grace_seconds + 2 x heartbeat_seconds)",
        )
        demand(self.settle_seconds >= 0, "settle_seconds must not be negative")
        demand(self.grace_seconds >= 0, "grace_seconds must not be negative")
        demand(self.max_lost >= 1, "max_lost must be 1 or more")
        demand(self.filesystem in ("auto", "local", "network"), "filesystem must be auto, local or network")

    @property
    def fence_seconds(self) -> float:
        """A worker that could not beat for so long starts nothing more."""
        return 0.5 * self.lost_seconds

    @property
    def surrender_seconds(self) -> float:
        """A worker that could not beat for so long stops its job, and is done with that before others run it again."""
        return self.lost_seconds - self.grace_seconds - 2 * self.heartbeat_seconds


def load(folder: str) -> Settings:
    """The settings of the project in `folder`.

    Raises UsageError, which names file, key and what is allowed.
    """
    path = os.path.join(folder, "fjd.conf")
    try:
        text = disk.read(path).decode("utf-8", "replace").removeprefix("\ufeff")
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise UsageError(path, f"cannot be read: {error.strerror}") from None
    try:
        section, _ = jobfile.read_section(text, ("fjd",), path)
    except JobFileError as error:
        raise UsageError(*error.args) from None
    kinds = {name: type(value) for name, value in dataclasses.asdict(Settings()).items()}
    values: dict[str, float | int | str] = {}
    for key, value in (section or {}).items():
        if key not in kinds:
            raise UsageError(path, f"unknown setting {key!r}{jobfile.nearest(key, kinds)}")
        try:
            values[key] = kinds[key](value)
        except ValueError:
            what = "a whole number" if kinds[key] is int else "a number"
            raise UsageError(path, f"{key}: {value!r} is not {what}") from None
    return Settings(**values)  # type: ignore[arg-type]  # the kinds were checked key by key above
