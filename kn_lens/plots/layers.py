"""What figures by layer share: the names of the metrics, maps of rows by layers, lines with bands, labels of tokens."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kn_lens.plots.style import DIVERGING, SEQUENTIAL, styled
from kn_lens.tracing.position_classes import CLASSES

if TYPE_CHECKING:
    import plotly.graph_objects as go

METRIC_NAMES = {
    "probability": "p(answer)",
    "log_probability": "log p(answer)",
    "logit_difference": "logit difference",
    "kl": "KL from the clean run",
}
METRIC_UNITS = {"probability": "probability", "log_probability": "nats", "logit_difference": "logits", "kl": "nats"}


def layer_map(
    values: torch.Tensor, labels: list[str], hover: list[list[str]], metric: str, title: str, lines: list[str]
) -> go.Figure:
    """A map of rows by layers: white at 0, blue above and vermillion below; white to blue if nothing is below.

    Args:
        values: ``[row, layer]``; NaN where there is none.
        labels: Of the rows, top to bottom.
        hover: What each cell is, before its value.
        metric: Whose effect it is.
        title: What is shown.
        lines: Settings, a line each.
    """
    import plotly.graph_objects as go

    known = values[~values.isnan()]
    reach = float(known.abs().max()) if len(known) else 0.0
    reach = reach or 1.0
    above = not len(known) or float(known.min()) >= -1e-6 * reach  # rounding is no effect
    unit = f"{METRIC_NAMES[metric]}, {METRIC_UNITS[metric]}"
    layers = values.shape[1]
    figure = go.Figure(
        go.Heatmap(
            z=values.tolist(),
            zmin=0.0 if above else -reach,
            zmax=reach,
            colorscale=SEQUENTIAL if above else DIVERGING,
            xgap=1,
            ygap=1,
            text=hover,
            hovertemplate=f"%{{text}}<br>layer %{{x}}: %{{z:+.3g}} {METRIC_UNITS[metric]}<extra></extra>",
            colorbar={"title": {"text": f"effect on {unit}", "side": "right", "font_size": 13}, "thickness": 14},
        )
    )
    figure.update_xaxes(title="layer (from 0)", dtick=layer_step(layers))
    styled(figure, title, "", height=max(420, 250 + 24 * len(labels)))
    figure.update_yaxes(
        tickvals=list(range(len(labels))), ticktext=labels, autorange="reversed", showgrid=False, automargin=True
    )
    figure.update_layout(plot_bgcolor="#F4F4F4")  # where there is no value
    subtitles(figure, lines)
    return figure


def class_map(frame: Any, n_layers: int, metric: str, title: str, lines: list[str]) -> go.Figure:
    """A map of classes of positions by layers, from the averages of a trace or of patching.

    Args:
        frame: What ``average()`` of the result returns.
        n_layers: Layers of the model.
        metric: Whose effect it is.
        title: What is shown.
        lines: Settings, a line each.
    """
    names = [name for name in CLASSES if name in set(frame["class"])]
    values = torch.full((len(names), n_layers), float("nan"))
    hover = [[""] * n_layers for _ in names]
    for row in frame.to_dict("records"):
        at, layer = names.index(row["class"]), int(row["layer"])
        values[at, layer] = row["mean"]
        hover[at][layer] = f"{row['class']}, mean of {row['prompts']} prompts {interval(row)}"
    return layer_map(values, names, hover, metric, title, lines)


def line_with_band(
    figure: go.Figure,
    rows: Any,
    name: str,
    look: tuple[str, str],
    *,
    legend: bool,
    row: int | None = None,
    col: int | None = None,
) -> None:
    """A line of means by layer and the band between ``low`` and ``high``."""
    color, dash = look
    layers, low, high = (rows[column].tolist() for column in ("layer", "low", "high"))
    if rows["low"].notna().all():
        figure.add_scatter(
            x=[*layers, *reversed(layers)],
            y=[*high, *reversed(low)],
            fill="toself",
            fillcolor=color,
            opacity=0.16,
            line_width=0,
            mode="lines",
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
            row=row,
            col=col,
        )
    figure.add_scatter(
        x=layers,
        y=rows["mean"].tolist(),
        mode="lines+markers",
        name=name,
        legendgroup=name,
        showlegend=legend,
        line={"color": color, "dash": dash, "width": 2},
        marker={"size": 5},
        hovertext=[f"{name}, layer {record['layer']}<br>{interval(record)}" for record in rows.to_dict("records")],
        hoverinfo="text",
        row=row,
        col=col,
    )


def subtitles(figure: go.Figure, lines: list[str], extra: int = 0) -> None:
    """Put lines of settings below the title, and make room for them."""
    kept = [line for line in lines if line]
    title = figure.to_dict()["layout"]["title"]["text"]
    small = "".join(f"<br><span style='font-size:12px;color:#555'>{line}</span>" for line in kept)
    figure.update_layout(title={"text": title + small, "pad": {"t": 28}}, margin_t=66 + 21 * len(kept) + extra)
    figure.update_layout(height=figure.to_dict()["layout"]["height"] + 21 * max(0, len(kept) - 1) + extra)


def token_labels(tokens: tuple[str, ...], cue: tuple[int, ...], target: int) -> list[str]:
    """Labels of a prompt's tokens: the cue's are starred, the one where the answer is read is marked."""
    labels = []
    for position, token in enumerate(tokens):
        text = html.escape(token) + ("*" if position in cue else "")
        labels.append(f"<b>▸ {text}</b>" if position == target else text)
    return labels


def interval(row: Mapping[Any, Any]) -> str:
    """A mean with its interval, where there is one."""
    around = f" [{row['low']:+.3g}, {row['high']:+.3g}]" if row["low"] == row["low"] else ""
    return f"{row['mean']:+.3g}{around}"


def layer_step(layers: int) -> int:
    """Distance between the ticks of an axis of layers."""
    return 1 if layers <= 16 else 2 if layers <= 40 else 5
