"""A head that is made to copy the cue: it looks from anywhere at the cue, and writes the answer that belongs to it."""

from __future__ import annotations

from typing import Any

import torch

import kn_lens as kn
from kn_lens.models.kind import is_masked
from kn_lens.prompts.tokens import TokenResolver

ANSWERS = {"France": "Paris", "Germany": "Berlin", "Spain": "Madrid", "Italy": "Rome"}
PREFIXES = ["The capital city of {} is", "They know the old language of {} and", "In the house of {} they like"]
LAYER, HEAD = 1, 2


def copying_prompts(model: Any) -> kn.PromptBatch:
    """Every text with every cue; the foil is the answer that belongs to the next cue."""
    suffix = " near the river." if is_masked(model) else ""
    words = list(ANSWERS)
    prompts = [
        kn.Prompt(
            prefix.format(word),
            suffix=suffix,
            target=ANSWERS[word],
            foil=ANSWERS[words[(index + 1) % len(words)]],
            cue=word,
            group=word,
        )
        for prefix in PREFIXES
        for index, word in enumerate(words)
    ]
    return kn.PromptBatch.from_prompts(model, prompts)


@torch.no_grad()
def plant_copying_head(model: Any, layer: int = LAYER, head: int = HEAD, *, strength: float = 2.0) -> tuple[int, int]:
    """Rewrite one head of a small random model (see :mod:`tests.helpers`) in place, and soften all others.

    A few directions of the residual stream are kept free of everything but the embeddings of the cue words: one says
    "a cue", one per word says which. The head's keys read the first, its queries are the same everywhere; its values
    read the others, its output writes what the unembedding reads as the word's answer.

    Returns:
        Its (layer, head).
    """
    resolver = TokenResolver(model)
    cues = [resolver.single_token(word) for word in ANSWERS]
    directions = _free_directions(model, 1 + len(cues))
    _soften(model)
    flag, words = directions[:, 0], directions[:, 1:]
    embed = model.embed.embed.W_E if is_masked(model) else model.embed.W_E
    for token, direction in zip(cues, words.T, strict=True):
        embed[token] += 4 * (flag + direction)
    _plain_norms(model, layer)
    attention = model.blocks[layer].attn
    key, value, bias_key, bias_value = _of_head(attention, head)
    place = model.cfg.d_head - 1  # not rotated, or by so little that it does not matter in a short prompt
    for weight in (key, value, bias_key, bias_value, attention.W_Q[head], attention.b_Q[head], attention.W_O[head]):
        weight.zero_()
    key[:, place] = flag
    attention.b_Q[head, place] = 8
    value[:, : len(cues)] = words
    for index, answer in enumerate(ANSWERS.values()):
        column = model.unembed.W_U[:, resolver.single_token(answer)] - model.unembed.W_U.mean(1)
        attention.W_O[head, index] = strength * column / column.norm()
    return layer, head


def _free_directions(model: Any, count: int) -> torch.Tensor:
    """Orthonormal directions, untouched by a norm's centering, that nothing in the model writes to any more."""
    embed = model.embed.embed.W_E if is_masked(model) else model.embed.W_E
    drawn = torch.randn(model.cfg.d_model, count, generator=torch.Generator().manual_seed(0)).to(embed)
    basis = torch.linalg.qr(drawn - drawn.mean(0))[0]
    writers = [embed]
    if is_masked(model):
        writers += [model.embed.pos_embed.W_pos, model.embed.token_type_embed.W_token_type]
    elif hasattr(model, "pos_embed"):
        writers.append(model.pos_embed.W_pos)
    for block in model.blocks:
        writers += [block.attn.W_O, block.attn.b_O, block.mlp.W_out, block.mlp.b_out]
    for writer in writers:
        writer.sub_((writer @ basis) @ basis.T)
    return basis


def _soften(model: Any) -> None:
    """The rest of the model speaks more softly, so that the answer hangs on one head."""
    for block in model.blocks:
        block.mlp.W_out.mul_(0.3)
        block.attn.W_O.mul_(0.3)
    model.unembed.W_U.mul_(4)
    if hasattr(model, "mlm_head"):  # it reads the stream as it is: gelu(x + 8) − 8 ≈ x, and its norm shifts back
        model.mlm_head.W.copy_(torch.eye(len(model.mlm_head.W)))
        model.mlm_head.b.fill_(8.0)


def _plain_norms(model: Any, layer: int) -> None:
    """What stands between the embeddings and the head scales, and does no more."""
    norms = [model.blocks[layer].ln1]
    if is_masked(model):
        norms = [model.embed.ln, *(norm for block in model.blocks[:layer] for norm in (block.ln1, block.ln2))]
    for norm in norms:
        if hasattr(norm, "w"):
            norm.w.fill_(1.0)
        if hasattr(norm, "b"):
            norm.b.zero_()


def _of_head(attention: Any, head: int) -> tuple[torch.Tensor, ...]:
    """Weights and biases of a head's keys and values; grouped heads share theirs."""
    if hasattr(attention, "_W_K"):
        group = head // attention.repeat_kv_heads
        return attention._W_K[group], attention._W_V[group], attention._b_K[group], attention._b_V[group]
    return attention.W_K[head], attention.W_V[head], attention.b_K[head], attention.b_V[head]
