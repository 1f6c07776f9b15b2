"""Previews of images: a contact sheet as PNG, and a preview for the terminal."""

import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features
from rich.text import Text

from ncfmkit.reports.labels import ELLIPSIS, Labels, labels, needs_shaping

MAX_CLASS_ROWS = 100  # rows of a contact sheet
MIN_SHOWN = 64  # pixels: smaller images are enlarged by the least whole factor that reaches this
MAX_SHOWN = 192  # pixels: larger images are averaged down by a whole factor to below this
MAX_NAME = 180  # pixels of a class name in a contact sheet, longer ones end in an ellipsis
MAX_WIDTH = 900  # pixels up to which rows stand side by side, where one below the other they were a strip
GAP = 4  # pixels between the images of a contact sheet
INK = "#444444"
FONT_SIZE = 13  # pixels


def contact_sheet(
    images_NCHW: np.ndarray, labels_N: np.ndarray, classes: Sequence[str], *, per_class: int = 10
) -> Image.Image:
    """One row per class, its name at the left, its first `per_class` images in the order given.

    Rows that make a strip taller than wide stand side by side.
    Small images are enlarged by a whole factor, pixel by pixel; those of `MAX_SHOWN` pixels or more are averaged down.
    Classes after the first `MAX_CLASS_ROWS` are counted in a line below. A name that no installed font can draw is
    `class 3`, as :func:`ncfmkit.reports.labels.labels` says in a notice.

    Args:
        images_NCHW: uint8, 1 or 3 channels.
        labels_N: integers, places in `classes`.

    Raises:
        ValueError: other shapes, types or labels.
    """
    _check_images(images_NCHW, labels_N, classes, per_class)
    shown = [np.flatnonzero(labels_N == c)[:per_class] for c in range(min(len(classes), MAX_CLASS_ROWS))]
    columns = max((len(row) for row in shown), default=0)
    most = int(np.bincount(labels_N.astype(np.int64), minlength=1).max()) if len(labels_N) else 0
    cell_h, cell_w = _cell_size(*images_NCHW.shape[2:])
    named = labels(classes[: len(shown)], shaping=bool(features.check("raqm")))
    names = [_fit(text, named) for text in named.texts]
    left = GAP + max((math.ceil(_width(name, named)) for name in names), default=0) + 2 * GAP
    notes = []
    if most > columns:
        notes.append(f"the first {columns} of up to {most:,} images per class")
    if len(classes) > len(shown):
        notes.append(f"{len(classes) - len(shown):,} more classes are not shown")

    beside, row_w, row_h = 1, left + columns * (cell_w + GAP), cell_h + GAP
    while beside * row_w < math.ceil(len(shown) / beside) * row_h and (beside + 1) * row_w <= MAX_WIDTH:
        beside += 1
    note = "; ".join(notes)
    width = max(beside * row_w, GAP * 2 + math.ceil(_width(note, named)))
    height = GAP + math.ceil(len(shown) / beside) * row_h + (24 if note else 0)
    gray = images_NCHW.shape[1] == 1
    sheet = Image.new("L" if gray else "RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for r, (name, row) in enumerate(zip(names, shown, strict=True)):
        top, begin = GAP + r // beside * row_h, r % beside * row_w
        _write(draw, begin, top + cell_h / 2, name, named)
        for c, index in enumerate(row):
            sheet.paste(_cell(images_NCHW[index]), (begin + left + c * (cell_w + GAP), top))
    if note:
        _write(draw, 0, height - 12, note, named)
    return sheet


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as a PNG file."""
    png = io.BytesIO()
    picture.save(png, "PNG")
    return png.getvalue()


def _check_images(images_NCHW: np.ndarray, labels_N: np.ndarray, classes: Sequence[str], per_class: int) -> None:
    shape = images_NCHW.shape
    if images_NCHW.dtype != np.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
        raise ValueError(f"a contact sheet expects uint8 images [N, 1 or 3, H, W], got {images_NCHW.dtype} {shape}")
    if labels_N.shape != shape[:1]:
        raise ValueError(f"a contact sheet expects one label per image, got {labels_N.shape} for {shape[0]} images")
    if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < len(classes):
        raise ValueError(f"labels {labels_N.min()}..{labels_N.max()} do not fit {len(classes)} class names")
    if per_class < 1:
        raise ValueError(f"per_class: expected 1 or more, got {per_class}")


def _scale(height: int, width: int) -> tuple[int, int]:
    """Whole factors to enlarge and to shrink by."""
    side = max(height, width)
    return max(1, math.ceil(MIN_SHOWN / side)), side // (MAX_SHOWN // 2) if side >= MAX_SHOWN else 1


def _cell_size(height: int, width: int) -> tuple[int, int]:
    up, down = _scale(height, width)
    return math.ceil(height * up / down), math.ceil(width * up / down)


def _cell(image_CHW: np.ndarray) -> Image.Image:
    up, down = _scale(*image_CHW.shape[1:])
    enlarged = image_CHW.repeat(up, axis=1).repeat(up, axis=2)
    picture = Image.fromarray(enlarged[0] if len(enlarged) == 1 else enlarged.transpose(1, 2, 0).copy())
    return picture.reduce(down) if down > 1 else picture


def _pieces(text: str, named: Labels) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """`text` cut where the font changes."""
    layout = ImageFont.Layout.RAQM if needs_shaping(text) else ImageFont.Layout.BASIC
    return [(run, _font(path, layout)) for run, path in named.runs(text)]


@functools.cache
def _font(path: Path, layout: ImageFont.Layout) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), FONT_SIZE, layout_engine=layout)


def _width(text: str, named: Labels) -> float:
    return sum(font.getlength(run) for run, font in _pieces(text, named))


def _write(draw: ImageDraw.ImageDraw, begin: float, middle: float, text: str, named: Labels) -> None:
    """Writes `text` to the right of `begin`; `middle` is halfway between the first font's ascender and descender."""
    ascent, descent = _font(named.fonts[0], ImageFont.Layout.BASIC).getmetrics()
    x, baseline = begin + GAP, middle + (ascent - descent) / 2
    for run, font in _pieces(text, named):
        draw.text((x, baseline), run, fill=INK, font=font, anchor="ls")
        x += font.getlength(run)


def _fit(name: str, named: Labels) -> str:
    """`name` at most `MAX_NAME` pixels wide."""
    if _width(name, named) <= MAX_NAME:
        return name
    while _width(name + ELLIPSIS, named) > MAX_NAME:
        name = name[:-1]
    return name.rstrip() + ELLIPSIS


def terminal_preview(images_NCHW: np.ndarray, labels_N: np.ndarray, *, columns: int = 80) -> Text:
    """The first image of as many classes as fit on one line, two pixels to a character, in 24-bit color.

    Args:
        images_NCHW: uint8, 1 or 3 channels; images above 32 pixels are reduced.
        columns: width of the terminal in characters.
    """
    first = [images_NCHW[np.flatnonzero(labels_N == label)[0]] for label in np.unique(labels_N)]
    step = max(1, -(-images_NCHW.shape[-1] // 32))
    shown = [np.broadcast_to(image, (3, *image.shape[1:]))[:, ::step, ::step] for image in first]
    fit = max(1, columns // (shown[0].shape[-1] + 1))
    picture = Text(no_wrap=True)
    for top in range(0, shown[0].shape[1], 2):
        for image in shown[:fit]:
            for x in range(image.shape[2]):
                upper, lower = image[:, top, x], image[:, min(top + 1, image.shape[1] - 1), x]
                colors = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (upper, lower)]
                picture.append("\u2580", style=f"{colors[0]} on {colors[1]}")
            picture.append(" ")
        picture.append("\n")
    return picture
