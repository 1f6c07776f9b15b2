"""How many images, in how few bits, fit into a number of bytes (`distill --bytes`)."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np
import torch

from ncfmkit import chroma
from ncfmkit.config import DistillSettings
from ncfmkit.errors import UserError
from ncfmkit.files import parse_bytes
from ncfmkit.mosaic import decoded_count
from ncfmkit.rng import keyed_rng
from ncfmkit.sets import pixels, quantize
from ncfmkit.sets.manifest import Pixels

# Fewest bits first, by docs/experiments.md: rounded while they are distilled, images in 2 bits cost half a point, and
# images in place of bits gain more than that. 8 bits are for more images than were measured.
PREFERRED = (2, 3, 4, 5, 6)
MOST_MEASURED = 60  # images per class: about that
# levels: images distilled in 2 bits were found to compress as mosaics do with that much noise
ROUGHNESS, ROUGHNESS_SUBSAMPLED = 20, 24


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A way to spend a number of bytes.

    Attributes:
        bits: per value.
        chroma: `4:4:4`, or `4:2:0` with color at half the resolution.
        ipc: stored images per class.
        bytes: of a class: pixels, the levels that they lie between, soft labels.
    """

    bits: int
    chroma: Literal["4:4:4", "4:2:0"]
    ipc: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Room:
    """What decides how many images fit.

    Attributes:
        classes: their number.
        shape: of an image, `(C, H, W)`.
        soft_label: bytes of the soft label of a decoded image; 0: there are none.
        most: images per class that can be stored.
        coded: part of their packed codes that images are expected to take as a stream, by bits; 1 where nothing is
            said.
    """

    classes: int
    shape: tuple[int, int, int]
    soft_label: int
    most: int
    coded: Mapping[int, float] = field(default_factory=dict)


def parse_budget(text: str, classes: int) -> Fraction:
    """Bytes of a class: of `12288/class`, or of `120KB` in all.

    Raises:
        UserError: not a size.
    """
    found = re.fullmatch(r"(.*?)\s*(/\s*class)?", text)
    assert found is not None
    count = Fraction(parse_bytes(found[1], "--bytes"))
    return count if found[2] else count / classes


def with_chroma(how: DistillSettings, shape: tuple[int, int, int]) -> DistillSettings:
    """With the color that was asked for; else at half the resolution, where images allow it.

    Measured on CIFAR-10 in 2 bits, where it costs nothing that students show (docs/experiments.md); lossy pictures have
    it, too.
    """
    return dataclasses.replace(how, chroma=how.chroma or ("4:2:0" if chroma.takes(*shape[:2]) else "4:4:4"))


def expected_shares(images_NCHW: np.ndarray, seed: int, *, subsampled: bool) -> dict[int, float]:
    """Part of their packed codes that images like these take as a stream, by bits.

    Args:
        images_NCHW: uint8, such as distillation starts from. They become rougher while they are distilled.
        seed: of the noise that stands for that.
        subsampled: with color at half the resolution.
    """
    roughness = ROUGHNESS_SUBSAMPLED if subsampled else ROUGHNESS
    noise_NCHW = keyed_rng(seed, "roughness").normal(0, roughness, images_NCHW.shape)
    rough_NCHW = np.clip(images_NCHW + noise_NCHW, 0, 255).round().astype(np.uint8)
    shares = {}
    for bits in PREFERRED:
        how = Pixels.distilled(images_NCHW.shape[1:], bits, subsampled=subsampled)
        _, tensors, _ = pixels.stored(torch.from_numpy(rough_NCHW), how)
        packed = len(images_NCHW) * quantize.packed_bytes(how.planes, bits)
        shares[bits] = tensors["pixels"].nbytes / packed
    return shares


def bytes_of_class(how: DistillSettings, bits: int, ipc: int, room: Room) -> Fraction:
    """Bytes that a class takes in a set's file, without its part of the manifest and of the labels."""
    planes = Pixels.distilled(room.shape, bits, subsampled=how.is_subsampled).planes
    packed = quantize.packed_bytes(planes, bits) * Fraction(room.coded.get(bits, 1))
    levels = 2 * room.shape[0] if bits < 8 or how.is_subsampled else 0
    decoded = decoded_count(how.decode, how.factor, ipc, how.decoded_per_class) if room.soft_label else 0
    return ipc * (packed + levels) + room.soft_label * decoded


def fits(how: DistillSettings, room: Room) -> Iterator[Fit]:
    """For each number of bits the most images that are expected to fit `how.bytes`; one fits in any case.

    Args:
        how: its `bits` and `chroma`, where given, are the only ones.
        room: what else decides.
    """
    assert how.bytes is not None
    budget, how = parse_budget(how.bytes, room.classes), with_chroma(how, room.shape)
    for bits in quantize.BITS if how.bits is None else (how.bits,):
        if bytes_of_class(how, bits, 1, dataclasses.replace(room, coded={})) > budget:
            continue
        ipc = min(room.most, int(budget / bytes_of_class(how, bits, 1, room)))
        size = math.ceil(bytes_of_class(how, bits, ipc, room))
        yield Fit(bits=bits, chroma=how.stored_chroma, ipc=ipc, bytes=size)


def fitted(how: DistillSettings, room: Room) -> Fit:
    """The one that is taken: the fewest bits of `PREFERRED` for which there are at most `MOST_MEASURED` images.

    Where more bits leave as many images, the most of them.

    Raises:
        UserError: not one image fits.
    """
    by_bits = {fit.bits: fit for fit in fits(how, room)}
    if not by_bits:
        bits, smallest = how.bits or min(quantize.BITS), with_chroma(how, room.shape)
        least = int(bytes_of_class(smallest, bits, 1, dataclasses.replace(room, coded={})))
        raise UserError(
            f"--bytes {how.bytes}: one image per class in {bits} bits takes {least:,} bytes: pass {least}/class or more"
        )
    measured = [bits for bits in PREFERRED if bits in by_bits and by_bits[bits].ipc <= MOST_MEASURED]
    taken = by_bits[measured[0] if measured else max(by_bits)]
    return max((fit for fit in by_bits.values() if fit.ipc >= taken.ipc), key=lambda fit: fit.bits)
