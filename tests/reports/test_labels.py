"""Class names in pictures: fonts that have their characters, or class numbers and one notice."""

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.font_manager
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from ncfmkit.reports import labels as module
from ncfmkit.reports.contact_sheet import contact_sheet
from ncfmkit.reports.labels import labels

Installed = Callable[..., None]


def font(path: Path, characters: str, *, empty: bool = False, style: str = "Regular") -> Path:
    """A font in which each character is a square, or has no outline as in a color font."""
    pen = TTGlyphPen(None)
    for place in ((0, 0), (0, 800), (800, 800), (800, 0)):
        (pen.moveTo if place == (0, 0) else pen.lineTo)(place)
    pen.closePath()
    square, blank = pen.glyph(), TTGlyphPen(None).glyph()
    names = [".notdef", *(f"u{ord(char):05X}" for char in characters)]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(char): name for char, name in zip(characters, names[1:], strict=True)})
    builder.setupGlyf({name: blank if empty or name == ".notdef" else square for name in names})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": style})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """Says which fonts the machine has."""

    def only(*fonts: Path) -> None:
        module._fonts.cache_clear()
        module._say_once.cache_clear()
        monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", lambda: [str(path) for path in fonts])

    entries = list(matplotlib.font_manager.fontManager.ttflist)
    only()
    yield only
    matplotlib.font_manager.fontManager.ttflist = entries
    module._fonts.cache_clear()


@pytest.mark.parametrize(
    ("name", "font_to_install"),
    [
        ("\u4e2d\u6587", "Noto Sans CJK (fonts-noto-cjk)"),
        ("\ud55c\uad6d", "Noto Sans CJK (fonts-noto-cjk)"),
        ("\U0001f52c lab", "Symbola (fonts-symbola; color emoji fonts cannot be drawn)"),
        ("\u0939\u093f", "Noto Sans for the script (fonts-noto-core)"),
    ],
)
def test_names_without_a_font_are_numbers_and_one_notice_says_what_to_install(
    installed: Installed, capsys: pytest.CaptureFixture[str], name: str, font_to_install: str
) -> None:
    for _ in range(2):
        assert labels(["caf\u00e9", name], shaping=True).texts == ("caf\u00e9", "class 1")
    said = capsys.readouterr().err
    assert said == (
        f"pictures show class numbers in place of the names {name}: "
        f"no installed font can draw them: install {font_to_install}\n"
    )


def test_no_other_font_is_looked_at_where_dejavu_has_all(monkeypatch: pytest.MonkeyPatch, installed: Installed) -> None:
    monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", lambda: pytest.fail("searched"))
    names = ["cat", "\u0416", "caf\u00e9", "\U0001f431"]
    found = labels(names, shaping=False)
    assert found.texts == tuple(names)
    assert [path.name for path in found.fonts] == ["DejaVuSans.ttf"]


def test_few_regular_fonts_are_taken_and_each_draws_its_part(tmp_path: Path, installed: Installed) -> None:
    installed(
        font(tmp_path / "A Bold.ttf", "\u4e2d\u6587", style="Bold"),
        font(tmp_path / "B Serif.ttf", "\u4e2d\u6587"),
        font(tmp_path / "C One.ttf", "\u4e2d"),
        sans := font(tmp_path / "D Sans.ttf", "\u4e2d\u6587"),
    )
    found = labels(["a\u4e2db\u6587"], shaping=False)
    dejavu = found.fonts[0]
    assert found.fonts == (dejavu, sans)
    runs = [("a", dejavu), ("\u4e2d", sans), ("b", dejavu), ("\u6587", sans)]
    assert found.runs("a\u4e2db\u6587") == runs


def test_fonts_that_cannot_be_drawn_are_passed_over(
    tmp_path: Path, installed: Installed, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    installed(tmp_path / "broken.ttf", font(tmp_path / "Color.ttf", "\u4e2d", empty=True))
    assert labels(["\u4e2d"], shaping=True).texts == ("class 0",)
    assert "no installed font can draw them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("\u2764\ufe0f", "\u2764"),
        ("a\u200db", "ab"),
        ("a\nb\x1b\u202e", "a b  "),
        ("x" * 999, "x" * 200),
    ],
)
def test_a_name_on_one_line(installed: Installed, name: str, shown: str) -> None:
    assert labels([name], shaping=False).texts == (shown,)


@pytest.mark.parametrize("name", ["\u05e2\u05d1", "\u0627\u0644 a", "g\u0303"])
def test_scripts_that_need_shaping(installed: Installed, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert labels([name], shaping=True).texts == (name,)
    assert capsys.readouterr().err == ""
    assert labels([name], shaping=False).texts == ("class 0",)
    assert "right-to-left and combining scripts need one font" in capsys.readouterr().err


def test_what_needs_shaping_is_drawn_in_one_font(tmp_path: Path, installed: Installed) -> None:
    installed(part := font(tmp_path / "Part.ttf", "\u4e2d"))
    assert labels(["\u05e2\u4e2d"], shaping=True).texts == ("class 0",)
    installed(part, whole := font(tmp_path / "Whole.ttf", "\u05e2\u4e2d\u6587\u2026"))
    found = labels(["\u05e2\u4e2d", "\u6587"], shaping=True)
    assert found.texts == ("\u05e2\u4e2d", "\u6587")
    assert found.runs("\u05e2\u4e2d") == [("\u05e2\u4e2d", whole)]


def test_a_contact_sheet_draws_with_the_font(tmp_path: Path, installed: Installed) -> None:
    images, labels_N = np.full((1, 3, 8, 8), 255, np.uint8), np.zeros(1, np.int64)
    installed(font(tmp_path / "Sans.ttf", "\u4e2d"))
    sheet = np.asarray(contact_sheet(images, labels_N, ["\u4e2d\u4e2d"]))
    ys, xs = np.nonzero((sheet == 0x44).all(axis=-1))  # two squares of 0.8 em, 1 em apart
    assert (ys.max() - ys.min(), xs.max() - xs.min()) == pytest.approx((10, 23), abs=1)
