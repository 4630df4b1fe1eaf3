"""What of jobqueue/ may be assigned: complete, ours, a job, and under which name.

A file is complete when nobody is writing it any more. INI text has no end mark, so being parseable proves nothing:
- On a local filesystem, when no process has it open for writing (F_SETLEASE).
- On a network filesystem that is blind to writers elsewhere, so the file must also lie unchanged for settle_seconds,
  end with a newline and be a job; ten times as long if it is not. A last line `# end` says that all is there.
What is not a job is rejected only after it lay unchanged for settle_seconds: who writes a file in several goes
closes it in between.

A file of another user is left alone (DESIGN.md, rule 8), and so is whatever is in it.

Known limit: somebody who writes a valid job file in several goes, closing it each time, is overtaken. Write it
elsewhere, or under a name that begins with a dot, and `mv` it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import time
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from fjd import disk, jobfile
from fjd.errors import JobFileError
from fjd.journal import Journals
from fjd.names import JobName
from fjd.project import Project

__all__ = ["Foreign", "Intake", "Ready", "Rejected", "Verdict", "Waiting", "open_job", "read_job"]

_END_MARK = b"\n# end"
_DISK_TROUBLE_SECONDS = 5.0
_USUAL_BYTES = 4096


class Ready(NamedTuple):
    """May be assigned."""

    job: jobfile.JobFile


class Waiting(NamedTuple):
    """Not complete, or too young to be sure; look again after `seconds`. `has_writer`: or when it is closed."""

    seconds: float
    has_writer: bool = False


class Rejected(NamedTuple):
    """Not a job; `reason` says what to change."""

    reason: str


class Foreign(NamedTuple):
    """Belongs to another user, whose workers will run it."""

    uid: int


Verdict = Ready | Waiting | Rejected | Foreign

_Look = tuple[int, int, int, int]


def open_job(path: str) -> tuple[int, os.stat_result]:
    """Open a job file to read, without following a link or waiting for a pipe, and say what was opened.

    Whoever closes the descriptor owns it. Raises OSError; ELOOP for a symbolic link.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return fd, os.fstat(fd)
    except BaseException:
        os.close(fd)
        raise


def read_job(fd: int, path: str) -> tuple[jobfile.JobFile, bytes]:
    """The job in an opened file, and the text. Raises JobFileError, OSError."""
    # Python reserves all it is asked for, and a job file is small: reading at most a little first saves a third.
    data = os.read(fd, _USUAL_BYTES)
    if len(data) == _USUAL_BYTES:
        data += os.read(fd, jobfile.LARGEST_BYTES + 1 - _USUAL_BYTES)
    if len(data) > jobfile.LARGEST_BYTES:
        limit = jobfile.LARGEST_BYTES >> 20
        raise JobFileError(path, f"larger than {limit} MiB", "put the data into a file of its own")
    return jobfile.parse(data, ""), data


class Intake:
    """The looks that one dispatcher took at the files of one jobqueue/."""

    def __init__(self, project: Project, clock: Callable[[], float] = time.monotonic) -> None:
        self._project = project
        self._clock = clock
        # What a file looked like, and since when it has looked like that.
        self._looks: dict[str, tuple[_Look, float]] = {}
        # Read only when a file comes that has an ID already.
        self._journals: Journals | None = None
        self._attempts: dict[str, tuple[int, str]] = {}

    def try_examine(self, filename: str) -> Verdict | None:
        """What to do with a file of jobqueue/; None if it is gone. Raises OSError."""
        verdict = self._try_examine(filename)
        if not isinstance(verdict, Waiting):
            self._looks.pop(filename, None)
        return verdict

    def _try_examine(self, filename: str) -> Verdict | None:
        path = f"{self._project.jobqueue}/{filename}"
        try:
            fd, found = open_job(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._unopened(filename, path, error)
        try:
            if found.st_uid != os.geteuid():
                return Foreign(found.st_uid)
            return self._examine_opened(filename, fd, found)
        except OSError:
            # The disk's trouble, not the file's; the others must not wait for it.
            return Waiting(_DISK_TROUBLE_SECONDS)
        finally:
            os.close(fd)

    def _unopened(self, filename: str, path: str, error: OSError) -> Verdict | None:
        """What to do with a file that could not be opened."""
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return None
        if found.st_uid != os.geteuid():
            return Foreign(found.st_uid)
        reasons = {
            errno.ELOOP: "a symbolic link, not a file (copy the job file itself into jobqueue/)",
            errno.EACCES: "cannot be read: permission denied (chmod u+r)",
            errno.EPERM: "cannot be read: permission denied (chmod u+r)",
            errno.ENXIO: f"{_kind(found.st_mode)}, not a file",
        }
        reason = reasons.get(error.errno or 0)
        return self._reject_settled(filename, found, reason) if reason else Waiting(_DISK_TROUBLE_SECONDS)

    def _examine_opened(self, filename: str, fd: int, found: os.stat_result) -> Verdict:
        settle_seconds = self._project.settings.settle_seconds
        if not stat.S_ISREG(found.st_mode):
            return self._reject_settled(filename, found, f"{_kind(found.st_mode)}, not a file")
        writers_seen = _has_no_writer(fd)
        if writers_seen is False:
            # Its close is an event; the time is for those that never come.
            return Waiting(0.25, has_writer=True)
        if found.st_size == 0:
            return self._reject_settled(filename, found, "the file is empty", 5 * settle_seconds)
        try:
            job, data = read_job(fd, "")
        except JobFileError as error:
            trusted = writers_seen and self._project.filesystem.is_local
            return self._reject_settled(filename, found, str(error), settle_seconds * (1 if trusted else 10))
        if writers_seen and self._project.filesystem.is_local:
            return Ready(job)
        if data.rstrip().endswith(_END_MARK):
            return Ready(job)
        rest = self._unsettled_seconds(filename, found, settle_seconds * (1 if data.endswith(b"\n") else 10))
        return Waiting(rest) if rest > 0 else Ready(job)

    def _reject_settled(
        self, filename: str, found: os.stat_result, reason: str, settle_seconds: float | None = None
    ) -> Verdict:
        seconds = self._project.settings.settle_seconds if settle_seconds is None else settle_seconds
        rest = self._unsettled_seconds(filename, found, seconds)
        return Waiting(rest) if rest > 0 else Rejected(reason)

    def _unsettled_seconds(self, filename: str, found: os.stat_result, settle_seconds: float) -> float:
        """How long the file still has to lie unchanged."""
        look = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        now = self._clock()
        before, since = self._looks.get(filename, (None, now))
        if before != look:
            since = now
            self._looks[filename] = (look, since)
        return since + settle_seconds - now

    def forget_others(self, filenames: Collection[str]) -> None:
        """Drop what was seen of files that are not among `filenames`."""
        for filename in [name for name in self._looks if name not in filenames]:
            del self._looks[filename]

    def name_for(self, filename: str, in_slots: Mapping[str, str]) -> JobName:
        """The name under which a file of jobqueue/ is assigned; `in_slots`: the slot that held each ID a moment ago.

        A new file gets an ID. One that has an ID keeps it, and with it its history, as the attempt after the last one
        recorded; unless another file has that ID, of which this one is a copy, and so a job of its own. An ID in a name
        that has no room for later attempts is none of ours.
        """
        job = JobName.parse(filename)
        if not job.id or not job.has_room:
            return job.renewed()
        # Asked again: it may have come back from that slot since, and then it is no copy.
        if job.id in in_slots and _is_in_slot(in_slots[job.id], job.id):
            return job.renewed()
        last, last_filename = self._last_attempt(job.id)
        record = self._project
        # Whoever copies a file may have given the copy another NAME.
        recorded = JobName.parse(last_filename or filename)
        for name, ending in {(job.name, job.ending), (recorded.name, recorded.ending)}:
            # A held job lies there as the attempt after its last one.
            for attempt in {*range(1, last + 2), job.attempt}:
                other = JobName(name, job.id, attempt, ending).filename
                if any(disk.exists(f"{folder}/{other}") for folder in (record.done, record.failed, record.held)):
                    return job.renewed()
        if last == 0:
            return job
        return job._replace(attempt=max(job.attempt, last + 1))

    def _last_attempt(self, id: str) -> tuple[int, str]:
        """The number of the last attempt recorded, 0 if there is none, and its file name."""
        if self._journals is None:
            self._journals = Journals(self._project.journal)
        for record in self._journals.new_records(fresh=not self._project.filesystem.is_local):
            if record.attempt > self._attempts.get(record.id, (0, ""))[0]:
                self._attempts[record.id] = (record.attempt, record.file)
        return self._attempts.get(id, (0, ""))


def _is_in_slot(slot_path: str, id: str) -> bool:
    for folder in (slot_path, f"{slot_path}/running"):
        try:
            if any(JobName.parse(name).id == id for name in disk.list_names(folder)):
                return True
        except FileNotFoundError:
            continue
    return False


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def _has_no_writer(fd: int) -> bool | None:
    """Whether no process of this kernel has the file open for writing; None if the kernel cannot tell."""
    try:
        # Should a writer come while we hold the lease, the kernel would send SIGIO, which kills; SIGURG does not.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return False
    except OSError:
        return None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
