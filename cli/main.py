"""Joins the commands, and turns errors into one message and an exit code."""

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ncfmkit._version import __version__
from ncfmkit.cli.cache import cache
from ncfmkit.cli.convert import convert
from ncfmkit.cli.distill import distill
from ncfmkit.cli.doctor import doctor
from ncfmkit.cli.evaluate import evaluate
from ncfmkit.cli.export import export
from ncfmkit.cli.inspect import inspect
from ncfmkit.cli.pack import pack
from ncfmkit.cli.predict import predict
from ncfmkit.cli.pretrain import pretrain
from ncfmkit.cli.recipes import recipes
from ncfmkit.cli.train import train
from ncfmkit.cli.unpack import unpack
from ncfmkit.cli.validate import validate
from ncfmkit.cli.verify import verify
from ncfmkit.errors import CheckFailed, Interrupted, NonFiniteLossError, UserError
from ncfmkit.progress import printable

app = typer.Typer(
    name="ncfmkit", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode="rich"
)
_debug = False


def _print_version(version: bool) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and stop")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """Makes big labeled image sets small: distills them, trains students on the result, and says how good it is."""
    global _debug
    _debug = debug


def with_exit_codes(command: Callable[..., None]) -> Callable[..., None]:
    """1 a check failed or anything unforeseen, 2 wrong input, 3 non-finite loss, 130 interrupted; one message each."""

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            command(**arguments)
        except (CheckFailed, UserError, NonFiniteLossError, Interrupted) as error:
            _fail(str(error), error.exit_code)
        except KeyboardInterrupt:
            _fail("interrupted; what was finished is kept", Interrupted.exit_code)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            if _interrupted(error):
                _fail("interrupted; what was finished is kept", Interrupted.exit_code)
            _fail(f"unforeseen {type(error).__name__}: {error}\nrun `ncfmkit --debug ...` for the traceback", 1)

    return wrapper


def _interrupted(error: BaseException | None) -> bool:
    """Whether an interruption lies behind an error: libraries make others of it where it hits their own handling."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _fail(message: str, code: int) -> None:
    if _debug:
        raise
    print("\n".join(map(printable, f"ncfmkit: {message}".split("\n"))), file=sys.stderr)
    raise typer.Exit(code) from None


_COMMANDS = (
    *(distill, pretrain, evaluate, train),
    *(pack, unpack, verify, convert, inspect),
    *(export, validate, predict),
    *(recipes, doctor, cache),
)
for _command in _COMMANDS:
    app.command()(with_exit_codes(_command))


def run() -> None:
    """The console script."""
    app(prog_name="ncfmkit")
