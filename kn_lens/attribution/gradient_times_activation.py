"""Activation × gradient: the one-point, first-order stand-in for integrated gradients.

    α_i = w̄_i · ∂P(w̄) / ∂w_i

with w̄ the units' values at the chosen positions and P the probability of the answer (Shrikumar et al. 2017).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from kn_lens.attribution.integrated_gradients import attribute_along_path, integrate_everywhere
from kn_lens.attribution.scores import AttributionScores
from kn_lens.forward import DEFAULT_MEMORY_BUDGET
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.positions import Positions
from kn_lens.prompts.prompt import Prompt


def gradient_times_activation(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    *,
    site: str = "mlp",
    positions: Positions = "target",
    memory_budget: float = DEFAULT_MEMORY_BUDGET,
    progress: bool = True,
) -> AttributionScores:
    """Attribute each prompt's answer to units by activation × gradient.

    Arguments, result and errors as in :func:`kn_lens.integrated_gradients`; the convergence delta is
    NaN, since there is no integral.
    """
    scores = attribute_along_path(
        model,
        prompts,
        partial(integrate_everywhere, points=np.array([1.0]), weights=np.array([1.0])),
        steps=1,
        method="gradient_times_activation",
        settings={"site": site, "positions": positions},
        memory_budget=memory_budget,
        progress=progress,
    )
    return replace(scores, convergence_delta=torch.full_like(scores.convergence_delta, float("nan")))
