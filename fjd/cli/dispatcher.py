"""`dispatcher`: gives queued jobs to workers until all are done."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from fjd import project
from fjd.cli import ExitCode, add_project_options, complain, counted, guarded, parser, say
from fjd.cli.display import LiveDisplay, PlainDisplay
from fjd.dispatcher import Dispatcher
from fjd.project import Project
from fjd.report import output_of

__all__ = ["main"]

_FAILURES_NAMED = 5


def main(argv: Sequence[str] | None = None) -> int:
    made = parser(
        "dispatcher", "Give the jobs in jobqueue/ to workers, until nothing is queued or running any more.", _EPILOG
    )
    add_project_options(made)
    made.add_argument("--stay", action="store_true", help="go on watching when all is done")
    made.add_argument("--no-wait", action="store_true", help="do not wait for the first job if there is none")
    made.add_argument("--plain", action="store_true", help="plain lines, also on a terminal")
    return guarded(_run, made.parse_args(argv))


_EPILOG = """\
It waits for jobs and for workers (recruiter hire), in whatever order they come. Start as many as you like, on any
host; stop them at any time: nothing is lost, and starting again goes on.

exit codes: 0 all jobs succeeded, 1 some failed, were held or rejected, 2 usage, 75 trouble with the directory,
130 Ctrl-C"""


def _run(options: argparse.Namespace) -> int:
    opened = project.locate(options.dir, options.project)
    opened.prepare()
    display = LiveDisplay() if sys.stdout.isatty() and not options.plain else PlainDisplay()
    dispatcher = Dispatcher(opened, display)
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Ended in order, so that a terminal gets its cursor back; nothing else would be lost.
        signal.signal(number, _leave)
    try:
        with display:
            dispatcher.run(options.stay, wait_for_jobs=not options.no_wait)
    except KeyboardInterrupt:
        if dispatcher.picture.unfinished:
            complain(f"{counted(dispatcher.picture.unfinished, 'job')} unfinished; `dispatcher` goes on with them.")
        _offer_to_fire(opened)
        _summary(opened, dispatcher, display)
        return ExitCode.INTERRUPTED
    finally:
        dispatcher.close()
    say("No more jobs to dispatch.")
    return _summary(opened, dispatcher, display)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _summary(opened: Project, dispatcher: Dispatcher, display: PlainDisplay) -> int:
    """Name the first failures and where their output is; the exit code that follows."""
    tally = dispatcher.tally
    # The last word: on a network filesystem the passes may have seen an old state of the journals.
    tally.update(fresh=True)
    failures = list(tally.failures.values())
    if failures:
        complain(f"{len(failures)} of {counted(tally.ended, 'job')} failed:")
        for record in failures[:_FAILURES_NAMED]:
            where = output_of(opened, record) or "it printed nothing"
            how = f"held, {record.how}" if record.outcome == "held" else record.how
            complain(f"  {record.job} ({how}): {where}")
        if len(failures) > _FAILURES_NAMED:
            complain(f"  and {len(failures) - _FAILURES_NAMED} more")
        places = sorted({"held" if record.outcome == "held" else "failed" for record in failures})
        where = " and ".join(f"jobrecord/{place}/" for place in places)
        complain(f"Their job files are in {where}; mv them into jobqueue/ to try again.")
    if display.rejected_count:
        complain(f"{counted(display.rejected_count, 'file')} rejected; see jobrecord/rejected/.")
    return ExitCode.JOBS_FAILED if failures or display.rejected_count else ExitCode.OK


def _offer_to_fire(opened: Project) -> None:
    """Ask, once and only a person, whether the workers of this host should go too."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    from fjd.cli.recruiter import tell_fired
    from fjd.recruiter import staff
    from fjd.slot import Order

    members = staff.select(staff.roster(opened), ())
    if not members:
        return
    try:
        answer = input(f"[FJD] Fire the {counted(len(members), 'worker')} on localhost, too? [y/N] ")
    except (KeyboardInterrupt, EOFError):
        print()
        return
    if answer.strip().lower() in ("y", "yes"):
        fired = staff.fire(opened, members, Order.DRAIN)
        tell_fired(fired)


if __name__ == "__main__":
    sys.exit(main())
