"""Guards the calls that change the disk: what they do, and what they make of a network filesystem's errors."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fjd import disk
from fjd.errors import TargetTaken

UNSURE = [errno.ENOENT, errno.ESTALE, errno.EPERM, errno.EIO, errno.EINTR, errno.ETIMEDOUT]
SURE = [errno.ENOSPC, errno.EACCES, errno.EXDEV, errno.EROFS, errno.EDQUOT]


def patch_rename(monkeypatch: pytest.MonkeyPatch, rename: Callable[[str, str], None]) -> None:
    monkeypatch.setattr(os, "rename", rename)


def fail(number: int) -> None:
    raise OSError(number, os.strerror(number))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "from" / "job"
    path.parent.mkdir()
    path.write_text("text")
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "to" / "job.abcdef012345"
    path.parent.mkdir()
    return path


def test_move_renames(source: Path, target: Path) -> None:
    assert disk.move(str(source), str(target)) is True
    assert not source.exists()
    assert target.read_text() == "text"


def test_move_is_false_when_the_source_is_gone(source: Path, target: Path) -> None:
    source.unlink()
    assert disk.move(str(source), str(target)) is False
    assert not target.exists()


def test_move_is_false_when_the_folder_of_the_source_is_gone(source: Path, target: Path) -> None:
    source.unlink()
    source.parent.rmdir()
    assert disk.move(str(source), str(target)) is False


def test_move_is_false_when_source_and_target_folder_are_gone(source: Path, target: Path) -> None:
    source.unlink()
    target.parent.rmdir()
    assert disk.move(str(source), str(target)) is False


def test_move_raises_when_the_folder_of_the_target_is_gone(source: Path, target: Path) -> None:
    target.parent.rmdir()
    with pytest.raises(FileNotFoundError):
        disk.move(str(source), str(target))
    assert source.read_text() == "text"


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_move_refuses_when_the_target_is_taken_by_a(kind: str, source: Path, target: Path) -> None:
    if kind == "file":
        target.write_text("theirs")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to("/nowhere")
    with pytest.raises(TargetTaken) as caught:
        disk.move(str(source), str(target))
    assert caught.value.path == str(target)
    assert source.read_text() == "text"


@pytest.mark.parametrize("number", UNSURE)
def test_move_is_true_when_the_rename_happened_and_reports(
    number: int, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_rename = os.rename

    def rename_and_fail(old: str, new: str) -> None:
        real_rename(old, new)
        fail(number)

    patch_rename(monkeypatch, rename_and_fail)
    assert disk.move(str(source), str(target)) is True
    assert target.read_text() == "text"


@pytest.mark.parametrize("number", UNSURE)
def test_move_is_false_when_somebody_else_moved_the_source_and_the_rename_reports(
    number: int, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(old: str, new: str) -> None:
        os.replace(old, f"{new}-theirs")
        fail(number)

    patch_rename(monkeypatch, lose)
    assert disk.move(str(source), str(target)) is False


@pytest.mark.parametrize("number", UNSURE + SURE)
def test_move_raises_when_nothing_was_moved_and_the_rename_reports(
    number: int, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_rename(monkeypatch, lambda old, new: fail(number))
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        disk.move(str(source), str(target))
    assert caught.value.errno == number
    assert source.read_text() == "text"


@pytest.mark.parametrize("number", SURE)
def test_move_raises_when_the_error_says_for_sure_that_nothing_happened(
    number: int, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file is gone all the same: it was never there for this call.
    source.unlink()
    patch_rename(monkeypatch, lambda old, new: fail(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        disk.move(str(source), str(target))


@pytest.mark.parametrize("stale", ["source still there", "target not there"])
def test_move_asks_the_server_anew_before_it_believes_a_cache(
    stale: str, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An NFS client answers lstat from its cache until the directory is opened."""
    opened: set[str] = set()
    old = os.lstat(source)
    real_open, real_lstat, real_rename = os.open, os.lstat, os.rename

    def open_and_note(path: str, flags: int, mode: int = 0o777) -> int:
        opened.add(path)
        return real_open(path, flags, mode)

    def lstat_from_cache(path: str) -> os.stat_result:
        if os.path.dirname(path) in opened:
            return real_lstat(path)
        if path == str(source) and stale == "source still there":
            return old
        raise FileNotFoundError(errno.ENOENT, "not in the cache", path)

    def rename_and_fail(old: str, new: str) -> None:
        real_rename(old, new)
        fail(errno.ENOENT)

    monkeypatch.setattr(os, "open", open_and_note)
    monkeypatch.setattr(os, "lstat", lstat_from_cache)
    patch_rename(monkeypatch, rename_and_fail)
    assert disk.move(str(source), str(target)) is True


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.ESTALE])
def test_exists_is_false_when_lstat_reports(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "lstat", lambda path: fail(number))
    assert disk.exists("/x") is False


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_exists_raises_when_nobody_knows(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "lstat", lambda path: fail(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        disk.exists("/x")


def short_writes(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
    """Have each write take so many bytes at most, and after the last of them find the disk full."""
    left = list(sizes)
    real_write = disk.write

    def write(fd: int, data: bytes) -> int:
        if not left:
            fail(errno.ENOSPC)
        return real_write(fd, data[: left.pop(0)])

    monkeypatch.setattr(disk, "write", write)


def append(path: Path, data: bytes) -> int:
    fd = disk.open_to_append(str(path))
    try:
        return disk.append(fd, data)
    finally:
        disk.close(fd)


def test_append_adds_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x"
    assert append(path, b"one") == 3
    assert append(path, b"two") == 3
    assert path.read_bytes() == b"onetwo"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_append_goes_on_when_a_write_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_writes(monkeypatch, 1, 2, 100)
    assert append(tmp_path / "x", b"abcdef") == 6
    assert (tmp_path / "x").read_bytes() == b"abcdef"


def test_append_says_how_much_went_in_when_the_disk_became_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_writes(monkeypatch, 1, 2)
    assert append(tmp_path / "x", b"abcdef") == 3
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_append_raises_when_nothing_went_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_writes(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        append(tmp_path / "x", b"abcdef")


def test_overwrite_keeps_the_rest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0001\nmore")
    fd = os.open(path, os.O_RDWR)
    os.lseek(fd, 7, os.SEEK_SET)
    disk.overwrite(fd, b"0002")
    disk.sync(fd)
    disk.close(fd)
    assert path.read_bytes() == b"0002\nmore"


def test_create_makes_a_private_file_and_refuses_one_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    disk.close(disk.create(str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        disk.create(str(path))


def test_files_of_fjd_are_not_written_or_read_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to("theirs")
    for call in (disk.create, disk.open_to_append, disk.read):
        with pytest.raises(OSError):  # noqa: PT011 - EEXIST or ELOOP: what matters is that it fails
            call(str(tmp_path / "link"))
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_descriptors_are_not_inherited_by_jobs(tmp_path: Path) -> None:
    for fd in (disk.create(str(tmp_path / "a")), disk.open_to_append(str(tmp_path / "b"))):
        assert not os.get_inheritable(fd)
        disk.close(fd)


def test_read_gives_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 100_000)
    assert len(disk.read(str(tmp_path / "x"))) == 1 << 16
    assert disk.read(str(tmp_path / "x"), 3) == b"xxx"


def test_read_does_not_wait_when_the_file_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x")
    assert disk.read(str(tmp_path / "x")) == b""


def publish(folder: Path) -> None:
    disk.publish(b"all of it", str(folder / ".draft"), str(folder / "job"))


def test_publish_makes_the_whole_file_appear(tmp_path: Path) -> None:
    publish(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"job": b"all of it"}


def test_publish_leaves_nothing_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_writes(monkeypatch, 3)
    with pytest.raises(OSError, match="No space left"):
        publish(tmp_path)
    assert os.listdir(tmp_path) == []


def test_publish_leaves_nothing_when_closing_reports_a_lost_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close_and_fail(fd: int) -> None:
        os.close(fd)
        fail(errno.EIO)

    monkeypatch.setattr(disk, "close", close_and_fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        publish(tmp_path)
    assert os.listdir(tmp_path) == []


def test_publish_leaves_the_other_file_when_the_target_is_taken(tmp_path: Path) -> None:
    (tmp_path / "job").write_text("theirs")
    with pytest.raises(TargetTaken):
        publish(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"job": "theirs"}


def test_publish_counts_when_only_the_answer_was_lost_and_the_file_has_moved_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish_and_take(old: str, new: str) -> None:
        os.replace(old, f"{new}-assigned")
        fail(errno.ENOENT)

    patch_rename(monkeypatch, publish_and_take)
    publish(tmp_path)
    assert os.listdir(tmp_path) == ["job-assigned"]


def test_publish_raises_when_the_folder_goes_with_the_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "queue"
    folder.mkdir()

    def lose(old: str, new: str) -> None:
        shutil.rmtree(folder)
        fail(errno.ENOENT)

    patch_rename(monkeypatch, lose)
    with pytest.raises(FileNotFoundError):
        publish(folder)


def test_replace_takes_the_place_of_a_file_that_is_there(tmp_path: Path) -> None:
    for text in (b"drain\n", b"now\n"):
        disk.replace(text, str(tmp_path / ".draft"), str(tmp_path / "fire"))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"fire": text}


def test_replace_leaves_the_old_file_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fire").write_text("drain\n")
    short_writes(monkeypatch, 1)
    with pytest.raises(OSError, match="No space left"):
        disk.replace(b"now\n", str(tmp_path / ".draft"), str(tmp_path / "fire"))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"fire": "drain\n"}


@pytest.mark.parametrize("number", UNSURE)
def test_replace_counts_when_it_happened_and_reports(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_replace = os.replace

    def replace_and_fail(old: str, new: str) -> None:
        real_replace(old, new)
        fail(number)

    monkeypatch.setattr(os, "replace", replace_and_fail)
    disk.replace(b"now\n", str(tmp_path / ".draft"), str(tmp_path / "fire"))
    assert (tmp_path / "fire").read_text() == "now\n"


@pytest.mark.parametrize("number", UNSURE + SURE)
def test_replace_raises_when_nothing_happened(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fire").write_text("drain\n")
    monkeypatch.setattr(os, "replace", lambda old, new: fail(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        disk.replace(b"now\n", str(tmp_path / ".draft"), str(tmp_path / "fire"))
    assert (tmp_path / "fire").read_text() == "drain\n"


def test_remove_tells_whether_there_was_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert disk.remove(str(tmp_path / "x")) is True
    assert disk.remove(str(tmp_path / "x")) is False


def test_make_folder_tells_whether_it_is_new_and_keeps_others_out(tmp_path: Path) -> None:
    assert disk.make_folder(str(tmp_path / "x")) is True
    assert disk.make_folder(str(tmp_path / "x")) is False
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o700


def test_make_user_folders_makes_the_parents_too_and_is_content_with_old_ones(tmp_path: Path) -> None:
    disk.make_user_folders(str(tmp_path / "a" / "b"))
    disk.make_user_folders(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()


def test_remove_folder_leaves_one_that_is_not_empty(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "job").write_text("")
    assert disk.remove_folder(str(folder)) is False
    (folder / "job").unlink()
    assert disk.remove_folder(str(folder)) is True
    assert not folder.exists()


def test_remove_folder_is_content_when_it_is_gone(tmp_path: Path) -> None:
    assert disk.remove_folder(str(tmp_path / "x")) is True


@pytest.mark.parametrize(("number", "result"), [(errno.ENOTEMPTY, False), (errno.EEXIST, False)])
def test_remove_folder_knows_both_words_for_not_empty(
    number: int, result: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "rmdir", lambda path: fail(number))
    assert disk.remove_folder("/x") is result


def test_remove_folder_raises_when_it_may_not(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file")
    with pytest.raises(NotADirectoryError):
        disk.remove_folder(str(tmp_path / "x"))


def test_list_names_raises_when_the_folder_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        disk.list_names(str(tmp_path / "x"))


def test_list_names_gives_every_kind_of_name(tmp_path: Path) -> None:
    names = {".hidden", "two words", "new\nline", "no\udcfftext"}
    for name in names:
        (tmp_path / name).write_text("")
    assert set(disk.list_names(str(tmp_path))) == names
