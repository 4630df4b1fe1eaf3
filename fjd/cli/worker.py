"""`fjd-worker`: one worker, in this terminal. `recruiter hire` starts it; a batch system or a person may as well."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence

from fjd import disk, host, project
from fjd.cli import ExitCode, add_project_options, guarded, parser
from fjd.errors import SlotLost, UsageError
from fjd.slot import Identity, OwnSlot, is_slot_name, take_new
from fjd.worker import Worker

__all__ = ["main"]

log = logging.getLogger("fjd.worker")


def main(argv: Sequence[str] | None = None) -> int:
    made = parser("fjd-worker", "Run the jobs of a project, one at a time, until fired.", _EPILOG)
    add_project_options(made)
    made.add_argument("--name", default="", help="the worker's name (default: HOST-PID)")
    # What recruiter hire passes: the slot it waits for, and how it was asked to start.
    made.add_argument("--slot", default="", help=argparse.SUPPRESS)
    made.add_argument("--start-file", default="", help=argparse.SUPPRESS)
    return guarded(_run, made.parse_args(argv))


_EPILOG = """\
Signals: TERM and HUP stop the job, put it back into jobqueue/ and leave; INT (Ctrl-C) leaves after the job,
and a second one at once."""


def _run(options: argparse.Namespace) -> int:
    backend = watch = ""
    if options.start_file:
        backend, watch, options.dir = _read_start_file(options.start_file)
    opened = project.locate(options.dir, options.project)
    opened.prepare()
    worker = options.name or options.slot.partition(".")[0] or f"{host.host_name()}-{os.getpid()}"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", worker) or (options.slot and not is_slot_name(options.slot)):
        raise UsageError(options.slot or worker, "not a worker's name", "use letters, digits, _ and -")
    identity = Identity.of_this_process(worker, backend, watch)
    os.chdir(opened.path)
    if options.slot:
        own = OwnSlot.take(opened.workerqueue, options.slot, identity)
    else:
        own = take_new(opened.workerqueue, worker, backend, watch)
    while True:
        with contextlib.closing(own), _log_to(opened.worker_log(own.name), quiet_stderr=bool(options.start_file)):
            log.info("worker %s is ready in %s", own.name, opened.path)
            try:
                order = Worker(opened, own).run()
                log.info("worker %s has left (%s)", own.name, order)
                return ExitCode.OK
            except SlotLost as error:
                opened.check()
                log.warning("%s; joining again", error)
        own = take_new(opened.workerqueue, worker, backend, watch)


def _read_start_file(path: str) -> tuple[str, str, str]:
    """Take over the environment of whoever hired; tmux would give its server's. Backend, hint, project directory."""
    with open(path, encoding="utf-8") as file:
        start = json.load(file)
    # An environment may hold secrets, and whoever hired may not live to remove it.
    disk.remove(path)
    kept = {name: os.environ[name] for name in ("TERM", "TMUX", "TMUX_PANE") if name in os.environ}
    os.environ.clear()
    os.environ.update({**start["environment"], **kept})
    return start["backend"], start["watch"], start["dir"]


@contextlib.contextmanager
def _log_to(path: str, quiet_stderr: bool) -> Iterator[None]:
    """Show readable lines in this terminal, and keep them in the worker's log."""
    logger = logging.getLogger("fjd")
    level = logger.level
    # Made by us first, so that nobody else can read it from the start.
    log_fd = disk.open_to_append(path)
    file = logging.FileHandler(path, errors="backslashreplace")
    if quiet_stderr:
        # Whoever hired has read what went wrong at the start; what goes wrong later belongs into the log.
        os.dup2(log_fd, sys.stderr.fileno())
    disk.close(log_fd)
    # A full disk swallows lines of the log; a traceback for each would go the same way.
    logging.raiseExceptions = False
    handlers: list[logging.Handler] = [file]
    if not quiet_stderr or sys.stdout.isatty():
        handlers.append(logging.StreamHandler(sys.stdout))
    others = logger.handlers[:]
    formatter = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")
    logger.handlers[:] = handlers
    for handler in handlers:
        handler.setFormatter(formatter)
    logger.setLevel(min(level, logging.INFO))
    try:
        yield
    finally:
        logger.handlers[:] = others
        logger.setLevel(level)
        file.close()


if __name__ == "__main__":
    sys.exit(main())
