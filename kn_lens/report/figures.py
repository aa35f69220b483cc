"""Figures of a report: the title as text above, the drawing as data that the page draws when it comes into sight."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from kn_lens.plots.circuits import CircuitPage

if TYPE_CHECKING:
    import plotly.graph_objects as go

TEMPLATE = "simple_white"
"""The look that all figures share; a page carries it once."""

_TAG = re.compile(r"</?(?:b|i|em|span|sub|sup|a)(?:\s[^<>]*)?>")
_PANEL, _BESIDE_LABELS, _LETTER, _LONG = 300, 330, 6.5, 24  # pixels, and letters of a label
_TITLE, _LINE, _TOP, _TOP_WITH_NOTES = 50, 21, 16, 40


@dataclass(frozen=True)
class Sheet:
    """A figure that is a table: text in rows, which a page shows as such.

    Attributes:
        heads: Of the columns.
        right: Whether a column is set to the right.
        rows: Cells.
    """

    heads: tuple[Markup, ...]
    right: tuple[bool, ...]
    rows: tuple[tuple[Markup, ...], ...]

    @property
    def headed(self) -> bool:
        """Whether the first cell of a row says what the row is: numbers follow it."""
        return any(self.right)


@dataclass(frozen=True)
class PageFigure:
    """One figure as a page carries it.

    Attributes:
        id: Of the HTML element, unique on the page.
        title: What is shown.
        lines: Settings, below the title.
        height: In pixels, 0 where the drawing makes its own.
        least_width: In pixels, below which it is not squeezed; 0 for none.
        data: What Plotly draws; None for one of circuitsvis.
        sheet: What is shown instead of a drawing, where the figure is a table.
        parts: Elements of circuitsvis: a heading (may be empty), the element's name and its properties.
    """

    id: str
    title: str
    lines: tuple[str, ...]
    height: int = 0
    least_width: int = 0
    data: dict[str, Any] | None = None
    sheet: Sheet | None = None
    parts: tuple[tuple[str, str, dict[str, Any]], ...] = ()

    @property
    def label(self) -> str:
        """For those who do not see it."""
        return ". ".join(part.strip().rstrip(".") for part in (self.title, *self.lines) if part.strip())

    @property
    def circuits(self) -> list[dict[str, Any]]:
        """What circuitsvis draws."""
        return [{"element": element, "props": props} for _, element, props in self.parts]


def page_figure(figure: go.Figure | CircuitPage, *, id: str, name: str) -> PageFigure:
    """A figure for a page.

    Args:
        figure: Of Plotly, or a page of circuitsvis.
        id: Of the HTML element.
        name: Stands for the title where a figure has none.
    """
    if isinstance(figure, CircuitPage):
        parts = tuple((part.heading, part.element, part.props) for part in figure.parts)
        lines = (figure.subtitle,) if figure.subtitle else ()
        return PageFigure(id=id, title=figure.title, lines=lines, parts=parts)
    content = json.loads(figure.to_json() or "{}")
    layout = content["layout"]
    title, *lines = plain(((layout.pop("title", None) or {}).get("text")) or name)
    lines = [line for line in lines if line]
    if [trace.get("type") for trace in content["data"]] == ["table"]:
        return PageFigure(id=id, title=title, lines=tuple(lines), sheet=_sheet(content["data"][0]))
    if layout.get("template") == shared_template():
        layout.pop("template")
    layout.pop("width", None)
    for name, axis in layout.items():
        if re.fullmatch(r"[xy]axis\d*", name) and axis.get("matches") == name.replace("axis", ""):
            axis.pop("matches")  # Plotly warns of an axis that is to match itself
    margin = layout.setdefault("margin", {})
    before = margin.get("t", 100)
    margin["t"] = max(_TOP_WITH_NOTES if _noted(layout) else _TOP, before - _TITLE - _LINE * len(lines))
    height = max(220, layout.get("height", 460) - (before - margin["t"]))
    layout["height"] = height
    return PageFigure(
        id=id,
        title=title,
        lines=tuple(lines),
        height=height,
        least_width=_least_width(content),
        data={"data": content["data"], "layout": layout},
    )


@cache
def shared_template() -> dict[str, Any]:
    """Plotly's template of all figures."""
    import plotly.graph_objects as go

    return json.loads(go.Figure(layout={"template": TEMPLATE}).to_json() or "{}")["layout"]["template"]


def plain(text: str) -> list[str]:
    """The lines of a title of Plotly's without its tags; a token such as ``<s>`` stays."""
    lines = re.split(r"<br\s*/?>", text)
    return [html.unescape(_TAG.sub("", line)).strip() for line in lines]


def _least_width(content: dict[str, Any]) -> int:
    """Panels side by side, and one beside long labels, keep a width at which they can be read, and scroll."""
    axes = {name: axis for name, axis in content["layout"].items() if re.fullmatch(r"[xy]axis\d*", name)}
    starts = {tuple(axis["domain"]) for name, axis in axes.items() if name[0] == "x" and "domain" in axis}
    panels = _PANEL * len(starts) if len(starts) > 1 else 0
    labels = [str(label) for name, axis in axes.items() if name[0] == "y" for label in axis.get("ticktext") or ()]
    longest = max((len(line) for label in labels for line in plain(label)), default=0)
    return max(panels, round(_BESIDE_LABELS + _LETTER * longest) if longest > _LONG else 0)


def _noted(layout: dict[str, Any]) -> bool:
    """Whether there is text above the panels, such as their titles."""
    return any(note.get("yref") == "paper" and note.get("y", 0) >= 0.99 for note in layout.get("annotations", ()))


def _sheet(trace: dict[str, Any]) -> Sheet:
    """A table of Plotly's as text."""
    heads = [value[0] if isinstance(value, list) else value for value in trace["header"]["values"]]
    columns = trace["cells"]["values"]
    align = trace["cells"].get("align", "left")
    sides = align if isinstance(align, list) else [align] * len(columns)
    return Sheet(
        heads=tuple(marked(str(head)) for head in heads),
        right=tuple(sides[min(at, len(sides) - 1)] == "right" for at in range(len(columns))),
        rows=tuple(tuple(marked(str(cell)) for cell in row) for row in zip(*columns, strict=True)),
    )


def marked(text: str) -> Markup:
    """Plotly's text as HTML: bold, slanted and broken as there; anything else in it is shown as it stands."""
    parts = re.split(r"(</?[bi]>|<br\s*/?>)", text)
    return Markup("").join(
        Markup(part) if at % 2 else Markup.escape(html.unescape(part)) for at, part in enumerate(parts)
    )
