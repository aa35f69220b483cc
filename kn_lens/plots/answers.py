"""Figures of E4: answers before and after units are switched off, data set by data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kn_lens.plots.levels import KIND_LOOKS, data_axis
from kn_lens.plots.style import GREY, INK, styled

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_ABOVE, _BELOW = -0.17, 0.19
"""How far from its row's middle an answer before is drawn, and random units."""

_FLIPS, _CHANGE = "flipped", "change of log p"


def answers_before_after(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """Accuracy before (open) and after (filled), a row per data set, with intervals; grey: random units.

    Args:
        table: One row per data set: ``data``, ``kind``, ``groups``, ``prompts``, ``accuracy before`` and
            ``accuracy after`` with their ``low`` and ``high``, ``accuracy random``.
        subtitle: Model and settings.
    """
    import plotly.graph_objects as go

    rows: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    figure = go.Figure()
    for at, row in enumerate(rows):
        figure.add_scatter(
            x=[row["accuracy before"], row["accuracy after"]],
            y=[at + _ABOVE, at],
            mode="lines",
            line={"color": KIND_LOOKS[row["kind"]][0], "width": 2},
            hoverinfo="skip",
            showlegend=False,
        )
    for kind, (color, symbol) in KIND_LOOKS.items():
        own = [(at, row) for at, row in enumerate(rows) if row["kind"] == kind]
        for when, suffix, shift in (("before", "-open", _ABOVE), ("after", "", 0.0)):
            moved = [(at + shift, row) for at, row in own]
            _points(figure, moved, f"accuracy {when}", f"{kind}, {when}", color, symbol + suffix, ".1%")
    _random(figure, rows, "accuracy", ".1%")
    figure.update_xaxes(title="accuracy", tickformat=".0%", range=[-0.03, 1.03], showgrid=True, gridcolor="#E6E6E6")
    return _by_data(figure, rows, "Accuracy without the units found", subtitle)


def answers_flipped(table: pd.DataFrame, bar: float, subtitle: str = "") -> go.Figure:
    """Share of answers flipped, and change of log p(target): a row per data set, with intervals; grey: random units.

    Args:
        table: As of :func:`answers_before_after`, with ``flipped``, ``change of log p``, their ``low``, ``high`` and
            ``random``.
        bar: Below this share answers flip seldom: a dotted line.
        subtitle: Model and settings.
    """
    from plotly.subplots import make_subplots

    rows: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06)
    for column, (measure, form) in enumerate(((_FLIPS, ".1%"), (_CHANGE, ".2f")), start=1):
        for kind, (color, symbol) in KIND_LOOKS.items():
            own = [(at, row) for at, row in enumerate(rows) if row["kind"] == kind]
            _points(figure, own, measure, kind, color, symbol, form, column=column)
        _random(figure, rows, measure, form, column=column)
    figure.add_vline(x=bar, line={"color": INK, "width": 1, "dash": "dot"}, row=1, col=1)  # type: ignore[arg-type]
    figure.add_vline(x=0, line={"color": INK, "width": 1}, row=1, col=2)  # type: ignore[arg-type]
    figure.update_xaxes(showgrid=True, gridcolor="#E6E6E6")
    figure.update_xaxes(
        title=f"answers flipped (dotted: {bar:.0%})", tickformat=".0%", range=[-0.03, 1.03], row=1, col=1
    )
    figure.update_xaxes(title="change of log p(target), nats", row=1, col=2)
    return _by_data(figure, rows, "Answers and probabilities without the units found", subtitle)


def _points(
    figure: go.Figure,
    rows: Sequence[tuple[float, dict[str, Any]]],
    measure: str,
    name: str,
    color: str,
    symbol: str,
    form: str,
    column: int | None = None,
) -> None:
    """Values with their intervals at the places of their rows."""
    if not rows:
        return
    values, low, high = ([row[f"{measure}{end}"] for _, row in rows] for end in ("", " low", " high"))
    ends = [
        (0.0, 0.0) if math.isnan(a) else (value - a, b - value) for value, a, b in zip(values, low, high, strict=True)
    ]
    figure.add_scatter(
        x=values,
        y=[at for at, _ in rows],
        error_x={
            "arrayminus": [below for below, _ in ends],
            "array": [above for _, above in ends],
            "symmetric": False,
            "thickness": 1.5,
            "width": 5,
        },
        mode="markers",
        name=name,
        legendgroup=name,
        showlegend=column in (None, 1),
        marker={"color": color, "symbol": symbol, "size": 11, "line": {"width": 2, "color": color}},
        hovertext=[_hover(row, measure, name, form) for _, row in rows],
        hoverinfo="text",
        **_place(column),
    )


def _random(
    figure: go.Figure, rows: Sequence[dict[str, Any]], measure: str, form: str, column: int | None = None
) -> None:
    figure.add_scatter(
        x=[row[f"{measure} random"] for row in rows],
        y=[at + _BELOW for at in range(len(rows))],
        mode="markers",
        name="random units, mean of the draws",
        legendgroup="random",
        showlegend=column in (None, 1),
        marker={"color": GREY, "symbol": "x", "size": 9},
        hovertext=[f"{row['data']}, random units: {measure} {row[f'{measure} random']:{form}}" for row in rows],
        hoverinfo="text",
        **_place(column),
    )


def _hover(row: dict[str, Any], measure: str, name: str, form: str) -> str:
    low, high = row[f"{measure} low"], row[f"{measure} high"]
    around = "" if math.isnan(low) else f" [{low:{form}}, {high:{form}}]"
    return (
        f"{row['data']} ({name})<br>{measure}: {row[measure]:{form}}{around}<br>"
        f"{row['prompts']} prompts of {row['groups']} groups"
    )


def _place(column: int | None) -> dict[str, int]:
    return {} if column is None else {"row": 1, "col": column}


def _by_data(figure: go.Figure, rows: Sequence[dict[str, Any]], title: str, subtitle: str) -> go.Figure:
    note = "lines: 95 % intervals over groups of prompts; ✕: as many random units of the same layers"
    styled(figure, title, f"{subtitle}<br>{note}" if subtitle else note, height=240 + 56 * len(rows))
    data_axis(figure, [row["data"] for row in rows])
    figure.update_layout(margin_t=135)
    return figure
