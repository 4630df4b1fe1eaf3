"""At each operation of each role a process dies, or the operation fails; nothing is lost, and each job ends once.

What "right" means for an error: the role carries on, or it raises FjdError or OSError. In both cases the others then
find a project in which every job is in one place, and finish all of them as if nothing had been.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator

import pytest
from faults import FAULTS, Fault
from roles import ROLES
from stage import Role, points

Covered = dict[str, dict[str, int]]
pytestmark = pytest.mark.crash


@pytest.fixture(scope="module")
def covered(request: pytest.FixtureRequest) -> Iterator[Covered]:
    """How many points were covered, by role and fault; printed when all are."""
    counts: Covered = defaultdict(dict)
    yield counts
    lines = ["", "points at which a process died or its disk failed:"]
    for role, faults in sorted(counts.items()):
        each = ", ".join(f"{fault} {count}" for fault, count in sorted(faults.items()) if count)
        lines.append(f"{role}: {sum(faults.values())} ({each})")
    lines.append(f"all: {sum(sum(faults.values()) for faults in counts.values())}")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n".join(lines))


@pytest.fixture
def folder() -> Iterator[str]:
    """Where projects are made and removed by the thousand: in memory, if there is a filesystem for that."""
    path = tempfile.mkdtemp(prefix="fjd-crash-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    yield path
    # Projects in which something was wrong are left to be looked at; the failure names them.
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)


# Treated as another error of the list is; `make check` leaves these repetitions to `make test`.
_REPETITIONS = {"EDQUOT", "ESTALE", "EINTR", "ENOSPC", "failed close ENOSPC", "read ESTALE", "done but EIO"}
_FAULTS = [
    pytest.param(fault, id=fault.name, marks=[pytest.mark.slow] if fault.name in _REPETITIONS else [])
    for fault in FAULTS
]


@pytest.mark.parametrize("fault", _FAULTS)
@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_job_ends_once_when(role: Role, fault: Fault, folder: str, covered: Covered) -> None:
    found = list(points(role, fault, folder))
    problems = [f"k={point.k} {point.what}: " + "\n  ".join(point.problems) for point in found if point.problems]
    assert not problems, f"{len(problems)} of {len(found)} points\n" + "\n".join(problems[:5])
    hits = sum(point.hit for point in found)
    if not hits and fault.is_special:
        pytest.skip(f"{role.name} never does what this can happen to")
    assert hits > 0
    covered[role.name][fault.name] = hits


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_no_operation_escapes_the_errors(role: Role, folder: str) -> None:
    """What the audit events see is what can be made to fail, so the errors are enumerated as fully as the deaths."""
    over = Fault("none", frozenset(), "none")
    (point,) = points(role, over, folder)
    assert point.audited == point.replaced > 0
