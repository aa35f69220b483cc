"""Edits of attention heads: their rows of W_O zeroed, and their mean output put in place of it.

For a head h of a layer, with z_h its weighted values at a position and W_h its d_head rows of W_O:

    suppress:  W_h ← 0
    mean:      W_h ← 0 and b_O ← b_O + z̄_h · W_h

with z̄_h the mean of z_h over tokens: the head says at every position what it says on average, and nothing of the text
at hand. Weights change, so the edit acts at every position of every text; :func:`kn_lens.suppress` acts at chosen
positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.editing.contexts import leading_ids, sample_tokens
from kn_lens.editing.units_for_fact import UnitSearch, UnitsEdit, check_method, search_settings, units_for_fact
from kn_lens.models.hashing import weights_hash
from kn_lens.models.kind import is_masked
from kn_lens.models.stepping import target_logits
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Prompt
from kn_lens.sites import Unit

HeadMethod = Literal["mean", "suppress"]
"""``mean``: a head's output becomes its mean; ``suppress``: it becomes 0."""

TEXTS = (16, 16)
"""Texts that a causal model samples for the mean, and tokens of each."""

Heads = Float[Tensor, "head d_head"]

_MEANS: WeakKeyDictionary[Any, dict[tuple, dict[int, Heads]]] = WeakKeyDictionary()


def head_edit(
    model: Any,
    fact: Fact,
    *,
    method: str = "mean",
    heads: Sequence[Unit] | None = None,
    prompts: PromptBatch | Prompt | Iterable[Prompt] | None = None,
    search: UnitSearch | None = None,
    seed: int = 0,
) -> UnitsEdit:
    """Edit the heads that a fact's old answer hangs on, of a causal or a masked model.

    Args:
        model: A loaded model; it is left as it was: the edit is returned.
        fact: The fact; where its old answer is not known, the model's own top answer is taken and
            ``settings["old"]`` tells it.
        method: ``"mean"`` (default) or ``"suppress"``: :data:`HeadMethod`.
        heads: Heads ``(layer, index)``; by default those that the old answer hangs on are searched for.
        prompts: Search with these, which ask for the old answer, instead of the fact's template and paraphrases.
        search: Settings of the search.
        seed: Of the texts over whose tokens the mean is taken: a causal model samples :data:`TEXTS` itself; a masked
            one, which writes no text, takes all positions of the fact's prompts (``settings["mean_over"]`` tells).

    Returns:
        The edit, with the heads found, τ, and how the search ended.

    Raises:
        ModelError: If the model's weights cannot be edited.
        SettingsError: For an unknown method.
        PromptError: If the model cannot be asked the fact.
        UnitsError: If a head is not in the model, or none is found.
    """
    check_method(method, get_args(HeadMethod))
    found = units_for_fact(model, fact, "head", units=heads, prompts=prompts, search=search)
    settings: dict[str, Any] = search_settings(search, heads)
    means: dict[int, Heads] = {}
    if method == "mean":
        means, over = _means(model, found.batch, seed)
        settings |= {"mean_over": over, "seed": seed}
    rows: dict[str, Tensor] = {}
    changes: dict[str, Tensor] = {}
    size = model.cfg.d_head
    for layer, indices in found.by_layer.items():
        own = model.blocks[layer].attn.W_O.detach()[indices]  # [head, d_head, d_model]
        name = f"blocks.{layer}.attn.W_O"
        rows[name] = (torch.tensor(indices)[:, None] * size + torch.arange(size)).flatten()
        changes[name] = -own.flatten(0, 1)
        if method == "mean":
            said = torch.einsum("hd,hdm->m", means[layer][indices].to(own.device), own.double())
            rows[f"blocks.{layer}.attn.b_O"] = torch.tensor([0])
            changes[f"blocks.{layer}.attn.b_O"] = said[None].to(own.dtype)
    return found.edit(
        model, fact, what="heads", method=method, site="head", rows=rows, changes=changes, settings=settings
    )


def _means(model: Any, batch: PromptBatch, seed: int) -> tuple[dict[int, Heads], str]:
    """Mean weighted values of all heads by layer, and over what; kept while the weights stay as they are."""
    masked = is_masked(model)
    kept = _MEANS.setdefault(model, {})
    key = (weights_hash(model), batch.fingerprint() if masked else seed)
    if key not in kept:
        if masked:
            kept[key] = mean_head_values(model, batch.tokens, batch.mask)
        else:
            kept[key] = mean_head_values(model, *_own_texts(model, seed))
    over = (
        f"{int(batch.mask.sum())} positions of the fact's prompts"
        if masked
        else f"{TEXTS[0]} × {TEXTS[1]} tokens sampled from the model"
    )
    return kept[key], over


def _own_texts(model: Any, seed: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
    """Texts that the model samples, behind the BOS if it reads one, and which tokens count: all but the BOS."""
    tokens = sample_tokens(model, *TEXTS, seed=seed)
    lead = tokens.new_tensor(leading_ids(model)).expand(len(tokens), -1)
    texts = torch.cat([lead, tokens], dim=1)
    counts = torch.ones_like(texts, dtype=torch.bool)
    counts[:, : lead.shape[1]] = False
    return texts, counts


@torch.no_grad()
def mean_head_values(
    model: Any, tokens: Int[Tensor, "row position"], mask: Bool[Tensor, "row position"]
) -> dict[int, Heads]:
    """The mean of every head's weighted values over some tokens, by layer, in float64.

    Args:
        model: A model that can be stepped.
        tokens: Texts, padded on the right.
        mask: True where there is a token.
    """
    means: dict[int, Heads] = {}

    def record(layer: int) -> Callable[..., None]:
        def hook(activation: Tensor, hook: Any) -> None:
            means[layer] = activation[mask].double().mean(0)

        return hook

    layers = range(model.cfg.n_layers)
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", record(layer)) for layer in layers]):
        target_logits(model, tokens, torch.zeros(len(tokens), dtype=torch.long, device=tokens.device), mask)
    return means
