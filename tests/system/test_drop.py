"""Job files that come in every way people and programs have: only the complete file is taken, unchanged."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig import PATIENCE_SECONDS, Rig, lacking, rigs, stays_so, wait_until

# Complete only with its last line: what comes before is a valid job, too.
HALF = "[control]\nexecutable: sh -c 'nice; echo half or whole'\n# é\n"
WHOLE = HALF + "nice: 7\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """One project with idle workers and a dispatcher, for all of these tests."""
    for rig in rigs(tmp_path_factory.mktemp("drop")):
        rig.hire(2)
        rig.dispatcher()
        yield rig
        rig.check()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.conf"
    path.write_text(WHOLE)
    return path


def check_ran(rig: Rig, name: str, data: str = WHOLE) -> None:
    record = rig.wait_done(name.removesuffix(".conf"))
    rig.submitted[name] = data.encode()
    assert record["outcome"] == "succeeded"
    assert rig.output(record["job"]) == b"7\nhalf or whole\n"
    assert (rig.path / "jobrecord/done" / record["file"]).read_text() == data


def test_job_is_taken_when_it_was_copied(shared: Rig, source: Path) -> None:
    subprocess.run(["cp", source, shared.path / "jobqueue/cp.conf"], check=True)
    check_ran(shared, "cp.conf")


def test_job_is_taken_when_it_was_moved(shared: Rig, source: Path) -> None:
    subprocess.run(["mv", source, shared.path / "jobqueue/mv.conf"], check=True)
    check_ran(shared, "mv.conf")


def test_job_is_taken_when_it_was_moved_from_another_filesystem(shared: Rig, source: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or os.stat(other).st_dev == os.stat(shared.path).st_dev:
        lacking("no second filesystem at /dev/shm")
    elsewhere = other / f"{os.path.basename(shared.tmux_folder)}.conf"
    shutil.copy(source, elsewhere)
    subprocess.run(["mv", elsewhere, shared.path / "jobqueue/mv-other.conf"], check=True)
    check_ran(shared, "mv-other.conf")


def test_job_is_taken_when_its_pipe_ended(shared: Rig) -> None:
    script = f"(printf '%s' \"$1\"; sleep 2; printf 'nice: 7\\n') | cat >{shared.path}/jobqueue/pipe.conf"
    writer = subprocess.Popen(["sh", "-c", script, "sh", HALF])
    try:
        wait_until(lambda: "pipe.conf" in shared.queued(), PATIENCE_SECONDS, shared.report)
        stays_so(lambda: writer.poll() is not None or "pipe.conf" in shared.queued(), 1.8, shared.report)
    finally:
        writer.wait()
    check_ran(shared, "pipe.conf")


def test_job_is_taken_when_rsync_brought_it(shared: Rig, source: Path) -> None:
    if shutil.which("rsync"):
        subprocess.run(["rsync", "-t", source, shared.path / "jobqueue/rsync.conf"], check=True)
    else:
        # What rsync does: a dot-file with a random ending beside it, then a rename.
        draft = shared.path / "jobqueue/.rsync.conf.Xa3kPq"
        with open(draft, "w") as file:
            file.write(HALF)
            file.flush()
            stays_so(lambda: draft.exists() and "rsync.conf" not in shared.queued(), 0.4, shared.report)
            file.write("nice: 7\n")
        os.rename(draft, shared.path / "jobqueue/rsync.conf")
    check_ran(shared, "rsync.conf")


def test_job_is_taken_when_an_editor_renamed_its_draft(shared: Rig, source: Path) -> None:
    for draft in ("editor.conf.tmp", "editor.conf~", ".#editor.conf", "editor.conf.swp", "editor.conf.part"):
        shutil.copy(source, shared.path / "jobqueue" / draft)
    stays_so(lambda: len(shared.queued()) == 4, 0.4, shared.report)
    os.rename(shared.path / "jobqueue/editor.conf.tmp", shared.path / "jobqueue/editor.conf")
    check_ran(shared, "editor.conf")
    for draft in ("editor.conf~", ".#editor.conf", "editor.conf.swp", "editor.conf.part"):
        os.unlink(shared.path / "jobqueue" / draft)


def test_job_is_taken_when_vim_wrote_it(shared: Rig) -> None:
    if shutil.which("vim") is None:
        lacking("vim is not installed: apt install vim")
    # Vim has its own way to quote a text.
    text = WHOLE.replace("'", '"')
    commands = [f"call append(line('$')-1, '{line}')" for line in text.splitlines()]
    path = shared.path / "jobqueue/vim.conf"
    words = ["vim", "-es", "-u", "NONE", "-N", "--cmd", "set encoding=utf-8"]
    words += [word for command in (*commands, "$d", "wq") for word in ("-c", command)]
    environment = {**os.environ, "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    subprocess.run(
        [*words, str(path)], stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=30, check=False
    )
    record = shared.wait_done("vim")
    shared.submitted["vim.conf"] = text.encode()
    assert (shared.path / "jobrecord/done" / record["file"]).read_text() == text


def test_job_of_several_megabytes_stays_byte_for_byte_the_same(shared: Rig) -> None:
    big = WHOLE + "[params]\n" + "".join(f"# {n} {'x' * 90}\r\n" for n in range(50_000))
    (shared.folder / "big.conf").write_bytes(big.encode())
    subprocess.run(["cp", shared.folder / "big.conf", shared.path / "jobqueue/big.conf"], check=True)
    record = shared.wait_done("big")
    shared.submitted["big.conf"] = big.encode()
    assert (shared.path / "jobrecord/done" / record["file"]).read_bytes() == big.encode()


def test_job_is_neither_taken_nor_rejected_while_an_editor_rewrites_it(rig: Rig) -> None:
    rig.dispatcher()
    path = rig.path / "jobqueue/job.conf"
    path.write_text(HALF)
    for _ in range(5):
        # As vim does where it must keep the inode: truncate, write, close.
        with open(path, "w") as file:
            file.flush()
            stays_so(lambda: "job.conf" in rig.queued(), 0.1, rig.report)
            file.write(HALF)
            file.flush()
            stays_so(lambda: "job.conf" in rig.queued(), 0.1, rig.report)
            file.write("nice: 7\n")
        # As emacs and sed -i do: a new file over the old name.
        draft = rig.path / "jobqueue/.job.conf.new"
        draft.write_text(WHOLE)
        os.rename(draft, path)
    with open(path, "w") as file:
        file.write(HALF)
        file.flush()
        # Now there is a worker that would take it.
        rig.hire(1)
        stays_so(lambda: rig.queued() == ["job.conf"], 0.5, rig.report)
        file.write("nice: 7\n")
    check_ran(rig, "job.conf")
    assert rig.record("rejected") == []


def test_jobs_of_one_name_are_two_jobs(shared: Rig) -> None:
    for n in range(3):
        data = f"#!/bin/sh\n# {n}\necho twin {n}\n"
        draft = shared.path / "jobqueue/.twin"
        draft.write_text(data)
        wait_until(lambda: "twin.sh" not in shared.queued(), PATIENCE_SECONDS, shared.report)
        os.rename(draft, shared.path / "jobqueue/twin.sh")
    wait_until(
        lambda: len([n for n in shared.record("done") if n.startswith("twin.")]) == 3, PATIENCE_SECONDS, shared.report
    )
    said = {shared.log_path(record).read_text() for record in shared.outcomes("twin")}
    assert said == {"twin 0\n", "twin 1\n", "twin 2\n"}


def test_submit_prints_the_name_that_a_job_has(shared: Rig, source: Path) -> None:
    result = shared.run("fjd", "submit", str(source))
    assert (result.code, result.err) == (0, "")
    filename = result.out.strip()
    wait_until(lambda: filename in shared.record("done"), PATIENCE_SECONDS, shared.report)
    shared.submitted[filename] = WHOLE.encode()
    assert (shared.path / "jobrecord/done" / filename).read_text() == WHOLE


def test_jobs_start_quickly_on_an_idle_worker(shared: Rig) -> None:
    delays = []
    for n in range(10):
        times = shared.folder / f"time{n}"
        shared.drop_script(f"quick{n}.sh", f"date +%s.%N >{times}")
        dropped = os.stat(shared.path / "jobqueue").st_mtime
        shared.wait_done(f"quick{n}")
        delays.append(float(times.read_text()) - dropped)
    median = sorted(delays)[len(delays) // 2]
    print(f"dropped to running: {1000 * median:.1f} ms (median of {len(delays)})")
    # bench/ measures it; here it only must not be a matter of polling.
    assert median < 0.2
