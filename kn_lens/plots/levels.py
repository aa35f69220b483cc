"""The figure of E1: measures of localization, a dot per group, facts beside agreement."""

from __future__ import annotations

import math
import random
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kn_lens.plots.style import BLUE, INK, VERMILLION, styled

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KIND_LOOKS = {"facts": (BLUE, "circle"), "agreement": (VERMILLION, "diamond")}
"""Color and symbol of each kind of data."""

_MEASURES = (
    ("|KN|", "|KN|, units found", "{:.0f}"),
    ("τ", "τ, share of prompts", "{:.2f}"),
    ("R₁²", "R₁², same direction", "{:.2f}"),
)
_JITTER = 0.22
_LABEL = 22
_MOST_UNITS = 12


def localization_levels(groups: pd.DataFrame, measures: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """|KN|, τ and R₁²: a panel each, a row per data set, a dot per group, and the mean with its interval.

    Args:
        groups: One row per group: ``data``, ``kind``, ``group``, ``prompts``, the measures, ``units``, ``note``.
        measures: One row per data set: ``data``, ``kind``, each measure, and its ``low`` and ``high``.
        subtitle: Model and settings.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(_MEASURES), shared_yaxes=True, horizontal_spacing=0.04)
    rows: list[dict[str, Any]] = measures.to_dict("records")  # type: ignore[assignment]
    for at, row in enumerate(rows):
        own: list[dict[str, Any]] = groups[groups["data"] == row["data"]].to_dict("records")  # type: ignore[assignment]
        color, symbol = KIND_LOOKS[row["kind"]]
        first = row["kind"] not in [other["kind"] for other in rows[:at]]
        heights = [at + random.Random(f"{at}:{index}").uniform(-_JITTER, _JITTER) for index in range(len(own))]
        for column, (measure, _, form) in enumerate(_MEASURES, start=1):
            place = {"row": 1, "col": column}
            figure.add_scatter(
                x=[entry[measure] for entry in own],
                y=heights,
                mode="markers",
                marker={"color": color, "symbol": symbol, "size": 7, "opacity": 0.55},
                name=f"{row['kind']}, a group",
                legendgroup=row["kind"],
                showlegend=first and column == 1,
                hovertext=[_hover(row["data"], entry, measure, form) for entry in own],
                hoverinfo="text",
                **place,
            )
            low, high = (row[f"{measure} {end}"] for end in ("low", "high"))
            mean, known = row[measure], not math.isnan(low)
            figure.add_scatter(
                x=[mean],
                y=[at],
                error_x={
                    "array": [high - mean if known else 0],
                    "arrayminus": [mean - low if known else 0],
                    "symmetric": False,
                    "thickness": 2.5,
                    "width": 7,
                    "color": INK,
                },
                mode="markers",
                marker={"color": INK, "symbol": symbol, "size": 10},
                name="mean, 95 % interval",
                legendgroup="mean",
                showlegend=at == 0 and column == 1,
                hovertext=f"{row['data']}: mean {measure} {mean:.3g}"
                + (f" [{low:.3g}, {high:.3g}]" if known else "")
                + f"<br>{len(own)} groups",
                hoverinfo="text",
                **place,
            )
    for column, (measure, title, _) in enumerate(_MEASURES, start=1):
        figure.update_xaxes(title=title, row=1, col=column, showgrid=True, gridcolor="#E6E6E6")
        if measure != "|KN|":
            figure.update_xaxes(range=[-0.03, 1.03], row=1, col=column)
        else:
            most = max([1.0, *groups[measure].tolist(), *[row[f"{measure} high"] for row in rows]])
            figure.update_xaxes(range=[-0.03 * most, 1.03 * most], row=1, col=column)
    note = "a dot: a group of prompts (a fact, a cue and its target); black: mean and 95 % interval over groups"
    styled(
        figure,
        "How local? Facts beside agreement",
        f"{subtitle}<br>{note}" if subtitle else note,
        height=230 + 62 * len(rows),
    )
    data_axis(figure, [row["data"] for row in rows])
    figure.update_layout(margin_t=135)
    return figure


def data_axis(figure: go.Figure, names: Sequence[str]) -> None:
    """Data sets from top to bottom, their names broken into short lines."""
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[wrapped(name) for name in names],
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
        automargin=True,
    )


def wrapped(name: str) -> str:
    """A data set's name in lines of at most 22 characters, where it has a place to break."""
    return "<br>".join(textwrap.wrap(name.replace("_", " "), _LABEL, break_long_words=False))


def _hover(data: str, entry: dict[str, Any], measure: str, form: str) -> str:
    value = entry[measure]
    shown = "none" if math.isnan(value) else form.format(value)
    units = entry["units"].split()
    told = " ".join(units[:_MOST_UNITS]) + (f" and {len(units) - _MOST_UNITS} more" if len(units) > _MOST_UNITS else "")
    note = f"<br>{entry['note']}" if entry["note"] else ""
    return (
        f"{data}, {entry['group']}<br>{measure} = {shown}, {entry['prompts']} prompts<br>units {told or 'none'}{note}"
    )
