"""`recruiter`: hire, fire and list workers."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Sequence

from fjd import host, project, recruiter
from fjd.cli import ExitCode, add_project_options, counted, duration, guarded, parser, say
from fjd.errors import UsageError, printable
from fjd.recruiter import staff
from fjd.slot import Order

__all__ = ["main"]

_EXAMPLES = """\
examples:
  recruiter hire              one worker fewer than there are cores
  recruiter hire 4            four workers, each in a tmux session
  recruiter hire 50% --backend local
  recruiter list              who works on what, and how to watch it
  recruiter fire              idle workers leave at once, busy ones after their job
  recruiter fire vm-2 --now   stop its job, put it back into jobqueue/
"""


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("recruiter", "Hire workers for a project on this host, fire them, list them.", _EXAMPLES)
    commands = made.add_subparsers(metavar="COMMAND", required=True)

    hire = commands.add_parser("hire", help="start workers on this host", description="Start workers on this host.")
    hire.add_argument("count", nargs="?", metavar="N", help="how many, or N%% of the cores (default: cores - 1)")
    hire.add_argument("--backend", choices=recruiter.BACKENDS, default="tmux", help="default: tmux")
    hire.set_defaults(run=_hire)

    fire = commands.add_parser(
        "fire", help="let workers go", description="Let workers go: idle ones at once, busy ones after their job."
    )
    fire.add_argument("workers", nargs="*", metavar="WORKER", help="default: all of this host")
    fire.add_argument("--now", action="store_true", help="stop their jobs and put them back into jobqueue/")
    fire.add_argument("--wait", action="store_true", help="return when the busy ones have left, too")
    fire.set_defaults(run=_fire)

    roster = commands.add_parser("list", help="show workers", description="Show workers, and how to watch each.")
    roster.set_defaults(run=_list)

    for command in (hire, fire, roster):
        add_project_options(command)
    options = made.parse_args(argv)
    return guarded(options.run, options)


def _count(text: str | None, cores: int) -> int:
    """How many workers `hire` means; at least 1."""
    if text is None:
        return max(1, cores - 1)
    match = re.fullmatch(r"(\d{1,6})(%?)", text)
    count = int(match[1]) if match else 0
    if match and match[2] and count:
        return max(1, count * cores // 100)
    if not count:
        raise UsageError(text, "not a number of workers", "a whole number from 1, or a percentage of the cores: 50%")
    return count


def _hire(options: argparse.Namespace) -> int:
    opened = project.locate(options.dir, options.project)
    count = _count(options.count, host.cores())
    opened.prepare()
    chosen = recruiter.backend(options.backend, opened.path)
    staff.hire(opened, count, chosen)
    say(f"Hired {counted(count, 'worker')} on localhost.")
    return ExitCode.OK


def _fire(options: argparse.Namespace) -> int:
    opened = project.locate(options.dir, options.project)
    members = staff.select(staff.roster(opened), options.workers)
    if not members:
        say("No workers on localhost.")
        return ExitCode.OK
    order = Order.NOW if options.now else Order.DRAIN
    fired = staff.fire(opened, members, order)
    tell_fired(fired)
    if options.wait:
        staff.wait_gone(fired.busy)
    return ExitCode.OK


def tell_fired(fired: staff.Fired) -> None:
    """Say who was fired, and what becomes of those that are not gone."""
    members = [*fired.gone, *fired.busy, *fired.lost]
    for place in sorted({_place(member) for member in members}):
        say(f"Fired {counted(sum(_place(member) == place for member in members), 'worker')} on {place}.")
    if fired.busy:
        whose = "finishes its job" if len(fired.busy) == 1 else "finish their jobs"
        say(f"{len(fired.busy)} of them {whose} first: {', '.join(m.worker for m in fired.busy[:5])}")
    if fired.lost:
        say(f"{len(fired.lost)} of them had been lost; what they had is back in jobqueue/.")


def _place(member: staff.Member) -> str:
    return "localhost" if member.host == host.host_name() else member.host


def _list(options: argparse.Namespace) -> int:
    opened = project.locate(options.dir, options.project)
    members = staff.roster(opened)
    if not members:
        say("No workers. Hire some: recruiter hire")
        return ExitCode.OK
    rows = [("WORKER", "HOST", "STATE", "JOB", "FOR", "WATCH")]
    for member in members:
        identity = member.identity
        rows.append(
            (
                member.worker,
                member.host,
                member.state,
                printable(member.job) or "-",
                duration(time.time() - member.since) if member.since is not None else "-",
                # The log of a worker that had to join again is another one.
                (identity.watch if identity else "") or f"tail -f {shlex.quote(opened.worker_log(member.slot_name))}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[5], sep="  ")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
