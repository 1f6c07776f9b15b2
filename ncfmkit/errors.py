"""The errors that a user is meant to read. The command line maps each to its exit code."""

from typing import Any

LONGEST_CAUSE = 300  # characters of another library's message


class CheckFailed(Exception):
    """What was checked does not hold: parity, an accuracy gate, unreadable pictures. Exit code 1; all failures in it.

    `result` is what was found, for those who want the figures.
    """

    exit_code = 1

    def __init__(self, message: str, result: Any = None):
        super().__init__(message)
        self.result = result


class UserError(ValueError):
    """The user's input is wrong: what, where, expected, got, how to mend it. Exit code 2."""

    exit_code = 2


class NonFiniteLossError(ArithmeticError):
    """A loss became NaN or infinite. Exit code 3; the last good checkpoint is kept."""

    exit_code = 3


class DeviceFailed(RuntimeError):
    """A GPU failed and this process cannot use it any more. Exit code 1; what is kept, and how to go on, is said."""

    exit_code = 1


class RankFailed(RuntimeError):
    """Another rank of this command is gone or stuck; the message names it. Exit code 1.

    It is `silent` where another rank says so.
    """

    exit_code = 1

    def __init__(self, message: str, *, silent: bool = False):
        super().__init__(message)
        self.silent = silent


class FollowedError(Exception):
    """Another rank failed, and says why; its exit code."""

    def __init__(self, exit_code: int):
        super().__init__("another rank failed")
        self.exit_code = exit_code


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived and the state is saved. Exit code 130."""

    exit_code = 130


def cause(error: Exception) -> str:
    """Another library's message, cut off: it may quote as much of a hostile file as that likes."""
    return str(error)[:LONGEST_CAUSE]
