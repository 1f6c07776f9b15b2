"""Sections: one description for terminal and page."""

from pathlib import Path

import numpy as np
import pytest
from pages import Page
from rich.console import Console

from ncfmkit.reports import layout
from ncfmkit.reports.sections import Section, SectionPictures, SectionPlot, SectionTable, for_page, for_terminal
from ncfmkit.reports.strips import strip

HOSTILE = "<b>[red]</b>"


def a_section() -> Section:
    def draw(figure, narrow: bool) -> None:  # type: ignore[no-untyped-def]
        figure.add_subplot().plot([1, 2], [3, 4])

    return Section(
        sentences=["The first.", f"The second, {HOSTILE}."],
        tables=[
            SectionTable(
                columns=["network", "accuracy of it"], rows=[[HOSTILE, "90.1"], ["b", "8.2"]], caption="What it is."
            )
        ],
        plots=[SectionPlot(draw=draw, label="A line.", caption="The line.")],
        pictures=[
            SectionPictures(strips=[(HOSTILE, strip(np.zeros((2, 1, 4, 4), np.uint8)))], caption="Two pictures.")
        ],
    )


@pytest.mark.parametrize("width", [80, 40])
def test_a_terminal_shows_sentences_and_tables(width: int) -> None:
    console = Console(width=width, record=True, highlight=False)
    console.print(for_terminal(a_section()))
    text = console.export_text()
    for expected in ("The first.", f"The second, {HOSTILE}.", "90.1", "8.2", "What it is."):
        assert expected in text
    assert max(map(len, text.splitlines())) <= width


def test_a_page_shows_all_of_it(tmp_path: Path) -> None:
    values = {
        "title": "t",
        "sections": [({"title": "T", "asks": "A?", "source": "S"}, for_page(a_section(), "one"), "3 s")],
        "students": "They.",
        "provenance": {"Set": "x"},
    }
    page = Page(layout.write_page(tmp_path / "page.html", "assess.html", **values))
    page.check_safe()
    for expected in ("The first.", f"The second, {HOSTILE}.", "90.1", "What it is.", "The line.", "Two pictures."):
        assert expected in page.text
    assert len(page.pictures()) == 1
    assert page.attributes("aria-label") == ["A line.", "A line."]  # wide and narrow
