"""What all commands share: JSON without NaN that every stream can print, and the exit code of an interruption."""

import io
import json
import os
import subprocess
import sys

import pytest
import typer

from ncfmkit import interrupts
from ncfmkit.cli import main, options


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


def test_an_error_after_a_signal_is_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries make other errors of KeyboardInterrupt."""

    def command() -> None:
        raise AttributeError("module has no attribute")

    monkeypatch.setattr(interrupts, "received", lambda: True)
    with pytest.raises(typer.Exit) as caught:
        main.with_exit_codes(command)()
    assert caught.value.exit_code == 130
