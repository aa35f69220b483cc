"""The rival that a logit difference is taken against, for prompts that name none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.prompts.batch import PromptBatch


def foil_ids(
    batch: PromptBatch,
    indices: Sequence[int],
    clean_logits: Float[Tensor, "prompt d_vocab"],
    partners: Sequence[int] | None = None,
) -> Int[Tensor, " prompt"]:
    """A prompt's own foil; else its swap partner's answer; else the runner-up of its clean run.

    Args:
        batch: The prompts.
        indices: Which of them.
        clean_logits: Of these, at the target.
        partners: For each of them, the answer to the prompt that it was swapped with; -1 where there is none.
    """
    targets = batch.target_ids[list(indices)]
    runner_up = clean_logits.scatter(1, targets[:, None], float("-inf")).argmax(1)
    own = batch.foil_ids[list(indices)]
    if partners is not None:
        other = torch.tensor(list(partners), device=own.device)
        own = torch.where((own < 0) & (other != targets), other, own)
    return torch.where(own < 0, runner_up, own)
