"""`fjd`: look at a project, and submit jobs to it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from fjd import jobfile, project
from fjd.cli import ExitCode, add_project_options, guarded, parser
from fjd.errors import JobFileError, UsageError, printable
from fjd.names import is_ignored

__all__ = ["main"]

_EXAMPLES = """\
examples:
  fjd status                 how many jobs are in which state
  fjd submit jobs/*.conf     put job files into jobqueue/, each complete at once
"""


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("fjd", "Look at a project, and submit jobs to it.", _EXAMPLES)
    commands = made.add_subparsers(metavar="COMMAND", required=True)

    status = commands.add_parser("status", help="count the jobs by state", description="Count the jobs by state.")
    status.add_argument("--json", action="store_true", help="as one JSON object")
    status.set_defaults(run=_status)

    submit = commands.add_parser(
        "submit",
        help="put job files into jobqueue/",
        description="Copy job files into jobqueue/ and print the names they have there. All are checked first: if one "
        "is not a job, none is submitted.",
    )
    submit.add_argument("files", nargs="+", metavar="FILE", help="a job file or a script")
    submit.set_defaults(run=_submit)

    for command in (status, submit):
        add_project_options(command)
    options = made.parse_args(argv)
    return guarded(options.run, options)


def _status(options: argparse.Namespace) -> int:
    from fjd import report

    counts = report.count(project.locate(options.dir, options.project))._asdict()
    if options.json:
        print(json.dumps(counts))
    else:
        for state, number in counts.items():
            print(f"{state:<10} {number:>8}")
    return ExitCode.OK


def _submit(options: argparse.Namespace) -> int:
    opened = project.locate(options.dir, options.project)
    texts = [(os.path.basename(path), _read(path)) for path in options.files]
    for filename, _ in texts:
        if is_ignored(filename):
            raise UsageError(filename, "a name that fjd leaves alone", "no leading dot, no ending ~ .tmp .part .swp")
    opened.prepare()
    # spool brings the locks with it, which `status` is quicker without.
    from fjd import spool

    for filename, text in texts:
        print(printable(spool.submit(opened, filename, text).filename))
    return ExitCode.OK


def _read(path: str) -> bytes:
    """A job file that was looked at before it is submitted. Raises UsageError."""
    try:
        with open(path, "rb") as file:
            text = file.read(jobfile.LARGEST_BYTES + 1)
        if len(text) > jobfile.LARGEST_BYTES:
            raise UsageError(path, f"larger than {jobfile.LARGEST_BYTES >> 20} MiB", "put the data into another file")
        jobfile.parse(text, path)
    except JobFileError as error:
        raise UsageError(*error.args) from None
    except OSError as error:
        raise UsageError(path, (error.strerror or str(error)).lower()) from None
    return text


if __name__ == "__main__":
    sys.exit(main())
