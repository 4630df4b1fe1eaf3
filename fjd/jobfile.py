"""The job file: what it says to fjd.

A job file is INI text (`key: value` or `key = value`, no interpolation) with a `[control]` section, which may also be
called `[fjd]`; every other section belongs to the job and is not looked at. Or it is a script: a file that begins
with `#!` is its own executable and asks for nothing else.

The parser is our own because a job is parsed twice on its way (by the dispatcher and by the worker): 6 us against
the 170 us of configparser, beside 700 us for starting a process. It reads [control] as configparser does.

Owns no file; raises JobFileError, whose reason names the line and what is allowed.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fjd import command
from fjd.errors import JobFileError, printable

__all__ = ["LARGEST_BYTES", "JobFile", "nearest", "parse", "read_section"]

# A job file holds parameters. What is larger than this is data that came the wrong way.
LARGEST_BYTES = 16 * 1024 * 1024

# Sections that stand for many tasks. To run such a file once, as if it were one job, would be a silent lie.
_ARRAY_SECTIONS = frozenset({"array", "sweep"})


class JobFile(NamedTuple):
    """What a job asks for. Empty text and None mean: not said."""

    executable: str
    logfile: str = ""
    workdir: str = ""
    name: str = ""
    nice: int | None = None
    # The whole `#!` line of a job file that is a script; then `executable` is empty.
    interpreter: str = ""


KEYS = ("executable", "logfile", "workdir", "name", "nice")


def parse(data: bytes, path: str = "") -> JobFile:
    """Read a job file; `path` is only for messages.

    Raises JobFileError.
    """
    if data.startswith(b"#!"):
        return _script(data, path)
    if b"\0" in data:
        raise JobFileError(path, "binary data, not a job file", "write it as UTF-8 text with a [control] section")
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    control, line = read_section(text, ("control", "fjd"), path, refused=_ARRAY_SECTIONS)
    if control is None:
        raise JobFileError(path, "no [control] section", "begin with [control] and a line `executable: COMMAND`")
    for key in control:
        if key not in KEYS:
            raise JobFileError(path, f"unknown key in [control]: {key!r}{nearest(key, KEYS)}")
    executable = control.get("executable", "")
    if not executable:
        raise JobFileError(path, f"no executable in [control] (line {line})", "add a line `executable: COMMAND`")
    command.words(executable)
    return JobFile(
        executable=executable,
        logfile=control.get("logfile", ""),
        workdir=control.get("workdir", ""),
        name=control.get("name", ""),
        nice=_nice(control["nice"], path) if "nice" in control else None,
    )


def _script(data: bytes, path: str) -> JobFile:
    first = data[2:].split(b"\n", 1)[0].strip()
    if not first or b"\0" in first:
        raise JobFileError(path, "the #! line names no interpreter", "write for example #!/bin/sh")
    return JobFile(executable="", interpreter=first.decode("utf-8", "surrogateescape"))


def _nice(value: str, path: str) -> int:
    try:
        nice = int(value)
    except ValueError:
        nice = -1
    if not 0 <= nice <= 19:
        raise JobFileError(path, f"nice: {value!r}", "a whole number from 0 to 19")
    return nice


def read_section(
    text: str, names: Iterable[str], path: str, refused: Iterable[str] = ()
) -> tuple[Mapping[str, str] | None, int]:
    """The keys (in lower case) and values of the one section of `text` with a name of `names`, and its line number.

    None if there is none. Lines of other sections are passed over unread. Raises JobFileError for a section that
    stands there twice or is `refused`, a key that stands there twice, and a line that is no `key: value`.
    """
    values: dict[str, str] = {}
    found = 0
    inside = False
    key = ""
    # A deeper line continues the value above it, as in configparser, in other sections too: what looks like
    # a [section] there is none. A file that is indented as a whole has no deeper lines.
    depth_of_key = sys.maxsize
    blank_lines = 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.strip()
        if not line:
            blank_lines += 1
            continue
        if line[0] in "#;":
            continue
        depth = len(raw) - len(raw.lstrip())
        if depth > depth_of_key:
            if inside:
                values[key] += "\n" * (blank_lines + 1) + line
            blank_lines = 0
            continue
        blank_lines = 0
        if line[0] == "[" and (end := line.rfind("]")) > 1:
            section = line[1:end].strip()
            inside = section in names
            depth_of_key = sys.maxsize
            if section in refused:
                raise JobFileError(
                    path, f"line {number}: array jobs ([{section}]) are not known to this version of fjd"
                )
            if inside and found:
                raise JobFileError(path, f"line {number}: [{section}], but line {found} began that section already")
            if inside:
                found = number
            continue
        depth_of_key = depth
        if inside:
            key, value = _split(line, number, path)
            if key in values:
                raise JobFileError(path, f"line {number}: {key} is there twice")
            values[key] = value
        elif not found and number == 1:
            raise JobFileError(path, "not an INI file: the first line is no [section]", "begin with [control]")
    return (values if found else None), found


def _split(line: str, number: int, path: str) -> tuple[str, str]:
    # The delimiter that comes first counts, so that values may hold the other one.
    ends = [end for end in (line.find(":"), line.find("=")) if end > 0]
    if not ends:
        raise JobFileError(path, f"line {number}: not `key: value`: {printable(line[:60])}")
    end = min(ends)
    return line[:end].rstrip().lower(), line[end + 1 :].strip()


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known word most like `word`, or the list of all where none is."""
    known = list(known)
    close = difflib.get_close_matches(word.lower(), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
