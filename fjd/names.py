"""The names of job files: `NAME[.ID][~ATTEMPT][ENDING]`.

A user writes NAME and ENDING (`job3.conf`, `train.sh`). The first assignment adds the ID, so that two jobs dropped
under one name are two jobs, and every later name is one that only one transition can create. `~2` is the second
attempt; the first has no mark.

An ID is 12 hexadecimal digits of which the first is a letter: a date in a user's file name (`run.20261122.conf`)
is not taken for one, and among a million jobs two are alike with a probability below one in a hundred
(docs/decisions/0002). Whoever reads a name that does not fit the grammar gets all of it as NAME.

Names are kept as Python's file system decoding gives them, so every name a directory can hold passes through
unchanged. NAME is shortened to 200 bytes when it gets its ID: with ID, attempt, ending and the longest suffix that
fjd adds (`.reason`), it then fits the 255 bytes that a file system allows.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

__all__ = ["JobName", "is_ignored", "natural_key", "new_id"]

NAME_BYTES = 200

_ID = "[a-f][0-9a-f]{11}"
_GRAMMAR = re.compile(
    rf"(?P<name>.+?)(?:\.(?P<id>{_ID})(?:~(?P<attempt>[2-9]|[1-9][0-9]{{1,5}}))?)?"
    rf"(?P<ending>\.(?!{_ID}\Z)[A-Za-z0-9_+-]{{1,16}})?",
    re.DOTALL,
)
_DIGITS = re.compile(r"(\d+)")

# What editors, rsync, NFS and half-done copies leave beside the file that is meant.
_IGNORED_ENDINGS = (".tmp", "~", ".part", ".swp")


def is_ignored(filename: str) -> bool:
    """Whether a file of this name is somebody's unfinished business and none of fjd's."""
    return filename[0] == "." or filename.endswith(_IGNORED_ENDINGS)


def new_id() -> str:
    """A random ID; 46.6 bits of it are random."""
    value = int.from_bytes(os.urandom(6), "big")
    # The top digit is mapped onto a..f, which costs 1.4 bits and keeps dates from looking like IDs.
    return f"{'abcdef'[(value >> 44) % 6]}{value & 0xFFF_FFFF_FFFF:011x}"


def natural_key(filename: str) -> list[str | int]:
    """Sorts job2 before job10. Text and numbers alternate, so that keys always compare."""
    parts: list[str | int] = list(_DIGITS.split(filename))
    # int() of \d that is not ASCII is fine; very long runs of digits are not (a limit of Python), and stay cheap.
    parts[1::2] = [int(str(part)[-40:]) for part in parts[1::2]]
    return parts


class JobName(NamedTuple):
    """A parsed file name; `id` is empty while the job has none."""

    name: str
    id: str
    attempt: int
    ending: str

    @classmethod
    def parse(cls, filename: str) -> JobName:
        """The parts of `filename`, which must not be empty. Never fails."""
        match = _GRAMMAR.fullmatch(filename)
        if match is None:
            return cls(filename, "", 1, "")
        name, id, attempt, ending = match.groups()
        return cls(name, id or "", int(attempt or 1), ending or "")

    @property
    def stem(self) -> str:
        """The file name without its ending: what the names of the logs begin with."""
        id = f".{self.id}" if self.id else ""
        attempt = f"~{self.attempt}" if self.attempt > 1 else ""
        return f"{self.name}{id}{attempt}"

    @property
    def filename(self) -> str:
        return self.stem + self.ending

    @property
    def next(self) -> JobName:
        """The same job's next attempt."""
        return self._replace(attempt=self.attempt + 1)

    @property
    def has_room(self) -> bool:
        """Whether NAME is short enough for every name that this job may come to have."""
        return len(os.fsencode(self.name)) <= NAME_BYTES

    def renewed(self) -> JobName:
        """A job of its own: the same NAME, shortened if it must be, a new ID, the first attempt."""
        return JobName(_shortened(self.name), new_id(), 1, self.ending)


def _shortened(name: str) -> str:
    encoded = os.fsencode(name)
    if len(encoded) <= NAME_BYTES:
        return name
    cut = encoded[:NAME_BYTES]
    # Step back over a character that was cut in two; its bytes would not decode on their own.
    while cut and encoded[len(cut)] & 0xC0 == 0x80:
        cut = cut[:-1]
    return os.fsdecode(cut or encoded[:NAME_BYTES])
