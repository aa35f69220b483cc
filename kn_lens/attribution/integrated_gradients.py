"""Integrated gradients of an answer with respect to units (Dai et al. 2022), one layer at a time.

For a prompt x with answer y, let w̄ be the values of the units of layer l at the chosen positions and
P(ŵ) = p(y | x, units set to ŵ). Then

    α_i = w̄_i · ∫₀¹ ∂P(γ w̄) / ∂w_i dγ  ≈  w̄_i · Σ_k c_k ∂P(γ_k w̄) / ∂w_i

with all units of the layer scaled together along the path. Completeness (Sundararajan et al. 2017):
Σ_i α_i = P(w̄) − P(0); the difference is reported per layer as the convergence delta.

All layers and points of a prompt run as rows of one batch; see :mod:`kn_lens.forward`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kn_lens.attribution.path import Capacity, UnitPath, first_change
from kn_lens.attribution.quadrature import ADAPTIVE, check_steps, quadrature
from kn_lens.attribution.scores import AttributionScores
from kn_lens.errors import SettingsError
from kn_lens.forward import DEFAULT_MEMORY_BUDGET, bytes_per_row, frozen_weights, run_in_chunks
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.positions import Positions, alike
from kn_lens.prompts.prompt import Prompt
from kn_lens.results import provenance
from kn_lens.sites import site_of

log = logging.getLogger(__name__)

_MOST_REFINEMENT = 32  # times the points of the first pass


def integrated_gradients(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    *,
    site: str = "mlp",
    steps: int = 20,
    rule: str = "riemann",
    tolerance: float = 1e-3,
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
            ``"adaptive"``: close to the converged integral at the least cost; ``steps`` points (8 are enough) by
            Gauss-Legendre, doubled in those layers only that have not converged. Others:
            :mod:`kn_lens.attribution.quadrature`.
        tolerance: Of the adaptive rule: a layer is refined until its convergence delta, relative to P(w̄) or
            to |Σα|, is below it (at most to 32 · ``steps`` points; what has not converged then is logged).
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
    settings = {"site": site, "steps": steps, "rule": rule, "positions": positions}
    if rule == ADAPTIVE:
        check_steps(steps)
        if not tolerance > 0:
            raise SettingsError(f"tolerance is {tolerance}; it must be above 0")
        settings["tolerance"] = tolerance
        integrate = partial(integrate_adaptively, steps=steps, tolerance=tolerance)
    else:
        points, weights = quadrature(rule, steps)
        integrate = partial(integrate_everywhere, points=points, weights=weights)
    return attribute_along_path(
        model,
        prompts,
        integrate,
        steps=steps,
        method="integrated_gradients",
        settings=settings,
        memory_budget=memory_budget,
        progress=progress,
    )


Integral = Callable[[UnitPath], tuple[Tensor, Tensor]]
"""From a path to scores ``[prompt, layer, unit]`` and convergence deltas ``[prompt, layer]``."""


def integrate_everywhere(path: UnitPath, points: np.ndarray, weights: np.ndarray) -> tuple[Tensor, Tensor]:
    """One rule for all layers."""
    return path.integrate(points, weights, range(path.site.n_layers))


def integrate_adaptively(path: UnitPath, steps: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre with ``steps`` points; twice as many again in the layers whose delta is above the tolerance.

    Most layers' paths are smooth, and a few points integrate them to rounding; a few bend sharply (in SmolLM2 the
    first layer, whose output is large beside what it is added to) and want hundreds.
    """
    scores, delta = path.integrate(*quadrature("gauss_legendre", steps), range(path.site.n_layers))
    count = steps
    while (wanting := _unconverged(path, scores, delta, tolerance)).any():
        rough = wanting.any(0).nonzero().flatten().tolist()
        if count >= steps * _MOST_REFINEMENT:
            log.warning("layers %s have not converged with %d points; see convergence_delta", rough, count)
            break
        count *= 2
        finer, finer_delta = path.integrate(*quadrature("gauss_legendre", count), rough)
        # Prompts that have converged keep what they have: a score must not depend on the company of its prompt.
        scores[:, rough] = torch.where(wanting[:, rough, None], finer, scores[:, rough])
        delta[:, rough] = torch.where(wanting[:, rough], finer_delta, delta[:, rough])
    return scores, delta


def _unconverged(path: UnitPath, scores: Tensor, delta: Tensor, tolerance: float) -> Tensor:
    """Where the delta is above the tolerance, relative to P(w̄) or to |Σα|, whichever is larger: ``[prompt, layer]``."""
    scale = torch.maximum(path.probability[:, None], scores.sum(-1).abs())
    return delta.abs() > tolerance * scale


def attribute_along_path(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    integrate: Integral,
    *,
    steps: int,
    method: str,
    settings: dict[str, Any],
    memory_budget: float,
    progress: bool,
) -> AttributionScores:
    """Scores of every prompt by an integral along the path; ``steps`` is its number of points, to plan for memory."""
    site = site_of(model, settings["site"])
    batch = as_batch(model, prompts)
    forced, owners = batch.teacher_forced()
    values = torch.zeros(len(forced), site.n_layers, site.n_units)
    delta = torch.zeros(len(forced), site.n_layers)
    probability = torch.zeros(len(forced))
    capacity = Capacity(sys.maxsize)  # lower for longer prompts, which come later, and when memory runs out
    with frozen_weights(model), progress_bar(len(forced), f"{method} ({site.name})", "prompt", progress) as bar:
        for indices, unit_positions in alike(forced, settings["positions"]):
            length = len(forced.resolved[indices[0]].ids)
            row = bytes_per_row(model, length - first_change(forced, unit_positions), length, gradients=True)
            fitting = max(1, int(memory_budget / row / site.n_layers))
            capacity.points = min(capacity.points, fitting)

            def run(chunk, unit_positions=unit_positions):
                path = UnitPath(model, site, forced, list(chunk), unit_positions, capacity)
                values[chunk], delta[chunk] = (found.float().cpu() for found in integrate(path))
                probability[chunk] = path.probability.float().cpu()
                bar.update(len(chunk))

            run_in_chunks(indices, max(1, fitting // (steps + 1)), run, what="prompts")  # + 1: the point 0
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


def _mean_by_owner(values: Tensor, owners: list[int], count: int) -> Tensor:
    if len(owners) == count:
        return values
    index = torch.tensor(owners)
    total = torch.zeros(count, *values.shape[1:]).index_add_(0, index, values)
    return total / torch.bincount(index, minlength=count).reshape(-1, *[1] * (values.dim() - 1))
