"""Positions of different prompts pooled into classes, so that effects can be averaged (Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

CLASSES = (
    "before the cue",
    "first cue token",
    "middle cue tokens",
    "last cue token",
    "first following token",
    "other following tokens",
    "target position",
)
"""Classes of positions, in the order of a sentence. Each position is in one: the only token of a cue is its last, and
the target position (a causal prompt's last token, a masked one's blank) is itself even where it follows the cue."""


def classes_of(length: int, cue: Sequence[int], target: int) -> list[str]:
    """The class of each position of a prompt; see :data:`CLASSES`."""
    before, first, middle, last, following, other, answer = CLASSES
    found = []
    for position in range(length):
        if position == target:
            found.append(answer)
        elif position < cue[0]:
            found.append(before)
        elif position == cue[-1]:
            found.append(last)
        elif position == cue[0]:
            found.append(first)
        elif position < cue[-1]:
            found.append(middle)
        else:
            # A masked model's blank may stand right behind the cue; what follows it is no first token then.
            found.append(following if position == cue[-1] + 1 else other)
    return found
