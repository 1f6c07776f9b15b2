"""Encodes an image of a view as a PNG or lossless WebP file, and decodes it."""

import io

import numpy as np

from ncfmkit.errors import UserError

ENCODINGS = ("png", "webp")
MOST_PIXELS = 89_478_485  # of which Pillow and its users begin to take a picture for a bomb
LONGEST_WEBP = 16383  # pixels of a side


def check_size(shape: tuple[int, ...], encoding: str) -> None:
    """Raises UserError if images of this shape `(ch, H, W)` are too large for picture files that others open."""
    _, height, width = shape
    if height * width > MOST_PIXELS or (encoding == "webp" and max(height, width) > LONGEST_WEBP):
        raise UserError(f"images of {height}x{width} are too large for pictures in a package: use --to safetensors")


def encode(image_CHW: np.ndarray, encoding: str) -> bytes:
    """A lossless picture file; the same image gives the same bytes.

    Args:
        image_CHW: uint8 `[1 or 3, H, W]`. WebP has no gray: its three channels are equal.
        encoding: `png` or `webp`.
    """
    from PIL import Image

    pixels = image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0)
    picture, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if encoding == "png":
        picture.save(file, "PNG", optimize=True)
    else:
        # more effort (quality 100, method 6) takes 25 times as long and saves nothing
        picture.convert("RGB").save(file, "WEBP", lossless=True, exact=True, quality=80, method=4)
    return file.getvalue()


def decode(content: bytes, channels: int) -> np.ndarray:
    """uint8 `[channels, H, W]` of a picture file; of a gray one among WebP files, one of its equal channels.

    Raises:
        OSError, ValueError and what else Pillow raises for a broken file.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("PNG", "WEBP")) as picture:
        pixels_HWC = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return pixels_HWC.reshape(*pixels_HWC.shape[:2], channels).transpose(2, 0, 1)
