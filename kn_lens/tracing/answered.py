"""Only prompts that a model answers rightly can tell where it holds the answer; the others are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from kn_lens.errors import NothingLeft, PromptError
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.prompt import Dropped
from kn_lens.scoring import answers, target_distribution

WRONG = "answered wrongly"


def keep_answered(model: Any, batch: PromptBatch, what: str = "tracing and patching") -> PromptBatch:
    """The prompts that ``model`` answers rightly; the others join ``dropped`` with the reason :data:`WRONG`.

    Raises:
        PromptError: As :func:`rightly_answered`.
    """
    return only(batch, rightly_answered(model, batch, what), WRONG)


def only(batch: PromptBatch, kept: Sequence[int], reason: str) -> PromptBatch:
    """The prompts at ``kept``; the others join ``dropped`` with a reason."""
    if len(kept) == len(batch):
        return batch
    left = set(range(len(batch))) - set(kept)
    others = [batch.prompts[index] for index in sorted(left)]
    dropped = [Dropped(text=prompt.text, reason=reason, source=prompt.source) for prompt in others]
    return replace(batch.select(kept), dropped=(*batch.dropped, *dropped))


@torch.no_grad()
def rightly_answered(model: Any, batch: PromptBatch, what: str = "tracing and patching") -> list[int]:
    """Indices of the prompts that are answered rightly: p(good) > p(bad) of a pair, the target on top for a fact.

    ``what`` names what is asked for, in the plural.

    Raises:
        NothingLeft: If none is; with the three top answers to the first.
        PromptError: If a target is of several tokens.
    """
    for entry in batch.resolved:
        if len(entry.target_ids) > 1:
            raise PromptError(
                f"target {entry.prompt.target!r} of {entry.prompt.text!r} is {len(entry.target_ids)} tokens for "
                f"{batch.model_name}; {what} ask for one token"
            )
    right = answers(model, batch).correct.tolist()
    if not any(right):
        first = batch.select([0])
        top = target_distribution(model, first)[0].topk(3)
        shown = ", ".join(
            f"{batch.decode(int(token))!r} ({float(p):.2f})" for token, p in zip(top.indices, top.values, strict=True)
        )
        entry = batch.prompts[0]
        rival = f" rather than {entry.foil!r}" if entry.foil else ""
        raise NothingLeft(
            f"{batch.model_name} answers none of the {len(batch)} prompts rightly, so there is no answer to follow: to "
            f"{entry.text!r} it says {shown}; right would be {entry.target!r}{rival}",
            [Dropped(text=prompt.text, reason=WRONG, source=prompt.source) for prompt in batch.prompts],
        )
    return [index for index, good in enumerate(right) if good]
