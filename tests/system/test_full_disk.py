"""A full disk: nothing is lost, it is said once, and everything goes on when there is space again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rig import PATIENCE_SECONDS, Rig, lacking, rigs, stays_so, wait_until

SIZE = 4_000_000


@pytest.fixture(params=["tmpfs", "ext4"])
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A project on a disk of 4 MB."""
    kind = request.param
    if os.getuid() != 0:
        lacking("only root can mount a small disk")
    point = tmp_path / "project"
    for rig in rigs(tmp_path, {}):
        words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=700", "fjd-test", str(point)]
        if kind == "ext4":
            if shutil.which("mkfs.ext4") is None:
                lacking("mkfs.ext4 is not installed: apt install e2fsprogs")
            image = tmp_path / "image"
            with open(image, "wb") as file:
                file.truncate(SIZE)
            # No reserved blocks, or root would go on where others cannot; no journal, which would fill it.
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True)
            words = ["mount", "-o", "loop", str(image), str(point)]
        mounted = subprocess.run(words, capture_output=True, text=True, check=False)
        if mounted.returncode != 0:
            lacking(f"cannot mount a small disk here: {mounted.stderr.strip()}")
        try:
            (point / "fjd.conf").write_text("[fjd]\ngrace_seconds: 0.5\nsettle_seconds: 0.2\n")
            yield rig
        finally:
            # What still works there keeps it busy.
            rig.close()
            subprocess.run(["umount", str(point)], check=True)


def fill(folder: Path) -> Path:
    """Leave no byte free."""
    path = folder / "filler"
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
    return path


def complaints(text: str) -> list[str]:
    return [line for line in text.splitlines() if "space" in line or "full" in line]


def test_worker_keeps_its_outcome_while_the_disk_is_full(small: Rig) -> None:
    dispatcher = small.start("dispatcher")
    worker = small.start("fjd-worker", "--name", "w")
    wait_until(small.slots, PATIENCE_SECONDS, small.report)
    runs = small.flag("runs")
    small.drop_script(
        "job.sh", f"echo >>{runs}", small.tell_pid("job"), small.await_flag(small.flag("go")), "seq 30000", "exit 3"
    )
    small.drop_command("next.conf", "true")
    small.wait_running("job")
    filler = fill(small.path)
    small.flag("go").touch()
    wait_until(lambda: complaints(worker.out + worker.err), PATIENCE_SECONDS, small.report)
    # It must not give up, nor say it again every second.
    stays_so(lambda: worker.process.poll() is None and dispatcher.process.poll() is None, 2.2, small.report)
    said = complaints(worker.out)
    assert len(said) <= 2, f"not once for each thing that waits: {said}"
    assert worker.err == ""
    assert small.record("failed") == small.record("done") == []
    filler.unlink()
    result = dispatcher.wait()
    assert result.code == 1, small.report()
    assert len(complaints(result.err)) <= 1
    assert runs.read_text() == "\n", "it ran twice"
    assert small.outcome("job")["exit_code"] == 3
    assert small.output("job") == "".join(f"{n}\n" for n in range(1, 30001)).encode()
    assert small.outcome("next")["outcome"] == "succeeded"
    assert small.run("recruiter", "fire").code == 0
    assert worker.wait().code == 0
    small.check(drained=True)


def test_commands_say_one_line_when_the_disk_is_full(small: Rig) -> None:
    filler = fill(small.path)
    result = small.run("fjd", "submit", str(small.folder / "nonexistent"))
    assert result.code == 2
    job = small.folder / "job.conf"
    job.write_text("[control]\nexecutable: true\n[params]\n" + "# x\n" * 5000)
    result = small.run("fjd", "submit", str(job))
    assert result.code == 75, result
    assert complaints(result.complaint)
    filler.unlink()
    assert small.queued() == []
    assert small.run("fjd", "submit", str(job)).code == 0
    drafts = [name for name in os.listdir(small.path / "jobqueue") if name[0] == "."]
    assert drafts == []
