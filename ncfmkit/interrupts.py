"""Ctrl-C and SIGTERM on the command line: one true line and exit code 130, at any moment.

A signal ends the process from its handler wherever nothing has to be cleaned up: an exception would have to pass
through libraries that swallow it or turn it into another error, as imports of compiled modules do. Inside
:func:`cleaning_up` it raises KeyboardInterrupt instead, and inside :func:`held` it waits. The handler is in place
before anything else is imported, so this module imports little. Without :func:`install`, as in a notebook, Python's own
handler stays.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ncfmkit.errors import Interrupted

if TYPE_CHECKING:
    from pathlib import Path

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SHOW_CURSOR = "\x1b[?25h"  # a live bar hides it
MOST_NAMED = 3  # files in the message; of more, the folder


class _State:
    """What the handler has to know."""

    installed = False
    received = False  # a signal arrived
    raised = False  # as KeyboardInterrupt
    cleaning_up = 0  # nested blocks
    held = 0  # nested blocks
    waiting = False  # a signal arrived inside a held block
    ended: int | None = None  # exit code of a command that is over
    kept: Callable[[], str | None] | None = None  # what the work in progress leaves behind
    written: list["Path"] = []  # noqa: RUF012 (one process, one state)
    cached = False  # something was written to the cache
    muted = False


def install() -> None:
    """Takes over Ctrl-C and SIGTERM for this process, a command; what a parent process ignores stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handle)
    sys.unraisablehook = _on_swallowed
    atexit.register(_ignore)  # runs last: from then on Python would let a signal end the process with another exit code
    _State.installed = True


def mute() -> None:
    """From now on a signal ends this process without a message: another process says it."""
    _State.muted = True


def begin() -> None:
    """A new command, of which nothing is written yet."""
    _State.received = _State.raised = _State.waiting = _State.cached = False
    _State.written.clear()


def end(code: int) -> None:
    """The command is over: a signal from now on only ends the process sooner, with that exit code."""
    _State.ended = code


def received() -> bool:
    """Whether a signal arrived; every later error is then its consequence."""
    return _State.received


def handle(number: int, frame: Any) -> None:
    """The signal handler."""
    _State.received = True
    if _State.held and not _State.waiting:
        _State.waiting = True
    else:
        _act()


def _act() -> None:
    if _State.ended is None and _State.cleaning_up and not _State.raised:
        _State.raised = True
        raise KeyboardInterrupt
    _ignore()
    with suppress(Exception):
        if _State.ended is not None:
            sys.stdout.flush()  # fails where the signal hit a flush: then the output is cut short
            os._exit(_State.ended)
        _print(message() + "; temporary files may be left" * bool(_State.cleaning_up))
    os._exit(Interrupted.exit_code)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _print(text: str) -> None:
    """Past `sys.stderr`, which a live bar or a lock may hold."""
    if _State.muted:
        return
    start = f"\r\n{SHOW_CURSOR}" if os.isatty(2) else ""
    os.write(2, f"{start}ncfmkit: {text}\n".encode(errors="backslashreplace"))


def _on_swallowed(error: "sys.UnraisableHookArgs") -> None:
    """An interruption that hit code which cannot raise, such as a destructor, is raised once more instead of shown."""
    if isinstance(error.exc_value, KeyboardInterrupt):
        from _thread import interrupt_main
        from threading import Timer

        _State.raised = False
        Timer(0.01, interrupt_main).start()  # after this hook, which cannot raise either
    elif not _State.received:
        sys.__unraisablehook__(error)


def message() -> str:
    """What an interruption leaves behind, as one line."""
    kept = None if _State.kept is None else _State.kept()
    if kept is not None:
        return kept
    there = [str(path) for path in dict.fromkeys(_State.written) if os.path.lexists(path)]
    if there:
        from ncfmkit.progress import printable  # imported before anything was written

        shown = there if len(there) <= MOST_NAMED else [os.path.commonpath(there)]
        return f"interrupted; already written: {', '.join(map(printable, shown))}"
    return "interrupted: nothing was written" + (", except to the cache, where the next run finds it" * _State.cached)


@contextmanager
def cleaning_up() -> Iterator[None]:
    """A block that removes what it made when an exception passes: a signal raises KeyboardInterrupt in it.

    A second one ends the process all the same.
    """
    _State.cleaning_up += 1
    try:
        yield
    finally:
        _State.cleaning_up -= 1


@contextmanager
def held() -> Iterator[None]:
    """A short block that a signal does not cut in two; a second one does."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
        if _State.waiting and not _State.held:
            _State.waiting = False
            _act()


@contextmanager
def keeping(kept: Callable[[], str | None]) -> Iterator[None]:
    """Work that leaves something behind when it is interrupted: `kept` says what and how to continue, None if nothing.

    Raises:
        Interrupted: with that text, in place of KeyboardInterrupt.
    """
    before, _State.kept = _State.kept, kept
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(message()) from None
    finally:
        _State.kept = before


def note_written(path: "Path") -> None:
    """A file or folder of the user's is finished under its name."""
    if _State.installed:
        _State.written.append(path)


def note_cached() -> None:
    """Something was written to the cache."""
    _State.cached = True
