"""Figures of attention knockout, of activation patching, and of its estimate beside the exact effects."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens.errors import SettingsError
from kn_lens.plots.head_map import head_map
from kn_lens.plots.layers import (
    METRIC_NAMES,
    METRIC_UNITS,
    class_map,
    layer_map,
    layer_step,
    line_with_band,
    subtitles,
    token_labels,
)
from kn_lens.plots.style import BLUE, GREEN, GREY, INK, VERMILLION, styled
from kn_lens.plots.wording import INTERVALS, counted, number
from kn_lens.tracing.knockout_trace import KnockoutTrace
from kn_lens.tracing.patch_effects import PatchEffects

if TYPE_CHECKING:
    import plotly.graph_objects as go

_BLOCKS = {
    "cue": ("cue → target position", (BLUE, "solid")),
    "other": ("everything else → target position", (GREEN, "dash")),
    "target": ("target position → itself", (VERMILLION, "dot")),
}
_COMPONENTS = {
    "head": "single heads (their weighted values z)",
    "q": "queries of single heads",
    "k": "keys (of each head, or of heads that share them)",
    "v": "values (of each head, or of heads that share them)",
    "pattern": "attention patterns of single heads",
    "mlp": "MLP outputs",
    "attn": "attention outputs",
    "resid": "the residual stream",
}
_METHODS = {
    "activation_patching": "Patching",
    "attribution_patching": "Patching, estimated from a gradient:",
    "path_patching": "Path patching",
}
_POINTS = 4000  # drawn at most


def knockout(trace: KnockoutTrace, metric: str | None = None, subtitle: str = "") -> go.Figure:
    """What the answer loses when attention to the target position is cut, a curve for each block of sources.

    A trace of single heads is drawn as maps of layers by heads, one for each block.

    Args:
        trace: From :func:`kn_lens.attention_knockout`.
        metric: By default the trace's own.
        subtitle: Model and data.

    Raises:
        SettingsError: If there is no such metric.
    """
    import plotly.graph_objects as go

    name = metric or trace.metric
    frame: Any = trace.average(name)
    unit = f"{'' if name == 'kl' else 'loss of '}{METRIC_NAMES[name]}, {METRIC_UNITS[name]}"
    window = "single heads" if trace.has_heads else f"window {trace.window} layer{'s' if trace.window > 1 else ''}"
    lines = [subtitle, f"{window}; scores set to −∞ before the softmax; mean over {counted(trace.prompts)}"]
    if trace.has_heads:
        effects = trace.effects[name].nanmean(0)
        maps = {
            _BLOCKS[block][0]: values
            for block, values in zip(trace.blocks, effects, strict=True)
            if values.isfinite().any()
        }
        figure = head_map(maps, "Attention knocked out, head by head", "", unit)
        subtitles(figure, lines, extra=20)
        return figure
    figure = go.Figure()
    for block in trace.blocks:
        rows = frame[frame["block"] == block]
        if len(rows):
            label, look = _BLOCKS[block]
            line_with_band(figure, rows, f"{label} ({rows['prompts'].iloc[0]} prompts)", look, legend=True)
    figure.add_hline(y=0, line_color=INK, line_width=1)
    figure.update_xaxes(title="layer (from 0), center of the window", dtick=layer_step(trace.effects[name].shape[2]))
    figure.update_yaxes(title=unit)
    what = "how far the answer moves" if name == "kl" else "what the answer loses"
    styled(figure, f"Attention knocked out: {what}", "", 430)
    subtitles(figure, [*lines, f"bands: {INTERVALS}"], extra=34)
    figure.update_layout(legend={"x": 0, "xanchor": "left"})
    return figure


def patching(
    effects: PatchEffects, index: int | None = None, metric: str | None = None, subtitle: str = ""
) -> go.Figure:
    """Effects of patching: heads as maps of layers by heads, other states token by token, by class, or by layer.

    Args:
        effects: From :func:`kn_lens.activation_patching`, or its estimate, or path patching.
        index: The prompt drawn; without it the mean over prompts. With ``positions="each"``, heads are shown at the
            cue's last token and at the target position.
        metric: By default the result's own.
        subtitle: Model and data.

    Raises:
        SettingsError: If there is no such prompt or metric, or neurons were patched, too many to draw.
    """
    import plotly.graph_objects as go

    if effects.component not in _COMPONENTS:
        raise SettingsError(f"there is no figure of single {effects.component}s; take effects.average()")
    if index is not None and not 0 <= index < len(effects):
        raise SettingsError(f"prompt {index} is not in the result, which has prompts 0–{len(effects) - 1}")
    name = effects.metric_name(metric)
    one = effects if index is None else effects.select([index])
    values = one.effects[name]
    unit = f"effect on {METRIC_NAMES[name]}, {METRIC_UNITS[name]}"
    lines = [subtitle, _settings(one), *_difference(one, name)]
    method = _METHODS.get(effects.method, effects.method)
    title = f"{method} {_COMPONENTS[effects.component]}"
    over = "" if len(one) == 1 else ", mean over prompts"
    if one.has_units:
        shown: Any = values.nanmean(0)
        if one.positions == "each":
            pooled = one.by_class(name)
            shown = {kind: pooled[kind].nanmean(0) for kind in ("last cue token", "target position") if kind in pooled}
        figure = head_map(shown, title + over, "", unit)
        subtitles(figure, lines, extra=20)
        return figure
    if one.positions == "each":
        if len(one) > 1:
            return class_map(one.average(name), values.shape[2], name, title + over, lines)
        labels = token_labels(one.tokens[0], one.cue_positions[0], one.target_positions[0])
        hover = [[html.escape(token)] * values.shape[2] for token in one.tokens[0]]
        return layer_map(values[0, : len(labels)], labels, hover, name, f"{title}, token by token", lines)
    figure = go.Figure()
    line_with_band(figure, one.average(name), "all positions at once", (BLUE, "solid"), legend=False)
    figure.add_hline(y=0, line_color=INK, line_width=1)
    figure.update_xaxes(title="layer (from 0)", dtick=layer_step(values.shape[1]))
    figure.update_yaxes(title=unit)
    styled(figure, title + over, "", 430)
    subtitles(figure, [*lines, f"band: {INTERVALS}" if over else ""])
    return figure


def attribution_against_exact(
    estimate: PatchEffects, exact: PatchEffects, metric: str | None = None, subtitle: str = ""
) -> go.Figure:
    """Estimated effects beside exact ones, a point for each state of each prompt; on the dashed line they agree.

    Of more than 4000 states as many are drawn at random, the extreme ones among them.

    Args:
        estimate: From :func:`kn_lens.attribution_patching`.
        exact: From :func:`kn_lens.activation_patching`, of the same states.
        metric: By default the estimate's own.
        subtitle: Model and data.

    Raises:
        SettingsError: If the two are not of the same states, or there is no such metric.
    """
    import plotly.graph_objects as go

    name = estimate.metric_name(metric)
    found = estimate.correlation(exact, name)
    frame = exact.to_frame()
    frame["estimate"] = estimate.to_frame()[name]
    count = len(frame)
    frame = _sample(frame, [name, "estimate"])
    x, y = frame[name].tolist(), frame["estimate"].tolist()
    ends = [min([*x, *y], default=0.0), max([*x, *y], default=0.0)]
    figure = go.Figure()
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dash"}, hoverinfo="skip", name="equal"
    )
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers",
        name="states",
        marker={"color": BLUE, "size": 6, "opacity": 0.5},
        hovertext=[_state(row) for row in frame.to_dict("records")],
        hovertemplate="%{hovertext}<br>exact %{x:.3g}, estimate %{y:.3g}<extra></extra>",
    )
    unit = f"{METRIC_NAMES[name]}, {METRIC_UNITS[name]}"
    figure.update_xaxes(title=f"exact effect on {unit}", zeroline=False)
    figure.update_yaxes(title=f"estimate from the gradient, {METRIC_UNITS[name]}", zeroline=False)
    styled(figure, "Attribution patching beside activation patching", "", 480)
    drawn = f"; of all {count}, {len(frame)} drawn at random" if count > len(frame) else ""
    lines = [
        subtitle,
        _settings(exact),
        f"Pearson's r = {found.pearson:.3f}, Spearman's ρ = {found.spearman:.3f}, "
        f"{found.states} states that can matter{drawn}",
    ]
    subtitles(figure, lines)
    figure.update_layout(showlegend=False)
    return figure


def _sample(frame: Any, columns: list[str]) -> Any:
    """At most ``_POINTS`` rows in their order: a random draw, the extremes of each column always in it."""
    if len(frame) <= _POINTS:
        return frame
    extremes = sorted({int(at) for column in columns for at in (frame[column].idxmin(), frame[column].idxmax())})
    others = frame.index.difference(extremes).to_numpy()  # every n-th row would be of the same heads and layers
    drawn = np.random.default_rng(0).choice(others, _POINTS - len(extremes), replace=False)
    return frame.loc[sorted([*extremes, *drawn.tolist()])]


def _settings(effects: PatchEffects) -> str:
    where = "one position at a time" if effects.positions == "each" else "all positions at once"
    into = "into the twin's run" if effects.direction == "sufficiency" else "into the sentence's own run"
    path = f", path to {effects.receiver}" if effects.receiver else ""
    return f"component {effects.component}, {where}, {effects.direction} ({into}){path}"


def _difference(effects: PatchEffects, metric: str) -> list[str]:
    named = f"{METRIC_NAMES[metric]}, {METRIC_UNITS[metric]}"
    clean, corrupted = (number(float(run[metric].mean()), metric) for run in (effects.clean, effects.corrupted))
    own = "" if metric == "kl" else f"{clean}, "  # of the clean run from itself: 0
    if len(effects) > 1:
        return [f"{counted(effects.prompts)}; {named}: mean {own}of their twins {corrupted}"]
    prompt = effects.prompts[0]
    return [
        f"{html.escape(prompt.text)} → <b>{html.escape(prompt.target)}</b>, twin: {html.escape(effects.twins[0])}",
        f"{named}: {own}twin {corrupted}; * what differs, ▸ where the answer is read",
    ]


def _state(row: dict[Any, Any]) -> str:
    place = f"{html.escape(str(row['token']))}, " if "token" in row else ""
    return f"prompt {row['prompt']}, {place}layer {row['layer']}" + (f", unit {row['unit']}" if "unit" in row else "")
