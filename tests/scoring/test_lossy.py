"""Real images as small lossy pictures: what is counted of a file suffices to draw the picture."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from ncfmkit.images import labeled
from ncfmkit.real.store import RealData
from ncfmkit.scoring.lossy import JPEG, WEBP, Codec

EOI = b"\xff\xd9"


def written(image_CHW: np.ndarray, name: str) -> bytes:
    """By Pillow alone."""
    pixels = image_CHW[0] if len(image_CHW) == 1 else np.moveaxis(image_CHW, 0, 2)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, name, quality=50)
    return out.getvalue()


def shown(file: bytes, channels: int) -> np.ndarray:
    mode = "L" if channels == 1 else "RGB"
    pixels = np.asarray(Image.open(io.BytesIO(file)).convert(mode))
    return pixels[None] if channels == 1 else np.moveaxis(pixels, 2, 0)


def jpeg_apart(file: bytes) -> tuple[bytes, bytes]:
    """The segments up to the scan, walked one by one, and the scan."""
    assert file[:2] == b"\xff\xd8"
    assert file[-2:] == EOI
    place, marker = 2, 0
    while marker != 0xDA:
        assert file[place] == 0xFF
        marker = file[place + 1]
        place += 2 + int.from_bytes(file[place + 2 : place + 4], "big")
    return file[:place], file[place:-2]


def webp_apart(file: bytes) -> tuple[bytes, bytes]:
    """The start code and the size within the frame, and the rest of the frame."""
    assert file[:4] + file[8:16] == b"RIFFWEBPVP8 "
    assert int.from_bytes(file[4:8], "little") == len(file) - 8
    frame = file[20 : 20 + int.from_bytes(file[16:20], "little")]
    assert len(file) - 20 - len(frame) in (0, 1)  # padded to an even number
    assert frame[3:6] == b"\x9d\x01\x2a"
    return frame[3:10], frame[:3] + frame[10:]


def webp_together(shared: bytes, own: bytes) -> bytes:
    frame = own[:3] + shared + own[3:]
    chunk = b"VP8 " + len(frame).to_bytes(4, "little") + frame + b"\0" * (len(frame) % 2)
    return b"RIFF" + (4 + len(chunk)).to_bytes(4, "little") + b"WEBP" + chunk


FORMATS: dict[str, tuple[Codec, Callable, Callable]] = {
    "JPEG": (JPEG, jpeg_apart, lambda shared, own: shared + own + EOI),
    "WEBP": (WEBP, webp_apart, webp_together),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16), (3, 32)])
def test_what_is_counted_suffices_to_draw_the_pictures(
    make_real: Callable[..., RealData], name: str, channels: int, size: int
) -> None:
    codec, apart, together = FORMATS[name]
    real = make_real((9, 8), size=size, channels=channels)
    coded, counted = codec.coded(labeled(real, real.train))
    files = [written(image, name) for image in real.train.images]
    parts = [apart(file) for file in files]
    assert {shared for shared, _ in parts} == {parts[0][0]}  # the same in all, so that one suffices
    assert counted == sum(len(own) for _, own in parts)
    assert codec.mean_bytes(real.train.images) == pytest.approx(counted / 17)
    assert coded.images.shape == real.train.images.shape
    assert coded.images.dtype == np.uint8
    assert coded.labels.tolist() == [0] * 9 + [1] * 8
    for image, (_, own) in zip(coded.images, parts, strict=True):
        np.testing.assert_array_equal(image, shown(together(parts[0][0], own), channels))
    assert 0 < np.abs(coded.images.astype(int) - real.train.images).mean() < 60


@pytest.mark.parametrize("codec", [JPEG, WEBP])
def test_a_whole_split_is_sampled_from_end_to_end(codec: Codec) -> None:
    """Of 2,000 images the later half has details: a sample of the first ones would find every image small."""
    images = np.zeros((2000, 1, 8, 8), np.uint8)
    images[1000:] = np.random.default_rng(0).integers(0, 256, (1000, 1, 8, 8))
    plain, noisy = (codec.counted(written(images[i], codec.name)) for i in (0, -1))
    assert codec.mean_bytes(images) == pytest.approx((plain + noisy) / 2, rel=0.1)
    assert noisy > 2 * plain
