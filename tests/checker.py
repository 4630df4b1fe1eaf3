"""The checker of a project: what breaks the promise that every job is in one place and has at most one outcome.

Reads a directory that nobody changes meanwhile, and shares only the grammar of names with fjd: what it says about
states, journals and slots it finds out by itself, so that a mistake there does not hide itself.

A violation is one line of text that begins with its kind:

    nowhere               a job that was submitted lies in no directory
    two places            one ID, or one submitted NAME, in more than one of them
    two outcomes          more than one file of an ID in done/, failed/ and held/
    no record             a file in done/ or failed/ without a journal line that says so of that attempt
    contradiction         journal lines that say both succeeded and failed of one attempt
    changed               a job file with other bytes than were submitted
    no reason             a file in rejected/ without the reason
    stray                 something in a directory of fjd's that is neither a job nor fjd's
    stale draft           a file that was never published (only with `drained`)
    stale slot            a slot, published or not, without jobs (only with `drained`)
    unfinished            a job that is not in done/, failed/, held/ or rejected/ (only with `drained`)
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from fjd.names import JobName
from fjd.project import Project

__all__ = ["Place", "check", "kinds", "places", "records"]

ENDED = ("done", "failed", "held")
_SLOT_FILES = frozenset({"alive", "claim", "fire", "running"})


class Place(NamedTuple):
    """A job file: the state that its directory means, the path, and its parsed name."""

    state: str
    path: str
    job: JobName

    @property
    def name(self) -> str:
        """What the user called it."""
        return self.job.name + self.job.ending


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _slot_paths(project: Project) -> Iterator[str]:
    for name in _listed(project.workerqueue):
        yield f"{project.workerqueue}/{name}"


def _files(project: Project) -> Iterator[tuple[str, str]]:
    """The state and the path of everything that is a job by where it lies and what it is called."""
    for name in _listed(project.jobqueue):
        if not name.startswith("."):
            yield "queued", f"{project.jobqueue}/{name}"
    for slot in _slot_paths(project):
        for name in _listed(slot):
            if not name.startswith(".") and name not in _SLOT_FILES:
                yield "assigned", f"{slot}/{name}"
        for name in _listed(f"{slot}/running"):
            yield "running", f"{slot}/running/{name}"
    for state in ENDED:
        for name in _listed(f"{project.jobrecord}/{state}"):
            yield state, f"{project.jobrecord}/{state}/{name}"
    inside = _listed(project.rejected)
    for name in inside:
        # A reason is no job, also when its file never came; a file that somebody called .reason has its own reason.
        if not name.endswith(".reason") or f"{name}.reason" in inside:
            yield "rejected", f"{project.rejected}/{name}"


def places(project: Project) -> list[Place]:
    """Where each job file lies."""
    return [Place(state, path, JobName.parse(os.path.basename(path))) for state, path in _files(project)]


def records(project: Project) -> dict[tuple[str, int], list[str]]:
    """The outcomes that whole lines of the journals tell, by ID and attempt."""
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name in _listed(project.journal):
        with open(f"{project.journal}/{name}", "rb") as file:
            for line in file.read().split(b"\n")[:-1]:
                try:
                    fields = json.loads(line)
                    found[fields["id"], fields["attempt"]].append(fields["outcome"])
                except (ValueError, KeyError, TypeError):
                    # What is left of a short write.
                    continue
    return found


def _content(path: str) -> bytes | None:
    if os.path.islink(path) or not os.path.isfile(path):
        return None
    with open(path, "rb") as file:
        return file.read()


def _of_submitted(here: list[Place], submitted: Mapping[str, bytes]) -> Iterator[str]:
    contents = {place.path: _content(place.path) for place in here}
    texts = list(submitted.values())
    for name, data in submitted.items():
        wanted = JobName.parse(name)
        # By content too, since a job may have come to lie under another name; where the content tells them apart.
        mine = [
            place
            for place in here
            if (wanted.id and place.job.id == wanted.id)
            or (not wanted.id and place.name == name)
            or (texts.count(data) == 1 and contents[place.path] == data)
        ]
        if not mine:
            yield f"nowhere: {name}"
        if len(mine) > 1:
            yield f"two places: {name}: {', '.join(place.path for place in mine)}"
        for place in mine:
            if contents[place.path] != data:
                yield f"changed: {name}: {place.path}"


def _of_ids(here: list[Place]) -> Iterator[str]:
    by_id: dict[str, list[Place]] = defaultdict(list)
    for place in here:
        if place.job.id:
            by_id[place.job.id].append(place)
    for id, mine in by_id.items():
        paths = ", ".join(place.path for place in mine)
        if len(mine) > 1:
            yield f"two places: {id}: {paths}"
        if sum(place.state in ENDED for place in mine) > 1:
            yield f"two outcomes: {id}: {paths}"


def _of_records(project: Project, here: list[Place]) -> Iterator[str]:
    recorded = records(project)
    for (id, attempt), outcomes in recorded.items():
        if {"succeeded", "failed"} <= set(outcomes):
            yield f"contradiction: {id} attempt {attempt}: {', '.join(outcomes)}"
    for place in here:
        wanted = {"done": "succeeded", "failed": "failed"}.get(place.state)
        if wanted and wanted not in recorded.get((place.job.id, place.job.attempt), []):
            yield f"no record: {place.path}: nothing says that attempt {place.job.attempt} {wanted}"
        if place.state == "rejected" and not os.path.lexists(f"{place.path}.reason"):
            yield f"no reason: {place.path}"


def _of_strays(project: Project, here: list[Place]) -> Iterator[str]:
    for slot in _slot_paths(project):
        if not os.path.isdir(slot):
            yield f"stray: {slot}: not a slot"
    for place in here:
        # Everything is taken as a job once, whatever it is; from then on it is a file, with an ID.
        if place.state not in ("queued", "rejected") and not (place.job.id and os.path.isfile(place.path)):
            yield f"stray: {place.path}: not a job"


def _of_leftovers(project: Project, here: list[Place]) -> Iterator[str]:
    for place in here:
        if place.state not in (*ENDED, "rejected"):
            yield f"unfinished: {place.path} is {place.state}"
    for name in _listed(project.jobqueue):
        if name.startswith("."):
            yield f"stale draft: {project.jobqueue}/{name}"
    for slot in _slot_paths(project):
        yield f"stale slot: {slot}: {', '.join(_listed(slot)) or 'empty'}"


def check(project: Project, submitted: Mapping[str, bytes] | None = None, drained: bool = False) -> list[str]:
    """Each violation, in no order that means something; an empty list if the promise holds.

    `submitted`: the bytes of every job that fjd has accepted, by the name that its user gave it (or by the file name
    with the ID that fjd gave it). `drained`: nothing is left to do, so nothing may lie where work lies.
    """
    here = places(project)
    found = [*_of_ids(here), *_of_records(project, here), *_of_strays(project, here)]
    if submitted is not None:
        found += _of_submitted(here, submitted)
    if drained:
        found += _of_leftovers(project, here)
    return found


def kinds(violations: list[str]) -> set[str]:
    """The kinds of violations, without what they are about."""
    return {violation.partition(":")[0] for violation in violations}
