"""Attribution patching: activation patching's effects estimated from one gradient (Nanda 2023; Syed et al. 2023).

For a state a, a metric M, a base run and a source run

    M_base(a ← a_source) − M_base  ≈  (a_source − a_base) · ∂M_base/∂a

one forward and one backward pass for all states of a prompt. Exact where the model is linear between the two; how far
it can be trusted elsewhere, ``estimate.correlation(exact)`` says. TransformerLens 3.9 has this for its bridge only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from kn_lens.errors import SettingsError
from kn_lens.forward import DEFAULT_MEMORY_BUDGET, bytes_per_row, frozen_weights, run_in_chunks
from kn_lens.models.kind import is_masked
from kn_lens.models.stepping import target_logits
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.prompt import Prompt
from kn_lens.streams import Stream, stream_of
from kn_lens.tracing.activation_patching import COMPONENTS, Component, PatchPositions, check_positions
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


def attribution_patching(
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
    """Estimate the effect of patching every state of one kind between each prompt and its twin.

    Arguments and errors as in :func:`kn_lens.activation_patching`, but that only the gradient of ``metric`` is taken,
    and that neurons cost no more than heads. The KL divergence has its minimum, and no gradient, in the clean run:
    with ``direction="necessity"`` there is no estimate of it, and it is refused.

    Returns:
        Estimated effects by ``metric`` alone, of the same shape as the exact ones: compare with
        ``estimate.correlation(exact)``.
    """
    check_metric(metric)
    check_direction(direction)
    if reason := without_gradient(metric, direction):
        raise SettingsError(f"there is no estimate: {reason}; take direction='sufficiency' or another metric")
    check_positions(positions)
    stream = stream_of(model, component, COMPONENTS)
    batch = as_batch(model, prompts)
    shown = default_metric(metric, batch)
    swapped = twins_of(model, batch, sources, swaps)
    names = [_hook(model, stream, layer) for layer in range(stream.n_layers)]
    per_place = (stream.n_layers,) if stream.n_units is None else (stream.n_layers, stream.n_units)
    state = (max(swapped.batch.lengths), *per_place) if positions == "each" else per_place
    collected = Collected(swapped, state, [shown], given=sources is not None)

    def run(chunk: Sequence[int], shape: Shape) -> None:
        indices = list(chunk)
        pair = run_pair(model, swapped, indices, shape, names, direction, 0)
        changes = torch.stack(_first_order(model, stream, names, pair, METRICS.index(shown)), 2)
        changes[:, : shape.first] = 0  # there the two runs are the same but for rounding
        estimate = effect(shown, changes, torch.zeros_like(changes), direction)[..., None].float().cpu()
        if positions == "each":
            collected.effects[indices, : shape.length] = estimate
        else:
            collected.effects[indices] = estimate.sum(1)
        collected.add_baselines(indices, pair)
        bar.update(len(indices))

    with progress_bar(len(swapped.batch), f"attribution patching ({component})", "prompt", progress) as bar:
        for shape, indices in shapes_of(swapped):
            need = 2 * bytes_per_row(model, shape.length, shape.length, gradients=True)  # all layers are held
            size = max(1, int(memory_budget / need))
            run_in_chunks(indices, size, lambda chunk, shape=shape: run(chunk, shape), what="prompts")
    return collected.result(
        model,
        {"component": component, "positions": positions, "direction": direction, "metric": shown},
        component=component,
        positions=positions,
        direction=direction,
        method="attribution_patching",
        metric=shown,
    )


def without_gradient(metric: str | None, direction: str) -> str | None:
    """Why the first order says nothing of this metric's effects; None where it does."""
    if metric == "kl" and direction == "necessity":
        return "the KL divergence has its minimum in the clean run, where its gradient is 0"
    return None


def _hook(model: Any, stream: Stream, layer: int) -> str:
    """Where the state after ``layer`` is read; the last residual stream as its own block leaves it."""
    name = stream.hook(layer)
    if name is not None:
        return name
    return f"blocks.{layer}.hook_normalized_resid_post" if is_masked(model) else f"blocks.{layer}.hook_resid_post"


def _first_order(model: Any, stream: Stream, names: list[str], pair: RunPair, metric: int) -> list[Tensor]:
    """(source − base) · gradient of the metric in the base run, ``[prompt, position, (unit)]`` per layer."""
    found: dict[str, Tensor] = {}

    def record(activation: Tensor, hook: Any) -> Tensor:
        # The first state is where the graph begins: nothing before it is differentiated.
        found[hook.name] = activation if activation.requires_grad else activation.detach().requires_grad_()
        return found[hook.name]

    base = pair.base
    rows = torch.arange(len(base.tokens), device=base.tokens.device)
    with frozen_weights(model), torch.enable_grad(), model.hooks(fwd_hooks=[(name, record) for name in names]):
        logits = target_logits(model, base.tokens, torch.full_like(rows, base.target))
        value = pair.measure(logits, rows)[:, metric].sum()
    gradients = torch.autograd.grad(value, [found[name] for name in names])
    changes = []
    for name, gradient in zip(names, gradients, strict=True):
        product = (pair.source.activations[name] - base.activations[name]) * gradient
        by_position = stream.by_position(product, len(rows))[:, 0]
        kept = 2 if stream.n_units is None else 3  # axes: prompt, position, (unit)
        changes.append(by_position.flatten(kept).sum(-1) if by_position.dim() > kept else by_position)
    return changes
