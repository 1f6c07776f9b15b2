"""Time left: how it is shown where no terminal has a live bar."""

import io
import re
from fractions import Fraction
from types import SimpleNamespace

import pytest
from rich.console import Console

from ncfmkit import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still until a test sets `now`."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_work_of_more_than_two_seconds_shows_its_time_left(clock, capsys) -> None:
    with progress.track("distilling", 100) as bar:
        clock.now += 2.5
        bar.advance(5, note="matching 3.1")
        assert lines(capsys) == ["distilling: 5/100, 0:48 left matching 3.1"]
        clock.now += 10
        bar.advance(20)
        assert lines(capsys) == []  # the next one after half a minute
        clock.now += 25
        bar.advance(25)
        assert lines(capsys) == ["distilling: 50/100, 0:38 left matching 3.1"]
    assert lines(capsys) == ["distilling: 50/100 in 0:38 matching 3.1"]


def test_short_work_is_silent(clock, capsys) -> None:
    with progress.track("herding", 10) as bar:
        clock.now += 1.9
        bar.advance(10)
    assert lines(capsys) == []


def test_what_was_done_before_says_nothing_of_the_speed(clock, capsys) -> None:
    with progress.track("distilling", 100, done=90) as bar:
        clock.now += 3
        bar.advance()
    assert lines(capsys)[0] == "distilling: 91/100, 0:27 left"


def test_parts_of_a_unit_move_the_time_left(clock, capsys) -> None:
    with progress.track("extractor pool", 4) as bar:
        clock.now += 3
        for _ in range(3):
            bar.advance(Fraction(1, 3))
            clock.now += 40
        assert bar.done == 1
    assert lines(capsys)[:2] == ["extractor pool: 0/4, 0:33 left", "extractor pool: 0/4, 3:35 left"]


def test_a_terminal_has_a_live_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, width=120, record=True, file=io.StringIO())
    monkeypatch.setattr(progress, "console", console)
    with progress.track("packing", 4, done=1) as bar:
        bar.advance(2, note="a note")
    assert re.search(r"packing .* 75% .* left .* a note", console.export_text())
