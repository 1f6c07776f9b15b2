"""What all pages share: templates, one stylesheet, one style of plots.

A page is one self-contained HTML file without scripts and external addresses. A template in `templates/` extends
`layout.html` and imports the parts of `macros.html`; all text is escaped. Plots are drawn twice, for a screen and for a
phone, as SVG in the page's own colors, so that they follow its dark mode.
"""

import base64
import functools
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ncfmkit.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# the light colors of templates/style.css: in a page, each becomes the variable of that name
INK, SOFT, LINE, PAPER = "#1d1f21", "#5f656b", "#dcdfe2", "#ffffff"
SERIES = ("#1f5a99", "#c2571a", "#2b8a8a", "#7a4fa3", "#a8790a", "#a33b5e")
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", PAPER: "paper"} | {
    c: f"series-{k}" for k, c in enumerate(SERIES, 1)
}
WIDE, NARROW = 9.25, 3.75  # inches: the width of a page's text on a screen and on a phone, at 96 pixels per inch
PNG_DPI = 160
STYLE: dict[Any, Any] = {  # matplotlib's settings; sizes in points
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "axes.facecolor": "none",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": SOFT,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "axes.titleweight": "normal",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "ncfmkit",
}
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"

Draw = Callable[["Figure", bool], None]


def write_page(path: Path, template: str, **values: object) -> Path:
    """Writes the page of a template with `values`, whole or not at all; returns `path`.

    Raises:
        jinja2.UndefinedError: the template needs a value that is not given.
    """
    write_atomic(path, _templates().get_template(template).render(values).encode())
    return path


@functools.cache
def _templates() -> Environment:
    loader = PackageLoader("ncfmkit.reports", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_address"] = data_address
    return environment


def data_address(png: bytes) -> str:
    """The address of a PNG file that a page holds itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot for the macro `plot`: SVG for a screen and for a phone."""

    wide: Markup
    narrow: Markup


def plot(draw: Draw, *, name: str, label: str) -> Plot:
    """Draws a plot for a page.

    Args:
        draw: draws into an empty figure in matplotlib's terms; it sets the height (`figure.set_figheight`, inches). The
            second argument says whether the figure is the narrow one. Colors are those of this module: only they
            follow dark mode.
        name: one word, unique in the page: it keeps the elements of two plots apart.
        label: what the plot shows, for people who cannot see it.
    """
    wide, narrow = (
        _for_page(_drawn(draw, narrow=narrow, kind="svg"), f"{name}-{'narrow' if narrow else 'wide'}-", label)
        for narrow in (False, True)
    )
    return Plot(wide=wide, narrow=narrow)


def plot_png(draw: Draw) -> bytes:
    """The same plot as a PNG file on white, in its width for a screen."""
    return _drawn(draw, narrow=False, kind="png")


def log_ticks(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends of a logarithmic axis, and ticks at 1, 2 and 5 times powers of ten: at least one on either side of any
    value, where matplotlib's own choice can be none."""
    steps = [float(f"{mantissa}e{power}") for power in range(-6, 12) for mantissa in (1, 2, 5)]
    first = max(k for k, step in enumerate(steps) if step <= min(values))
    last = min(k for k, step in enumerate(steps) if step >= max(values))
    ticks = steps[first : max(last, first + 1) + 1]
    shown = ticks if len(ticks) <= 7 else [t for t in ticks if f"{t:e}"[0] == "1"]
    return ticks[0], ticks[-1], shown


def _drawn(draw: Draw, *, narrow: bool, kind: str) -> bytes:
    # matplotlib takes a third of a second to import, and commands that only print a table need none of it
    import matplotlib
    from matplotlib.figure import Figure

    content = io.BytesIO()
    with matplotlib.rc_context(STYLE | ({"savefig.facecolor": PAPER} if kind == "png" else {})):
        figure = Figure(figsize=(NARROW if narrow else WIDE, 3))
        draw(figure, narrow)
        figure.savefig(content, format=kind, dpi=PNG_DPI, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def _for_page(svg: bytes, prefix: str, label: str) -> Markup:
    """matplotlib's SVG as a part of a page: with ids of its own, in the colors of the page."""
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for name in ("metadata", "style"):  # the style is one for `*`, thus for all of the page
            for child in parent.findall(f"{{{SVG}}}{name}"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")  # HTML needs no namespaces
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, prefix + value)
            elif key == f"{{{XLINK}}}href":
                del element.attrib[key]
                element.set("href", f"#{prefix}{value[1:]}" if value.startswith("#") else value)
            elif key == "clip-path":
                element.set(key, value.replace("url(#", f"url(#{prefix}"))
            elif key == "style":
                element.set(key, re.sub("#[0-9a-f]{6}", _variable, value))
    root.attrib |= {"role": "img", "aria-label": label}
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # names in it are escaped as XML


def _variable(color: re.Match[str]) -> str:
    name = VARIABLES.get(color[0])
    return f"var(--{name})" if name else color[0]
