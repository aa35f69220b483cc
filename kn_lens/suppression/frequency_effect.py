"""Does an edit's effect follow how often cue and target stand together? (Niu et al. 2024, the frequency figure.)

If what was edited held knowledge of grammar, rare and frequent pairs should change alike; if it held
co-occurrence, the change of log p(target) should go with the pair's count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.errors import DataError, SettingsError, near_matches
from kn_lens.frequency import PairCounts, load_counts
from kn_lens.pair_counter import Pair
from kn_lens.prompts.cue_pairs import cue_pair
from kn_lens.prompts.prompt import Prompt
from kn_lens.results import Result
from kn_lens.statistics import (
    MeanDifference,
    RankCorrelation,
    mean_difference,
    percentile_among,
    rank_correlation,
    spearman_rows,
)
from kn_lens.suppression.effect import SMALLEST, UnitEffect

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal["log_probability", "preference"]
"""``log_probability``: log p(target). ``preference``: log p(target) less that of its foil (or, of a two-prefix pair, of
the target after the other prefix): what is left of grammar once the word's own probability is taken out."""

FEWEST_PAIRS = 4
_UNKNOWN = -1


@dataclass(frozen=True, kw_only=True)
class FrequencyEffect(Result):
    """The effect of an edit on each cue-target pair, beside the pair's count. Statistics are computed when asked for.

    Attributes:
        first, second: The words of each pair, in the order of the text.
        counts: Count of each pair; -1 where it is not known.
        changes: Mean change of the measure over the pair's prompts, in nats: column 0 by the edit, the others by
            control draws.
        prompts: Prompts of each pair.
        factor: What the units were multiplied by.
        source: Of the counts.
        measure: What changed: see :data:`Measure`.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    counts: Int[Tensor, " pair"]
    changes: Float[Tensor, "pair column"]
    prompts: Int[Tensor, " pair"]
    factor: float
    source: str
    measure: str = "log_probability"

    def __len__(self) -> int:
        return len(self.first)

    @property
    def change(self) -> Float[np.ndarray, " pair"]:
        """By the edit, in nats."""
        return self.changes[:, 0].numpy()

    @property
    def seen(self) -> Bool[np.ndarray, " pair"]:
        """Pairs with a count above 0."""
        return self.counts.numpy() > 0

    @property
    def strata(self) -> tuple[str, ...]:
        """Of each pair, the word of the side that has fewer different ones: determiners for determiner-noun pairs."""
        return self.first if len(set(self.first)) <= len(set(self.second)) else self.second

    @property
    def halves(self) -> np.ndarray:
        """``"rare"`` up to the median count of the pairs seen, ``"frequent"`` above it, else ``"unseen"``."""
        counts, seen = self.counts.numpy(), self.seen
        median = np.median(counts[seen])
        frequent = counts > median if (counts > median).any() else counts >= median  # more than half have the highest
        return np.where(~seen, "unseen", np.where(frequent, "frequent", "rare"))

    @cached_property
    def overall(self) -> RankCorrelation:
        """Spearman's ρ of change and count, over the pairs seen."""
        return self._correlation(self.seen)

    @cached_property
    def with_unseen(self) -> RankCorrelation:
        """The same with unseen pairs as count 0, which a table that was cut off does not say of them."""
        return self._correlation(np.ones(len(self), bool))

    @cached_property
    def within(self) -> RankCorrelation:
        """The same over the pairs seen, within each word of :attr:`strata`: without the words' own levels."""
        return self._correlation(self.seen, np.array(self.strata))

    @cached_property
    def rare_less_frequent(self) -> MeanDifference:
        """Mean change of rare pairs less that of frequent ones, in nats."""
        rare, frequent = (self.change[self.halves == half] for half in ("rare", "frequent"))
        return mean_difference(rare, frequent, **self._draws)

    @property
    def _draws(self) -> dict[str, Any]:
        return {name: self.settings[name] for name in ("seed", "draws", "confidence")}

    def _correlation(self, rows: np.ndarray, strata: np.ndarray | None = None) -> RankCorrelation:
        counts = self.counts.clamp_min(0).numpy()[rows]
        labels = None if strata is None else np.unique(strata[rows], return_inverse=True)[1]
        return rank_correlation(counts, self.change[rows], strata=labels, **self._draws)

    def to_frame(self) -> pd.DataFrame:
        """One row per pair: words, count (empty if not known), half, prompts, and the measure's change in nats."""
        import pandas as pd

        counts = pd.array([count if count >= 0 else None for count in self.counts.tolist()], dtype="Int64")
        return pd.DataFrame(
            {
                "first": self.first,
                "second": self.second,
                "count": counts,
                "half": self.halves.tolist(),
                "prompts": self.prompts.numpy(),
                f"{self.measure}_change": self.change,
            }
        )

    def summary(self) -> dict[str, Any]:
        """Coverage; ρ of the pairs seen, within words, and with unseen ones as 0; and rare beside frequent pairs."""
        halves = self.halves
        row: dict[str, Any] = {
            "pairs": len(self),
            "prompts": int(self.prompts.sum()),
            "seen": int(self.seen.sum()),
            "unseen": int((~self.seen).sum()),
            "unknown": int((self.counts == _UNKNOWN).sum()),
        }
        for name, found in (("rho", self.overall), ("rho_within", self.within), ("rho_with_unseen", self.with_unseen)):
            row |= {
                name: found.rho,
                f"{name}_low": found.low,
                f"{name}_high": found.high,
                f"{name}_p": found.p,
                f"{name}_detectable": found.detectable,
            }
        if self.changes.shape[1] > 1:
            controls = spearman_rows(self.counts.numpy()[self.seen], self.changes[self.seen, 1:].numpy().T)
            controls = controls[~np.isnan(controls)]
            if len(controls):
                row["control_rho"] = float(controls.mean())
                row["percentile_rho"] = percentile_among(self.overall.rho, controls)
        row["rare_to_count"] = int(self.counts.numpy()[halves == "rare"].max())
        for half in ("rare", "frequent", "unseen"):
            values = self.change[halves == half]
            row |= {
                f"pairs_{half}": len(values),
                f"change_{half}": float(values.mean()) if len(values) else float("nan"),
            }
        found = self.rare_less_frequent
        return row | {
            "difference": found.difference,
            "difference_low": found.low,
            "difference_high": found.high,
            "difference_error": found.error,
            "difference_detectable": found.detectable,
        }

    def sentence(self) -> str:
        """The finding, computed from the numbers, whichever way they came out."""
        from kn_lens.suppression.frequency_finding import finding

        return finding(self)


def _measured(effect: UnitEffect, measure: str) -> Float[Tensor, "prompt column"]:
    if measure not in get_args(Measure):
        known = get_args(Measure)
        raise SettingsError(f"no measure {measure!r}.{near_matches(measure, known)} Measures: {', '.join(known)}")
    logs = effect.log_target
    if measure == "log_probability":
        return logs
    against = torch.where(effect.foil.isnan(), effect.rival, effect.foil)
    if against.isnan().any():
        raise SettingsError("a prompt has neither foil nor rival prefix, and so no preference; take log_probability")
    return logs - against.double().clamp_min(SMALLEST).log()


def pairs_with_counts(prompts: Iterable[Prompt], counts: PairCounts) -> list[Pair]:
    """The cue-target pair of each prompt, if enough of them have counts to compare.

    Raises:
        PromptError: If a prompt has no cue.
        DataError: If fewer than four pairs are seen, or all have the same count.
    """
    pairs = [cue_pair(prompt) for prompt in prompts]
    coverage = counts.coverage(pairs)
    if coverage.seen < FEWEST_PAIRS:
        example = f", not {' '.join(coverage.unseen[0])!r}" if coverage.unseen else ""
        raise DataError(
            f"{counts.source} holds {coverage.seen} of the {coverage.asked} pairs of cue and target{example}; "
            f"{FEWEST_PAIRS} are needed: count them in more text, or within more words (window, now {counts.window})"
        )
    found = {counts.of(*pair) for pair in pairs} - {None, 0}
    if len(found) == 1:
        raise DataError(
            f"all {coverage.seen} pairs that {counts.source} holds have the same count, {found.pop()}: "
            f"nothing tells rare from frequent ones"
        )
    return pairs


def load_counts_of(prompts: Iterable[Prompt], source: str, window: int | None = None) -> PairCounts:
    """Counts of the prompts' pairs, checked to be enough of them before anything is edited.

    Raises:
        PromptError, DataError, SettingsError: As :func:`kn_lens.load_counts` and :func:`frequency_effect`.
    """
    prompts = tuple(prompts)
    counts = load_counts(source, [cue_pair(prompt) for prompt in prompts], window)
    pairs_with_counts(prompts, counts)
    return counts


def frequency_effect(
    effect: UnitEffect,
    counts: PairCounts,
    *,
    measure: Measure = "log_probability",
    seed: int = 0,
    draws: int = 2000,
    confidence: float = 0.95,
) -> FrequencyEffect:
    """Relate the change of log p(target), or of the preference for it, to the count of cue and target.

    The pair is (cue, target) where the cue stands before the blank, else (target, cue). The change, in nats, is
    averaged over the prompts of a pair. ``effect.where(…)`` chooses prompts.

    Args:
        effect: From :func:`kn_lens.suppress`.
        counts: From :func:`kn_lens.load_counts` or :func:`kn_lens.count_pairs`.
        measure: ``"log_probability"`` (default) or ``"preference"``; see :data:`Measure`.
        seed: Of the draws.
        draws: Bootstrap samples over pairs, and permutations.
        confidence: Of the intervals.

    Raises:
        PromptError: If a prompt has no cue.
        DataError: If fewer than four pairs are seen, or all have the same count.
        SettingsError: For less than one draw, a confidence outside 0 to 1, an unknown measure, or the preference of
            prompts that have neither foil nor rival prefix.
    """
    if draws < 1:
        raise SettingsError(f"draws is {draws}; give 1 or more, 2000 by default")
    if not 0 < confidence < 1:
        raise SettingsError(f"confidence is {confidence}; give a share between 0 and 1, 0.95 by default")
    logs = _measured(effect, measure)
    by_prompt = pairs_with_counts(effect.prompts, counts)
    n_prompts = Counter(by_prompt)
    pairs = list(n_prompts)
    row_of = {pair: row for row, pair in enumerate(pairs)}
    rows = torch.tensor([row_of[pair] for pair in by_prompt])
    sizes = torch.tensor([n_prompts[pair] for pair in pairs])
    sums = torch.zeros(len(pairs), logs.shape[1] - 1, dtype=torch.float64)
    sums.index_add_(0, rows, logs[:, 1:] - logs[:, :1])
    found = [counts.of(*pair) for pair in pairs]
    return FrequencyEffect(
        first=tuple(first for first, _ in pairs),
        second=tuple(second for _, second in pairs),
        counts=torch.tensor([_UNKNOWN if count is None else count for count in found]),
        changes=sums / sizes[:, None],
        prompts=sizes,
        factor=effect.factor,
        source=counts.source,
        measure=measure,
        settings={
            "seed": seed,
            "draws": draws,
            "confidence": confidence,
            "counts": {
                "window": counts.window,
                "sha256": counts.sha256,
                "tokens": counts.tokens,
                "closed": counts.closed,
            },
            "edit": effect.settings,
        },
        provenance=effect.provenance,
    )
