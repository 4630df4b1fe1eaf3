"""What a lost worker left: its jobs go on, and its slot goes.

Anybody may reclaim, and several may at once: each step is a transition that one of them wins. The order matters only
where processes are concerned. What is left of a job on this host is killed before the job can run again; on
another host nobody can, and that is why jobs run at least once and are told their attempt.
"""

from __future__ import annotations

import logging
import time

from fjd import journal, spool
from fjd.attempt import utc
from fjd.errors import printable
from fjd.journal import Journal, Journals, Record
from fjd.names import JobName
from fjd.process import kill_strays
from fjd.project import Project
from fjd.slot import LostSlot, new_slot_name, read_session, set_aside

__all__ = ["Reclaimer"]

log = logging.getLogger(__name__)


class Reclaimer:
    """Reclaims for one process, and writes what it reclaimed into a journal of its own."""

    def __init__(self, project: Project, reclaimed_by: str) -> None:
        """`reclaimed_by`: a name for this process, of letters, digits and `-`."""
        self._project = project
        self._journal = Journal(project.journal, new_slot_name(reclaimed_by), durable=False)

    def close(self) -> None:
        self._journal.close()

    def reclaim(self, lost: LostSlot) -> bool:
        """Move everything out of a lost slot and remove it; whether it is gone. Else: call again later."""
        if lost.identity is not None and lost.identity.is_here and not self._kill_strays(lost):
            log.warning("%s: what is left of its job cannot be killed; its job waits", lost.name)
            return False
        for filename in spool.running(lost.path):
            self._reclaim_job(lost, JobName.parse(filename))
        try:
            for filename in spool.contents(lost.path):
                spool.take_back(self._project, filename, lost)
        except FileNotFoundError:
            return True
        set_aside(lost.path, self._project.logs)
        return spool.remove_slot(lost)

    def _kill_strays(self, lost: LostSlot) -> bool:
        return kill_strays(lost.name, self._project.path, read_session(lost.path))

    def _reclaim_job(self, lost: LostSlot, job: JobName) -> None:
        record = journal.find(self._project.journal, lost.name, job.id, job.attempt)
        if record is not None:
            # The worker died between the record and the move; this is the move.
            spool.conclude(self._project, lost, job, record.outcome)
            return
        hold = self._lost_attempts(job) >= self._project.settings.max_lost
        moved = spool.reclaim(self._project, lost, job, hold)
        if moved is not None:
            self._record(lost, job, hold)
        if moved is not None and hold:
            log.warning("%s held: it lost %d workers", printable(moved.stem), self._project.settings.max_lost)

    def _lost_attempts(self, job: JobName) -> int:
        """How many attempts of a job ended with their worker, the last one included."""
        if job.attempt < self._project.settings.max_lost:
            return job.attempt
        ended = {
            record.attempt
            for record in Journals(self._project.journal).new_records(fresh=True)
            if record.id == job.id and record.attempt < job.attempt and record.outcome not in journal.RECLAIMED
        }
        return job.attempt - len(ended)

    def _record(self, lost: LostSlot, job: JobName, hold: bool) -> None:
        """For people and statistics: no transition depends on this line, so a full disk may swallow it."""
        try:
            self._journal.append(
                Record(
                    job=job.name,
                    id=job.id,
                    attempt=job.attempt,
                    file=job.filename,
                    worker=lost.name,
                    host=lost.identity.host if lost.identity else "",
                    command="",
                    outcome="held" if hold else "lost",
                    reason=f"worker lost: {lost.reason}",
                    end=utc(time.time()),
                )
            )
        except OSError as error:
            log.warning("journal: %s", error.strerror)
