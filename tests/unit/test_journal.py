"""Guards the record: what was written whole is read once, and what makes no sense is passed over, whoever left it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjd import disk, journal
from fjd.journal import Journal, Journals, Record
from fjd.project import Project

ID = "abcdef012345"
RECORD = Record(
    job="job3",
    id=ID,
    attempt=1,
    file=f"job3.{ID}.conf",
    worker="vm-1.k3f9",
    host="vm-1",
    command="./sim",
    outcome="succeeded",
    exit_code=0,
    start="2026-11-22T16:51:19.000Z",
    end="2026-11-22T16:51:20.500Z",
    seconds=1.5,
    user_seconds=1.25,
    system_seconds=0.125,
    peak_memory_bytes=1 << 20,
    stdout_bytes=10,
    stderr_bytes=0,
)
ODD = RECORD._replace(job='a "b"\n\\ é\udcff', reason="\x1b", attempt=2, exit_code=None, signal=9)


def line_of(record: Record) -> bytes:
    return json.dumps(record._asdict()).encode() + b"\n"


@pytest.fixture
def folder(project: Project) -> Path:
    return Path(project.journal)


@pytest.fixture
def written(folder: Path) -> Iterator[Journal]:
    """The journal of one writer, open."""
    made = Journal(str(folder), "vm-1.k3f9", durable=False)
    yield made
    made.close()


def read(folder: Path) -> list[Record]:
    return list(Journals(str(folder)).new_records())


# Writing


def test_journal_makes_no_file_before_the_first_line(folder: Path, written: Journal) -> None:
    assert os.listdir(folder) == []
    written.append(RECORD)
    assert os.listdir(folder) == ["vm-1.k3f9.jsonl"]


def test_journal_keeps_each_record_on_a_line(folder: Path, written: Journal) -> None:
    written.append(RECORD)
    written.append(ODD)
    assert Path(written.path).read_bytes().count(b"\n") == 2
    assert read(folder) == [RECORD, ODD]


def test_journal_goes_on_where_an_earlier_one_ended(folder: Path) -> None:
    for record in (RECORD, ODD):
        made = Journal(str(folder), "vm-1.k3f9", durable=False)
        made.append(record)
        made.close()
        made.close()
    assert read(folder) == [RECORD, ODD]


@pytest.mark.parametrize("durable", [True, False])
def test_journal_is_on_the_server_before_append_returns_when_it_is_durable(
    durable: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    made = Journal(str(folder), "w", durable=durable)
    monkeypatch.setattr(disk, "sync", lambda fd: synced.append(Path(made.path).read_bytes()))
    made.append(RECORD)
    made.close()
    assert synced == ([Path(made.path).read_bytes()] if durable else [])


def test_journal_raises_when_its_folder_is_gone(folder: Path, written: Journal) -> None:
    folder.rmdir()
    with pytest.raises(FileNotFoundError):
        written.append(RECORD)
    folder.mkdir()
    written.append(RECORD)
    assert read(folder) == [RECORD]


@pytest.mark.parametrize("taken", [0, 1, 40])
@pytest.mark.parametrize("tries", [1, 3])
def test_journal_reads_right_when_the_disk_became_full_and_the_line_was_tried_again(
    taken: int, tries: int, folder: Path, written: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    written.append(RECORD)
    real_write = disk.write
    for _ in range(tries):
        left = [taken] if taken else []

        def write(fd: int, data: bytes, left: list[int] = left) -> int:
            if not left:
                raise OSError(errno.ENOSPC, "full")
            return real_write(fd, data[: left.pop()])

        monkeypatch.setattr(disk, "write", write)
        with pytest.raises(OSError, match=r"full|No space left"):
            written.append(ODD)
    monkeypatch.setattr(disk, "write", real_write)
    written.append(ODD)
    written.append(RECORD)
    assert read(folder) == [RECORD, ODD, RECORD]


def test_journal_can_be_read_when_the_sync_failed_and_the_line_was_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Journal(str(folder), "w", durable=True)

    def fail(fd: int) -> None:
        raise OSError(errno.EDQUOT, "quota")

    with monkeypatch.context() as patched:
        patched.setattr(disk, "sync", fail)
        with pytest.raises(OSError, match="quota"):
            made.append(RECORD)
    made.append(RECORD)
    made.append(ODD)
    made.close()
    # Of two lines for one attempt either will do.
    assert set(read(folder)) == {RECORD, ODD}


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EBADF])
def test_journal_opens_its_file_anew_when_the_descriptor_is_ruined(
    number: int, folder: Path, written: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    written.append(RECORD)
    ruined = written._fd

    def fail(fd: int, data: bytes) -> int:
        raise OSError(number, "ruined")

    with monkeypatch.context() as patched:
        patched.setattr(disk, "write", fail)
        with pytest.raises(OSError, match="ruined"):
            written.append(ODD)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(ruined)
    written.append(ODD)
    assert read(folder) == [RECORD, ODD]


# What makes no sense

WRONG_FIELDS: list[dict[str, object]] = [
    {"job": 5},
    {"job": None},
    {"id": ["a"]},
    {"attempt": "1"},
    {"attempt": 1.5},
    {"attempt": True},
    {"attempt": None},
    {"attempt": 0},
    {"attempt": -1},
    {"attempt": 10**12},
    {"file": {}},
    {"outcome": 1},
    {"reason": 5},
    {"reason": None},
    {"start": 5},
    {"exit_code": "0"},
    {"signal": 1.5},
    {"seconds": "1"},
    {"seconds": None},
    {"seconds": -1},
    {"seconds": float("nan")},
    {"seconds": float("inf")},
    {"seconds": 10**400},
    {"user_seconds": float("nan")},
    {"peak_memory_bytes": "big"},
    {"stdout_bytes": 1.5},
]

LIES = [
    b"",
    b"\0",
    b"{",
    b"null",
    b"5",
    b'"job id attempt"',
    b"[]",
    b'["job", "id"]',
    b"{}",
    b'{"job": "x"}',
    b"\xff\xfe{",
    b"[" * 100_000,
    b'{"job":' * 20_000,
    b'{"attempt": ' + b"9" * 5000 + b"}",
    line_of(RECORD)[:-20],
    *(json.dumps({**RECORD._asdict(), **wrong}).encode() for wrong in WRONG_FIELDS),
    line_of(RECORD).replace(b'"seconds": 1.5', b'"seconds": 1e999').rstrip(),
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: repr(lie[:40]))
def test_reader_passes_over_a_line_that_makes_no_sense(lie: bytes, folder: Path) -> None:
    (folder / "w.jsonl").write_bytes(line_of(RECORD) + lie + b"\n" + line_of(ODD))
    assert read(folder) == [RECORD, ODD]
    assert journal.find(str(folder), "w", ID, 1) == RECORD


@pytest.mark.parametrize("zeros", [1, 8192])
def test_reader_finds_the_record_behind_a_block_of_zeros(zeros: int, folder: Path) -> None:
    (folder / "w.jsonl").write_bytes(line_of(RECORD) + b"\0" * zeros + line_of(ODD))
    assert read(folder) == [RECORD, ODD]
    assert journal.find(str(folder), "w", ID, 2) == ODD


def test_reader_takes_a_record_of_an_older_or_a_newer_version(folder: Path) -> None:
    fields = {**RECORD._asdict(), "gpu_seconds": 5}
    del fields["stderr_bytes"]
    (folder / "w.jsonl").write_text(json.dumps(fields) + "\n")
    assert read(folder) == [RECORD]


def test_reader_takes_whole_numbers_for_durations(folder: Path) -> None:
    (folder / "w.jsonl").write_bytes(line_of(RECORD._replace(seconds=2)))
    assert read(folder) == [RECORD._replace(seconds=2)]


@given(st.binary(max_size=200))
def test_record_is_a_record_or_none_for_any_bytes(line: bytes) -> None:
    assert journal._record(line) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(Record._fields), json_values))
def test_record_has_the_types_it_promises_for_any_fields(wrong: dict[str, object]) -> None:
    record = journal._record(json.dumps({**RECORD._asdict(), **wrong}).encode())
    if record is not None:
        assert all(type(value) in kinds for value, kinds in zip(record, journal._FIELD_KINDS, strict=True))
        assert isinstance(record.how, str)
        assert 0 <= 0.2 * record.seconds < float("inf")


# Reading again and again


def test_reader_gives_each_line_once(folder: Path, written: Journal) -> None:
    reader = Journals(str(folder))
    assert list(reader.new_records()) == []
    written.append(RECORD)
    assert list(reader.new_records()) == [RECORD]
    assert list(reader.new_records()) == []
    written.append(ODD)
    assert list(reader.new_records()) == [ODD]
    assert list(reader.new_records(fresh=True)) == []


def test_reader_waits_for_the_end_of_a_half_written_line(folder: Path) -> None:
    path = folder / "w.jsonl"
    reader = Journals(str(folder))
    whole = line_of(RECORD) + line_of(ODD)
    first = len(line_of(RECORD))
    read_at = []
    for end in (0, 1, first - 1, first, first + 1, len(whole) - 1, len(whole)):
        path.write_bytes(whole[:end])
        read_at += [(end, record) for record in reader.new_records()]
    assert read_at == [(first, RECORD), (len(whole), ODD)]


def test_reader_reads_the_journals_of_all_writers(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(line_of(RECORD))
    (folder / "b.jsonl").write_bytes(line_of(ODD))
    assert set(read(folder)) == {RECORD, ODD}


def test_reader_skips_what_was_there_before(folder: Path, written: Journal) -> None:
    written.append(RECORD)
    reader = Journals(str(folder))
    reader.skip()
    written.append(ODD)
    assert list(reader.new_records()) == [ODD]


def test_reader_opens_every_file_when_it_must_be_fresh(
    folder: Path, written: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network filesystem may tell an old size for half a minute, but not to somebody who opens the file."""
    written.append(RECORD)
    reader = Journals(str(folder))
    monkeypatch.setattr(reader, "_sizes", lambda: iter([("vm-1.k3f9.jsonl", 0)]))
    assert list(reader.new_records()) == []
    assert list(reader.new_records(fresh=True)) == [RECORD]


def test_reader_goes_on_after_the_line_at_which_its_caller_stopped(folder: Path, written: Journal) -> None:
    written.append(RECORD)
    written.append(ODD)
    reader = Journals(str(folder))
    records = reader.new_records()
    assert next(records) == RECORD
    records.close()  # type: ignore[attr-defined]  # it is a generator
    assert list(reader.new_records()) == [ODD]


@pytest.mark.parametrize("kind", ["folder", "dangling link", "hidden", "other ending"])
def test_reader_passes_over_what_is_no_journal(kind: str, folder: Path, written: Journal) -> None:
    written.append(RECORD)
    if kind == "folder":
        (folder / "x.jsonl").mkdir()
    elif kind == "dangling link":
        (folder / "x.jsonl").symlink_to("/nowhere")
    elif kind == "hidden":
        (folder / ".x.jsonl").write_bytes(line_of(ODD))
    else:
        (folder / "x.jsonl.old").write_bytes(line_of(ODD))
    reader = Journals(str(folder))
    assert list(reader.new_records(fresh=True)) == [RECORD]


def test_reader_is_content_when_a_journal_or_the_folder_is_gone(
    folder: Path, written: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Journals(str(folder))
    with monkeypatch.context() as patched:
        patched.setattr(reader, "_sizes", lambda: iter([("gone.jsonl", 10)]))
        assert list(reader.new_records()) == []
    folder.rmdir()
    assert list(reader.new_records()) == []


def test_reader_passes_over_the_journals_of_other_users(plain_user: Path) -> None:
    """In a project that is open to a group, each user's journal is closed to the others."""
    (plain_user / "mine.jsonl").write_bytes(line_of(RECORD))
    (plain_user / "theirs.jsonl").write_bytes(line_of(ODD))
    os.chmod(plain_user / "theirs.jsonl", 0)
    assert read(plain_user) == [RECORD]


# Finding one attempt


def test_find_gives_the_record_of_one_attempt(folder: Path) -> None:
    other = RECORD._replace(id="fedcba987654", command=ID)
    (folder / "w.jsonl").write_bytes(line_of(other) + line_of(RECORD) + line_of(ODD))
    assert journal.find(str(folder), "w", ID, 1) == RECORD
    assert journal.find(str(folder), "w", ID, 2) == ODD
    assert journal.find(str(folder), "w", ID, 3) is None
    assert journal.find(str(folder), "other", ID, 1) is None


def test_find_does_not_believe_a_line_without_its_end(folder: Path) -> None:
    """Its writer would not have moved the job for it, and the readers that count do not see it."""
    (folder / "w.jsonl").write_bytes(line_of(RECORD).rstrip())
    assert journal.find(str(folder), "w", ID, 1) is None


@pytest.mark.parametrize(
    ("record", "how"),
    [
        (RECORD, "exit code 0"),
        (RECORD._replace(exit_code=None, signal=9), "signal 9"),
        (RECORD._replace(exit_code=127, reason="command not found"), "command not found"),
    ],
)
def test_record_says_how_it_ended(record: Record, how: str) -> None:
    assert record.how == how
