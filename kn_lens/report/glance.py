"""The three tests at a glance: each claim's number with its interval, against the bar that it is held to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from kn_lens.experiments.verdicts import Verdict
from kn_lens.plots.style import SERIES, SKY, styled
from kn_lens.report.content import ModelReport, labels

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SYMBOLS = {True: "circle", False: "x", None: "circle-open"}
_WORDS = {True: "as the paper says", False: "not as the paper says", None: "cannot be told"}
_KEY = "filled: as the paper says; ✕: not so; open: cannot be told. Shaded: where the claim holds"
_ROW = 66  # pixels of a claim
_WIDE = 40  # characters of a claim on one line
_RIGHT = 1.03


def glance(reports: Sequence[ModelReport], subtitle: str = "") -> go.Figure | None:
    """A row per claim, a mark per model: filled where it holds, a cross where it does not, open where none can tell.

    The shaded part of a row is where its claim holds: the whole interval must lie in it.

    Args:
        reports: Of one model, or of several.
        subtitle: Below the title.

    Returns:
        The figure, or None where no claim has a number.
    """
    import plotly.graph_objects as go

    rows: dict[tuple[int, str], Verdict] = {}
    for report in reports:
        for verdict in report.verdicts:
            if verdict.estimate is not None:
                rows.setdefault((verdict.test, verdict.claim), verdict)
    if not rows:
        return None
    order = sorted(rows, key=lambda key: (key[0], rows[key].experiment))
    places = {key: len(order) - at for at, key in enumerate(order)}
    figure = go.Figure()
    step = 0.5 / max(len(reports), 2)
    for at, (name, report) in enumerate(zip(labels(reports), reports, strict=True)):
        shown = [verdict for verdict in report.verdicts if verdict.estimate is not None]
        shift = step * ((len(reports) - 1) / 2 - at)
        color = SERIES[at % len(SERIES)]
        figure.add_trace(_marks(name, shown, places, shift, color))
        if len(reports) == 1:
            continue
        figure.add_scatter(name=name, x=[None], y=[None], mode="markers", marker={"color": color, "size": 10})
    found = [one.estimate for report in reports for one in report.verdicts if one.estimate is not None]
    left = min([-0.05, *(estimate.low for estimate in found if not math.isnan(estimate.low))]) - 0.03
    for key, place in places.items():
        estimate = rows[key].estimate
        assert estimate is not None
        figure.add_shape(
            type="rect",
            layer="below",
            x0=left if estimate.below else estimate.bar,
            x1=estimate.bar if estimate.below else _RIGHT,
            y0=place - 0.4,
            y1=place + 0.4,
            fillcolor=SKY,
            opacity=0.16,
            line_width=0,
        )
    for number in dict.fromkeys(key[0] for key in order[1:]):
        edge = max(place for key, place in places.items() if key[0] == number) + 0.5
        if edge < len(order):
            figure.add_hline(y=edge, line={"color": "#CCCCCC", "width": 1, "dash": "dot"})
    styled(
        figure,
        "The paper's three tests at a glance",
        f"{subtitle}<br>{_KEY}".removeprefix("<br>"),
        height=190 + _ROW * len(order),
    )
    figure.update_yaxes(
        tickvals=list(places.values()),
        ticktext=[_label(rows[key]) for key in order],
        range=[0.4, len(order) + 0.6],
        showgrid=False,
        ticks="",
        showline=False,
        automargin=True,
    )
    figure.update_xaxes(
        title="measured, with 95 % interval (share, correlation or difference)", zeroline=True, zerolinecolor="#DDDDDD"
    )
    figure.update_xaxes(range=[left, _RIGHT])
    figure.update_layout(margin={"t": 130, "b": 60}, legend={"y": 1.0, "itemsizing": "constant"})
    return figure


def _marks(
    name: str, shown: Sequence[Verdict], places: dict[tuple[int, str], int], shift: float, color: str
) -> go.Scatter:
    import plotly.graph_objects as go

    found = [(verdict, verdict.estimate) for verdict in shown if verdict.estimate is not None]
    return go.Scatter(
        name=name,
        showlegend=False,
        x=[estimate.value for _, estimate in found],
        y=[places[verdict.test, verdict.claim] + shift for verdict, _ in found],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [estimate.high - estimate.value for _, estimate in found],
            "arrayminus": [estimate.value - estimate.low for _, estimate in found],
            "thickness": 1.6,
            "width": 0,
            "color": color,
        },
        mode="markers",
        marker={
            "color": color,
            "size": 10,
            "symbol": [_SYMBOLS[verdict.holds] for verdict, _ in found],
            "line": {"width": 2, "color": color},
        },
        customdata=[
            [verdict.claim, estimate.quantity, estimate.low, estimate.high, _WORDS[verdict.holds]]
            for verdict, estimate in found
        ],
        hovertemplate=(
            f"<b>%{{customdata[0]}}</b><br>{name}: %{{customdata[4]}}<br>%{{customdata[1]}} "
            "%{x:.2f} [%{customdata[2]:.2f}, %{customdata[3]:.2f}]<extra></extra>"
        ),
    )


def _label(verdict: Verdict) -> str:
    """The claim on one or two lines, and what is measured below it."""
    assert verdict.estimate is not None
    lines = "<br>".join(wrap(f"{verdict.experiment}: {verdict.claim}", _WIDE))
    quantity = "<br>".join(wrap(verdict.estimate.quantity, _WIDE))
    return f"{lines}<br><span style='font-size:11px;color:#666'>{quantity}</span>"
