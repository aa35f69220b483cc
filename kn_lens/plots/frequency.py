"""The figure of an edit's effect against frequency."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from kn_lens.plots.style import GREY, INK, SERIES, styled
from kn_lens.suppression.frequency_finding import NAMES, p_text, rho_text

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from kn_lens.suppression.frequency_effect import FrequencyEffect

_GAP, _STRIP = 0.05, 0.14
"""Beside the axis of the pairs seen, as shares of its length: room between, and the strip of unseen pairs."""


def frequency_scatter(result: FrequencyEffect, subtitle: str = "") -> go.Figure:
    """Change of log p(target) of each pair against its count; unseen pairs in a strip at the left.

    The color tells the pair's word on the side that has fewer different ones (the determiner, say): the seven
    with the most pairs have one of their own. Dashed lines are means of the unseen, rare and frequent pairs.

    Args:
        result: From :func:`kn_lens.frequency_effect`.
        subtitle: Model and settings.
    """
    import plotly.graph_objects as go

    frame = result.to_frame().rename(columns={"count": "times", f"{result.measure}_change": "change"})
    frame["word"] = result.strata
    seen = frame["half"] != "unseen"
    counts = [int(count) for count in frame["times"][seen]]
    low, high = math.log10(min(counts)), math.log10(max(counts))
    width = max(high - low, 1.0)
    left, right = low - (_GAP + _STRIP) * width, low - _GAP * width
    row, missing = result.summary(), len(frame) - len(counts)
    frame.loc[seen, "x"] = [float(count) for count in counts]
    frame.loc[~seen, "x"] = [10 ** (left + (right - left) * (k + 1) / (missing + 1)) for k in range(missing)]

    figure = go.Figure()
    words = [word for word, _ in Counter(sorted(frame["word"])).most_common()]  # the same colors in every figure
    colors = dict(zip(words, SERIES, strict=False))
    shown = [(word, frame.loc[frame["word"] == word], color) for word, color in colors.items()]
    if len(words) > len(colors):
        rest = frame.loc[~frame["word"].isin(list(colors))]
        shown.append((f"{len(words) - len(colors)} other words", rest, GREY))
    for name, rows, color in shown:
        for is_seen in (True, False):
            some = rows.loc[(rows["half"] != "unseen") == is_seen]
            figure.add_scatter(
                x=some["x"].tolist(),
                y=some["change"].tolist(),
                mode="markers",
                name=f"{name} ({len(rows)})",
                legendgroup=name,
                showlegend=is_seen == bool((rows["half"] != "unseen").any()),
                marker={"color": color, "size": 9, "opacity": 0.85, "symbol": "circle" if is_seen else "circle-open"},
                hovertext=_hover(some, result.measure),
                hoverinfo="text",
            )
    middle = max(count for count, half in zip(frame["times"], frame["half"], strict=True) if half == "rare")
    after = min(count for count, half in zip(frame["times"], frame["half"], strict=True) if half == "frequent")
    split = (math.log10(middle) + math.log10(after)) / 2
    for half, start, end in (("unseen", left, right), ("rare", low, split), ("frequent", split, high)):
        values = frame["change"][frame["half"] == half]
        if len(values):
            figure.add_scatter(
                x=[10**start, 10**end],
                y=[float(values.mean())] * 2,
                mode="lines",
                line={"color": INK, "width": 2, "dash": "dash"},
                name="mean of unseen, rare, frequent",
                legendgroup="mean",
                showlegend=half == "rare",
                hovertext=f"mean of the {len(values)} {half} pairs: {values.mean():+.3g} nats",
                hoverinfo="text",
            )
    if missing:
        edge = 10 ** (low - _GAP * width / 2)
        figure.add_vrect(x0=10 ** (left - 0.02 * width), x1=edge, fillcolor="#ECEFF3", line_width=0, layer="below")
        label = "count 0" if row["unknown"] == 0 else "not in the table" if row["unknown"] == missing else "not seen"
        figure.add_annotation(x=(left + right) / 2, y=1, yref="paper", yanchor="bottom", text=label, showarrow=False)
    figure.add_hline(y=0, line_color=INK, line_width=1)
    ticks = _ticks(low, high)
    figure.update_xaxes(
        type="log",
        range=[(left if missing else low) - 0.03 * width, low + 1.03 * width],
        tickvals=ticks,
        ticktext=[_short(tick) for tick in ticks],
        title=f"count of the pair in {_name(result.source)} (log scale)",
    )
    figure.update_yaxes(title=f"change of {NAMES[result.measure]}, nats", zeroline=False)
    note = (
        f"Spearman's {rho_text(result.overall)}, {p_text(result)}, n = {row['seen']} pairs seen "
        f"({row['unseen']} unseen), {row['prompts']} prompts"
    )
    styled(
        figure,
        "Effect of the edit against the frequency of cue and target",
        "<br>".join(filter(None, [subtitle, note])),
        500,
    )
    figure.update_layout(
        legend={"orientation": "v", "x": 1.01, "xanchor": "left", "y": 1, "yanchor": "top", "font_size": 12}
    )
    return figure


def _hover(rows: pd.DataFrame, measure: str) -> list[str]:
    short = {"log_probability": "log p", "preference": "preference"}[measure]
    texts = []
    for row in rows.to_dict("records"):
        count = (
            "not in the table" if row["times"] is None or row["times"] != row["times"] else f"count {row['times']:,}"
        )
        texts.append(
            f"<b>{row['first']} {row['second']}</b><br>{count}<br>change of {short} {row['change']:+.3g} nats "
            f"({row['prompts']} prompts)"
        )
    return texts


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them where there are few."""
    steps = (1, 2, 5) if high - low < 2.5 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [step * 10**power for power in powers for step in steps if low - 0.05 <= math.log10(step) + power]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def _name(source: str) -> str:
    return source.rsplit("/", 1)[-1]
