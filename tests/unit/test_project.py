"""Guards which directory fjd works in, what it makes there, and the one clear line when it cannot."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from lab import make_project

from fjd import project as projects
from fjd.errors import ProjectError, UsageError
from fjd.project import Project, locate


def test_prepare_makes_every_folder_for_its_owner_only(tmp_path: Path) -> None:
    project = Project(str(tmp_path))
    project.prepare()
    found = {f"{tmp_path}/{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*")}
    assert found == set(project.folders)
    assert {stat.S_IMODE(os.stat(folder).st_mode) for folder in project.folders} == {0o700}


def test_prepare_changes_nothing_when_all_is_there(project: Project) -> None:
    os.chmod(project.jobqueue, 0o770)
    Path(project.jobqueue, "job.conf").write_text("x")
    project.prepare()
    assert stat.S_IMODE(os.stat(project.jobqueue).st_mode) == 0o770
    assert os.listdir(project.jobqueue) == ["job.conf"]


def test_prepare_makes_what_is_missing(project: Project) -> None:
    os.rmdir(project.held)
    project.prepare()
    assert os.path.isdir(project.held)


def test_prepare_refuses_when_the_directory_is_gone(tmp_path: Path) -> None:
    project = Project(str(tmp_path / "gone"))
    with pytest.raises(ProjectError, match=r"gone: there is no such directory \(make it, or name another with --dir\)"):
        project.prepare()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_prepare_refuses_when_the_directory_is_another_users(tmp_path: Path) -> None:
    os.chown(tmp_path, 4242, 4242)
    with pytest.raises(ProjectError, match=r"belongs to another user \(uid 4242\)"):
        Project(str(tmp_path)).prepare()
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_prepare_works_when_another_user_opened_the_directory_to_a_group(tmp_path: Path) -> None:
    os.chown(tmp_path, 4242, 4242)
    os.chmod(tmp_path, 0o770)
    Project(str(tmp_path)).prepare()
    assert os.path.isdir(tmp_path / "jobqueue")


def test_prepare_refuses_when_the_directory_cannot_be_written(plain_user: Path) -> None:
    os.chmod(plain_user, 0o500)
    with pytest.raises(ProjectError, match=r"permission denied \(fjd needs a directory that you can write to\)"):
        Project(str(plain_user)).prepare()
    os.chmod(plain_user, 0o700)


def test_check_is_content_when_the_project_is_whole(project: Project) -> None:
    project.check()


def test_check_names_the_folder_that_is_gone(project: Project) -> None:
    os.rmdir(project.logs)
    with pytest.raises(ProjectError, match="logs: there is no such directory"):
        project.check()


def test_check_names_the_folder_that_cannot_be_written(plain_user: Path) -> None:
    project = make_project(plain_user / "project")
    os.chmod(project.done, 0o500)
    with pytest.raises(ProjectError, match="done: permission denied"):
        project.check()


def test_paths_are_those_of_the_design(tmp_path: Path) -> None:
    project = Project(str(tmp_path))
    assert [os.path.relpath(folder, tmp_path) for folder in project.folders] == [
        "jobqueue",
        "workerqueue",
        "jobrecord",
        "jobrecord/done",
        "jobrecord/failed",
        "jobrecord/held",
        "jobrecord/rejected",
        "jobrecord/journal",
        "jobrecord/logs",
    ]
    assert project.worker_log("vm-1.k3f9") == f"{tmp_path}/jobrecord/logs/vm-1.k3f9.log"


def test_project_reads_its_settings_and_filesystem(tmp_path: Path) -> None:
    project = make_project(tmp_path / "p", filesystem="network", max_lost=9)
    assert project.settings.max_lost == 9
    assert not project.filesystem.is_local


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with nothing in it, which is also the current one; and no $FJD_DIR."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("FJD_DIR", raising=False)
    monkeypatch.chdir(folder)
    return folder


def test_locate_takes_the_current_directory_when_nothing_is_said(home: Path) -> None:
    assert locate().path == str(home)


def test_locate_takes_the_environment_before_the_current_directory(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FJD_DIR", str(tmp_path))
    assert locate().path == str(tmp_path)


def test_locate_takes_the_option_before_the_environment(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FJD_DIR", "/nowhere")
    assert locate(directory="..").path == str(tmp_path)


def test_locate_makes_a_named_project_in_the_home_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FJD_DIR", "/nowhere")
    project = locate(name="night run")
    assert project.path == str(home / ".fjd" / "night run")
    assert stat.S_IMODE(os.stat(home / ".fjd").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(project.path).st_mode) == 0o700
    assert locate(name="night run").path == project.path


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/etc"])
def test_locate_refuses_a_name_that_leaves_the_home_directory(name: str, home: Path) -> None:
    with pytest.raises(UsageError, match="not a project name"):
        locate(name=name)
    assert os.listdir(home) == []


def test_locate_refuses_both_options_at_once(home: Path) -> None:
    with pytest.raises(UsageError, match="--dir and --project exclude each other"):
        locate(directory="x", name="y")


def test_locate_names_the_directory_that_is_not_there(home: Path) -> None:
    with pytest.raises(ProjectError, match="/no/such: there is no such directory"):
        locate(directory="/no/such")


def test_locate_names_what_is_not_a_directory(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(ProjectError, match=r"home/file: is not a directory \(name another with --dir\)"):
        locate(directory="file")


def test_locate_says_so_when_the_current_directory_is_gone(home: Path) -> None:
    home.rmdir()
    with pytest.raises(ProjectError, match="the current directory: there is no such directory"):
        locate()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOENT, "there is no such directory"),
        (errno.EROFS, "is on a read-only filesystem"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "your quota is used up"),
        (errno.ESTALE, "its file server has forgotten it"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_trouble_says_in_words_what_the_error_means(number: int, reason: str) -> None:
    error = projects.trouble("/p", OSError(number, os.strerror(number)))
    assert (error.path, error.reason) == ("/p", reason)


def test_trouble_says_something_when_the_error_has_no_number() -> None:
    assert projects.trouble("/p", OSError("odd")).reason == "odd"
