"""Which directory is the project, and one clear line when it cannot be used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from rig import NOBODY, PATIENCE_SECONDS, Rig, Started, nobodys_project, wait_until

COMMANDS = [
    ("recruiter", "hire", "1", "--backend", "local"),
    ("recruiter", "fire"),
    ("recruiter", "list"),
    ("dispatcher", "--no-wait"),
    ("fjd-worker",),
    ("fjd", "status"),
    ("fjd", "submit", "{job}"),
]
NAMES = [" ".join(words[:2]) for words in COMMANDS]


@pytest.fixture
def job(rig: Rig) -> Path:
    path = rig.folder / "job.conf"
    path.write_text("[control]\nexecutable: pwd\n")
    return path


def run_through(rig: Rig, cwd: Path, *options: str, env: dict[str, str] | None = None) -> str:
    """Hire, submit, dispatch, look and fire with these options; what the job said its directory is."""
    job = rig.folder / "job.conf"
    for words in (
        ("recruiter", "hire", "1", "--backend", "local"),
        ("fjd", "submit", str(job)),
        ("dispatcher",),
        ("recruiter", "list"),
        ("fjd", "status"),
        ("recruiter", "fire"),
    ):
        result = rig.run(*words, *options, cwd=cwd, env=env)
        assert (result.code, result.err) == (0, ""), words
        if words[-1] == "list":
            assert "idle" in result.out
        if words[-1] == "status":
            assert "succeeded         1" in result.out
    (output,) = rig.path.parent.rglob("jobrecord/logs/job.*.out")
    said = output.read_text().strip()
    assert output.parents[2] == Path(said)
    return said


def test_project_is_the_current_directory_by_default(rig: Rig, job: Path) -> None:
    assert run_through(rig, rig.path) == str(rig.path)


def test_every_command_takes_dir(rig: Rig, job: Path) -> None:
    relative = os.path.relpath(rig.path, rig.folder / "home")
    assert run_through(rig, rig.folder / "home", "--dir", relative) == str(rig.path)
    assert os.listdir(rig.folder / "home") == []


def test_every_command_takes_fjd_dir_from_the_environment(rig: Rig, job: Path) -> None:
    assert run_through(rig, rig.folder / "home", env={"FJD_DIR": str(rig.path)}) == str(rig.path)
    # What is said on the command line comes first.
    elsewhere = {"FJD_DIR": "/nonexistent"}
    assert rig.run("fjd", "status", "--dir", str(rig.path), env=elsewhere).code == 0


def test_every_command_takes_the_name_of_a_project_at_home(rig: Rig, job: Path) -> None:
    home = rig.folder / "home"
    env = {"FJD_DIR": "/nonexistent"}
    assert run_through(rig, rig.folder, "--project", "sweep", env=env) == str(home / ".fjd/sweep")
    assert (home / ".fjd/sweep").stat().st_mode & 0o777 == 0o700
    assert (home / ".fjd").stat().st_mode & 0o777 == 0o700
    for name in ("../x", "", ".x", "a/b"):
        assert rig.run("fjd", "status", "--project", name).code == 2
    assert rig.run("fjd", "status", "--project", "x", "--dir", ".").code == 2


@pytest.mark.parametrize("words", COMMANDS, ids=NAMES)
def test_command_says_one_line_when_the_directory_is_missing(rig: Rig, job: Path, words: tuple[str, ...]) -> None:
    words = tuple(word.format(job=job) for word in words)
    result = rig.run(*words, "--dir", "/nonexistent/project")
    assert (result.code, result.out) == (75, "")
    assert "/nonexistent/project: there is no such directory" in result.complaint
    result = rig.run(*words, env={"FJD_DIR": str(job)})
    assert (result.code, result.out) == (75, "")
    assert "is not a directory" in result.complaint


@pytest.mark.parametrize("words", [COMMANDS[n] for n in (0, 3, 4, 6)], ids=[NAMES[n] for n in (0, 3, 4, 6)])
def test_command_says_one_line_when_the_directory_is_somebody_elses(
    rig: Rig, job: Path, words: tuple[str, ...]
) -> None:
    words = tuple(word.format(job=job) for word in words)
    theirs = rig.folder / "theirs"
    if os.getuid() == 0:
        theirs.mkdir()
        os.chown(theirs, NOBODY, NOBODY)
    else:
        theirs = Path("/usr")
    result = rig.run(*words, "--dir", str(theirs))
    assert (result.code, result.out) == (75, "")
    assert "belongs to another user" in result.complaint
    if os.getuid() == 0:
        assert os.listdir(theirs) == []


@pytest.mark.parametrize("prepared", [False, True], ids=["new", "used before"])
def test_commands_say_one_line_when_the_directory_is_read_only(rig: Rig, prepared: bool) -> None:
    with nobodys_project() as (project, words, options):
        job = project / "job.conf"
        job.write_text("[control]\nexecutable: true\n")
        if prepared:
            assert rig.run(*words, "fjd.cli.dispatcher", "--no-wait", cwd=project, **options).code == 0
        folders = [project, *(path for path in project.rglob("*") if path.is_dir())]
        for folder in folders:
            folder.chmod(0o500)
        try:
            for module, *more in (
                ("fjd.cli.recruiter", "hire", "1", "--backend", "local"),
                ("fjd.cli.dispatcher",),
                ("fjd.cli.worker",),
                ("fjd.cli.fjd", "submit", str(job)),
            ):
                result = rig.run(*words, module, *more, cwd=project, **options)
                assert (result.code, result.out) == (75, ""), (module, result)
                assert "permission denied" in result.complaint
            # Looking is all that can be done here, and it can be done.
            assert rig.run(*words, "fjd.cli.fjd", "status", cwd=project, **options).code == 0
            assert rig.run(*words, "fjd.cli.recruiter", "list", cwd=project, **options).code == 0
        finally:
            for folder in folders:
                folder.chmod(0o700)


def ends_with_one_line(rig: Rig, started: Started, what: str) -> None:
    result = started.wait()
    assert result.code == 75, rig.report()
    assert "Traceback" not in result.err
    lines = [line for line in result.err.splitlines() if what in line]
    assert len(lines) == 1, result.err


@pytest.mark.parametrize("how", ["removed", "moved"])
def test_worker_and_dispatcher_end_when_the_directory_vanishes(rig: Rig, how: str) -> None:
    with open(rig.path / "fjd.conf", "a") as conf:
        conf.write("heartbeat_seconds: 0.3\n")
    dispatcher = rig.start("dispatcher", "--stay")
    idle = rig.start("fjd-worker", "--name", "idle")
    busy = rig.start("fjd-worker", "--name", "busy")
    wait_until(lambda: len(rig.slots()) == 2, PATIENCE_SECONDS, rig.report)
    rig.drop_script("job.sh", rig.tell_pid("job"), "sleep 1000")
    rig.wait_running("job")
    if how == "removed":
        shutil.rmtree(rig.path)
    else:
        os.rename(rig.path, rig.folder / "elsewhere")
    for started in (dispatcher, idle, busy):
        ends_with_one_line(rig, started, "there is no such directory")
    wait_until(lambda: not rig.processes(), PATIENCE_SECONDS, rig.report)
    assert not rig.path.exists(), "it was made again"


def test_hired_workers_end_when_the_directory_vanishes(rig: Rig) -> None:
    with open(rig.path / "fjd.conf", "a") as conf:
        conf.write("heartbeat_seconds: 0.3\n")
    rig.hire(2)
    rig.start("dispatcher", "--stay")
    rig.drop_script("job.sh", rig.tell_pid("job"), "sleep 1000")
    rig.wait_running("job")
    shutil.rmtree(rig.path)
    wait_until(lambda: not rig.processes(), PATIENCE_SECONDS, rig.report)


def test_settings_with_a_mistake_are_refused(rig: Rig) -> None:
    for text, said in [
        ("[fjd]\nlost_secs: 3\n", "lost_secs"),
        ("[fjd]\nlost_seconds: soon\n", "lost_seconds"),
        ("[fjd]\nformat: 2\n", "format 2"),
        ("lost_seconds: 3\n", "[section]"),
    ]:
        (rig.path / "fjd.conf").write_text(text)
        for words in (("dispatcher",), ("recruiter", "hire", "--backend", "local"), ("fjd-worker",)):
            result = rig.run(*words)
            assert (result.code, result.out) == (2, "")
            assert said in result.complaint
    assert os.listdir(rig.path) == ["fjd.conf"]


def test_commands_print_a_traceback_only_when_asked(rig: Rig) -> None:
    words = ("dispatcher", "--dir", "/nonexistent")
    assert rig.run(*words).err.count("\n") == 1
    with pytest.raises(AssertionError, match="Traceback"):
        rig.run(*words, "--debug")
