"""Hook functions: what is done to an activation while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def columns_of(activation: Float[Tensor, "row span ..."], n_prompts: int) -> Float[Tensor, "prompt column span ..."]:
    """Rows in prompt-major order, seen by prompt and column."""
    return activation.unflatten(0, (n_prompts, -1))


def set_columns(
    values: Float[Tensor, "prompt column position ..."], first: int, positions: Sequence[int]
) -> Callable[..., Tensor]:
    """A hook that writes ``values`` at ``positions`` of the columns from ``first`` on.

    Gradients flow to ``values``; all other entries pass unchanged.
    """

    def hook(activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone()
        view = columns_of(changed, values.shape[0])
        for slot, position in enumerate(positions):
            view[:, first : first + values.shape[1], position] = values[:, :, slot]
        return changed

    return hook


def scale_columns(
    factors: Float[Tensor, "prompt column unit"], positions: Sequence[int] | None
) -> Callable[..., Tensor]:
    """A hook that multiplies each unit by its factor, per prompt and column.

    Args:
        factors: 1 leaves a unit alone, 0 suppresses it, 2 doubles it.
        positions: Positions within the span, or None for all.
    """

    def hook(activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone()
        view = columns_of(changed, factors.shape[0])
        factor = factors.to(changed)[:, :, None]
        factor = factor.reshape(*factor.shape, *[1] * (view.dim() - factor.dim()))
        chosen = slice(None) if positions is None else list(positions)
        view[:, :, chosen] = view[:, :, chosen] * factor
        return changed

    return hook


def target_probability(target_ids: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A measure: the probability of each row's target.

    In the logits' own precision, as the textbook loop reads it (float32's softmax over a large
    vocabulary is good to about 3e-5 of the value); half precision, which ends at 6e-8, is widened first.
    """

    def measure(logits: Tensor, owners: Tensor) -> Tensor:
        wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        return wide.softmax(-1).gather(1, target_ids[owners][:, None])[:, 0]

    return measure
