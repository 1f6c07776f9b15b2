"""The command line as tests call it: in this process, with what it printed and its exit code."""

import re
from typing import Any

from typer.testing import CliRunner, Result

from ncfmkit.cli import main


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(main.app, [str(a) for a in arguments], prog_name="ncfmkit", env={"COLUMNS": "200"})


def succeeds(*arguments: Any) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


def refused(*arguments: Any, says: str, code: int = 2) -> str:
    """The one message on stderr, with nothing on stdout and no traceback."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert "unexpected " not in result.stderr
    assert result.stderr.count("ncfmkit: ") == 1
    message = result.stderr.split("ncfmkit: ")[1]
    assert re.search(says, message), message
    return message
