"""What all commands share: JSON without NaN, and the exit code of an interruption."""

import json

import pytest
import typer

from ncfmkit.cli import main, options


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    options.print_json({"a": [float("nan"), {"b": float("-inf")}], "c": 1.5})
    assert json.loads(capsys.readouterr().out) == {"a": [None, {"b": None}], "c": 1.5}


def test_an_interruption_that_a_library_made_another_error_of() -> None:
    def command() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise AttributeError("module has no attribute") from None

    with pytest.raises(typer.Exit) as caught:
        main.with_exit_codes(command)()
    assert caught.value.exit_code == 130
