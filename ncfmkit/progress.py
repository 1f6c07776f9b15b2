"""What people see while they wait: progress with time left, and notices. All of it goes to stderr.

On a terminal a live bar; elsewhere (a log file, CI) one line every half minute and one at the end.
"""

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, emoji=False)

QUIET_SECONDS = 30.0  # between two lines where no terminal shows a live bar


def notice(text: str) -> None:
    """One line that tells the user what was chosen or what happened."""
    console.print("\n".join(map(printable, text.split("\n"))), markup=False, soft_wrap=True)


class Tracker:
    """One piece of long work: `advance` as it goes, with a short note such as the loss."""

    def __init__(self, description: str, total: int, live: Progress | None):
        self.description, self.total, self.done, self.note = description, total, 0, ""
        self._live = live
        self._task = live.add_task(description, total=total, note="") if live else None
        self._start = self._said = time.monotonic()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """`count` more units are done; `note` replaces the text behind the bar."""
        self.done += count
        self.note = self.note if note is None else note
        if self._live is not None and self._task is not None:
            self._live.update(self._task, advance=count, note=self.note)
        elif time.monotonic() - self._said > QUIET_SECONDS:
            self._said = time.monotonic()
            left = (self._said - self._start) / max(self.done, 1) * (self.total - self.done)
            notice(f"{self.description}: {self.done}/{self.total}, {_clock(left)} left {self.note}".rstrip())

    def finish(self) -> None:
        seconds = time.monotonic() - self._start
        if self._live is None and seconds > 2:
            notice(f"{self.description}: {self.done}/{self.total} in {_clock(seconds)} {self.note}".rstrip())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


@contextmanager
def track(description: str, total: int) -> Iterator[Tracker]:
    """`with track("distilling", steps) as bar: ... bar.advance(note="loss 3.1")`."""
    if not console.is_terminal:
        tracker = Tracker(description, total, None)
        yield tracker
        tracker.finish()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as live:
        yield Tracker(description, total, live)


def command_line() -> str | None:
    """The running `ncfmkit ...` as one would type it; none where Python code called the library."""
    program = Path(sys.argv[0])
    ours = program.stem == "ncfmkit" or (program.name == "__main__.py" and program.parent.name == "ncfmkit")
    return shlex.join(["ncfmkit", *sys.argv[1:]]) if ours else None


def shortened_list(names: Sequence[str]) -> str:
    """The first of them, and how many there are."""
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


def printable(text: str) -> str:
    """`text` with what is not printable escaped: control sequences, broken encodings."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
