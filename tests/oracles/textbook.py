"""The methods as the papers write them: one prompt, one layer, whole forward passes, no tricks.

Nothing here uses :mod:`kn_lens`. It is slow, short, and what the fast code must equal. Works for
``HookedTransformer``, ``HookedEncoder`` and ``TransformerBridge``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def activations(model: Any, tokens: Tensor, hook_name: str) -> list[Tensor]:
    """The clean values of a hook in every layer, ``[position, ...]`` each; ``tokens`` is ``[position]``."""
    found: dict[str, Tensor] = {}

    def record(activation: Tensor, hook: Any) -> None:
        found[hook.name] = activation.detach().clone()

    names = [f"blocks.{layer}.{hook_name}" for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        model.run_with_hooks(tokens[None], fwd_hooks=[(name, record) for name in names])
    return [found[name][0] for name in names]


def probability_with_units_at(
    model: Any,
    tokens: Tensor,
    target_id: int,
    layer: int,
    values: Tensor,
    *,
    hook_name: str = "mlp.hook_post",
    positions: Sequence[int] = (-1,),
    target_position: int = -1,
) -> Tensor:
    """P(ŵ): the probability of the target in copies of the prompt, units of one layer set to ``values``.

    ``values`` is ``[copy, position, ...]``; gradients flow to it.
    """
    where = list(positions)

    def hook(activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone()
        changed[:, where] = values
        return changed

    copies = tokens[None].repeat(len(values), 1)
    logits = model.run_with_hooks(copies, fwd_hooks=[(f"blocks.{layer}.{hook_name}", hook)])
    return torch.softmax(logits[:, target_position], dim=-1)[:, target_id]


def integrated_gradients(
    model: Any,
    tokens: Tensor,
    target_id: int,
    *,
    hook_name: str = "mlp.hook_post",
    positions: Sequence[int] = (-1,),
    target_position: int = -1,
    steps: int = 20,
    points: Sequence[float] | None = None,
    weights: Sequence[float] | None = None,
    layers: Sequence[int] | None = None,
) -> Tensor:
    """α_i = w̄_i · Σ_k c_k ∂P(γ_k w̄)/∂w_i for each layer in turn, ``[layer, unit]`` (Dai et al. 2022).

    Args:
        model: The model.
        tokens: One prompt, ``[position]``.
        target_id: The token asked for.
        hook_name: ``mlp.hook_post``, ``mlp.hook_pre``, or ``attn.hook_z`` (scores summed over ``d_head``).
        positions: Where units are read and scaled; scores are summed over them.
        target_position: Where the answer is read.
        steps: Points of the published rule: γ = linspace(0, 1, steps), weight 1/steps.
        points: Points of another rule.
        weights: Its weights.
        layers: Which layers; all by default.
    """
    clean = activations(model, tokens, hook_name)
    gamma = torch.linspace(0, 1, steps) if points is None else torch.tensor(list(points), dtype=torch.float64)
    share = torch.full((steps,), 1 / steps) if weights is None else torch.tensor(list(weights), dtype=torch.float64)
    rows = []
    for layer in range(model.cfg.n_layers) if layers is None else layers:
        value = clean[layer][list(positions)]
        column = gamma.to(value).reshape(-1, *[1] * value.dim())
        scaled = (column * value).requires_grad_(True)
        with torch.enable_grad():
            probability = probability_with_units_at(
                model,
                tokens,
                target_id,
                layer,
                scaled,
                hook_name=hook_name,
                positions=positions,
                target_position=target_position,
            )
            (gradient,) = torch.autograd.grad(probability.sum(), scaled)
        score = (value * (share.to(value).reshape(column.shape) * gradient).sum(0)).sum(0)
        rows.append(score.sum(-1) if hook_name == "attn.hook_z" else score)
    return torch.stack(rows)


def change_from_zero(
    model: Any,
    tokens: Tensor,
    target_id: int,
    *,
    hook_name: str = "mlp.hook_post",
    positions: Sequence[int] = (-1,),
    target_position: int = -1,
) -> Tensor:
    """P(w̄) − P(0) for each layer: what the scores of that layer must sum to."""
    changes = []
    with torch.no_grad():
        for layer, value in enumerate(activations(model, tokens, hook_name)):
            own = value[list(positions)]
            ends = torch.stack([own, torch.zeros_like(own)])
            reached = probability_with_units_at(
                model,
                tokens,
                target_id,
                layer,
                ends,
                hook_name=hook_name,
                positions=positions,
                target_position=target_position,
            )
            changes.append(reached[0] - reached[1])
    return torch.stack(changes)


def distribution_with_units_scaled(
    model: Any,
    tokens: Tensor,
    units: Sequence[tuple[int, int]],
    *,
    factor: float = 0.0,
    hook_name: str = "mlp.hook_post",
    positions: Sequence[int] = (-1,),
    target_position: int = -1,
) -> Tensor:
    """The distribution over the vocabulary of one prompt, ``[d_vocab]``, with units multiplied by ``factor``."""

    def scale(indices: list[int]) -> Any:
        def hook(activation: Tensor, hook: Any) -> Tensor:
            changed = activation.clone()
            for position in positions:
                for index in indices:
                    changed[:, position, index] = changed[:, position, index] * factor
            return changed

        return hook

    layers = sorted({layer for layer, _ in units})
    hooks = [(f"blocks.{layer}.{hook_name}", scale([index for at, index in units if at == layer])) for layer in layers]
    with torch.no_grad():
        logits = model.run_with_hooks(tokens[None], fwd_hooks=hooks)
    return torch.softmax(logits[0, target_position], dim=-1)


def n_sample_similarity(vectors: Tensor) -> float:
    """R₁² = (s₁² − 1)/(n − 1), with s₁ the largest singular value of the stacked unit vectors."""
    rows = vectors.flatten(1).double()
    stacked = torch.stack([row / row.norm() for row in rows])
    largest = torch.linalg.svdvals(stacked)[0]
    return float((largest**2 - 1) / (len(rows) - 1))


def search(
    values: Tensor, threshold: float = 0.2, share: float = 0.7, fewest: int = 2, most: int = 5
) -> tuple[set[tuple[int, int]], float, bool]:
    """Coarse, then refined: (units, p, whether p alternated). ``values`` is ``[prompt, layer, unit]``."""
    coarse = []
    for scores in values.tolist():
        top = max(score for row in scores for score in row)
        coarse.append(
            {
                (layer, unit)
                for layer, row in enumerate(scores)
                for unit, score in enumerate(row)
                if score > threshold * top and score > 0
            }
        )

    def kept(twentieths: int) -> set[tuple[int, int]]:
        everything = set().union(*coarse)
        return {unit for unit in everything if 20 * sum(unit in found for found in coarse) > twentieths * len(coarse)}

    def distance(twentieths: int) -> int:
        count = len(kept(twentieths))
        return max(fewest - count, count - most, 0)

    at = round(share * 20)  # p in steps of 0.05
    seen: list[int] = []
    for _ in range(21):
        count = len(kept(at))
        if fewest <= count <= most:
            return kept(at), at / 20, False
        if at in seen:
            best = min(seen, key=distance)  # the first of the closest
            return kept(best), best / 20, True
        seen.append(at)
        moved = at - 1 if count < fewest else at + 1
        if not 0 <= moved < 20:  # no unit is coarse in more than all prompts
            break
        at = moved
    return kept(at), at / 20, False
