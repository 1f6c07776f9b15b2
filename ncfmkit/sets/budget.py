"""How many images, in how few bits, fit into a number of bytes (`distill --bytes`)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from ncfmkit.config import DistillSettings
from ncfmkit.errors import UserError
from ncfmkit.files import parse_bytes
from ncfmkit.mosaic import decoded_count
from ncfmkit.sets import quantize

# Fewest bits first, by docs/experiments.md: rounded while they are distilled, images in 2 bits cost half a point, and
# images in place of bits gain more than that. 8 bits are for more images than were measured.
PREFERRED = (2, 3, 4, 5, 6)
MOST_MEASURED = 50  # images per class


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A way to spend a number of bytes.

    Attributes:
        bits: per value.
        ipc: stored images per class.
        bytes: of a class: pixels, the levels that they lie between, soft labels.
    """

    bits: int
    ipc: int
    bytes: int


def parse_budget(text: str, classes: int) -> Fraction:
    """Bytes of a class: of `12288/class`, or of `120KB` in all.

    Raises:
        UserError: not a size.
    """
    found = re.fullmatch(r"(.*?)\s*(/\s*class)?", text)
    assert found is not None
    count = Fraction(parse_bytes(found[1], "--bytes"))
    return count if found[2] else count / classes


def bytes_of_class(how: DistillSettings, bits: int, ipc: int, *, shape: tuple[int, int, int], teaching: int) -> int:
    """Bytes that a class takes in a set's file, but for its part of the manifest and of the labels.

    Args:
        shape: of an image.
        teaching: classes that soft labels are of; 0: there are none.
    """
    image = quantize.packed_bytes(shape, bits) + (2 * shape[0] if bits < 8 else 0)
    decoded = decoded_count(how.decode, how.factor, ipc, how.decoded_per_class) if teaching else 0
    return ipc * image + 2 * teaching * decoded


def fits(how: DistillSettings, *, classes: int, shape: tuple[int, int, int], soft: bool, most: int) -> Iterator[Fit]:
    """For each number of bits the most images that fit `how.bytes`, at least one.

    Args:
        how: its `bits`, where given, are the only ones.
        soft: soft labels are stored.
        most: images per class that can be stored.
    """
    assert how.bytes is not None
    budget, teaching = parse_budget(how.bytes, classes), classes if soft else 0
    for bits in quantize.BITS if how.bits is None else (how.bits,):
        one = bytes_of_class(how, bits, 1, shape=shape, teaching=teaching)
        ipc = min(most, int(budget / one))
        if ipc:
            yield Fit(bits=bits, ipc=ipc, bytes=bytes_of_class(how, bits, ipc, shape=shape, teaching=teaching))


def fitted(how: DistillSettings, *, classes: int, shape: tuple[int, int, int], soft: bool, most: int) -> Fit:
    """The one that is taken: the fewest bits of `PREFERRED` for which there are at most `MOST_MEASURED` images.

    Where more bits leave as many images, the most of them.

    Raises:
        UserError: not one image fits.
    """
    by_bits = {fit.bits: fit for fit in fits(how, classes=classes, shape=shape, soft=soft, most=most)}
    if not by_bits:
        bits = how.bits or min(quantize.BITS)
        least = bytes_of_class(how, bits, 1, shape=shape, teaching=classes if soft else 0)
        raise UserError(
            f"--bytes {how.bytes}: one image per class in {bits} bits takes {least:,} bytes: pass {least}/class or more"
        )
    measured = [bits for bits in PREFERRED if bits in by_bits and by_bits[bits].ipc <= MOST_MEASURED]
    taken = by_bits[measured[0] if measured else max(by_bits)]
    return max((fit for fit in by_bits.values() if fit.ipc >= taken.ipc), key=lambda fit: fit.bits)
