"""Sections of a result: one description of tables, plots and pictures, which a terminal and a page show alike."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ncfmkit.reports import layout
from ncfmkit.reports.strips import Strip


@dataclass(frozen=True, kw_only=True)
class SectionTable:
    """A table of texts.

    Attributes:
        columns: headers.
        text_columns: how many columns at the left hold text; the others hold figures, at the right.
        caption: a sentence that says what the figures are.
        strong: places of the rows that are set in bold.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text_columns: int = 1
    strong: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class SectionPlot:
    """A plot, on pages only.

    Attributes:
        draw: as :func:`ncfmkit.reports.layout.plot` takes it.
        label: what the plot shows, for people who cannot see it.
        caption: the line below.
    """

    draw: layout.Draw
    label: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class SectionPictures:
    """Rows of images, each with a name, on pages only; `caption` is the line below them."""

    strips: Sequence[tuple[str, Strip]]
    caption: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A result for people.

    Attributes:
        sentences: what was found, in plain words, most important first.
    """

    sentences: Sequence[str]
    tables: Sequence[SectionTable] = ()
    plots: Sequence[SectionPlot] = ()
    pictures: Sequence[SectionPictures] = ()


def for_terminal(section: Section) -> RenderableType:
    """The sentences, and the tables with their captions."""
    parts: list[RenderableType] = [Text(sentence) for sentence in section.sentences]
    for of_section in section.tables:
        table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, show_edge=False, pad_edge=False)
        for place, header in enumerate(of_section.columns):
            if place < of_section.text_columns:
                table.add_column(header)
            else:  # figures are never broken, so that a narrow terminal wraps the text
                width = max(map(len, [*header.split(), *(row[place] for row in of_section.rows)]))
                table.add_column(textwrap.fill(header, width), justify="right", no_wrap=True)
        for place, row in enumerate(of_section.rows):
            table.add_row(*map(Text, row), style="bold" if place in of_section.strong else "")
        parts += ["", table]
        if of_section.caption:
            parts.append(Text(f"\n{of_section.caption}"))
    return Group(*parts)


def for_page(section: Section, name: str) -> dict[str, object]:
    """What the template's macro `section` takes; `name`: one word, unique in the page."""
    return {
        "sentences": section.sentences,
        "tables": [vars(table) for table in section.tables],  # its fields are what the macro `table` takes
        "plots": [
            (layout.plot(p.draw, name=f"{name}{k}", label=p.label), p.caption) for k, p in enumerate(section.plots)
        ],
        "pictures": section.pictures,
    }
