"""Reading a report's page as a browser would: its elements, its tables, and the numbers in it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "br", "img", "input", "hr"}


@dataclass
class Element:
    """One element of the page, with what is inside of it."""

    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def all(self, tag: str, kind: str | None = None) -> list[Element]:
        found = [self] if self.tag == tag and (kind is None or kind in self.attributes.get("class", "").split()) else []
        return found + [one for child in self.children for one in child.all(tag, kind)]

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Page(HTMLParser):
    """A page, refused if an element is not closed where it should be."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(content)
        self.close()
        assert [each.tag for each in self._open] == [""], "elements are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute of {tag} is there twice"
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.texts.append(data)

    @property
    def every(self) -> list[Element]:
        todo, found = [self.root], []
        while todo:
            found.append(todo.pop())
            todo += found[-1].children
        return found

    def by_id(self, name: str) -> Element:
        (found,) = [each for each in self.every if each.attributes.get("id") == name]
        return found

    def block(self, name: str) -> dict[str, list[Any]]:
        content: dict[str, list[Any]] = json.loads(self.by_id(name).text)
        return content

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The rows of a table by the names of its columns: what is shown and what it is sorted by."""
        element = self.by_id(table)
        names = [each.text for each in element.all("th")]
        return [dict(zip(names, row.all("td"), strict=True)) for row in element.all("tr")[1:]]


def number(cell: Element) -> float | None:
    value = cell.attributes["data-value"]
    assert "number" in cell.attributes.get("class", "") or value == ""
    return float(value) if value else None
