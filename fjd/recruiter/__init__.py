"""Recruiting: workers come, are looked at, and go.

    staff.py    hire, fire, roster: what holds for every backend
    tmux.py     each worker in a tmux session that a person can join     (only this module imports libtmux)
    local.py    each worker as a plain background process

A backend only starts processes on this host and says how they do. Everything after that goes through the project's
directory: a worker is there when its slot is, it is told to leave by a file in its slot, and it has left when the slot
is gone. So workers of any backend, on any host, are listed and fired alike.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from fjd.errors import UsageError

__all__ = ["BACKENDS", "Backend", "Launch", "backend"]

BACKENDS = ("tmux", "local")


class Launch(NamedTuple):
    """A worker to be started: its slot, and the command that runs it. `error_path`: a file for its stderr."""

    slot_name: str
    argv: list[str]
    error_path: str

    @property
    def worker(self) -> str:
        return self.slot_name.partition(".")[0]


class Backend(Protocol):
    """A way to start workers on this host."""

    name: str

    def watch_hint(self, slot_name: str) -> str:
        """The command that shows a worker to a person; empty if its log is all there is."""

    def start(self, launches: list[Launch], environment: dict[str, str]) -> None:
        """Start all of them, without waiting until they are ready. Raises RecruitError."""

    def ended(self, slot_names: list[str]) -> list[str]:
        """Those of the started workers that are known not to run any more."""


def backend(name: str, project_path: str) -> Backend:
    """The backend of this name. Raises RecruitError if this host cannot do it."""
    # Each is imported only when it is wanted: libtmux costs more than everything else that `recruiter` does.
    if name == "tmux":
        from fjd.recruiter.tmux import TmuxBackend

        return TmuxBackend(project_path)
    if name == "local":
        from fjd.recruiter.local import LocalBackend

        return LocalBackend()
    raise UsageError(name, "no such backend", f"choose one of {', '.join(BACKENDS)}")
