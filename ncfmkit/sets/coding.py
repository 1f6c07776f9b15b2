"""Quantized pixels as one LZMA stream of their codes (docs/formats.md, "Coded pixels").

LZMA predicts a byte from the byte before it. So a byte holds neighboring values, whole pixels where there is color,
blocks of 2 x 2 where color has half the resolution, and two bits of each at a time: the upper bits of a code follow
from its neighbors, the lower ones hardly do.

Shape letters: N images, C channels, H = W side, G = 1 or N rows of levels, V = C * H * W values of an image, S bytes of
an image in a plane.
"""

import lzma
from dataclasses import dataclass
from typing import Any

import numpy as np

from ncfmkit.progress import track
from ncfmkit.sets.quantize import encode, in_parts, restore

SMALLEST = 16  # a stream is at least this part of its packed codes: what is read takes memory by the size of its file
PLANE = 2  # bits of a code
MOST_MEMORY = 16 << 20  # bytes that decoding a stream may take; dictionaries beyond that are refused
FILTERS: list[dict[str, Any]] = [
    {"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": 1 << 20, "lc": 4, "lp": 0, "pb": 0}
]


def coded(images_NCHW: np.ndarray, levels_GC2: np.ndarray, bits: int) -> np.ndarray:
    """The codes of quantized images as one stream, uint8 `[bytes]`.

    Its bytes depend on the version of liblzma, the images that they give do not.

    Args:
        images_NCHW: as :func:`ncfmkit.sets.quantize.quantize` gives them, with their levels; six channels are the
            planes of :func:`ncfmkit.chroma.to_planes`.
        bits: 2 to 8.
    """
    encoder = lzma.LZMACompressor(format=lzma.FORMAT_ALONE, filters=FILTERS)
    pieces = []
    planes = [(shift, width, layer) for shift, width in _planes(bits) for layer in _layers(images_NCHW.shape[1])]
    with track("coding pixels", len(planes) * len(images_NCHW)) as bar:
        for shift, width, layer in planes:
            for n, g in in_parts(images_NCHW, levels_GC2):
                codes_NCHW = encode(images_NCHW[n, layer.channels], levels_GC2[g, layer.channels], bits)
                codes_NCHW = _blocks(codes_NCHW) if layer.in_blocks else codes_NCHW
                pieces.append(encoder.compress(_bytes_of(codes_NCHW >> shift, width).tobytes()))
                bar.advance(len(codes_NCHW))
    return np.frombuffer(b"".join([*pieces, encoder.flush()]), np.uint8)


def uncoded(
    stream: np.ndarray, levels_GC2: np.ndarray, count: int, shape: tuple[int, int, int], bits: int
) -> np.ndarray:
    """The images that :func:`coded` was given, uint8 `[count, C, H, W]`.

    Raises:
        ValueError: the stream is damaged, ends early, holds more, or bits are set that belong to no value.
    """
    images_NCHW = np.zeros((count, *shape), np.uint8)  # their codes, until all planes are read
    source = _Stream(stream.tobytes())
    planes = [(width, layer) for _, width in _planes(bits) for layer in _layers(shape[0])]
    for width, layer in planes:
        for n, _ in in_parts(images_NCHW, levels_GC2):
            part_NCHW = images_NCHW[n, layer.channels]
            channels, height, side = part_NCHW.shape[1:]
            in_order = (4, height // 2, side // 2) if layer.in_blocks else (channels, height, side)
            size = -(-int(np.prod(in_order)) // _values_in_a_byte(in_order[0], width))
            bytes_NS = np.frombuffer(source.read(len(part_NCHW) * size), np.uint8).reshape(len(part_NCHW), size)
            values_NCHW = _values_of(bytes_NS, in_order, width)
            part_NCHW <<= width
            part_NCHW |= _unblocked(values_NCHW) if layer.in_blocks else values_NCHW
    source.end()
    for n, g in in_parts(images_NCHW, levels_GC2):
        images_NCHW[n] = restore(images_NCHW[n], levels_GC2[g], bits)
    return images_NCHW


def _planes(bits: int) -> list[tuple[int, int]]:
    """Where the bits of each plane begin, from the lowest, and how many there are; the upper plane first."""
    starts = range(bits, 0, -PLANE)
    return [(max(0, start - PLANE), min(PLANE, start)) for start in starts]


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """Channels that follow one another in a plane, of all images, before the next layer does."""

    channels: slice
    in_blocks: bool = False  # of 2 x 2 values


def _layers(channels: int) -> list[_Layer]:
    """All channels; or luma, whose four are a block already, Cb and Cr."""
    if channels != 6:
        return [_Layer(channels=slice(None))]
    differences = [_Layer(channels=slice(c, c + 1), in_blocks=True) for c in (4, 5)]
    return [_Layer(channels=slice(0, 4)), *differences]


def _blocks(plane_N1HW: np.ndarray) -> np.ndarray:
    """Its blocks of 2 x 2 values, row by row, as four channels `[N, 4, H / 2, W / 2]`."""
    n, _, height, width = plane_N1HW.shape
    block_N2222 = plane_N1HW.reshape(n, height // 2, 2, width // 2, 2)
    return block_N2222.transpose(0, 2, 4, 1, 3).reshape(n, 4, height // 2, width // 2)


def _unblocked(blocks_N4HW: np.ndarray) -> np.ndarray:
    """What :func:`_blocks` was given."""
    n, _, height, width = blocks_N4HW.shape
    return blocks_N4HW.reshape(n, 2, 2, height, width).transpose(0, 3, 1, 4, 2).reshape(n, 1, 2 * height, 2 * width)


def _values_in_a_byte(channels: int, width: int) -> int:
    """Six bits of a byte are whole pixels with three channels, eight are a block, four are gray pixels."""
    return {3: 6, 4: 8}.get(channels, 4) // width


def _bytes_of(codes_NCHW: np.ndarray, width: int) -> np.ndarray:
    """The lowest `width` bits of codes, several to a byte, uint8 `[N, S]`: by row, column, channel."""
    n, channels = codes_NCHW.shape[:2]
    values = _values_in_a_byte(channels, width)
    value_NV = (codes_NCHW & ((1 << width) - 1)).transpose(0, 2, 3, 1).reshape(n, -1)
    value_NV = np.pad(value_NV, ((0, 0), (0, -value_NV.shape[1] % values)))
    shifts = width * np.arange(values, dtype=np.uint8)[::-1]
    return np.bitwise_or.reduce(value_NV.reshape(n, -1, values) << shifts, axis=2)


def _values_of(bytes_NS: np.ndarray, shape: tuple[int, int, int], width: int) -> np.ndarray:
    """What :func:`_bytes_of` was given, uint8 `[N, C, H, W]`."""
    (channels, height, side), n = shape, len(bytes_NS)
    values, count = _values_in_a_byte(channels, width), int(np.prod(shape))
    if (bytes_NS.astype(np.uint16) >> (values * width)).any():
        raise ValueError("bits are set in its coded pixels that belong to no value")
    shifts = width * np.arange(values, dtype=np.uint8)[::-1]
    value_NV = ((bytes_NS[:, :, None] >> shifts) & ((1 << width) - 1)).reshape(n, -1)
    if value_NV[:, count:].any():
        raise ValueError("bits are set in its coded pixels after the last code of an image")
    return value_NV[:, :count].reshape(n, height, side, channels).transpose(0, 3, 1, 2)


class _Stream:
    """Bytes out of a stream, as many as are asked for: what a stream holds beyond them is never in memory."""

    def __init__(self, content: bytes):
        self.decoder = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=MOST_MEMORY)
        self.left = content

    def read(self, count: int) -> bytes:
        """Raises ValueError if there are fewer."""
        pieces: list[bytes] = []
        while count:
            piece = self._more(count)
            if not piece:
                raise ValueError("its coded pixels end early")
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def end(self) -> None:
        """Raises ValueError unless all was read."""
        if self._more(1) or not self.decoder.eof or self.decoder.unused_data:
            raise ValueError("its coded pixels go on after the last image, or have no end")

    def _more(self, most: int) -> bytes:
        if self.decoder.eof:
            return b""
        content, self.left = self.left, b""
        try:
            return self.decoder.decompress(content, max_length=most)
        except lzma.LZMAError as error:
            raise ValueError(f"its coded pixels are damaged: {error}") from None
