"""Pieces of pages as text: what exporters/report.py is made of until it has a template (see layout.py)."""

import base64
import html
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from ncfmkit.files import write_atomic


def write_page(path: Path, title: str, body: Sequence[str]) -> Path:
    """Writes one self-contained page; `body` are pieces of HTML, empty ones are left out."""
    template = Template((resources.files("ncfmkit.reports") / "page.html").read_text(encoding="utf-8"))
    page = template.substitute(title=escaped(title), body="\n".join(part for part in body if part))
    write_atomic(path, page.encode())
    return path


def escaped(value: Any) -> str:
    """As text of a page."""
    return html.escape(str(value))


def figure_html(png: bytes, kind: str, caption: str) -> str:
    """A picture inside the page; `kind` is its class there, `preview` or `curves`."""
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure class="{kind}"><img alt="{escaped(caption)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{escaped(caption)}</figcaption></figure>'
    )


def facts_html(title: str, facts: dict[str, Any], *, code: Sequence[str]) -> str:
    """A heading and facts by name, those in `code` set as code; without the empty ones, and nothing if all are."""
    items = "\n".join(
        f"<dt>{escaped(name)}</dt><dd>{f'<code>{escaped(value)}</code>' if name in code else escaped(value)}</dd>"
        for name, value in facts.items()
        if value not in (None, "")
    )
    return f"<h2>{escaped(title)}</h2>\n<dl>\n{items}\n</dl>" if items else ""
