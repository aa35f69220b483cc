"""Tests and intervals, by scipy; both the paper's (independent) and the right ones for paired samples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

_CHUNK = 256
"""Draws at a time."""


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


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Spearman's ρ with what is needed to judge it.

    Attributes:
        rho: NaN where one side is constant.
        low, high: Percentile bootstrap interval over the pairs of values.
        p: Two-sided permutation test of ρ = 0.
        n: Pairs of values.
        detectable: Smallest |ρ| found with 80 % power; see :func:`detectable_rho`.
    """

    rho: float
    low: float
    high: float
    p: float
    n: int
    detectable: float


def rank_correlation(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    *,
    strata: Int[np.ndarray, " n"] | None = None,
    seed: int = 0,
    draws: int = 2000,
    confidence: float = 0.95,
) -> RankCorrelation:
    """Spearman's ρ, its bootstrap interval and its permutation test.

    With ``strata``, values are ranked within each, and the ranks (less their mean, over the size of the stratum)
    are correlated over all of them: what is left of ρ once the strata's own levels are taken out. Values are
    resampled and permuted within strata too.

    Args:
        x: Values; ties share their mean rank.
        y: As many others.
        strata: A label for each pair of values; by default all are of one.
        seed: Of the draws.
        draws: Bootstrap samples, and permutations.
        confidence: Of the interval and of the test in ``detectable``.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    labels = np.zeros(len(x), int) if strata is None else np.asarray(strata)
    generator = np.random.default_rng(seed)
    observed, resampled, permuted = np.zeros((3, 1)), np.zeros((3, draws)), np.zeros((3, draws))
    for label in dict.fromkeys(labels.tolist()):
        rows = np.flatnonzero(labels == label)
        observed += _rank_products(x[None, rows], y[None, rows])
        for start in range(0, draws, _CHUNK):  # bounded memory, whatever n and draws
            part = slice(start, min(start + _CHUNK, draws))
            some = generator.choice(rows, (part.stop - start, len(rows)))
            resampled[:, part] += _rank_products(x[some], y[some])
            shuffled = generator.permuted(np.tile(y[rows], (part.stop - start, 1)), axis=1)
            permuted[:, part] += _rank_products(x[None, rows], shuffled)
    rho = float(_correlation(observed)[0])
    low, high = quantile_interval(_correlation(resampled), confidence)
    beyond = np.abs(_correlation(permuted)) >= abs(rho) - 1e-12
    return RankCorrelation(
        rho=rho,
        low=low,
        high=high,
        p=float("nan") if np.isnan(rho) else float((1 + beyond.sum()) / (1 + draws)),
        n=len(x),
        detectable=detectable_rho(len(x) - len(set(labels.tolist())) + 1, confidence),
    )


def spearman_rows(x: Float[np.ndarray, " n"], rows: Float[np.ndarray, "row n"]) -> Float[np.ndarray, " row"]:
    """Spearman's ρ of ``x`` with each row; NaN where one is constant."""
    return _correlation(_rank_products(np.asarray(x, float)[None], np.asarray(rows, float)))


def detectable_rho(n: int, confidence: float = 0.95, power: float = 0.8) -> float:
    """Smallest |ρ| that ``n`` pairs of values show with this power: tanh((z_conf + z_power) · √(1.06 / (n − 3))).

    Fisher's z with the variance that ranks have (Fieller, Hartley and Pearson 1957); 1 for n ≤ 3.
    """
    return float(np.tanh(_z_sum(confidence, power) * np.sqrt(1.06 / (n - 3)))) if n > 3 else 1.0


@dataclass(frozen=True, kw_only=True)
class MeanDifference:
    """Two means compared.

    Attributes:
        difference: First mean − second mean.
        low, high: Percentile bootstrap interval, each sample resampled by itself.
        error: Standard error, √(s₁²/n₁ + s₂²/n₂).
        detectable: Smallest difference found with 80 % power, (z_conf + z_power) · error.
    """

    difference: float
    low: float
    high: float
    error: float
    detectable: float


def mean_difference(
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " m"],
    *,
    seed: int = 0,
    draws: int = 2000,
    confidence: float = 0.95,
) -> MeanDifference:
    """The difference of two independent samples' means; interval and error are NaN if a sample has one value."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    difference = float(first.mean() - second.mean()) if len(first) and len(second) else float("nan")
    if min(len(first), len(second)) < 2:
        nan = float("nan")
        return MeanDifference(difference=difference, low=nan, high=nan, error=nan, detectable=nan)
    generator = np.random.default_rng(seed)
    means = []
    for values in (first, second):
        chunks = [min(_CHUNK, draws - start) for start in range(0, draws, _CHUNK)]
        means.append(np.concatenate([generator.choice(values, (rows, len(values))).mean(1) for rows in chunks]))
    low, high = quantile_interval(means[0] - means[1], confidence)
    error = float(np.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second)))
    return MeanDifference(
        difference=difference, low=low, high=high, error=error, detectable=_z_sum(confidence, 0.8) * error
    )


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The mean difference of paired samples: its t interval and the p of the paired t-test."""

    difference: float
    low: float
    high: float
    p: float


def paired_difference(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"], confidence: float = 0.95
) -> PairedDifference:
    """Mean of first − second; without spread the interval is the difference itself, of one pair it is NaN."""
    from scipy import stats

    differences = np.asarray(first, float) - np.asarray(second, float)
    mean = float(differences.mean()) if len(differences) else float("nan")
    if len(differences) < 2:
        return PairedDifference(difference=mean, low=float("nan"), high=float("nan"), p=float("nan"))
    if np.ptp(differences) == 0:  # scipy would divide by a spread of 0
        return PairedDifference(difference=mean, low=mean, high=mean, p=1.0 if mean == 0 else 0.0)
    p = float(np.asarray(stats.ttest_1samp(differences, 0))[1])
    low, high = stats.t.interval(confidence, len(differences) - 1, loc=mean, scale=stats.sem(differences))
    return PairedDifference(difference=mean, low=float(low), high=float(high), p=p)


def quantile_interval(draws: Float[np.ndarray, " draw"], confidence: float = 0.95) -> tuple[float, float]:
    """The middle ``confidence`` of the draws that are numbers; (NaN, NaN) if none is."""
    known = draws[~np.isnan(draws)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _rank_products(x: Float[np.ndarray, "draw n"], y: Float[np.ndarray, "draw n"]) -> Float[np.ndarray, "3 draw"]:
    """Σxy, Σxx, Σyy of centered ranks, over the number of ranks."""
    from scipy import stats

    ranks = [stats.rankdata(values, axis=1) / values.shape[1] for values in (x, y)]
    x, y = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    return np.stack(np.broadcast_arrays((x * y).sum(1), (x * x).sum(1), (y * y).sum(1)))


def _correlation(products: Float[np.ndarray, "3 draw"]) -> Float[np.ndarray, " draw"]:
    xy, xx, yy = products
    spread = np.sqrt(xx * yy)
    return np.clip(np.divide(xy, spread, out=np.full_like(xy, np.nan), where=spread > 1e-12), -1, 1)


def _z_sum(confidence: float, power: float) -> float:
    from scipy import stats

    return float(stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(power))


def bootstrap_mean(
    values: Float[np.ndarray, "n column"],
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    draws: int = 1000,
    confidence: float = 0.95,
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
    """Means of columns with percentile bootstrap intervals.

    Args:
        values: One row per observation.
        clusters: A label for each row; rows of one label are resampled together. By default each row by itself.
        seed: Of the draws.
        draws: Bootstrap samples.
        confidence: Of the intervals.

    Returns:
        Mean, low, high; the bounds are NaN where there is a single cluster.
    """
    values = np.asarray(values, float)
    mean = values.mean(0) if len(values) else np.full(values.shape[1], np.nan)
    labels = list(range(len(values))) if clusters is None else list(clusters)
    members = {label: at for at, label in enumerate(dict.fromkeys(labels))}
    n = len(members)
    if n < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    at = np.array([members[label] for label in labels])
    sums, sizes = np.zeros((n, values.shape[1])), np.bincount(at, minlength=n)
    np.add.at(sums, at, values)
    times = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)  # how often each is drawn
    drawn = (times @ sums) / (times @ sizes)[:, None]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return mean, low, high
