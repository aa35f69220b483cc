"""Attention over a prefix that many rows share.

In a causal model, rows that differ from a prompt only from position ``start`` on all attend to the same
earlier keys and values. TransformerLens' key-value cache would copy these for every row and rotate them
again in every forward pass; here they are kept once per prompt, rotated, not expanded over grouped heads,
and meet all rows in one matrix product. Hook names, shapes and values are those of a run without a cache.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_REPLACED = ("apply_rotary", "calculate_attention_scores", "calculate_z_scores")


def can_share_prefix(model: Any) -> bool:
    """Whether a prefix can be shared: causal blocks, and no attention that depends on more than keys and values."""
    from transformer_lens import HookedTransformer

    cfg = model.cfg
    unusual = (
        cfg.positional_embedding_type not in ("standard", "rotary", "alibi")
        or getattr(cfg, "use_logn_attn", False)
        or getattr(cfg, "use_dynamic_ntk_rope", False)
        or cfg.attn_scores_soft_cap > 0
        or cfg.use_local_attn
        or getattr(cfg, "clip_qkv", None) is not None
        or (getattr(cfg, "use_qk_norm", False) and cfg.positional_embedding_type != "rotary")
    )
    return isinstance(model, HookedTransformer) and cfg.attention_dir == "causal" and not unusual


@dataclass
class PastLength:
    """Stands where TransformerLens expects cached keys and values, and appends nothing."""

    past_keys: Tensor
    frozen: bool = True

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The new keys and values alone; the prefix joins in the scores."""
        return keys, values


def prefix_hooks(model: Any) -> list[str]:
    """Names of the activations from which the prefix is taken: keys (rotated) and values of each layer."""
    rotary = model.cfg.positional_embedding_type == "rotary"
    key = "attn.hook_rot_k" if rotary else "attn.hook_k"
    return [f"blocks.{layer}.{name}" for layer in range(model.cfg.n_layers) for name in (key, "attn.hook_v")]


@contextmanager
def shared_prefix(
    model: Any,
    activations: Mapping[str, Tensor],
    start: int,
    absent: Bool[Tensor, "prompt start"] | None = None,
) -> Iterator[list[PastLength]]:
    """Within the context, rows in prompt-major order attend to the first ``start`` positions of their prompt.

    Args:
        model: A model for which :func:`can_share_prefix` holds.
        activations: The activations named by :func:`prefix_hooks`, of shape
            ``[prompt, position, kv_head, d_head]``.
        start: The first position that the rows compute themselves.
        absent: Prefixes of several lengths stand at the right of the first ``start`` positions; True on their left,
            where there is nothing. Rows then count their positions from the start of their own prefix.

    Yields:
        One entry per layer, to be given to :func:`kn_lens.models.stepping.run_block`.
    """
    names = prefix_hooks(model)
    attentions = [block.attn for block in model.blocks]
    try:
        for layer, attention in enumerate(attentions):
            keys = activations[names[2 * layer]][:, :start]
            values = activations[names[2 * layer + 1]][:, :start]
            _install(attention, keys, values, start, absent)
        yield [PastLength(past_keys=torch.empty(1, start, 1, 1)) for _ in attentions]
    finally:
        for attention in attentions:
            for name in _REPLACED:
                attention.__dict__.pop(name, None)


def _install(
    attention: Any,
    keys: Float[Tensor, "prompt start kv_head d_head"],
    values: Float[Tensor, "prompt start kv_head d_head"],
    start: int,
    absent: Bool[Tensor, "prompt start"] | None,
) -> None:
    """Let one attention layer join the prefix's keys and values with those of its rows."""
    plain_rotary = type(attention).apply_rotary
    ungrouped = attention.cfg.n_key_value_heads is None or attention.cfg.ungroup_grouped_query_attention
    prompts, _, kv_heads, d_head = keys.shape
    if attention.cfg.ungroup_grouped_query_attention:
        keys = keys.repeat_interleave(attention.cfg.n_heads // kv_heads, dim=2)[:, :, : attention.cfg.n_heads]
        values = values.repeat_interleave(attention.cfg.n_heads // kv_heads, dim=2)[:, :, : attention.cfg.n_heads]
    groups = attention.cfg.n_heads if ungrouped else kv_heads
    prefix_keys = keys.permute(0, 2, 3, 1).contiguous()  # prompt, group, d_head, start
    prefix_values = values.permute(0, 2, 1, 3).contiguous()  # prompt, group, start, d_head

    def apply_rotary(self: Any, x: Tensor, past_kv_pos_offset: int = 0, attention_mask: Any = None) -> Tensor:
        if absent is not None:  # TransformerLens counts positions from the first that its mask shows
            shown = torch.cat([~absent, absent.new_ones(prompts, x.shape[1])], dim=1)
            attention_mask = shown.long().repeat_interleave(x.shape[0] // prompts, dim=0)
        return plain_rotary(self, x, start, attention_mask)

    def calculate_attention_scores(self: Any, q: Tensor, k: Tensor) -> Tensor:
        rows, span, heads, _ = q.shape
        per_prompt, shared = rows // prompts, heads // groups
        grouped = q.reshape(prompts, per_prompt, span, groups, shared, d_head)
        packed = grouped.permute(0, 3, 1, 2, 4, 5).reshape(prompts, groups, -1, d_head)
        before = (packed @ prefix_keys).reshape(prompts, groups, per_prompt, span, shared, start)
        before = before.permute(0, 2, 1, 4, 3, 5)
        if absent is not None:
            before = before.masked_fill(absent[:, None, None, None, None], float("-inf"))
        before = before.reshape(rows, heads, span, start)
        own = torch.einsum("rqgsd,rkgd->rgsqk", q.reshape(rows, span, groups, shared, d_head), k)
        return torch.cat([before, own.reshape(rows, heads, span, span)], dim=-1) / self.attn_scale

    def calculate_z_scores(self: Any, v: Tensor, pattern: Tensor) -> Tensor:
        rows, heads, span, _ = pattern.shape
        per_prompt, shared = rows // prompts, heads // groups
        before = pattern[..., :start].reshape(prompts, per_prompt, groups, shared, span, start)
        packed = before.permute(0, 2, 1, 4, 3, 5).reshape(prompts, groups, -1, start)
        z = (packed @ prefix_values).reshape(prompts, groups, per_prompt, span, shared, d_head)
        z = z.permute(0, 2, 3, 1, 4, 5).reshape(rows, span, groups, shared, d_head)
        own = pattern[..., start:].reshape(rows, groups, shared, span, span)
        z = z + torch.einsum("rgsqk,rkgd->rqgsd", own, v)
        return self.hook_z(z.reshape(rows, span, heads, d_head))

    for method in (calculate_attention_scores, calculate_z_scores):
        setattr(attention, method.__name__, types.MethodType(method, attention))
    if attention.cfg.positional_embedding_type == "rotary":
        attention.apply_rotary = types.MethodType(apply_rotary, attention)
