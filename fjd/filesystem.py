"""What the filesystem under a project promises.

Three questions, answered from the kind of mount: do events of all writers arrive here, does F_SETLEASE see every
writer, and does a lock that is free prove that its holder is dead. A kind that is not in the tables is taken for
a network filesystem without useful locks: slower, never wrong. FILESYSTEMS in docs/ has the evidence.

`filesystem: local` or `network` in fjd.conf overrules the answer.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

__all__ = ["Filesystem", "of"]

_LOCAL = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "reiserfs", "tmpfs", "xfs", "zfs"}
)
# Measured or documented by their makers: flock excludes across hosts, and is freed when its holder dies.
_LOCKS_ACROSS_HOSTS = frozenset({"ceph", "fuse.glusterfs"})


class Filesystem(NamedTuple):
    """`kind` as the kernel names it. `is_local`: only this kernel changes it."""

    kind: str
    is_local: bool
    # A free lock proves that its holder is gone, wherever that ran.
    locks_are_proof: bool


def of(path: str, override: str = "auto") -> Filesystem:
    """The filesystem that holds the directory `path`."""
    kind = _kind(os.path.realpath(path))
    is_local = kind in _LOCAL if override == "auto" else override == "local"
    return Filesystem(kind, is_local, is_local or kind in _LOCKS_ACROSS_HOSTS)


def _kind(path: str) -> str:
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = file.readlines()
    except OSError:
        return "unknown"
    best, kind = "", "unknown"
    for line in mounts:
        before, _, after = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split(" ")[4])
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        # Of two mounts on one point, the later one lies on top.
        if inside and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return kind
