"""Guards the drop box: only a complete file of this user's is taken, and every bad input gets its reason."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lab import Clock, make_project

from fjd import intake, spool
from fjd.errors import JobFileError
from fjd.intake import Foreign, Intake, Ready, Rejected, Verdict, Waiting
from fjd.jobfile import LARGEST_BYTES, JobFile
from fjd.journal import Journal, Record
from fjd.names import JobName
from fjd.project import Project

GOOD = b"[control]\nexecutable: ./sim\n"
JOB = JobFile("./sim")
ID = "abcdef012345"
SETTLE = 2.0


class Box:
    """The drop box of a project, and what one dispatcher makes of it."""

    def __init__(self, project: Project, clock: Clock) -> None:
        self.project = project
        self.clock = clock
        self.intake = Intake(project, clock)

    def path(self, filename: str = "job.conf") -> Path:
        return Path(self.project.jobqueue, filename)

    def drop(self, data: bytes = GOOD, filename: str = "job.conf") -> Path:
        path = self.path(filename)
        path.write_bytes(data)
        return path

    def examine(self, filename: str = "job.conf") -> Verdict | None:
        return self.intake.try_examine(filename)

    def settled(self, filename: str = "job.conf") -> tuple[float, Verdict | None]:
        """How many seconds later there is a verdict, and which. Looks when it was told to, and a moment before."""
        start = self.clock()
        verdict = self.examine(filename)
        while isinstance(verdict, Waiting):
            assert verdict.seconds > 0
            self.clock.advance(verdict.seconds - 0.001)
            assert isinstance(self.examine(filename), Waiting)
            self.clock.advance(0.001 + 1e-9)
            verdict = self.examine(filename)
        return round(self.clock() - start, 3), verdict


@pytest.fixture
def box(project: Project, clock: Clock) -> Box:
    return Box(project, clock)


@pytest.fixture
def network_box(network_project: Project, clock: Clock) -> Box:
    return Box(network_project, clock)


# What is a job


def test_job_is_ready_at_once_when_nobody_is_writing_it(box: Box) -> None:
    box.drop()
    assert box.examine() == Ready(JOB)


@pytest.mark.parametrize(
    "data",
    [GOOD.rstrip(), b"\xef\xbb\xbf" + GOOD, GOOD.replace(b"\n", b"\r\n"), GOOD + b"# end\n", b"# mine\n" + GOOD],
)
def test_job_is_ready_in_every_usual_form(data: bytes, box: Box) -> None:
    box.drop(data)
    assert box.examine() == Ready(JOB)


def test_script_is_ready(box: Box) -> None:
    box.drop(b"#!/bin/sh\necho hi\n", "job.sh")
    assert box.examine("job.sh") == Ready(JobFile("", interpreter="/bin/sh"))


@pytest.mark.parametrize(
    "filename",
    [
        "two words.conf",
        "new\nline.conf",
        "'quotes\" $(x) `y` ;|&",
        "-rf",
        "*?[a]",
        "\\",
        "a\x1b[31mb\x07",
        "日本語.conf",
        "no\udcff\udcfetext.conf",
        "x" * 250 + ".conf",
        "x" * 255,
        "alive",
        "running",
        f"kept.{ID}.conf",
    ],
)
def test_job_is_ready_and_can_go_all_the_way_when_its_name_is_odd(filename: str, box: Box) -> None:
    box.drop(filename=filename)
    assert box.examine(filename) == Ready(JOB)
    slot = Path(box.project.workerqueue, "vm-1.k3f9")
    slot.mkdir()
    job = box.intake.name_for(filename, {})
    # Through all the names that it may ever have: in a slot, with its logs, as a later attempt, with a reason.
    for name in (job, job.next, job._replace(attempt=999_999)):
        assert JobName.parse(name.filename) == name
        (slot / name.filename).write_text("")
        (slot / f"{name.stem}.out").write_text("")
        (slot / f"{name.filename}.reason").write_text("")
    assert set(spool.assigned(str(slot))) >= {job.filename, job.next.filename}


def test_file_is_none_when_it_is_gone(box: Box) -> None:
    assert box.examine() is None


# What is not a job: after it lay unchanged for a while, since who writes in several goes closes in between.


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello\n", "not an INI file"),
        (b"[params]\nx: 1\n", "no [control] section"),
        (b"[control]\n", "no executable in [control] (line 1)"),
        (bytes(range(256)), "binary data, not a job file"),
        ("[control]\nexecutable: x\n".encode("utf-16"), "binary data, not a job file"),
        (b"[control]\nexecutabel: x\n", "unknown key in [control]: 'executabel'; did you mean executable?"),
        (GOOD + b"executable: y\n", "line 3: executable is there twice"),
        (GOOD + GOOD, "line 3: [control], but line 1 began that section already"),
        (GOOD + b"[fjd]\n", "line 3: [fjd], but line 1 began that section already"),
        (GOOD + b"nice: 20\n", "nice: '20' (a whole number from 0 to 19)"),
    ],
)
def test_file_is_rejected_with_the_reason_when_it_is(data: bytes, reason: str, box: Box) -> None:
    box.drop(data)
    seconds, verdict = box.settled()
    assert seconds == SETTLE
    assert isinstance(verdict, Rejected)
    assert verdict.reason.startswith(reason)
    assert verdict.reason.isprintable()


def test_file_is_rejected_when_it_is_too_large(box: Box) -> None:
    path = box.drop(GOOD)
    os.truncate(path, LARGEST_BYTES + 1)
    assert box.settled() == (SETTLE, Rejected("larger than 16 MiB (put the data into a file of its own)"))


def test_file_of_100_mb_is_not_read_whole(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    path = box.drop(GOOD)
    os.truncate(path, 100_000_000)
    sizes = []
    real_read = os.read

    def read_and_note(fd: int, size: int) -> bytes:
        sizes.append(size)
        return real_read(fd, size)

    monkeypatch.setattr(os, "read", read_and_note)
    assert isinstance(box.settled()[1], Rejected)
    assert max(sizes) <= LARGEST_BYTES + 1


def test_job_is_ready_when_it_is_as_large_as_may_be(box: Box) -> None:
    data = GOOD + b"[data]\n"
    box.drop(data + b"#" * (LARGEST_BYTES - len(data)))
    assert box.examine() == Ready(JOB)


def test_file_is_rejected_when_it_stays_empty(box: Box) -> None:
    box.drop(b"")
    assert box.settled() == (5 * SETTLE, Rejected("the file is empty"))


def test_folder_is_rejected(box: Box) -> None:
    box.path().mkdir()
    assert box.settled() == (SETTLE, Rejected("a directory, not a file"))


def test_pipe_is_rejected_and_not_waited_for(box: Box) -> None:
    os.mkfifo(box.path())
    assert box.settled() == (SETTLE, Rejected("a named pipe, not a file"))


def test_socket_is_rejected(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    # A socket's path must be short.
    monkeypatch.chdir(box.project.jobqueue)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("job.conf")
    assert box.settled() == (SETTLE, Rejected("a socket, not a file"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a device")
def test_device_is_rejected(box: Box) -> None:
    os.mknod(box.path(), 0o600 | 0o020000, os.makedev(1, 3))
    assert box.settled() == (SETTLE, Rejected("a device, not a file"))


@pytest.mark.parametrize("target", ["/nowhere", "job.conf", "/etc/passwd"])
def test_link_is_rejected_wherever_it_leads(target: str, box: Box) -> None:
    box.path().symlink_to(target)
    reason = "a symbolic link, not a file (copy the job file itself into jobqueue/)"
    assert box.settled() == (SETTLE, Rejected(reason))


def test_file_is_rejected_when_its_owner_may_not_read_it(plain_user: Path, clock: Clock) -> None:
    box = Box(make_project(plain_user / "project", filesystem="local"), clock)
    box.drop().chmod(0)
    # Its writer may be about to chmod it.
    assert box.settled() == (SETTLE, Rejected("cannot be read: permission denied (chmod u+r)"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("data", [GOOD, b"", b"rubbish"])
def test_file_of_another_user_is_left_alone_whatever_is_in_it(data: bytes, box: Box) -> None:
    os.chown(box.drop(data), 4242, 4242)
    assert box.examine() == Foreign(4242)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_link_of_another_user_is_left_alone(box: Box) -> None:
    box.path().symlink_to("/nowhere")
    os.chown(box.path(), 4242, 4242, follow_symlinks=False)
    assert box.examine() == Foreign(4242)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of two users")
def test_closed_file_of_another_user_is_left_alone(plain_user: Path, clock: Clock) -> None:
    box = Box(make_project(plain_user / "project", filesystem="local"), clock)
    os.seteuid(0)
    box.drop().chmod(0)
    os.seteuid(os.getuid())
    assert box.examine() == Foreign(0)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_file_waits_when_the_disk_is_in_trouble(number: int, box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> tuple[int, os.stat_result]:
        raise OSError(number, "trouble")

    box.drop()
    with monkeypatch.context() as patched:
        patched.setattr(intake, "open_job", fail)
        verdict = box.examine()
    assert isinstance(verdict, Waiting)
    assert verdict.seconds > 0
    assert box.examine() == Ready(JOB)


def test_file_is_none_when_it_is_gone_before_anybody_can_say_what_it_was(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> tuple[int, os.stat_result]:
        raise OSError(errno.ESTALE, "stale")

    monkeypatch.setattr(intake, "open_job", fail)
    assert box.examine() is None


# Half-written files


def test_file_waits_while_somebody_has_it_open_to_write(box: Box) -> None:
    with open(box.path(), "wb") as file:
        file.write(GOOD)
        file.flush()
        assert box.examine() == Waiting(0.25, has_writer=True)
        box.clock.advance(3600)
        assert box.examine() == Waiting(0.25, has_writer=True)
    assert box.examine() == Ready(JOB)


def test_file_is_not_held_by_those_who_only_read_it(box: Box) -> None:
    with open(box.drop(), "rb"):
        assert box.examine() == Ready(JOB)


def test_bad_file_starts_to_settle_again_when_it_is_written_on(box: Box) -> None:
    box.drop(b"[control]\n")
    assert box.examine() == Waiting(SETTLE)
    box.clock.advance(1.5)
    assert box.examine() == Waiting(0.5)
    box.drop(b"[control]\nlogfile: x\n")
    assert box.examine() == Waiting(SETTLE)
    box.drop(b"[control]\nlogfile: x\nexecutable: ./sim\n")
    assert box.examine() == Ready(JobFile("./sim", logfile="x"))


def test_bad_file_starts_to_settle_again_when_another_takes_its_name(box: Box) -> None:
    box.drop(b"[control]\n")
    box.examine()
    box.clock.advance(1.9)
    other = box.drop(b"[control]\n", "other")
    other.rename(box.path())
    assert box.examine() == Waiting(SETTLE)


def test_intake_keeps_nothing_of_files_that_are_decided_or_gone(box: Box) -> None:
    box.drop(b"[control]\n", "bad")
    box.drop(b"[control]\n", "gone")
    for filename in ("bad", "gone"):
        box.examine(filename)
    assert box.intake._looks.keys() == {"bad", "gone"}
    box.intake.forget_others({"bad"})
    assert box.intake._looks.keys() == {"bad"}
    box.settled("bad")
    assert not box.intake._looks


# On a network filesystem nobody sees who is writing elsewhere


def test_job_on_a_network_filesystem_is_ready_when_it_lay_unchanged(network_box: Box) -> None:
    network_box.drop()
    assert network_box.settled() == (SETTLE, Ready(JOB))


def test_job_on_a_network_filesystem_lies_longer_when_it_does_not_end_in_a_newline(network_box: Box) -> None:
    network_box.drop(GOOD.rstrip())
    assert network_box.settled() == (10 * SETTLE, Ready(JOB))


@pytest.mark.parametrize("end", [b"# end\n", b"# end", b"# end  \n\n", b"\r\n# end\r\n"])
def test_job_on_a_network_filesystem_is_ready_at_once_when_it_says_where_it_ends(end: bytes, network_box: Box) -> None:
    network_box.drop(GOOD + end)
    assert network_box.examine() == Ready(JOB)


@pytest.mark.parametrize("end", [b"# ended\n", b"#end\n", b"x: # end\n", b"# end\n[more]\n"])
def test_job_on_a_network_filesystem_must_settle_when_the_end_mark_is_not_a_last_line(
    end: bytes, network_box: Box
) -> None:
    network_box.drop(GOOD + b"[data]\n" + end)
    assert network_box.settled() == (SETTLE, Ready(JOB))


def test_file_on_a_network_filesystem_lies_ten_times_as_long_before_it_is_rejected(network_box: Box) -> None:
    network_box.drop(b"[control]\n")
    seconds, verdict = network_box.settled()
    assert seconds == 10 * SETTLE
    assert isinstance(verdict, Rejected)


def test_job_on_a_network_filesystem_starts_to_settle_again_when_it_grows(network_box: Box) -> None:
    network_box.drop()
    assert network_box.examine() == Waiting(SETTLE)
    network_box.clock.advance(1.9)
    network_box.drop(GOOD + b"name: x\n")
    assert network_box.settled() == (SETTLE, Ready(JobFile("./sim", name="x")))


def test_job_on_a_network_filesystem_waits_for_a_writer_on_this_host(network_box: Box) -> None:
    with open(network_box.path(), "wb") as file:
        file.write(GOOD + b"# end\n")
        file.flush()
        assert network_box.examine() == Waiting(0.25, has_writer=True)


def test_job_must_settle_when_a_local_filesystem_has_no_leases(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_leases(fd: int, command: int, argument: int) -> int:
        raise OSError(errno.EINVAL, "no leases")

    monkeypatch.setattr(fcntl, "fcntl", no_leases)
    box.drop()
    assert box.settled() == (SETTLE, Ready(JOB))


def test_settle_time_is_a_setting(tmp_path: Path, clock: Clock) -> None:
    box = Box(make_project(tmp_path / "p", filesystem="network", settle_seconds=0.5), clock)
    box.drop()
    assert box.settled() == (0.5, Ready(JOB))


# Reading an opened file


def test_open_job_leaves_no_descriptor_when_fstat_fails(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> os.stat_result:
        raise OSError(errno.EIO, "trouble")

    box.drop()
    # The check for leaks does the rest.
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", fail)
        with pytest.raises(OSError, match="trouble"):
            intake.open_job(str(box.path()))


def test_open_job_gives_no_descriptor_to_children(box: Box) -> None:
    fd, found = intake.open_job(str(box.drop()))
    assert not os.get_inheritable(fd)
    assert found.st_size == len(GOOD)
    os.close(fd)


def test_read_job_gives_the_job_and_its_text(box: Box) -> None:
    fd, _ = intake.open_job(str(box.drop()))
    assert intake.read_job(fd, "job.conf") == (JOB, GOOD)
    os.close(fd)


def test_read_job_raises_when_it_is_no_job(box: Box) -> None:
    fd, _ = intake.open_job(str(box.drop(b"rubbish")))
    with pytest.raises(JobFileError):
        intake.read_job(fd, "job.conf")
    os.close(fd)


# The name under which a file is assigned


@pytest.fixture
def record(box: Box) -> Iterator[Callable[..., None]]:
    """Writes that an attempt of ID ended, into the journal of some worker."""
    journal = Journal(box.project.journal, "vm-1.k3f9", durable=False)

    def append(attempt: int, outcome: str = "failed") -> None:
        name = f"job.{ID}.conf"
        journal.append(Record("job", ID, attempt, name, "vm-1.k3f9", "vm-1", "./sim", outcome))

    yield append
    journal.close()


FIRST = f"job.{ID}.conf"
SECOND = f"job.{ID}~2.conf"
THIRD = f"job.{ID}~3.conf"


def test_name_for_gives_an_id_to_a_new_file(box: Box) -> None:
    job = box.intake.name_for("job.conf", {})
    assert (job.name, job.attempt, job.ending) == ("job", 1, ".conf")
    assert job.id
    assert box.intake.name_for("job.conf", {}).id != job.id


def test_name_for_keeps_the_id_of_a_submitted_file(box: Box) -> None:
    box.drop(filename=FIRST)
    assert box.intake.name_for(FIRST, {}).filename == FIRST


def test_name_for_keeps_the_attempt_of_a_job_that_went_round(box: Box, record: Callable[..., None]) -> None:
    record(1, "lost")
    box.drop(filename=SECOND)
    assert box.intake.name_for(SECOND, {}).filename == SECOND


@pytest.mark.parametrize("filename", [FIRST, SECOND])
def test_name_for_gives_the_next_number_to_a_job_that_was_moved_back(
    filename: str, box: Box, record: Callable[..., None]
) -> None:
    """`mv failed/J jobqueue/`: an attempt number is used once."""
    record(1)
    record(2)
    box.drop(filename=filename)
    assert box.intake.name_for(filename, {}).filename == THIRD


def test_name_for_sees_what_was_recorded_since_it_was_last_asked(box: Box, record: Callable[..., None]) -> None:
    record(1)
    assert box.intake.name_for(FIRST, {}).filename == SECOND
    record(2)
    assert box.intake.name_for(FIRST, {}).filename == THIRD


def assert_copy(job: JobName) -> None:
    assert (job.name, job.attempt, job.ending) == ("job", 1, ".conf")
    assert job.id not in ("", ID)


@pytest.mark.parametrize("state", ["done", "failed", "held"])
def test_name_for_gives_a_copy_its_own_id_when_the_other_is_in(
    state: str, box: Box, record: Callable[..., None]
) -> None:
    record(1)
    Path(box.project.jobrecord, state, FIRST).write_text("")
    assert_copy(box.intake.name_for(FIRST, {}))


def test_name_for_gives_a_copy_its_own_id_when_an_earlier_attempt_lies_in_failed(
    box: Box, record: Callable[..., None]
) -> None:
    record(1)
    record(2)
    Path(box.project.failed, SECOND).write_text("")
    for filename in (FIRST, SECOND, THIRD):
        assert_copy(box.intake.name_for(filename, {}))


@pytest.mark.parametrize("filename", [SECOND, FIRST])
def test_name_for_gives_a_copy_its_own_id_when_the_other_is_held_as_its_next_attempt(
    filename: str, box: Box, record: Callable[..., None]
) -> None:
    record(1, "lost")
    Path(box.project.held, SECOND).write_text("")
    assert_copy(box.intake.name_for(filename, {}))


def test_name_for_gives_a_copy_its_own_id_when_the_other_is_held_and_was_never_tried(box: Box) -> None:
    Path(box.project.held, FIRST).write_text("")
    assert_copy(box.intake.name_for(FIRST, {}))


@pytest.mark.parametrize("inside", ["", "running/"])
def test_name_for_gives_a_copy_its_own_id_when_the_other_is_in_a_slot(inside: str, box: Box) -> None:
    slot = Path(box.project.workerqueue, "vm-1.k3f9")
    (slot / "running").mkdir(parents=True)
    (slot / f"{inside}{FIRST}").write_text("")
    assert_copy(box.intake.name_for(FIRST, {ID: str(slot)}))


def test_name_for_gives_a_copy_its_own_id_when_the_other_is_in_a_slot_as_a_later_attempt(
    box: Box, record: Callable[..., None]
) -> None:
    record(1, "lost")
    slot = Path(box.project.workerqueue, "vm-1.k3f9")
    (slot / "running").mkdir(parents=True)
    (slot / "running" / SECOND).write_text("")
    assert_copy(box.intake.name_for(FIRST, {ID: str(slot)}))


def test_name_for_gives_a_copy_its_own_id_when_it_was_given_another_name(box: Box, record: Callable[..., None]) -> None:
    record(1)
    Path(box.project.failed, FIRST).write_text("")
    job = box.intake.name_for(f"other.{ID}.conf", {})
    assert (job.name, job.attempt) == ("other", 1)
    assert job.id not in ("", ID)


def test_name_for_gives_a_copy_its_own_id_when_the_other_was_renamed_too(box: Box, record: Callable[..., None]) -> None:
    record(1)
    Path(box.project.held, f"other.{ID}.conf").write_text("")
    assert box.intake.name_for(f"other.{ID}.conf", {}).id not in ("", ID)


def test_name_for_keeps_the_id_of_a_job_that_was_moved_back_under_another_name(
    box: Box, record: Callable[..., None]
) -> None:
    record(1)
    assert box.intake.name_for(f"other.{ID}.conf", {}).filename == f"other.{ID}~2.conf"


def test_name_for_keeps_an_attempt_that_is_later_than_what_was_recorded(box: Box, record: Callable[..., None]) -> None:
    """The records of lost attempts are for people: a full disk may have swallowed them."""
    record(1)
    assert box.intake.name_for(f"job.{ID}~5.conf", {}).filename == f"job.{ID}~5.conf"
    Path(box.project.held, f"job.{ID}~5.conf").write_text("")
    assert_copy(box.intake.name_for(f"job.{ID}~5.conf", {}))


def test_name_for_keeps_the_id_of_a_job_that_came_back_from_its_slot_just_now(box: Box) -> None:
    slot = Path(box.project.workerqueue, "vm-1.k3f9")
    (slot / "running").mkdir(parents=True)
    assert box.intake.name_for(FIRST, {ID: str(slot)}).filename == FIRST


def test_name_for_looks_at_few_names_when_an_attempt_is_large(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that a stranger wrote into a name must not cost a look at each number below it."""
    looks = []

    def look(path: str) -> bool:
        looks.append(path)
        return False

    monkeypatch.setattr("fjd.disk.exists", look)
    name = f"job.{ID}~999999.conf"
    assert box.intake.name_for(name, {}).filename == name
    assert len(looks) < 10


@given(st.binary(min_size=1, max_size=255).map(lambda name: os.fsdecode(name.replace(b"/", b"_").replace(b"\0", b"_"))))
def test_name_for_makes_names_that_fit_for_any_file(filename: str) -> None:
    _assert_fits(filename)


@pytest.mark.parametrize("length", range(190, 238))
def test_name_for_makes_names_that_fit_when_a_name_with_an_id_is_long(length: int) -> None:
    _assert_fits(f"{'x' * length}.{ID}.conf")


def _assert_fits(filename: str) -> None:
    # Not the fixture: hypothesis would use one for all examples. No file is made here.
    job = Intake(Project("/nonexistent"), Clock()).name_for(filename, {})
    assert job.id
    assert JobName.parse(job.filename) == job
    assert len(os.fsencode(job._replace(attempt=999_999).filename + ".reason")) <= 255
