"""A report page, read by its elements."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The words of a page, its links, its ids, and whether every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._words: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.elements: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag == "img":
            assert dict(attrs)["alt"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self._words += data.split()

    @property
    def words(self) -> str:
        return " ".join(self._words)

    def pictures(self) -> int:
        return self.elements.count("img")
