"""Fixtures of the system tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rig import Rig, rigs


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """A project with short times, and the real commands in it."""
    yield from rigs(tmp_path)
