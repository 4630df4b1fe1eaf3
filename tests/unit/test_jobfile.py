"""Guards what a job file may say: each bad input gets its reason, good ones read as configparser would read them."""

from __future__ import annotations

import configparser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fjd import jobfile
from fjd.errors import JobFileError
from fjd.jobfile import JobFile, read_section

GOOD = "[control]\nexecutable: ./sim --fast\n"


def parse(text: str) -> JobFile:
    return jobfile.parse(text.encode())


def test_job_file_gives_every_key() -> None:
    job = parse("[control]\nexecutable: ./sim\nlogfile: data/x.dat\nworkdir = run\nname: my job\nnice: 5\n")
    assert job == JobFile("./sim", "data/x.dat", "run", "my job", 5)


def test_job_file_needs_only_an_executable() -> None:
    assert parse("[control]\nexecutable: ./sim\n") == JobFile("./sim", "", "", "", None)


@pytest.mark.parametrize(
    "text",
    [
        "[fjd]\nexecutable: ./sim\n",
        "[control]\nexecutable = ./sim\n",
        "[control]\nexecutable=./sim",
        "[control]\nExecutable : ./sim\n",
        "[ control ]\nexecutable: ./sim\n",
        "[control] # what to run\nexecutable: ./sim\n",
        "# a comment\n; another\n\n[control]\n\nexecutable: ./sim\n",
        "[params]\nx: 1\nno key here\n[control]\nexecutable: ./sim\n[more]\ny\n",
        "[control]\r\nexecutable: ./sim\r\n",
        "\ufeff[control]\nexecutable: ./sim\n",
        "\ufeff[control]\r\nexecutable: ./sim\r\n# end\r\n",
        "  [control]\n  executable: ./sim\n  logfile:\n",
        "[params]\nshape =\n   [array]\n   [control]\n[control]\nexecutable: ./sim\n",
    ],
)
def test_job_file_is_understood_in_every_usual_form(text: str) -> None:
    assert parse(text) == JobFile("./sim")


def test_job_file_value_keeps_delimiters_and_is_not_interpolated() -> None:
    assert parse("[control]\nexecutable: a --x=1 b:c %(home)s ${HOME} # d\n").executable == (
        "a --x=1 b:c %(home)s ${HOME} # d"
    )
    assert parse("[control]\nexecutable = a: b\n").executable == "a: b"


def test_job_file_value_goes_on_in_deeper_lines() -> None:
    job = parse("[control]\nexecutable: a\n   b\n\t# not this\n\n   c\nname: x\n")
    assert (job.executable, job.name) == ("a\nb\n\nc", "x")


def test_job_file_keeps_bytes_that_are_no_text() -> None:
    assert jobfile.parse(b"[control]\nexecutable: ./s\xff\n").executable == "./s\udcff"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello, world\n", "not an INI file: the first line is no [section] (begin with [control])"),
        (b'{"executable": "x"}', "not an INI file"),
        (b"\n\n# only a comment\n", "no [control] section (begin with [control] and a line `executable: COMMAND`)"),
        (b"[params]\nexecutable: ./sim\n", "no [control] section"),
        (b"[Control]\nexecutable: ./sim\n", "no [control] section"),
        (b"[control]\n", "no executable in [control] (line 1) (add a line `executable: COMMAND`)"),
        (b"\n[control]\nlogfile: x\nexecutable:\n", "no executable in [control] (line 2)"),
        (b"[control]\nexecutable:   \n", "no executable in [control]"),
        (b"[control]\nexecutable\n", "line 2: not `key: value`: executable"),
        (b"[control]\n: x\n", "line 2: not `key: value`: : x"),
        (b"\x7fELF\x02\x01\x01\0\0\0", "binary data, not a job file"),
        ("[control]\nexecutable: x\n".encode("utf-16"), "binary data, not a job file (write it as UTF-8 text"),
        ("[control]\nexecutable: x\n".encode("utf-16-le"), "binary data"),
        (b"[control]\nexecutable: a\0b\n", "binary data"),
        (b"[control]\nexecutabel: x\n", "unknown key in [control]: 'executabel'; did you mean executable?"),
        (b"[control]\nexecutable: x\nLogFiles: y\n", "unknown key in [control]: 'logfiles'; did you mean logfile?"),
        (
            b"[control]\nexecutable: x\nzzz: y\n",
            "unknown key in [control]: 'zzz'; known are executable, logfile, workdir, name, nice",
        ),
        (b"[control]\nexecutable: a\nexecutable: b\n", "line 3: executable is there twice"),
        (b"[control]\nexecutable: a\nEXECUTABLE = b\n", "line 3: executable is there twice"),
        (
            b"[control]\nexecutable: a\n[params]\n[control]\nexecutable: b\n",
            "line 4: [control], but line 1 began that section already",
        ),
        (
            b"[control]\nexecutable: a\n[fjd]\nexecutable: b\n",
            "line 3: [fjd], but line 1 began that section already",
        ),
        (b"[control]\nexecutable: a\nnice: 20\n", "nice: '20' (a whole number from 0 to 19)"),
        (b"[control]\nexecutable: a\nnice: -1\n", "nice: '-1'"),
        (b"[control]\nexecutable: a\nnice: 1.5\n", "nice: '1.5'"),
        (b"[control]\nexecutable: a\nnice:\n", "nice: ''"),
        (b"[control]\nexecutable: a\n[array]\n", "line 3: array jobs ([array]) are not known to this version of fjd"),
        (b"[sweep]\n[control]\nexecutable: a\n", "line 1: array jobs ([sweep])"),
        (b"[control]\nexecutable: a\n  [array]\n[array]\n", "line 4: array jobs ([array])"),
        (b"#!\n", "the #! line names no interpreter (write for example #!/bin/sh)"),
        (b"#!   \necho\n", "the #! line names no interpreter"),
        (b"#!/bin/\0sh\necho\n", "the #! line names no interpreter"),
    ],
)
def test_job_file_is_refused_with_a_reason_when_it_is(data: bytes, reason: str) -> None:
    with pytest.raises(JobFileError) as caught:
        jobfile.parse(data)
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nice", [0, 7, 19])
def test_job_file_takes_nice_when_it_is_in_range(nice: int) -> None:
    assert parse(f"{GOOD}nice: {nice}\n").nice == nice


def test_job_file_reason_shows_a_long_or_odd_line_short_and_harmless() -> None:
    with pytest.raises(JobFileError) as caught:
        parse(f"[control]\n{chr(27)}[31m{'x' * 1000}\n")
    assert str(caught.value) == rf"line 2: not `key: value`: \x1b[31m{'x' * 55}"


@pytest.mark.parametrize(
    ("data", "interpreter"),
    [
        (b"#!/bin/sh\necho hi\n", "/bin/sh"),
        (b"#! /usr/bin/env python3 \nprint()\n", "/usr/bin/env python3"),
        (b"#!/bin/sh\r\necho hi\r\n", "/bin/sh"),
        (b"#!/bin/sh", "/bin/sh"),
        (b"#!/bin/sh\n\0\0binary after it\xff", "/bin/sh"),
        (b"#!/opt/j\xfcrgen/sh\n", "/opt/j\udcfcrgen/sh"),
    ],
)
def test_script_is_a_job_of_its_own(data: bytes, interpreter: str) -> None:
    assert jobfile.parse(data) == JobFile(executable="", interpreter=interpreter)


_crumbs = ["[control]", "[fjd]", "[array]", "[", "]", "\n", "\r\n", " ", "\t", ":", "=", "#", ";", "#!", "\0", "x"]
_odd_crumbs = [b"executable", b"nice", b"\xef\xbb\xbf", b"\xff", b"\xc2\x85", b"\x1c"]


@given(
    st.binary()
    | st.lists(st.sampled_from([crumb.encode() for crumb in _crumbs] + _odd_crumbs), max_size=40).map(b"".join)
)
def test_parse_raises_only_job_file_errors_for_any_bytes(data: bytes) -> None:
    try:
        job = jobfile.parse(data)
    except JobFileError:
        return
    assert bool(job.executable) != bool(job.interpreter)


def _by_configparser(text: str) -> dict[str, str]:
    theirs = configparser.ConfigParser(interpolation=None, strict=True)
    theirs.read_string(text)
    return dict(theirs["control"])


# Good INI files: each section once, each key once in it, values of several lines, comments and empty lines anywhere.
_text = st.text(alphabet="abc 09:=#;[]%\t\"'/-éß", max_size=12)
_deeper = st.tuples(st.sampled_from(["  ", "\t", "      "]), _text.filter(lambda line: line.strip() != "")).map("".join)
_between = st.lists(st.sampled_from(["", "  ", "# comment: x", "; comment", "    # deep"]), max_size=2)
_entry = st.tuples(st.sampled_from([":", "=", " : ", " = "]), _text, _between, st.lists(_deeper, max_size=2))


@st.composite
def good_ini(draw: st.DrawFn) -> str:
    lines = draw(_between)
    indent = draw(st.sampled_from(["", "", " ", "\t"]))
    for section in draw(st.permutations(["control", "data", "other"])):
        lines += [f"{indent}[{section}]{draw(st.sampled_from(['', ' ', ' # why', 'x']))}", *draw(_between)]
        for key in draw(st.lists(st.sampled_from(["executable", "Logfile", "a b", "x.y"]), unique=True)):
            delimiter, value, between, deeper = draw(_entry)
            lines += [f"{indent}{key}{delimiter}{value}", *between, *(indent + line for line in deeper)]
    return draw(st.sampled_from(["\n", "\r\n"])).join(lines)


@given(good_ini())
def test_read_section_agrees_with_configparser_on_a_good_file(text: str) -> None:
    assert read_section(text, ("control",), "")[0] == _by_configparser(text)


# Lines in any order, with any indentation: what the indentation makes of them is what may differ.
_pieces = st.one_of(
    st.sampled_from(["[control]", "[data]", "[other]", "[control] # comment", "[a]b", "# comment", ""]),
    st.tuples(st.sampled_from(["executable", "Executable", "logfile"]), st.sampled_from([":", " = "]), _text).map(
        "".join
    ),
    _text,
)
_any_ini = st.lists(st.tuples(st.sampled_from(["", "", " ", "  ", "\t"]), _pieces).map("".join), max_size=12).map(
    lambda lines: "\n".join(["[control]", *lines])
)


@given(_any_ini)
def test_read_section_agrees_with_configparser_on_any_file_that_both_accept(text: str) -> None:
    try:
        theirs = _by_configparser(text)
    except configparser.Error:
        return
    assert read_section(text, ("control",), "")[0] == theirs


def test_read_section_gives_the_line_where_the_section_begins() -> None:
    assert read_section("\n# x\n[a]\n[b]\ny: 1\n", ("b",), "") == ({"y": "1"}, 4)
    assert read_section("[a]\n", ("b", "c"), "") == (None, 0)


def test_nearest_suggests_the_known_word_that_is_most_alike() -> None:
    assert jobfile.nearest("Excutable", jobfile.KEYS) == "; did you mean executable?"
    assert jobfile.nearest("qqq", ("a", "b")) == "; known are a, b"


def test_keys_are_the_fields_of_a_job_file() -> None:
    assert (*jobfile.KEYS, "interpreter") == JobFile._fields
