"""A page as people and browsers read it."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

EMPTY = {"meta", "link", "img", "input", "path", "use", "rect", "image"}  # tags without content


class Page(HTMLParser):
    """The text people see, and every tag with its attributes."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())  # also turns no-break spaces into spaces

    def attributes(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags for key, value in attrs.items() if key == name and value is not None]

    def pictures(self) -> list[bytes]:
        """The PNG files that the page holds."""
        return [base64.b64decode(a.removeprefix("data:image/png;base64,"), validate=True) for a in self.sources()]

    def sources(self) -> list[str]:
        return [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]

    def check_safe(self) -> None:
        """No script, no address outside the page, and every id only once."""
        assert {tag for tag, _ in self.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "a", "base"})
        assert not [name for _, attrs in self.tags for name in attrs if name.startswith("on")]
        assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"base64,[^\"]*", "", self.source))
        assert "\\math" not in self.text  # matplotlib's markup
        ids = self.attributes("id")
        assert len(ids) == len(set(ids))
        inside = [value for key in ("href", "xlink:href") for value in self.attributes(key)]
        inside += [value[4:-1] for value in self.attributes("clip-path")]
        assert {value.removeprefix("#") for value in inside} <= set(ids)
