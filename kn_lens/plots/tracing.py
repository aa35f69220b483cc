"""Figures of causal traces: token by token as Meng et al. draw them, and averages by class of position."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import TYPE_CHECKING

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
from kn_lens.plots.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION, styled
from kn_lens.plots.wording import INTERVALS, Total, counted, number
from kn_lens.tracing.position_classes import CLASSES
from kn_lens.tracing.trace import CausalTrace

if TYPE_CHECKING:
    import plotly.graph_objects as go

STREAM_NAMES = {
    "resid": "the residual stream",
    "mlp": "MLP outputs",
    "attn": "attention outputs",
    "head": "single heads",
    "neuron": "single neurons",
}
LINES: dict[str, tuple[str, str]] = dict(
    zip(
        CLASSES,
        [
            (GREY, "dot"),
            (SKY, "dash"),
            (GREEN, "dashdot"),
            (BLUE, "solid"),
            (ORANGE, "dash"),
            (PURPLE, "dot"),
            (VERMILLION, "solid"),
        ],
        strict=True,
    )
)
"""Color and dash of each class of position, the same in every figure."""


def causal_trace(
    trace: CausalTrace, index: int | None = None, metric: str | None = None, subtitle: str = ""
) -> go.Figure:
    """Effects of single states: tokens (down) by layers (across) of one prompt, or classes of positions by layers.

    Args:
        trace: From :func:`kn_lens.causal_trace`, of a stream without heads or neurons.
        index: The prompt drawn. Without it, a trace of one prompt is drawn token by token, and one of several as
            their average by class of position.
        metric: By default the trace's own.
        subtitle: Model and data.

    Raises:
        SettingsError: If the trace is of heads or neurons, or has no such prompt or metric.
    """
    name = metric or trace.metric
    if trace.has_units:
        raise SettingsError(
            f"this trace is of single {trace.stream}s, a number for each; draw it with plots.head_trace"
        )
    if index is None and len(trace) > 1:
        lines = [subtitle, how(trace), total(trace, name)]
        return class_map(
            trace.average(name), _layers(trace), name, f"{_verb(trace)} {_what(trace)}, mean over prompts", lines
        )
    at = index or 0
    if not 0 <= at < len(trace):
        raise SettingsError(f"prompt {index} is not in the trace, which has prompts 0–{len(trace) - 1}")
    one = trace.select([at])
    labels = token_labels(one.tokens[0], one.cue_positions[0], one.target_positions[0])
    one.total_effect(name)  # refuses a metric that there is not
    values = one.effects[name][0, : len(labels)]
    prompt, before, after = one.prompts[0], float(one.clean[name][0]), float(one.corrupted[name][0])
    rival = f" (against {html.escape(one.foils[0])})" if name == "logit_difference" else ""
    lines = [
        subtitle,
        how(trace),
        f"{html.escape(prompt.text)} → <b>{html.escape(prompt.target)}</b>{rival}",
        f"{METRIC_NAMES[name]}: clean {number(before, name)} → corrupted {number(after, name)} {METRIC_UNITS[name]}; "
        "* cue, ▸ where the answer is read",
    ]
    hover = [[html.escape(token)] * values.shape[1] for token in one.tokens[0]]
    return layer_map(values, labels, hover, name, f"{_verb(trace)} {_what(trace)}, token by token", lines)


def trace_averages(
    traces: CausalTrace | Mapping[str, CausalTrace], metric: str | None = None, subtitle: str = "", *, columns: int = 3
) -> go.Figure:
    """Mean effect by layer, a line for each class of position, with 95 % intervals over facts or pairs.

    Args:
        traces: One trace, or several by name (streams, or facts and agreement), drawn side by side on one scale.
        metric: By default their own; log p(answer), which all have, where theirs differ.
        subtitle: Model.
        columns: How many are drawn in a row, at most.

    Raises:
        SettingsError: If a trace is of heads or neurons, or there is no such metric.
    """
    from plotly.subplots import make_subplots

    named = {"": traces} if isinstance(traces, CausalTrace) else dict(traces)
    if not named:
        raise SettingsError("no traces to draw; give at least one")
    first = next(iter(named.values()))
    name = metric or (first.metric if len({trace.metric for trace in named.values()}) == 1 else "log_probability")
    across = min(columns, len(named))
    down = -(-len(named) // across)
    figure = make_subplots(
        rows=down,
        cols=across,
        subplot_titles=[f"{title} ({counted(trace.prompts)})" if title else "" for title, trace in named.items()],
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.14,
    )
    shown: set[str] = set()
    for place, (title, trace) in enumerate(named.items()):
        if trace.has_units:
            raise SettingsError(f"trace {title!r} is of single {trace.stream}s; draw it with plots.head_trace")
        frame = trace.average(name)
        row, column = place // across + 1, place % across + 1
        for kind in CLASSES:
            rows = frame[frame["class"] == kind]
            if not len(rows) or not rows["mean"].any():  # in a causal model, states before the cue have no effect
                continue
            line_with_band(figure, rows, kind, LINES[kind], legend=kind not in shown, row=row, col=column)
            shown.add(kind)
        figure.update_xaxes(title="layer (from 0)", dtick=layer_step(_layers(trace)), row=row, col=column)
    figure.add_hline(y=0, line_color=INK, line_width=1)
    figure.update_annotations(font_size=13)  # the names of the subplots
    figure.update_yaxes(matches="y")
    figure.layout.yaxis.matches = None  # an axis cannot follow itself
    for row in range(1, down + 1):
        figure.update_yaxes(title=f"effect on {METRIC_NAMES[name]}, {METRIC_UNITS[name]}", row=row, col=1)
    same = len({how(trace) for trace in named.values()}) == 1
    windows = ", ".join(dict.fromkeys(f"{trace.stream} {trace.window}" for trace in named.values()))
    rest = "; ".join(dict.fromkeys(_run(trace) for trace in named.values()))
    note = how(first) if same else f"window, in layers: {windows}; {rest}"
    lines = [subtitle, note, f"bands: {INTERVALS}"]
    verb = " or ".join(dict.fromkeys(_verb(trace) for trace in named.values())).capitalize()
    styled(figure, f"{verb} {_what(first) if same else 'a state'}: mean effect on the answer", "", 400 * down)
    subtitles(figure, lines, extra=62)
    figure.update_layout(legend={"y": 1 + 0.1 / down, "x": 0, "xanchor": "left"})
    return figure


def head_trace(trace: CausalTrace, metric: str | None = None, subtitle: str = "") -> go.Figure:
    """Mean effect of each head at the cue's last token and at the target position, maps side by side.

    Args:
        trace: From :func:`kn_lens.causal_trace` with ``stream="head"``.
        metric: By default the trace's own.
        subtitle: Model and data.

    Raises:
        SettingsError: If the trace is of another stream, or there is no such metric.
    """
    if trace.stream != "head":
        raise SettingsError(f"this trace is of the stream {trace.stream!r}; head_trace draws stream='head'")
    name = metric or trace.metric
    pooled = trace.by_class(name)
    shown = {kind: pooled[kind].nanmean(0) for kind in ("last cue token", "target position") if kind in pooled}
    title = f"{_verb(trace)} single heads, mean over prompts"
    unit = f"effect on {METRIC_NAMES[name]}, {METRIC_UNITS[name]}"
    figure = head_map(shown, title, "", unit)
    subtitles(figure, [subtitle, how(trace), total(trace, name)], extra=20)
    return figure


def how(trace: CausalTrace) -> str:
    """Stream, window, direction and corruption in one line."""
    return f"stream {trace.stream}, window {trace.window} layer{'s' if trace.window > 1 else ''}, {_run(trace)}"


def total(trace: CausalTrace, metric: str) -> str:
    """The mean total effect and the number of prompts in one line."""
    whole = Total.of(trace.total_effect(metric), trace.prompts, metric)
    return whole.sentence("corrupting the cue", counted(trace.prompts))


def _run(trace: CausalTrace) -> str:
    cut = f", {trace.severed} severed" if trace.severed else ""
    corruption = trace.corruption
    if trace.corruption == "noise":
        noise, samples = trace.settings.get("noise"), trace.settings.get("samples")
        times = f" {noise:.1f}σ = {trace.sigma:.2g}" if noise is not None else f" σ = {trace.sigma:.2g}"
        corruption += f",{times}" + (f", {samples} samples" if samples else "")
    return f"{trace.direction}{cut}, corruption: {corruption}"


def _verb(trace: CausalTrace) -> str:
    return "Restoring" if trace.direction == "sufficiency" else "Corrupting"


def _what(trace: CausalTrace) -> str:
    return STREAM_NAMES[trace.stream]


def _layers(trace: CausalTrace) -> int:
    return next(iter(trace.effects.values())).shape[2]
