"""Only prompts that a model answers rightly can tell where it holds the answer; the others are counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from kn_lens.errors import PromptError
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.prompt import Dropped
from kn_lens.scoring import answers, target_distribution

WRONG = "answered wrongly"


@torch.no_grad()
def keep_answered(model: Any, batch: PromptBatch) -> PromptBatch:
    """The prompts that ``model`` answers rightly: p(good) > p(bad) of a pair, the target on top for a fact.

    The others join ``dropped`` with the reason :data:`WRONG`.

    Raises:
        PromptError: If none is; with the three top answers to the first. Or if a target is of several tokens.
    """
    for entry in batch.resolved:
        if len(entry.target_ids) > 1:
            raise PromptError(
                f"target {entry.prompt.target!r} of {entry.prompt.text!r} is {len(entry.target_ids)} tokens for "
                f"{batch.model_name}; tracing and patching ask for one token"
            )
    right = answers(model, batch).correct.tolist()
    if all(right):
        return batch
    if not any(right):
        first = batch.select([0])
        top = target_distribution(model, first)[0].topk(3)
        shown = ", ".join(
            f"{batch.decode(int(token))!r} ({float(p):.2f})" for token, p in zip(top.indices, top.values, strict=True)
        )
        entry = batch.prompts[0]
        rival = f" rather than {entry.foil!r}" if entry.foil else ""
        raise PromptError(
            f"{batch.model_name} answers none of the {len(batch)} prompts rightly, so there is no answer to trace: to "
            f"{entry.text!r} it says {shown}; right would be {entry.target!r}{rival}"
        )
    wrong = [
        Dropped(text=prompt.text, reason=WRONG, source=prompt.source)
        for prompt, good in zip(batch.prompts, right, strict=True)
        if not good
    ]
    kept = batch.select([index for index, good in enumerate(right) if good])
    return replace(kept, dropped=(*batch.dropped, *wrong))
