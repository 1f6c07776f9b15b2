"""Quantized pixels: exact in integers, packed bit by bit, as good as they can be."""

import itertools

import numpy as np
import pytest

from ncfmkit.errors import UserError
from ncfmkit.sets import quantize


@pytest.fixture(scope="module")
def smooth() -> np.ndarray:
    """uint8 `[6, 3, 9, 9]`: gradients with some noise, a few outliers in one image, one flat image."""
    rng = np.random.default_rng(0)
    slope = np.linspace(60, 180, 81).reshape(9, 9)
    images = np.clip(slope + rng.normal(0, 12, (6, 3, 9, 9)), 0, 255).astype(np.uint8)
    images[1, 0, 0, :3] = 0, 255, 255
    images[2] = 137
    return images


def naive_restore(codes: np.ndarray, levels: np.ndarray, bits: int) -> np.ndarray:
    out = np.empty_like(codes)
    for n, c, y, x in itertools.product(*map(range, codes.shape)):
        low, high = (int(v) for v in levels[n if len(levels) > 1 else 0, c])
        out[n, c, y, x] = np.floor(low + int(codes[n, c, y, x]) * (high - low) / (2**bits - 1) + 0.5)
    return out


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
@pytest.mark.parametrize("scale", ["channel", "image"])
@pytest.mark.parametrize("dither", [False, True])
def test_quantized_images_are_their_codes(smooth: np.ndarray, bits: int, scale: quantize.Scale, dither: bool) -> None:
    images, levels = quantize.quantize(smooth, bits=bits, scale=scale, dither=dither)
    assert images.dtype == levels.dtype == np.uint8
    assert levels.shape == (1 if scale == "channel" else 6, 3, 2)
    assert (levels[..., 1].astype(int) - levels[..., 0] >= 2**bits - 1).all()
    codes = quantize.encode(images, levels, bits)
    assert codes.max() < 2**bits
    np.testing.assert_array_equal(quantize.restore(codes, levels, bits), images)
    np.testing.assert_array_equal(naive_restore(codes, levels, bits), images)
    again, same = quantize.quantize(images, bits=bits, scale=scale, dither=False)
    assert np.abs(again.astype(int) - images).mean() <= np.abs(images.astype(int) - smooth).mean()
    assert same.shape == levels.shape


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_every_code_is_a_value_of_its_own_at_the_narrowest_levels(bits: int) -> None:
    codes = np.arange(2**bits, dtype=np.uint8).reshape(1, 1, 1, -1)
    for low in (0, 3, 256 - 2**bits):
        levels = np.array([[[low, low + 2**bits - 1]]], np.uint8) if low + 2**bits <= 256 else None
        if levels is not None:
            values = quantize.restore(codes, levels, bits)
            assert values.ravel().tolist() == list(range(low, low + 2**bits))
            np.testing.assert_array_equal(quantize.encode(values, levels, bits), codes)


def test_codes_are_the_nearest() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    for bits, (low, high) in itertools.product((2, 3, 5), ((0, 255), (10, 200), (100, 131))):
        levels = np.array([[[low, high]]], np.uint8)
        table = low + np.arange(2**bits) * (high - low) / (2**bits - 1)
        got = quantize.encode(values, levels, bits).astype(int)
        distance = np.abs(table[got] - values)
        assert (distance <= np.abs(table[:, None] - values.ravel()).min(0).reshape(16, 16) + 1e-9).all()


def test_eight_bits_change_nothing(smooth: np.ndarray) -> None:
    for dither in (False, True):
        images, levels = quantize.quantize(smooth, bits=8, scale="image", dither=dither)
        np.testing.assert_array_equal(images, smooth)
        assert levels.reshape(-1, 2).tolist() == [[0, 255]] * 18


def test_packed_bits_are_the_codes_in_binary() -> None:
    codes = np.array([5, 0, 7, 1, 2], np.uint8).reshape(1, 1, 1, 5)
    packed = quantize.pack(codes, 3)
    assert "".join(f"{byte:08b}" for byte in packed[0]) == "1010001110010100"
    np.testing.assert_array_equal(quantize.unpack(packed, (1, 1, 5), 3), codes)


@pytest.mark.parametrize("bits", quantize.BITS)
def test_packing_is_undone(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (4, 3, 5, 5), dtype=np.uint8)
    packed = quantize.pack(codes, bits)
    assert packed.shape == (4, -(-75 * bits // 8)) == (4, quantize.packed_bytes((3, 5, 5), bits))
    np.testing.assert_array_equal(quantize.unpack(packed, (3, 5, 5), bits), codes)


def test_bits_after_the_last_code_are_found() -> None:
    packed = quantize.pack(np.full((2, 1, 1, 5), 7, np.uint8), 3)
    assert not quantize.has_stray_bits(packed, (1, 1, 5), 3)
    packed[1, -1] |= 1
    assert quantize.has_stray_bits(packed, (1, 1, 5), 3)
    assert not quantize.has_stray_bits(np.full((2, 3), 255, np.uint8), (1, 1, 6), 4)  # no bit is left over


@pytest.mark.parametrize("scale", ["channel", "image"])
def test_parts_do_not_show(scale: quantize.Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 5), dtype=np.uint8)
    whole, levels = quantize.quantize(images, bits=3, scale=scale, dither=False)
    codes = quantize.pack(quantize.encode(whole, levels, 3), 3)
    monkeypatch.setattr(quantize, "PART", 3)
    np.testing.assert_array_equal(quantize.quantize(images, bits=3, scale=scale, dither=False)[0], whole)
    np.testing.assert_array_equal(quantize.packed(whole, levels, 3), codes)
    np.testing.assert_array_equal(quantize.restored(codes, levels, (3, 5, 5), 3), whole)


def test_levels_leave_outliers_out_where_that_is_better(smooth: np.ndarray) -> None:
    """In an image of 81 values between 50 and 190, three outliers must not widen the range to all of 0 to 255."""
    images, levels = quantize.quantize(smooth, bits=2, scale="image", dither=False)
    low, high = levels[1, 0]
    assert 0 < low < high < 255
    whole = np.broadcast_to(np.array([0, 255], np.uint8), levels.shape)
    stretched = quantize.restore(quantize.encode(smooth, whole, 2), whole, 2)
    error = lambda got: ((got[1, 0].astype(float) - smooth[1, 0]) ** 2).mean()  # noqa: E731
    assert error(images) < error(stretched)


def test_a_flat_image_stays_flat(smooth: np.ndarray) -> None:
    for bits in (2, 4, 6):
        images, _ = quantize.quantize(smooth, bits=bits, scale="image", dither=False)
        assert (images[2] == 137).all()


def test_more_bits_are_closer_and_dithering_keeps_the_mean(smooth: np.ndarray) -> None:
    ramp = np.linspace(0, 255, 48 * 48).reshape(1, 1, 48, 48).repeat(2, 1).astype(np.uint8)
    errors = []
    for bits in (2, 3, 4, 5, 6):
        plain, _ = quantize.quantize(ramp, bits=bits, scale="channel", dither=False)
        dithered, _ = quantize.quantize(ramp, bits=bits, scale="channel", dither=True)
        errors.append(np.abs(plain.astype(float) - ramp).mean())
        blocks = [x.reshape(1, 2, 6, 8, 6, 8).mean((3, 5)) for x in (ramp, plain, dithered)]  # means of 8 x 8 pixels
        inside = np.s_[:, :, 1:-1]
        off = [np.abs(b[inside] - blocks[0][inside]).mean() for b in blocks[1:]]
        if bits <= 4:
            assert off[1] < off[0] / 2
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("bits", [0, 1, 7, 9, 16])
def test_other_bits_are_refused(smooth: np.ndarray, bits: int) -> None:
    with pytest.raises(UserError, match=rf"--bits {bits}: expected one of 8, 6, 5, 4, 3, 2"):
        quantize.quantize(smooth, bits=bits, scale="image", dither=False)
