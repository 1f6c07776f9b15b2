"""Contenders that take turns: their order, who leaves, and when it ends."""

from collections.abc import Callable

import pytest

from ncfmkit.exporters.turns import Ended, take_turns

LOG: list[str] = []


@pytest.fixture(autouse=True)
def _fresh_log() -> None:
    LOG.clear()


def contender(name: str, turns: int = 100, *, calls: int = 1) -> Callable[[], list[float]]:
    """Its seconds are the number of the turn in the whole race, that many times; it ends after some turns."""

    def turn() -> list[float]:
        if LOG.count(name) == turns:
            raise Ended("does not fit")
        LOG.append(name)
        return [float(len(LOG))] * calls

    return turn


def rounds(count: int) -> Callable[[dict[str, list[float]]], bool]:
    left = iter([True] * count)
    return lambda seconds: next(left, False)


def test_contenders_alternate_in_their_order() -> None:
    seconds, ended = take_turns({"b": contender("b"), "a": contender("a", calls=2)}, go_on=rounds(3))
    assert LOG == ["b", "a"] * 3
    assert seconds == {"b": [1, 3, 5], "a": [2, 2, 4, 4, 6, 6]}
    assert ended == {}


def test_one_that_ends_does_not_stop_the_others() -> None:
    seconds, ended = take_turns({"a": contender("a", 1), "b": contender("b")}, go_on=rounds(3))
    assert seconds == {"b": [2, 3, 4]}
    assert ended == {"a": "does not fit"}


def test_another_error_stops_them_all() -> None:
    with pytest.raises(ZeroDivisionError):
        take_turns({"a": lambda: [1 / 0], "b": contender("b")}, go_on=rounds(3))
    assert LOG == []


def test_it_goes_on_by_what_was_measured() -> None:
    seconds, _ = take_turns({"a": contender("a")}, go_on=lambda seconds: sum(seconds["a"]) < 5)
    assert seconds == {"a": [1, 2, 3]}


def test_nobody_left_ends_it() -> None:
    asked: list[int] = []

    def go_on(seconds: dict[str, list[float]]) -> bool:
        asked.append(len(seconds))
        return len(asked) < 5

    assert take_turns({"a": contender("a", 0)}, go_on=go_on) == ({}, {"a": "does not fit"})
    assert asked == [1]


def test_no_round_at_all() -> None:
    assert take_turns({"a": contender("a")}, go_on=rounds(0)) == ({"a": []}, {})
