"""Max activation: how strongly a unit is on, whatever it does to the answer. A baseline without gradients.

neurons: α_i = max over positions of w̄_i        heads: α_h = max over positions of ‖z_h‖
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from kn_lens.attribution.scores import AttributionScores
from kn_lens.forward import clean_run
from kn_lens.interventions import target_probability
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.positions import Positions, alike
from kn_lens.prompts.prompt import Prompt
from kn_lens.results import provenance
from kn_lens.sites import site_of

_PROMPTS_AT_ONCE = 64


def max_activation(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    *,
    site: str = "mlp",
    positions: Positions = "target",
    progress: bool = True,
) -> AttributionScores:
    """Score units by their largest activation at the chosen positions.

    Arguments, result and errors as in :func:`kn_lens.integrated_gradients`; targets play no part
    but for ``probability``, that of their first token. The convergence delta is NaN.
    """
    where = site_of(model, site)
    batch = as_batch(model, prompts)
    values = torch.zeros(len(batch), where.n_layers, where.n_units)
    probability = torch.zeros(len(batch))
    hooks = [where.hook(layer) for layer in range(where.n_layers)]
    with progress_bar(len(batch), f"max_activation ({site})", "prompt", progress) as bar:
        for indices, unit_positions in alike(batch, positions):
            entry = batch.resolved[indices[0]]
            for first in range(0, len(indices), _PROMPTS_AT_ONCE):
                chunk = indices[first : first + _PROMPTS_AT_ONCE]
                tokens = batch.tokens[chunk, : len(entry.ids)]
                clean = clean_run(model, tokens, target=entry.target_position, keep=hooks)
                for layer, hook in enumerate(hooks):
                    read = clean.activations[hook][:, list(unit_positions)]
                    strength = read.norm(dim=-1) if where.is_head else read
                    values[chunk, layer] = strength.amax(1).float().cpu()
                measure = target_probability(batch.target_ids[chunk])
                everyone = torch.arange(len(chunk), device=clean.logits.device)
                probability[chunk] = measure(clean.logits, everyone).float().cpu()
                bar.update(len(chunk))
    return AttributionScores(
        values=values,
        probability=probability,
        convergence_delta=torch.full((len(batch), where.n_layers), float("nan")),
        site=where.name,
        method="max_activation",
        prompts=batch.prompts,
        dropped=batch.dropped,
        settings={"site": site, "positions": positions, "starts_with_bos": batch.starts_with_bos},
        provenance=provenance(model, batch),
    )
