"""Answers read off a model: token ids, teacher-forced; texts that several answers share are run once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.criteria.questions import Question
from kn_lens.models.kind import is_masked
from kn_lens.models.stepping import target_logits
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.tokens import TokenResolver

_ROWS_AT_ONCE = 32
_LOGITS_AT_ONCE = 2**24  # numbers: 64 MiB in single precision


class Reading(NamedTuple):
    """Where an answer is read: the ids before it, the position that gives its first token, and its tokens."""

    ids: tuple[int, ...]
    position: int
    answer: tuple[int, ...]

    @property
    def sequence(self) -> tuple[int, ...]:
        """What the model is shown: the answer's last token is asked for, never shown."""
        return self.ids + self.answer[:-1]


class Readings(NamedTuple):
    """What is read for one question: its prompt's answer, the rival, its own probe's answer and the foil of that."""

    prompt: Reading
    rival: Reading | None
    own: Reading | None
    own_foil: Reading | None


class Found(NamedTuple):
    """The mean log-probability per token of an answer, whether each token is on top, and the first token on top."""

    log_p: float
    exact: bool
    top: int


def read_question(resolver: TokenResolver, question: Question) -> Readings:
    """The tokens of a question, its rival and its own probe.

    Raises:
        UnusablePrompt: If the model cannot be asked one of them; the reason says why.
    """
    prompt, own = replace(question.prompt, foil=None), question.own
    return Readings(
        _reading(resolver, prompt),
        None if question.rival is None else _reading(resolver, replace(prompt, target=question.rival)),
        None if own is None else _reading(resolver, replace(own, foil=None)),
        None if own is None or own.foil is None else _reading(resolver, replace(own, target=own.foil, foil=None)),
    )


def _reading(resolver: TokenResolver, prompt: Prompt) -> Reading:
    entry = resolver.resolve(prompt)
    return Reading(entry.ids, entry.target_position, entry.target_ids)


@torch.no_grad()
def read(
    model: Any, readings: Iterable[Reading], compared: Iterable[Reading]
) -> tuple[dict[Reading, Found], dict[Reading, Float[Tensor, " d_vocab"]]]:
    """Every reading's answer, and the distributions of those that are compared, one for each prompt."""
    wanted = list(readings)
    hosts = _hosts([reading.sequence for reading in wanted], merge=not is_masked(model))
    by_host: dict[tuple[int, ...], list[Reading]] = {}
    for reading in wanted:
        by_host.setdefault(hosts[reading.sequence], []).append(reading)
    kept = {(reading.ids, reading.position): reading for reading in compared}
    found: dict[Reading, Found] = {}
    log_probs: dict[Reading, Tensor] = {}
    for rows in _batches(by_host, _LOGITS_AT_ONCE // int(model.cfg.d_vocab)):
        cells: dict[tuple[int, int], int] = {}
        asked: list[tuple[Reading, list[int]]] = []
        for row, host in enumerate(rows):
            for reading in by_host[host]:
                places = [(row, reading.position + step) for step in range(len(reading.answer))]
                asked.append((reading, [cells.setdefault(place, len(cells)) for place in places]))
        logits = _cell_logits(model, rows, list(cells))
        distributions = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        at = torch.tensor([cell for _, places in asked for cell in places], device=logits.device)
        answer = torch.tensor([token for reading, _ in asked for token in reading.answer], device=logits.device)
        values, tops = distributions[at, answer].cpu(), distributions.argmax(-1).cpu()
        right, at = (tops[at.cpu()] == answer.cpu()), at.cpu()
        start = 0
        for reading, places in asked:
            span = slice(start, start + len(places))
            found[reading] = Found(float(values[span].mean()), bool(right[span].all()), int(tops[places[0]]))
            if kept.get((reading.ids, reading.position)) == reading:
                log_probs[reading] = distributions[places[0]].cpu().clone()
            start += len(places)
    return found, log_probs


def _hosts(sequences: Iterable[tuple[int, ...]], *, merge: bool) -> dict[tuple[int, ...], tuple[int, ...]]:
    """The sequence that each one is read from: with ``merge``, a longer one that begins with it, if there is one."""
    hosts: dict[tuple[int, ...], tuple[int, ...]] = {}
    host: tuple[int, ...] = ()
    for sequence in sorted(set(sequences), reverse=True):  # a text follows, in this order, those that continue it
        if not merge or host[: len(sequence)] != sequence:
            host = sequence
        hosts[sequence] = host
    return hosts


def _batches(by_host: dict[tuple[int, ...], list[Reading]], cells_at_once: int) -> Iterable[list[tuple[int, ...]]]:
    """Sequences of similar length, few enough that the logits read from them fit."""
    batch: list[tuple[int, ...]] = []
    cells = 0
    for host in sorted(by_host, key=len):
        count = sum(len(reading.answer) for reading in by_host[host])
        if batch and (len(batch) == _ROWS_AT_ONCE or cells + count > cells_at_once):
            yield batch
            batch, cells = [], 0
        batch.append(host)
        cells += count
    if batch:
        yield batch


def _cell_logits(
    model: Any, rows: list[tuple[int, ...]], cells: list[tuple[int, int]]
) -> Float[Tensor, "cell d_vocab"]:
    device = next(model.parameters()).device
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), model.tokenizer.pad_token_id or 0, dtype=torch.long)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
    at, positions = torch.tensor(cells, device=device).T
    return target_logits(model, tokens.to(device), positions, mask.to(device), rows=at)
