"""The path from 0 to the units' values, and the gradients of the answer along it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.forward import Columns, clean_run, run_in_chunks
from kn_lens.interventions import set_columns, target_probability
from kn_lens.prompts.batch import PromptBatch
from kn_lens.sites import Site


@dataclass
class Capacity:
    """How many points of all layers fit into one pass; lowered for good when memory runs out."""

    points: int


class UnitPath:
    """P along γ · w̄ for every layer's units, for a few prompts of one shape.

    Args:
        model: The model, its weights frozen.
        site: Where the units live.
        batch: Prompts with targets of one token.
        indices: Which of them; they must be alike (see :func:`kn_lens.prompts.positions.alike`).
        unit_positions: Where units are read and scaled.
        capacity: Bounds the points taken in one pass.
    """

    def __init__(
        self,
        model: Any,
        site: Site,
        batch: PromptBatch,
        indices: list[int],
        unit_positions: tuple[int, ...],
        capacity: Capacity,
    ) -> None:
        self.model, self.site, self.capacity = model, site, capacity
        entry = batch.resolved[indices[0]]
        hooks = [site.hook(layer) for layer in range(site.n_layers)]
        tokens = batch.tokens[indices, : len(entry.ids)]
        start = first_change(batch, unit_positions)
        self.clean = clean_run(model, tokens, target=entry.target_position, start=start, keep=hooks)
        self.local = [position - self.clean.start for position in unit_positions]
        self.units = [self.clean.activations[hook][:, self.local] for hook in hooks]
        self.measure: Callable[[Tensor, Tensor], Tensor] = target_probability(batch.target_ids[indices])
        self.n_prompts = len(indices)
        everyone = torch.arange(self.n_prompts, device=self.clean.logits.device)
        self.probability: Float[Tensor, " prompt"] = self.measure(self.clean.logits, everyone)

    def integrate(
        self, points: np.ndarray, weights: np.ndarray, layers: Sequence[int]
    ) -> tuple[Float[Tensor, "prompt layer unit"], Float[Tensor, "prompt layer"]]:
        """α = w̄ · Σ_k weights_k ∂P(points_k · w̄)/∂w, and Σα − (P(w̄) − P(0)), for some of the layers."""
        rule = list(zip(points.tolist(), weights.tolist(), strict=True))
        if 0.0 not in points:  # P(0) is needed for the convergence delta
            rule.insert(0, (0.0, 0.0))
        integral = [torch.zeros_like(self.units[layer]) for layer in layers]
        at_zero = self.clean.logits.new_zeros(self.n_prompts, len(layers))

        def run(chunk: Sequence[tuple[float, float]]) -> None:
            at = self.clean.logits.new_tensor([point for point, _ in chunk])
            weight = self.clean.logits.new_tensor([weight for _, weight in chunk])
            reached, gradients = self._pass(at, layers)
            weighted = [torch.einsum("pk...,k->p...", gradient, weight) for gradient in gradients]
            for total, part in zip(integral, weighted, strict=True):  # only now: out of memory must not count twice
                total += part
            at_zero.add_((reached * (at == 0)).sum(-1))

        if self.n_prompts > 1:  # out of memory: the caller halves the prompts
            size = max(1, self.capacity.points * self.site.n_layers // (len(layers) * self.n_prompts))
            for first in range(0, len(rule), size):
                run(rule[first : first + size])
        else:
            self.capacity.points = run_in_chunks(rule, self.capacity.points, run, what="points of a prompt")
        scores = torch.stack(
            [
                self.site.per_unit((total * self.units[layer]).sum(1))
                for total, layer in zip(integral, layers, strict=True)
            ],
            dim=1,
        )
        return scores, scores.sum(-1) - (self.probability[:, None] - at_zero)

    def _pass(
        self, points: Float[Tensor, " point"], layers: Sequence[int]
    ) -> tuple[Float[Tensor, "prompt layer point"], tuple[Tensor, ...]]:
        """P at some points of each layer's path, and its gradient with respect to the scaled units, per layer."""
        count = len(points)
        leaves, hooks = [], []
        joins = [0] * self.site.n_layers
        for slot, layer in enumerate(layers):
            values = self.units[layer]
            scaled = values[:, None] * points.reshape(-1, *[1] * (values.dim() - 1))
            leaves.append(scaled.detach().requires_grad_())
            hooks.append((self.site.hook(layer), set_columns(leaves[-1], slot * count, self.local)))
            joins[layer] = count
        with torch.enable_grad():
            rows = Columns(self.model, self.clean, joins, hooks)
            reached, gradients = rows.gradients(self.measure, leaves)
        return reached.unflatten(1, (len(layers), count)), gradients


def first_change(batch: PromptBatch, unit_positions: tuple[int, ...]) -> int:
    """Where copies begin to differ: masked models see every position from every other."""
    return 0 if batch.masked else unit_positions[0]
