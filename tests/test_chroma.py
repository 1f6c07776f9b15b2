"""Color at half the resolution, against exact fractions, the transform's real numbers, and Pillow's."""

import numpy as np
import pytest
import torch
from golden_sets import half_color_images, half_color_planes
from PIL import Image

from ncfmkit import chroma


def pictures(kind: str) -> np.ndarray:
    """uint8 `[3, 3, 8, 8]`."""
    rng = np.random.default_rng(0)
    if kind == "extremes":
        return rng.choice(np.array([0, 255], np.uint8), (3, 3, 8, 8))
    if kind == "blocks":  # of one color each
        return rng.integers(0, 256, (3, 3, 4, 4), dtype=np.uint8).repeat(2, axis=2).repeat(2, axis=3)
    return rng.integers(0, 256, (3, 3, 8, 8), dtype=np.uint8)


KINDS = ["noise", "extremes", "blocks"]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_are_exact(kind: str, dtype: torch.dtype) -> None:
    images = pictures(kind)
    planes = chroma.to_planes(*chroma.subsampled(torch.from_numpy(images).to(dtype)))
    expected = half_color_planes(images)
    np.testing.assert_array_equal(planes, expected)
    restored = chroma.upsampled(*chroma.from_planes(planes.to(dtype)))
    np.testing.assert_array_equal(restored, half_color_images(expected))


def test_every_code_is_restored_to_a_byte() -> None:
    ends = torch.cartesian_prod(*[torch.tensor([0, 1, 127, 128, 129, 254, 255])] * 3).int()
    luma = ends[:, :1, None, None].expand(-1, 1, 2, 2)
    restored = chroma.upsampled(luma, ends[:, 1:, None, None])
    planes = torch.cat([luma.flatten(1), ends[:, 1:]], dim=1).numpy().astype(np.uint8)[:, :, None, None]
    np.testing.assert_array_equal(restored, half_color_images(planes))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_transform_of_jpeg(kind: str) -> None:
    """ITU-T T.871 in real numbers: luma within rounding, differences of means within it, too."""
    images = pictures(kind).astype(np.float64)
    red, green, blue = images.transpose(1, 0, 2, 3)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    differences = np.stack([(blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128], axis=1)
    means = differences.reshape(3, 2, 4, 2, 4, 2).mean((3, 5))
    got_luma, got_chroma = chroma.subsampled(torch.from_numpy(images))
    slack = 0.5 + 3 * 255 * 0.5 / 65536  # rounding of the result, and of three coefficients
    assert np.abs(got_luma[:, 0].numpy() - luma).max() <= slack
    assert np.abs(got_chroma.numpy() - means.clip(0, 255)).max() <= slack

    blue, red = (differences.round().clip(0, 255) - 128).transpose(1, 0, 2, 3)
    if kind == "blocks":
        luma = got_luma[:, 0].numpy()
        exact = np.stack([luma + 1.402 * red, luma - (0.114 * 1.772 * blue + 0.299 * 1.402 * red) / 0.587,
                          luma + 1.772 * blue], axis=1)  # fmt: skip
        restored = chroma.upsampled(got_luma, torch.from_numpy(differences[:, :, ::2, ::2].round().clip(0, 255)))
        assert np.abs(restored.numpy() - exact.clip(0, 255)).max() <= slack


def test_pillow_finds_the_same_colors() -> None:
    images = pictures("blocks")
    luma, differences = chroma.subsampled(torch.from_numpy(images))
    for n, image in enumerate(images):
        theirs = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("YCbCr")).astype(int)
        assert np.abs(theirs[..., 0] - luma[n, 0].numpy()).max() <= 1
        assert np.abs(theirs[::2, ::2, 1:].transpose(2, 0, 1) - differences[n].numpy()).max() <= 1


def test_gray_stays_gray_and_colors_of_blocks_stay_near() -> None:
    gray = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8).expand(-1, 3, -1, -1)
    assert torch.equal(chroma.upsampled(*chroma.subsampled(gray)), gray.int())
    blocks = torch.from_numpy(pictures("blocks"))
    assert (chroma.upsampled(*chroma.subsampled(blocks)) - blocks.int()).abs().max() <= 2


@pytest.mark.parametrize(
    ("channels", "side", "takes"), [(3, 32, True), (3, 4, True), (3, 30, False), (3, 33, False), (1, 32, False)]
)
def test_what_can_be_stored_so(channels: int, side: int, takes: bool) -> None:
    assert chroma.takes(channels, side) == takes
