"""Guards the wake-ups: what rings the bell and what does not, and that nothing is left behind.

The kernel queues an event before the call that caused it returns, so nothing here has to be waited for.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fjd import watch
from fjd.watch import Doorbell, Rhythm

WATCHES = [Doorbell.watch_arrivals, Doorbell.watch_drops]


@pytest.fixture
def doorbell() -> Iterator[Doorbell]:
    with Doorbell() as made:
        yield made


def is_ringing(doorbell: Doorbell) -> bool:
    return bool(select.select([doorbell.fd], [], [], 0)[0])


def appear(folder: Path, name: str) -> None:
    """A file that comes by a rename from a directory that nobody watches."""
    outside = folder.parent / name
    outside.write_text("")
    outside.rename(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "watched"
    made.mkdir()
    return made


# Files


@pytest.mark.parametrize("watch_it", WATCHES)
def test_doorbell_rings_when_a_file_is_moved_in(
    watch_it: Callable[[Doorbell, str], None], folder: Path, doorbell: Doorbell
) -> None:
    watch_it(doorbell, str(folder))
    assert not is_ringing(doorbell)
    appear(folder, "job.conf")
    assert is_ringing(doorbell)
    assert doorbell.answer() == b"\0"
    assert not is_ringing(doorbell)


@pytest.mark.parametrize("watch_it", WATCHES)
def test_doorbell_rings_when_a_file_was_there_under_a_hidden_name(
    watch_it: Callable[[Doorbell, str], None], folder: Path, doorbell: Doorbell
) -> None:
    (folder / ".draft").write_text("")
    watch_it(doorbell, str(folder))
    (folder / ".draft").rename(folder / "job.conf")
    assert is_ringing(doorbell)


@pytest.mark.parametrize("watch_it", WATCHES)
def test_doorbell_rings_when_a_directory_is_published(
    watch_it: Callable[[Doorbell, str], None], folder: Path, doorbell: Doorbell
) -> None:
    (folder / ".slot").mkdir()
    watch_it(doorbell, str(folder))
    (folder / ".slot").rename(folder / "slot")
    assert is_ringing(doorbell)


@pytest.mark.parametrize("drop", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_doorbell_for_drops_rings_however_something_appears(
    drop: Callable[[Path], None], folder: Path, doorbell: Doorbell
) -> None:
    doorbell.watch_drops(str(folder))
    drop(folder / "new")
    assert is_ringing(doorbell)


def test_doorbell_for_drops_rings_when_a_file_that_was_written_is_closed(folder: Path, doorbell: Doorbell) -> None:
    with open(folder / "job.conf", "w") as file:
        doorbell.watch_drops(str(folder))
        file.write("x")
        file.flush()
        assert not is_ringing(doorbell)
    assert is_ringing(doorbell)


@pytest.mark.parametrize("watch_it", WATCHES)
def test_doorbell_does_not_ring_for_what_fjd_itself_does_there(
    watch_it: Callable[[Doorbell, str], None], folder: Path, doorbell: Doorbell
) -> None:
    """Else every job that is looked at, started or moved on would wake whoever moved it."""
    (folder / "old").write_text("x")
    (folder / "running").mkdir()
    watch_it(doorbell, str(folder))
    (folder / "old").read_text()
    os.listdir(folder)
    (folder / "old").chmod(0o600)
    (folder / "old").rename(folder / "running" / "old")
    (folder / "running" / "more").write_text("")
    (folder / "running" / "old").rename(folder.parent / "old")
    assert not is_ringing(doorbell)


@pytest.mark.parametrize("name", ["two words", "ü", "no\udcfftext"])
def test_doorbell_watches_a_folder_with_an_odd_name(name: str, tmp_path: Path, doorbell: Doorbell) -> None:
    (tmp_path / name).mkdir()
    doorbell.watch_arrivals(str(tmp_path / name))
    appear(tmp_path / name, "job.conf")
    assert doorbell.answer() == b"\0"


def test_doorbell_watches_several_folders(tmp_path: Path, doorbell: Doorbell) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    doorbell.watch_arrivals(str(tmp_path / "a"))
    doorbell.watch_drops(str(tmp_path / "b"))
    for name in ("a", "b"):
        appear(tmp_path / name, "job.conf")
        assert doorbell.answer() == b"\0"


def test_answer_stops_the_ringing_when_more_happened_than_the_kernel_remembers(
    folder: Path, doorbell: Doorbell
) -> None:
    doorbell.watch_drops(str(folder))
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
        most = int(file.read())
    # Each of these is two events.
    for number in range(most // 2 + 10):
        os.close(os.open(folder / str(number % 2), os.O_WRONLY | os.O_CREAT))
    assert doorbell.answer() == b"\0"
    assert not is_ringing(doorbell)


def test_doorbell_raises_and_leaves_nothing_when_the_folder_is_gone(tmp_path: Path) -> None:
    with Doorbell() as doorbell, pytest.raises(FileNotFoundError):
        doorbell.watch_arrivals(str(tmp_path / "gone"))


def test_a_child_does_not_inherit_the_doorbell(folder: Path, doorbell: Doorbell) -> None:
    doorbell.watch_arrivals(str(folder))
    listing = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False)
    assert listing.returncode == 0
    assert "pipe" in listing.stdout
    assert "inotify" not in listing.stdout
    assert "eventpoll" not in listing.stdout


# Deafness


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC])
def test_doorbell_is_deaf_and_says_so_when_the_kernel_has_no_more_watches(
    number: int, folder: Path, doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> int:
        watch.ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(watch, "inotify_init", refuse)
    doorbell.watch_arrivals(str(folder))
    assert doorbell.is_deaf
    assert caplog.messages == [f"no events from {folder} ({os.strerror(number)}): looking once a second instead"]


def test_doorbell_is_deaf_where_there_is_no_inotify(
    folder: Path, doorbell: Doorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "inotify_add_watch", None)
    doorbell.watch_arrivals(str(folder))
    assert doorbell.is_deaf


def test_answer_is_empty_when_nothing_happened(doorbell: Doorbell) -> None:
    assert doorbell.answer() == b""
    assert not is_ringing(doorbell)


def test_close_may_be_called_twice(folder: Path) -> None:
    # The check for leaks does the rest.
    doorbell = Doorbell()
    doorbell.watch_arrivals(str(folder))
    doorbell.close()
    doorbell.close()


# Signals


def test_doorbell_rings_with_the_number_of_a_signal_instead_of_what_it_would_do(
    folder: Path, doorbell: Doorbell
) -> None:
    doorbell.watch_arrivals(str(folder))
    doorbell.listen([signal.SIGTERM, signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGTERM)
    assert is_ringing(doorbell)
    assert doorbell.answer() == bytes([signal.SIGTERM])
    appear(folder, "job.conf")
    os.kill(os.getpid(), signal.SIGUSR1)
    assert doorbell.answer() == bytes([0, signal.SIGUSR1])
    assert not is_ringing(doorbell)


def test_close_gives_the_signals_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with Doorbell() as doorbell:
        doorbell.listen([signal.SIGTERM, signal.SIGUSR1])
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before
    assert signal.set_wakeup_fd(-1) == -1


# Rhythm


def test_rhythm_slows_down_to_its_longest_and_quickens_at_once() -> None:
    rhythm = Rhythm(0.1, 0.5)
    waits = []
    for _ in range(5):
        waits.append(rhythm.seconds)
        rhythm.relax()
    assert waits == [0.1, 0.2, 0.4, 0.5, 0.5]
    rhythm.quicken()
    assert rhythm.seconds == 0.1


def test_rhythm_stays_when_it_has_one_pace() -> None:
    rhythm = Rhythm(2.0, 2.0)
    rhythm.relax()
    assert rhythm.seconds == 2.0
