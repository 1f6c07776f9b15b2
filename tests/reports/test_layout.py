"""What all pages share: escaping, missing values, parts, and plots."""

from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pytest
from pages import Page

from ncfmkit.reports import layout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HOSTILE = "<script>f()</script>\"'&amp;{{ 7 * 7 }}"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Writer":
    return Writer(tmp_path, monkeypatch)


class Writer:
    """Writes a page whose content is given as template code."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.environment = folder, layout._templates().overlay()
        monkeypatch.setattr(layout, "_templates", lambda: self.environment)

    def __call__(self, content: str, **values: object) -> Page:
        parts = '{% from "macros.html" import table, picture, plot, bars, pixels, facts %}'
        code = f'{{% extends "layout.html" %}}{parts}{{% block content %}}{content}{{% endblock %}}'
        given = jinja2.DictLoader({"test.html": code})
        assert self.environment.loader is not None
        self.environment.loader = jinja2.ChoiceLoader([given, self.environment.loader])
        return Page(layout.write_page(self.folder / "page.html", "test.html", title=HOSTILE, **values))


def test_values_are_escaped_wherever_they_stand(page: Writer) -> None:
    row = {"name": HOSTILE, "share": 0.5, "text": HOSTILE}
    written = page(
        "{{ x }}{{ table([x], [[x]], caption=x) }}{{ picture(png, x, x) }}{{ bars([row], 0.1, x) }}"
        "{{ facts({x: x}) }}{{ facts({x: x}, code=[x]) }}",
        x=HOSTILE,
        png=b"png",
        row=row,
    )
    assert "script" not in {tag for tag, _ in written.tags}
    assert "49" not in written.text
    assert written.text.count(HOSTILE) == 2 + 1 + 3 + 1 + 3 + 4
    assert written.attributes("alt") == [HOSTILE]


def test_a_value_that_is_not_given_is_an_error(page: Writer) -> None:
    with pytest.raises(jinja2.UndefinedError, match="'absent' is undefined"):
        page("{{ absent }}")
    assert not (page.folder / "page.html").exists()


def test_a_table_of_figures(page: Writer) -> None:
    written = page(
        "{{ table(['what', 'device', 'n'], [['a', 'cpu', '1'], ['b', 'gpu', '2']], text_columns=2, strong=[1]) }}"
    )
    assert [attrs["class"] for tag, attrs in written.tags if tag == "th"] == ["text", "text", "figure"]
    assert [attrs.get("class") for tag, attrs in written.tags if tag == "tr"] == [None, None, "strong"]
    assert [attrs["data-label"] for tag, attrs in written.tags if tag == "td"] == ["what", "device", "n"] * 2
    assert "caption" not in {tag for tag, _ in written.tags}


def test_facts_leave_out_the_empty_ones(page: Writer) -> None:
    written = page("{{ facts({'a': 0, 'b': none, 'c': '', 'd': 'x'}, code=['d']) }}")
    assert "a 0 d x" in " ".join(text.strip() for text in written.texts if text.strip())
    assert [tag for tag, _ in written.tags].count("dt") == 2
    assert [tag for tag, _ in written.tags].count("code") == 1
    assert "dl" not in {tag for tag, _ in page("{{ facts({'b': none}) }}").tags}


def draw(figure: "Figure", narrow: bool) -> None:
    figure.set_figheight(2)
    axis = figure.subplots()
    axis.plot([1, 2], [3, 4], color=layout.SERIES[2], label=HOSTILE)
    axis.set_title('$a_1$ url(#b) id="c"' + (" narrow" if narrow else " wide"))
    axis.bar([1], [2], color="#123456")
    axis.legend()


def test_plots_are_parts_of_the_page(page: Writer) -> None:
    drawn = [layout.plot(draw, name=name, label=HOSTILE) for name in ("one", "two")]
    written = page("{% for d in drawn %}{{ plot(d, 'said') }}{% endfor %}", drawn=drawn)
    written.check_safe()
    svgs = [attrs for tag, attrs in written.tags if tag == "svg"]
    assert [attrs["width"] for attrs in svgs] == ["666pt", "270pt"] * 2
    assert {attrs["height"] for attrs in svgs} == {"144pt"}
    assert {attrs["aria-label"] for attrs in svgs} == {HOSTILE}
    assert written.text.count(HOSTILE) == 2 + 4  # title, heading; a legend each
    assert written.text.count('$a_1$ url(#b) id="c" narrow') == 2
    assert [tag for tag, _ in written.tags].count("style") == 1
    for color in ("var(--series-3)", "var(--ink)", "var(--line)", "#123456"):
        assert drawn[0].wide.count(color) >= 1
    assert not [color for color in layout.VARIABLES if color in drawn[0].wide]


def test_plots_are_the_same_each_time() -> None:
    assert layout.plot(draw, name="one", label="x") == layout.plot(draw, name="one", label="x")
    assert layout.plot_png(draw) == layout.plot_png(draw)


def test_the_stylesheet_has_every_color_for_light_dark_and_print() -> None:
    style = (Path(layout.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    light, dark, printed = (part.partition("}")[0] for part in style.split(":root {")[1:])
    for color, name in layout.VARIABLES.items():
        assert f"--{name}: {color};" in light
        assert f"--{name}: " in dark
        assert f"--{name}: " in printed


def test_ticks_stand_on_both_sides_of_all_values() -> None:
    for values in ([0.07], [1.0], [3.0, 4.0], [0.9, 12_000.0]):
        low, high, ticks = layout.log_ticks(values)
        assert low <= min(values)
        assert max(values) <= high
        assert low < high
        assert 1 <= len(ticks) <= 7
