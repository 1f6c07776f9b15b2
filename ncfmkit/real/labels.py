"""From labels as a source has them to a listing: texts become the numbers of their classes."""

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from ncfmkit.errors import UserError
from ncfmkit.real.listing import Listing, Rows


def numbered(classes: Sequence[str], train: Rows, test: Rows | None) -> Listing:
    """The listing of splits whose labels are int64 [N], which stay as they are, or texts, an object array [N].

    Args:
        classes: names in the order of their numbers; empty where the source has none: texts are then numbered in
            sorted order, integers stay without names.

    Raises:
        UserError: a text that is not among the classes, or one split has texts and the other one integers.
    """
    texts = [split.labels.dtype == object for split in (train, test) if split is not None]
    if not any(texts):
        return Listing(tuple(classes), train, test)
    if not all(texts):
        places = " and ".join(split.where(0) for split in (train, test) if split is not None)
        raise UserError(f"{places}: one has an integer label, the other a text: expected the same in both")
    names = tuple(classes) or tuple(sorted(set(train.labels)))
    number = {name: label for label, name in enumerate(names)}
    if len(number) < len(names):
        again = next(name for label, name in enumerate(names) if number[name] != label)
        raise UserError(f"{train.where(0)}: its label is a text, but two classes are named {again!r}: rename one")

    def renamed(split: Rows) -> Rows:
        for row, text in enumerate(split.labels):
            if text not in number:
                near = difflib.get_close_matches(text, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(f"{split.where(row)}: {text!r} is not one of the {len(names)} classes{hint}")
        return dataclasses.replace(split, labels=np.array([number[text] for text in split.labels], np.int64))

    return Listing(names, renamed(train), None if test is None else renamed(test))


def label_array(found: Sequence[int | str], where: Callable[[int], str]) -> np.ndarray:
    """Labels that were read one by one: int64 [N], or texts as an object array [N].

    Raises:
        UserError: some are integers and some are texts, or an integer has more than 64 bits.
    """
    texts = [isinstance(label, str) for label in found]
    if any(texts) and not all(texts):
        row = texts.index(not texts[0])
        kind = "a text" if texts[0] else "an integer"
        raise UserError(f"{where(row)}: expected {kind} as label, as in {where(0)}, got {found[row]!r}")
    try:
        return np.array(found, object if any(texts) else np.int64)
    except OverflowError:
        row = next(row for row, label in enumerate(found) if not -(2**63) <= int(label) < 2**63)
        raise UserError(f"{where(row)}: expected the number of a class as label, got {found[row]}") from None


def rows_of_files(
    labels: Sequence[np.ndarray],
    where: Callable[[int, int], str],
    read: Callable[[int, np.ndarray], Iterator[bytes | Path]],
) -> Rows:
    """The rows of files that are read one after the other.

    Args:
        labels: of each file.
        where: what a message calls a row, from the number of the file and the row in it.
        read: the pictures of ascending rows of one file, from its number.
    """
    starts = np.cumsum([0, *map(len, labels)])

    def name(row: int) -> str:
        file = int(np.searchsorted(starts, row, side="right")) - 1
        return where(file, row - int(starts[file]))

    def pictures(rows: np.ndarray) -> Iterator[bytes | Path]:
        for file, (low, high) in enumerate(pairwise(starts)):
            inside = rows[(rows >= low) & (rows < high)] - low
            if len(inside):
                yield from read(file, inside)

    kinds = {split.dtype for split in labels if len(split)}
    if len(kinds) > 1:
        places = " and ".join(where(next(i for i, s in enumerate(labels) if len(s) and s.dtype == k), 0) for k in kinds)
        raise UserError(f"{places}: one has an integer label, the other a text: expected the same in both")
    return Rows(np.concatenate(labels), pictures, name)
