"""Workers in tmux sessions: on a tmux server of the project's own, one session for each worker.

Its own server (socket `fjd-NAME-HASH`) keeps the user's sessions and configuration out of it, and ends by itself with
the last worker. tmux is a viewer here, and no supervisor: workers say in their slots that they live, and jobs are in
sessions of their own, so that nothing but the view is lost with the tmux server.

All sessions are started by one `source-file`, since a command for each takes 11 ms. The environment comes by another
way (see staff.py), because sessions inherit that of the server and not of whoever hires.

The only module that imports libtmux. Raises RecruitError.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import tempfile

from libtmux import Server
from libtmux.exc import LibTmuxException

from fjd.errors import RecruitError
from fjd.recruiter import Launch

__all__ = ["TmuxBackend"]

# A pane as wide as log lines usually are; a person who attaches gets their own size.
_SIZE = "-x 160 -y 48"


class TmuxBackend:
    """Starts workers on the tmux server of one project."""

    name = "tmux"

    def __init__(self, project_path: str) -> None:
        if shutil.which("tmux") is None:
            raise RecruitError(
                "tmux",
                "is not installed on this host",
                "apt install tmux, or dnf install tmux; or hire with --backend local",
            )
        title = re.sub(r"[^A-Za-z0-9_-]", "-", os.path.basename(project_path))[:24]
        digest = hashlib.sha256(os.fsencode(os.path.realpath(project_path))).hexdigest()[:8]
        self.socket_name = f"fjd-{title}-{digest}"
        self._server = Server(socket_name=self.socket_name, config_file=os.devnull)

    def watch_hint(self, slot_name: str) -> str:
        return f"tmux -L {self.socket_name} attach -t {_session(slot_name)}"

    def start(self, launches: list[Launch], environment: dict[str, str]) -> None:
        lines = ["set -g history-limit 20000", "set -g status-right ' detach: Ctrl-b d '"]
        for launch in launches:
            settings = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
            command = f"exec env {settings} {shlex.join(launch.argv)} 2>>{shlex.quote(launch.error_path)}"
            lines.append(f"new-session -d -s {_session(launch.slot_name)} {_SIZE} {_quoted(command)}")
        with tempfile.NamedTemporaryFile("w", prefix="fjd-", suffix=".tmux", errors="surrogateescape") as script:
            script.write("\n".join(lines) + "\n")
            script.flush()
            self._command("start-server", ";", "source-file", script.name)

    def ended(self, slot_names: list[str]) -> list[str]:
        try:
            answer = self._server.cmd("list-sessions", "-F", "#{session_name}")
        except LibTmuxException:
            return []
        # An error says that there is no server, or nothing at all: then the time limit of hiring decides.
        if answer.returncode != 0 and not any("no server" in line for line in answer.stderr):
            return []
        there = set(answer.stdout)
        return [name for name in slot_names if _session(name) not in there]

    def _command(self, *words: str) -> None:
        try:
            answer = self._server.cmd(*words)
        except LibTmuxException as error:
            raise RecruitError("tmux", str(error)) from None
        if answer.returncode != 0:
            raise RecruitError("tmux", "; ".join(answer.stderr) or f"exit code {answer.returncode}")


def _session(slot_name: str) -> str:
    # tmux has its own meaning for dots.
    return slot_name.replace(".", "-")


def _quoted(text: str) -> str:
    """`text` as one word of a tmux script: inside double quotes, these characters mean something."""
    return '"' + re.sub(r'([\\"$])', r"\\\1", text).replace("\n", "\\n") + '"'
