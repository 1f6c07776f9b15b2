"""Class names as drawn in pictures: in installed fonts that have their characters, otherwise as class numbers."""

import functools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import ImageFont

from ncfmkit.progress import JOINERS, is_shown, notice, printable, shortened_list

if TYPE_CHECKING:
    from matplotlib.ft2font import FT2Font

MOST_CHARACTERS = 200  # of a name that are drawn: no picture has room for more
VARIATION_SELECTORS = dict.fromkeys((0xFE0E, 0xFE0F))  # text or emoji style: pictures have one style
LONGEST_SHOWN = 40  # characters of a name in a notice
ELLIPSIS = "…"  # ends a text that a picture cuts
NO_JOINERS = dict.fromkeys(map(ord, JOINERS))


@dataclass(frozen=True)
class Labels:
    """What a picture writes for each class.

    Attributes:
        texts: the name on one line, or `class 3` where it cannot be drawn.
        fonts: font files that have all characters of `texts`; the first that has a character draws it.
    """

    texts: tuple[str, ...]
    fonts: tuple[Path, ...]

    def runs(self, text: str) -> list[tuple[str, Path]]:
        """`text` cut where the font changes; a text that needs shaping is one run."""
        if needs_shaping(text):
            font = _one_font(text, self.fonts)
            assert font is not None, f"{text!r} is not one of these labels"
            return [(text, font)]
        parts = groupby(text, lambda char: next(font for font in self.fonts if _has(font, char)))
        return [("".join(chars), font) for font, chars in parts]


def labels(names: Sequence[str], *, shaping: bool) -> Labels:
    """Labels of the classes, in order; a notice says once which names cannot be drawn, and what to install.

    Args:
        names: any text; non-printable characters become spaces.
        shaping: whether the caller shapes right-to-left and combining scripts, as libraqm does.
    """
    texts = [_one_line(name) for name in names]
    characters = {char for text in texts for char in text}
    fonts = _fonts(frozenset(characters))
    missing = {char for char in characters if not any(_has(font, char) for font in fonts)}
    undrawn = {text for text in texts if missing & set(text)}
    shaped = {text for text in texts if needs_shaping(text)}
    unshaped = {text for text in shaped - undrawn if not (shaping and _one_font(text + ELLIPSIS, fonts))}
    if undrawn:
        _say_once(_numbered(undrawn, f"no installed font can draw them: install {_fonts_to_install(missing)}"))
    if unshaped:
        why = "right-to-left and combining scripts need one font with the whole name and text shaping: install "
        _say_once(_numbered(unshaped, f"{why}Noto Sans for the script, libfribidi, and matplotlib 3.11 or newer"))
    shown = (f"class {k}" if text in undrawn | unshaped else text for k, text in enumerate(texts))
    return Labels(tuple(shown), fonts)


def needs_shaping(text: str) -> bool:
    """Whether characters, drawn one after the other from left to right, would not be the text."""
    return any(unicodedata.bidirectional(c) in ("R", "AL") or unicodedata.category(c)[0] == "M" for c in text)


def _one_line(name: str) -> str:
    text = unicodedata.normalize("NFC", name[:MOST_CHARACTERS]).translate(VARIATION_SELECTORS)
    text = "".join(char if is_shown(char) else " " for char in text)
    return text if needs_shaping(text) else text.translate(NO_JOINERS)


def _one_font(text: str, fonts: Iterable[Path]) -> Path | None:
    return next((font for font in fonts if all(_has(font, char) for char in text)), None)


def _numbered(texts: Iterable[str], why: str) -> str:
    shown = shortened_list([printable(text)[:LONGEST_SHOWN] for text in sorted(texts)])
    return f"pictures show class numbers in place of the names {shown}: {why}"


@functools.cache
def _say_once(text: str) -> None:
    notice(text)


def _fonts_to_install(missing: Iterable[str]) -> str:
    """Fonts that have such characters, with Debian's and Ubuntu's packages."""
    found = set()
    for char in missing:
        if unicodedata.category(char) in ("So", "Sk", "Sm"):
            found.add("Symbola (fonts-symbola; color emoji fonts cannot be drawn)")
        elif unicodedata.east_asian_width(char) in ("W", "F", "H"):
            found.add("Noto Sans CJK (fonts-noto-cjk)")
        else:
            found.add("Noto Sans for the script (fonts-noto-core)")
    return ", ".join(sorted(found))


@functools.cache
def _fonts(characters: frozenset[str]) -> tuple[Path, ...]:
    """matplotlib's DejaVu Sans, then as few installed fonts as have the characters that it lacks, regular ones first.

    Where DejaVu Sans has all, which is most often, no other font is looked at.
    """
    # matplotlib takes a third of a second to import
    import matplotlib
    from matplotlib.font_manager import findSystemFonts

    fonts = [Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"]
    missing = {char for char in characters if not _has(fonts[0], char)}
    installed = sorted(map(Path, findSystemFonts()), key=lambda path: (_style(path), path)) if missing else []
    while missing and installed:
        best = max(installed, key=lambda path: sum(_has(path, char) for char in missing))  # the first of equals
        had = {char for char in missing if _has(best, char)}
        if not had:
            break
        fonts.append(best)
        missing -= had
    return tuple(fonts)


def _style(path: Path) -> int:
    face = _face(path)
    return 2 if face is None else int(face.style_name != "Regular" or "Serif" in face.family_name)


@functools.cache
def _has(path: Path, char: str) -> bool:
    """Whether the font draws the character: it may have one whose outline is empty, as color fonts do."""
    face = _face(path)
    if face is None or not face.get_char_index(ord(char)):
        return False
    return unicodedata.category(char)[0] in "CMZ" or _pillow_font(path).getmask(char).getbbox() is not None


@functools.cache
def _face(path: Path) -> "FT2Font | None":
    """The font's character table, None for a file that is not a scalable font."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(str(path))
    except (OSError, RuntimeError):
        return None
    return face if face.scalable else None


@functools.cache
def _pillow_font(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), 13, layout_engine=ImageFont.Layout.BASIC)
