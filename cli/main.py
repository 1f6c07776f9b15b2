"""Joins the commands, and turns errors into one message and an exit code."""

import functools
import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from ncfmkit import distributed, interrupts, progress
from ncfmkit._version import __version__
from ncfmkit.cli.assess import assess
from ncfmkit.cli.cache import cache
from ncfmkit.cli.compare import compare
from ncfmkit.cli.convert import convert
from ncfmkit.cli.distill import distill
from ncfmkit.cli.doctor import doctor
from ncfmkit.cli.evaluate import evaluate
from ncfmkit.cli.examples import epilog
from ncfmkit.cli.export import export
from ncfmkit.cli.inspect import inspect
from ncfmkit.cli.merge import merge
from ncfmkit.cli.pack import pack
from ncfmkit.cli.predict import predict
from ncfmkit.cli.pretrain import pretrain
from ncfmkit.cli.push import push
from ncfmkit.cli.recipes import recipes
from ncfmkit.cli.relabel import relabel
from ncfmkit.cli.train import train
from ncfmkit.cli.unpack import unpack
from ncfmkit.cli.validate import validate
from ncfmkit.cli.verify import verify
from ncfmkit.errors import (
    CheckFailed,
    DeviceFailed,
    FollowedError,
    Interrupted,
    NonFiniteLossError,
    RankFailed,
    UserError,
)
from ncfmkit.progress import printable

app = typer.Typer(
    name="ncfmkit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`ncfmkit COMMAND --help` describes a command and shows examples.",
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
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="no notices and no progress, only results and errors")
    ] = False,
) -> None:
    """Distills large labeled image sets into small ones that still train good models, and measures how good."""
    global _debug
    _debug = debug
    progress.console.quiet = quiet


def with_exit_codes(command: Callable[..., None]) -> Callable[..., None]:
    """1 a check failed or anything unexpected, 2 wrong input, 3 non-finite loss, 130 interrupted; one message each."""

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        interrupts.begin()
        try:
            with distributed.ranks(command.__name__, apart=arguments.get("distill__shard") is not None):
                command(**arguments)
        except Interrupted as error:
            _fail(str(error), error.exit_code)
        except (Exception, KeyboardInterrupt) as error:
            # whatever follows a signal is its consequence: libraries make other errors of KeyboardInterrupt
            if interrupts.received() or isinstance(error, KeyboardInterrupt):
                _fail(interrupts.message(), Interrupted.exit_code)
            if isinstance(error, FollowedError) or (isinstance(error, RankFailed) and error.silent):
                raise typer.Exit(error.exit_code) from None
            if isinstance(error, CheckFailed | UserError | NonFiniteLossError | DeviceFailed | RankFailed):
                _fail(str(error), error.exit_code)
            if isinstance(error, BrokenPipeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(1) from None
            _fail(f"unexpected {type(error).__name__}: {error}\nrun `ncfmkit --debug ...` for the traceback", 1)
        if interrupts.received():  # and swallowed by a library
            _fail(interrupts.message(), Interrupted.exit_code)

    return wrapper


def _fail(message: str, code: int) -> None:
    if _debug and sys.exc_info()[1] is not None:
        raise
    who = "ncfmkit" if distributed.is_first() else f"ncfmkit, rank {distributed.rank()}"
    if distributed.is_first() or code != Interrupted.exit_code:  # the first rank says that all were interrupted
        print("\n".join(map(printable, f"{who}: {message}".split("\n"))), file=sys.stderr)
    raise typer.Exit(code) from None


_GROUPS: dict[str, tuple[Callable[..., None], ...]] = {  # as --help shows them
    "Make a set": (distill, merge, relabel, pretrain, recipes),
    "Use a set": (inspect, evaluate, assess, compare, train),
    "Ship a set": (pack, verify, push, unpack, convert),
    "Deploy a student": (export, validate, predict),
    "Machine": (doctor, cache),
}
for _group, _commands in _GROUPS.items():
    for _command in _commands:
        app.command(rich_help_panel=_group, epilog=epilog(_command.__name__))(with_exit_codes(_command))


def run() -> None:
    """The console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a name that it cannot encode is no error
    app(prog_name="ncfmkit")
