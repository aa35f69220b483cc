"""Figures of one edit: the search that made it, and what the model writes before and after."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

from kn_lens.editing.edit import Edit
from kn_lens.errors import SettingsError
from kn_lens.plots.editing import legend_below_title
from kn_lens.plots.layers import subtitles
from kn_lens.plots.style import INK, SERIES, styled

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


def edit_losses(edit: Edit, subtitle: str = "") -> go.Figure:
    """The loss of the search that made an edit, and its parts, by step.

    Args:
        edit: From ``kn.rome`` or ``kn.fine_tune``.
        subtitle: Model and data.

    Raises:
        SettingsError: If the edit was made without a search.
    """
    import plotly.graph_objects as go

    losses: Any = getattr(edit, "losses", None)
    if losses is None or not len(losses):
        raise SettingsError(f"this edit ({edit.describe()}) was made without a search, so that it has no losses")
    parts = {"loss": losses.tolist()}
    if hasattr(edit, "nll"):
        nll, kl = edit.nll, edit.kl * edit.settings["kl_factor"]  # type: ignore[attr-defined]
        parts |= {
            "−log p of the new answer": nll.tolist(),
            f"KL, × {edit.settings['kl_factor']:g}": kl.tolist(),
            "norm of the change, weighted": (losses - nll - kl).tolist(),
        }
    figure = go.Figure()
    looks = [(INK, "solid"), (SERIES[0], "dash"), (SERIES[1], "dot"), (SERIES[2], "dashdot")]
    for (name, values), (color, dash) in zip(parts.items(), looks, strict=False):
        figure.add_scatter(
            x=list(range(len(values))),
            y=values,
            mode="lines+markers",
            name=name,
            line={"color": color, "dash": dash, "width": 2},
            marker={"size": 5},
            hovertemplate=f"{name}<br>step %{{x}}: %{{y:.3g}} nats<extra></extra>",
        )
    styled(figure, "The search for an edit", "", height=440)
    steps = len(parts["loss"])
    figure.update_xaxes(title="step (from 0)", dtick=1 if steps <= 8 else 5)
    # A part is seen down to a hundredth of the least loss.
    least, most = (max(end(parts["loss"]), 1e-6) for end in (min, max))
    bounds = [math.log10(least / 100), math.log10(most * 1.5)]
    figure.update_yaxes(title="nats (log scale)", type="log", range=bounds, dtick=1, tickformat="~g")
    layer = getattr(edit, "layer", None)
    where = "" if layer is None else f", layer {layer}"
    legend_below_title(figure, [subtitle, f"{html.escape(edit.describe())}{where}"], list(parts))
    return figure


def generations(frame: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """What is written before and after an edit, side by side; bold: from where the two differ.

    Args:
        frame: From :func:`kn_lens.before_after`: columns ``text``, ``before``, ``after``.
        subtitle: Model and edit.

    Raises:
        SettingsError: If the frame is empty or lacks a column.
    """
    import plotly.graph_objects as go

    missing = [name for name in ("text", "before", "after") if name not in frame.columns]
    if missing or not len(frame):
        what = f"lacks the columns {', '.join(missing)}" if missing else "is empty"
        raise SettingsError(f"the table of texts {what}; draw what kn.before_after returns")
    records: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    pairs = [_marked(str(row["before"]), str(row["after"])) for row in records]
    figure = go.Figure(
        go.Table(
            header={
                "values": ["<b>before the edit</b>", "<b>after the edit</b>"],
                "align": "left",
                "fill_color": "#EEF3F7",
                "font_size": 13,
                "height": 30,
            },
            cells={
                "values": [[before for before, _ in pairs], [after for _, after in pairs]],
                "align": "left",
                "fill_color": "white",
                "line_color": "#D8D8D8",
                "font": {"size": 13, "color": INK},
                "height": 22,
            },
        )
    )
    # Room for the lines that a narrow screen breaks the texts into.
    lines = sum(1 + max(len(row["before"]), len(row["after"])) // 26 for row in records)
    styled(figure, "What the model writes", "", height=200 + 20 * lines)
    figure.update_layout(margin={"l": 12, "r": 12, "b": 10})
    differ = sum(before != after for before, after in pairs)
    note = f"{differ} of {len(pairs)} texts differ; bold: from where they do"
    subtitles(figure, [subtitle, note])
    return figure


def _marked(before: str, after: str) -> tuple[str, str]:
    """Two texts as cells, each word from the first one that differs in bold."""
    words = _short(before), _short(after)
    same = 0
    for first, second in zip(*words, strict=False):
        if first != second:
            break
        same += 1
    # Each word by itself: the table breaks lines at spaces, and a tag must not span them.
    first, second = (
        " ".join(html.escape(word) if at < same else f"<b>{html.escape(word)}</b>" for at, word in enumerate(text))
        for text in words
    )
    return first, second


def _short(text: str) -> list[str]:
    """The words of a text; a mark that is repeated to its end, as by a model that knows one sentence, once, and "…"."""
    words = text.split()
    end = len(words)
    while end > 1 and words[end - 2] == words[-1]:
        end -= 1
    return words if len(words) - end < 3 else [*words[:end], "…"]
