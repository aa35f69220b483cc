"""Figures of the comparison of sites: what half of the answers cost, the table, and the accuracy taken away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens.plots.style import BLUE, GREEN, GREY, INK, VERMILLION, styled
from kn_lens.sites import UNIT_NAMES
from kn_lens.statistics import quantile_interval
from kn_lens.suppression.effect import AFTER, BEFORE, CONTROLS, UnitEffect

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from kn_lens.localization.curve import AblationCurve

_COLORS = {"mlp": BLUE, "head": VERMILLION, "mlp_pre": GREEN}
_NAMES = {site: many for site, (_, many) in UNIT_NAMES.items()}
_PANELS = (
    ("units", "units", "units taken away, mean (log scale)", "log"),
    ("share_of_units", "share_of_units", "share of the site's units (log scale)", "log"),
    ("norm", "control_norm", "norm taken away / norm of the stream", "linear"),
)


def ablation_curves(curves: Sequence[tuple[str, AblationCurve]], subtitle: str = "") -> go.Figure:
    """Share of answers flipped against what was taken away, in three currencies; dashed: random units.

    One row of panels per data set; the shaded band is a 95 % interval over groups of prompts, the dashed lines are
    means over draws of as many random units of the same layers. The dotted line is one half.

    Args:
        curves: Name of the data set and curve, of each site.
        subtitle: Model and settings.
    """
    from plotly.subplots import make_subplots

    names = list(dict.fromkeys(name for name, _ in curves))
    spacing = 0.13 / len(names) if len(names) > 1 else 0.0
    figure = make_subplots(
        rows=len(names),
        cols=3,
        shared_yaxes=True,
        shared_xaxes="columns",  # type: ignore[arg-type]
        horizontal_spacing=0.04,
        vertical_spacing=spacing + 0.06,
        row_titles=names,
    )
    seen: set[str] = set()
    for name, curve in curves:
        frame, color, label = curve.to_frame(), _COLORS[curve.site], _NAMES[curve.site]
        row = 1 + names.index(name)
        for column, (found, random, _, _) in enumerate(_PANELS, start=1):
            place = {"row": row, "col": column, "legendgroup": label}
            x = frame[found].tolist()
            band = [*frame["flipped_high"].tolist(), *frame["flipped_low"].tolist()[::-1]]
            if not any(map(math.isnan, band)):
                figure.add_scatter(
                    x=[*x, *x[::-1]],
                    y=band,
                    fill="toself",
                    fillcolor=_faint(color),
                    line_width=0,
                    mode="lines",
                    hoverinfo="skip",
                    showlegend=False,
                    **place,
                )
            for kind, values, flips, dash, symbol in (
                (f"top {label}", x, "flipped", "solid", "circle"),
                (f"random {label}", frame[random].tolist(), "control_flipped", "dash", "circle-open"),
            ):
                figure.add_scatter(
                    x=values,
                    y=frame[flips].tolist(),
                    customdata=frame["k"].tolist(),
                    name=kind,
                    mode="lines+markers",
                    line={"color": color, "dash": dash, "width": 2},
                    marker={"size": 5, "symbol": symbol},
                    showlegend=kind not in seen,
                    hovertemplate=f"{name}, {kind}<br>k = %{{customdata}}: %{{y:.1%}} flipped<br>%{{x:.3g}}"
                    "<extra></extra>",
                    **place,
                )
                seen.add(kind)
    for row in range(1, 1 + len(names)):
        for column, (_, _, title, scale) in enumerate(_PANELS, start=1):
            figure.add_hline(y=0.5, line={"color": INK, "width": 1, "dash": "dot"}, row=row, col=column)  # type: ignore[arg-type]
            last = row == len(names)
            figure.update_xaxes(title=title if last else None, type=scale, row=row, col=column)
            if scale == "log":
                figure.update_xaxes(dtick=1, row=row, col=column)
            if column == 2:
                figure.update_xaxes(tickformat="~%", row=row, col=column)
        figure.update_yaxes(title="answers flipped", row=row, col=1)
    figure.update_yaxes(tickformat=".0%", range=[-0.03, 1.03])
    note = "dashed: as many random units of the same layers; bands: 95 % intervals over groups of prompts"
    text = f"{subtitle}<br>{note}" if subtitle else note
    styled(figure, "How much must go before answers flip?", text, height=190 + 250 * len(names))
    figure.update_layout(margin={"t": 125, "r": 50})
    return figure


def sites_table(table: pd.DataFrame, subtitle: str = "") -> go.Figure:
    """The comparison as a table: one row per measure, one column per data set and site.

    Args:
        table: From :meth:`SiteComparison.to_frame`.
        subtitle: Model and settings.
    """
    import plotly.graph_objects as go

    rows: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]
    columns = [[text for text, _ in _measures(rows[0])], *[[value for _, value in _measures(row)] for row in rows]]
    heads = ["measure", *[f"{row['data']}<br>{_NAMES[row['site']]}" for row in rows]]
    align = ["left", *["right"] * len(rows)]
    figure = go.Figure(
        go.Table(
            columnwidth=[2.2, *[1.5] * len(rows)],
            header={
                "values": [f"<b>{name}</b>" for name in heads],
                "align": align,
                "fill_color": "#EEF3F7",
                "font_size": 13,
                "height": 44,
            },
            cells={"values": columns, "align": align, "fill_color": "white", "font_size": 13, "height": 26},
        )
    )
    note = (
        "[95 % interval: of accuracy over prompts, of half over groups of them]; random: units of the same layers;<br>"
        "half: the least at which half of the answers flip (k: the rung of the curve; units: taken there, mean)"
    )
    text = f"{subtitle}<br>{note}" if subtitle else note
    return styled(figure, "Neurons beside heads", text, height=250 + 27 * len(columns[0]))


def accuracy_taken(effects: Sequence[tuple[str, UnitEffect]], subtitle: str = "") -> go.Figure:
    """Accuracy that taking the units found away costs, beside random units of the same layers.

    Args:
        effects: Name of the data set and effect, of each site.
        subtitle: Model and settings.
    """
    import plotly.graph_objects as go

    labels = [f"{name}<br>{_NAMES[effect.site]}" for name, effect in effects]
    cost = [_taken(effect) for _, effect in effects]
    figure = go.Figure()
    figure.add_bar(
        x=labels,
        y=[own for own, _ in cost],
        marker_color=[_COLORS[effect.site] for _, effect in effects],
        name="units found",
        showlegend=False,
        hovertemplate="%{x}<br>units found: %{y:.1%} of accuracy<extra></extra>",
    )
    means = [sum(draws) / len(draws) if draws else float("nan") for _, draws in cost]
    bounds = [_middle(draws) for _, draws in cost]
    figure.add_bar(
        x=labels,
        y=means,
        marker_color=GREY,
        name="random units of the same layers (bar: mean; line: 95 % of the draws)",
        error_y={
            "array": [high - mean for (_, high), mean in zip(bounds, means, strict=True)],
            "arrayminus": [mean - low for (low, _), mean in zip(bounds, means, strict=True)],
            "symmetric": False,
            "thickness": 1.5,
        },
        hovertemplate="%{x}<br>random units: %{y:.1%} of accuracy<extra></extra>",
    )
    figure.add_hline(y=0, line_color=INK, line_width=1)
    figure.update_yaxes(title="accuracy taken away (before − after)", tickformat=".0%")
    figure.update_xaxes(title="data set and units")
    note = "colored: the units found; grey: as many random units of the same layers"
    return styled(figure, "Accuracy without the units found", f"{subtitle}<br>{note}" if subtitle else note)


def _taken(effect: UnitEffect) -> tuple[float, list[float]]:
    right = effect.correct.float().mean(0)
    taken = right[BEFORE] - right
    return float(taken[AFTER]), taken[CONTROLS].tolist()


def _middle(draws: list[float]) -> tuple[float, float]:
    return quantile_interval(np.array(draws))


def _measures(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Name and text of each measure of a row."""

    def price(name: str, of: str, form: str) -> str:
        scale = 100 if name == "share of units" else 1
        value, low, high = (scale * row[f"half: {name}{of}{end}"] for end in ("", " low", " high"))
        if math.isnan(value):
            return "never"
        texts = ["∞" if math.isinf(entry) else form.format(entry) for entry in (value, low, high)]
        return texts[0] + ("" if math.isnan(low) else f" [{texts[1]}, {texts[2]}]")

    after = f"[{row['accuracy after low']:.0%}, {row['accuracy after high']:.0%}]"
    halves = [
        (f"half: {what}{of}", price(name, of, form))
        for name, what, form in (
            ("units", "units", "{:.4g}"),
            ("k", "k", "{:g}"),
            ("share of units", "% of the site's units", "{:.3g}"),
            ("norm", "norm / norm of the stream", "{:.2f}"),
        )
        for of in ("", ", random")
    ]
    return [
        ("units of the site", f"{row['units of the site']:,}"),
        ("groups", f"{row['groups']}"),
        ("prompts: searched / held out", f"{row['prompts searched']} / {row['prompts held out']}"),
        ("held out, answered rightly / wrongly", f"{row['answered rightly']} / {row['answered wrongly']}"),
        ("|KN|, mean over groups", f"{row['|KN|']:.2f}"),
        *[(name, _known(row[name], ".2f")) for name in ("τ", "R₁²", "stability", "Gini")],
        ("participation ratio", f"{row['participation']:.1f}"),
        ("top 1 % of units (at least one) hold, of Σ|α|", f"{row['top 1 % share']:.1%}"),
        ("top 10 units hold, of Σ|α|", f"{row['top 10 share']:.1%}"),
        ("accuracy before", f"{row['accuracy before']:.1%}"),
        ("accuracy without the units found", f"{row['accuracy after']:.1%} {after}"),
        ("… without random units", _known(row["accuracy after, random"], ".1%")),
        ("… percentile among the draws", _known(row["accuracy percentile"], ".0f")),
        ("… p", _known(row["accuracy p"], ".2g")),
        ("… draws (distinct)", f"{row['draws']} ({row['distinct draws']})"),
        *halves,
        ("flipped at most on the curve", f"{row['flipped at most']:.1%}"),
        ("… with random units", f"{row['flipped at most, random']:.1%}"),
    ]


def _known(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _faint(color: str) -> str:
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"
