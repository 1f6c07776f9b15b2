"""What all commands share: JSON without NaN, and what follows a signal."""

import json
import signal

import pytest
import typer

from ncfmkit import interrupts
from ncfmkit.cli import main, options
from ncfmkit.errors import UserError


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    options.print_json({"a": [float("nan"), {"b": float("-inf")}], "c": 1.5})
    assert json.loads(capsys.readouterr().out) == {"a": [None, {"b": None}], "c": 1.5}


@pytest.mark.parametrize("error", [AttributeError("no attribute"), RecursionError(), UserError("a wrong path"), None])
def test_what_follows_a_signal_is_its_consequence(error: Exception | None, capsys: pytest.CaptureFixture[str]) -> None:
    """Libraries make another error of KeyboardInterrupt, or none."""

    def command() -> None:
        with interrupts.cleaning_up():
            try:
                interrupts.handle(signal.SIGINT, None)
            except KeyboardInterrupt:
                if error is not None:
                    raise error from None

    with pytest.raises(typer.Exit) as caught:
        main.with_exit_codes(command)()
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == "ncfmkit: interrupted: nothing was written\n"


def test_the_next_command_is_not_interrupted() -> None:
    main.with_exit_codes(lambda: None)()
