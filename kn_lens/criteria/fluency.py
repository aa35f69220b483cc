"""Does an edited model still write and read well? The entropy of what it writes, its perplexity on given texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kn_lens.errors import ModelError, PromptError
from kn_lens.models.kind import is_masked, model_name
from kn_lens.models.stepping import can_step, readout
from kn_lens.prompts.tokens import TokenResolver

_POSITIONS_AT_ONCE = 128  # logits held at once: 25 MB at a vocabulary of 49,152


def ngram_entropy(texts: Sequence[Sequence[int]]) -> float:
    """How varied texts are, in bits: the mean over them of (H₂ + 2·H₃) / 3 (Zhang et al. 2018; Meng et al. 2022).

    Hₙ is the entropy of the n-grams of one text. The published weights, 2/3 for bigrams and 4/3 for trigrams with the
    mean of both taken, give the same number. A text that repeats itself has a low one. It grows with the length of the
    text, so only texts of one length are to be compared.

    Args:
        texts: Token ids of each text. Those of fewer than three tokens have no trigram and do not count; NaN if all.
    """
    found = [(_entropy(text, 2) + 2 * _entropy(text, 3)) / 3 for text in texts if len(text) >= 3]
    return float(np.mean(found)) if found else float("nan")


@torch.no_grad()
def perplexity(model: Any, texts: str | Sequence[str]) -> float:
    """exp of the mean of −log p(token | tokens before it) over all tokens of the texts but the first of each.

    A text longer than the model's context is read in windows of that length, each of which gives no p for its first.

    Args:
        model: A causal model.
        texts: Each read by itself.

    Raises:
        ModelError: For a masked model, which gives no such p.
        PromptError: If no text has two tokens.
    """
    if is_masked(model):
        raise ModelError(f"{model_name(model)} is a masked model, which has no perplexity; take a causal one")
    resolver = TokenResolver(model)
    total, count = 0.0, 0
    for text in [texts] if isinstance(texts, str) else texts:
        ids = resolver.encode(text)
        for at in range(0, len(ids), model.cfg.n_ctx):
            window = ids[at : at + model.cfg.n_ctx]
            if len(window) > 1:
                total += _loss(model, window)
                count += len(window) - 1
    if not count:
        raise PromptError("perplexity needs a text of at least two tokens; give longer ones")
    return float(np.exp(total / count))


def _entropy(tokens: Sequence[int], n: int) -> float:
    counts = Counter(tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))
    shares = np.array(list(counts.values())) / sum(counts.values())
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # + 0.0: no −0


def _loss(model: Any, ids: Sequence[int]) -> float:
    """Σ −log p of the tokens from the second on, in nats."""
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    steps = can_step(model)
    states = model(tokens, stop_at_layer=model.cfg.n_layers) if steps else model(tokens)
    total = 0.0
    for at in range(0, len(ids) - 1, _POSITIONS_AT_ONCE):
        span = slice(at, min(at + _POSITIONS_AT_ONCE, len(ids) - 1))
        logits = readout(model, states[:, span]) if steps else states[:, span]
        logits = logits if logits.dtype == torch.float64 else logits.float()  # a half rounds each −log p to 0.4 %
        asked = tokens[:, span.start + 1 : span.stop + 1]
        total -= float(logits.log_softmax(-1).gather(-1, asked[..., None]).double().sum())
    return total
