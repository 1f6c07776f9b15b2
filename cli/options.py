"""Options that commands share. A flag that sets a setting is a row of `FLAGS`; its type is the setting's own."""

import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from ncfmkit.config import full_key, setting_keys
from ncfmkit.errors import UserError

FLAGS: dict[str, dict[str, str]] = {
    "Data": {
        "data.size": "side of the images in pixels",
        "data.resize": "crop: short side to --size, then the center",
        "data.color": "channels of the images",
        "data.convert_color": "convert images of another color mode",
        "data.classes": "class names to keep, comma-separated, or a file with one a line",
        "data.holdout": "fraction of each class kept for testing where there is no test split",
        "data.imbalance": "ratio of the largest to the smallest class of a long-tailed version",
    },
    "Distillation": {
        "distill.ipc": "stored images per class",
        "distill.factor": "a stored image is a factor x factor mosaic",
        "distill.decode": "which factors a stored image is cut by",
        "distill.init": "what the images start from",
        "distill.load": "the set that --init load starts from",
        "distill.steps": "steps; 0 keeps the initialization",
        "distill.metric": "ncfd, or mean matching (DM) as a baseline",
        "distill.sampler": "frequencies drawn from a Gaussian, or by a network trained against the images",
        "distill.frequencies": "frequencies per step",
        "distill.alpha": "amplitude against phase, 0 to 1",
        "distill.calibration_weight": "weight of the calibration loss; 0 leaves it out",
        "distill.real_batch": "real images per class and step",
        "distill.optimizer": "of the images",
        "distill.lr": "learning rate of the images",
    },
    "Networks": {
        "network.name": "the network, see `ncfmkit recipes --networks`",
        "network.width": "channels of a ConvNet's blocks",
        "network.depth": "blocks of a ConvNet",
        "pool.members": "extractors in the pool",
        "pool.epochs": "epochs of each extractor",
        "student.epochs": "epochs of each student",
        "student.repeats": "students per score; 0 leaves scoring out",
    },
    "Machine": {
        "runtime.device": "auto, cpu, cuda, cuda:N or mps",
        "runtime.precision": "of the networks",
        "runtime.compile": "torch.compile",
        "runtime.memory_budget": "memory for all of a step, such as 512MiB",
        "runtime.gradient_checkpointing": "recompute the extractor's blocks in the backward pass",
        "runtime.checkpoint_every": "steps between saved states",
        "seed": "of every random draw",
    },
}

NAMES = {
    "network.name": "--network",
    "network.width": "--width",
    "network.depth": "--depth",
    "pool.members": "--pool",
    "pool.epochs": "--pool-epochs",
    "student.epochs": "--student-epochs",
    "student.repeats": "--repeats",
    "distill.calibration_weight": "--calibration",
}

DataArgument = Annotated[
    str, typer.Argument(help="digits, cifar10, ... or a path; `ncfmkit recipes --data` lists both")
]
DataRoot = Annotated[
    str | None, typer.Option("--data-root", help="folder of torchvision's data sets", rich_help_panel="Data")
]
Download = Annotated[bool, typer.Option("--download", help="let torchvision download", rich_help_panel="Data")]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="pass over unreadable images, and count them", rich_help_panel="Data")
]
ScoreData = Annotated[
    str | None, typer.Option("--data", help="the real data that --score tests on", rich_help_panel="Data")
]
Recipe = Annotated[str | None, typer.Option("--recipe", help="a recipe's name or a .toml file")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any other setting, such as distill.patience=200")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]
Baselines = Annotated[
    str, typer.Option("--baselines", help="scored beside it: random, random-decoded, herding, whole, none")
]


def flag_name(key: str) -> str:
    """`--real-batch` for `distill.real_batch`."""
    return NAMES.get(key, "--" + key.split(".")[-1].replace("_", "-"))


def _parameter(key: str, text: str, panel: str) -> inspect.Parameter:
    kind = setting_keys()[key]
    options = [o for o in (typing.get_args(kind) if _is_union(kind) else (kind,)) if o is not type(None)]
    if options[0] is bool:
        option = typer.Option(flag_name(key), help=text, rich_help_panel=panel)
        annotation: Any = Annotated[bool | None, option]
    else:
        option = typer.Option(flag_name(key), help=text, rich_help_panel=panel, metavar=_metavar(options[0]))
        annotation = Annotated[str | None, option]
    name = key.replace(".", "__")
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(typing.get_args(kind))
    return {int: "N", float: "X"}.get(kind, "TEXT")


def settings_flags(*sections: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the flags of those sections; what the user set arrives as `overrides`, by setting key."""
    keys = {
        key: (text, panel)
        for panel, rows in FLAGS.items()
        for key, text in rows.items()
        if key.split(".")[0] in sections
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapper(**arguments: Any) -> None:
            flags = {key: arguments.pop(key.replace(".", "__")) for key in keys}
            overrides = {key: value for key, value in flags.items() if value is not None}
            command(**arguments, overrides=overrides | parse_set(arguments.get("set_")))

        own = [p for n, p in inspect.signature(command).parameters.items() if n != "overrides"]
        flags = [_parameter(key, text, panel) for key, (text, panel) in keys.items()]
        wrapper.__signature__ = inspect.Signature(own + flags)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in own + flags}
        del wrapper.__wrapped__
        return wrapper

    return decorate


def scoring(
    score: bool, data: str | None, data_root: str | None, download: bool, skip_bad: bool, overrides: dict[str, Any]
) -> Any:
    """How `--score` is to be done, a `jobs.Scoring`; none where nothing is to be scored.

    Raises:
        UserError: `--score` without `--data`, or flags of either without `--score`.
    """
    from ncfmkit.jobs.evaluate import Scoring
    from ncfmkit.real.arguments import DataArguments

    if score and data is None:
        raise UserError("--score needs --data: the real data that the students are tested on")
    if not score and (data or data_root or download or skip_bad or overrides):
        raise UserError("flags of data, students and machine say how to score the set: pass --score, or leave them out")
    if data is None:
        return None
    arguments = DataArguments(data=data, data_root=data_root, download=download, skip_bad=skip_bad)
    return Scoring(source=arguments, overrides=overrides)


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
