"""A page as its elements, its scripts and the text that is shown."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Parsed(HTMLParser):
    """Elements with their attributes, the text of scripts, and the text that is shown, element by element."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: dict[str, str] = {}
        self.bare_scripts: list[str] = []
        self.text: dict[str, str] = {}
        self._open: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.elements.append((tag, found))
        if tag == "script" and "id" not in found:
            self.bare_scripts.append("")
        if tag not in VOID:
            self._open.append((tag, found.get("id", "")))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, name = self._open[-1] if self._open else ("", "")
        if tag == "script":
            if name:
                self.scripts[name] = self.scripts.get(name, "") + data
            else:
                self.bare_scripts[-1] += data
        elif tag != "style":
            for _, inside in self._open:
                self.text[inside] = self.text.get(inside, "") + data

    def shown(self, name: str) -> str:
        return " ".join(self.text.get(name, "").split())

    def ids(self) -> list[str]:
        return [found["id"] for _, found in self.elements if "id" in found]
