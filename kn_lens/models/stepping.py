"""Running a model block by block: the residual stream goes in, the residual stream comes out.

``HookedTransformer`` and ``HookedEncoder`` can be stepped; every hook of a block fires as in a whole
forward pass. ``TransformerBridge`` in TransformerLens 3.9 cannot: callers run it whole.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.models.kind import is_masked


def can_step(model: Any) -> bool:
    """Whether the blocks of ``model`` can be run one at a time."""
    from transformer_lens import HookedEncoder, HookedTransformer

    hooked = isinstance(model, (HookedTransformer, HookedEncoder))
    return hooked and model.cfg.n_devices == 1 and model.cfg.positional_embedding_type != "shortformer"


def embed(model: Any, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row position d_model"]:
    """What the first block reads."""
    if is_masked(model):
        return model.hook_full_embed(model.embed(tokens, torch.zeros_like(tokens)))
    return model(tokens, stop_at_layer=0)


def run_block(
    model: Any,
    layer: int,
    resid: Float[Tensor, "row position d_model"],
    *,
    past: Any = None,
    padding: Float[Tensor, "row 1 1 position"] | None = None,
) -> Float[Tensor, "row position d_model"]:
    """One block. Causal models take ``past``, an entry of keys and values; masked ones ``padding``, which is
    added to the attention scores: −∞ at padding (a causal model never attends to padding on its right)."""
    if is_masked(model):
        return model.blocks[layer](resid, padding)
    return model.blocks[layer](resid, past_kv_cache_entry=past)


def readout(model: Any, resid: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row position d_vocab"]:
    """Logits from what the last block wrote."""
    if is_masked(model):
        return model.unembed(model.mlm_head(resid))
    return model(resid, start_at_layer=model.cfg.n_layers)


def target_logits(
    model: Any,
    tokens: Int[Tensor, "row position"],
    targets: Int[Tensor, " target"],
    mask: Bool[Tensor, "row position"] | None = None,
    rows: Int[Tensor, " target"] | None = None,
) -> Float[Tensor, "target d_vocab"]:
    """Logits at one position of each row, padded on the right; ``mask`` is True where there is a token.

    ``rows`` names the row of each target where a row is read at several positions, or at none.
    """
    if rows is None:
        rows = torch.arange(len(tokens), device=tokens.device)
    if not can_step(model):
        extra = {} if mask is None or not is_masked(model) else {"attention_mask": mask.long()}
        return model(tokens, **extra)[rows, targets]
    resid = embed(model, tokens)
    padding = None
    if mask is not None and is_masked(model):
        padding = torch.zeros(mask.shape, dtype=resid.dtype, device=resid.device)
        padding = padding.masked_fill(~mask, float("-inf"))[:, None, None, :]
    for layer in range(model.cfg.n_layers):
        resid = run_block(model, layer, resid, padding=padding)
    return readout(model, resid[rows, targets][:, None])[:, 0]
