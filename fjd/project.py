"""The project: which directory, whether we may use it, and where everything in it lies.

Raises ProjectError with one clear line if the directory is missing, read-only or somebody else's.
"""

from __future__ import annotations

import errno
import os
import stat

from fjd import disk, filesystem, settings
from fjd.errors import ProjectError, UsageError

__all__ = ["Project", "locate", "trouble"]


class Project:
    """The paths of one project directory, its settings and its filesystem."""

    def __init__(self, path: str) -> None:
        """`path` must be absolute and exist. Changes nothing."""
        self.path = path
        self.jobqueue = f"{path}/jobqueue"
        self.workerqueue = f"{path}/workerqueue"
        self.jobrecord = f"{path}/jobrecord"
        self.done = f"{path}/jobrecord/done"
        self.failed = f"{path}/jobrecord/failed"
        self.held = f"{path}/jobrecord/held"
        self.rejected = f"{path}/jobrecord/rejected"
        self.journal = f"{path}/jobrecord/journal"
        self.logs = f"{path}/jobrecord/logs"
        self.settings = settings.load(path)
        self.filesystem = filesystem.of(path, self.settings.filesystem)

    @property
    def folders(self) -> tuple[str, ...]:
        """Every directory of a project, parents first."""
        return (
            self.jobqueue,
            self.workerqueue,
            self.jobrecord,
            self.done,
            self.failed,
            self.held,
            self.rejected,
            self.journal,
            self.logs,
        )

    def prepare(self) -> None:
        """Make what is missing of the directories, each for its owner only. Raises ProjectError."""
        try:
            _check_owner(self.path)
            for folder in self.folders:
                disk.make_folder(folder)
        except OSError as error:
            raise trouble(self.path, error) from None
        # What was there already may be a file, or a link to a disk that is not mounted.
        self.check()

    def check(self) -> None:
        """Raises ProjectError if the directory cannot be worked in any more; for those who met an error in it."""
        for folder in (self.path, *self.folders):
            try:
                if not stat.S_ISDIR(os.stat(folder).st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder)
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
            except OSError as error:
                raise trouble(folder, error) from None

    def worker_log(self, slot_name: str) -> str:
        """The path of a worker's own log."""
        return f"{self.logs}/{slot_name}.log"


def locate(directory: str | None = None, name: str | None = None) -> Project:
    """The project that the options and the environment name: --dir, --project, $FJD_DIR, the current directory.

    A project of --project NAME is ~/.fjd/NAME and is made if it is missing. Raises ProjectError, UsageError.
    """
    if directory is not None and name is not None:
        raise UsageError("", "--dir and --project exclude each other")
    try:
        if name is not None:
            path = _named(name)
        else:
            path = os.path.abspath(directory or os.environ.get("FJD_DIR") or os.getcwd())
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "", path)
        return Project(path)
    except OSError as error:
        raise trouble(error.filename or "the current directory", error) from None


def _named(name: str) -> str:
    if not name or name[0] == "." or "/" in name:
        raise UsageError(name, "not a project name", "--project takes the name of a directory in ~/.fjd")
    home = os.path.expanduser("~/.fjd")
    path = os.path.join(home, name)
    disk.make_folder(home)
    disk.make_folder(path)
    return path


def _check_owner(path: str) -> None:
    found = os.stat(path)
    # Whoever opened a directory to a group did it on purpose; otherwise its owner could swap what we run there.
    if found.st_uid != os.geteuid() and not found.st_mode & stat.S_IWGRP:
        raise ProjectError(
            path, f"belongs to another user (uid {found.st_uid})", "its owner can open it to a group: chmod g+rwxs"
        )


def trouble(path: str, error: OSError) -> ProjectError:
    """What an error of the operating system in the project directory means to a person."""
    known = {
        errno.ENOENT: ("there is no such directory", "make it, or name another with --dir"),
        errno.ENOTDIR: ("is not a directory", "name another with --dir"),
        errno.EACCES: ("permission denied", "fjd needs a directory that you can write to"),
        errno.EPERM: ("permission denied", "fjd needs a directory that you can write to"),
        errno.EXDEV: ("lies on another filesystem", "jobqueue/, workerqueue/ and jobrecord/ must be on one"),
        errno.EROFS: ("is on a read-only filesystem", "fjd needs a directory that you can write to"),
        errno.ENOSPC: ("the disk is full", "free some space and try again"),
        errno.EDQUOT: ("your quota is used up", "free some space and try again"),
        errno.ESTALE: ("its file server has forgotten it", "mount it again"),
    }
    reason, remedy = known.get(error.errno or 0, (error.strerror or str(error), ""))
    return ProjectError(path, reason, remedy)
