"""Figures of what was found and how local it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from kn_lens.localization.measures import Concentration
from kn_lens.plots.style import SERIES, styled
from kn_lens.sites import Unit
from kn_lens.suppression.effect import layer_counts

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


def layers_of_units(units: Mapping[str, Sequence[Unit]], n_layers: int, subtitle: str = "") -> go.Figure:
    """Share of the units found that lie in each layer, one series per data set.

    Args:
        units: Units by the name of the data they were found for (a unit found for two groups counts twice).
        n_layers: Layers of the model.
        subtitle: Model and settings.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for color, (name, found) in zip(cycle(SERIES), units.items(), strict=False):
        counts = layer_counts(found, n_layers)
        total = max(1, sum(counts))
        figure.add_bar(
            x=list(range(n_layers)),
            y=[count / total for count in counts],
            customdata=counts,
            name=f"{name} ({sum(counts)} units)",
            marker_color=color,
            hovertemplate=f"{name}<br>layer %{{x}}: %{{y:.1%}} (%{{customdata}} units)<extra></extra>",
        )
    figure.update_xaxes(title="layer (from 0)", dtick=1 if n_layers <= 16 else 2)
    figure.update_yaxes(title="share of units found", tickformat=".0%")
    return styled(figure, "Layers of the units found", subtitle)


def measures_table(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """The table of |KN|, τ, R₁² and concentration, one row per data set."""
    import plotly.graph_objects as go

    shown = table.map(lambda value: f"{value:.3g}" if isinstance(value, float) else value)
    figure = go.Figure(
        go.Table(
            columnwidth=[2.6, *[max(1.0, len(str(name)) / 8) for name in shown.columns[1:]]],
            header={
                "values": [f"<b>{name}</b>" for name in shown.columns],
                "align": ["left", *["right"] * (len(shown.columns) - 1)],
                "fill_color": "#EEF3F7",
                "font_size": 13,
                "height": 32,
            },
            cells={
                "values": [shown[name].tolist() for name in shown.columns],
                "align": ["left", *["right"] * (len(shown.columns) - 1)],
                "fill_color": "white",
                "font_size": 13,
                "height": 28,
            },
        )
    )
    return styled(figure, "How local? Units found and measures of localization", subtitle, height=220 + 30 * len(shown))


def concentration_curves(curves: Mapping[str, Concentration], subtitle: str = "") -> go.Figure:
    """Share of total |α| held by the top k units, averaged over prompts, with one standard deviation."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for color, (name, curve) in zip(cycle(SERIES), curves.items(), strict=False):
        frame = curve.to_frame()
        figure.add_scatter(
            x=frame["k"].tolist(),
            y=frame["share"].tolist(),
            error_y={"array": frame["deviation"].tolist(), "thickness": 1, "width": 3},
            mode="lines+markers",
            name=name,
            line_color=color,
            hovertemplate=f"{name}<br>top %{{x}} units: %{{y:.1%}} of Σ|α|<extra></extra>",
        )
    figure.update_xaxes(title="k, number of units (log scale)", type="log", dtick=1)
    figure.update_yaxes(title="share of Σ|α| held by the top k", tickformat=".0%", range=[0, 1.03])
    return styled(figure, "How concentrated is the attribution?", subtitle)
