"""What tests work with that is no fixture: a clock, projects, and what this process holds open.

Not in conftest.py, because there are several files of that name and a test can import only one of them.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from fjd.project import Project

__all__ = ["Clock", "children", "make_project", "open_files", "threads"]


class Clock:
    """A clock that stands still until a test moves it. It starts late, so that a forgotten 0 shows."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def make_project(path: Path, **settings: object) -> Project:
    """A prepared project in a new directory that only its owner can enter, with these settings in its fjd.conf."""
    path.mkdir(mode=0o700)
    if settings:
        lines = [f"{key}: {value}\n" for key, value in settings.items()]
        (path / "fjd.conf").write_text("[fjd]\n" + "".join(lines))
    project = Project(str(path))
    project.prepare()
    return project


def threads() -> set[tuple[str, str]]:
    return {("thread", thread.name) for thread in threading.enumerate()}


def children() -> set[tuple[str, str]]:
    """The child processes of all threads, dead ones that nobody waited for included."""
    found = set()
    for task in os.listdir("/proc/self/task"):
        try:
            text = Path(f"/proc/self/task/{task}/children").read_text()
        except FileNotFoundError:
            # A thread that ended since it was listed.
            continue
        found |= {("process", pid) for pid in text.split()}
    return found


def open_files() -> set[tuple[str, str]]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(("file", f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}"))
        except FileNotFoundError:
            # The listing's own descriptor.
            continue
    return found
