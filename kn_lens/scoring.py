"""What a model answers: its top token and the probabilities of target, foil and rival, prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.errors import PromptError
from kn_lens.models.kind import is_masked, model_name
from kn_lens.models.stepping import target_logits
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.tokens import TokenResolver

_PROMPTS_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers to a batch of prompts.

    Attributes:
        top: The most probable token.
        target: Probability of the target's first token.
        foil: Probability of the foil; NaN without one.
        rival: For two-prefix pairs, probability of the target after the other prefix; else NaN.
        target_is_top: Whether the target is the most probable token.
    """

    top: Int[Tensor, " prompt"]
    target: Float[Tensor, " prompt"]
    foil: Float[Tensor, " prompt"]
    rival: Float[Tensor, " prompt"]
    target_is_top: Bool[Tensor, " prompt"]

    @property
    def correct(self) -> Bool[Tensor, " prompt"]:
        """p(good) > p(bad) where there is a foil or a rival prefix, else whether the target is on top."""
        return correct_answers(self.target_is_top, self.target, self.foil, self.rival)


def correct_answers(
    is_top: Bool[Tensor, ...],
    target: Float[Tensor, ...],
    foil: Float[Tensor, ...],
    rival: Float[Tensor, ...],
) -> Bool[Tensor, ...]:
    """Right answers: against the foil, else against the rival prefix, else by being on top."""
    against = torch.where(foil.isnan(), rival, foil)
    return torch.where(against.isnan(), is_top, target > against)


@torch.no_grad()
def answers(model: Any, prompts: PromptBatch | Prompt | Iterable[Prompt]) -> Answers:
    """Ask ``model`` all prompts; padded and single prompts give the same numbers.

    A target of several tokens is judged by its first.
    """
    batch = as_batch(model, prompts)
    probabilities = target_distribution(model, batch)
    target = probabilities.gather(1, batch.target_ids[:, None])[:, 0]
    nan = torch.full_like(target, float("nan"))
    foil = torch.where(batch.foil_ids >= 0, probabilities.gather(1, batch.foil_ids.clamp_min(0)[:, None])[:, 0], nan)
    rival = nan if batch.rivals is None else answers(model, batch.rivals).target.to(target.device)
    top = probabilities.argmax(-1)
    return Answers(
        top=top.cpu(),
        target=target.cpu(),
        foil=foil.cpu(),
        rival=rival.cpu(),
        target_is_top=(top == batch.target_ids).cpu(),
    )


@torch.no_grad()
def target_distribution(model: Any, batch: PromptBatch) -> Float[Tensor, "prompt d_vocab"]:
    """The distribution over the vocabulary at each prompt's target position."""
    found = []
    for first in range(0, len(batch), _PROMPTS_AT_ONCE):
        rows = slice(first, first + _PROMPTS_AT_ONCE)
        logits = target_logits(model, batch.tokens[rows], batch.target_positions[rows], batch.mask[rows])
        found.append(logits.softmax(-1))
    return torch.cat(found)


def accuracy(model: Any, data: PromptBatch | MinimalPairs | Iterable[Prompt]) -> float:
    """Share of right answers: p(good) > p(bad) for pairs, top-1 for facts.

    Minimal pairs of the form ``sentence`` are judged by whole-sentence log-probability (causal models).

    Raises:
        PromptError: If the model cannot be asked.
    """
    if isinstance(data, MinimalPairs):
        whole = [pair for pair in data.pairs if pair.form == "sentence"]
        if whole and not is_masked(model):
            rest = MinimalPairs(name=data.name, pairs=tuple(p for p in data.pairs if p.form != "sentence"))
            right = [
                sentence_log_probability(model, pair.sentence_good) > sentence_log_probability(model, pair.sentence_bad)
                for pair in whole
            ]
            if rest.pairs:
                right += answers(model, rest.prompts(model)).correct.tolist()
            return sum(right) / len(right)
        data = data.prompts(model)
    return float(answers(model, data).correct.float().mean())


@torch.no_grad()
def sentence_log_probability(model: Any, sentence: str) -> float:
    """Σ log p(token | tokens before it), in nats, from the second token on (from the first with a BOS).

    Raises:
        PromptError: For a masked model, which has no such probability.
    """
    if is_masked(model):
        raise PromptError(f"{model_name(model)} is a masked model and gives no sentence probability")
    ids = TokenResolver(model).encode(sentence)
    tokens = torch.tensor([ids], device=next(model.parameters()).device)
    log_probabilities = model(tokens)[0, :-1].log_softmax(-1)
    return float(log_probabilities.gather(1, tokens[0, 1:, None]).sum())
