"""Codes as one LZMA stream: undone, laid out as docs/formats.md says, and never larger in memory than asked for."""

import lzma
import tracemalloc

import numpy as np
import pytest
from golden_sets import stream_bytes

from ncfmkit.sets import coding, quantize


def smooth(bits: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    rng = np.random.default_rng(bits)
    slope = np.linspace(0, 2**bits - 1, shape[-1] * shape[-2]).reshape(1, 1, shape[-2], shape[-1])
    return np.clip(np.round(slope + rng.normal(0, 0.4, shape)), 0, 2**bits - 1).astype(np.uint8)


def levels_of(bits: int, groups: int, channels: int) -> np.ndarray:
    low = np.random.default_rng(bits).integers(0, 257 - 2**bits, (groups, channels, 1))
    return np.concatenate([low, np.full_like(low, 255)], axis=2).astype(np.uint8)


def coded(codes: np.ndarray, bits: int) -> np.ndarray:
    levels = levels_of(bits, 1, codes.shape[1])
    return coding.coded(quantize.restore(codes, levels, bits), levels, bits)


@pytest.mark.parametrize("groups", [0, 1], ids=["channel", "image"])
@pytest.mark.parametrize("shape", [(5, 3, 7, 7), (3, 1, 5, 5), (2, 1, 8, 8)])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_streams_hold_the_codes_and_give_them_back(
    bits: int, shape: tuple[int, int, int, int], groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "PART", 2)
    codes, levels = smooth(bits, shape), levels_of(bits, groups * shape[0] or 1, shape[1])
    images = quantize.restore(codes, levels, bits)
    stream = coding.coded(images, levels, bits)
    assert lzma.decompress(stream.tobytes()) == stream_bytes(codes, bits)
    np.testing.assert_array_equal(coding.uncoded(stream, levels, len(codes), shape[1:], bits), images)


def test_the_example_of_coded_pixels() -> None:
    """Of docs/formats.md."""
    codes = np.array([5, 0, 3], np.uint8).reshape(1, 3, 1, 1)
    assert lzma.decompress(coded(codes, 3).tobytes()) == bytes([33, 40])


@pytest.mark.parametrize(("bits", "least"), [(2, 0.3), (3, 0.2), (4, 0.1)])
def test_what_neighbors_say_is_saved(bits: int, least: float) -> None:
    codes = smooth(bits, (30, 3, 32, 32))
    assert len(coded(codes, bits)) < (1 - least) * codes.size * bits / 8


def raw(content: bytes, **changes: int) -> np.ndarray:
    filters = [coding.FILTERS[0] | changes]
    return np.frombuffer(lzma.compress(content, format=lzma.FORMAT_ALONE, filters=filters), np.uint8)


CODES = smooth(2, (4, 1, 5, 5))  # 25 values, two to a byte: 13 bytes an image
CONTENT = stream_bytes(CODES, 2)


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (raw(CONTENT[:-1]), "end early"),
        (raw(CONTENT)[:-9], "end early|have no end"),
        (raw(b""), "end early"),
        (raw(CONTENT + b"\0"), "go on after the last image"),
        (np.append(raw(CONTENT), np.uint8(0)), "go on after the last image"),
        (raw(b"\x10" + CONTENT[1:]), "belong to no value"),
        (raw(CONTENT[:12] + bytes([CONTENT[12] | 1]) + CONTENT[13:]), "after the last code of an image"),
        (np.frombuffer(b"\xff" * 40, np.uint8), "damaged"),
        (raw(CONTENT, dict_size=1 << 28), "damaged: Memory"),
        (np.frombuffer(lzma.compress(CONTENT), np.uint8), "damaged"),  # an xz file
    ],
)
def test_what_is_no_such_stream_is_refused(stream: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        coding.uncoded(stream, levels_of(2, 1, 1), len(CODES), (1, 5, 5), 2)


def test_a_bomb_takes_no_memory() -> None:
    bomb = raw(bytes(1 << 26))
    assert len(bomb) < 1 << 14
    tracemalloc.start()
    with pytest.raises(ValueError, match="go on after"):
        coding.uncoded(bomb, levels_of(2, 1, 1), 4, (1, 5, 5), 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
