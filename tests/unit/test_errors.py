"""Guards what people and processes get of an error: its one line, its fields after pickling, its place in the tree."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjd import errors
from fjd.errors import CommandError, FjdError, InternalError, printable

TREE = [getattr(errors, name) for name in errors.__all__ if name not in ("printable", "InternalError")]


@pytest.mark.parametrize("kind", TREE)
def test_error_keeps_its_fields_when_pickled(kind: type[FjdError]) -> None:
    error = kind("/p/jobqueue", "is gone", "make it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (again.path, again.reason, again.remedy) == ("/p/jobqueue", "is gone", "make it")
    assert str(again) == "/p/jobqueue: is gone (make it)"


def test_command_error_keeps_its_exit_code_when_pickled() -> None:
    error = pickle.loads(pickle.dumps(CommandError("/bin/x", "permission denied", exit_code=126)))
    assert error.exit_code == 126
    assert str(error) == "/bin/x: permission denied"


def test_error_says_only_what_it_has_when_fields_are_empty() -> None:
    assert str(FjdError("", "the disk is full")) == "the disk is full"
    assert str(FjdError("", "no such option", "see --help")) == "no such option (see --help)"


def test_error_is_one_harmless_line_when_a_name_holds_control_characters() -> None:
    assert str(FjdError("a\nb\x1b[31m", "r\x07")) == r"a\nb\x1b[31m: r\x07"


def test_bug_is_outside_the_tree_so_that_nothing_catches_it() -> None:
    assert not issubclass(InternalError, FjdError)
    assert all(issubclass(kind, FjdError) for kind in TREE)


def test_docstring_draws_every_error_of_the_tree() -> None:
    assert errors.__doc__ is not None
    for kind in [*TREE, InternalError]:
        assert kind.__name__ in errors.__doc__


@given(st.text())
def test_printable_is_printable_for_every_text(text: str) -> None:
    assert printable(text).isprintable()


@given(st.binary())
def test_printable_can_be_written_to_a_terminal_for_every_file_name(name: bytes) -> None:
    printable(name.decode("utf-8", "surrogateescape")).encode("utf-8")


def test_printable_leaves_ordinary_text_alone() -> None:
    assert printable("Jürgen's job №3, 日本.conf") == "Jürgen's job №3, 日本.conf"
