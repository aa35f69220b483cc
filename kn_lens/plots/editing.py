"""Figures of many edits: what they did by criterion, and how far they behave as knowledge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kn_lens.criteria.evaluation import EditEvaluation
from kn_lens.errors import SettingsError
from kn_lens.plots.layers import subtitles
from kn_lens.plots.style import INK, SERIES, styled

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Evaluations = EditEvaluation | Mapping[str, EditEvaluation]

CRITERION_NAMES = {"symmetry_old": "symmetry (old)"}
"""Of criteria whose own name says less: the inverse question about the old answer."""

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon")


def edit_criteria(evaluations: Evaluations, subtitle: str = "") -> go.Figure:
    """Success after the edits by criterion and editor, with 95 % intervals; hollow: before them.

    Locality has no hollow mark: it asks whether an answer is the same as before.

    Args:
        evaluations: One, or several by name.
        subtitle: Model and data.

    Raises:
        SettingsError: If there are none.
    """
    import plotly.graph_objects as go

    named = _named(evaluations)
    tables = {name: _records(one.summary()) for name, one in named.items()}
    criteria = list(dict.fromkeys(row["criterion"] for rows in tables.values() for row in rows))
    figure = go.Figure()
    for at, (name, rows) in enumerate(tables.items()):
        judged = [row for row in rows if row["questions"]]
        y = [criteria.index(row["criterion"]) + _offset(at, len(tables)) for row in judged]
        color = SERIES[at % len(SERIES)]
        marker = {"color": color, "size": 10, "symbol": _SYMBOLS[at % len(_SYMBOLS)]}
        after = [row["success_after"] for row in judged]
        figure.add_scatter(
            x=after,
            y=y,
            mode="markers",
            name=name,
            legendgroup=name,
            marker=marker,
            error_x=_error(after, judged, color),
            hovertext=[_success_text(name, row) for row in judged],
            hoverinfo="text",
        )
        figure.add_scatter(
            x=[_before(row) for row in judged],
            y=y,
            mode="markers",
            name=f"{name}, before",
            legendgroup=name,
            showlegend=False,
            marker={**marker, "symbol": f"{marker['symbol']}-open", "size": 13},
            hovertext=[
                f"{name}: {_called(row['criterion'])}, before the edits {row['success_before']:.1%}" for row in judged
            ],
            hoverinfo="text",
        )
    for at in range(1, len(criteria)):
        figure.add_hline(y=at - 0.5, line={"color": "#E6E6E6", "width": 1})
    labels = [
        _tick(name, [row for rows in tables.values() for row in rows if row["criterion"] == name]) for name in criteria
    ]
    row_height = 46 + 16 * (len(tables) - 1)
    styled(figure, "What the edits did", "", height=190 + row_height * len(criteria))
    figure.update_yaxes(
        tickvals=list(range(len(criteria))),
        ticktext=labels,
        range=[len(criteria) - 0.5, -0.5],
        showgrid=False,
        automargin=True,
    )
    figure.update_xaxes(title=_axis("success, mean over edits"), tickformat=".0%", range=[-0.04, 1.04], showgrid=True)
    legend_below_title(figure, [subtitle, "hollow: before the edits; lines: 95 % intervals"], list(tables))
    return figure


def _before(row: Mapping[str, Any]) -> float | None:
    return None if row["criterion"] == "locality" else row["success_before"]


def edit_cascade(evaluations: Evaluations, subtitle: str = "") -> go.Figure:
    """How far edits behave as knowledge: reliable, of these general, of these symmetric, of these synonymous.

    Args:
        evaluations: One, or several by name.
        subtitle: Model and data.

    Raises:
        SettingsError: If there are none.
    """
    import plotly.graph_objects as go

    named = _named(evaluations)
    tables = {name: _records(one.cascade()) for name, one in named.items()}
    stages = [row["stage"] for row in next(iter(tables.values()))]
    figure = go.Figure()
    for at, (name, rows) in enumerate(tables.items()):
        counts = _stage_counts(rows)
        shares = [None if math.isnan(row["share"]) else row["share"] for row in rows]
        y = [place + _offset(at, len(tables)) for place in range(len(rows))]
        color = SERIES[at % len(SERIES)]
        figure.add_bar(
            x=shares,
            y=y,
            orientation="h",
            width=0.62 / len(tables),
            name=name,
            legendgroup=name,
            marker={"color": color, "opacity": 0.4, "line": {"color": color, "width": 1}},
            error_x=_error([row["share"] for row in rows], rows, color),
            hovertext=[
                f"{name}: {count} {row['stage']} {_around(row)}" for count, row in zip(counts, rows, strict=True)
            ],
            hoverinfo="text",
        )
        figure.add_scatter(
            x=[1.03] * len(rows),
            y=y,
            mode="text",
            text=counts,
            textposition="middle right",
            textfont={"size": 12, "color": INK},
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )
    row_height = 46 + 20 * (len(tables) - 1)
    styled(figure, "Do the edits behave as knowledge?", "", height=190 + row_height * len(stages))
    figure.update_yaxes(
        tickvals=list(range(len(stages))),
        ticktext=[stage if not at else f"… {stage}" for at, stage in enumerate(stages)],
        range=[len(stages) - 0.5, -0.5],
        showgrid=False,
        automargin=True,
    )
    figure.update_xaxes(
        title=_axis("share of edits left that pass"),
        tickformat=".0%",
        tickvals=[0, 0.25, 0.5, 0.75, 1],
        range=[0, 1.36],
        showgrid=True,
    )
    figure.add_vline(x=0.5, line={"color": INK, "width": 1, "dash": "dot"})
    lines = [
        "a stage is passed if most of an edit's questions succeed;",
        "counts: edits left that can be asked; lines: 95 % intervals",
    ]
    legend_below_title(figure, [subtitle, *lines], list(tables))
    return figure


def _named(evaluations: Evaluations) -> dict[str, EditEvaluation]:
    named = {evaluations.editor: evaluations} if isinstance(evaluations, EditEvaluation) else dict(evaluations)
    if not named:
        raise SettingsError("no evaluations to draw; give at least one")
    return named


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict("records")  # type: ignore[return-value]


def _called(criterion: str) -> str:
    return CRITERION_NAMES.get(criterion, criterion)


def _offset(at: int, count: int) -> float:
    """Where the ``at``-th of several marks lies in a row of height 1, around its middle."""
    return (at - (count - 1) / 2) * 0.66 / count


def _error(values: Sequence[float], rows: Sequence[Mapping[str, Any]], color: str) -> dict[str, Any]:
    """Bars from ``low`` to ``high`` of each row."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [row["high"] - value for row, value in zip(rows, values, strict=True)],
        "arrayminus": [value - row["low"] for row, value in zip(rows, values, strict=True)],
        "color": color,
        "thickness": 1.5,
        "width": 4,
    }


def _around(row: Mapping[str, Any]) -> str:
    return "" if math.isnan(row["low"]) else f"[{row['low']:.1%}, {row['high']:.1%}]"


def _success_text(name: str, row: Mapping[str, Any]) -> str:
    counted = f"{row['edits']} edits, {row['questions']} of {row['asked']} questions scored"
    return (
        f"{name}: {_called(row['criterion'])}<br>after the edits {row['success_after']:.1%} {_around(row)}<br>{counted}"
    )


def _tick(criterion: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A criterion and what its numbers are of; with several editors from the least to the most."""
    questions, asked = ([row[column] for row in rows] for column in ("questions", "asked"))
    if not max(asked):
        what = "not asked"
    elif not max(questions):
        what = f"0 of {_range(asked)} probes known"
    else:
        what = f"{_range([row['edits'] for row in rows])} edits, {_range(questions)} q."
    return f"{_called(criterion)}<br><span style='font-size:11px;color:#555'>{what}</span>"


def _range(values: Sequence[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)}–{max(values)}"


def _stage_counts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of each stage ``"3 of 17"``, or why there is no count."""
    found, left = [], True
    for row in rows:
        found.append(f"{row['passed']} of {row['edits']}" if row["edits"] else "not asked" if left else "none left")
        left = row["passed"] > 0 if row["edits"] else left
    return found


def _axis(title: str) -> dict[str, Any]:
    """The title of an axis, small enough for a phone."""
    return {"text": title, "font": {"size": 13}}


def legend_below_title(figure: go.Figure, lines: list[str], names: Sequence[str]) -> None:
    """Settings below the title, then the legend, a name in each line as phones need it; none for a single name."""
    shown = len(names) > 1
    subtitles(figure, lines, extra=20 * len(names) if shown else 0)
    figure.update_layout(
        showlegend=shown,
        legend={"orientation": "v", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "tracegroupgap": 0},
    )
