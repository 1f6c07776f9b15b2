"""Encodes an image of a package as a PNG or lossless WebP file, and decodes it.

Only pictures as `encode` writes them are read: still, complete, 8 bits, gray or RGB, without metadata, since gamma,
orientation, palettes or transparency would change what other readers see. Size and channels are read from the header
before anything is decompressed, and a PNG's rows are inflated and counted before Pillow reads them, so a picture that
claims or contains more than expected costs nothing.
"""

import io
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from ncfmkit.errors import UserError

ENCODINGS = ("png", "webp")
OVERHEAD = 65536  # bytes that a file may be larger than twice its pixels
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3}  # color types: gray, RGB
LARGEST_FILTER = 4  # first byte of a PNG's row
MOST_PIXELS = 89_478_485  # of which Pillow and its users begin to take a picture for a bomb
LONGEST_WEBP = 16383  # pixels of a side


@dataclass(frozen=True)
class Header:
    kind: str  # PNG or WEBP
    shape: tuple[int, int, int]  # (ch, H, W)
    packed: bytes = b""  # a PNG's rows, compressed


def check_size(shape: tuple[int, int, int], encoding: str) -> None:
    """Raises UserError if images of this shape `(ch, H, W)` are too large for picture files that others open."""
    _, height, width = shape
    if height * width > MOST_PIXELS or (encoding == "webp" and max(height, width) > LONGEST_WEBP):
        raise UserError(f"images of {height}x{width} are too large for pictures in a package: use --to safetensors")


def encode(image_CHW: np.ndarray, encoding: str) -> bytes:
    """A lossless picture file; the same image gives the same bytes.

    Args:
        image_CHW: uint8 `[1 or 3, H, W]`. WebP has no gray: its three channels are equal.
        encoding: `png` or `webp`.

    Raises:
        UserError: the image is too large.
    """
    from PIL import Image

    channels, height, width = image_CHW.shape
    check_size((channels, height, width), encoding)
    pixels = image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0)
    picture, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if encoding == "png":
        picture.save(file, "PNG", optimize=True)
    else:
        # more effort (quality 100, method 6) takes 25 times as long and saves nothing
        picture.convert("RGB").save(file, "WEBP", lossless=True, exact=True, quality=80, method=4)
    return file.getvalue()


def largest(shape: tuple[int, int, int]) -> int:
    """Bytes that a picture of this shape `(ch, H, W)` may have."""
    return 2 * math.prod(shape) + OVERHEAD


def decode(content: bytes, shape: tuple[int, int, int], where: str, encoding: str | None = None) -> np.ndarray:
    """uint8 `[ch, H, W]` of a picture file.

    Args:
        shape: `(ch, H, W)` that it must have.
        where: what a message calls the picture.
        encoding: `png` or `webp`, where only one of them will do.

    Raises:
        UserError: it is not what `encode` writes for an image of this shape, or that shape is too large.
    """
    if len(content) > largest(shape):
        raise _refused(where, f"{len(content)} bytes, a picture of {_shown(shape)} has at most {largest(shape)}")
    header = _header(content, where)
    if encoding not in (None, header.kind.lower()):
        raise _refused(where, f"expected {encoding}, got {header.kind.lower()}")
    check_size(shape, header.kind.lower())
    gray_webp = header.kind == "WEBP" and shape[0] == 1
    if header.shape != ((3, *shape[1:]) if gray_webp else shape):
        raise _refused(where, f"expected {_shown(shape)}, got {_shown(header.shape)}")
    if header.kind == "PNG":
        _check_rows(header, where)
    pixels_HWC = _pixels(content, header, where)
    if gray_webp:
        pixels_HWC = _gray(pixels_HWC, where)
    return pixels_HWC.transpose(2, 0, 1).copy()


def _refused(where: str, why: str) -> UserError:
    return UserError(f"{where} is not a picture of this package ({why}): fetch the package again")


def _shown(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def _header(content: bytes, where: str) -> Header:
    if content.startswith(PNG_START):
        return _png_header(content, where)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp_header(content, where)
    raise _refused(where, "neither PNG nor WebP")


def _png_header(content: bytes, where: str) -> Header:
    """Sides and channels, once the file is known to be whole chunks: IHDR, one or more IDAT, IEND."""
    chunks = _chunks(content, where)
    names = [name for name, _ in chunks]
    if names[:1] != [b"IHDR"] or names[-1:] != [b"IEND"]:
        raise _refused(where, "a PNG that is cut off, or has data after its end")
    others = set(names[1:-1]) - {b"IDAT"}
    if others:
        raise _refused(where, f"a PNG with chunk {min(others)!r}, which a package's pictures do not have")
    if content[8:12] != b"\0\0\0\r" or content[-12:-8] != b"\0\0\0\0":
        raise _refused(where, "a PNG with a damaged start or end")
    width, height, bits, color, *methods = struct.unpack_from(">II5B", content, 16)
    if bits != 8 or color not in PNG_CHANNELS or any(methods):
        raise _refused(where, f"expected a plain PNG of 8 bits, gray or RGB, got {bits} bits, color type {color}")
    packed = b"".join(data for name, data in chunks if name == b"IDAT")
    return Header("PNG", (PNG_CHANNELS[color], height, width), packed)


def _chunks(content: bytes, where: str) -> list[tuple[bytes, bytes]]:
    """Names and data of a PNG's chunks, their checksums checked: Pillow passes over those of the pixels."""
    chunks, at = [], len(PNG_START)
    while at < len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if int.from_bytes(content[end : end + 4], "big") != zlib.crc32(content[at + 4 : end]) or end + 4 > len(content):
            raise _refused(where, "a PNG that is damaged, cut off, or has data after its end")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : end]))
        at = end + 4
    return chunks


def _check_rows(header: Header, where: str) -> None:
    """All rows of a PNG, and nothing after them: Pillow makes up what is missing and passes over what follows."""
    channels, height, width = header.shape
    row = 1 + width * channels
    inflater = zlib.decompressobj()
    try:
        rows = inflater.decompress(header.packed, height * row + 1)
    except zlib.error as error:
        raise _refused(where, f"a PNG whose rows cannot be inflated: {error}") from None
    if len(rows) != height * row or not inflater.eof or inflater.unused_data or inflater.unconsumed_tail:
        raise _refused(where, f"a PNG with more or less than its {height} rows of {row} bytes")
    if max(rows[::row]) > LARGEST_FILTER:
        raise _refused(where, f"a PNG with row filter {max(rows[::row])}, there are 0 to {LARGEST_FILTER}")


def _webp_header(content: bytes, where: str) -> Header:
    """Sides, once the file is known to be a single lossless chunk without alpha: no animation, no metadata."""
    size, chunk, length, signature, bits = struct.unpack_from("<I4x4sIBI", content.ljust(25, b"\0"), 4)
    if chunk != b"VP8L":
        raise _refused(where, "a WebP that is lossy, animated, or has metadata")
    if size + 8 != len(content) or 20 + length + length % 2 != len(content) or signature != 0x2F:
        raise _refused(where, "a WebP that is damaged, cut off, or has data after its end")
    if bits >> 28:
        raise _refused(where, "a WebP with transparency, or of an unknown version")
    return Header("WEBP", (3, (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1))


def _pixels(content: bytes, header: Header, where: str) -> np.ndarray:
    """uint8 `[H, W, ch]`."""
    from PIL import Image

    channels, height, width = header.shape
    try:
        with Image.open(io.BytesIO(content), formats=(header.kind,)) as picture:
            return np.asarray(picture).reshape(height, width, channels)
    # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more for broken files
    except Exception as error:
        cause = "damaged" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise _refused(where, cause) from error


def _gray(pixels_HWC: np.ndarray, where: str) -> np.ndarray:
    """The one channel of a WebP that has three equal ones."""
    if (pixels_HWC != pixels_HWC[..., :1]).any():
        raise _refused(where, "expected a gray picture, got colors")
    return pixels_HWC[..., :1]
