"""Path patching (Wang et al. 2022): what a head says to the logits, or to one later head, and to nothing in between.

Of everything that a head h writes, only the way straight to the receiver is changed: with z the head's weighted values
in the run patched (base) and in its twin's (source), the receiver reads

    x + (z_source − z_base) W_O[h]

instead of the residual stream x of the base run; all else keeps its base values. The norm in front of the receiver is
computed anew, so that the effect is exact. For the logits this is a closed form: no head needs a forward pass.
TransformerLens' ``tools.analysis.direct_path_patching`` goes from head to head and holds the scale of that norm fixed,
so that it misses, even for small changes, what they do to the scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.errors import SettingsError, UnitsError, near_matches
from kn_lens.forward import DEFAULT_MEMORY_BUDGET, CleanRun, Columns, bytes_per_row, run_in_chunks
from kn_lens.interventions import columns_of
from kn_lens.models.stepping import readout
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.prompt import Prompt
from kn_lens.sites import Unit, site_of
from kn_lens.streams import Stream, stream_of
from kn_lens.tracing.metrics import METRICS, check_metric, default_metric, effect
from kn_lens.tracing.pairs_of_runs import (
    Collected,
    Direction,
    RunPair,
    Shape,
    Sources,
    check_direction,
    run_pair,
    shapes_of,
    twins_of,
)
from kn_lens.tracing.patch_effects import PatchEffects
from kn_lens.tracing.swap import Swaps
from kn_lens.tracing.writes import check_writes_directly

Input = Literal["q", "k", "v"]
_LOGIT_ROWS = 128  # rows whose logits are held at once


def path_patching(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    sources: Sources = None,
    *,
    receiver: Literal["logits"] | Unit = "logits",
    component: Input = "q",
    direction: Direction = "sufficiency",
    swaps: Swaps | None = None,
    metric: str | None = None,
    memory_budget: float = DEFAULT_MEMORY_BUDGET,
    progress: bool = True,
) -> PatchEffects:
    """Patch the direct path from every head to the logits, or to one later head.

    Args:
        model: A loaded model whose heads write into the residual stream as they are; it is left as it was.
        prompts: Prompts. Those that the model answers wrongly are left out and counted.
        sources: The twin of each prompt; see :func:`kn_lens.activation_patching`.
        receiver: ``"logits"`` (default), or a head as (layer, index): then what it reads is changed at all positions,
            and the model goes on from there.
        component: What of that head reads the change: ``"q"`` (default), ``"k"`` or ``"v"``; of grouped keys and
            values the index is the group's.
        direction: ``"sufficiency"`` (default) changes the twin's run, ``"necessity"`` the sentence's.
        swaps: Without ``sources``: the new cue of each prompt, or a mapping from cues.
        metric: The one that tables and figures show by default; all four are computed. By default the logit
            difference, and log p of two-prefix pairs.
        memory_budget: Bytes that the copies of one pass may take; halved when memory runs out.
        progress: Show a progress bar.

    Returns:
        Effects by metric, ``[prompt, layer, head]``; 0 for heads from which no path leads to the receiver.

    Raises:
        ModelError: For a masked model, or one with norms between its layers and the residual stream.
        UnitsError: If the receiver is not in the model.
        SettingsError: For an unknown component, direction or metric, or the logit difference of two-prefix pairs.
        PromptError: If the model answers all prompts wrongly, none has a twin, or a twin is of another length.
    """
    check_metric(metric)
    check_direction(direction)
    check_writes_directly(model, "path patching")
    reader = None if receiver == "logits" else _reader(model, receiver, component)
    heads = stream_of(model, "head")
    batch = as_batch(model, prompts)
    shown = default_metric(metric, batch)
    swapped = twins_of(model, batch, sources, swaps)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    senders = n_layers if reader is None else reader.layer
    keep = [f"blocks.{layer}.attn.hook_z" for layer in range(senders)]
    last = f"blocks.{n_layers - 1}.hook_resid_post"
    collected = Collected(swapped, (heads.n_layers, n_heads), given=sources is not None)

    @torch.no_grad()
    def run(chunk: Sequence[int], shape: Shape) -> None:
        indices = list(chunk)
        start = shape.target if reader is None else shape.first
        pair = run_pair(model, swapped, indices, shape, [*keep, last], direction, start)
        if reader is None:
            found = _to_logits(model, pair, keep, last)
        else:
            found = _to_head(model, pair, keep, reader, memory_budget)
        values = torch.zeros(len(indices), n_layers, n_heads, len(METRICS))
        if shape.first < shape.length:  # else the twin is the sentence itself
            baseline = pair.baseline(direction)[:, None, None]
            for at, name in enumerate(METRICS):
                values[:, :senders, :, at] = effect(name, found[..., at], baseline[..., at], direction).float().cpu()
        collected.effects[indices] = values
        collected.add_baselines(indices, pair)
        bar.update(len(indices))

    with progress_bar(len(swapped.batch), "path patching", "prompt", progress) as bar:
        for shape, indices in shapes_of(swapped):
            need = bytes_per_row(model, shape.length, shape.length, gradients=False) * n_layers
            size = max(1, int(memory_budget / need))
            run_in_chunks(indices, size, lambda chunk, shape=shape: run(chunk, shape), what="prompts")
    name = "logits" if reader is None else f"{reader.layer}:{reader.unit} {component}"
    return collected.result(
        model,
        {"receiver": name, "direction": direction, "metric": shown},
        component="head",
        positions="sum",
        direction=direction,
        method="path_patching",
        receiver=name,
        metric=shown,
    )


def _to_logits(model: Any, pair: RunPair, names: list[str], last: str) -> Float[Tensor, "prompt layer head metric"]:
    """Measure the answer from last residual streams in which one head's share is the source's."""
    local = pair.base.target - pair.base.start
    final = pair.base.activations[last][:, local]
    rows = len(final)
    found = []
    for layer, name in enumerate(names):
        z = pair.source.activations[name][:, local] - pair.base.activations[name][:, local]
        changes = torch.einsum("phd,hdm->phm", z, model.blocks[layer].attn.W_O)
        streams = (final[:, None] + changes).flatten(0, 1)
        owners = torch.arange(rows, device=z.device).repeat_interleave(z.shape[1])
        measured = [
            pair.measure(
                readout(model, streams[part : part + _LOGIT_ROWS, None])[:, 0], owners[part : part + _LOGIT_ROWS]
            )
            for part in range(0, len(streams), _LOGIT_ROWS)
        ]
        found.append(torch.cat(measured).unflatten(0, (rows, -1)))
    return torch.stack(found, 1)


class _Reader:
    """What of a head reads the residual stream: its queries, keys or values."""

    def __init__(self, stream: Stream, layer: int, unit: int, block: Any) -> None:
        self.layer, self.unit = layer, unit
        self.hook = stream.hook(layer) or ""
        self.norm = block.ln1
        grouped = stream.name != "q" and hasattr(block.attn, "_W_K") and len(block.attn._W_K) == stream.n_units
        prefix = "_" if grouped else ""
        self.weight = getattr(block.attn, f"{prefix}W_{stream.name.upper()}")[unit]
        self.bias = getattr(block.attn, f"{prefix}b_{stream.name.upper()}")[unit]

    def reads(self, resid: Float[Tensor, "row span d_model"]) -> Float[Tensor, "row span d_head"]:
        """Its query, key or value, given what enters the block."""
        return self.norm(resid) @ self.weight + self.bias


def _reader(model: Any, receiver: Any, component: str) -> _Reader:
    if component not in get_args(Input):
        known = get_args(Input)
        raise SettingsError(f"no input {component!r} of a head.{near_matches(component, known)} Inputs: q, k, v")
    try:
        layer, unit = (int(number) for number in receiver)
    except (TypeError, ValueError):
        raise SettingsError(f"receiver is {receiver!r}; give 'logits', or a head as (layer, index)") from None
    site_of(model, "head").check([(layer, unit)], model)
    stream = stream_of(model, component)
    if stream.n_units is not None and unit >= stream.n_units:
        raise UnitsError(f"receiver {layer}:{unit}: the model has {stream.n_units} groups of {component} in a layer")
    if layer == 0:
        raise UnitsError(f"receiver {layer}:{unit} is in the first layer: no head writes before it")
    return _Reader(stream, layer, unit, model.blocks[layer])


def _to_head(
    model: Any, pair: RunPair, names: list[str], reader: _Reader, memory_budget: float
) -> Float[Tensor, "prompt layer head metric"]:
    """Measure copies of the base run in which the reader takes one sender's share from the source."""
    base: CleanRun = pair.base
    rows, span = base.resid[reader.layer].shape[:2]
    senders = [(layer, head) for layer in range(len(names)) for head in range(model.cfg.n_heads)]
    found: list[Tensor] = []

    def run(chunk: Sequence[Unit]) -> None:
        changes = []
        for layer, head in chunk:
            name = names[layer]
            z = pair.source.activations[name][:, :, head] - base.activations[name][:, :, head]
            changes.append(z @ model.blocks[layer].attn.W_O[head])
        streams = base.resid[reader.layer][:, None] + torch.stack(changes, 1)
        values = reader.reads(streams.flatten(0, 1)).unflatten(0, (rows, -1))

        def write(activation: Tensor, hook: Any) -> Tensor:
            changed = activation.clone()
            columns_of(changed, rows)[:, :, :, reader.unit] = values.to(changed)
            return changed

        joins = [len(chunk) if layer == reader.layer else 0 for layer in range(model.cfg.n_layers)]
        found.append(Columns(model, base, joins, [(reader.hook, write)]).measure(pair.measure))

    need = bytes_per_row(model, span, base.tokens.shape[1], gradients=False) * rows
    run_in_chunks(senders, max(1, int(memory_budget / need)), run, what="senders")
    return torch.cat(found, 1).unflatten(1, (len(names), model.cfg.n_heads))
