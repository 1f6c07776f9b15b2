"""The settings of a run: frozen, read from a TOML recipe, overridden by flags, checked as a whole.

Precedence: default < recipe < explicit flag. Nothing changes settings once made; `dataclasses.replace` makes new ones.
"""

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ncfmkit.errors import UserError

Color = Literal["rgb", "gray"]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    size: int | None = None  # side of the square images in pixels; none: as the images are
    color: Color | None = None  # channels of the images; none: as the images are
    resize: Literal["none", "crop"] = "none"  # crop: short side to `size`, then the center; none: must be `size`
    convert_color: bool = False  # convert images of another color mode to `color`; false: they are errors
    classes: tuple[str, ...] = ()  # class names or label numbers to keep, in label order; empty: all
    holdout: float = 0.0  # fraction in [0, 1) of each class kept for testing where a source has no test split
    imbalance: float = 1.0  # ratio >= 1 of the largest to the smallest class of the long-tailed version; 1: as it is


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    name: str = "convnet"  # a row of ncfmkit.networks.NETWORKS
    width: int = 128  # channels of each ConvNet block
    depth: int | None = None  # blocks of a ConvNet; none: from the size (2 at 8, 3 at 28 and 32, 4 at 64, 5 at 128)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How one classifier is trained, extractor or student (docs/method.md, sections 3 and 8; the paper's 5.1 and B)."""

    epochs: int = 60  # passes over the set
    batch: int = 128  # images per step, at most
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.01  # initial learning rate
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4
    milestones: tuple[float, ...] = (2 / 3, 5 / 6)  # fractions of the run after which lr is multiplied by gamma
    gamma: float = 0.2
    augment: str = "color_crop"  # operations joined by _, see ncfmkit.augment
    cutmix: float = 0.5  # probability of CutMix per batch


@dataclass(frozen=True, kw_only=True)
class PoolSettings(TrainSettings):
    members: int = 20  # extractors in the pool


@dataclass(frozen=True, kw_only=True)
class StudentSettings(TrainSettings):
    epochs: int = 2000
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    milestones: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    gamma: float = 0.5
    augment: str = "color_crop_flip_scale_rotate"
    repeats: int = 10  # students per score
    evaluations: int = 20  # test-set evaluations over the run, evenly spaced, the last epoch among them
    whole_epochs: int | None = None  # epochs of the whole-set baseline; none: as the pool


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    ipc: int = 10  # stored images per class (M)
    factor: int = 2  # a stored image is a factor x factor mosaic; 1: no mosaic
    decode: Literal["single", "multi", "bound"] = "single"  # factor only | 1..factor | largest first to a budget
    decoded_per_class: int | None = None  # decoded images per class of `bound`; none: ipc * factor**2
    init: Literal["mix", "random", "noise", "load"] = "mix"
    load: str | None = None  # path of the set that `init = "load"` starts from
    steps: int = 20_000
    metric: Literal["ncfd", "mean"] = "ncfd"  # mean: distribution matching by mean features (DM), the baseline
    matching_weight: float = 300.0  # scale of the matching loss
    alpha: float = 0.5  # amplitude against phase in the NCFD, in [0, 1] (Eq. 8)
    frequencies: int = 1024  # T, frequencies per step
    sampler: Literal["gaussian", "learned"] = "gaussian"  # learned: the sampling network psi
    sampler_lr: float = 1e-3  # of psi's gradient ascent
    sampler_momentum: float = 0.5
    calibration_weight: float = 1.0  # of the calibration loss; 0: no calibration
    real_batch: int = 1024  # real images per class and step, or all that the class has
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    momentum: float = 0.5  # of SGD
    weight_decay: float = 5e-4
    patience: int = 500  # steps without a lower loss after which lr halves
    augment: str = "color_crop_cutout"  # one draw per class and step, shared by real and synthetic


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    device: str = "auto"  # auto | cpu | cuda | cuda:N | mps
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of the networks; the discrepancy is always float32
    compile: Literal["auto", "on", "off"] = "auto"  # torch.compile
    memory_budget: str | None = None  # such as "2GiB", for all that a step has on the device; none: chosen per device
    gradient_checkpointing: bool = False  # recompute the extractor's blocks in the backward pass
    classes_per_batch: int | None = None  # classes stacked into one batch; none: as memory allows
    checkpoint_every: int = 500  # steps between saved states


@dataclass(frozen=True, kw_only=True)
class Settings:
    recipe: str = "default"  # where the settings started: a recipe's name
    seed: int = 0
    data: DataSettings = field(default_factory=DataSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)


LARGEST_FACTOR = 64  # of a mosaic
LARGEST = 1e30  # of a setting: float32 ends at 3.4e38, and AdamW begins with ten times its learning rate

SECTIONS: dict[str, type] = {
    f.name: typing.cast(type, f.type) for f in dataclasses.fields(Settings) if dataclasses.is_dataclass(f.type)
}


def setting_keys() -> dict[str, Any]:
    """Every setting as `section.field` (or `seed`), with its type."""
    keys: dict[str, Any] = {"seed": int}
    for section, cls in SECTIONS.items():
        keys |= {f"{section}.{name}": kind for name, kind in typing.get_type_hints(cls).items()}
    return keys


def full_key(key: str) -> str:
    """`distill.ipc` for `ipc`: a bare name stands for the one section that has it.

    Raises:
        UserError: no setting has that name, or several have.
    """
    keys = setting_keys()
    if key in keys:
        return key
    matches = [k for k in keys if k.split(".")[-1] == key]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"setting {key!r} is ambiguous: write one of {', '.join(matches)}")
    near = difflib.get_close_matches(key, [*keys, *(k.split(".")[-1] for k in keys)], n=1, cutoff=0.0)[0]
    raise UserError(f"unknown setting {key!r}: did you mean {near!r}?")


def _convert(key: str, value: Any, kind: Any) -> Any:
    """`value` as the setting's type; text is parsed, so that flags and TOML give the same."""
    # `int | None` is a types.UnionType, `Literal[...] | None` a typing.Union
    options = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    if type(None) in options and (value is None or value in ("", "none")):
        return None
    kind = next(o for o in options if o is not type(None))
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value in typing.get_args(kind):
            return value
        choices = ", ".join(map(str, typing.get_args(kind)))
        near = difflib.get_close_matches(str(value), [str(a) for a in typing.get_args(kind)], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{key}: expected one of {choices}, got {value!r}{hint}")
    if origin is tuple:
        items = [v.strip() for v in value.split(",") if v.strip()] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise UserError(f"{key}: expected a list, got {value!r}")
        return tuple(_convert(key, item, typing.get_args(kind)[0]) for item in items)
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and kind in (int, float):
        try:
            return kind(value.replace("_", ""))
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{key}: expected {kind.__name__}, got {value!r}")
    return value


def override(settings: Settings, values: dict[str, Any]) -> Settings:
    """`settings` with `{"distill.ipc": 1, "seed": 3}` applied; bare names as in :func:`full_key`."""
    kinds = setting_keys()
    for name, value in values.items():
        key = full_key(name)
        value = _convert(key, value, kinds[key])
        section, _, leaf = key.rpartition(".")
        if section:
            value = dataclasses.replace(getattr(settings, section), **{leaf: value})
        settings = dataclasses.replace(settings, **{section or leaf: value})
    return settings


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("ncfmkit.recipes")
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def recipe_text(recipe: str) -> str:
    """The TOML text of a recipe that ships with the package, or of the user's own file."""
    if recipe.endswith(".toml"):
        path = Path(recipe)
        if not path.is_file():
            raise UserError(f"recipe file not found: {recipe}")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"recipe {recipe} is not UTF-8 text: {error}") from None
    if recipe not in recipe_names():
        near = difflib.get_close_matches(recipe, recipe_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `ncfmkit recipes` lists them, a path ends in .toml"
        raise UserError(f"unknown recipe {recipe!r}{hint}")
    return (resources.files("ncfmkit.recipes") / f"{recipe}.toml").read_text(encoding="utf-8")


def _flatten(recipe: str, table: dict[str, Any]) -> dict[str, Any]:
    """A recipe's tables as `section.field` keys; unknown ones are errors that name the nearest valid one."""
    keys = setting_keys()
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if name == "description":
            if not isinstance(value, str):
                raise UserError(f"recipe {recipe}: description: expected str, got {value!r}")
            continue
        if isinstance(value, dict) and name not in SECTIONS:
            section = difflib.get_close_matches(name, SECTIONS, n=1, cutoff=0.0)[0]
            raise UserError(f"recipe {recipe}: unknown section [{name}]: did you mean [{section}]?")
        entries = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        for key, entry in entries.items():
            if key not in keys:
                near = [k for k in keys if k.endswith(f".{key}")]
                near = near or difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
                raise UserError(f"recipe {recipe}: unknown key {key!r}: did you mean {' or '.join(map(repr, near))}?")
            flat[key] = entry
    return flat


def _recipe_table(recipe: str) -> dict[str, Any]:
    text = recipe_text(recipe)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {recipe} is not valid TOML: {error}") from None


def load_recipe(recipe: str) -> Settings:
    """The settings of a named recipe or of a TOML file (a path ending in .toml).

    Raises:
        UserError: unknown recipe, malformed TOML, unknown key or a value of the wrong type.
    """
    table = _recipe_table(recipe)
    name = Path(recipe).stem if recipe.endswith(".toml") else recipe
    try:
        return override(Settings(recipe=name), _flatten(recipe, table))
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith("recipe ") else f"recipe {recipe}: {message}") from None


def recipe_description(recipe: str) -> str:
    """The one-line description that a recipe gives of itself."""
    return _recipe_table(recipe).get("description", "")


def check(settings: Settings) -> Settings:
    """Ranges and cross-field rules; returns the settings.

    Raises:
        UserError: every broken rule, one a line.
    """
    d, p, s, r, data = settings.distill, settings.pool, settings.student, settings.runtime, settings.data
    rules = [
        (settings.seed >= 0, f"seed: expected 0 or more, got {settings.seed}"),
        (d.ipc >= 1, f"distill.ipc: expected 1 or more images per class, got {d.ipc}"),
        (1 <= d.factor <= LARGEST_FACTOR, f"distill.factor: expected 1 to {LARGEST_FACTOR}, got {d.factor}"),
        (d.steps >= 0, f"distill.steps: expected 0 or more, got {d.steps}"),
        (d.real_batch >= 1, f"distill.real_batch: expected 1 or more, got {d.real_batch}"),
        (d.frequencies >= 16, f"distill.frequencies: expected 16 or more, got {d.frequencies}"),
        (d.frequencies % 16 == 0, f"distill.frequencies: expected a multiple of 16, got {d.frequencies}"),
        (
            d.sampler == "gaussian" or d.frequencies >= 32,
            "distill.sampler 'learned' needs 32 frequencies or more (batch norm over two components), "
            f"got {d.frequencies}",
        ),
        (0 <= d.alpha <= 1, f"distill.alpha: expected a value in [0, 1], got {d.alpha}"),
        (d.lr > 0, f"distill.lr: expected more than 0, got {d.lr}"),
        (d.matching_weight >= 0, f"distill.matching_weight: expected 0 or more, got {d.matching_weight}"),
        (d.sampler_lr > 0, f"distill.sampler_lr: expected more than 0, got {d.sampler_lr}"),
        (
            0 <= d.sampler_momentum < 1,
            f"distill.sampler_momentum: expected a value in [0, 1), got {d.sampler_momentum}",
        ),
        (
            d.decoded_per_class is None or d.decoded_per_class >= 1,
            f"distill.decoded_per_class: expected 1 or more, got {d.decoded_per_class}",
        ),
        (d.calibration_weight >= 0, f"distill.calibration_weight: expected 0 or more, got {d.calibration_weight}"),
        (d.patience >= 1, f"distill.patience: expected 1 or more, got {d.patience}"),
        (d.init != "load" or d.load is not None, "distill.init is 'load': pass the set to start from as distill.load"),
        (d.load is None or d.init == "load", f"distill.load is given but distill.init is {d.init!r}: set it to 'load'"),
        (
            d.decoded_per_class is None or d.decode == "bound",
            f"distill.decoded_per_class needs distill.decode = 'bound', got {d.decode!r}",
        ),
        (
            d.metric == "ncfd" or d.sampler == "gaussian",
            "distill.metric 'mean' has no frequencies to learn: set distill.sampler to 'gaussian'",
        ),
        (data.size is None or data.size >= 4, f"data.size: expected 4 pixels or more, got {data.size}"),
        (
            data.size is None or d.factor <= data.size,
            f"distill.factor {d.factor} is above the image side {data.size}: lower the factor",
        ),
        (data.resize == "none" or data.size is not None, "data.resize is 'crop': say to which side with data.size"),
        (0 <= data.holdout < 1, f"data.holdout: expected a fraction in [0, 1), got {data.holdout}"),
        (data.imbalance >= 1, f"data.imbalance: expected 1 or more, got {data.imbalance}"),
        (
            len(data.classes) != 1,
            f"data.classes: expected two classes or more for a classifier to tell apart, got {list(data.classes)}",
        ),
        (len(set(data.classes)) == len(data.classes), f"data.classes: a class is listed twice in {list(data.classes)}"),
        (settings.network.width >= 1, f"network.width: expected 1 or more, got {settings.network.width}"),
        (
            settings.network.depth is None or settings.network.depth >= 1,
            f"network.depth: expected 1 or more, got {settings.network.depth}",
        ),
        (p.members >= 1, f"pool.members: expected 1 or more, got {p.members}"),
        (s.repeats >= 0, f"student.repeats: expected 0 or more, got {s.repeats}"),
        (
            s.whole_epochs is None or s.whole_epochs >= 1,
            f"student.whole_epochs: expected 1 or more, got {s.whole_epochs}",
        ),
        (s.evaluations >= 1, f"student.evaluations: expected 1 or more, got {s.evaluations}"),
        (r.checkpoint_every >= 1, f"runtime.checkpoint_every: expected 1 or more, got {r.checkpoint_every}"),
    ]
    for name, train in (("pool", p), ("student", s)):
        rules += [
            (train.epochs >= 1, f"{name}.epochs: expected 1 or more, got {train.epochs}"),
            (train.batch >= 1, f"{name}.batch: expected 1 or more, got {train.batch}"),
            (train.lr > 0, f"{name}.lr: expected more than 0, got {train.lr}"),
            (0 <= train.cutmix <= 1, f"{name}.cutmix: expected a probability, got {train.cutmix}"),
            (train.gamma > 0, f"{name}.gamma: expected more than 0, got {train.gamma}"),
            (
                all(0 < m < 1 for m in train.milestones) and list(train.milestones) == sorted(train.milestones),
                f"{name}.milestones: expected rising fractions in (0, 1), got {list(train.milestones)}",
            ),
        ]
    for name, optimized in (("pool", p), ("student", s), ("distill", d)):
        rules += [
            (0 <= optimized.momentum < 1, f"{name}.momentum: expected a value in [0, 1), got {optimized.momentum}"),
            (optimized.weight_decay >= 0, f"{name}.weight_decay: expected 0 or more, got {optimized.weight_decay}"),
        ]
    for section in SECTIONS:
        for name, value in vars(getattr(settings, section)).items():
            if isinstance(value, float):
                rules += [
                    (math.isfinite(value), f"{section}.{name}: expected a finite number, got {value}"),
                    (
                        not LARGEST < abs(value) < math.inf,
                        f"{section}.{name}: expected at most {LARGEST:g}, the most that float32 can reckon with, "
                        f"got {value}",
                    ),
                ]
    broken = [message for ok, message in rules if not ok]
    if broken:
        raise UserError("\n".join(broken))
    return settings


def to_dict(settings: Any) -> dict[str, Any]:
    """Settings (or one section) as plain JSON values."""
    return dataclasses.asdict(settings, dict_factory=lambda items: {k: _plain(v) for k, v in items})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


RENAMED = {  # keys of settings that earlier sets and runs were saved with
    "distill.decoded_budget": "distill.decoded_per_class",
    "runtime.stack": "runtime.classes_per_batch",
}


def from_dict(table: dict[str, Any]) -> Settings:
    """The settings that :func:`to_dict` wrote, now or in an earlier version."""
    table = dict(table)
    recipe = table.pop("recipe", "default")
    for old, new in RENAMED.items():
        section, key = old.split(".")
        if isinstance(table.get(section), dict) and key in table[section]:
            values = dict(table[section])
            values[new.split(".")[1]] = values.pop(key)
            table[section] = values
    return override(Settings(recipe=recipe), _flatten(recipe, table))
