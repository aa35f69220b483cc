"""Figures laid out for print: a column's or a page's width, texts of 7 to 9 points, nothing cut off.

The layout is made in the figure's own pixels and scaled as a whole, so that lines, marks and texts keep their
proportions: where texts of ``size`` pixels are to print at ``text`` points, a layout pixel is ``text · 96 / 72 / size``
pixels of 1/96 inch.
"""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kn_lens.errors import SettingsError

if TYPE_CHECKING:
    import plotly.graph_objects as go

WIDTHS = {"column": 84.0, "page": 174.0}
"""Widths by name, in mm: of one column, and of the type area of a page."""

FONTS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
"""The house font, then what stands in for it where it is not installed."""

_PIXELS_PER_MM = 96 / 25.4
_LETTER = 0.56
"""Mean width of a letter, in sizes of its font; a little more than Helvetica's."""
_LINE = 1.3
"""Height of a line of text, in sizes of its font."""
_EDGE = 10
_TITLE, _TITLE_PAD = 17, 28
"""Size of titles, which Plotly sets where the figure does not, and the room above them."""
_AXIS_TITLE = 1.1
"""Size of axis titles, in sizes of ordinary text."""


@dataclass(frozen=True)
class Sheet:
    """A figure laid out for print.

    Attributes:
        figure: A copy of the figure with the layout changed.
        width: In layout pixels.
        height: In layout pixels.
        scale: Pixels of 1/96 inch in a layout pixel.
    """

    figure: go.Figure
    width: float
    height: float
    scale: float


def sheet(
    figure: go.Figure,
    *,
    width: float | str = "column",
    height: float | None = None,
    text: float = 8.0,
    title: bool = False,
) -> Sheet:
    """Lay a figure out for print; the figure itself is left as it is.

    Args:
        figure: A Plotly figure.
        width: In mm, or a name of :data:`WIDTHS`.
        height: In mm; by default what the figure was designed with, less the room of the title.
        text: Size of ordinary text in points, 8 by default; small and large texts follow.
        title: Keep the title and the settings below it; papers put them into the caption.

    Raises:
        SettingsError: For an unknown name, or a size that is out of range.
    """
    import plotly.graph_objects as go

    across = _in_range("width", WIDTHS.get(width, width) if isinstance(width, str) else width, 20, 1000, "mm")
    down = None if height is None else _in_range("height", height, 20, 1500, "mm")
    points = _in_range("text", text, 4, 40, "points")
    spec: dict[str, Any] = figure.to_dict()
    data, layout = spec["data"], spec["layout"]
    size = float(layout.get("font", {}).get("size") or 12)
    scale = points * 96 / 72 / size
    wide = across * _PIXELS_PER_MM / scale
    old_top = float(layout.get("margin", {}).get("t") or 100)
    for trace in data:
        if trace.get("name"):
            trace["name"] = wrapped(trace["name"], wide - 90, size)
    top = _set_margins(data, layout, wide, size, title)
    tables = [trace for trace in data if trace["type"] == "table"]
    if down is not None:
        high = down * _PIXELS_PER_MM / scale
    elif tables:
        high = top + sum(_table_height(table, wide, size) for table in tables) + 2 * _EDGE
    else:
        high = float(layout.get("height") or 460) - old_top + top
    layout |= {"width": wide, "height": high, "autosize": False, "paper_bgcolor": "white"}
    layout.setdefault("plot_bgcolor", "white")
    layout["font"] = {**layout.get("font", {}), "family": FONTS, "color": "black"}
    _set_axes(layout, wide, high, size)
    return Sheet(go.Figure(spec), wide, high, scale)


def wrapped(text: str, room: float, size: float) -> str:
    """Text with tags, broken at spaces into lines of at most ``room`` pixels, as far as words allow."""
    return "<br>".join(_wrapped_line(line, room, size) for line in text.split("<br>"))


def _wrapped_line(line: str, room: float, size: float) -> str:
    if _length(line, size) <= room:
        return line
    lines = [""]
    # Spaces inside a tag are no places to break; Plotly carries a tag that is open into the next line.
    for word in re.findall(r"(?:<[^>]*>|[^\s<])+", line):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and _length(longer, size) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return "<br>".join(lines)


def _length(text: str, size: float) -> float:
    return len(html.unescape(re.sub(r"<[^>]*>", "", text))) * _LETTER * size


def _in_range(name: str, value: Any, low: float, high: float, unit: str) -> float:
    names = f", or one of {', '.join(map(repr, WIDTHS))}" if name == "width" else ""
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise SettingsError(f"{name} is {value!r}; it is a number from {low:g} to {high:g}, in {unit}{names}")
    return float(value)


def _set_margins(data: list[dict[str, Any]], layout: dict[str, Any], wide: float, size: float, title: bool) -> float:
    """Margins as narrow as what stands in them allows; axes, color bars and legends make room by themselves.

    Returns:
        The room above the plot.
    """
    old = layout.get("margin", {})
    notes = [note for note in layout.get("annotations", ()) if note.get("xref") == "paper" == note.get("yref")]
    columns = {tuple(axis.get("domain") or (0, 1)) for name, axis in layout.items() if name.startswith("xaxis")}
    above = 0
    for note in notes:
        if note.get("y", 0) >= 1 and note.get("text"):
            letters = float(note.get("font", {}).get("size") or size)
            note["text"] = wrapped(note["text"], 0.92 * wide / max(1, len(columns)), letters)
            above = max(above, 1 + note["text"].count("<br>"))
    right = any(note.get("x", 0) > 0.9 and note.get("xanchor") == "left" for note in notes)
    below = any(note.get("y", 1) < 0 for note in notes)
    rows = _legend_rows(data, layout, wide, size)
    heading = (layout.get("title") or {}).get("text") or ""
    if title and heading:
        broken = _broken_heading(heading, wide - 2 * _EDGE)
        padding = float(layout["title"].get("pad", {}).get("t") or 0)
        layout["title"] = {**layout["title"], "text": broken, "pad": {"t": max(padding, _TITLE_PAD)}}
        more = broken.count("<br>") - heading.count("<br>")
        if layout.get("legend", {}).get("orientation") == "h":  # made for one line; a vertical one has room for all
            more += max(0, rows - 1)
        top = float(old.get("t") or 100) + more * _TITLE * _LINE + max(0, _TITLE_PAD - padding)
    else:
        layout["title"] = {"text": ""}
        top = _EDGE + above * size * _LINE + rows * size * 1.5
    layout["margin"] = {
        "t": top,
        "l": _EDGE,
        "r": max(_EDGE, float(old.get("r") or 0)) if right else _EDGE,
        "b": max(_EDGE, float(old.get("b") or 0)) if below else _EDGE,
    }
    return top


def _broken_heading(heading: str, room: float) -> str:
    """The title and the smaller lines below it, broken to the width."""
    lines = []
    for line in heading.split("<br>"):
        small = re.search(r"font-size:\s*([\d.]+)px", line)
        lines.append(_wrapped_line(line, room, float(small[1]) if small else 1.08 * _TITLE))  # the title is bold
    return "<br>".join(lines)


def _legend_rows(data: list[dict[str, Any]], layout: dict[str, Any], wide: float, size: float) -> int:
    """Lines of a legend that lies above the plot; Plotly sets entries in columns as wide as the widest."""
    legend = layout.get("legend", {})
    entries = [trace for trace in data if trace.get("name") and trace.get("showlegend") is not False]
    shown = len(entries) > 1 or any(trace.get("showlegend") for trace in entries)
    if not shown or layout.get("showlegend") is False or legend.get("y", 0) < 1:
        return 0
    lines = [trace["name"].split("<br>") for trace in entries]
    tall = max(map(len, lines))
    widths = [max(_length(part, size) for part in parts) + 45 for parts in lines]
    if legend.get("orientation") != "h":
        return tall * len(entries)
    if sum(widths) <= wide - 2 * _EDGE:
        return tall
    return tall * math.ceil(len(entries) / max(1, int((wide - 2 * _EDGE) // max(widths))))


def _table_height(table: dict[str, Any], wide: float, size: float) -> float:
    """Height of a table whose cells break their texts to the width of their columns."""
    columns = table["cells"]["values"]
    shares = table.get("columnwidth") or [1] * len(columns)
    rooms = [(wide - 2 * _EDGE) * share / sum(shares) - 2 * size for share in shares]
    total = 0.0
    for part in (table["header"], table["cells"]):
        least, letters = float(part.get("height") or 28), float(part.get("font", {}).get("size") or size)
        cells = [[value] if isinstance(value, str) else list(value) for value in part["values"]]
        for row in zip(*cells, strict=True):
            broken = [wrapped(str(text), room, letters) for text, room in zip(row, rooms, strict=True)]
            total += least + max(text.count("<br>") for text in broken) * letters * _LINE
    return total


def _set_axes(layout: dict[str, Any], wide: float, high: float, size: float) -> None:
    """Let axes make room for their labels, and break their titles to their length."""
    length = {"x": wide - 60, "y": high - layout["margin"]["t"] - 50}
    for name, axis in layout.items():
        if not re.fullmatch(r"[xy]axis\d*", name):
            continue
        axis["automargin"] = True
        title = (axis.get("title") or {}).get("text")
        if title:
            start, end = axis.get("domain") or (0, 1)
            text = wrapped(title, (end - start) * length[name[0]], size * _AXIS_TITLE)
            axis["title"] = {**axis["title"], "text": text, "font": {"size": size * _AXIS_TITLE}}
