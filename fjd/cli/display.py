"""What a dispatcher shows: plain lines, or on a terminal one live line that keeps itself up to date.

Both are Listeners of fjd.dispatcher. rich is imported only for the live one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fjd.cli import complain, duration, say
from fjd.dispatcher import Picture
from fjd.errors import printable
from fjd.report import Tally

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["LiveDisplay", "PlainDisplay", "time_left"]

_REDRAW_SECONDS = 0.1
_BAR_WIDTH = 20


class PlainDisplay:
    """One line for each thing that happens."""

    def __init__(self) -> None:
        self.rejected_count = 0

    def __enter__(self) -> PlainDisplay:
        say("Dispatcher started.")
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def found(self) -> None:
        say("Found some jobs to dispatch")

    def rejected(self, filename: str, reason: str) -> None:
        self.rejected_count += 1
        complain(f"Rejected {filename}: {reason}")

    def passed(self, picture: Picture, tally: Tally) -> None:
        pass


class LiveDisplay(PlainDisplay):
    """The same lines, above one that shows how far it is."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.live import Live

        self._console = Console(highlight=False)
        # Drawn by hand after a pass: no thread that wakes up an idle dispatcher.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._next_draw = 0.0
        self._last: tuple[Picture, int] | None = None
        self._started = False

    def __enter__(self) -> LiveDisplay:
        self._say("Dispatcher started.")
        self._live.start()
        self._started = True
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def _say(self, text: str) -> None:
        self._console.print(f"[FJD] {printable(text)}", markup=False, soft_wrap=True)

    def found(self) -> None:
        # The live line says it, again and again; a scroll of it is of no use to a person.
        if self._started:
            self._started = False
            self._say("Found some jobs to dispatch")

    def rejected(self, filename: str, reason: str) -> None:
        self.rejected_count += 1
        self._say(f"Rejected {filename}: {reason}")

    def passed(self, picture: Picture, tally: Tally) -> None:
        now = time.monotonic()
        state = (picture, tally.ended)
        if now < self._next_draw or state == self._last:
            return
        self._next_draw = now + _REDRAW_SECONDS
        self._last = state
        self._live.update(_line(picture, tally, self._console.width), refresh=True)


def _line(picture: Picture, tally: Tally, width: int) -> RenderableType:
    """What is to be seen at a glance; the bar takes what the text leaves of `width` columns."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    failed = len(tally.failures)
    total = tally.ended + picture.unfinished
    text = Text.assemble(
        (f"{picture.queued + picture.assigned}", "bold"),
        " queued  ",
        (f"{picture.running}", "bold cyan"),
        " running  ",
        (f"{tally.ended - failed}", "bold green"),
        " done  ",
        (f"{failed}", "bold red" if failed else "bold"),
        " failed",
        f"  {tally.rate:.1f}/s" if tally.rate else "",
        f"  {time_left(picture, tally)} left" if tally.rate and picture.unfinished else "",
    )
    if not picture.workers:
        text.append("  no workers: recruiter hire", style="yellow")
    elif not picture.unfinished:
        text.append("  waiting for jobs")
    text.no_wrap = True
    text.overflow = "ellipsis"
    # Room for the ^C that a terminal prints at the end: it must not begin another line, which nothing would remove.
    bar_width = min(_BAR_WIDTH, width - len(" ^C") - 1 - text.cell_len)
    if bar_width <= 0:
        return text
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=max(total, 1), completed=tally.ended, width=bar_width), text)
    return grid


def time_left(picture: Picture, tally: Tally) -> str:
    """How long the unfinished jobs will take at the present rate, which must not be zero."""
    return duration(picture.unfinished / tally.rate)
