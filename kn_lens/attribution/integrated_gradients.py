"""Integrated gradients of an answer with respect to units (Dai et al. 2022), one layer at a time.

For a prompt x with answer y, let w̄ be the values of the units of layer l at the chosen positions and
P(ŵ) = p(y | x, units set to ŵ). Then

    α_i = w̄_i · ∫₀¹ ∂P(γ w̄) / ∂w_i dγ  ≈  w̄_i · Σ_k c_k ∂P(γ_k w̄) / ∂w_i

with all units of the layer scaled together along the path. Completeness (Sundararajan et al. 2017):
Σ_i α_i = P(w̄) − P(0); the difference is reported per layer as the convergence delta.

All layers and points of a prompt run as rows of one batch; see :mod:`kn_lens.forward`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kn_lens.attribution.quadrature import quadrature
from kn_lens.attribution.scores import AttributionScores
from kn_lens.forward import (
    DEFAULT_MEMORY_BUDGET,
    CleanRun,
    Columns,
    bytes_per_row,
    clean_run,
    frozen_weights,
    run_in_chunks,
)
from kn_lens.interventions import set_columns, target_probability
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.positions import Positions, alike
from kn_lens.prompts.prompt import Prompt
from kn_lens.results import provenance
from kn_lens.sites import Site, site_of


def integrated_gradients(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    *,
    site: str = "mlp",
    steps: int = 20,
    rule: str = "riemann",
    positions: Positions = "target",
    memory_budget: float = DEFAULT_MEMORY_BUDGET,
    progress: bool = True,
) -> AttributionScores:
    """Attribute each prompt's answer to the units of a site by integrated gradients.

    Args:
        model: A loaded model; it is left as it was.
        prompts: Prompts, or a batch from ``.prompts(model)``. Targets of several tokens are averaged
            over their tokens, teacher-forced.
        site: ``"mlp"`` (default), ``"mlp_pre"`` or ``"head"`` (scores summed over ``d_head``).
        steps: Points on the path, at least 2; 20 by default.
        rule: ``"riemann"`` (default): the published code's γ = linspace(0, 1, steps), weight 1/steps.
            Others: :mod:`kn_lens.attribution.quadrature`.
        positions: Where units are read and scaled: ``"target"`` (default), ``"cue_last"``, ``"cue"``
            or ``"all"``; scores are summed over them.
        memory_budget: Bytes that the rows of one pass may take, 1 GB by default; halved and tried
            again when memory runs out.
        progress: Show a progress bar.

    Returns:
        Scores with ``values`` of shape ``[prompt, layer, unit]``, on the CPU, in float32.

    Raises:
        SettingsError: For ``steps`` < 2, an unknown site, rule or position.
        PromptError: If the model cannot be asked one of the prompts.
    """
    points, weights = quadrature(rule, steps)
    settings = {"site": site, "steps": steps, "rule": rule, "positions": positions}
    return attribute_along_path(
        model,
        prompts,
        points,
        weights,
        method="integrated_gradients",
        settings=settings,
        memory_budget=memory_budget,
        progress=progress,
    )


def attribute_along_path(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    points: np.ndarray,
    weights: np.ndarray,
    *,
    method: str,
    settings: dict[str, Any],
    memory_budget: float,
    progress: bool,
) -> AttributionScores:
    """α_i = w̄_i · Σ_k weights_k ∂P(points_k · w̄)/∂w_i for every unit of every layer."""
    site = site_of(model, settings["site"])
    batch = as_batch(model, prompts)
    forced, owners = batch.teacher_forced()
    values = torch.zeros(len(forced), site.n_layers, site.n_units)
    delta = torch.zeros(len(forced), site.n_layers)
    probability = torch.zeros(len(forced))
    path = _Path(model, site, points, weights)
    with (
        frozen_weights(model),
        progress_bar(len(forced), f"{method} ({site.name})", "prompt", progress) as bar,
    ):
        for indices, unit_positions in alike(forced, settings["positions"]):
            span = len(forced.resolved[indices[0]].ids) - _first(forced, unit_positions)
            length = len(forced.resolved[indices[0]].ids)
            rows = memory_budget / bytes_per_row(model, span, length, gradients=True)
            columns = max(1, int(rows / site.n_layers))

            def run(chunk, unit_positions=unit_positions, columns=columns):
                found = path.integrate(forced, chunk, unit_positions, columns)
                values[chunk], probability[chunk], delta[chunk] = (entry.float().cpu() for entry in found)
                bar.update(len(chunk))

            run_in_chunks(indices, max(1, columns // len(points)), run, what="prompts")
    return AttributionScores(
        values=_mean_by_owner(values, owners, len(batch)),
        probability=_mean_by_owner(probability, owners, len(batch)),
        convergence_delta=_mean_by_owner(delta, owners, len(batch)),
        site=site.name,
        method=method,
        prompts=batch.prompts,
        dropped=batch.dropped,
        settings={**settings, "starts_with_bos": batch.starts_with_bos},
        provenance=provenance(model, batch),
    )


class _Path:
    """Gradients along the path from 0 to the units' values, for prompts of one shape."""

    def __init__(self, model: Any, site: Site, points: np.ndarray, weights: np.ndarray) -> None:
        self.model, self.site = model, site
        self.points = [float(point) for point in points]
        self.weights = [float(weight) for weight in weights]
        if 0.0 not in self.points:  # P(0) is needed for the convergence delta
            self.points, self.weights = [0.0, *self.points], [0.0, *self.weights]
        self.most_points = len(self.points)  # in one pass; lowered for good when a single prompt runs out of memory

    def integrate(
        self, batch: PromptBatch, indices: list[int], unit_positions: tuple[int, ...], columns: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores ``[prompt, layer, unit]``, clean probabilities and convergence deltas of some prompts.

        ``columns`` bounds the points taken in one pass.
        """
        entry = batch.resolved[indices[0]]
        clean = clean_run(
            self.model,
            batch.tokens[indices, : len(entry.ids)],
            target=entry.target_position,
            start=_first(batch, unit_positions),
            keep=[self.site.hook(layer) for layer in range(self.site.n_layers)],
        )
        local = [position - clean.start for position in unit_positions]
        units = [clean.activations[self.site.hook(layer)][:, local] for layer in range(self.site.n_layers)]
        measure = target_probability(batch.target_ids[indices])
        integral = [torch.zeros_like(values) for values in units]
        at_zero = clean.logits.new_zeros(len(indices), self.site.n_layers)

        def run(chunk: Sequence[tuple[float, float]]) -> None:
            points = clean.logits.new_tensor([point for point, _ in chunk])
            weights = clean.logits.new_tensor([weight for _, weight in chunk])
            reached, gradients = self._pass(clean, units, local, points, measure)
            for layer, gradient in enumerate(gradients):
                integral[layer] += torch.einsum("pk...,k->p...", gradient, weights)
            at_zero.add_((reached * (points == 0)).sum(-1))

        rule = list(zip(self.points, self.weights, strict=True))
        if len(indices) > 1:  # out of memory: the caller halves the prompts
            for first in range(0, len(rule), columns):
                run(rule[first : first + columns])
        else:
            self.most_points = run_in_chunks(rule, min(columns, self.most_points), run, what="points of a prompt")
        everyone = torch.arange(len(indices), device=clean.logits.device)
        probability = measure(clean.logits, everyone)
        scores = torch.stack(
            [self.site.per_unit((part * values).sum(1)) for part, values in zip(integral, units, strict=True)],
            1,
        )
        delta = scores.sum(-1) - (probability[:, None] - at_zero)
        return scores, probability, delta

    def _pass(
        self, clean: CleanRun, units: list[Tensor], local: list[int], points: Tensor, measure: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """P and its gradients at some points of every layer's path: ``[prompt, layer, point]``, and per layer."""
        count = len(points)
        leaves, hooks = [], []
        for layer, values in enumerate(units):
            scaled = values[:, None] * points.reshape(-1, *[1] * (values.dim() - 1))
            leaves.append(scaled.detach().requires_grad_())
            hooks.append((self.site.hook(layer), set_columns(leaves[-1], layer * count, local)))
        with torch.enable_grad():
            rows = Columns(self.model, clean, [count] * len(units), hooks)
            reached, gradients = rows.gradients(measure, leaves)
        return reached.unflatten(1, (len(units), count)), gradients


def _first(batch: PromptBatch, unit_positions: tuple[int, ...]) -> int:
    """Where copies begin to differ: masked models see every position from every other."""
    return 0 if batch.masked else unit_positions[0]


def _mean_by_owner(values: Tensor, owners: list[int], count: int) -> Tensor:
    if len(owners) == count:
        return values
    index = torch.tensor(owners)
    total = torch.zeros(count, *values.shape[1:]).index_add_(0, index, values)
    return total / torch.bincount(index, minlength=count).reshape(-1, *[1] * (values.dim() - 1))
