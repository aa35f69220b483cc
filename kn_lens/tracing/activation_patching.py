"""Activation patching between the two sentences of a pair: which states carry what tells them apart?

A state of one sentence's run is replaced by the state at the same place of its twin, a sentence of as many tokens with
another cue (Vig et al. 2020; Wang et al. 2022; Zhang and Nanda 2023). For a metric M

    sufficiency: M_twin(state of the sentence) − M_twin        necessity: M_sentence − M_sentence(state of the twin)

(for KL the other way round), positive where the state speaks for the answer. TransformerLens' ``patching`` computes the
first for single prompts with a whole forward pass per state (tested equal); here copies of many prompts and layers
share passes, and begin where they first differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch

from kn_lens.errors import SettingsError, near_matches
from kn_lens.forward import DEFAULT_MEMORY_BUDGET, bytes_per_row, run_in_chunks
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.prompt import Prompt
from kn_lens.streams import stream_of
from kn_lens.tracing.metrics import METRICS, check_metric, default_metric, effect
from kn_lens.tracing.pairs_of_runs import (
    Collected,
    Direction,
    Shape,
    Sources,
    check_direction,
    run_pair,
    shapes_of,
    twins_of,
)
from kn_lens.tracing.patch_effects import PatchEffects
from kn_lens.tracing.patched import Cell, patched
from kn_lens.tracing.swap import Swaps

COMPONENTS = ("head", "q", "k", "v", "pattern", "mlp", "attn", "resid", "neuron")
Component = Literal["head", "q", "k", "v", "pattern", "mlp", "attn", "resid", "neuron"]
PatchPositions = Literal["each", "sum"]
"""``each``: one position at a time; ``sum``: all positions at once."""


def activation_patching(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    sources: Sources = None,
    *,
    component: Component = "head",
    positions: PatchPositions = "each",
    direction: Direction = "sufficiency",
    swaps: Swaps | None = None,
    metric: str | None = None,
    memory_budget: float = DEFAULT_MEMORY_BUDGET,
    progress: bool = True,
) -> PatchEffects:
    """Patch every state of one kind between each prompt and its twin.

    Args:
        model: A loaded model; it is left as it was.
        prompts: Prompts. Those that the model answers wrongly are left out and counted.
        sources: The twin of each prompt, of as many tokens. By default a two-prefix pair's other prefix; else the
            prompt with the cue of another one that has another answer (prompts then need a cue).
        component: ``"head"`` (default; a head's weighted values z), ``"q"``, ``"k"``, ``"v"`` (grouped keys and
            values: of each group), ``"pattern"`` (attention from a position), ``"mlp"``, ``"attn"`` (outputs of a
            layer), ``"resid"`` (the residual stream after a layer), ``"neuron"`` (slow: layers × neurons copies).
        positions: ``"each"`` (default) or ``"sum"``, all at once.
        direction: ``"sufficiency"`` (default) puts the sentence's states into the twin's run, ``"necessity"`` the
            twin's into the sentence's.
        swaps: Without ``sources``: the new cue of each prompt, or a mapping from cues.
        metric: The one that tables and figures show by default; all four are computed. By default the logit
            difference, and log p of two-prefix pairs.
        memory_budget: Bytes that the copies of one pass may take; halved when memory runs out.
        progress: Show a progress bar.

    Returns:
        Effects by metric, ``[prompt, position, layer]``, for ``"sum"`` without the position, with one more axis for
        heads or neurons.

    Raises:
        SettingsError: For an unknown component, positions, direction or metric, or the logit difference of two-prefix
            pairs.
        ModelError: For a masked TransformerBridge.
        PromptError: If the model answers all prompts wrongly, none has a twin, or a twin is of another length.
    """
    check_metric(metric)
    check_direction(direction)
    check_positions(positions)
    stream = stream_of(model, component, COMPONENTS)
    batch = as_batch(model, prompts)
    shown = default_metric(metric, batch)
    swapped = twins_of(model, batch, sources, swaps)
    units = [None] if stream.n_units is None else range(stream.n_units)
    cells = [Cell(range(layer, layer + 1), unit) for layer in range(stream.n_layers) for unit in units]
    keep = [hook for hook in map(stream.hook, range(stream.n_layers)) if hook is not None]
    per_place = (stream.n_layers,) if stream.n_units is None else (stream.n_layers, stream.n_units)
    state = (max(swapped.batch.lengths), *per_place) if positions == "each" else per_place
    collected = Collected(swapped, state, given=sources is not None)

    @torch.no_grad()
    def run(chunk: Sequence[int], shape: Shape) -> None:
        indices = list(chunk)
        pair = run_pair(model, swapped, indices, shape, keep, direction, shape.first)

        def effects(position: int | None) -> torch.Tensor:
            found = patched(
                model, stream, pair.base, pair.source, cells, position, pair.measure, memory_budget=memory_budget
            )
            baseline = pair.baseline(direction)[:, None]
            columns = [effect(name, found[..., at], baseline[..., at], direction) for at, name in enumerate(METRICS)]
            return torch.stack(columns, -1).float().cpu().unflatten(1, per_place)

        values = torch.zeros(len(indices), *((shape.length,) if positions == "each" else ()), *per_place, len(METRICS))
        if positions == "each":
            for position in range(shape.first, shape.length):
                values[:, position] = effects(position)
            collected.effects[indices, : shape.length] = values
        else:
            collected.effects[indices] = effects(None) if shape.first < shape.length else values
        collected.add_baselines(indices, pair)
        bar.update(len(indices))

    with progress_bar(len(swapped.batch), f"activation patching ({component})", "prompt", progress) as bar:
        for shape, indices in shapes_of(swapped):
            span = max(1, shape.length - shape.first)
            need = bytes_per_row(model, span, shape.length, gradients=False) * stream.n_layers
            size = max(1, int(memory_budget / need))
            run_in_chunks(indices, size, lambda chunk, shape=shape: run(chunk, shape), what="prompts")
    return collected.result(
        model,
        {"component": component, "positions": positions, "direction": direction, "metric": shown},
        component=component,
        positions=positions,
        direction=direction,
        method="activation_patching",
        metric=shown,
    )


def check_positions(positions: str) -> None:
    """Raise SettingsError for positions that there are not."""
    known = get_args(PatchPositions)
    if positions not in known:
        hint = near_matches(positions, known)
        raise SettingsError(f"no positions {positions!r} to patch.{hint} Positions: {', '.join(known)}")
