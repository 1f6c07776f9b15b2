"""One picture in, uint8 [ch, size, size] out: upright, in the set's color and size; what was changed is said."""

import io
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from ncfmkit.errors import UserError
from ncfmkit.real.listing import Payload

# Pillow's names, with the suffixes of their files. Its other readers stay shut: some start programs (EPS), some take
# any bytes for a picture (TGA has no signature).
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "HEIF": (".heic", ".heif"),  # by the plugin pillow-heif, where it is installed
}
CODECS = {"JPEG": "jpg", "WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}  # that a build of Pillow may lack
COLORS = {"rgb": 3, "gray": 1}
KINDS = {  # what people call Pillow's modes
    "RGB": "rgb",
    "L": "gray",
    "1": "1-bit",
    "P": "palette",
    "RGBA": "transparent",
    "LA": "transparent gray",
}
GRAY_KINDS = ("gray", "1-bit", "transparent gray", "16-bit gray")
ORIENTATION = 0x0112  # EXIF tag; 1: upright


class BadImageError(UserError):
    """A picture that cannot be decoded; `--skip-bad` skips it."""

    def __init__(self, where: str, reason: str):
        super().__init__(
            f"{where} is not a readable picture ({reason}): replace it, or pass --skip-bad to skip such images"
        )
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What every image of a store is made to be."""

    size: int
    color: str  # other color modes are converted to it
    crop: bool  # bring other sizes to `size`; false: they are errors
    origin: str = ""  # where the size is from, for messages
    advice: str = ""  # flags with which pictures of other sizes are accepted

    @property
    def channels(self) -> int:
        return COLORS[self.color]


class Look(NamedTuple):
    """What a picture was before it was fitted to a frame."""

    kind: str  # rgb, gray, or another of `KINDS` or `16-bit gray`; else Pillow's mode
    turned: bool  # EXIF said that it does not stand upright
    resized: bool

    @property
    def color(self) -> str:
        """The row of `COLORS` that keeps its colors."""
        return "gray" if self.kind in GRAY_KINDS else "rgb"


class Opened(NamedTuple):
    """A decoded picture, upright."""

    image: Image.Image
    turned: bool


@cache
def readable_formats() -> tuple[str, ...]:
    """The formats that Pillow reads here, by its names."""
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(f for f in FORMATS if f in Image.OPEN and (f not in CODECS or features.check(CODECS[f])))


def picture_suffixes() -> tuple[str, ...]:
    """Suffixes of the files that can be read here, in lower case."""
    return tuple(suffix for name in readable_formats() for suffix in FORMATS[name])


def open_picture(payload: Payload, where: str) -> Opened:
    """The decoded picture, the first of several in a file.

    Raises:
        BadImageError: not a whole picture in an accepted format, or too large to be one.
    """
    if isinstance(payload, np.ndarray):
        return Opened(Image.fromarray(payload), turned=False)
    try:
        file = payload if isinstance(payload, Path) else io.BytesIO(payload)
        with Image.open(file, formats=readable_formats()) as picture:
            pixels, limit = picture.width * picture.height, Image.MAX_IMAGE_PIXELS
            if limit is not None and pixels > limit:
                raise Image.DecompressionBombError(f"{pixels} pixels, the limit is {limit}")
            picture.load()
            exif = picture.getexif()
            turned = exif.get(ORIENTATION, 1) in range(2, 9)
            if turned:
                for tag in set(exif) - {ORIENTATION}:  # Pillow writes the others anew, which fails for odd ones
                    del exif[tag]
                ImageOps.exif_transpose(picture, in_place=True)
            return Opened(picture, turned)
    # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more for broken files
    except Exception as error:
        raise BadImageError(where, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"its format is none of {', '.join(readable_formats())}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def kind_of(picture: Image.Image) -> str:
    """As in :class:`Look`."""
    mode = picture.mode
    if mode.startswith("I;16") or (mode == "I" and picture.format in ("PNG", "PPM")):  # 16 bits in 32
        return "16-bit gray"
    return "transparent" if mode == "P" and "transparency" in picture.info else KINDS.get(mode, mode)


def fit(opened: Opened, frame: Frame, where: str) -> tuple[np.ndarray, Look]:
    """uint8 [ch, size, size] of a picture, and what it was.

    Raises:
        BadImageError: a color mode that does not convert to 8 bits per channel.
        UserError: another size than the frame's, and no setting to bring it there.
    """
    picture, kind = opened.image, kind_of(opened.image)
    look = Look(kind, opened.turned, resized=picture.size != (frame.size,) * 2)
    picture = _sized(_colored(picture, kind, frame, where), frame, where)
    return np.asarray(picture).reshape(frame.size, frame.size, frame.channels).transpose(2, 0, 1), look


def _colored(picture: Image.Image, kind: str, frame: Frame, where: str) -> Image.Image:
    wanted = "L" if frame.color == "gray" else "RGB"
    if picture.mode == wanted:
        return picture
    if kind == "16-bit gray":
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise BadImageError(where, f"mode {picture.mode}, expected 8 or 16 bits per channel")
    elif picture.mode == "P":
        picture = picture.convert("RGBA" if kind == "transparent" else "RGB")
    elif picture.mode == "LAB":  # Pillow does not convert it to gray
        picture = picture.convert("RGB")
    return picture.convert(wanted)


def _sized(picture: Image.Image, frame: Frame, where: str) -> Image.Image:
    width, height = picture.size
    if width == height == frame.size:
        return picture
    if not frame.crop:
        side = frame.size
        raise UserError(f"{where}: expected {side}x{side}{frame.origin}, got {width}x{height}: {frame.advice}")
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    # the center square first: a picture of 1 x 80,000,000 pixels must not be enlarged whole
    return picture.resize((frame.size,) * 2, Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))


def changes(looks: Mapping[Look, int], color: str) -> dict[str, Any]:
    """How many pictures were `resized`, `turned` upright, and `converted` to a color, these by what they were."""
    converted: Counter[str] = Counter()
    for look, count in looks.items():
        converted[look.kind] += count * (look.kind != color)
    return {
        "resized": sum(count for look, count in looks.items() if look.resized),
        "turned": sum(count for look, count in looks.items() if look.turned),
        "converted": {kind: count for kind, count in converted.most_common() if count},
    }


def changes_text(changed: Mapping[str, Any], total: int, size: int, color: str) -> str:
    """One line that says what :func:`changes` counts, of `total` pictures; empty where nothing was changed."""
    kinds = changed["converted"]
    parts = [
        f"{changed['resized']:,} resized to {size}x{size} (short side, center crop)" if changed["resized"] else "",
        f"{changed['turned']:,} turned upright (EXIF)" if changed["turned"] else "",
        f"{sum(kinds.values()):,} converted to {color} ({', '.join(f'{n:,} {kind}' for kind, n in kinds.items())})"
        if kinds
        else "",
    ]
    said = ", ".join(filter(None, parts))
    return f"of {total:,} pictures, {said}" if said else ""
