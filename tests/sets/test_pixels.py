"""Pixels in fewer bytes: what is restored is what the plain reference makes of the codes that are stored."""

import lzma
import subprocess
import sys
from typing import Literal

import numpy as np
import pytest
import torch
from golden_sets import half_color_images, half_color_planes, pack, restore, stream_bytes

from ncfmkit.sets import coding, pixels, quantize
from ncfmkit.sets.manifest import Pixels
from ncfmkit.sets.quantize import Scale

OF_PLANES = [0, 0, 0, 0, 1, 2]


def smooth(count: int = 6, side: int = 16) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    phase = np.arange(count * 3).reshape(count, 3, 1, 1)
    return np.round(127 + 90 * np.sin(4 * (x + y) + phase) + 20 * np.cos(9 * x * phase)).astype(np.uint8)


def noise(count: int = 6, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def how(bits: int, scale: Scale, side: int = 16, chroma: Literal["4:2:0"] | None = "4:2:0") -> Pixels:
    return Pixels(bits=bits, scale=scale, dither=False, shape=(3, side, side), chroma=chroma)


@pytest.mark.parametrize("scale", ["image", "channel"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_half_the_color_is_stored_as_specified(kind: str, bits: int, scale: Scale) -> None:
    images = {"smooth": smooth, "noise": noise}[kind]()
    restored, tensors, packing = pixels.stored(torch.from_numpy(images), how(bits, scale))
    planes, levels = half_color_planes(images), tensors["levels"].numpy()
    assert levels.shape == (6 if scale == "image" else 1, 3, 2)
    codes = quantize.encode(planes, levels[:, OF_PLANES], bits)  # the nearest ones: tested against another reference
    np.testing.assert_array_equal(restored, half_color_images(restore(codes, levels[:, OF_PLANES], bits)))
    if packing.coding is None:
        np.testing.assert_array_equal(tensors["pixels"], pack(codes, bits))
    else:
        assert lzma.decompress(tensors["pixels"].numpy().tobytes()) == stream_bytes(codes, bits)
        assert tensors["pixels"].nbytes < pack(codes, bits).nbytes
    assert kind != "noise" or bits == 8 or packing.coding is None
    assert kind != "smooth" or packing.coding == "lzma"
    assert torch.equal(pixels.restored(tensors, 6, packing), restored)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_streams_of_half_the_color_hold_blocks(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "PART", 2)
    codes = np.random.default_rng(bits).integers(0, 2**bits, (5, 6, 6, 6), dtype=np.uint8)
    levels = np.array([[[0, 255]] * 6], np.uint8)
    planes = quantize.restore(codes, levels, bits)
    stream = coding.coded(planes, levels, bits)
    assert lzma.decompress(stream.tobytes()) == stream_bytes(codes, bits)
    np.testing.assert_array_equal(coding.uncoded(stream, levels, 5, (6, 6, 6), bits), planes)


def test_the_luma_levels_are_those_of_all_its_pixels() -> None:
    images = smooth()
    _, tensors, _ = pixels.stored(torch.from_numpy(images), how(3, "image"))
    planes = half_color_planes(images)
    luma = planes[:, :4].reshape(6, 1, 16, 16)  # in another order
    np.testing.assert_array_equal(tensors["levels"][:, :1], quantize.best_levels(luma, 3, "image"))
    np.testing.assert_array_equal(tensors["levels"][:, 1:], quantize.best_levels(planes[:, 4:], 3, "image"))


def test_whole_color_is_what_quantize_gives() -> None:
    images = smooth()
    restored, tensors, packing = pixels.stored(torch.from_numpy(images), how(3, "image", chroma=None))
    expected, levels = quantize.quantize(images, bits=3, scale="image", dither=False)
    np.testing.assert_array_equal(restored, expected)
    np.testing.assert_array_equal(tensors["levels"], levels)
    assert packing.coding == "lzma"


@pytest.mark.parametrize("chroma", [None, "4:2:0"])
@pytest.mark.parametrize("scale", ["image", "channel"])
@pytest.mark.parametrize("kind", ["smooth", "noise"])
def test_some_of_the_images_keep_their_codes(kind: str, scale: Scale, chroma: Literal["4:2:0"] | None) -> None:
    images = {"smooth": smooth, "noise": noise}[kind](12)
    restored, tensors, packing = pixels.stored(torch.from_numpy(images), how(3, scale, chroma=chroma))
    rows = [0, 1, 2, 5, 7, 11]
    part, part_packing = pixels.selected(tensors, 12, rows, packing)
    assert torch.equal(pixels.restored(part, 6, part_packing), restored[rows])
    assert part["levels"].equal(tensors["levels"][rows] if scale == "image" else tensors["levels"])
    assert part["pixels"].nbytes < tensors["pixels"].nbytes


def test_parts_of_the_images_are_stored_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pixels.stored(torch.from_numpy(smooth()), how(2, "image"))
    monkeypatch.setattr(quantize, "PART", 4)
    monkeypatch.setattr(pixels, "PIXELS", 4 * 16 * 16)
    parts = pixels.stored(torch.from_numpy(smooth()), how(2, "image"))
    assert torch.equal(whole[0], parts[0])
    assert whole[1].keys() == parts[1].keys()
    assert all(torch.equal(whole[1][name], parts[1][name]) for name in whole[1])


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 18, 18), (3, 17, 17)])
def test_images_that_cannot_have_half_the_color_are_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected three channels and a side that is a multiple of 4"):
        Pixels(bits=2, scale="image", dither=False, shape=shape, chroma="4:2:0")


def test_a_damaged_stream_of_half_the_color_is_refused() -> None:
    images = torch.from_numpy(smooth())
    _, tensors, packing = pixels.stored(images, how(2, "image"))
    for change in (tensors["pixels"][:-9], torch.cat([tensors["pixels"], torch.zeros(1, dtype=torch.uint8)])):
        with pytest.raises(ValueError, match=r"end early|go on after|no end"):
            pixels.restored(tensors | {"pixels": change}, 6, packing)


def test_memory_is_that_of_the_images_and_little_more() -> None:
    """In a process of its own, in which nothing was freed before."""
    code = """
import resource, sys, torch
from ncfmkit.sets import pixels
from ncfmkit.sets.manifest import Pixels
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
def make(count): return torch.arange(count * 12288).mul(7).div(96).to(torch.uint8).view(count, 3, 64, 64)
how = Pixels(bits=2, scale="image", dither=False, shape=(3, 64, 64), chroma="4:2:0")
_, tensors, of = pixels.stored(make(40), how)
pixels.restored(tensors, 40, of)
_, tensors, of = pixels.stored(make(8), how)
tensors = {name: torch.cat([tensor] * 500) for name, tensor in tensors.items()} if of.coding is None else tensors
before = peak()
count = len(tensors["levels"])
images = pixels.restored(tensors, count, of)
print((peak() - before) / images.nbytes, count)
"""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    times, count = made.stdout.split()
    assert int(count) == 4000
    assert float(times) < 3


def test_it_takes_fewer_bytes() -> None:
    images = torch.from_numpy(smooth(30, 32))
    sizes = [pixels.stored(images, how(2, "image", 32, chroma))[1]["pixels"].nbytes for chroma in ("4:2:0", None)]
    assert sizes[0] < 0.7 * sizes[1]
