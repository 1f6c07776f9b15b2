"""Images of a set inside a page: strips of pixels that the page lays out, enlarges and names itself.

Shape letters: N images, P decoded images of one, C channels, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ncfmkit.reports.contact_sheet import png_bytes

MAX_CLASSES = 100
MAX_IMAGES = 200  # stored images of all classes together
MAX_PER_CLASS = 10
SHOWN_SIDE = 64  # pixels: smaller images are enlarged to about this, larger ones reduced
DECODED_OF = 2  # stored images of each class that are shown with what they decode to


@dataclass(frozen=True, kw_only=True)
class SetImages:
    """What a page shows of a set.

    Attributes:
        stored: uint8 `[N, C, H, W]`, 1 or 3 channels.
        labels: integers `[N]`, places in `classes`.
        classes: names.
        decoded: of some stored images, by their place: what they decode to, uint8 `[P, C, H, W]`; empty where images
            are stored as they are trained on.
    """

    stored: np.ndarray
    labels: np.ndarray
    classes: Sequence[str]
    decoded: dict[int, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Images side by side: a PNG file of their own pixels, and how many pixels wide a page shows it."""

    png: bytes
    width: int
    count: int


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """The first stored images of a class; some of them one by one with what they decode to."""

    name: str
    stored: Strip
    decoded: list[tuple[Strip, Strip]]


def class_rows(images: SetImages) -> list[ClassRow]:
    """One row per class, at most `MAX_CLASSES`, with as many images as keep the page small."""
    shown = min(len(images.classes), MAX_CLASSES)
    most = max(1, min(MAX_PER_CLASS, MAX_IMAGES // max(shown, 1)))
    rows = []
    for label, name in enumerate(images.classes[:shown]):
        places = np.flatnonzero(images.labels == label)
        if len(places):
            decoded = [
                (strip(images.stored[[place]]), strip(images.decoded[place]))
                for place in places.tolist()
                if place in images.decoded
            ]
            rows.append(ClassRow(name=name, stored=strip(images.stored[places[:most]]), decoded=decoded))
    return rows


def strip(images_NCHW: np.ndarray) -> Strip:
    """Images from left to right, with transparent pixels between them."""
    count, channels, height, width = images_NCHW.shape
    shrink = max(1, max(height, width) // SHOWN_SIDE)
    mode = "LA" if channels == 1 else "RGBA"
    cells = [_picture(image_CHW).reduce(shrink).convert(mode) for image_CHW in images_NCHW]
    cell_w, cell_h = cells[0].size
    enlarge = max(1, round(SHOWN_SIDE / max(cell_w, cell_h)))
    gap = max(1, cell_w // 16)
    drawn = Image.new(mode, (count * (cell_w + gap) - gap, cell_h))
    for place, cell in enumerate(cells):
        drawn.paste(cell, (place * (cell_w + gap), 0))
    return Strip(png=png_bytes(drawn), width=enlarge * drawn.width, count=count)


def _picture(image_CHW: np.ndarray) -> Image.Image:
    return Image.fromarray(image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0).copy())
