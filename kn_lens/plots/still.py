"""Attention patterns and activations as plain figures, for paper and for readers that run no scripts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kn_lens.plots.circuits import CircuitPage
from kn_lens.plots.layers import subtitles
from kn_lens.plots.style import DIVERGING, SEQUENTIAL, styled

if TYPE_CHECKING:
    import plotly.graph_objects as go

_ACROSS = 3
_CELL = 22
_AROUND = 90
"""Pixels of a token in a pattern, and of the labels around a pattern."""


def still(page: CircuitPage) -> go.Figure:
    """The numbers of a page as maps: heads side by side (rows attend to columns), or neurons token by token.

    Args:
        page: From :func:`kn_lens.plots.attention_of_heads` or :func:`kn_lens.plots.neuron_activations`.
    """
    patterns = [part.props for part in page.parts if part.element == "AttentionHeads"]
    figure, height = _patterns(patterns[0]) if patterns else _activations(page)
    styled(figure, html.escape(page.title), "", height=height)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_annotations(font_size=13)
    subtitles(figure, [html.escape(page.subtitle)], extra=20)
    return figure


def _patterns(props: dict[str, Any]) -> tuple[go.Figure, int]:
    from plotly.subplots import make_subplots

    names = props["attentionHeadNames"]
    tokens = _plain(props["tokens"])
    across = min(_ACROSS, len(names))
    down = -(-len(names) // across)
    side = _CELL * len(tokens) + _AROUND
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=[f"head {name}" for name in names],
        shared_yaxes=True,
        shared_xaxes=True,
        horizontal_spacing=0.05,
        vertical_spacing=0.12 / down,
    )
    for at, pattern in enumerate(props["attention"]):
        row, column = at // across + 1, at % across + 1
        figure.add_heatmap(
            z=pattern,
            zmin=0.0,
            zmax=1.0,
            colorscale=SEQUENTIAL,
            xgap=1,
            ygap=1,
            showscale=at == 0,
            colorbar={"title": {"text": "attention", "side": "right"}, "thickness": 14},
            text=[[f"{into} ← {token}" for token in tokens] for into in tokens],
            hovertemplate=f"head {names[at]}<br>%{{text}}: %{{z:.3f}}<extra></extra>",
            row=row,
            col=column,
        )
        places = {"tickvals": list(range(len(tokens))), "ticktext": tokens}
        lowest = at + across >= len(names)
        figure.update_xaxes({**places, "tickangle": -90, "showticklabels": lowest}, row=row, col=column)
        figure.update_yaxes({**places, "showticklabels": column == 1}, row=row, col=column)
    return figure, 100 + down * side


def _activations(page: CircuitPage) -> tuple[go.Figure, int]:
    from plotly.subplots import make_subplots

    neurons: list[tuple[str, list[dict[str, Any]]]] = []
    for part in page.parts:
        if part.heading:
            neurons.append((part.heading, []))
        neurons[-1][1].append(part.props)
    prompts = max(len(rows) for _, rows in neurons)
    figure = make_subplots(
        rows=len(neurons),
        cols=1,
        subplot_titles=[html.escape(heading) for heading, _ in neurons],
        vertical_spacing=0.3 / len(neurons),
    )
    for at, (heading, rows) in enumerate(neurons, start=1):
        longest = max(len(props["tokens"]) for props in rows)
        tokens = [_padded(_plain(props["tokens"]), longest, "") for props in rows]
        figure.add_heatmap(
            z=[_padded(props["values"], longest, None) for props in rows],
            zmin=rows[0]["minValue"],
            zmax=rows[0]["maxValue"],
            colorscale=DIVERGING,
            xgap=1,
            ygap=2,
            showscale=False,
            text=tokens,
            texttemplate="%{text}",
            textfont={"size": 12},
            hovertemplate=f"{html.escape(heading)}<br>%{{text}}: %{{z:.3g}}<extra></extra>",
            row=at,
            col=1,
        )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure, 120 + len(neurons) * (46 + 30 * prompts)


def _plain(tokens: Sequence[str]) -> list[str]:
    """Tokens as the page labels them, without the spaces around them; its signs stand for < and > already."""
    return [token.strip() for token in tokens]


def _padded(row: Sequence[Any], length: int, rest: Any) -> list[Any]:
    return [*row, *[rest] * (length - len(row))]
