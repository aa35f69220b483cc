"""What a model writes after a text, and the same before and after an edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens.editing.edit import Edit
from kn_lens.errors import ModelError, PromptError, SettingsError
from kn_lens.models.kind import is_masked, model_name, tokenizer_of
from kn_lens.prompts.tokens import TokenResolver

if TYPE_CHECKING:
    import pandas as pd

TOP_K = 5
"""Tokens that sampling draws from at each step, as in the published code: texts shall read as texts."""

_ROWS_AT_ONCE = 32


def generate(
    model: Any,
    texts: str | Sequence[str],
    *,
    tokens: int = 30,
    seed: int = 0,
    greedy: bool = True,
    top_k: int | None = TOP_K,
) -> list[str]:
    """The texts, each with what the model writes after it.

    Texts of one length in tokens are continued together; a text ends early where the model ends it.

    Args:
        model: A causal model.
        texts: What to continue.
        tokens: How many to write at most; fewer where the model's context ends.
        seed: Of the sampling; the global state of torch's generators is left alone.
        greedy: Take the likeliest token at each step; else sample at temperature 1.
        top_k: Sample only from that many likeliest tokens; None from all. Without effect if ``greedy``.

    Raises:
        ModelError: For a masked model, which writes no text.
        PromptError: If a text is empty, or fills the model's context.
        SettingsError: If ``tokens`` or ``top_k`` is below 1.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    written = continuations(model, texts, tokens=tokens, seed=seed, greedy=greedy, top_k=top_k)
    return [with_continuation(model, text, row.tolist()) for text, row in zip(texts, written, strict=True)]


def with_continuation(model: Any, text: str, ids: Sequence[int]) -> str:
    """A text and the tokens written after it, as text, up to an end mark."""
    tokenizer = tokenizer_of(model)
    if tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    # Decoded with what stands before: a token alone may lose its space, or a half of a letter.
    before = TokenResolver(model).encode(text)
    known, whole = (tokenizer.decode(part, skip_special_tokens=True) for part in (before, [*before, *ids]))
    return text + whole[len(known) :]


@torch.no_grad()
def continuations(
    model: Any,
    texts: Sequence[str],
    *,
    tokens: int,
    seed: int = 0,
    greedy: bool = True,
    top_k: int | None = TOP_K,
) -> list[Int[Tensor, " token"]]:
    """The tokens that :func:`generate` writes after each text, beyond an end mark too."""
    if is_masked(model):
        raise ModelError(f"{model_name(model)} is a masked model, which writes no text; take a causal one")
    for name, value in (("tokens", tokens), ("top_k", 1 if top_k is None else top_k)):
        if value < 1:
            raise SettingsError(f"{name} is {value}; it is a number of tokens, 1 or more")
    rows = [_encoded(model, text) for text in texts]
    by_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(index)
    device = next(model.parameters()).device
    found: dict[int, Tensor] = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for length, members in by_length.items():
            for at in range(0, len(members), _ROWS_AT_ONCE):
                part = members[at : at + _ROWS_AT_ONCE]
                written = model.generate(
                    torch.tensor([rows[index] for index in part], device=device),
                    max_new_tokens=min(tokens, model.cfg.n_ctx - length),
                    stop_at_eos=False,
                    do_sample=not greedy,
                    top_k=None if greedy or top_k is None else min(top_k, model.cfg.d_vocab),
                    return_type="tokens",
                    verbose=False,
                )
                found |= dict(zip(part, written[:, length:].cpu(), strict=True))
    return [found[index] for index in range(len(rows))]


def before_after(model: Any, edit: Edit, texts: str | Sequence[str], **options: Any) -> pd.DataFrame:
    """What the model writes before and after an edit: columns ``text``, ``before``, ``after``.

    Args:
        model: A causal model, without the edit.
        edit: The edit; the model is left without it.
        texts: What to continue.
        options: Of :func:`generate`.
    """
    import pandas as pd

    texts = [texts] if isinstance(texts, str) else list(texts)
    before = generate(model, texts, **options)
    with edit.applied(model):
        after = generate(model, texts, **options)
    return pd.DataFrame({"text": texts, "before": before, "after": after})


def _encoded(model: Any, text: str) -> list[int]:
    ids = TokenResolver(model).encode(text)
    if not ids:
        raise PromptError("a text to continue is empty; give at least one word")
    if len(ids) >= model.cfg.n_ctx:
        raise PromptError(
            f"{text[:60]!r} is {len(ids)} tokens long, and {model_name(model)} holds {model.cfg.n_ctx}: there is no "
            f"room to write after it; take a shorter text"
        )
    return ids
