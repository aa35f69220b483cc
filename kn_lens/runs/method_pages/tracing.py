"""What is shown of causal traces and of attention knockout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kn_lens.plots.patch_effects import knockout as knockout_figure
from kn_lens.plots.tracing import causal_trace as token_map
from kn_lens.plots.tracing import head_trace, trace_averages
from kn_lens.runs.knockout import KnockedOut
from kn_lens.runs.knockout import findings as knockout_findings
from kn_lens.runs.method_pages.material import NOTHING, Material, MethodPage, Shown, few_of, together
from kn_lens.studies.traced import Traced
from kn_lens.studies.traced import findings as trace_findings

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from kn_lens.tracing.knockout_trace import KnockoutTrace
    from kn_lens.tracing.trace import CausalTrace

_UNITS = ("head", "neuron")


def streams_of_layers_together(variants: Sequence[str]) -> list[tuple[str, ...]]:
    """Streams with one state a layer share a section; heads and neurons have one each."""
    lines = tuple(variant for variant in variants if variant not in _UNITS)
    return [*([lines] if lines else []), *((variant,) for variant in variants if variant in _UNITS)]


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """What is kept of one stream's trace."""

    name: str
    findings: list[str]
    peaks: pd.DataFrame
    averages: pd.DataFrame
    prompts: pd.DataFrame
    line: Any
    figures: Mapping[str, go.Figure]


def show_traces(of: Material) -> Shown:
    """Averages of all streams side by side, prompts token by token; heads as maps."""
    streams = of.each(partial(_stream, of))
    figures: dict[str, go.Figure] = {}
    lines = {stream.name: stream.line for stream in streams if stream.line is not None}
    if lines:
        figures["averages"] = trace_averages(lines, subtitle=of.subtitle())
    for stream in streams:
        figures |= stream.figures
    tables = {
        "peaks": together([stream.peaks for stream in streams]),
        "averages": together([stream.averages for stream in streams]),
    }
    if streams:
        tables["prompts"] = streams[0].prompts  # those of the other streams are the same
    said = dict.fromkeys(sentence for stream in streams for sentence in stream.findings)
    of_streams = [sentence for stream in streams for sentence in stream.findings[1:]]  # the first is of the corruption
    return Shown(findings=list(said), figures=figures, tables=tables, brief=of_streams or None)


def _stream(of: Material, name: str, trace: CausalTrace) -> _Stream:
    traced = Traced(data=of.label, kind=of.plan.kind, traces={name: trace}, data_hash=of.plan.sha256)
    figures = {}
    if trace.stream == "head":
        figures["heads"] = head_trace(trace, subtitle=of.subtitle())
    elif not trace.has_units:
        for number, at in enumerate(few_of(trace.prompts), start=1):
            figures[f"tokens-{name}-{number}"] = token_map(trace.select([at]), 0, subtitle=of.subtitle())
    return _Stream(
        name=name,
        findings=trace_findings(traced),
        peaks=traced.peaks(),
        averages=traced.averages,
        prompts=trace.prompts_frame(),
        line=None if trace.has_units else _line(trace, traced.average(name)),
        figures=figures,
    )


def _line(trace: CausalTrace, averages: pd.DataFrame) -> Any:
    """What a figure of averages asks of a trace, without the effects of each prompt: they would stay in memory."""
    asked = ("stream", "window", "direction", "severed", "corruption", "sigma", "settings", "metric", "prompts")
    empty = {name: values[:0].clone() for name, values in trace.effects.items()}
    return SimpleNamespace(
        **{name: getattr(trace, name) for name in asked},
        effects=empty,
        has_units=trace.has_units,
        average=lambda metric: averages,
    )


def show_knockout(of: Material) -> Shown:
    """What the answer loses, block by block of what is cut off."""
    parts = of.each(lambda _, trace: _knockout(of, trace))
    return parts[0] if parts else NOTHING


def _knockout(of: Material, trace: KnockoutTrace) -> Shown:
    no_batch: Any = None  # only pages of attention patterns need one
    found = KnockedOut(data=of.label, kind=of.plan.kind, batch=no_batch, trace=trace, data_hash=of.plan.sha256)
    return Shown(
        findings=knockout_findings(found),
        figures={"knockout": knockout_figure(trace, subtitle=of.subtitle())},
        tables={"peaks": found.peaks(), "averages": found.averages()},
    )


PAGES = {
    "causal_trace": MethodPage(
        about="The cue is corrupted, then one state of the clean run is put back at a time (or corrupted in the clean "
        "run): how much of the answer hangs on it, averaged over prompts by class of position and layer.",
        show=show_traces,
        groups=streams_of_layers_together,
    ),
    "attention_knockout": MethodPage(
        about="The position where the answer is read is kept from attending to the cue, to everything else, or to "
        "itself, in a window of layers at a time: what the answer loses.",
        show=show_knockout,
    ),
}
"""By method."""
