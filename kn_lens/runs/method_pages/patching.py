"""What is shown of patching between twins, exact, estimated, along a path, and of direct logit attribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens.plots.head_map import head_map
from kn_lens.plots.layers import layer_step, line_with_band, subtitles
from kn_lens.plots.patch_effects import patching
from kn_lens.plots.style import BLUE, INK, VERMILLION, styled
from kn_lens.plots.wording import INTERVALS, amount, counted
from kn_lens.prompts.cue_pairs import cue_labels
from kn_lens.runs.method_pages.material import CHOSEN, NOTHING, Material, MethodPage, Shown, each_apart, few_of
from kn_lens.runs.patch import Patched
from kn_lens.runs.patch import findings as patch_findings
from kn_lens.statistics import bootstrap_mean

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import Tensor

    from kn_lens.tracing.direct_logit_attribution import DirectLogits
    from kn_lens.tracing.patch_effects import PatchEffects

_LARGEST = 20  # states in the table of the largest
_LOGITS = "logit_difference"


def show_patching(of: Material) -> Shown:
    """Mean effects, prompts token by token, the largest effects."""
    parts = of.each(lambda variant, effects: _patching(of, variant, effects))
    return parts[0] if parts else NOTHING


def _patching(of: Material, variant: str, effects: PatchEffects) -> Shown:
    no_batch: Any = None  # only pages of attention patterns and activations need one
    found = Patched(
        data=of.called(variant),
        kind=of.plan.kind,
        batch=no_batch,
        exact=effects,
        estimate=None,
        data_hash=of.plan.sha256,
    )
    figures = {}
    if effects.component != "neuron":  # too many to draw
        figures["patching"] = patching(effects, subtitle=of.subtitle())
        if not effects.has_units and effects.by_position:
            for number, at in enumerate(few_of(effects.prompts), start=1):
                figures[f"tokens-{number}"] = patching(effects.select([at]), 0, subtitle=of.subtitle())
    said = patch_findings(found)
    largest = said[1]
    if effects.method == "attribution_patching":
        said.insert(0, f"{of.called(variant)}: effects are estimates from one gradient, not exact ones.")
    elif effects.receiver is not None:
        said.insert(0, f"{of.called(variant)}: effects are those along the path to {effects.receiver} only.")
    averages = found.averages().drop(columns="data")
    return Shown(
        findings=said,
        brief=[largest],
        figures=figures,
        tables={"largest": found.top(_LARGEST), "averages": averages, "prompts": effects.prompts_frame()},
    )


def show_direct_logits(of: Material) -> Shown:
    """What heads and layers write into the logit difference."""
    parts = of.each(lambda _, logits: _direct_logits(of, logits))
    return parts[0] if parts else NOTHING


def _direct_logits(of: Material, logits: DirectLogits) -> Shown:
    import torch

    labels = cue_labels(logits.prompts)
    layers = _means({"attention": logits.attention, "MLP": logits.mlp}, labels)
    units = _largest(_means({"head": logits.heads}, labels), _LARGEST)
    sums = {
        "logit difference": logits.total,
        "heads": logits.heads.sum((1, 2)),
        "MLPs": logits.mlp.sum(1),
        "embeddings and biases": logits.rest,
    }
    parts = _means({name: values[:, None] for name, values in sums.items()}, labels).drop(columns="layer")
    told = {row["part"]: amount(row["mean"], row["low"], row["high"], _LOGITS) for row in parts.to_dict("records")}
    best: Any = units.iloc[0]
    said = [
        f"{of.label}: the logit difference between answer and rival is {told['logit difference']}, mean of "
        f"{counted(logits.prompts)} answered rightly: heads write {told['heads']} of it, MLPs {told['MLPs']}, "
        f"embeddings and biases {told['embeddings and biases']}.",
        f"{of.label}: of {logits.heads[0].numel()} heads, {best['layer']}:{best['unit']} writes most, whichever way: "
        f"{amount(best['mean'], best['low'], best['high'], _LOGITS)}{CHOSEN if best['low'] == best['low'] else ''}.",
    ]
    tables = {"parts": parts, "layers": layers, "heads": units}
    if logits.neurons is not None:
        mean = logits.neurons.mean(0)
        top = mean.flatten().abs().topk(min(_LARGEST, mean.numel())).indices
        chosen = torch.stack([logits.neurons[:, at // mean.shape[1], at % mean.shape[1]] for at in top.tolist()], 1)
        middle, low, high = bootstrap_mean(chosen.double().numpy(), clusters=labels)
        places = {"layer": (top // mean.shape[1]).tolist(), "unit": (top % mean.shape[1]).tolist()}
        tables["neurons"] = _frame({**places, "mean": middle, "low": low, "high": high})
    unit = "mean contribution, logits"
    note = f"{of.subtitle()}; mean over {counted(logits.prompts)}"
    heads = head_map(logits.heads.mean(0), "What heads write into the logit difference", note, unit)
    return Shown(findings=said, figures={"heads": heads, "layers": _layers(layers, note)}, tables=tables)


def _layers(frame: pd.DataFrame, note: str) -> go.Figure:
    """What attention and MLP of each layer write, with intervals."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, look in (("attention", (VERMILLION, "solid")), ("MLP", (BLUE, "dash"))):
        rows = frame[frame["part"] == name]
        line_with_band(figure, rows, name, look, legend=True)
    figure.add_hline(y=0, line_color=INK, line_width=1)
    figure.update_xaxes(title="layer (from 0)", dtick=layer_step(int(frame["layer"].max()) + 1))
    figure.update_yaxes(title="mean contribution, logits")
    styled(figure, "What layers write into the logit difference", "", 430)
    subtitles(figure, [note, f"bands: {INTERVALS}"], extra=34)
    figure.update_layout(legend={"x": 0, "xanchor": "left"})
    return figure


def _means(parts: dict[str, Tensor], labels: list[tuple[str, str]]) -> pd.DataFrame:
    """One row per part and place: mean over prompts with its interval; what differs by layer (and unit) says where."""
    frames = []
    for name, values in parts.items():
        mean, low, high = bootstrap_mean(values.flatten(1).double().numpy(), clusters=labels)
        places = np.array(list(np.ndindex(*values.shape[1:])))
        where = {axis: places[:, at] for at, axis in enumerate(("layer", "unit")[: places.shape[1]])}
        frames.append(_frame({"part": name, **where, "mean": mean, "low": low, "high": high}))
    import pandas as pd

    return pd.concat(frames, ignore_index=True)


def _largest(frame: Any, count: int) -> pd.DataFrame:
    """The rows with the largest |mean|."""
    order = frame["mean"].abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order[:count]].reset_index(drop=True)


def _frame(content: Any) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(content)


_TWINS = (
    "States are put from the run of each sentence into that of its twin, which has another cue and another answer (or "
    "the other way round)"
)

PAGES = {
    "activation_patching": MethodPage(
        about=f"{_TWINS}, one at a time: how much of the answer comes with them.",
        show=show_patching,
        groups=each_apart,
    ),
    "attribution_patching": MethodPage(
        about=f"{_TWINS}; their effects are estimated from one gradient.",
        show=show_patching,
        groups=each_apart,
    ),
    "path_patching": MethodPage(
        about=f"{_TWINS}, one head at a time and along one path only: how much of the answer passes there.",
        show=show_patching,
        groups=each_apart,
    ),
    "direct_logit_attribution": MethodPage(
        about="The last residual stream is a sum of what heads, MLPs and embeddings wrote: what each of them adds to "
        "the logit of the answer over that of its rival.",
        show=show_direct_logits,
    ),
}
"""By method."""
