"""The figure of a sweep over layers: where edits work, and below it where causal tracing points to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kn_lens.criteria.sweep import LayerSweep
from kn_lens.criteria.sweep_findings import OUTPUTS, PLACES
from kn_lens.plots.editing import legend_below_title
from kn_lens.plots.layers import interval, layer_step, line_with_band
from kn_lens.plots.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILLION, styled

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

LOOKS = {
    "reliability": (BLUE, "solid"),
    "generality": (VERMILLION, "dash"),
    "locality": (GREEN, "dashdot"),
    "symmetry": (PURPLE, "dot"),
    "synonymy": (ORANGE, "dot"),
}
"""Color and dash of the criteria that are drawn."""


def layer_sweep(sweep: LayerSweep, subtitle: str = "") -> go.Figure:
    """Success of the same edits by layer, with 95 % intervals; below it the trace's effect over its largest.

    Args:
        sweep: From :func:`kn_lens.sweep_layers`.
        subtitle: Model and data.
    """
    from plotly.subplots import make_subplots

    traced = sweep.trace_frame()
    figure = make_subplots(
        rows=2 if len(traced) else 1,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.08,
        row_heights=[0.66, 0.34] if len(traced) else [1.0],
    )
    frame = sweep.to_frame()
    names = []
    for criterion, look in LOOKS.items():
        rows: Any = frame[(frame["criterion"] == criterion) & frame["success_after"].notna()]
        if not len(rows):
            continue
        least, most = int(rows["edits"].min()), int(rows["edits"].max())
        names.append(f"{criterion} ({least if least == most else f'{least}–{most}'} edits)")
        for at, part in enumerate(_runs(rows, sweep.layers)):
            drawn = part.rename(columns={"success_after": "mean"})
            line_with_band(figure, drawn, names[-1], look, legend=not at, row=1, col=1)
            figure.data[-1].hovertext = [_success(criterion, row) for row in part.to_dict("records")]
    without = [count for count in sweep.counts if not count["edits"]]
    if without:
        names.append("no edit could be made")
        figure.add_scatter(
            x=[count["layer"] for count in without],
            y=[0.0] * len(without),
            mode="markers",
            name=names[-1],
            marker={"symbol": "x", "color": GREY, "size": 9},
            hovertext=[f"layer {one['layer']}: {one['failed']} edits failed" for one in without],
            hoverinfo="text",
            row=1,
            col=1,
        )
    figure.update_yaxes(title="success, mean over edits", tickformat=".0%", range=[-0.04, 1.04], row=1, col=1)
    lines = [subtitle, f"{sweep.editor}; {sweep.data}; bands: 95 % intervals over edits"]
    if len(traced):
        largest = float(traced["mean"].abs().max()) or 1.0
        share = traced.assign(**{column: traced[column] / largest for column in ("mean", "low", "high")})
        line_with_band(figure, share, "trace", (INK, "solid"), legend=False, row=2, col=1)
        figure.data[-1].hovertext = [
            f"trace, layer {row['layer']}<br>effect {interval(row)}, of {row['facts']} facts"
            for row in traced.to_dict("records")
        ]
        figure.add_hline(y=0, line={"color": GREY, "width": 1}, row=2, col=1)  # type: ignore[arg-type]
        figure.update_yaxes(title="trace effect / largest", row=2, col=1)
        metric = str(sweep.trace_metric).replace("_", " ")
        lines.append(
            f"below: restoring {OUTPUTS[str(sweep.trace_site)]} outputs at {PLACES[str(sweep.trace_position)]},"
        )
        lines.append(f"{len(sweep.trace)} facts, largest effect {largest:.3g} ({metric})")  # type: ignore[arg-type]
    last = max([*sweep.layers, *(int(layer) for layer in traced["layer"])])
    figure.update_xaxes(dtick=layer_step(last + 1), range=[-0.3, last + 0.3])
    figure.update_xaxes(title="layer (from 0)", row=2 if len(traced) else 1, col=1)
    styled(figure, "At which layer do edits work?", "", height=560 if len(traced) else 400)
    legend_below_title(figure, lines, names)
    return figure


def _runs(rows: pd.DataFrame, layers: Sequence[int]) -> list[pd.DataFrame]:
    """The rows in parts between layers that have none, which no line shall cross."""
    found: list[list[int]] = [[]]
    known = {layer: at for at, layer in enumerate(rows["layer"])}
    for layer in layers:
        if layer in known:
            found[-1].append(known[layer])
        elif found[-1]:
            found.append([])
    return [rows.iloc[part] for part in found if part]


def _success(criterion: str, row: Mapping[Any, Any]) -> str:
    around = "" if math.isnan(row["low"]) else f" [{row['low']:.1%}, {row['high']:.1%}]"
    failed = f", {row['failed']} could not be made" if row["failed"] else ""
    return f"{criterion}, layer {row['layer']}<br>{row['success_after']:.1%}{around}<br>{row['edits']} edits{failed}"
