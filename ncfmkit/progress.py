"""What people see while they wait: progress with time left, and notices. All of it goes to stderr.

On a terminal or in a notebook a live bar; elsewhere (a log file, CI) a line after two seconds, then every half minute,
and at the end.
"""

import html
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

console = Console(stderr=True, highlight=False, emoji=False)

JOINERS = "\u200c\u200d"  # zero-width; not printable to Python
FIRST_LINE_SECONDS = 2.0  # work that takes longer shows its time left
WARM_UP = Fraction(1, 50)  # of the work: a first part that is smaller says nothing about the speed
QUIET_SECONDS = 30.0  # between two lines where no terminal shows a live bar
NOTEBOOK_SECONDS = 0.25  # between two states of a notebook's bar


def notice(text: str) -> None:
    """One line that tells the user what was chosen or what happened."""
    # a terminal wraps lines itself, a notebook would scroll them sideways
    console.print("\n".join(map(printable, text.split("\n"))), markup=False, soft_wrap=not console.is_jupyter)


class ElapsedColumn(TimeElapsedColumn):
    """The time so far, with a comma before the time left: `0:03:12, 0:01:04 left`."""

    def render(self, task: Task) -> Text:
        return super().render(task).append(",")


class Tracker:
    """One piece of long work: `advance` as it goes, with a short note such as the loss."""

    newest: "Tracker | None" = None  # of this process

    def __init__(self, description: str, total: int, live: Progress | None, done: int = 0):
        self.description, self.total, self.note = description, total, ""
        self.done: int | Fraction = done
        self._live = live
        self._task = live.add_task(description, total=total, completed=done, note="") if live else None
        self._start = time.monotonic()
        self._first = True
        self._since = self._start  # from where on the speed is measured
        self._before: int | Fraction = done
        self._next_line = self._start + FIRST_LINE_SECONDS
        Tracker.newest = self

    def __str__(self) -> str:
        return f"{self.description}: {int(self.done)}/{self.total}"

    def advance(self, count: int | Fraction = 1, note: str | None = None) -> None:
        """`count` more units, or a part of one, are done; `note` replaces the text behind the bar."""
        self.done += count
        self.note = self.note if note is None else note
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=float(self.done), note=self.note)
            return
        now, first = time.monotonic(), self._first and count > 0
        self._first = self._first and count == 0
        if first and count < (self.total - self._before) * WARM_UP:  # it may have compiled the code that the others run
            self._since, self._before = now, self.done
        elif now > self._next_line and self._before < self.done < self.total:
            left = (now - self._since) * float((self.total - self.done) / (self.done - self._before))
            self._show(f", {_clock(left)} left {self.note}")

    def finish(self) -> None:
        seconds = time.monotonic() - self._start
        if self._live is None and seconds > FIRST_LINE_SECONDS:
            notice(self._line(f" in {_clock(seconds)} {self.note}"))

    def _show(self, more: str) -> None:
        self._next_line = time.monotonic() + QUIET_SECONDS
        notice(self._line(more))

    def _line(self, more: str) -> str:
        return f"{self}{more}".rstrip()


class NotebookTracker(Tracker):
    """A bar in the output of a notebook's cell, updated in place. Unlike rich's it needs no ipywidgets, and it is there
    in the saved notebook."""

    def __init__(self, description: str, total: int, done: int = 0):
        from IPython.display import HTML, display

        super().__init__(description, total, None, done)
        self._html, self._output = HTML, display(HTML(""), display_id=True)
        self._show("")

    def finish(self) -> None:
        self._show(f" in {_clock(time.monotonic() - self._start)} {self.note}")

    def _show(self, more: str) -> None:
        self._next_line = time.monotonic() + NOTEBOOK_SECONDS
        bar = f'<progress value="{float(self.done)}" max="{self.total}" style="width: 20em"></progress>'
        text = html.escape(printable(self._line(more)))
        self._output.update(self._html(f"<pre style='margin: 0'>{bar} {text}</pre>"))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


@contextmanager
def track(description: str, total: int, done: int = 0) -> Iterator[Tracker]:
    """`with track("distilling", steps) as bar: ... bar.advance(note="loss 3.1")`.

    Args:
        done: units that were done before, which say nothing about the speed.
    """
    if console.quiet or console.is_jupyter or not console.is_terminal:
        in_notebook = console.is_jupyter and not console.quiet
        tracker = NotebookTracker(description, total, done) if in_notebook else Tracker(description, total, None, done)
        yield tracker
        tracker.finish()
        return
    columns = (  # a narrow terminal shortens the bar and the texts, never the times
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(table_column=Column(no_wrap=True, min_width=4)),
        ElapsedColumn(table_column=Column(no_wrap=True, min_width=8)),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn("left", table_column=Column(no_wrap=True, min_width=4)),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as live:
        yield Tracker(description, total, live, done)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner beside `text`, on a terminal, for work that cannot say how far it is. No :func:`track` inside."""
    if console.is_terminal and not console.is_jupyter:  # a notebook would need ipywidgets
        with console.status(text):
            yield
    else:
        yield


def command_line() -> str | None:
    """The running `ncfmkit ...` as one would type it; none where Python code called the library."""
    program = Path(sys.argv[0])
    ours = program.stem == "ncfmkit" or (program.name == "__main__.py" and program.parent.name == "ncfmkit")
    return shlex.join(["ncfmkit", *sys.argv[1:]]) if ours else None


def plural(number: int, noun: str) -> str:
    """`1 image`, `1,200 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shortened_list(names: Sequence[str]) -> str:
    """The first of them, and how many there are."""
    return ", ".join(names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")


def printable(text: str) -> str:
    """`text` with non-printable characters escaped: control sequences, broken encodings."""
    return "".join(c if is_shown(c) else ascii(c)[1:-1] for c in text)


def is_shown(char: str) -> bool:
    """Whether a character may reach a terminal: it is printable, or one of the joiners in scripts and emoji."""
    return char.isprintable() or char in JOINERS
