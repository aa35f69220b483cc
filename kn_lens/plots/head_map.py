"""Maps of a layer's heads: one number per layer and head, by color around 0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from kn_lens.plots.style import DIVERGING, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

Heads = Float[Tensor, "layer head"]


def head_map(
    values: Heads | Mapping[str, Heads],
    title: str,
    subtitle: str = "",
    unit: str = "",
) -> go.Figure:
    """A map of layers (up) by heads (across): white at 0, blue above, vermillion below, both ends alike.

    Args:
        values: One number per layer and head, NaN where there is none; or several such maps by name, drawn side by
            side on one scale of colors.
        title: What the numbers are.
        subtitle: Model and settings.
        unit: Label of the color bar, ``"mean α"`` or ``"logit difference"``.
    """
    from plotly.subplots import make_subplots

    maps = dict(values) if isinstance(values, Mapping) else {"": values}
    reach = max((float(entry.nan_to_num().abs().max()) for entry in maps.values()), default=0.0) or 1.0
    figure = make_subplots(
        rows=1,
        cols=len(maps),
        subplot_titles=[*maps] if any(maps) else None,
        shared_yaxes=True,
        horizontal_spacing=0.04,
    )
    for column, (name, entry) in enumerate(maps.items(), start=1):
        figure.add_heatmap(
            z=entry.tolist(),
            zmin=-reach,
            zmax=reach,
            colorscale=DIVERGING,
            xgap=1,
            ygap=1,
            showscale=column == len(maps),
            colorbar={"title": {"text": unit, "side": "right"}, "thickness": 14, "exponentformat": "power"},
            hovertemplate=f"{name + '<br>' if name else ''}layer %{{y}}, head %{{x}}: %{{z:.3g}} {unit}<extra></extra>",
            row=1,
            col=column,
        )
        figure.update_xaxes(title="head (from 0)", dtick=_step(entry.shape[1]), row=1, col=column)
    n_layers = max(len(entry) for entry in maps.values())
    figure.update_yaxes(dtick=_step(n_layers), zeroline=False)
    figure.update_yaxes(title="layer (from 0)", row=1, col=1)
    styled(figure, title, subtitle, height=max(380, 190 + 16 * n_layers))
    figure.update_yaxes(showgrid=False)
    if any(maps):
        figure.update_layout(margin_t=120)
    return figure


def _step(count: int) -> int:
    return 1 if count <= 20 else 2 if count <= 40 else 4
