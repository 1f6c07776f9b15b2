"""Time left: how it is shown with and without a live bar."""

import io
import re
import sys
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


def test_a_narrow_terminal_keeps_the_times(monkeypatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, _environ={})
    monkeypatch.setattr(progress, "console", terminal)
    with progress.track("convnext: students: mosaics of real images, 10 per class", 100) as bar:
        bar.advance(5, note="last epoch 93.3%")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "0:00:00, " in shown
    assert "-:--:-- left" in shown or "0:00:00 left" in shown


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


def test_a_first_part_that_compiles_says_nothing_of_the_speed(clock, capsys) -> None:
    with progress.track("extractor pool", 10) as bar:
        clock.now += 20
        bar.advance(0, note="compiled")
        bar.advance(Fraction(1, 100))
        assert lines(capsys) == []
        clock.now += 1
        bar.advance(Fraction(1, 100))
        assert lines(capsys) == ["extractor pool: 0/10, 16:38 left compiled"]  # 998 parts of 1 s
    assert lines(capsys) == ["extractor pool: 0/10 in 0:21 compiled"]


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
    assert re.search(r"packing .* 75% \d:\d\d:\d\d, [-:0-9]+ left a note", console.export_text())


@pytest.mark.parametrize("terminal", [True, False])
def test_work_of_unknown_length_has_a_spinner_on_a_terminal_only(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(force_terminal=terminal, width=120, file=file))
    with progress.waiting("measuring the first steps"):
        progress.notice("a stage")
    assert ("measuring the first steps" in file.getvalue()) == terminal
    assert "a stage" in file.getvalue()


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A console in a notebook; the states of the one output that is updated."""
    states: list[str] = []
    display = SimpleNamespace(
        HTML=lambda text: text, display=lambda first, display_id: SimpleNamespace(update=states.append)
    )
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress, "console", Console(force_terminal=False, width=40, file=io.StringIO()))
    monkeypatch.setattr(progress.console, "is_jupyter", True)
    return states


def test_a_notebook_has_a_bar_that_is_updated_in_place(clock, notebook) -> None:
    with progress.track("work <b>", 100, done=20) as bar:
        clock.now += 4
        bar.advance(20, note="loss 3.1")
        clock.now += 0.2
        bar.advance()  # too soon after the last state
        clock.now += 60
    assert [re.sub("<.*?>", "", state).strip() for state in notebook] == [
        "work &lt;b&gt;: 20/100",
        "work &lt;b&gt;: 40/100, 0:12 left loss 3.1",
        "work &lt;b&gt;: 41/100 in 1:04 loss 3.1",
    ]
    assert '<progress value="40.0" max="100"' in notebook[1]
    assert "<b>" not in "".join(notebook)


def test_a_quiet_notebook_has_no_bar(clock, notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.console, "quiet", True)
    with progress.track("work", 100) as bar:
        clock.now += 4
        bar.advance(20)
    assert notebook == []


def test_a_notebook_wraps_long_notices(notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(width=40, file=written))
    progress.notice("word " * 20)
    assert len(written.getvalue().splitlines()) == 1
    written.truncate(0)
    monkeypatch.setattr(progress.console, "print", lambda text, **how: written.write(str(how["soft_wrap"])))
    monkeypatch.setattr(progress.console, "is_jupyter", True)
    progress.notice("word " * 20)
    assert written.getvalue().endswith("False")
