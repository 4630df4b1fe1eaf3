"""The few calls that change the disk, and what their errors mean on network filesystems.

Nothing else in fjd renames, removes, creates or writes a file of a project. Every function here is one step for a
process that dies: either it took effect or it did not. Errors of the operating system pass through as OSError, except
where this module knows better:

- A rename can take effect and report ENOENT, when a network filesystem lost the answer and asked again. `move` looks
  at both names. That is sound because its target is a name that only this one transition can create.
- A rename overwrites silently. `move` refuses (TargetTaken) if something has the name already. That guards against
  copies made by hand; between two processes of fjd the names themselves are the guard.

Known limit: nothing here is synced to the platter, except where a caller asks for it.
"""

from __future__ import annotations

import errno
import os

from fjd.errors import TargetTaken

__all__ = [
    "CURABLE",
    "NO_SPACE",
    "append",
    "append_whole",
    "close",
    "create",
    "exists",
    "list_names",
    "make_folder",
    "make_user_folders",
    "move",
    "open_to_append",
    "overwrite",
    "publish",
    "read",
    "remove",
    "remove_folder",
    "replace",
    "sync",
    "write",
]

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
# Worth another try: the disk may get space, and its server may come back.
CURABLE = NO_SPACE | {errno.EIO, errno.ESTALE, errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT, errno.EREMOTEIO}

# After these a rename may have happened all the same, or somebody else's may have. EPERM is what sshfs tells the
# loser of a race.
_UNSURE = frozenset({errno.ENOENT, errno.ESTALE, errno.EPERM, errno.EIO, errno.EINTR, errno.ETIMEDOUT})


def move(source: str, target: str) -> bool:
    """Rename `source` to `target`; False if `source` was gone, so somebody else moved it.

    Raises TargetTaken if `target` is there already, FileNotFoundError if the directory of `target` is gone.
    """
    if exists(target):
        raise TargetTaken(target, "there is a file of this name already")
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in _UNSURE:
            raise
        _refresh(source)
        if exists(source):
            raise
        _refresh(target)
        return exists(target)
    return True


def _refresh(path: str) -> None:
    # An NFS client answers lstat from its cache, but asks the server when a directory is opened.
    try:
        os.close(os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY))
    except OSError:
        pass


def exists(path: str) -> bool:
    """Whether something, even a dangling link, has this name."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return False
        raise
    return True


def write(fd: int, data: bytes) -> int:
    """os.write. A function, because writing raises no audit event and tests count operations here."""
    return os.write(fd, data)


def append(fd: int, data: bytes) -> int:
    """Write `data` at the end; how many bytes of it were written, which is fewer only when the disk became full.

    Raises OSError if nothing was.
    """
    done = 0
    while done < len(data):
        try:
            done += write(fd, data[done:])
        except OSError:
            if not done:
                raise
            break
    return done


def append_whole(fd: int, data: bytes, path: str) -> None:
    """Write `data` at the end of the file at `path`. Raises OSError unless all of it was written."""
    if append(fd, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def overwrite(fd: int, data: bytes) -> None:
    """Write `data` over the beginning of a file without shortening it, so that it needs no space on a full disk."""
    os.pwrite(fd, data, 0)


def sync(fd: int) -> None:
    """Have the file's content on the server (or the platter) before anybody is told of it."""
    os.fdatasync(fd)


def create(path: str) -> int:
    """Make a new file that only its owner can read, and open it to read and write.

    Raises FileExistsError.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def open_to_append(path: str) -> int:
    """Open a file of this writer's own, made if it is missing, to add to its end."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def make_user_folders(path: str) -> None:
    """Make a directory that a job asks for, and its parents, as the user's own programs would."""
    os.makedirs(path, exist_ok=True)


def close(fd: int) -> None:
    """Close a file that was written: this is where a network filesystem reports what it could not write."""
    os.close(fd)


def read(path: str, limit: int = 1 << 16) -> bytes:
    """Up to `limit` bytes from the beginning of the file at `path`, which is opened anew and not through a link."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(fd, limit)
    finally:
        os.close(fd)


def publish(data: bytes, draft: str, target: str) -> None:
    """Make the file `target` appear with all of `data` at once; `draft` is a new name beside it.

    Dying leaves at worst the draft. Raises TargetTaken, and OSError if the disk is full; then nothing is left.
    """
    _write_draft(data, draft)
    try:
        # Nobody else knows the draft: if it is gone and the target is not there, then that has moved on already, and
        # only the answer was lost; unless the directory is gone with all that was in it.
        if not move(draft, target) and not exists(os.path.dirname(target)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), target)
    except BaseException:
        remove(draft)
        raise


def replace(data: bytes, draft: str, target: str) -> None:
    """As publish, for a file of fjd's own that may be there already."""
    _write_draft(data, draft)
    try:
        os.replace(draft, target)
    except OSError as error:
        # As in `move`. That something of this name is there proves nothing here, but that the draft is gone does.
        if error.errno not in _UNSURE or exists(draft) or not exists(target):
            raise


def _write_draft(data: bytes, draft: str) -> None:
    fd = create(draft)
    try:
        try:
            append_whole(fd, data, draft)
        finally:
            close(fd)
    except BaseException:
        remove(draft)
        raise


def remove(path: str) -> bool:
    """Remove a file of fjd's own; False if it was gone. A user's file never comes here."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def make_folder(path: str) -> bool:
    """Make a directory that only its owner can enter; False if it was there."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    return True


def remove_folder(path: str) -> bool:
    """Remove an empty directory; False if it is not empty. One that is gone already counts as removed."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def list_names(path: str) -> list[str]:
    """The names in a directory, in no order. Files that are moved meanwhile may be missing or named twice.

    Raises FileNotFoundError.
    """
    return os.listdir(path)
