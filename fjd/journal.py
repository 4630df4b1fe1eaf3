"""The record: one line of JSON for each finished attempt, in one file for each writer.

Each worker appends to `journal/SLOT.jsonl` and to no other, because appending by two clients of a network filesystem
corrupts. A line is on disk before the job leaves running/. A reader takes whole lines only, and passes over those that
make no sense: a torn line of a full disk, a block of zeros that a server left, somebody's lie.

The fields, in the order of `Record`: times are UTC (ISO 8601, milliseconds), durations seconds, sizes bytes. `outcome`
is succeeded or failed, which end a job, or stopped (the worker was fired in mid-job; the job went back to the queue),
which does not. Whoever reclaimed a job writes lost, or held if it was the last of too many. Readers merge by ID; of two
lines for one attempt either will do.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterator
from types import NoneType
from typing import Any, NamedTuple, get_type_hints

from fjd import disk

__all__ = ["ENDINGS", "RECLAIMED", "Journal", "Journals", "Record", "find"]

# Outcomes after which a job is not queued again by itself.
ENDINGS = frozenset({"succeeded", "failed", "held"})
# Those that no worker recorded, for people and statistics only.
RECLAIMED = frozenset({"lost", "held"})

_encode = json.JSONEncoder(separators=(", ", ": ")).encode


class Record(NamedTuple):
    """The outcome of one attempt. Exit code and signal are None where there was none."""

    job: str
    id: str
    attempt: int
    file: str
    worker: str
    host: str
    command: str
    outcome: str
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""
    start: str = ""
    end: str = ""
    seconds: float = 0.0
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    peak_memory_bytes: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0

    @property
    def how(self) -> str:
        """How it ended, in words."""
        if self.reason:
            return self.reason
        if self.signal is not None:
            return f"signal {self.signal}"
        return f"exit code {self.exit_code}"


# What JSON may hold where Record has this type; compared exactly, so that true is no number.
_KINDS: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (int, float),
    int | None: (int, NoneType),
}
_FIELD_KINDS = tuple(_KINDS[hint] for hint in get_type_hints(Record).values())
# What a name can say (names.py); a reader that counts up to a lie would count for ever.
_MOST_ATTEMPTS = 999_999


def _record(line: bytes) -> Record | None:
    try:
        # A server that lost the line before left zeros in front of this one.
        fields: Any = json.loads(line.rpartition(b"\0")[2])
        record = Record(**{name: fields[name] for name in Record._fields if name in fields})
    except (ValueError, TypeError, RecursionError):
        return None
    if not all(type(value) in kinds for value, kinds in zip(record, _FIELD_KINDS, strict=True)):
        return None
    durations = (record.seconds, record.user_seconds, record.system_seconds)
    if not all(0 <= seconds <= sys.float_info.max for seconds in durations):
        return None
    return record if 1 <= record.attempt <= _MOST_ATTEMPTS else None


class Journal:
    """The file that one writer appends to; opened when the first line comes."""

    def __init__(self, folder: str, writer: str, durable: bool) -> None:
        """`durable`: have each line on the file server before `append` returns."""
        self.path = f"{folder}/{writer}.jsonl"
        self._durable = durable
        self._fd = -1
        self._torn = False

    def append(self, record: Record) -> None:
        """Add a line. Raises OSError if it could not be written whole; then it may be tried again."""
        line = _encode(record._asdict()).encode() + b"\n"
        if self._fd >= 0 and os.fstat(self._fd).st_nlink == 0:
            # Somebody removed the file; what is appended to it now, nobody will ever read.
            self.close()
        if self._fd < 0:
            self._fd = disk.open_to_append(self.path)
        if self._torn:
            # What is left of the last try ends here, so that it does not spoil this line too.
            line = b"\n" + line
        try:
            written = disk.append(self._fd, line)
            self._torn = self._torn or written > 0
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            if self._durable:
                disk.sync(self._fd)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ESTALE, errno.EBADF):
                # A lost lock or a server that came back ruins the descriptor for good; the file is still there.
                self.close()
            raise
        self._torn = False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def find(folder: str, writer: str, id: str, attempt: int) -> Record | None:
    """What `writer` recorded of one attempt."""
    try:
        with open(f"{folder}/{writer}.jsonl", "rb") as file:
            # The line is near the end, but a file of a million lines is read in a second, and this is rare.
            wanted = f'"{id}"'.encode()
            # A line without its end was never finished, and no other reader believes it.
            records = (_record(line) for line in file if wanted in line and line.endswith(b"\n"))
            found = [r for r in records if r is not None and r.id == id and r.attempt == attempt]
    except FileNotFoundError:
        return None
    return found[-1] if found else None


class Journals:
    """Reads all journals of a project, again and again, each line once."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._offsets: dict[str, int] = {}

    def skip(self) -> None:
        """Take everything written so far as read."""
        for name, size in self._sizes():
            self._offsets[name] = size

    def _sizes(self) -> Iterator[tuple[str, int]]:
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".jsonl") and not entry.name.startswith("."):
                        yield entry.name, entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            return

    def new_records(self, fresh: bool = False) -> Iterator[Record]:
        """The records that came since the last call, in no order among the writers.

        `fresh`: open every file, because a network filesystem may tell an old size; as many round trips as workers.
        """
        for name, size in self._sizes():
            offset = self._offsets.get(name, 0)
            if fresh or size > offset:
                yield from self._read(name, offset)

    def _read(self, name: str, offset: int) -> Iterator[Record]:
        try:
            with open(f"{self._folder}/{name}", "rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    offset += len(line)
                    self._offsets[name] = offset
                    record = _record(line)
                    if record is not None:
                        yield record
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            # Removed meanwhile; another user's, whose jobs are theirs to count; no journal at all.
            return
