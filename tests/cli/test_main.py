"""What all commands share: JSON without NaN that every stream can print, and what follows a signal."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
import typer

from ncfmkit import interrupts
from ncfmkit.cli import main, options
from ncfmkit.errors import UserError


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    options.print_json({"a": [float("nan"), {"b": float("-inf")}], "c": 1.5})
    assert json.loads(capsys.readouterr().out) == {"a": [None, {"b": None}], "c": 1.5}


@pytest.mark.parametrize(
    ("name", "encoding", "line"),
    [
        ("\u732b \U0001f431", "utf-8", '"\u732b \U0001f431"'),
        ("caf\u00e9 \u732b", "latin-1", '"caf\u00e9 \\u732b"'),
        ("caf\u00e9 \U0001f431", "ascii", '"caf\\u00e9 \\ud83d\\udc31"'),
        ("\U0001f469\u200d\U0001f52c", "utf-8", '"\U0001f469\u200d\U0001f52c"'),
        ("\x1b\x7f\x9b31m\u202e\u2028", "utf-8", '"\\u001b\\u007f\\u009b31m\\u202e\\u2028"'),
        ("not UTF-8: \udce9", "utf-8", '"not UTF-8: \\udce9"'),
    ],
)
def test_json_escapes_what_the_stream_cannot_print(name: str, encoding: str, line: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    text = options.json_line(name, stream)
    assert text == line
    assert json.loads(text) == name
    stream.write(text)


def test_stdout_escapes_what_it_cannot_encode() -> None:
    code = "from ncfmkit.cli import main; main.app = lambda prog_name: print('\\u732b'); main.run()"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == b"\\u732b" + os.linesep.encode()


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
