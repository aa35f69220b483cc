"""One look for all figures: Okabe and Ito's colour-blind safe palette, quiet axes, readable labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, YELLOW = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
)
GREY, INK = "#8A8A8A", "#222222"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, YELLOW)
DIVERGING = [[0.0, VERMILLION], [0.5, "#FFFFFF"], [1.0, BLUE]]
"""Colors of a map around 0: vermillion below, blue above, as bars are."""
SEQUENTIAL = [[0.0, "#FFFFFF"], [1.0, BLUE]]
"""Colors of a map from 0 up."""
SIGNIFICANT = "#C1121F"
"""The paper marks significant probes in red; an asterisk says the same without colour."""


def styled(figure: go.Figure, title: str, subtitle: str = "", height: int = 460) -> go.Figure:
    """Give a figure its title, the settings that made it below, and the house look."""
    heading = f"<b>{title}</b>" + (f"<br><span style='font-size:12px;color:#555'>{subtitle}</span>" if subtitle else "")
    figure.update_layout(
        template="simple_white",
        colorway=list(SERIES),
        title={"text": heading, "x": 0.02, "xanchor": "left", "y": 1, "yanchor": "top", "pad": {"t": 18}},
        font={"family": "Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        margin={"l": 70, "r": 30, "t": 100, "b": 70},
        height=height,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
        hoverlabel={"font_size": 12},
    )
    figure.update_yaxes(gridcolor="#E6E6E6", showgrid=True)
    return figure
