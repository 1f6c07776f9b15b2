"""The settings of a run: frozen, read from a TOML recipe, overridden by flags, checked as a whole.

Precedence: default < recipe < explicit flag. Nothing changes settings once made; `dataclasses.replace` makes new ones.
A setting is described once, where it is defined; its checks, its flag with the --help text and docs/settings.md follow.
"""

import dataclasses
import difflib
import math
import operator
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ncfmkit.errors import UserError

LARGEST_FACTOR = 64  # of a mosaic
LARGEST = 1e30  # of a setting: float32 ends at 3.4e38, and AdamW begins with ten times its learning rate


@dataclass(frozen=True, kw_only=True)
class Range:
    """Which numbers a setting may be. A lower end is always given."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    multiple_of: float | None = None

    def __contains__(self, number: float) -> bool:
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
            and (self.multiple_of is None or number % self.multiple_of == 0)
        )

    def __str__(self) -> str:
        """Such as `1 or more`, `0 to 1`, `more than 0 and at most 1` or `16 or more and a multiple of 16`."""
        parts = [f"more than {self.above}" if self.at_least is None else f"{self.at_least} or more"]
        if self.at_most is not None and self.at_least is not None:
            parts = [f"{self.at_least} to {self.at_most}"]
        elif self.at_most is not None:
            parts.append(f"at most {self.at_most}")
        if self.below is not None:
            parts.append(f"below {self.below}")
        if self.multiple_of is not None:
            parts.append(f"a multiple of {self.multiple_of}")
        return " and ".join(parts)


def setting(default: Any, help: str, *, unit: str = "", flag: str | None = None, **limits: float) -> Any:
    """A field of a section of the settings, with its description.

    Args:
        help: one line for --help and the docs; `{section}` in it, or in `flag`, becomes the section's name.
        unit: what its number counts.
        flag: the option that sets it; without one, a recipe or `--set` does.
        limits: the :class:`Range` of its number, or of each number of its list.
    """
    about = {"help": help, "unit": unit, "flag": flag, "range": Range(**limits) if limits else None}
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """The real images: which of them, and how they are read."""

    size: int | None = setting(
        None, "side of the square images in pixels; none keeps their size", unit="pixels", at_least=4, flag="--size"
    )
    color: Literal["rgb", "gray"] | None = setting(
        None, "color mode that all images are converted to; none uses the mode of most images", flag="--color"
    )
    resize: Literal["none", "crop"] = setting(
        "none",
        "crop scales the short side to --size and crops the center; none expects images of that size",
        flag="--resize",
    )
    classes: tuple[str, ...] = setting(
        (),
        "class names or labels to keep, comma-separated, or a file with one per line; empty keeps all",
        flag="--classes",
    )
    holdout: float = setting(
        0.0,
        "fraction of each class held out as the test split of data without one",
        at_least=0,
        below=1,
        flag="--holdout",
    )
    imbalance: float = setting(
        1.0,
        "long-tailed version: size ratio of the largest class to the smallest; 1 keeps all images",
        at_least=1,
        flag="--imbalance",
    )
    image_column: str | None = setting(
        None,
        "column of the pictures in Parquet and datasets, file extension in WebDataset; none looks for usual names",
        flag="--image-column",
    )
    label_column: str | None = setting(
        None,
        "column of the labels in Parquet and datasets, key of the .json in WebDataset; none looks for usual names",
        flag="--label-column",
    )


NetworkName = Literal[
    "convnet", "convnetbn", "alexnet", "vgg11", "resnet18", "resnetap10", "densenet121", "vit", "convnext"
]


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The architecture of extractors and students."""

    name: NetworkName = setting(  # noqa: RUF009 (a literal, by its name)
        "convnet", "network architecture, see `ncfmkit recipes --networks`", flag="--network"
    )
    width: int = setting(128, "channels of each ConvNet block", unit="channels", at_least=1, flag="--width")
    depth: int | None = setting(  # by the size: 2 at 8, 3 at 28 and 32, 4 at 64, 5 at 128
        None, "blocks of a ConvNet; none derives them from the image size", unit="blocks", at_least=1, flag="--depth"
    )


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How one classifier is trained, extractor or student (docs/method.md, sections 3 and 8; the paper's 5.1 and B)."""

    epochs: int = setting(
        60, "training epochs of each {section} network", unit="epochs", at_least=1, flag="--{section}-epochs"
    )
    batch: int = setting(128, "maximum number of images per step", unit="images", at_least=1)
    optimizer: Literal["sgd", "adamw"] = setting("sgd", "optimizer of the weights")
    lr: float = setting(0.01, "initial learning rate", above=0)
    momentum: float = setting(0.9, "momentum of SGD", at_least=0, below=1)
    weight_decay: float = setting(5e-4, "weight decay", at_least=0)
    milestones: tuple[float, ...] = setting(
        (2 / 3, 5 / 6), "fractions of the training after which lr is multiplied by gamma", above=0, below=1
    )
    gamma: float = setting(0.2, "factor that multiplies lr at each milestone", above=0)
    augment: str = setting(
        "color_crop", "operations joined by _: color, flip, cutout, and one of crop, scale, rotate at a time; or none"
    )
    cutmix: float = setting(0.5, "probability of CutMix per batch", at_least=0, at_most=1)


@dataclass(frozen=True, kw_only=True)
class PoolSettings(TrainSettings):
    """The pool of feature extractors and their training."""

    members: int = setting(20, "extractors in the pool", unit="extractors", at_least=1, flag="--pool")
    networks: tuple[NetworkName, ...] = setting(
        (),
        "networks of the extractors, comma-separated, which the members take in turn; empty takes --network",
        flag="--extractors",
    )
    extractor_width: int | None = setting(
        None,
        "channels of each block of a ConvNet extractor; none takes --width, as students have it",
        unit="channels",
        at_least=1,
        flag="--extractor-width",
    )
    snapshots: int = setting(
        0,
        "states kept of each extractor between its first and its last epoch, evenly spaced",
        unit="snapshots",
        at_least=0,
        flag="--snapshots",
    )


@dataclass(frozen=True, kw_only=True)
class StudentSettings(TrainSettings):
    """The students that score a set and their training."""

    # other defaults than the pool's; their descriptions are inherited
    epochs: int = 2000
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    milestones: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    gamma: float = 0.5
    augment: str = "color_crop_flip_scale_rotate"
    repeats: int = setting(
        10, "students trained per score; 0 skips scoring", unit="students", at_least=0, flag="--repeats"
    )
    evaluations: int = setting(
        20,
        "evaluations on the test split during training, evenly spaced, the last epoch included",
        unit="evaluations",
        at_least=1,
    )
    whole_epochs: int | None = setting(
        None,
        "minimum epochs of the whole-set baseline, which trains for more where the set's students take more steps; "
        "none uses pool.epochs",
        unit="epochs",
        at_least=1,
    )


def bits_and_color(bits: int, chroma: str | None) -> str:
    """How images are stored, in words: such as `2 bits, color 4:2:0`; whole color is not mentioned."""
    return f"{bits} bits" + ("" if chroma in (None, "4:4:4") else f", color {chroma}")


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """The method: the synthetic images, the discrepancy that is matched, the steps."""

    ipc: int = setting(10, "stored images per class", unit="images per class", at_least=1, flag="--ipc")
    bytes: str | None = setting(
        None,
        "size of the set instead of --ipc, such as 12288/class or 120KB in all; chooses --ipc, and --bits and --chroma "
        "where not given",
        flag="--bytes",
    )
    bits: int | None = setting(
        None,
        "bits per stored pixel value (8, 6, 5, 4, 3 or 2), for which images are rounded while they are distilled; "
        "none: 8, or by --bytes",
        unit="bits",
        at_least=2,
        at_most=8,
        flag="--bits",
    )
    chroma: Literal["4:4:4", "4:2:0"] | None = setting(
        None,
        "resolution of the stored color: 4:4:4 for that of the image, 4:2:0 for half of it; none: 4:4:4, or by --bytes",
        flag="--chroma",
    )
    bits_from: float = setting(
        0.5,
        "share of the steps after which images are rounded to what --bits and --chroma store",
        at_least=0,
        at_most=1,
    )
    factor: int = setting(
        2, "each stored image is a factor x factor mosaic", at_least=1, at_most=LARGEST_FACTOR, flag="--factor"
    )
    decode: Literal["single", "multi", "bound"] = setting(
        "single",
        "how stored images are cut: by --factor (single), by 1 to --factor (multi), or largest first up to a budget "
        "(bound)",
        flag="--decode",
    )
    decoded_per_class: int | None = setting(
        None,
        "budget of --decode bound, at least ipc * factor**2; none uses this minimum",
        unit="images per class",
        at_least=1,
    )
    shard: str | None = setting(
        None,
        "distill only this part of the classes, such as 3/8, for `ncfmkit merge` to join; none: all classes",
        flag="--shard",
    )
    add_to: str | None = setting(
        None,
        "set to which the data's new classes are added: only they are distilled, by its settings unless a recipe is "
        "named",
        flag="--add-to",
    )
    drop_classes: tuple[str, ...] = setting(
        (), "classes of the set of --add-to to leave out, which the data do not have", flag="--drop-classes"
    )
    new_classes: tuple[str, ...] = setting((), "classes of the data that the set of --add-to lacks: found, not set")
    init: Literal["mix", "random", "noise", "load"] = setting("mix", "initial images", flag="--init")
    load: str | None = setting(None, "set that --init load starts from", flag="--load")
    steps: int = setting(
        20_000, "distillation steps; 0 keeps the initial images", unit="steps", at_least=0, flag="--steps"
    )
    metric: Literal["ncfd", "mean"] = setting(
        "ncfd", "discrepancy: ncfd, or mean matching (DM) as a baseline", flag="--metric"
    )
    matching_weight: float = setting(300.0, "weight of the matching loss", at_least=0)
    alpha: float = setting(
        0.5, "weight of amplitude against phase in the NCFD (Eq. 8)", at_least=0, at_most=1, flag="--alpha"
    )
    frequencies: int = setting(1024, "frequencies per step", at_least=16, multiple_of=16, flag="--frequencies")
    sampler: Literal["gaussian", "learned"] = setting(
        "gaussian", "draws frequencies from a Gaussian or from a network trained against the images", flag="--sampler"
    )
    sampler_lr: float = setting(
        1e-3, "learning rate of the sampling network's gradient ascent; 0 freezes the network", at_least=0
    )
    sampler_momentum: float = setting(0.5, "momentum of the sampling network's gradient ascent", at_least=0, below=1)
    calibration_weight: float = setting(
        1.0, "weight of the calibration loss; 0 disables it", at_least=0, flag="--calibration"
    )
    extractor: Literal["blend", "stages"] = setting(
        "blend",
        "matching extractor of a step: between a pool member's initial and final weights (blend, as in the paper), or "
        "as the member was at one stage of its training (stages, see --snapshots)",
        flag="--extractor",
    )
    stage_order: Literal["uniform", "rising"] = setting(
        "uniform", "stages that a step may draw: all of them, or the early ones first and the late ones at the end"
    )
    calibration_stages: int | None = setting(
        None,
        "the calibration network is drawn from so many stages, the matching extractor's first; none: the final one",
        unit="stages",
        at_least=1,
    )
    real_batch: int = setting(
        1024,
        "maximum number of real images per class and step",
        unit="images per class",
        at_least=1,
        flag="--real-batch",
    )
    easiest: float = setting(
        1.0,
        "share of each class's real images that steps draw from: those that the extractors find easiest; 1 is all",
        above=0,
        at_most=1,
        flag="--easiest",
    )
    optimizer: Literal["adamw", "sgd"] = setting("adamw", "optimizer of the images", flag="--optimizer")
    lr: float = setting(1e-3, "learning rate of the images", above=0, flag="--lr")
    momentum: float = setting(0.5, "momentum of SGD", at_least=0, below=1)
    weight_decay: float = setting(5e-4, "weight decay of the images", at_least=0)
    schedule: Literal["plateau", "smooth-plateau", "cosine", "constant"] = setting(
        "plateau",
        "learning rate over the run: plateau (the paper's), smooth-plateau, cosine or constant",
        flag="--schedule",
    )
    patience: int = setting(
        500, "steps without a lower loss after which the plateau schedules halve lr", unit="steps", at_least=1
    )
    warmup: int = setting(0, "first steps, over which lr rises to its value", unit="steps", at_least=0)
    average: float = setting(
        0.0,
        "decay of the moving average of the images that is stored in place of the last ones, such as 0.98; 0: none",
        at_least=0,
        below=1,
    )
    augment: str = setting(
        "color_crop_cutout", "as pool.augment; drawn once per class and step, for real and synthetic images alike"
    )

    @property
    def stored_bits(self) -> int:
        """Bits per stored pixel value."""
        return self.bits or 8

    @property
    def stored_chroma(self) -> Literal["4:4:4", "4:2:0"]:
        """Resolution of the stored color."""
        return self.chroma or "4:4:4"

    @property
    def is_subsampled(self) -> bool:
        """Whether color is stored at half the resolution."""
        return self.stored_chroma == "4:2:0"

    @property
    def stored_as(self) -> str:
        """Such as `2 bits, color 4:2:0`."""
        return bits_and_color(self.stored_bits, self.stored_chroma)

    @property
    def is_quantized(self) -> bool:
        """Whether images are stored otherwise than as a byte for each value."""
        return self.stored_bits < 8 or self.is_subsampled


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Soft labels: what the extractors of the pool say of each decoded image (docs/method.md, section 8)."""

    soft: bool = setting(
        False,
        "store what the extractors say of each decoded image, to train on in place of its class",
        flag="--soft-labels",
    )
    temperature: float = setting(
        1.0, "divides the extractors' logits: above 1 makes soft labels softer", above=0, flag="--temperature"
    )
    stages: int = setting(
        1,
        "last stages of each extractor that teach: 1 is its final state, more need --snapshots",
        unit="stages",
        at_least=1,
        flag="--teacher-stages",
    )
    bits: int = setting(
        16,
        "bits per stored logit of the soft labels: 16 (float16), 8 or 4",
        unit="bits",
        at_least=4,
        at_most=16,
        multiple_of=4,
        flag="--label-bits",
    )
    top: int = setting(
        0,
        "store only so many of each image's largest logits, and the mean of the others; 0: all of them",
        unit="classes",
        at_least=0,
        flag="--top",
    )


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """The machine: device, precision, memory."""

    device: str = setting("auto", "device: auto, cpu, cuda, cuda:N or mps", flag="--device")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "precision of the networks; the discrepancy is always float32", flag="--precision"
    )
    compile: Literal["auto", "on", "off"] = setting("auto", "use torch.compile", flag="--compile")
    memory_budget: str | None = setting(
        None,
        "limit of a step's memory on the device, such as 2GiB; none lets the device decide",
        flag="--memory-budget",
    )
    gradient_checkpointing: bool = setting(
        False, "recompute the extractor's blocks in the backward pass", flag="--gradient-checkpointing"
    )
    classes_per_batch: int | None = setting(
        None, "classes stacked into one batch; none stacks as many as memory allows", unit="classes", at_least=1
    )
    rank_timeout: float = setting(
        600.0, "how long the ranks of a run wait for one that is silent or stuck", unit="seconds", above=0
    )
    checkpoint_every: int = setting(
        500, "steps between checkpoints", unit="steps", at_least=1, flag="--checkpoint-every"
    )
    log: Literal["tensorboard"] | None = setting(
        None, "write TensorBoard event files beside metrics.jsonl; none writes metrics.jsonl only", flag="--log"
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run. Only the seed is outside the sections, at the top of a recipe."""

    recipe: str = "default"  # where the settings started: a recipe's name
    seed: int = setting(0, "seed of every random draw", at_least=0, flag="--seed")
    data: DataSettings = field(default_factory=DataSettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    pool: PoolSettings = field(default_factory=PoolSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    labels: LabelSettings = field(default_factory=LabelSettings)
    student: StudentSettings = field(default_factory=StudentSettings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)

    @property
    def extractors(self) -> tuple[NetworkSettings, ...]:
        """The networks of the pool's extractors, which its members take in turn: the students', or others."""
        own, width = self.network, self.pool.extractor_width
        networks = [own if n == own.name else NetworkSettings(name=n) for n in self.pool.networks or (own.name,)]
        return tuple(
            n if n.name != "convnet" or width is None else dataclasses.replace(n, width=width) for n in networks
        )


SECTIONS: dict[str, type] = {
    f.name: typing.cast(type, f.type) for f in dataclasses.fields(Settings) if dataclasses.is_dataclass(f.type)
}

PANELS = {  # of --help, by section
    "data": "Data",
    "distill": "Distillation",
    "labels": "Distillation",
    "network": "Networks",
    "pool": "Networks",
    "student": "Networks",
    "runtime": "Machine",
    "seed": "Machine",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The description of a setting, as checks, flags and docs read it."""

    key: str  # `section.field`, or `seed`
    kind: Any  # type of its values, such as int, tuple[float, ...] or a Literal
    optional: bool  # it may be none, too
    default: Any
    help: str
    unit: str
    flag: str | None
    range: Range | None

    @property
    def name(self) -> str:
        """How messages name it: `--ipc (distill.ipc)`, or its key where no flag sets it."""
        return f"{self.flag} ({self.key})" if self.flag else self.key

    @property
    def section(self) -> str:
        """`distill` of `distill.ipc`, and `seed` of `seed`."""
        return self.key.split(".")[0]

    @property
    def leaf(self) -> str:
        """`ipc` of `distill.ipc`, and `seed` of `seed`."""
        return self.key.split(".")[-1]

    @property
    def choices(self) -> tuple[str, ...]:
        """All that it may be, if that is a few words."""
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()

    def wrong(self, value: Any) -> str | None:
        """What is wrong with a value of its type, in one line; None if nothing is."""
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float):
                continue
            if self.range is not None and number not in self.range:
                return f"{self.name}: expected {f'{self.range} {self.unit}'.strip()}, got {number}"
            if isinstance(number, float) and not math.isfinite(number):
                return f"{self.name}: expected a finite number, got {number}"
            if isinstance(number, float) and abs(number) > LARGEST:
                return f"{self.name}: expected at most {LARGEST:g}, which float32 still holds, got {number}"
        return None


def _describe() -> Iterator[Setting]:
    for section, cls in {"": Settings, **SECTIONS}.items():
        bases = [base for base in cls.__mro__ if dataclasses.is_dataclass(base)]
        for f in dataclasses.fields(cls):
            # a section that changes an inherited default leaves the description where it is
            found = [g.metadata for base in bases for g in dataclasses.fields(base) if g.name == f.name and g.metadata]
            if not found:  # the recipe's name, or a section
                continue
            about = found[0]
            # `int | None` is a types.UnionType, `Literal[...] | None` a typing.Union
            is_union = typing.get_origin(f.type) in (types.UnionType, typing.Union)
            kinds = typing.get_args(f.type) if is_union else (f.type,)
            yield Setting(
                key=f"{section}.{f.name}" if section else f.name,
                kind=next(kind for kind in kinds if kind is not type(None)),
                optional=type(None) in kinds,
                default=f.default,
                help=about["help"].replace("{section}", section),
                unit=about["unit"],
                flag=about["flag"] and about["flag"].replace("{section}", section),
                range=about["range"],
            )


SETTINGS: dict[str, Setting] = {about.key: about for about in _describe()}


def full_key(key: str) -> str:
    """`distill.ipc` for `ipc`: a bare name stands for the one section that has it.

    Raises:
        UserError: no setting has that name, or several have.
    """
    if key in SETTINGS:
        return key
    matches = [about.key for about in SETTINGS.values() if about.leaf == key]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"setting {key!r} is ambiguous: write one of {', '.join(matches)}")
    raise UserError(f"unknown setting {key!r}{_hint(key)}")


def _hint(key: str) -> str:
    """`; did you mean 'distill.ipc'?` if a setting is near, else where all of them are listed."""
    section, _, leaf = key.rpartition(".")
    if all(leaf != about.leaf for about in SETTINGS.values()):
        known = [about.leaf for about in SETTINGS.values() if section not in SECTIONS or about.section == section]
        leaf = next(iter(difflib.get_close_matches(leaf, known, n=1)), "")
    near = " or ".join(repr(about.key) for about in SETTINGS.values() if about.leaf == leaf)
    return f"; did you mean {near}?" if near else "; `python -m ncfmkit.config` lists all settings"


TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}  # in messages


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value` as a setting's type; text is parsed, so that flags and TOML give the same. `name` is for messages."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value in typing.get_args(kind):
            return value
        choices = ", ".join(map(str, typing.get_args(kind)))
        near = difflib.get_close_matches(str(value), [str(a) for a in typing.get_args(kind)], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{name}: expected one of {choices}, got {value!r}{hint}")
    if origin is tuple:
        items = [v.strip() for v in value.split(",") if v.strip()] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise UserError(f"{name}: expected a list, got {value!r}")
        return tuple(_convert(name, item, typing.get_args(kind)[0]) for item in items)
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str) and kind in (int, float):
        try:
            return kind(value.replace("_", ""))
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise UserError(f"{name}: expected {TYPE_NAMES[kind]}, got {value!r}")
    return value


def override(settings: Settings, values: dict[str, Any]) -> Settings:
    """`settings` with `{"distill.ipc": 1, "seed": 3}` applied; bare names as in :func:`full_key`."""
    for name, value in values.items():
        key = full_key(name)
        about = SETTINGS[key]
        none = about.optional and (value is None or value in ("", "none"))
        value = None if none else _convert(about.name, value, about.kind)
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
        listed = "; `ncfmkit recipes` lists them, the path of a recipe file ends in .toml"
        hint = f"; did you mean {near[0]!r}?" if near else listed
        raise UserError(f"unknown recipe {recipe!r}{hint}")
    return (resources.files("ncfmkit.recipes") / f"{recipe}.toml").read_text(encoding="utf-8")


def _flatten(recipe: str, table: dict[str, Any]) -> dict[str, Any]:
    """A recipe's tables as `section.field` keys. Raises UserError at an unknown one."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if name == "description":
            if not isinstance(value, str):
                raise UserError(f"recipe {recipe}: description: expected text, got {value!r}")
            continue
        if isinstance(value, dict) and name not in SECTIONS:
            near = difflib.get_close_matches(name, SECTIONS, n=1)
            hint = f"did you mean [{near[0]}]?" if near else f"expected one of {', '.join(SECTIONS)}"
            raise UserError(f"recipe {recipe}: unknown section [{name}]; {hint}")
        entries = {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
        for key, entry in entries.items():
            if key not in SETTINGS:
                raise UserError(f"recipe {recipe}: unknown key {key!r}{_hint(key)}")
            flat[key] = entry
    return flat


def recipe_table(recipe: str) -> dict[str, Any]:
    """A recipe as its TOML has it. Raises UserError where it is not valid TOML."""
    text = recipe_text(recipe)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"recipe {recipe} is not valid TOML: {error}") from None


def load_recipe(recipe: str | os.PathLike[str]) -> Settings:
    """The settings of a named recipe or of a TOML file (a path ending in .toml).

    Raises:
        UserError: unknown recipe, malformed TOML, unknown key or a value of the wrong type.
    """
    recipe = os.fspath(recipe)
    table = recipe_table(recipe)
    name = Path(recipe).stem if recipe.endswith(".toml") else recipe
    try:
        return override(Settings(recipe=name), _flatten(recipe, table))
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith("recipe ") else f"recipe {recipe}: {message}") from None


def recipe_description(recipe: str) -> str:
    """The one-line description that a recipe gives of itself."""
    return recipe_table(recipe).get("description", "")


def check(settings: Settings) -> Settings:
    """The settings, if each is in its range and all go together.

    Raises:
        UserError: all that is wrong, one a line.
    """
    wrong = [about.wrong(operator.attrgetter(key)(settings)) for key, about in SETTINGS.items()]
    lines = [line for line in (*wrong, *_broken_rules(settings)) if line]
    if lines:
        raise UserError("\n".join(lines))
    return settings


def parse_shard(text: str) -> tuple[int, int]:
    """The number of a shard, from 1, and of how many: `3/8` is the third of eight.

    Raises:
        UserError: not such a text.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise UserError(f"--shard {text!r}: expected a number and of how many, such as 3/8, counted from 1")
    return number, of


def _broken_by_shard(settings: Settings) -> Iterator[str]:
    """What makes the classes of a run depend on one another, where each shard is to be as if all were there."""
    d = settings.distill
    if d.shard is None:
        return
    try:
        parse_shard(d.shard)
    except UserError as error:
        yield str(error)
    if d.steps == 0:
        yield "--shard needs --steps of 1 or more"
    if d.schedule not in ("cosine", "constant"):
        yield f"--shard: --schedule {d.schedule} follows the loss of all classes: pass --schedule cosine or constant"
    if d.sampler == "learned" and d.sampler_lr > 0:
        yield (
            "--shard: a sampling network learns from all classes: pass --sampler gaussian, or "
            "--set distill.sampler_lr=0 to keep it as it is initialized"
        )
    if settings.runtime.precision == "fp16":
        yield "--shard: --precision fp16 scales the gradients of all classes alike: pass bf16 or fp32"


def _broken_rules(settings: Settings) -> Iterator[str]:
    """What is wrong with settings that go together, or with the items of a list."""
    d, data = settings.distill, settings.data
    names = {key: about.name for key, about in SETTINGS.items()}
    if len(data.classes) == 1:
        yield f"{names['data.classes']}: expected two or more classes, got {list(data.classes)}"
    if len(set(data.classes)) < len(data.classes):
        yield f"{names['data.classes']}: a class is listed twice in {list(data.classes)}"
    if data.resize == "crop" and data.size is None:
        yield f"{names['data.resize']} is 'crop': pass the side to crop to as {names['data.size']}"
    if data.size is not None and d.factor > data.size:
        yield f"{names['distill.factor']} {d.factor} is above the image side {data.size}: lower the factor"
    if d.decoded_per_class is not None and d.decode != "bound":
        yield f"{names['distill.decoded_per_class']} needs {names['distill.decode']} 'bound', got {d.decode!r}"
    if d.bytes is not None and d.add_to is not None:
        yield f"{names['distill.add_to']}: the new classes get as many images as the set has: leave --bytes out"
    if d.bytes is not None and d.init == "load":
        yield f"{names['distill.load']}: the set has its number of images: pass --bits or --chroma, not --bytes"
    if d.bits == 7:
        yield f"{names['distill.bits']} 7: expected 8, 6, 5, 4, 3 or 2"
    if d.init == "load" and d.load is None:
        yield f"{names['distill.init']} is 'load': pass the set to start from as {names['distill.load']}"
    if d.init != "load" and d.load is not None:
        yield f"{names['distill.load']} needs {names['distill.init']} 'load', got {d.init!r}"
    if d.metric == "mean" and d.sampler == "learned":
        yield f"{names['distill.sampler']} 'learned' needs {names['distill.metric']} 'ncfd', got 'mean'"
    if d.sampler == "learned" and d.frequencies < 32:
        yield (
            f"{names['distill.sampler']} 'learned' needs 32 or more {names['distill.frequencies']} "
            f"(batch norm over two components), got {d.frequencies}"
        )
    yield from _broken_by_shard(settings)
    if d.add_to is None and (d.drop_classes or d.new_classes):
        yield f"{names['distill.drop_classes' if d.drop_classes else 'distill.new_classes']} needs --add-to SET"
    if d.add_to is not None and d.init == "load":
        yield f"{names['distill.add_to']}: --init load starts all classes from a set: pass another for the new classes"
    extractors = settings.pool.networks or (settings.network.name,)
    if settings.pool.extractor_width is not None and "convnet" not in extractors:
        yield f"{names['pool.extractor_width']} needs an extractor 'convnet', got {', '.join(extractors)}"
    if len(set(extractors)) < len(extractors):
        yield f"{names['pool.networks']}: a network is listed twice in {', '.join(extractors)}"
    if settings.pool.members < len(extractors) > 1:
        yield f"{names['pool.members']}: expected {len(extractors)} or more, one for each of {', '.join(extractors)}"
    if len(extractors) > 1 and d.sampler == "learned":
        yield (
            f"{names['distill.sampler']} 'learned' needs extractors of one width of features: pass one network as "
            f"{names['pool.networks']}, or --sampler gaussian"
        )
    if settings.pool.snapshots and settings.pool.snapshots >= settings.pool.epochs:
        yield (
            f"{names['pool.snapshots']} {settings.pool.snapshots}: expected fewer than the epochs of an extractor, "
            f"{settings.pool.epochs} ({names['pool.epochs']})"
        )
    if settings.labels.stages > 1 + max(0, settings.pool.snapshots):
        yield (
            f"{names['labels.stages']} {settings.labels.stages}: expected at most {settings.pool.snapshots + 1}, the "
            f"{names['pool.snapshots']} and the final state"
        )
    if settings.labels.bits == 12:
        yield f"{names['labels.bits']} 12: expected 16, 8 or 4"
    if settings.labels.top > 0 and settings.labels.bits == 16:
        yield f"{names['labels.top']} needs {names['labels.bits']} 8 or 4, got 16"
    if d.extractor == "stages" and not settings.pool.snapshots:
        yield f"{names['distill.extractor']} 'stages' needs {names['pool.snapshots']} of 1 or more"
    if d.extractor == "blend" and (d.calibration_stages or d.stage_order != "uniform"):
        key = "distill.calibration_stages" if d.calibration_stages else "distill.stage_order"
        yield f"{names[key]} needs {names['distill.extractor']} 'stages', got 'blend'"
    for section, train in (("pool", settings.pool), ("student", settings.student)):
        if list(train.milestones) != sorted(train.milestones):
            yield f"{section}.milestones: expected rising fractions, got {list(train.milestones)}"


def to_dict(settings: Any) -> dict[str, Any]:
    """Settings (or one section) as plain JSON values."""
    return dataclasses.asdict(settings, dict_factory=lambda items: {k: _plain(v) for k, v in items})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


RENAMED = {  # keys of settings that earlier sets and runs were saved with
    "distill.decoded_budget": "distill.decoded_per_class",
    "runtime.stack": "runtime.classes_per_batch",
}


GONE = ("data.convert_color",)  # images are always converted


def current_names(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table that :func:`to_dict` wrote, now or in an earlier version, with the names that settings have now."""
    table = dict(table)
    for old, new in RENAMED.items():
        section, key = old.split(".")
        if isinstance(table.get(section), Mapping) and key in table[section]:
            values = dict(table[section])
            values[new.split(".")[1]] = values.pop(key)
            table[section] = values
    for key in GONE:
        section, name = key.split(".")
        if isinstance(table.get(section), Mapping):
            table[section] = {k: v for k, v in table[section].items() if k != name}
    return table


def known_names(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table that another version's :func:`to_dict` wrote, without what is no setting here."""
    table = current_names(table)
    known = {
        name: {key: value for key, value in table[name].items() if f"{name}.{key}" in SETTINGS}
        for name in SECTIONS
        if isinstance(table.get(name), Mapping)
    }
    return {key: table[key] for key in ("recipe", "seed") if key in table} | known


def by_name(table: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`to_dict` wrote, with full names as keys, such as `distill.lr`."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def from_dict(table: Mapping[str, Any]) -> Settings:
    """The settings that :func:`to_dict` wrote, now or in an earlier version."""
    table = current_names(table)
    recipe = table.pop("recipe", "default")
    return override(Settings(recipe=recipe), _flatten(recipe, table))


def settings_page() -> str:
    """docs/settings.md: the settings of each section in a table."""
    lines = [
        "# Settings",
        "",
        "<!-- Made by `python -m ncfmkit.config > docs/settings.md` from the descriptions in ncfmkit/config.py. -->",
        "",
        "A recipe (TOML, a table for each section) overrides defaults, a flag overrides both. `--set KEY=VALUE` sets",
        "what has no flag. `none` means no value.",
    ]
    for section, cls in {"": Settings, **SECTIONS}.items():
        lines += ["", f"## {section or 'outside the sections'}", "", " ".join((cls.__doc__ or "").split()), ""]
        lines += ["| key | flag | type | default | range | unit | description |", "|---|---|---|---|---|---|---|"]
        for about in SETTINGS.values():
            if about.key.rpartition(".")[0] == section:
                cells = [_code(about.key), _code(about.flag), _type_words(about), _code(default_words(about.default))]
                lines.append(f"| {' | '.join([*cells, str(about.range or ''), about.unit, about.help])} |")
    return "\n".join(lines) + "\n"


def _code(text: str | None) -> str:
    return f"`{text}`" if text else ""


def _type_words(about: Setting) -> str:
    words = {
        bool: "`true`, `false`",
        int: "whole number",
        float: "number",
        str: "text",
        tuple[str, ...]: "list of texts",
        tuple[NetworkName, ...]: "list of networks",
        tuple[float, ...]: "list of numbers",
    }
    text = ", ".join(map(_code, about.choices)) or words[about.kind]
    return f"{text}, `none`" if about.optional else text


def default_words(value: Any) -> str:
    """A default as --help and docs/settings.md show it."""
    if isinstance(value, tuple):
        return ",".join(map(default_words, value)) or "empty"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


if __name__ == "__main__":
    print(settings_page(), end="")
