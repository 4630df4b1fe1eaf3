"""What is not a job goes to rejected/ with a reason, and holds nobody up."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from rig import PATIENCE_SECONDS, Rig, give_to_nobody, nobodys_project, wait_until

GOOD = "[control]\nexecutable: true\n"


def text(content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda path: path.write_bytes(data) and None


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.write(b"[control]\nexecutable: true\n")
        file.truncate(100_000_000)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "job.conf").write_text(GOOD)


def listening(path: Path) -> None:
    # Its path would be too long for a socket.
    with socket.socket(socket.AF_UNIX) as opened:
        here = os.open(path.parent, os.O_RDONLY)
        try:
            opened.bind(f"/proc/self/fd/{here}/{path.name}")
        finally:
            os.close(here)


# What is wrong, how it comes there, and what the reason must tell.
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "not-ini": (text("just some words\n"), "not an INI file.*begin with \\[control\\]"),
    "no-control": (text("[params]\na: 1\n"), "no \\[control\\] section"),
    "no-executable": (text("[control]\nnice: 1\n"), "no executable in \\[control\\]"),
    "empty-executable": (text("[control]\nexecutable:\n"), "no executable"),
    "binary": (text(bytes(range(256)) * 10), "binary"),
    "elf": (text(b"\x7fELF\x02\x01\x01\0\0\0"), "binary"),
    "huge": (sparse, "larger than 16 MiB"),
    "directory": (folder, "a directory, not a file"),
    "dangling": (lambda path: path.symlink_to("/nonexistent/x"), "a symbolic link"),
    "link": (lambda path: path.symlink_to("/etc/hostname"), "a symbolic link"),
    "fifo": (lambda path: os.mkfifo(path), "a named pipe"),
    "socket": (listening, "a socket"),
    "empty": (text(""), "empty"),
    "unknown-key": (text("[control]\nexecutable: true\nlogfiel: x\n"), "logfiel.*did you mean logfile"),
    "bad-nice": (text("[control]\nexecutable: true\nnice: fast\n"), "nice.*from 0 to 19"),
    "quotes": (text("[control]\nexecutable: echo 'a\n"), "quot"),
    "twice": (text("[control]\nexecutable: true\nexecutable: false\n"), "line 3: executable is there twice"),
    "array": (text("[control]\nexecutable: true\n[sweep]\na: 1\n"), "array jobs"),
    "shebang": (text("#!\nfoo\n"), "interpreter"),
    "terminal": (text("[control]\nexecutable: true\n\x1b[31mevil\x07: 1\n"), "unknown key"),
}


def test_bad_files_are_rejected_with_a_reason_and_the_good_ones_run(rig: Rig) -> None:
    rig.hire(2)
    (rig.path / "jobqueue").mkdir(exist_ok=True)
    for n in range(200):
        kind = list(BAD)[n % len(BAD)]
        BAD[kind][0](rig.path / "jobqueue" / f"job{n}-{kind}.conf")
        if n % 10 == 5:
            rig.drop_command(f"job{n}-good.conf", "echo good")
    dispatcher = rig.start("dispatcher")
    result = dispatcher.wait(2 * PATIENCE_SECONDS)
    assert result.code == 1, rig.report()
    assert len(rig.record("done")) == 20
    assert rig.queued() == []
    rejected = rig.record("rejected")
    assert len(rejected) == 400, "a file and its reason each"
    for n in range(200):
        kind = list(BAD)[n % len(BAD)]
        name = f"job{n}-{kind}.conf"
        assert os.path.lexists(rig.path / "jobrecord/rejected" / name)
        reason = (rig.path / "jobrecord/rejected" / f"{name}.reason").read_text()
        assert reason.endswith("\n")
        assert reason.count("\n") == 1
        assert reason[:-1].isprintable()
        assert re.search(BAD[kind][1], reason), f"{kind}: {reason}"
        assert f"[FJD] Rejected {name}: " in result.err
    assert "[FJD] 200 files rejected; see jobrecord/rejected/." in result.err
    # Nothing that a user wrote is changed.
    assert (rig.path / "jobrecord/rejected/job7-directory.conf/job.conf").read_text() == GOOD
    assert (rig.path / "jobrecord/rejected/job6-huge.conf").stat().st_size == 100_000_000
    assert "\x1b" not in result.err
    # The checker reads what it checks.
    for path in (rig.path / "jobrecord/rejected").glob("*-huge.conf*"):
        path.unlink()
    rig.run("recruiter", "fire")
    rig.check(drained=True)


def test_bad_file_is_rejected_when_there_is_no_worker_and_when_one_of_its_name_was_before(rig: Rig) -> None:
    dispatcher = rig.dispatcher()
    for n in range(2):
        wait_until(lambda: not rig.queued(), PATIENCE_SECONDS, rig.report)
        (rig.path / "jobqueue/bad.conf").write_text(f"words {n}\n")
    (rig.path / "jobqueue" / ("b" * 255)).write_text("words 2\n")
    (rig.path / "jobqueue/two\nlines").write_text("words 3\n")
    (rig.path / "jobqueue" / os.fsdecode(b"\xff\xfe")).write_text("words 4\n")
    wait_until(lambda: len(rig.record("rejected")) == 10, PATIENCE_SECONDS, rig.report)
    files = [name for name in rig.record("rejected") if not name.endswith(".reason")]
    assert sorted((rig.path / "jobrecord/rejected" / name).read_text() for name in files) == [
        f"words {n}\n" for n in range(5)
    ]
    assert all(f"{name}.reason" in rig.record("rejected") for name in files)
    dispatcher.process.send_signal(signal.SIGINT)
    assert dispatcher.wait().code == 130
    # Mended, and dropped again.
    rig.hire(1)
    mended = rig.path / "jobrecord/rejected/bad.conf"
    mended.write_text(GOOD)
    os.rename(mended, rig.path / "jobqueue/bad.conf")
    rig.dispatch()
    assert len(rig.record("done")) == 1


def test_unreadable_file_is_rejected(rig: Rig) -> None:
    # Root can read everything.
    with nobodys_project() as (project, words, options):
        queue = project / "jobqueue"
        queue.mkdir()
        (queue / "secret.conf").write_text(GOOD)
        give_to_nobody(queue, queue / "secret.conf")
        (queue / "secret.conf").chmod(0)
        # Ends by itself: a file that is not a job was work, too.
        result = rig.run(*words, "fjd.cli.dispatcher", cwd=project, **options)
        assert result.code == 1, result
        assert "permission denied" in (project / "jobrecord/rejected/secret.conf.reason").read_text()


@pytest.mark.parametrize("name", ["x.conf.tmp", ".hidden.conf", "x.conf~", "x.part", ".x.conf.swp", ".nfs0001"])
def test_unfinished_business_is_left_alone(rig: Rig, name: str) -> None:
    (rig.path / "jobqueue").mkdir()
    (rig.path / "jobqueue" / name).write_text("whatever")
    rig.dispatch("--no-wait")
    assert (rig.path / "jobqueue" / name).read_text() == "whatever"
