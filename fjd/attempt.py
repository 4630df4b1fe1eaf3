"""One attempt at a job: from its file in running/ to a child process, and from its end to a record.

Raises CommandError or JobFileError for what is the job's own fault: the attempt then fails with that reason.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from fjd import command, disk, host
from fjd.errors import CommandError, FjdError, JobFileError
from fjd.intake import open_job, read_job
from fjd.jobfile import JobFile
from fjd.journal import Record
from fjd.names import JobName
from fjd.process import Child
from fjd.project import Project
from fjd.slot import OwnSlot

__all__ = ["Attempt", "base_environment", "utc"]


def base_environment() -> dict[bytes, bytes]:
    """What every job of this worker inherits; encoded once, because that costs as much as the rest of a launch."""
    return {name: value for name, value in os.environb.items() if not name.startswith(b"FJD_")}


def utc(seconds_since_epoch: float) -> str:
    """ISO 8601 with milliseconds."""
    whole = int(seconds_since_epoch)
    milliseconds = int(1000 * (seconds_since_epoch - whole))
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


def _unreadable(path: str, error: OSError) -> JobFileError | OSError:
    """A hiccup of the file server is no fault of the job; the worker tries again."""
    if error.errno in disk.CURABLE:
        return error
    return JobFileError(path, f"cannot be read: {error.strerror}")


class Attempt:
    """One attempt of the job that `own` has in running/."""

    def __init__(self, project: Project, own: OwnSlot, name: JobName, environment: Mapping[bytes, bytes]) -> None:
        self.name = name
        self.path = f"{own.running}/{name.filename}"
        self.child: Child | None = None
        self.command = ""
        self._title = name.name
        self._project = project
        self._own = own
        self._environment = environment
        self._start_time = time.time()

    def launch(self) -> Child:
        """Read the job file once more and start what it says.

        Raises CommandError, JobFileError; OSError for what may be cured by trying again.
        """
        job = self._read()
        self._title = job.name or self.name.name
        self.command = job.executable or f"#!{job.interpreter}"
        if job.interpreter:
            argv = command.script_vector(job.interpreter, self.path)
        else:
            argv = command.argument_vector(job.executable, self.path)
        search_path = self._environment.get(b"PATH", os.defpath.encode())
        program = command.find_program(argv[0], self._project.path, os.fsdecode(search_path))
        if job.nice is not None:
            argv = ["nice", "-n", str(job.nice), program, *argv[1:]]
            program = command.find_program("nice", self._project.path, os.fsdecode(search_path))
        directory = self._prepare_folders(job)
        log_stem = f"{self._project.logs}/{self.name.stem}"
        self._start_time = time.time()
        self.child = Child(argv, program, self._job_environment(), directory, log_stem, self._project.path)
        return self.child

    def _read(self) -> JobFile:
        try:
            fd, found = open_job(self.path)
        except OSError as error:
            raise _unreadable(self.path, error) from None
        try:
            # Who dropped the file was checked before it came here; this is the file that is run.
            if found.st_uid != os.geteuid():
                raise JobFileError(self.path, f"belongs to another user (uid {found.st_uid}), not run")
            return read_job(fd, self.path)[0]
        except OSError as error:
            raise _unreadable(self.path, error) from None
        finally:
            os.close(fd)

    def _prepare_folders(self, job: JobFile) -> str:
        directory = os.path.join(self._project.path, job.workdir)
        for key, folder in (
            ("workdir", directory if job.workdir else ""),
            ("logfile", os.path.dirname(os.path.join(directory, job.logfile)) if job.logfile else ""),
        ):
            try:
                if folder:
                    disk.make_user_folders(folder)
            except OSError as error:
                if error.errno in disk.CURABLE:
                    raise
                raise CommandError(folder, f"{key}: {(error.strerror or str(error)).lower()}", exit_code=126) from None
        return directory

    def _job_environment(self) -> dict[bytes, bytes]:
        environment = dict(self._environment)
        environment[b"FJD_JOB"] = os.fsencode(self._title)
        environment[b"FJD_JOBFILE"] = os.fsencode(self.path)
        environment[b"FJD_ID"] = self.name.id.encode()
        environment[b"FJD_ATTEMPT"] = b"%d" % self.name.attempt
        environment[b"FJD_PROJECT_DIR"] = os.fsencode(self._project.path)
        environment[b"FJD_WORKER"] = self._own.name.encode()
        return environment

    def _record(self, outcome: str, **more: object) -> Record:
        end_time = time.time()
        return Record(
            job=self._title,
            id=self.name.id,
            attempt=self.name.attempt,
            file=self.name.filename,
            worker=self._own.name,
            host=host.host_name(),
            command=self.command,
            outcome=outcome,
            start=utc(self._start_time),
            end=utc(end_time),
        )._replace(**more)  # type: ignore[arg-type]  # fields of Record, named by the callers in this class

    def record_failure(self, error: FjdError) -> Record:
        """The record of an attempt that could not be started."""
        exit_code = error.exit_code if isinstance(error, CommandError) else None
        return self._record("failed", exit_code=exit_code, reason=str(error))

    def record_end(self, stopped: bool) -> Record:
        """The record of an attempt whose child has ended; `stopped`: because its worker had to leave."""
        child = self.child
        if child is None or child.status is None or child.usage is None:
            return self._record("stopped", reason="stopped before it started")
        out, err = child.outputs
        code = os.waitstatus_to_exitcode(child.status)
        if stopped:
            outcome, reason = "stopped", "stopped with its worker"
        else:
            outcome, reason = ("succeeded" if code == 0 else "failed"), ""
        return self._record(
            outcome,
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            reason=reason,
            seconds=round(child.seconds, 6),
            user_seconds=round(child.usage.ru_utime, 6),
            system_seconds=round(child.usage.ru_stime, 6),
            # Linux counts kilobytes.
            peak_memory_bytes=child.usage.ru_maxrss * 1024,
            stdout_bytes=out.bytes_seen,
            stderr_bytes=err.bytes_seen,
        )
