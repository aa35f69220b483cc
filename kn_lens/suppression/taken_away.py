"""How much an edit takes from the residual stream: the size of the output that goes missing.

An edit that changes unit u of layer l by Δv_u(p) at position p takes Δ_l(p) = Σ_u Δv_u(p) · W_u from what the layer
adds to the residual stream there, with W_u the unit's row of W_out, or the W_O of a head. Its size is

    ‖Δ‖ = √( Σ_l Σ_p ‖Δ_l(p)‖² )

of the clean run's values: what the edit itself takes away, without what later layers make of it. It is the same
for models that add their outputs to a plain stream and for those with norms behind the sum (before that norm).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kn_lens.errors import SettingsError
from kn_lens.sites import Site


def last_stream_hook(model: Any) -> str:
    """The hook of what the last block leaves, which the unembedding (or a masked model's head) reads."""
    last = model.cfg.n_layers - 1
    normalized = f"blocks.{last}.hook_normalized_resid_post"  # of blocks whose norms stand behind the sum
    return normalized if normalized in model.hook_dict else f"blocks.{last}.hook_resid_post"


def check_writes(site: str) -> None:
    """Refuse a site whose units do not write to the residual stream by themselves.

    Raises:
        SettingsError: For ``mlp_pre``.
    """
    if site == "mlp_pre":
        raise SettingsError(
            "what a unit before the non-linearity takes from the residual stream is no product with W_out; take "
            "site 'mlp' or 'head'"
        )


def norm_taken(
    model: Any,
    site: Site,
    changes: Mapping[int, Float[Tensor, "prompt position unit ..."]],
    masks: Mapping[int, Callable[[], Bool[Tensor, "prompt column unit"]]],
) -> Float[Tensor, "prompt column"]:
    """‖Δ‖ of each column.

    Args:
        model: The model.
        site: Where the units live: ``mlp`` or ``head``.
        changes: By layer, by how much the edit changes each unit at each chosen position.
        masks: By layer, which units each column edits; made when needed.
    """
    total: Tensor | float = 0.0
    for layer, change in changes.items():
        mask = masks[layer]().to(change)
        if site.is_head:
            written = torch.einsum("pshd,hdm->pshm", change, model.blocks[layer].attn.W_O)
            taken = torch.einsum("pch,pshm->pcsm", mask, written)
        else:
            taken = torch.einsum("pcu,psu->pcsu", mask, change) @ model.blocks[layer].mlp.W_out
        total = total + taken.to(torch.promote_types(taken.dtype, torch.float32)).pow(2).sum((-1, -2))
    assert isinstance(total, Tensor)
    return total.sqrt()
