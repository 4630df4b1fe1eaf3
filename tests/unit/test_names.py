"""Guards the grammar of job file names: what a name says, that nothing of it is lost, and that it always fits."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fjd.names import NAME_BYTES, JobName, is_ignored, natural_key, new_id

ID = "abcdef012345"

# What a directory can hold: any bytes but / and NUL, as Python decodes them; and pieces that the grammar knows.
any_names = st.binary(min_size=1, max_size=255).map(lambda b: os.fsdecode(b.replace(b"/", b"_").replace(b"\0", b"_")))
tricky_names = st.lists(
    st.sampled_from(
        ["a", ".", "~", "~2", "~10", "~1", f".{ID}", ID, ".conf", ".fedcba987654", "\n", "é", "\udcff", "@", " "]
    ),
    min_size=1,
    max_size=8,
).map("".join)
file_names = any_names | tricky_names


@pytest.mark.parametrize(
    ("filename", "parts"),
    [
        ("job3.conf", ("job3", "", 1, ".conf")),
        ("train.sh", ("train", "", 1, ".sh")),
        ("Makefile", ("Makefile", "", 1, "")),
        (f"job3.{ID}.conf", ("job3", ID, 1, ".conf")),
        (f"job3.{ID}~2.conf", ("job3", ID, 2, ".conf")),
        (f"job3.{ID}~12.conf", ("job3", ID, 12, ".conf")),
        (f"job3.{ID}", ("job3", ID, 1, "")),
        (f"job3.{ID}~3", ("job3", ID, 3, "")),
        ("a.b.c.conf", ("a.b.c", "", 1, ".conf")),
        # The last ID counts, when a name has two.
        (f"job3.{ID}.fedcba987654.conf", (f"job3.{ID}", "fedcba987654", 1, ".conf")),
        (f"job3.{ID}.fedcba987654", (f"job3.{ID}", "fedcba987654", 1, "")),
        # A date is no ID, nor is anything that is too short, too long or in capitals.
        ("run.202611221530.conf", ("run.202611221530", "", 1, ".conf")),
        ("run.20261122.conf", ("run.20261122", "", 1, ".conf")),
        ("run.abcdef01234.conf", ("run.abcdef01234", "", 1, ".conf")),
        ("run.abcdef0123456.conf", ("run.abcdef0123456", "", 1, ".conf")),
        ("run.ABCDEF012345.conf", ("run.ABCDEF012345", "", 1, ".conf")),
        # The first attempt has no mark, and an attempt has no zeros in front: else two names would mean one job.
        (f"job3.{ID}~1.conf", (f"job3.{ID}~1", "", 1, ".conf")),
        (f"job3.{ID}~02.conf", (f"job3.{ID}~02", "", 1, ".conf")),
        (f"job3.{ID}~0.conf", (f"job3.{ID}~0", "", 1, ".conf")),
        # An attempt belongs to an ID.
        ("job3~2.conf", ("job3~2", "", 1, ".conf")),
        (f".{ID}", (f".{ID}", "", 1, "")),
        ("two words\n.conf", ("two words\n", "", 1, ".conf")),
        ("x.thisisnotanendingatall", ("x.thisisnotanendingatall", "", 1, "")),
    ],
)
def test_parse_finds_the_parts_of(filename: str, parts: tuple[str, str, int, str]) -> None:
    assert JobName.parse(filename) == parts


@given(file_names)
@example("")
def test_parse_loses_nothing_of_any_name(filename: str) -> None:
    assert JobName.parse(filename).filename == filename


@given(file_names)
def test_renewed_name_parses_to_what_it_was_made_of(filename: str) -> None:
    job = JobName.parse(filename).renewed()
    assert JobName.parse(job.filename) == job
    assert JobName.parse(job.next.filename) == job.next
    assert job.attempt == 1
    assert job.id


@given(file_names)
@example("x" * 255)
@example("x" * 238 + "." + "e" * 16)
@example("é" * 119 + "." + "e" * 16)
def test_renewed_name_fits_a_directory_with_every_suffix(filename: str) -> None:
    job = JobName.parse(filename).renewed()
    assert job.has_room
    assert len(os.fsencode(job._replace(attempt=999_999).filename + ".reason")) <= 255


@pytest.mark.parametrize("character", ["a", "é", "日", "🙂"])
@pytest.mark.parametrize("before", range(5))
def test_renewed_name_is_cut_between_characters_when_it_is_too_long(before: int, character: str) -> None:
    name = "b" * before + character * 60 + "aé日🙂" * 20
    short = JobName(name, "", 1, ".conf").renewed().name
    assert name.startswith(short)
    assert NAME_BYTES - 3 <= len(short.encode()) <= NAME_BYTES


def test_renewed_name_is_cut_anywhere_when_its_bytes_are_no_text() -> None:
    name = os.fsdecode(b"\x80" * 250)
    assert os.fsencode(JobName(name, "", 1, "").renewed().name) == b"\x80" * NAME_BYTES


def test_renewed_name_has_another_id_when_it_had_one() -> None:
    job = JobName.parse(f"job3.{ID}~4.conf").renewed()
    assert (job.name, job.attempt, job.ending) == ("job3", 1, ".conf")
    assert job.id not in ("", ID)


def test_next_is_the_same_job_one_attempt_later() -> None:
    assert JobName.parse(f"job3.{ID}.conf").next.filename == f"job3.{ID}~2.conf"
    assert JobName.parse(f"job3.{ID}~9.conf").next.filename == f"job3.{ID}~10.conf"


def test_stem_is_the_name_without_its_ending() -> None:
    assert JobName.parse(f"job3.{ID}~2.conf").stem == f"job3.{ID}~2"
    assert JobName.parse("job3.conf").stem == "job3"


def test_has_room_is_false_when_no_later_attempt_would_fit() -> None:
    assert JobName("x" * NAME_BYTES, ID, 1, ".conf").has_room
    assert not JobName("x" * (NAME_BYTES + 1), ID, 1, ".conf").has_room


@pytest.mark.parametrize("random", [b"\0" * 6, b"\xff" * 6, b"\x0f" + b"\xff" * 5, b"\x50" + b"\0" * 5])
def test_new_id_fits_the_grammar_for(random: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: random[:size])
    assert JobName.parse(f"x.{new_id()}").id == new_id()


def test_new_id_differs_each_time() -> None:
    assert len({new_id() for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("filename", "ignored"),
    [
        (".job3.conf", True),
        (".nfs00001234", True),
        ("job3.conf.tmp", True),
        ("job3.conf~", True),
        ("job3.conf.part", True),
        ("job3.conf.swp", True),
        ("job3.conf", False),
        ("tmp", False),
        (f"job3.{ID}~2.conf", False),
    ],
)
def test_is_ignored_knows_unfinished_files(filename: str, ignored: bool) -> None:
    assert is_ignored(filename) is ignored


def test_natural_key_sorts_numbers_by_value() -> None:
    names = ["job10", "job9", "job1", "job2b", "job2a", "a", "10", "9"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "job1", "job2a", "job2b", "job9", "job10"]


def test_natural_key_stays_cheap_when_a_name_is_all_digits() -> None:
    assert natural_key("1" * 10_000) == natural_key("1" * 40)


@given(file_names | st.text(), file_names | st.text(), file_names | st.text())
@example("1", "a", "")
@example("²", "2", "٢")
def test_natural_key_orders_any_names(a: str, b: str, c: str) -> None:
    one, two, three = natural_key(a), natural_key(b), natural_key(c)
    assert (one < two) + (one == two) + (one > two) == 1
    assert not (one <= two <= three) or one <= three
