"""Guards fjd.conf: its defaults, its limits, and that limits which depend on each other are checked together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fjd import settings
from fjd.errors import UsageError
from fjd.settings import Settings


def load(folder: Path, text: str) -> Settings:
    (folder / "fjd.conf").write_text(text)
    return settings.load(str(folder))


def test_settings_are_the_defaults_when_there_is_no_file(tmp_path: Path) -> None:
    assert settings.load(str(tmp_path)) == Settings()


@pytest.mark.parametrize("text", ["", "# nothing\n", "[other]\nlost_seconds: x\n", "[fjd]\n"])
def test_settings_are_the_defaults_when_the_file_says_nothing(text: str, tmp_path: Path) -> None:
    assert load(tmp_path, text) == Settings()


def test_settings_take_every_value(tmp_path: Path) -> None:
    text = (
        "[fjd]\nformat: 1\nheartbeat_seconds = 0.5\nlost_seconds: 60\nsettle_seconds: 0\ngrace_seconds: 1.5\n"
        "max_lost: 5\nfilesystem: network\n"
    )
    assert load(tmp_path, text) == Settings(1, 0.5, 60.0, 0.0, 1.5, 5, "network")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_settings_are_read_from_a_windows_editor_too(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "fjd.conf").write_bytes("[fjd]\r\nmax_lost: 7\r\n".encode(encoding))
    assert settings.load(str(tmp_path)).max_lost == 7


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("format: 0", "format must be 1 or more"),
        ("format: 2", "format 2 is newer than this fjd, which knows 1"),
        ("format: 1.0", "format: '1.0' is not a whole number"),
        ("heartbeat_seconds: 0", "heartbeat_seconds must be more than 0"),
        ("heartbeat_seconds: -1", "heartbeat_seconds must be more than 0"),
        ("lost_seconds: inf", "a time limit must be a number of seconds"),
        ("heartbeat_seconds: nan", "a time limit must be a number of seconds"),
        ("heartbeat_seconds: 11", "lost_seconds must be at least 2 x (grace_seconds + 2 x heartbeat_seconds)"),
        ("lost_seconds: 5.9", "lost_seconds must be at least 2 x (grace_seconds + 2 x heartbeat_seconds)"),
        ("lost_seconds: nan", "a time limit must be a number of seconds"),
        ("lost_seconds: a minute", "lost_seconds: 'a minute' is not a number"),
        ("settle_seconds: -0.1", "settle_seconds must not be negative"),
        ("settle_seconds: nan", "a time limit must be a number of seconds"),
        ("grace_seconds: -1", "grace_seconds must not be negative"),
        ("max_lost: 0", "max_lost must be 1 or more"),
        ("max_lost: many", "max_lost: 'many' is not a whole number"),
        ("filesystem: nfs", "filesystem must be auto, local or network"),
        ("lost_second: 60", "unknown setting 'lost_second'; did you mean lost_seconds?"),
        ("max_lost: 1\nmax_lost: 2", "line 3: max_lost is there twice"),
        ("max_lost", "line 2: not `key: value`: max_lost"),
    ],
)
def test_settings_are_refused_with_a_reason_when(line: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, f"[fjd]\n{line}\n")
    assert caught.value.reason == reason
    assert "fjd.conf" in caught.value.path


def test_settings_are_refused_when_the_file_is_no_ini(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not an INI file"):
        load(tmp_path, "lost_seconds: 60\n")


def test_settings_are_refused_when_the_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "fjd.conf").mkdir()
    with pytest.raises(UsageError, match=r"fjd.conf: cannot be read: Is a directory"):
        settings.load(str(tmp_path))


@pytest.mark.parametrize(("heartbeat", "grace", "least"), [(2, 5, 18), (10, 5, 50), (0.1, 0, 0.4)])
def test_lost_seconds_leave_a_worker_the_time_to_be_done_before(heartbeat: float, grace: float, least: float) -> None:
    limits = Settings(heartbeat_seconds=heartbeat, grace_seconds=grace, lost_seconds=least)
    # It looks once a heartbeat, and a job that ignores SIGTERM takes the whole grace.
    assert limits.surrender_seconds + heartbeat + grace < least
    assert heartbeat < limits.fence_seconds <= limits.surrender_seconds
    with pytest.raises(UsageError, match="lost_seconds must be at least"):
        Settings(heartbeat_seconds=heartbeat, grace_seconds=grace, lost_seconds=least - 0.01)


def test_settings_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().max_lost = 4  # type: ignore[misc]  # that it cannot be is the test
