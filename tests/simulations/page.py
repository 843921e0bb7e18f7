"""A page taken apart, for tests of what is written on it."""

from __future__ import annotations

import json
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}
SVG_LEAVES = {"line", "path", "circle", "rect"}
Cell = tuple[str, list[float]]


class Page(HTMLParser):
    """A page taken apart; refuses tags that are not closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.style = ""
        self.tables: dict[str, list[list[Cell]]] = {}
        self._table: list[list[Cell]] | None = None
        self.feed(source)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), f"an attribute of <{tag}> is given twice: {attrs}"
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = self.tables.setdefault(found.get("id") or "", [])
        elif tag == "tr" and self._table is not None:
            self._table.append([])
        elif tag in ("td", "th") and self._table is not None:
            self._table[-1].append(("", []))
        elif tag == "data" and self._table is not None:
            self._table[-1][-1][1].append(json.loads(found["value"] or ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_LEAVES, f"<{tag}/> does not close itself in HTML"
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> while {self.open[-1]} is open, line {self.getpos()[0]}"
        self.open.pop()
        if tag == "table":
            self._table = None

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.style += data
            return
        self.words.append(data)
        if self._table and self._table[-1] and self.open[-1] not in ("tr", "tbody", "thead", "table"):
            shown, values = self._table[-1][-1]
            self._table[-1][-1] = (shown + data, values)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def rows(self, table: str) -> dict[str, dict[str, Cell]]:
        """``{row: {column: (shown text, full values)}}``."""
        heads = [shown.replace("\u200b", "") for shown, _ in self.tables[table][0]]
        return {row[0][0].strip(): dict(zip(heads[1:], row[1:], strict=True)) for row in self.tables[table][1:]}
