"""Edits of knowledge neurons: their rows of W_out zeroed, doubled, or moved from the old answer to the new.

For a neuron i of a fact, with W_i its row of W_out:

    suppress:  W_i ← 0
    enhance:   W_i ← 2 · W_i
    value:     W_i ← W_i + s_i · (λ₂ · e(o*) − λ₁ · e(o))

with e(·) the word embedding of an answer's first token (Dai et al. 2022, for BERT, with s_i = 1). What a neuron adds
to the residual stream is its activation times its row: where the activation is negative, the published update pushes
the new answer down. So s_i is the sign of the neuron's mean activation where the fact's prompts are answered.
Short trials with capitals:

- SmolLM2-135M, whose gated MLP makes activations of both signs: of 12 facts the published update made none the top
  answer, the signed one 5, and the signed one with λ = (1, 2) 11; most other countries' answers changed too.
- The causal organism, whose units found are all positive: 20 of 20 with either λ; with (1, 2) fewer others changed.
- The masked organism, all positive too: the old answer goes and the new one does not come, at any λ.

Weights change, so the edit acts at every position of every text; :func:`kn_lens.suppress` acts at chosen positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kn_lens.editing.units_for_fact import (
    FactUnits,
    UnitSearch,
    UnitsEdit,
    check_method,
    first_tokens,
    search_settings,
    units_for_fact,
)
from kn_lens.errors import SettingsError
from kn_lens.models.kind import is_masked
from kn_lens.models.stepping import target_logits
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Prompt
from kn_lens.sites import Unit

NeuronMethod = Literal["value", "suppress", "enhance"]
"""``value``: away from the old answer's embedding, towards the new one's; ``suppress``: × 0; ``enhance``: × 2."""

LAMBDAS = {"masked": (1.0, 8.0), "causal": (1.0, 2.0)}
"""λ₁ (old answer) and λ₂ (new answer): of Dai et al. 2022 for BERT, and found better by trial on causal models."""


def neuron_edit(
    model: Any,
    fact: Fact,
    *,
    method: str = "value",
    units: Sequence[Unit] | None = None,
    lambdas: tuple[float, float] | None = None,
    signed: bool = True,
    site: str = "mlp",
    prompts: PromptBatch | Prompt | Iterable[Prompt] | None = None,
    search: UnitSearch | None = None,
) -> UnitsEdit:
    """Edit the knowledge neurons of a fact, of a causal or a masked model.

    Args:
        model: A loaded model; it is left as it was: the edit is returned.
        fact: The fact; where its old answer is not known, the model's own top answer is taken and
            ``settings["old"]`` tells it.
        method: ``"value"`` (default), ``"suppress"`` or ``"enhance"``: :data:`NeuronMethod`.
        units: Neurons ``(layer, index)``; by default the knowledge neurons of the old answer are searched for. A fact
            without paraphrases, a single prompt, leaves the search nothing to refine with, and many units.
        lambdas: λ₁ and λ₂ of the value update; by default :data:`LAMBDAS` of the kind of model.
        signed: Whether the value update follows the sign of each neuron's activation (default); False takes s_i = 1,
            as published.
        site: Where neurons are searched: ``"mlp"`` (default) or ``"mlp_pre"``; what changes is W_out either way.
        prompts: Search with these, which ask for the old answer, instead of the fact's template and paraphrases.
        search: Settings of the search.

    Returns:
        The edit, with the units found, τ, and how the search ended.

    Raises:
        ModelError: If the model's weights cannot be edited.
        SettingsError: For an unknown method or site, or λ that are no two finite numbers.
        PromptError: If the model cannot be asked the fact, or old and new answer begin with the same token (value).
        UnitsError: If a unit is not in the model, or none is found.
    """
    check_method(method, get_args(NeuronMethod))
    if site == "head":
        raise SettingsError("heads have no row of W_out; take head_edit, or site 'mlp' or 'mlp_pre'")
    kind = "masked" if is_masked(model) else "causal"
    away, towards = _check_lambdas(LAMBDAS[kind] if lambdas is None else lambdas)
    found = units_for_fact(model, fact, site, units=units, prompts=prompts, search=search)
    settings: dict[str, Any] = search_settings(search, units)
    if method == "value":
        old, new = first_tokens(model, fact, found)
        settings |= {"lambdas": [away, towards], "signed": signed}
        step = towards * model.W_E[new].detach() - away * model.W_E[old].detach()
        signs = _signs(model, found) if signed else dict.fromkeys(found.units, 1.0)
    rows: dict[str, Tensor] = {}
    changes: dict[str, Tensor] = {}
    for layer, indices in found.by_layer.items():
        current = model.blocks[layer].mlp.W_out.detach()[indices]
        name = f"blocks.{layer}.mlp.W_out"
        rows[name] = torch.tensor(indices)
        if method == "value":
            sign = torch.tensor([signs[layer, index] for index in indices]).to(current)
            changes[name] = sign[:, None] * step.to(current)
        else:
            changes[name] = -current if method == "suppress" else current.clone()
    return found.edit(
        model, fact, what="neurons", method=method, site=site, rows=rows, changes=changes, settings=settings
    )


def _check_lambdas(lambdas: Sequence[float]) -> tuple[float, float]:
    if len(lambdas) != 2 or not all(math.isfinite(value) for value in lambdas):
        raise SettingsError(f"lambdas is {lambdas}; give two numbers, λ₁ of the old answer and λ₂ of the new")
    return float(lambdas[0]), float(lambdas[1])


@torch.no_grad()
def _signs(model: Any, found: FactUnits) -> dict[Unit, float]:
    """Of each neuron's mean activation where the fact's prompts are answered; 1 where that is 0."""
    batch = found.batch
    every = torch.arange(len(batch), device=batch.tokens.device)
    means: dict[int, Tensor] = {}

    def record(layer: int) -> Callable[..., None]:
        def hook(activation: Tensor, hook: Any) -> None:
            means[layer] = activation[every, batch.target_positions].mean(0)

        return hook

    # What multiplies a row of W_out, whatever the site that the neurons were searched at.
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.mlp.hook_post", record(layer)) for layer in found.by_layer]):
        target_logits(model, batch.tokens, batch.target_positions, batch.mask)
    return {(layer, index): -1.0 if means[layer][index] < 0 else 1.0 for layer, index in found.units}
