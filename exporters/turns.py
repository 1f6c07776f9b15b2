"""Contenders that take turns, so that other load on the machine affects all of them equally."""

from collections.abc import Callable, Mapping, Sequence

Turn = Callable[[], Sequence[float]]  # runs, and returns the seconds of each run that it timed


class Ended(Exception):
    """A contender cannot go on: why, in one line without paths."""


def take_turns(
    contenders: Mapping[str, Turn], *, go_on: Callable[[dict[str, list[float]]], bool]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Rounds in which each contender has one turn, always in the same order.

    Args:
        contenders: by name. A turn that raises `Ended` takes its contender out of the race; any other error ends it.
        go_on: whether another round is to follow; asked before each, with the seconds of those still in the race.

    Returns:
        The seconds by name of those that stayed in to the end, and by name why the others left.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    ended: dict[str, str] = {}
    while seconds and go_on(seconds):
        for name in list(seconds):
            try:
                seconds[name] += contenders[name]()
            except Ended as error:
                ended[name] = str(error)
                del seconds[name]
    return seconds, ended
