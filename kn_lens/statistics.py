"""Tests and intervals, by scipy; both the paper's (independent) and the right ones for paired samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, kw_only=True)
class BeforeAfter:
    """Samples before and after an intervention, compared.

    Attributes:
        mean_before, mean_after: Means.
        relative_change: (mean after − mean before) / min(mean before, mean after): the paper's bar.
        independent_p: p of the two-sample t-test (Student, as in the paper).
        paired_p: p of the paired t-test: the samples are of the same prompts.
        n: Number of pairs.
    """

    mean_before: float
    mean_after: float
    relative_change: float
    independent_p: float
    paired_p: float
    n: int


def compare_before_after(before: Float[np.ndarray, " n"], after: Float[np.ndarray, " n"]) -> BeforeAfter:
    """Compare paired samples; p is NaN for fewer than two pairs, and 1 where nothing differs."""
    from scipy import stats

    before, after = np.asarray(before, float), np.asarray(after, float)
    if not len(before):
        nan = float("nan")
        return BeforeAfter(mean_before=nan, mean_after=nan, relative_change=nan, independent_p=nan, paired_p=nan, n=0)
    mean_before, mean_after = float(before.mean()), float(after.mean())
    smaller = min(mean_before, mean_after)
    change = mean_after - mean_before
    relative = change / smaller if smaller > 0 else float(np.copysign(np.inf, change)) if change else 0.0
    independent = paired = float("nan")
    if len(before) > 1:
        if np.ptp(after - before) == 0:  # scipy would divide by a spread of 0
            paired = 1.0 if change == 0 else 0.0
        else:
            paired = float(np.asarray(stats.ttest_rel(after, before))[1])
        if np.ptp(before) == 0 and np.ptp(after) == 0:
            independent = 1.0 if change == 0 else 0.0
        else:
            independent = float(np.asarray(stats.ttest_ind(after, before))[1])
    return BeforeAfter(
        mean_before=mean_before,
        mean_after=mean_after,
        relative_change=relative,
        independent_p=independent,
        paired_p=paired,
        n=len(before),
    )


def benjamini_hochberg(p_values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """p values adjusted for the false discovery rate; NaN stays NaN and is not counted."""
    from scipy import stats

    p_values = np.asarray(p_values, float)
    adjusted = np.full_like(p_values, np.nan)
    known = ~np.isnan(p_values)
    if known.any():
        adjusted[known] = stats.false_discovery_control(p_values[known])
    return adjusted


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share; (NaN, NaN) for n = 0."""
    from scipy import stats

    if n == 0:
        return float("nan"), float("nan")
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def percentile_among(value: float, controls: Float[np.ndarray, " n"]) -> float:
    """Percent of controls below ``value``, ties counted half (scipy's "mean" kind)."""
    from scipy import stats

    return float(stats.percentileofscore(np.asarray(controls, float), value, kind="mean"))
