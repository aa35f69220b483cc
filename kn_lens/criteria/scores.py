"""What a model answers to the questions of an edit, and what of it counts as success.

Everything is read off token ids, teacher-forced: an answer of several tokens is right if each of them is on top given
those before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.criteria.questions import Question
from kn_lens.criteria.readings import Readings, read, read_question
from kn_lens.prompts.tokens import TokenResolver

GATED = ("symmetry", "symmetry_old", "synonymy")
"""Criteria that are scored only where the unedited model passes the same probe for what it knows."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One model's answers to some questions.

    Attributes:
        target: Mean log-probability per token of each prompt's target, in nats.
        rival: The same of its rival; NaN without one.
        exact: Whether each token of the target is the most probable one.
        top: The most probable first token.
        top_words: The same as text.
        known: 1 where the model knows the question's own probe, else 0; NaN without one, or where it was not asked.
            It knows a fact whose tokens are each on top, and a pair (a probe with a foil) whose target is the likelier.
        log_probs: Log-distributions of the next token where a criterion compares them, each prompt's once.
        distribution: Which of ``log_probs`` is each question's; -1 for none.
    """

    target: Float[Tensor, " question"]
    rival: Float[Tensor, " question"]
    exact: Bool[Tensor, " question"]
    top: Int[Tensor, " question"]
    top_words: tuple[str, ...]
    known: Float[Tensor, " question"]
    log_probs: Float[Tensor, "prompt d_vocab"]
    distribution: Int[Tensor, " question"]

    def __len__(self) -> int:
        return len(self.target)

    def select(self, questions: Sequence[int]) -> Answered:
        """The answers to some of the questions."""
        at = torch.as_tensor(list(questions), dtype=torch.long)
        return Answered(
            target=self.target[at],
            rival=self.rival[at],
            exact=self.exact[at],
            top=self.top[at],
            top_words=tuple(self.top_words[index] for index in at.tolist()),
            known=self.known[at],
            log_probs=self.log_probs,
            distribution=self.distribution[at],
        )


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Success by question, before and after an edit.

    Attributes:
        exact_before, exact_after: By exact match: 1 or 0; see :func:`success`.
        likelier_before, likelier_after: By comparison with the rival: 1 or 0; NaN without one.
        known: See :class:`Answered`; of the unedited model.
        scored: Whether the question counts: all but those of :data:`GATED` criteria that the model does not know.
        kl: KL(before ‖ after) of the next token in nats, for locality; else NaN.
    """

    exact_before: Float[Tensor, " question"]
    exact_after: Float[Tensor, " question"]
    likelier_before: Float[Tensor, " question"]
    likelier_after: Float[Tensor, " question"]
    known: Float[Tensor, " question"]
    scored: Bool[Tensor, " question"]
    kl: Float[Tensor, " question"]


@torch.no_grad()
def ask(model: Any, questions: Iterable[Question], *, own: bool = False) -> Answered:
    """Ask a model some questions.

    Args:
        model: A loaded model, edited or not.
        questions: Such as it can be asked (:func:`read_question`).
        own: Ask each question's own probe too: wanted of the unedited model only. Default False.

    Raises:
        UnusablePrompt: If the model cannot be asked one of them.
    """
    asked = list(questions)
    resolver = TokenResolver(model)
    readings = [read_question(resolver, question) for question in asked]
    compared = {
        reading.prompt: None
        for reading, question in zip(readings, asked, strict=True)
        if question.criterion == "locality"
    }
    wanted = [reading.prompt for reading in readings]
    wanted += [reading.rival for reading in readings if reading.rival is not None]
    if own:
        wanted += [probe for reading in readings for probe in (reading.own, reading.own_foil) if probe is not None]
    found, log_probs = read(model, dict.fromkeys(wanted), compared)
    places = {(reading.ids, reading.position): at for at, reading in enumerate(log_probs)}
    nan = float("nan")

    def known(reading: Readings) -> float:
        if reading.own is None or not own:
            return nan
        if reading.own_foil is None:
            return float(found[reading.own].exact)
        return float(found[reading.own].log_p > found[reading.own_foil].log_p)

    tops = [found[reading.prompt].top for reading in readings]
    words = {token: _as_word(resolver.tokenizer, token) for token in set(tops)}
    return Answered(
        target=_floats(found[reading.prompt].log_p for reading in readings),
        rival=_floats(nan if reading.rival is None else found[reading.rival].log_p for reading in readings),
        exact=torch.tensor([found[reading.prompt].exact for reading in readings], dtype=torch.bool),
        top=torch.tensor(tops, dtype=torch.long),
        top_words=tuple(words[token] for token in tops),
        known=_floats(known(reading) for reading in readings),
        log_probs=torch.stack(list(log_probs.values())) if log_probs else torch.empty(0, int(model.cfg.d_vocab)),
        distribution=torch.tensor(
            [
                places[reading.prompt.ids, reading.prompt.position] if reading.prompt in compared else -1
                for reading in readings
            ],
            dtype=torch.long,
        ),
    )


def success(
    criteria: Sequence[str], before: Answered, now: Answered
) -> tuple[Float[Tensor, " question"], Float[Tensor, " question"]]:
    """What counts as success: by exact match, and by comparison with the rival (NaN without one).

    The target is the most probable answer, token by token; it is likelier per token than its rival. Two criteria
    differ. ``locality``: the most probable first token is that of ``before``, right or wrong. ``symmetry_old``: the
    target is *no longer* the answer, and there is nothing to compare.

    Args:
        criteria: Of each question.
        before: Answers of the unedited model.
        now: Answers of the model that is judged: ``before`` itself for the state before.
    """
    exact, likelier = now.exact.double(), (now.target > now.rival).double()
    likelier[now.rival.isnan()] = float("nan")
    local, old = (torch.tensor([name == wanted for name in criteria]) for wanted in ("locality", "symmetry_old"))
    exact = torch.where(local, (now.top == before.top).double(), torch.where(old, 1 - exact, exact))
    return exact, torch.where(old, torch.full_like(likelier, float("nan")), likelier)


def score(questions: Sequence[Question], before: Answered, after: Answered) -> Scored:
    """Success before and after an edit, what the unedited model knew, and how far its neighbors moved.

    Args:
        questions: Those that were asked.
        before: Answers of the unedited model, with ``own=True``.
        after: Answers of the edited one.
    """
    criteria = [question.criterion for question in questions]
    exact_before, likelier_before = success(criteria, before, before)
    exact_after, likelier_after = success(criteria, before, after)
    gated = torch.tensor([name in GATED for name in criteria], dtype=torch.bool)
    return Scored(
        exact_before=exact_before,
        exact_after=exact_after,
        likelier_before=likelier_before,
        likelier_after=likelier_after,
        known=before.known,
        scored=~gated | (before.known == 1),
        kl=kl_divergence(before, after),
    )


def kl_divergence(before: Answered, after: Answered) -> Float[Tensor, " question"]:
    """KL(before ‖ after) = Σ p (log p − log q) over the next token, in nats; NaN where it was not kept."""
    found = torch.full((len(before),), float("nan"), dtype=torch.float64)
    for at, (first, second) in enumerate(zip(before.distribution.tolist(), after.distribution.tolist(), strict=True)):
        if first >= 0 and second >= 0:
            p, q = before.log_probs[first].double(), after.log_probs[second].double()
            found[at] = torch.where(p.exp() > 0, p.exp() * (p - q), 0).sum()
    return found


def _as_word(tokenizer: Any, token: int) -> str:
    text = tokenizer.decode([token])
    return text.strip() or repr(text)


def _floats(values: Iterable[float]) -> Float[Tensor, " value"]:
    return torch.tensor(list(values), dtype=torch.float64)
