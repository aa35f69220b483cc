"""The search for knowledge neurons: coarse per prompt, then refined over prompts that share a target (Dai et al. 2022).

1. Coarse, per prompt: keep the units with α > t · max(α).
2. Refined, over n prompts: keep the units that are coarse in more than p · n of them; move p down by 0.05 while
   fewer than the wanted number remain and up while more do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float
from torch import Tensor

from kn_lens.attribution.scores import AttributionScores
from kn_lens.errors import SettingsError
from kn_lens.results import Result
from kn_lens.sites import Unit

if TYPE_CHECKING:
    import pandas as pd

_MOVE = 5  # percentage points: shares are counted in whole points, so that 0.7 − 0.05 + 0.05 is 0.7
_MAX_MOVES = 20


@dataclass(frozen=True, kw_only=True)
class KnowledgeNeurons(Result):
    """The units found for one group of prompts.

    Attributes:
        units: ``(layer, index)``, those coarse in most prompts first.
        share: τ, the share p of prompts at which the search ended.
        frequency: For each unit, the share of prompts in which it is coarse.
        in_range: Whether the number of units is as wanted.
        note: How the search ended if not by reaching the range, else ``""``.
        group: What the prompts share.
        site: Where the units live.
        n_prompts: How many prompts were searched.
    """

    units: tuple[Unit, ...]
    share: float
    frequency: tuple[float, ...]
    in_range: bool
    note: str
    group: str
    site: str
    n_prompts: int

    def __len__(self) -> int:
        return len(self.units)

    def to_frame(self) -> pd.DataFrame:
        """One row per unit: group, site, layer, unit, and the share of prompts it is coarse in."""
        import pandas as pd

        rows = [
            {"group": self.group, "site": self.site, "layer": layer, "unit": unit, "frequency": frequency}
            for (layer, unit), frequency in zip(self.units, self.frequency, strict=True)
        ]
        return pd.DataFrame(rows, columns=["group", "site", "layer", "unit", "frequency"])


def coarse_units(
    values: Float[Tensor, "prompt layer unit"], threshold: float = 0.2
) -> Bool[Tensor, "prompt layer unit"]:
    """Units with α > threshold · max(α) of their prompt; none where no score is above 0."""
    top = values.amax(dim=(1, 2), keepdim=True)
    return (values > threshold * top) & (values > 0)


def find_knowledge_neurons(
    scores: AttributionScores,
    *,
    threshold: float = 0.2,
    share: float = 0.7,
    count: tuple[int, int] = (2, 5),
    group: str | None = None,
) -> KnowledgeNeurons:
    """Find the units that the answer of a group of prompts hangs on.

    Args:
        scores: Attribution of prompts that share a target (the paraphrases of a fact; sentences with
            the same determiner and noun). Use ``scores.select`` for one group of many.
        threshold: t of the coarse step, 0.2 by default.
        share: p at which the refining starts, 0.7 by default.
        count: Fewest and most units wanted, (2, 5) by default.
        group: Name of the group; by default that of the prompts, or how many groups they are.

    Returns:
        The units, τ, and how the search ended. If p alternates between too few and too many units,
        the first setting seen that is closest to the range is taken, and ``note`` says so.

    Raises:
        SettingsError: For a setting out of its range.
    """
    fewest, most = check_search(threshold, share, count)
    frequency = coarse_units(scores.values, threshold).float().mean(0)
    percent, note = _refine(frequency, len(scores), round(100 * share), fewest, most)
    kept = _above(frequency, len(scores), percent)
    order = frequency[kept].argsort(descending=True, stable=True)
    places = kept.nonzero()[order]
    return KnowledgeNeurons(
        units=tuple((int(layer), int(unit)) for layer, unit in places),
        share=percent / 100,
        frequency=tuple(float(value) for value in frequency[kept][order]),
        in_range=fewest <= len(places) <= most,
        note=note,
        group=group or (next(iter(scores.groups)) if len(scores.groups) == 1 else f"{len(scores.groups)} groups"),
        site=scores.site,
        n_prompts=len(scores),
        settings={**scores.settings, "threshold": threshold, "start_share": share, "count": list(count)},
        provenance=scores.provenance,
    )


def search_groups(scores: AttributionScores, **settings: Any) -> dict[str, KnowledgeNeurons]:
    """:func:`find_knowledge_neurons` for each group of prompts in ``scores``."""
    return {
        name: find_knowledge_neurons(scores.select(indices), group=name, **settings)
        for name, indices in scores.groups.items()
    }


def check_search(threshold: float, share: float, count: tuple[int, int]) -> tuple[int, int]:
    """The wanted numbers of units, if all settings are in their range.

    Raises:
        SettingsError: Naming the first that is not.
    """
    fewest, most = count
    if not 0 < threshold < 1:
        raise SettingsError(f"threshold is {threshold}; it must lie between 0 and 1")
    if not 0 <= share < 1:
        raise SettingsError(f"share is {share}; it must be at least 0 and below 1")
    if not 1 <= fewest <= most:
        raise SettingsError(f"count is {fewest}-{most}; give fewest and most with 1 ≤ fewest ≤ most")
    return fewest, most


def _above(frequency: Tensor, prompts: int, percent: int) -> Bool[Tensor, "layer unit"]:
    """Units coarse in more than p · n prompts, counted in whole prompts (no rounding at the edge)."""
    counts = (frequency * prompts).round()
    return counts * 100 > percent * prompts


def _refine(frequency: Tensor, prompts: int, percent: int, fewest: int, most: int) -> tuple[int, str]:
    """Move p until the number of units is in range; returns p in percent and how it ended."""
    seen: dict[int, int] = {}
    for _ in range(_MAX_MOVES + 1):
        found = int(_above(frequency, prompts, percent).sum())
        if fewest <= found <= most:
            return percent, ""
        if percent in seen:
            best = min(seen, key=lambda entry: max(fewest - seen[entry], seen[entry] - most))
            return best, f"p alternates: {seen[best]} units at {best} %, the closest to {fewest}–{most}"
        seen[percent] = found
        moved = percent - _MOVE if found < fewest else percent + _MOVE
        if not 0 <= moved < 100:  # more than 100 % of the prompts is none: nothing could remain
            return percent, f"p reached {percent} % with {found} units, not {fewest}–{most}"
        percent = moved
    best = min(seen, key=lambda entry: max(fewest - seen[entry], seen[entry] - most))
    return best, f"no p within {_MAX_MOVES} moves gives {fewest}–{most} units"
