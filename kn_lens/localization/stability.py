"""Is what was found a property of the group, or of the prompts that happened to be drawn?"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from kn_lens.attribution.scores import AttributionScores
from kn_lens.errors import SettingsError
from kn_lens.localization.search import find_knowledge_neurons
from kn_lens.prompts.batch import PromptBatch


def split_half(prompts: AttributionScores | PromptBatch, seed: int = 0) -> tuple[list[int], list[int]]:
    """Indices of two halves of the prompts, group by group: units are found on one and tested on the other.

    A group of one prompt goes to the first half; an odd one out too.
    """
    first: list[int] = []
    second: list[int] = []
    for name, indices in prompts.groups.items():
        shuffled = list(indices)
        random.Random(f"{seed}:{name}").shuffle(shuffled)
        middle = (len(shuffled) + 1) // 2
        first += shuffled[:middle]
        second += shuffled[middle:]
    return sorted(first), sorted(second)


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Overlap of the units found in resampled prompts with each other.

    Attributes:
        mean_jaccard: Mean of |A ∩ B| / |A ∪ B| over pairs of draws.
        draws: Number of draws.
        sizes: Units found in each draw.
    """

    mean_jaccard: float
    draws: int
    sizes: tuple[int, ...]


def stability(scores: AttributionScores, *, draws: int = 50, seed: int = 0, **search: Any) -> Stability:
    """Find units in bootstrap draws of the prompts (with replacement) and compare the draws.

    Args:
        scores: Attribution of one group of prompts.
        draws: How many draws, at least 2.
        seed: Of the draws.
        **search: Settings of :func:`kn_lens.find_knowledge_neurons`.

    Raises:
        SettingsError: With fewer than two draws or prompts.
    """
    if draws < 2 or len(scores) < 2:
        raise SettingsError(f"stability needs two draws and two prompts; got {draws} and {len(scores)}")
    generator = torch.Generator().manual_seed(seed)
    sets = []
    for _ in range(draws):
        drawn = torch.randint(len(scores), (len(scores),), generator=generator).tolist()
        sets.append(set(find_knowledge_neurons(scores.select(drawn), **search).units))
    overlaps = [len(a & b) / len(a | b) if a | b else 1.0 for i, a in enumerate(sets) for b in sets[i + 1 :]]
    return Stability(mean_jaccard=sum(overlaps) / len(overlaps), draws=draws, sizes=tuple(len(entry) for entry in sets))
