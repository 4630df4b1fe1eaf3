"""README.md: the blocks that it says run, run, and print what it shows.

A fenced `console` or `sh` block runs if the line above its fence is `<!-- runs -->`. All of them run in their order,
in one shell, in a fresh temporary directory: a tour.

Lines that begin with `$ ` are commands; `> ` directly below one continues it. Each must exit with 0, or with N where
the command ends with a comment `# exit code N`. All other lines are the output of the command above them; three dots
or more stand for any text, and a line of nothing else for any lines. A block without `$ ` is one command, whose
output is not compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from rig import REPOSITORY, Rig, need_tmux, rigs

README = REPOSITORY / "README.md"
MARK = "<!-- runs -->"
PROMPT = "$ "


class Block(NamedTuple):
    """A fenced block: the number of the line of its fence, the comment above it, and what is in it."""

    number: int
    comment: str
    lines: list[str]


class Command(NamedTuple):
    text: str
    exit_code: int
    output: list[str]


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    inside: list[str] | None = None
    above = ""
    for number, line in enumerate(text.splitlines(), 1):
        if inside is not None:
            if line.strip() == "```":
                inside = None
            else:
                inside.append(line)
        elif re.fullmatch(r"```(console|sh)\s*", line):
            inside = []
            found.append(Block(number, above, inside))
        elif line.startswith("```"):
            # Of another language: not ours, but its lines are not text either.
            inside = []
        above = line.strip()
    return found


def tour(text: str) -> list[Block]:
    """The blocks that run."""
    return [block for block in blocks(text) if block.comment == MARK]


def commands(block: Block) -> list[Command]:
    if not any(line.startswith(PROMPT) for line in block.lines):
        return [Command("\n".join(block.lines), 0, ["..."])]
    found: list[Command] = []
    for line in block.lines:
        if line.startswith(PROMPT):
            code = re.search(r"# exit code (\d+)\s*$", line)
            found.append(Command(line[len(PROMPT) :], int(code[1]) if code else 0, []))
        elif line.startswith("> ") and not found[-1].output:
            found[-1] = found[-1]._replace(text=f"{found[-1].text}\n{line[2:]}")
        else:
            found[-1].output.append(line)
    return found


def matches(wanted: list[str], got: list[str]) -> bool:
    """Whether lines are as shown."""
    pattern = ""
    for line in wanted:
        if re.fullmatch(r"\s*\.{3,}\s*", line):
            pattern += r"(?:.*\n)*"
        else:
            pattern += ".*".join(re.escape(part) for part in re.split(r"\.{3,}", line.rstrip())) + r"[ \t]*\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in got)) is not None


def run_tour(rig: Rig, shown_blocks: list[Block]) -> None:
    mark = "=====fjd-readme====="
    wanted = [(block.number, command) for block in shown_blocks for command in commands(block)]
    script = "".join(f"{command.text}\nprintf '\\n%s %s\\n' {mark} $?\n" for _, command in wanted)
    started = rig.start("bash", "-c", f"exec 2>&1\n{script}")
    assert started.wait(60).code == 0, started.report()
    parts = re.split(rf"\n?{mark} (\d+)\n", started.out)
    for (number, command), output, code in zip(wanted, parts[::2], parts[1::2], strict=False):
        where = f"README.md, block at line {number}: {command.text}"
        assert int(code) == command.exit_code, f"{where}\n{output}"
        got = output.splitlines()
        shown = "\n".join(command.output)
        assert matches(command.output, got), f"{where}\nshows\n{shown}\nand it printed\n{output}"
    assert len(parts) == 2 * len(wanted) + 1, f"not all of it ran: {started.out}"


def test_readme_shows_what_happens(tour_rig: Rig) -> None:
    shown = tour(README.read_text())
    text = "\n".join(line for block in shown for line in block.lines)
    if "hire" in text and "--backend local" not in text:
        need_tmux()
    run_tour(tour_rig, shown)


@pytest.fixture
def tour_rig(tmp_path: Path) -> Iterator[Rig]:
    """An empty directory, with the settings that everybody has."""
    yield from rigs(tmp_path, {})


def test_readme_has_blocks_that_run() -> None:
    text = README.read_text()
    if len(text.splitlines()) > 20:
        assert tour(text), f"no console or sh block with {MARK} above it"


SAMPLE = """\
text
<!-- runs -->
```console
$ cat > job.conf <<'END'
> [control]
> executable: echo hello
> END
$ mkdir jobqueue && cp job.conf jobqueue/
$ recruiter hire 1 --backend local
[FJD] Hired 1 ... on localhost.
$ dispatcher
[FJD] Dispatcher started.
...
[FJD] No more jobs to dispatch.
```
More text.
<!-- runs -->
```console
$ cat jobrecord/logs/job.*.out
hello /...running/job.....conf
$ recruiter fire
[FJD] Fired 1 worker on localhost.
$ recruiter hire x  # exit code 2
[FJD] x: not a number of workers...
```

```console
$ never run
```
"""


def test_readme_blocks_run_and_are_compared(tour_rig: Rig) -> None:
    assert len(tour(SAMPLE)) == 2
    run_tour(tour_rig, tour(SAMPLE))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("hello /", "good bye /"), ("...\n[FJD]", "[FJD]"), ("# exit code 2", ""), ("Fired 1", "Fired 2")],
)
def test_readme_blocks_fail_when_they_show_something_else(tour_rig: Rig, right: str, wrong: str) -> None:
    assert SAMPLE.count(right) == 1
    with pytest.raises(AssertionError, match=r"README\.md, block"):
        run_tour(tour_rig, tour(SAMPLE.replace(right, wrong)))


def test_dots_stand_for_anything() -> None:
    assert matches(["a...", "...", "z"], ["abc", "1", "2", "z  "])
    assert matches(["job1.....conf"], ["job1.abc.conf"])
    assert matches([], [])
    assert matches(["..."], [])
    assert not matches([], ["a"])
    assert not matches(["a"], ["b"])
