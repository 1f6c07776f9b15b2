"""Options that commands share: a flag for each setting to which config.py gives one, and those of the real data."""

import functools
import inspect
import json
import math
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncfmkit.config import PANELS, SETTINGS, Setting, full_key
from ncfmkit.errors import UserError

if TYPE_CHECKING:
    from ncfmkit.jobs.evaluate import Scoring
    from ncfmkit.real.arguments import DataArguments

MadeFrom = Annotated[
    "DataArguments", typer.Option("--data", help="the real data that it was made from", rich_help_panel="Data")
]
ScoreData = Annotated[
    "DataArguments | None",
    typer.Option("--data", help="the real data that --score tests on", rich_help_panel="Data"),
]
Recipe = Annotated[str | None, typer.Option("--recipe", help="a recipe's name or a .toml file")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any other setting, such as distill.patience=200")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
Baselines = Annotated[
    str, typer.Option("--baselines", help="scored beside it: random, random-decoded, herding, whole, none")
]


def _parameter(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _data_option(flag: str, help: str) -> Any:
    return typer.Option(flag, help=help, rich_help_panel="Data")


_DATA_FLAGS = (
    _parameter("data_root", str | None, None, _data_option("--data-root", "folder of torchvision's data sets")),
    _parameter(
        "download", bool, False, _data_option("--download", "fetch a named set that is not there (torchvision, hf://)")
    ),
    _parameter("skip_bad", bool, False, _data_option("--skip-bad", "pass over unreadable images, and list them")),
)


def settings_flags(*sections: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the flags of those sections and of the real data.

    What the user set arrives as `overrides`, by setting key. A parameter of the command of type `DataArguments` is a
    text on the command line; --data-root, --download and --skip-bad follow the last of them and become part of the
    object, which is none where no data were named. A command that takes `data_flags` is told whether any flag of the
    real data was given, be it one of the three or of the settings in `data`.
    """
    keys = [key for section in sections for key, about in SETTINGS.items() if about.section == section and about.flag]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters
        named = [name for name, parameter in own.items() if _is_data(parameter)]

        @functools.wraps(command)
        def wrapper(**arguments: Any) -> None:
            flags = {key: arguments.pop(_name(key)) for key in keys}
            overrides = {key: value for key, value in flags.items() if value is not None}
            overrides |= parse_set(arguments.get("set_"))
            where = {flag.name: arguments.pop(flag.name) for flag in _DATA_FLAGS}
            arguments |= {name: _data(arguments[name], where) for name in named}
            if "data_flags" in own:
                arguments["data_flags"] = any(where.values()) or any(key.startswith("data.") for key in overrides)
            command(**arguments, overrides=overrides)

        parameters = []
        for name, parameter in own.items():
            if name not in ("overrides", "data_flags"):
                parameters.append(_as_text(parameter) if name in named else parameter)
            if name == named[-1]:
                parameters += _DATA_FLAGS
        parameters += [_flag(SETTINGS[key]) for key in keys]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        del wrapper.__wrapped__
        return wrapper

    return decorate


def _name(key: str) -> str:
    return key.replace(".", "__")


def _flag(about: Setting) -> inspect.Parameter:
    """The flag of a setting: text, which :func:`ncfmkit.config.override` parses, or a switch."""
    help = f"{about.help} ({about.range})" if about.range else about.help
    metavar = "|".join(about.choices) or {bool: None, int: "N", float: "X"}.get(about.kind, "TEXT")
    option = typer.Option(about.flag, help=help, metavar=metavar, rich_help_panel=PANELS[about.section])
    return _parameter(_name(about.key), bool | None if about.kind is bool else str | None, None, option)


def _is_data(parameter: inspect.Parameter) -> bool:
    # the type stands there as text: its module imports numpy, for which --help must not wait
    return "DataArguments" in str(typing.get_args(parameter.annotation)[:1])


def _as_text(parameter: inspect.Parameter) -> inspect.Parameter:
    """A parameter for data as the command line has it: their name or path."""
    return parameter.replace(annotation=Annotated[str | None, typing.get_args(parameter.annotation)[1]])


def _data(name: str | None, where: dict[str, Any]) -> "DataArguments | None":
    if name is None:
        return None
    from ncfmkit.real.arguments import DataArguments

    return DataArguments(data=name, **where)


def scoring(score: bool, data: "DataArguments | None", data_flags: bool, overrides: dict[str, Any]) -> "Scoring | None":
    """How `--score` is to be done; none where nothing is to be scored.

    Raises:
        UserError: `--score` without `--data`, or flags of either without `--score`.
    """
    from ncfmkit.jobs.evaluate import Scoring

    if score and data is None:
        raise UserError("--score needs --data: the real data that the students are tested on")
    if not score and (data is not None or data_flags or overrides):
        raise UserError("flags of data, students and machine say how to score the set: pass --score, or leave them out")
    return None if data is None else Scoring(source=data, overrides=overrides)


def parse_set(pairs: list[str] | None) -> dict[str, str]:
    """Settings from `KEY=VALUE` texts.

    Raises:
        UserError: no `=` in one, or an unknown key.
    """
    values = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair!r}: expected KEY=VALUE, such as distill.patience=200")
        values[full_key(key.strip())] = value.strip()
    return values


def print_json(content: Any) -> None:
    """The one object that `--json` prints on stdout, in ASCII: it must get through any terminal and pipe.

    Numbers that are not finite, which JSON does not have, become null.
    """
    try:
        print(json.dumps(content, allow_nan=False))
    except ValueError:
        print(json.dumps(_finite(content), allow_nan=False))


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
