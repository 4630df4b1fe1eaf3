"""What all commands share: the options that name a project, the prefix of what they print, exit codes, errors.

The only place where log handlers are set. No traceback for a person's mistake, unless they ask with --debug.
"""

from __future__ import annotations

import argparse
import enum
import logging
import os
import sys
from collections.abc import Callable

from fjd import __version__
from fjd.errors import FjdError, UsageError, printable
from fjd.project import trouble

__all__ = ["ExitCode", "add_project_options", "complain", "counted", "duration", "guarded", "parser", "say"]


class ExitCode(enum.IntEnum):
    """What a command's end tells a script."""

    OK = 0
    JOBS_FAILED = 1
    USAGE = 2
    # sysexits.h calls it EX_TEMPFAIL: another try may cure it.
    TROUBLE = 75
    INTERRUPTED = 130


def say(text: str) -> None:
    """An answer, on standard output."""
    print(f"[FJD] {printable(text)}", flush=True)


def complain(text: str) -> None:
    """An error or a warning, on standard error."""
    print(f"[FJD] {printable(text)}", file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """45s, 3m20s, 2h05m."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def parser(program: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser with --version and --debug."""
    made = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"fjd {__version__}")
    made.add_argument("--debug", action="store_true", help="show each step, and tracebacks")
    return made


def add_project_options(made: argparse.ArgumentParser) -> None:
    """--dir and --project; fjd.project.locate takes both."""
    group = made.add_argument_group("which project (default: $FJD_DIR, else the current directory)")
    exclusive = group.add_mutually_exclusive_group()
    exclusive.add_argument("--dir", metavar="PATH", help="the project in this directory")
    exclusive.add_argument("--project", metavar="NAME", help="the project in ~/.fjd/NAME, made if it is missing")


class _Complaints(logging.Handler):
    """Warnings of the library, said like everything else."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


def guarded(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command, and turn what goes wrong into one line and an exit code."""
    logger = logging.getLogger("fjd")
    logger.setLevel(logging.DEBUG if options.debug else logging.WARNING)
    handler = _Complaints()
    logger.addHandler(handler)
    try:
        return run(options)
    except UsageError as error:
        if options.debug:
            raise
        complain(str(error))
        return ExitCode.USAGE
    except (FjdError, OSError) as error:
        if options.debug:
            raise
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has gone; what is still buffered must not fail at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ExitCode.OK
        complain(str(error if isinstance(error, FjdError) else trouble(error.filename or "the project", error)))
        return ExitCode.TROUBLE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    finally:
        logger.removeHandler(handler)
