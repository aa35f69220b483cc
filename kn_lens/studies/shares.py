"""Shares of prompts or units that come in groups, with an interval that few or like groups cannot make narrow."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from kn_lens.statistics import bootstrap_mean, wilson_interval


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval.

    Attributes:
        share: Successes of all.
        low, high: NaN where all are of one group.
        successes, n: Counts.
        groups: Groups that they come from.
    """

    share: float
    low: float
    high: float
    successes: int
    n: int
    groups: int

    def __str__(self) -> str:
        return f"{self.share:.1%}{around(self.low, self.high, '.0%')}"


def grouped_share(flags: Sequence[bool] | np.ndarray, groups: Sequence[Hashable], seed: int = 0) -> Share:
    """The share of flags that are true, with the wider of two intervals at either end.

    A bootstrap over groups knows that prompts of one group share their units; Wilson's interval over the flags knows
    that a share of 0 or 1 in few of them is no certainty, where a bootstrap sees no spread at all.

    Args:
        flags: One per prompt or unit.
        groups: The group of each.
        seed: Of the bootstrap.
    """
    values = np.asarray(flags, float)
    successes, n = int(values.sum()), len(values)
    if not n:
        nan = float("nan")
        return Share(nan, nan, nan, 0, 0, 0)
    mean, low, high = bootstrap_mean(values[:, None], clusters=groups, seed=seed)
    wilson = wilson_interval(successes, n)
    ends = (min(float(low[0]), wilson[0]), max(float(high[0]), wilson[1]))
    if np.isnan(low[0]):  # a single group says nothing of others
        ends = (float("nan"), float("nan"))
    return Share(float(mean[0]), *ends, successes, n, len(set(groups)))


def told(value: float, form: str) -> str:
    """A number in a format; what rounds to −0 is 0."""
    text = format(value, form)
    return format(0.0, form) if text.startswith("-") and not text.strip("-0.%") else text.replace("-", "−")


def around(low: float, high: float, form: str) -> str:
    """``" [0.2, 0.9]"``; nothing where there is no interval."""
    return "" if np.isnan(low) else f" [{told(low, form)}, {told(high, form)}]"


def mean_over_groups(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float, float, int]:
    """Mean of one value per group, NaN left out, its bootstrap interval over groups, and how many there are."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    mean, low, high = bootstrap_mean(known[:, None], seed=seed)
    return float(mean[0]), float(low[0]), float(high[0]), len(known)
