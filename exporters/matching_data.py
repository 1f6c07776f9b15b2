"""Opens real data that match a model; if they do not, the error names the flags that make them match.

The data are opened here and not by the commands, because the flags depend on the model's contract, and the model and
the request are checked before reading the data, which can take minutes.
"""

from collections.abc import Sequence

from ncfmkit.config import Settings
from ncfmkit.errors import UserError
from ncfmkit.exporters.contract import Contract
from ncfmkit.real.arguments import DataArguments
from ncfmkit.real.decode import COLORS
from ncfmkit.real.store import RealData


def open_fitting(name: str, contract: Contract, data: DataArguments, settings: Settings) -> RealData:
    """Real data to measure a model or student on: its sizes, colors and classes, with a test split.

    Args:
        name: the model's or student's, for messages.
        contract: what it takes.
        data: where the data are.
        settings: how they are read, see `Settings.data`.

    Raises:
        UserError: they cannot be read, have other sizes, colors or classes, with the flags that mend it, or no test
            split.
    """
    real = open_images(name, contract, data, settings)
    if contract.classes is not None:
        check_classes(name, contract.classes, real.name, real.classes)
    elif contract.class_count != len(real.classes):
        raise UserError(f"{name} has {contract.class_count} classes, {real.name} has {len(real.classes)}")
    real.test_split()
    return real


def open_images(name: str, contract: Contract, data: DataArguments, settings: Settings) -> RealData:
    """Real data with images of a model's size and color, whatever their classes; arguments as :func:`open_fitting`.

    Raises:
        UserError: they cannot be read, or have other sizes or colors, with the flags that mend it.
    """
    size, color = contract.size, next(name for name, channels in COLORS.items() if channels == contract.channels)
    size_flags, color_flags = f"--size {size} --resize crop", f"--color {color}"
    try:
        real = data.open(settings)
    except UserError as error:
        problem, _, advice = str(error).partition(": pass ")  # its advice fits the data, but perhaps not the model
        if "--resize crop" not in advice:
            raise
        flags = f"{size_flags} {color_flags}" + (" --holdout 0.1" if "--holdout" in advice else "")
        raise UserError(f"{problem}: pass {flags}, since {name} takes {size}x{size} {color}") from None
    needed = [size_flags] * (real.size != size) + [color_flags] * (real.channels != contract.channels)
    if needed:
        own = next(name for name, channels in COLORS.items() if channels == real.channels)
        raise UserError(
            f"{real.name} has {real.size}x{real.size} {own} images, {name} takes {size}x{size} {color}: "
            f"pass {' '.join(needed)}, or the data that it was made for"
        )
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
    parts = [f"only {who} has {_listed(names)}" for who, names in zip((one, other), only, strict=True) if names]
    raise UserError(f"{one} has {len(ours)} classes, {other} {len(theirs)}: {'; '.join(parts)}")


def _listed(names: Sequence[str]) -> str:
    """Four names at most, and how many more there are."""
    return ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
