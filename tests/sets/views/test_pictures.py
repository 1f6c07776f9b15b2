"""The picture codec of packages: exact there and back, and nothing else is taken."""

import io
import struct
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from ncfmkit.errors import UserError
from ncfmkit.sets.views.pictures import ENCODINGS, MOST_PIXELS, check_size, decode, encode, largest

SHAPE = (3, 5, 7)


def noise(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def saved(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rgb(shape=SHAPE):
    return Image.fromarray(noise(shape).transpose(1, 2, 0).copy())


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width=7, height=5, bits=8, color=2, methods=(0, 0, 0), pixels=b""):
    header = struct.pack(">II5B", width, height, bits, color, *methods)
    data = zlib.compress(pixels or bytes(height * (1 + 3 * width)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


ROWS = 5 * (1 + 3 * 7)  # bytes


def with_rows(packed, *more):
    """A PNG whose compressed rows are `packed`, in as many IDAT chunks as there are arguments."""
    return png()[:33] + b"".join(chunk(b"IDAT", part) for part in (packed, *more)) + png()[-12:]


def with_chunk(name, data):
    content = encode(noise(), "png")
    return content[:33] + chunk(name, data) + content[33:]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 5, 7), (3, 1, 1), (1, 1, 1), (3, 40, 33), (1, 33, 40)])
def test_round_trip_is_exact(encoding, shape):
    image = noise(shape)
    content = encode(image, encoding)
    back = decode(content, shape, "it", encoding)
    assert (back.dtype, back.shape, back.flags.writeable) == (np.uint8, shape, True)
    assert np.array_equal(back, image)
    assert encode(image, encoding) == content  # deterministic
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.format == encoding.upper()
        assert np.array_equal(
            np.asarray(picture.convert("RGB")).transpose(2, 0, 1), np.broadcast_to(image, (3, *shape[1:]))
        )


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_flat_and_unaligned_images(encoding, value):
    flat = np.full((3, 4, 4), value, np.uint8)
    assert np.array_equal(decode(encode(flat, encoding), flat.shape, "it"), flat)
    turned = noise((3, 4, 6)).transpose(0, 2, 1)[:, ::2]  # not contiguous
    assert np.array_equal(decode(encode(turned, encoding), (3, 3, 4), "it"), turned)


def test_png_has_no_ancillary_chunks():
    content, names, at = encode(noise(), "png"), [], 8
    while at < len(content):
        names.append(content[at + 4 : at + 8])
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    assert names == [b"IHDR", b"IDAT", b"IEND"]


def test_a_handmade_png_is_taken():
    assert not decode(png(), SHAPE, "it").any()  # so that its variants below are refused for what they vary
    packed = zlib.compress(bytes(ROWS))
    assert not decode(with_rows(packed), SHAPE, "it").any()
    assert not decode(with_rows(packed[:3], packed[3:]), SHAPE, "it").any()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "neither PNG nor WebP"),
        (b"\x89PNG\r\n\x1a\n", "cut off"),
        (saved(rgb(), "JPEG"), "neither PNG nor WebP"),
        (saved(rgb(), "BMP"), "neither PNG nor WebP"),
        (saved(rgb(), "GIF"), "neither PNG nor WebP"),
        (png(bits=16), "got 16 bits"),
        (png(bits=4, color=0), "got 4 bits"),
        (saved(rgb().convert("P")), "PLTE"),
        (saved(rgb().convert("RGBA")), "color type 6"),
        (saved(rgb().convert("LA")), "color type 4"),
        (png(methods=(0, 0, 1)), "expected a plain PNG"),
        (saved(rgb(), save_all=True, append_images=[rgb().rotate(180)]), "acTL"),
        (with_chunk(b"tRNS", bytes(6)), "tRNS"),
        (with_chunk(b"gAMA", struct.pack(">I", 10000)), "gAMA"),
        (with_chunk(b"tEXt", b"Title\0text"), "tEXt"),
        (saved(rgb(), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"), "eXIf"),
        (with_chunk(b"IHDR", bytes(13)), "IHDR"),
        (png() + b"more", "has data after its end"),
        (png()[:-1], "cut off"),
        (png()[:-12], "cut off"),
        (png()[:33] + png()[-12:], "more or less than its 5 rows of 22 bytes"),  # no pixels
        (png(pixels=bytes(50)), "more or less than its 5 rows"),
        (png(pixels=bytes(ROWS // 2)), "more or less than its 5 rows"),
        (png(pixels=bytes(ROWS - 1)), "more or less than its 5 rows"),
        (png(pixels=bytes(ROWS + 1)), "more or less than its 5 rows"),
        (png(pixels=bytes(100 * ROWS)), "more or less than its 5 rows"),
        (with_rows(zlib.compress(bytes(ROWS)) + b"x"), "more or less than its 5 rows"),
        (with_rows(zlib.compress(bytes(ROWS)), zlib.compress(b"more")), "more or less than its 5 rows"),
        (with_rows(zlib.compress(bytes(ROWS))[:-4]), "more or less than its 5 rows"),  # no checksum
        (with_rows(zlib.compress(bytes(ROWS))[:-1]), "more or less than its 5 rows"),
        (with_rows(zlib.compress(bytes(ROWS))[:-4] + b"\0\0\0\0"), "cannot be inflated: .*incorrect data check"),
        (with_rows(b"no zlib"), "cannot be inflated"),
        (png(pixels=bytes(ROWS - 22) + b"\5" + bytes(21)), "row filter 5, there are 0 to 4"),
        (png()[:-12] + chunk(b"IEND", b"more"), "damaged start or end"),
        (saved(rgb(), "WEBP"), "lossy"),
        (saved(rgb(), "WEBP", lossless=True, icc_profile=b"\0" * 128), "metadata"),
        (saved(rgb(), "WEBP", lossless=True, save_all=True, append_images=[rgb().rotate(180)]), "animated"),
        (saved(Image.new("RGBA", (7, 5)), "WEBP", lossless=True, exact=True), "transparency"),
        (encode(noise(), "webp") + b"more", "has data after its end"),
        (encode(noise(), "webp")[:-2], "cut off"),
        (encode(noise(), "webp")[:19], "cut off"),
        (encode(noise((3, 5, 6)), "webp"), "expected 3x5x7, got 3x5x6"),
        (encode(noise((3, 7, 5)), "png"), "expected 3x5x7, got 3x7x5"),
        (encode(noise((1, 5, 7)), "png"), "expected 3x5x7, got 1x5x7"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)  # fmt: skip
def test_what_encode_does_not_write_is_refused(content, why):
    with pytest.raises(UserError, match=rf"^a\.tar member 3 .*picture .*{why}"):
        decode(content, SHAPE, "a.tar member 3")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_colors_where_gray_is_due(encoding):
    with pytest.raises(UserError, match=r"expected (1x5x7, got 3x5x7|a gray picture, got colors)"):
        decode(encode(noise(), encoding), (1, 5, 7), "it")


def test_the_other_encoding_is_refused_where_one_is_due():
    with pytest.raises(UserError, match="expected png, got webp"):
        decode(encode(noise(), "webp"), SHAPE, "it.png", "png")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_damage_anywhere_is_a_user_error(encoding):
    content = encode(noise(), encoding)
    for at in range(len(content)):
        with pytest.raises(UserError):
            decode(content[:at], SHAPE, "it")
        damaged = bytearray(content)
        damaged[at] ^= 0x55
        if encoding == "png":  # every byte is covered by a checksum
            with pytest.raises(UserError):
                decode(bytes(damaged), SHAPE, "it")
            continue
        with suppress(UserError):
            assert decode(bytes(damaged), SHAPE, "it").shape == SHAPE


def test_bombs_cost_nothing(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("the header says enough"))
    huge = b"\x2f" + ((16383 << 14) | 16383).to_bytes(4, "little") + bytes(5)
    webp = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8L" + struct.pack("<I", 10) + huge
    for content in (png(width=60000, height=60000, pixels=b"0"), webp, bytes(largest(SHAPE) + 1)):
        with pytest.raises(UserError, match=r"got 3x(60000|16384)x|65746 bytes.* has at most 65746|65747 bytes"):
            decode(content, SHAPE, "it")


def test_a_bomb_of_rows_is_not_inflated():
    content = png(pixels=bytes(1 << 25))
    tracemalloc.start()
    with pytest.raises(UserError, match="more or less than its 5 rows"):
        decode(content, SHAPE, "it")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ((3, 9459, 9459), ENCODINGS),
        ((1, 9460, 9460), ()),
        ((3, 16383, 4), ENCODINGS),
        ((3, 4, 16384), ("png",)),
        ((3, 5461, 16385), ("png",)),
        ((3, 16385, 5462), ()),
    ],
)
def test_images_that_are_too_large_for_pictures(shape, fits):
    for encoding in set(ENCODINGS) - set(fits):
        said = rf"^images of {shape[1]}x{shape[2]} are too large for pictures in a package: use --to safetensors$"
        header = png(width=shape[2], height=shape[1], color=2 if shape[0] == 3 else 0, pixels=b"never read")
        with pytest.raises(UserError, match=said):
            check_size(shape, encoding)
        with pytest.raises(UserError, match=said):
            encode(np.broadcast_to(np.uint8(0), shape), encoding)
        if encoding == "png":
            with pytest.raises(UserError, match=said):
                decode(header, shape, "it", encoding)
    for encoding in fits:
        check_size(shape, encoding)


def test_the_limit_is_the_one_of_pillow():
    assert Image.MAX_IMAGE_PIXELS == MOST_PIXELS


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_long_picture_comes_back(encoding):
    image = noise((1, 1, 16383))
    assert np.array_equal(decode(encode(image, encoding), image.shape, "it"), image)
