"""Figures of what scaling units did."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from kn_lens.plots.style import BLUE, GREY, INK, SIGNIFICANT, VERMILLION, styled
from kn_lens.suppression.effect import AFTER, CONTROLS, OWN_FOIL, OWN_RIVAL, OWN_TARGET, UnitEffect

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LEVEL = 0.05


def probability_change(effect: UnitEffect, subtitle: str = "", *, paired: bool = False) -> go.Figure:
    """Relative change of each probe's probability, the paper's bar chart.

    A bar is (mean after − mean before) / min(mean before, mean after), on a scale of sign · log₁₀(1 + |x|)
    with its own values at the ticks. A probe whose t-test gives p < 0.05 has a red label with an asterisk.

    Args:
        effect: From :func:`kn_lens.suppress`.
        subtitle: Model and settings.
        paired: Mark by the paired test rather than the paper's independent one.
    """
    import plotly.graph_objects as go

    frame = effect.to_frame()
    kind = "paired" if paired else "independent"
    rows = frame.to_dict("records")
    for row in rows:
        row["name"] = {OWN_TARGET: "own target", OWN_FOIL: "own foil", OWN_RIVAL: "other prefix"}.get(
            row["probe"], row["probe"]
        )
    labels = [
        f"<span style='color:{SIGNIFICANT}'>{row['name']} *</span>" if row[f"{kind}_p"] < _LEVEL else row["name"]
        for row in rows
    ]
    bars = [_signed_log(row["relative_change"]) for row in rows]
    hover = [
        f"{row['name']}<br>p before {row['mean_before']:.3g}, after {row['mean_after']:.3g}<br>"
        f"relative change {row['relative_change']:.3g}<br>"
        f"independent t-test p = {row['independent_p']:.2g} (adjusted {row['independent_p_adjusted']:.2g})<br>"
        f"paired t-test p = {row['paired_p']:.2g} (adjusted {row['paired_p_adjusted']:.2g})<br>{row['n']} prompts"
        for row in rows
    ]
    figure = go.Figure(
        go.Bar(
            x=list(range(len(bars))),
            y=bars,
            marker_color=[BLUE if bar >= 0 else VERMILLION for bar in bars],
            hovertext=hover,
            hoverinfo="text",
        )
    )
    figure.update_xaxes(tickvals=list(range(len(labels))), ticktext=labels, tickangle=-35, title="probe token")
    reach = max([abs(bar) for bar in bars] + [_signed_log(1)])
    ladder = [step * 10**power for power in range(9) for step in (1, 3)]
    ticks = [0, *[sign * value for value in ladder if _signed_log(value) <= reach for sign in (1, -1)]]
    figure.update_yaxes(
        title="relative change of probability",
        tickvals=[_signed_log(tick) for tick in ticks],
        ticktext=[f"{tick:+d}" if tick else "0" for tick in ticks],
    )
    figure.add_hline(y=0, line_color=INK, line_width=1)
    note = f"(after − before) / smaller of both; * p < {_LEVEL:g}, {kind} t-test, not adjusted; {len(effect)} prompts"
    return styled(
        figure, f"Probability change when units are {effect.edit}", f"{subtitle}<br>{note}" if subtitle else note
    )


def control_distribution(effect: UnitEffect, subtitle: str = "") -> go.Figure:
    """Accuracy after the edit, among random units of the same layers and before any edit."""
    import plotly.graph_objects as go

    right = effect.correct.float().mean(0)
    figure = go.Figure()
    if len(right) > 2:
        controls = right[CONTROLS].tolist()
        figure.add_histogram(
            x=controls,
            xbins={"start": -0.005, "end": 1.005, "size": 0.01},
            marker_color=GREY,
            name=f"{len(controls)} draws of random units",
        )
    for name, value, color, dash in (
        ("before", float(right[0]), BLUE, "dot"),
        ("units found", float(right[AFTER]), VERMILLION, "solid"),
    ):
        figure.add_scatter(
            x=[value, value],
            y=[0, 1],
            yaxis="y2",
            mode="lines",
            line={"color": color, "dash": dash, "width": 3},
            name=f"{name}: {value:.1%}",
        )
    figure.update_layout(yaxis2={"overlaying": "y", "range": [0, 1], "visible": False})
    figure.update_xaxes(title="accuracy", tickformat=".0%", range=[-0.02, 1.02])
    figure.update_yaxes(title="number of draws", selector={"side": None})
    return styled(figure, f"Accuracy with units {effect.edit}, beside random units of the same layers", subtitle)


def _signed_log(value: float) -> float:
    return math.copysign(math.log10(1 + min(abs(value), 1e9)), value)
