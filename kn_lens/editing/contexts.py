"""Texts that a model writes itself: the prefixes under which an edit is made, and what it reads where no corpus is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens.errors import ModelError
from kn_lens.models.hashing import weights_hash
from kn_lens.models.kind import is_masked, model_name, tokenizer_of
from kn_lens.models.tokenizer import adds_bos_itself
from kn_lens.progress import progress_bar

LENGTHS = ((5, 10), (10, 10))
"""(tokens, how many): ten prefixes of 5 tokens and ten of 10, as the published code samples them."""

_STARTS = ("The", "Therefore", "Because", "I", "You")
_TOP_K = 5  # as the published code: prefixes shall read as text
_ROWS_AT_ONCE = 64

_PREFIXES: WeakKeyDictionary[Any, dict[tuple, tuple[str, ...]]] = WeakKeyDictionary()


def sampled_prefixes(model: Any, seed: int = 0, lengths: Sequence[tuple[int, int]] = LENGTHS) -> tuple[str, ...]:
    """Short texts to put before a prompt, sampled from the model (the 5 likeliest tokens at each step).

    They are sampled once for each state of the weights, so that every edit of one model sees the same ones.

    Args:
        model: A causal model.
        seed: Of the sampling.
        lengths: (tokens, how many).

    Raises:
        ModelError: For a masked model.
    """
    kept = _PREFIXES.setdefault(model, {})
    key = (weights_hash(model), seed, tuple(lengths))
    if key not in kept:
        texts = []
        for length, count in lengths:
            # The first token is the word begun with, not a sampled one.
            tokens = sample_tokens(model, count, length + 1, seed=1000 * seed + length, top_k=_TOP_K)
            texts += [_as_sentence(model, row) for row in tokens.tolist()]
        kept[key] = tuple(texts)
    return kept[key]


@torch.no_grad()
def sample_tokens(
    model: Any, rows: int, length: int, *, seed: int = 0, top_k: int | None = None, progress: bool = False
) -> Int[Tensor, "row position"]:
    """Texts sampled by a model from itself, at temperature 1.

    Where the model's tokenizer puts a BOS before every text, it stands before these too, and is not among the tokens.

    Args:
        model: A causal model.
        rows: How many texts.
        length: Tokens of each; the first is one of a few words that begin a text.
        seed: Of the sampling; the global state of torch's generators is left alone.
        top_k: Only the likeliest tokens at each step; None all.
        progress: Show a bar over the texts.

    Raises:
        ModelError: For a masked model, which writes no text.
    """
    if is_masked(model):
        raise ModelError(
            f"{model_name(model)} is a masked model, which writes no text of its own; give texts or a file"
        )
    starts = torch.tensor(_start_tokens(model))
    first = starts[torch.arange(rows) % len(starts)][:, None]
    device = next(model.parameters()).device
    lead = torch.tensor([leading_ids(model)], dtype=torch.long)
    found = []
    with torch.random.fork_rng(), progress_bar(rows, "sample text", "text", progress) as bar:
        torch.manual_seed(seed)
        for at in range(0, rows, _ROWS_AT_ONCE):
            part = first[at : at + _ROWS_AT_ONCE].to(device)
            if length > 1:
                part = model.generate(
                    torch.cat([lead.expand(len(part), -1).to(device), part], dim=1),
                    max_new_tokens=length - 1,
                    stop_at_eos=False,
                    do_sample=True,
                    top_k=top_k,
                    return_type="tokens",
                    verbose=False,
                )[:, lead.shape[1] :]
            found.append(part)
            bar.update(len(part))
    return torch.cat(found)


def leading_ids(model: Any) -> list[int]:
    """The BOS, if the model's tokenizer puts one before every text."""
    tokenizer = tokenizer_of(model)
    return [tokenizer.bos_token_id] if adds_bos_itself(tokenizer) else []


def _start_tokens(model: Any) -> list[int]:
    """The words to begin with, as single tokens; those that the tokenizer does not know are left out."""
    tokenizer = tokenizer_of(model)
    encoded = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in _STARTS]
    known = [ids[0] for ids in encoded if len(ids) == 1 and ids[0] != tokenizer.unk_token_id]
    if known:
        return known
    ends = [tokenizer.bos_token_id, tokenizer.eos_token_id, 0]
    return [next(token for token in ends if token is not None)]


def _as_sentence(model: Any, tokens: list[int]) -> str:
    """Sampled tokens as a text that a prompt can follow."""
    text = " ".join(tokenizer_of(model).decode(tokens, skip_special_tokens=True).split())
    text = re.sub(r" (?=[.,!?])", "", text)
    return text if text.endswith((".", "!", "?")) else f"{text}."
