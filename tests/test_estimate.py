"""Estimates: what is measured, and how it is told."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from ncfmkit import estimate
from ncfmkit.estimate import Stage

CPU = torch.device("cpu")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A call that takes the seconds of `takes`, one after the other and the last one ever after."""
    state = SimpleNamespace(now=0.0, made=0, takes=[1.0])

    def call() -> None:
        state.now += state.takes[min(state.made, len(state.takes) - 1)]
        state.made += 1

    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: state.now))
    state.call = call
    return state


def test_the_first_call_does_not_count(calls, monkeypatch) -> None:
    monkeypatch.setattr(estimate, "ENOUGH_SECONDS", 0.25)
    calls.takes = [1.5, 0.1]
    assert estimate.seconds_per_call(calls.call, CPU, compiled=True) == pytest.approx(0.1)
    assert calls.made == 1 + 3


def test_short_calls_are_measured_a_few_times(calls, monkeypatch) -> None:
    monkeypatch.setattr(estimate, "ENOUGH_SECONDS", 0.25)
    calls.takes = [0.001]
    assert estimate.seconds_per_call(calls.call, CPU, compiled=False) == pytest.approx(0.001)
    assert calls.made == 1 + estimate.MOST_CALLS


@pytest.mark.parametrize(("compiled", "expected", "made"), [(False, 30.0, 1), (True, 20.0, 2)])
def test_a_long_call_is_made_once_unless_the_first_compiled(calls, compiled, expected, made) -> None:
    calls.takes = [30.0, 20.0]
    assert estimate.seconds_per_call(calls.call, CPU, compiled=compiled) == expected
    assert calls.made == made


def test_stages_are_told_as_they_are_measured(capsys) -> None:
    def stages() -> Iterator[Stage]:
        yield Stage(name="extractor pool", work="4 x 8 epochs", seconds=130)
        assert "extractor pool: 4 x 8 epochs, about 2.2 min" in capsys.readouterr().err
        yield Stage(name="distilling", work="350 steps", seconds=3600)

    assert [stage.seconds for stage in estimate.announce(stages())] == [130, 3600]
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "  distilling: 350 steps, about 60 min",
        "  total: about 62 min",
    ]


def test_nothing_is_told_of_no_work(capsys) -> None:
    assert estimate.announce([]) == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (89, "89 s"),
        (90, "1.5 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (86400 * 2 - 1, "48 h"),
        (86400 * 2, "2.0 days"),
        (86400 * 1234, "1,234 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert estimate.duration(seconds) == text
