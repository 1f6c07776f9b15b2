"""Real data that fit a model: opened as they are, and if they do not fit, with the flags that mend it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ncfmkit.config import Settings
from ncfmkit.errors import UserError
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.decode import COLORS
from ncfmkit.real.store import RealData, Split


@dataclass(frozen=True, kw_only=True)
class Taker:
    """What takes the images: a model or a student."""

    name: str  # for messages
    channels: int
    size: int
    classes: tuple[str, ...] | None  # None: it has no names for them
    class_count: int


def open_fitting(data: DataArguments, settings: Settings, taker: Taker) -> RealData:
    """Real data that fit the model or student as they are read, with a test split.

    Raises:
        UserError: they cannot be read, have other sizes, colors or classes, with the flags that mend it, or no test
            split.
    """
    size_flags = f"--size {taker.size} --resize crop"
    color = next(name for name, channels in COLORS.items() if channels == taker.channels)
    color_flags = f"--color {color} --convert-color"
    try:
        real = data.open(settings)
    except UserError as error:
        problem, _, advice = str(error).partition(": pass ")  # its advice fits the data, but perhaps not the model
        flags = size_flags if "--resize crop" in advice else color_flags if "--convert-color" in advice else ""
        if not flags:
            raise
        raise UserError(
            f"{problem}: pass {flags}, since {taker.name} takes {taker.size}x{taker.size} {color}"
        ) from None
    needed = [size_flags] * (real.size != taker.size) + [color_flags] * (real.channels != taker.channels)
    if needed:
        own = next(name for name, channels in COLORS.items() if channels == real.channels)
        raise UserError(
            f"{real.name} has {real.size}x{real.size} {own} images, {taker.name} takes {taker.size}x{taker.size} "
            f"{color}: pass {' '.join(needed)}, or the data that it was made for"
        )
    if taker.classes is not None:
        check_classes(taker.name, taker.classes, real.name, real.classes)
    elif taker.class_count != len(real.classes):
        raise UserError(f"{taker.name} tells {taker.class_count} classes apart, {real.name} has {len(real.classes)}")
    test_split(real)
    return real


def check_classes(one: str, ours: Sequence[str], other: str, theirs: Sequence[str]) -> None:
    """Raises UserError if two lists of class names differ, saying in what."""
    if tuple(ours) == tuple(theirs):
        return
    if sorted(ours) == sorted(theirs):
        label = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        raise UserError(
            f"{one} and {other} have the same classes in another order: label {label} is {ours[label]!r} in the "
            f"first and {theirs[label]!r} in the second"
        )
    only = [[name for name in a if name not in set(b)] for a, b in ((ours, theirs), (theirs, ours))]
    parts = [f"only {who} has {_few(names)}" for who, names in zip((one, other), only, strict=True) if names]
    raise UserError(f"{one} has {len(ours)} classes, {other} {len(theirs)}: {'; '.join(parts)}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def test_split(real: RealData) -> Split:
    """The test split; UserError if there is none."""
    if real.test is None:
        raise UserError(
            f"{real.name} has no test split to measure on: pass --holdout with the fraction that was kept from "
            "training, such as 0.1"
        )
    return real.test
