"""Workers as plain background processes, where tmux is not wanted or not there.

Each is in a session of its own, so it outlives the terminal that hired it. What it says is in its log. Nobody waits for
these processes: the recruiter ends before them, and they become init's.
"""

from __future__ import annotations

import os
import subprocess

from fjd.errors import RecruitError
from fjd.recruiter import Launch

__all__ = ["LocalBackend"]


class LocalBackend:
    """Starts workers that belong to no terminal."""

    name = "local"

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def watch_hint(self, slot_name: str) -> str:
        """Nothing but its log, which every worker has."""
        return ""

    def start(self, launches: list[Launch], environment: dict[str, str]) -> None:
        for launch in launches:
            try:
                with open(launch.error_path, "ab") as errors:
                    self._processes[launch.slot_name] = subprocess.Popen(
                        launch.argv,
                        env={**os.environ, **environment},
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=errors,
                        start_new_session=True,
                    )
            except OSError as error:
                raise RecruitError(launch.worker, f"cannot be started: {error.strerror}") from None

    def ended(self, slot_names: list[str]) -> list[str]:
        return [name for name in slot_names if name in self._processes and self._processes[name].poll() is not None]
