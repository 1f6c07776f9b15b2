"""Options that commands share: a flag for each setting to which config.py gives one, and those of the real data."""

import csv
import dataclasses
import functools
import inspect
import io
import json
import math
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from ncfmkit.config import PANELS, SETTINGS, Setting, TrainSettings, default_words, full_key, recipe_names
from ncfmkit.errors import UserError
from ncfmkit.progress import is_shown

if TYPE_CHECKING:
    from ncfmkit.estimate import Stage
    from ncfmkit.real.arguments import DataArguments

# What a command's job reads, as sections and settings: it has the flags of these, and its `--set` takes no others.
# tests/cli/test_reads.py runs the jobs and compares.
_DEVICE = ("runtime.device", "runtime.precision", "runtime.compile")
_POOL_TRAINING, _STUDENT_TRAINING = (
    tuple(f"{section}.{field.name}" for field in dataclasses.fields(TrainSettings)) for section in ("pool", "student")
)
READS: dict[str, tuple[str, ...]] = {
    "distill": tuple(PANELS),
    "pretrain": ("data", "network", "pool", *_DEVICE, "seed"),
    "evaluate": ("data", "network", *_POOL_TRAINING, "student", *_DEVICE, "seed"),  # the pool's for herding
    "assess": (  # the pool's for herding; students are tested after their last epoch
        *("data", "network", *_POOL_TRAINING, *_STUDENT_TRAINING, "student.repeats", "student.whole_epochs"),
        *(*_DEVICE, "seed"),
    ),
    "compare": (*("data", "network", *_STUDENT_TRAINING, "student.repeats", "student.evaluations", *_DEVICE, "seed"),),
    "train": ("data", "network", *_STUDENT_TRAINING, *_DEVICE, "seed"),
    "relabel": ("data", "pool", "labels.temperature", "labels.stages", "labels.bits", "labels.top", *_DEVICE),
    "pack": ("data", "network", "student", *_DEVICE, "seed"),
    "verify": ("data", *_DEVICE),  # with --score, students train by the set's own recipe
    "convert": (  # all but `data` go into the set, for `evaluate`
        *("data", "network", *_POOL_TRAINING, "student", "seed"),
        *("distill.factor", "distill.decode", "distill.decoded_per_class"),
    ),
    "export": ("data",),
    "validate": ("data",),
}


def complete_recipe(incomplete: str) -> list[str]:
    """Names of recipes, for the shell."""
    return [name for name in recipe_names() if name.startswith(incomplete)]


def complete_data(incomplete: str) -> list[str]:
    """Names of real data, for the shell; where none fits, it completes paths."""
    from ncfmkit.real.sources import NAMED

    return [name for name in NAMED if name.startswith(incomplete)]


MadeFrom = Annotated[
    "DataArguments",
    typer.Option(
        "--data",
        help="real data that the set was made from",
        rich_help_panel="Data",
        autocompletion=complete_data,
    ),
]
ScoreData = Annotated[
    "DataArguments | None",
    typer.Option(
        "--data",
        help="real data whose test split --score uses",
        rich_help_panel="Data",
        autocompletion=complete_data,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="name of a recipe (`ncfmkit recipes`) or a .toml file; its values replace the defaults of settings",
        show_default="the data's own, else cpu or gpu, by the device",
        autocompletion=complete_recipe,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="set any setting, such as student.lr=2e-3 (repeatable)"),
]
ModelInput = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="uint8-nchw|uint8-nhwc|float-nchw",
        help="images that a model without ncfmkit metadata takes: pixels 0 to 255 or floats 0 to 1",
    ),
]
ModelOutput = Annotated[
    str | None,
    typer.Option("--output", metavar="logits|probabilities", help="what a model without ncfmkit metadata returns"),
]
Force = Annotated[bool, typer.Option("--force", help="overwrite an existing output, once the new one is ready")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="print the plan and an estimate of the time, write no output, and stop")
]
Baselines = Annotated[
    str,
    typer.Option(
        "--baselines",
        help="real images to score beside the set, comma-separated: random, random-soft, random-decoded, webp, "
        "jpeg, mosaic, herding, herding-webp, k-center, el2n, forgetting, whole, none",
    ),
]


NOT_IN_SETS = ("runtime.device",)  # of the settings that commands on sets read
LONGEST_METAVAR = 30  # characters: a longer list of choices stays out of the column that all flags share


def _parameter(name: str, kind: Any, default: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _data_option(flag: str, help: str) -> Any:
    return typer.Option(flag, help=help, rich_help_panel="Data")


_DATA_FLAGS = (
    _parameter(
        "data_root", str | None, None, _data_option("--data-root", "folder of the data sets that torchvision reads")
    ),
    _parameter(
        "download",
        bool,
        False,
        _data_option("--download", "fetch a named data set that is not there (torchvision, hf://), or copy an address"),
    ),
    _parameter("skip_bad", bool, False, _data_option("--skip-bad", "skip unreadable images, and list them")),
)


def settings_flags(*reads: str, of_set: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the flags of those sections and settings, and of the real data.

    With `of_set`, their defaults are what a set keeps, and --help says so. What the user set arrives as `overrides`, by
    setting key. A flag that the command defines itself is left to it. A parameter of type `DataArguments` is text on
    the command line; --data-root, --download and --skip-bad follow the last of them and become part of the object,
    which is None if no data are named. `data_flags`, where a command takes it, is true if any flag of the real data is
    given: one of these three, but for those that the command defines itself, or of the settings in `data`.
    """
    read = [key for key, about in SETTINGS.items() if about.section in reads or key in reads]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters
        named = [name for name, parameter in own.items() if _is_data(parameter)]
        keys = [key for key in read if SETTINGS[key].flag and SETTINGS[key].flag not in _own_flags(own)]

        @functools.wraps(command)
        def wrapper(**arguments: Any) -> None:
            flags = {key: arguments.pop(_name(key)) for key in keys}
            overrides = {key: value for key, value in flags.items() if value is not None}
            overrides |= parse_set(arguments.get("set_"), read)
            where = {f.name: arguments[f.name] if f.name in own else arguments.pop(f.name) for f in _DATA_FLAGS}
            arguments |= {name: _data(arguments[name], where) for name in named}
            if "data_flags" in own:
                arguments["data_flags"] = any(given for name, given in where.items() if name not in own) or any(
                    key.startswith("data.") for key in overrides
                )
            command(**arguments, overrides=overrides)

        parameters = []
        for name, parameter in own.items():
            if name not in ("overrides", "data_flags", *(flag.name for flag in _DATA_FLAGS)):
                parameters.append(_as_text(parameter) if name in named else parameter)
            if name == named[-1]:
                parameters += [own.get(flag.name, flag) for flag in _DATA_FLAGS]
        parameters += [_flag(SETTINGS[key], of_set and key not in NOT_IN_SETS) for key in keys]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        del wrapper.__wrapped__
        return wrapper

    return decorate


def _name(key: str) -> str:
    return key.replace(".", "__")


def _own_flags(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    options = [getattr(parameter.annotation, "__metadata__", ()) for parameter in parameters.values()]
    # Typer takes the first name as a default, which within Annotated it is not
    return [flag for (option,) in filter(None, options) for flag in (option.default, *(option.param_decls or ()))]


def _flag(about: Setting, of_set: bool) -> inspect.Parameter:
    """The flag of a setting: text, which :func:`ncfmkit.config.override` parses, or a switch."""
    help = f"{about.help} ({about.range})" if about.range else about.help
    if of_set or about.kind is not bool:
        default = "from the set" if of_set else default_words(about.default)
        help += rf" [dim]\[default: {default}][/dim]"  # as Typer shows those of other options
    words = "|".join(about.choices)
    metavar = {bool: None, int: "N", float: "X"}.get(about.kind, words if 0 < len(words) <= LONGEST_METAVAR else "TEXT")
    option = typer.Option(
        about.flag,
        help=help,
        metavar=metavar,
        rich_help_panel=PANELS[about.section],
        autocompletion=lambda incomplete: [word for word in about.choices if word.startswith(incomplete)],
    )
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


def check_scoring(score: bool, data_flags: bool) -> None:
    """Raises UserError for options of the real data without `--score`, which would have no effect."""
    if data_flags and not score:
        raise UserError("options of the real data have no effect without --score: pass --score, or leave them out")


def parse_set(pairs: list[str] | None, read: Collection[str]) -> dict[str, str]:
    """Settings from `KEY=VALUE` texts; `read` are the keys that the command reads.

    Raises:
        UserError: no `=` in one, an unknown key, or one that would have no effect.
    """
    values = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--set {pair!r}: expected KEY=VALUE, such as distill.patience=200")
        key = full_key(key.strip())
        if key not in read:
            raise UserError(f"--set {key}: this command does not use the setting {key}")
        values[key] = value.strip()
    return values


def show_estimate(stages: "Iterable[Stage]", json: bool) -> None:
    """For `--dry-run`: the stages as they are measured, and the total on stdout."""
    from ncfmkit.estimate import announce, duration, total_seconds

    known = announce(stages)
    seconds = total_seconds(known)
    if json:
        print_json({"estimate": [dataclasses.asdict(stage) for stage in known], "seconds": seconds})
    else:
        print(f"nothing was written; this takes about {duration(seconds)}")


def print_json(content: Any) -> None:
    """Prints the one object of `--json` on stdout."""
    print(json_line(content, sys.stdout))


def json_line(content: Any, stream: TextIO) -> str:
    """JSON on one line, in which non-printable characters and those that `stream` cannot encode are escaped.

    Numbers that are not finite, which JSON does not have, become null.
    """
    try:
        text = json.dumps(content, allow_nan=False, ensure_ascii=False)
    except ValueError:
        text = json.dumps(_finite(content), allow_nan=False, ensure_ascii=False)
    return _escaped(text, stream)


FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # how a formula starts; those of full width, too


def csv_line(cells: Iterable[str | int | float | None], stream: TextIO) -> str:
    """A row of CSV: texts in quotes, numbers bare, None an empty text.

    A spreadsheet takes a text that starts like a formula for one, so such a text gets an apostrophe in front, and so
    does one that starts with an apostrophe: a reader that removes one has the text itself. Line breaks stay; other
    non-printable characters and those that `stream` cannot encode are escaped as in JSON.
    """
    row = io.StringIO()
    csv.writer(row, quoting=csv.QUOTE_NONNUMERIC, lineterminator="").writerow(map(_cell, cells))
    return "\n".join(_escaped(line, stream) for line in row.getvalue().split("\n"))


def _cell(value: str | int | float | None) -> str | int | float:
    if not isinstance(value, str):
        return "" if value is None else value
    return f"'{value}" if value.lstrip().startswith((*FORMULA, "'")) else value


def _escaped(text: str, stream: TextIO) -> str:
    """`text` with JSON's escapes for non-printable characters and those that `stream` cannot encode."""
    if text.isascii() and text.isprintable():
        return text
    encoding = stream.encoding or "ascii"
    return "".join(char if is_shown(char) and _encodes(char, encoding) else json.dumps(char)[1:-1] for char in text)


def _encodes(char: str, encoding: str) -> bool:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
