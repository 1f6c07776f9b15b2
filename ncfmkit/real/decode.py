"""One picture in, uint8 [ch, size, size] out; whatever does not fit as it is needs a setting that says so."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ncfmkit.errors import UserError
from ncfmkit.real.listing import Payload

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")  # Pillow's other readers stay shut: some start programs
COLORS = {"rgb": 3, "gray": 1}


class BadImageError(UserError):
    """A picture that cannot be decoded; `--skip-bad` passes over it."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What every image of a store is made to be."""

    size: int
    color: str
    crop: bool  # bring other sizes to `size`; false: they are errors
    convert: bool  # bring other color modes to `color`; false: they are errors
    as_first: bool = False  # size was taken from the first image: messages say so
    first_pixels: int = 0  # of the first image, before any resizing

    @property
    def channels(self) -> int:
        return COLORS[self.color]


def open_picture(payload: Payload, where: str) -> Image.Image:
    """The decoded picture, upright.

    Raises:
        BadImageError: not a whole picture in an accepted format, or too large to be one.
    """
    if isinstance(payload, np.ndarray):
        return Image.fromarray(payload)
    try:
        with Image.open(payload if isinstance(payload, Path) else io.BytesIO(payload), formats=FORMATS) as picture:
            pixels, limit = picture.width * picture.height, Image.MAX_IMAGE_PIXELS
            if limit is not None and pixels > limit:
                raise Image.DecompressionBombError(f"{pixels} pixels, the limit is {limit}")
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
            return picture
    # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more for broken files
    except Exception as error:
        cause = "not a PNG, JPEG, WebP or BMP" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise BadImageError(
            f"{where} is not a readable picture ({cause}): mend it, or pass --skip-bad to pass over such images"
        ) from error


def frame_of(
    picture: Image.Image, where: str, size: int | None, color: str | None, resize: str, convert: bool
) -> Frame:
    """The frame that settings ask for; what they leave open is as the first picture is.

    Raises:
        UserError: the side is left open and the first picture is not square.
    """
    if size is None and picture.width != picture.height:
        raise UserError(
            f"{where}: expected a square image, got {picture.width}x{picture.height}: "
            f"pass --size {min(picture.size)} --resize crop"
        )
    color = color or ("gray" if picture.mode in ("L", "1", "LA", "I", "F") or picture.mode[:4] == "I;16" else "rgb")
    side = picture.width if size is None else size
    pixels = picture.width * picture.height
    return Frame(
        size=side, color=color, crop=resize == "crop", convert=convert, as_first=size is None, first_pixels=pixels
    )


def fit(picture: Image.Image, frame: Frame, where: str) -> np.ndarray:
    """uint8 [ch, size, size] of a picture.

    Raises:
        UserError: another size or color mode than the frame's, and no setting to bring it there.
    """
    picture = _sized(_colored(picture, frame, where), frame, where)
    return np.asarray(picture).reshape(frame.size, frame.size, frame.channels).transpose(2, 0, 1)


def _colored(picture: Image.Image, frame: Frame, where: str) -> Image.Image:
    mode = picture.mode
    if mode in ("I", "F"):
        raise UserError(f"{where}: expected 8 bits per channel, got Pillow's mode {mode}, which is not supported")
    if mode == "P":
        mode = "RGBA" if "transparency" in picture.info else "RGB"
        picture = picture.convert(mode)
    if mode == "1":
        picture, mode = picture.convert("L"), "L"
    wanted = "L" if frame.color == "gray" else "RGB"
    if mode == wanted:
        return picture
    if not frame.convert:
        raise UserError(
            f"{where}: expected {frame.color} images, got mode {mode}: pass --convert-color to make all of them "
            f"{frame.color} (--color chooses rgb or gray)"
        )
    if mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture.convert(wanted)


def _sized(picture: Image.Image, frame: Frame, where: str) -> Image.Image:
    width, height = picture.size
    if width == height == frame.size:
        return picture
    if not frame.crop:
        side, origin = frame.size, " as the first image" if frame.as_first else ""
        same = f", or --size {width} if all are {width}x{width}" if width == height and not frame.as_first else ""
        raise UserError(
            f"{where}: expected {side}x{side}{origin}, got {width}x{height}: pass --size {side} --resize crop{same}"
        )
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    # the center square first: a picture of 1 x 80,000,000 pixels must not be enlarged whole
    return picture.resize((frame.size,) * 2, Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))
