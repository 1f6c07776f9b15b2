"""Which rows of a source go into the store: kept classes, held-out test images, a long tail.

Works on labels; no picture is read.
"""

import difflib
import re
from collections.abc import Sequence

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.progress import shortened_list
from ncfmkit.real.listing import Listing, Rows

MOST_CLASSES = 2**20  # that labels without names may have


def kept_labels(name: str, classes: Sequence[str], keep: Sequence[str]) -> list[int]:
    """Ascending labels of the classes to keep, each given by its name or its number; all where none is given.

    Classes that are named by numbers are given by name alone.

    Raises:
        UserError: an unknown class, with the nearest name.
    """
    numbers = {c: label for label, c in enumerate(classes)}
    by_number = not any(re.fullmatch(r"\d+", c) for c in classes)  # else a number could mean a name or a place
    if by_number:
        numbers |= {str(label): label for label in range(len(classes))}
    for wanted in keep:
        if wanted not in numbers:
            near = difflib.get_close_matches(wanted, classes, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            ways = f"by name or by number 0 to {len(classes) - 1}" if by_number else f"named {shortened_list(classes)}"
            raise UserError(f"--classes: {name} has no class {wanted!r}{hint} It has {len(classes)} classes, {ways}")
    return sorted({numbers[wanted] for wanted in keep}) if keep else list(range(len(classes)))


def class_names(listing: Listing) -> tuple[str, ...]:
    """The source's names, or the numbers up to its largest label where it has none.

    Raises:
        UserError: a label without a name is `MOST_CLASSES` or more.
    """
    if listing.classes:
        return listing.classes
    rows = listing.train
    largest = int(rows.labels.max(initial=-1))
    if largest >= MOST_CLASSES:
        where = rows.where(int(rows.labels.argmax()))
        raise UserError(f"{where}: expected the number of a class below {MOST_CLASSES:,} as label, got {largest}")
    return tuple(map(str, range(largest + 1)))


def check_names(name: str, classes: Sequence[str], kept: Sequence[int]) -> None:
    """Raises UserError if two of the kept classes have the same name, or one has a name that no file can hold."""
    label_of: dict[str, int] = {}
    for label in kept:
        text = classes[label]
        if (first := label_of.setdefault(text, label)) != label:
            raise UserError(
                f"{name}: the labels {first} and {label} have the same class name {text!r}: rename one, or leave it "
                "out with --classes and the numbers of the others"
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(f"{name}: the name {text!a} of class {label} is no valid text: rename it") from None


def check_labels(rows: Rows, classes: Sequence[str]) -> None:
    """Refuses labels without a class, naming the first row.

    Raises:
        UserError: a label is negative, or no class has it.
    """
    wrong = np.flatnonzero((rows.labels < 0) | (rows.labels >= len(classes)))
    if len(wrong):
        row = int(wrong[0])
        raise UserError(f"{rows.where(row)}: expected a label in 0..{len(classes) - 1}, got {rows.labels[row]}")


def rows_by_class(name: str, rows: Rows, split: str, classes: Sequence[str], kept: Sequence[int]) -> list[np.ndarray]:
    """Rows of each kept class in source order.

    Raises:
        UserError: a class has none.
    """
    order = np.argsort(rows.labels, kind="stable")
    starts = np.searchsorted(rows.labels[order], np.arange(len(classes) + 1))
    groups = [order[starts[label] : starts[label + 1]] for label in kept]
    for label, group in zip(kept, groups, strict=True):
        if not len(group):
            raise UserError(f"class {classes[label]!r} has no images in {name} {split}")
    return groups


def hold_out(name: str, groups: list[np.ndarray], fraction: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Train and test rows: a seeded `fraction` of each class, one image at least, goes to testing.

    Raises:
        UserError: a class has fewer than two images.
    """
    for group in groups:
        if len(group) < 2:
            raise UserError(
                f"--holdout: {name} has a class with 1 image: expected 2 or more, or leave it out with --classes"
            )
    tests = [_draw(group, min(len(group) - 1, max(1, round(fraction * len(group))))) for group in groups]
    return [np.setdiff1d(group, test) for group, test in zip(groups, tests, strict=True)], tests


def long_tail(groups: list[np.ndarray], imbalance: float) -> list[np.ndarray]:
    """A seeded choice of n_c = n_max * imbalance ** (-c / (C - 1)) rows of class c, one at least."""
    largest, last = max(map(len, groups)), max(1, len(groups) - 1)
    sizes = [max(1, int(largest * imbalance ** (-c / last))) for c in range(len(groups))]
    return [_draw(group, size) for group, size in zip(groups, sizes, strict=True)]


def _draw(group: np.ndarray, count: int) -> np.ndarray:
    """`count` rows of the class, or all that it has; ascending, and the same whatever other classes hold."""
    return np.sort(np.random.default_rng(0).permutation(group)[:count])


def choose(
    name: str, listing: Listing, keep: Sequence[str], holdout: float, imbalance: float
) -> tuple[tuple[str, ...], dict[str, tuple[Rows, list[np.ndarray]]]]:
    """Kept class names, and for `train` and perhaps `test` the split with the rows of each class.

    Raises:
        UserError: an unknown or empty class, a label out of range, a holdout beside a test split.
    """
    if holdout and listing.test is not None:
        raise UserError(f"--holdout {holdout}: {name} has a test split of its own: leave --holdout at 0")
    classes = class_names(listing)
    if not classes:
        raise UserError(f"{name}: expected pictures to train on, found none")
    kept = kept_labels(name, classes, keep)
    check_names(name, classes, kept)
    given: dict[str, Rows] = {"train": listing.train} | ({"test": listing.test} if listing.test else {})
    chosen = {}
    for split, rows in given.items():
        check_labels(rows, classes)
        chosen[split] = (rows, rows_by_class(name, rows, split, classes, kept))
    if holdout:
        train, test = hold_out(name, chosen["train"][1], holdout)
        chosen = {"train": (listing.train, train), "test": (listing.train, test)}
    if imbalance > 1:
        chosen["train"] = (listing.train, long_tail(chosen["train"][1], imbalance))
    return tuple(classes[label] for label in kept), chosen
