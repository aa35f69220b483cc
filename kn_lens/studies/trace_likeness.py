"""How alike two maps of mean effects are: those of facts and those of agreement, by class of position and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from kn_lens.prompts.cue_pairs import cue_labels
from kn_lens.statistics import quantile_interval
from kn_lens.tracing.position_classes import CLASSES
from kn_lens.tracing.trace import CausalTrace

_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Pearson's r between two maps of mean effects.

    Attributes:
        r: NaN where one map is constant.
        low, high: Percentile bootstrap interval (95 %); on either side facts, or pairs of cue and answer, are drawn
            anew. NaN where a side has a single one.
        states: Cells that were compared: classes of position that both sides have, by layers.
        facts, agreement: Prompts.
    """

    r: float
    low: float
    high: float
    states: int
    facts: int
    agreement: int

    def text(self) -> str:
        """``"0.81 [0.62, 0.90]"``."""
        around = "" if np.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        return ("unknown" if np.isnan(self.r) else f"{self.r:.2f}") + around


def likeness(facts: Sequence[CausalTrace], agreement: Sequence[CausalTrace], *, seed: int = 0) -> Likeness:
    """Compare the mean effects of some traces with those of others, of the same stream of one model.

    Classes in which neither side has any effect (in a causal model before the cue) are left out. Where the traces'
    metrics differ, log p(answer) is taken, which all have.

    Args:
        facts: Traces of facts; their prompts are pooled.
        agreement: Traces of agreement, likewise.
        seed: Of the bootstrap.
    """
    metrics = {one.metric for one in (*facts, *agreement)}
    metric = metrics.pop() if len(metrics) == 1 else "log_probability"
    sides = [_effects(side, metric) for side in (facts, agreement)]
    whole = [_means(values, np.ones((1, len(values)), int))[0] for values, _ in sides]
    asked = ~np.isnan(whole[0]) & ~np.isnan(whole[1])
    moved = ~((np.nan_to_num(whole[0]) == 0).all(1) & (np.nan_to_num(whole[1]) == 0).all(1))
    cells = asked & moved[:, None]
    generator = np.random.default_rng(seed)
    drawn = [_means(values, _times(clusters, generator)) for values, clusters in sides]
    r = _pearson(whole[0][cells], whole[1][cells])
    draws = np.array([_pearson(first[cells], second[cells]) for first, second in zip(*drawn, strict=True)])
    single = any(len(set(clusters.tolist())) < 2 for _, clusters in sides)
    low, high = (float("nan"),) * 2 if single else quantile_interval(draws)
    counts = [len(values) for values, _ in sides]
    return Likeness(r=r, low=low, high=high, states=int(cells.sum()), facts=counts[0], agreement=counts[1])


def _effects(
    traces: Sequence[CausalTrace], metric: str
) -> tuple[Float[np.ndarray, "prompt class layer"], Int[np.ndarray, " prompt"]]:
    """The effects of all prompts, NaN where a prompt has none of a class, and the cluster that each belongs to."""
    parts, labels = [], []
    for at, one in enumerate(traces):
        pooled = one.by_class(metric)
        shape = next(iter(pooled.values())).shape
        rows = [pooled[kind].double().numpy() if kind in pooled else np.full(shape, np.nan) for kind in CLASSES]
        parts.append(np.stack(rows, 1))
        labels += [(at, label) for label in cue_labels(one.prompts)]
    members = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    return np.concatenate(parts), np.array([members[label] for label in labels])


def _times(clusters: Int[np.ndarray, " prompt"], generator: np.random.Generator) -> Int[np.ndarray, "draw prompt"]:
    """How often each prompt is drawn: as often as its cluster."""
    n = int(clusters.max()) + 1
    return generator.multinomial(n, np.full(n, 1 / n), size=_DRAWS)[:, clusters]


def _means(
    values: Float[np.ndarray, "prompt class layer"], times: Int[np.ndarray, "draw prompt"]
) -> Float[np.ndarray, "draw class layer"]:
    """Means over prompts that have an effect, each counted so many times; NaN where none has."""
    flat = values.reshape(len(values), -1)
    sums, counts = times @ np.nan_to_num(flat), times @ ~np.isnan(flat)
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan, dtype=float), where=counts > 0)
    return means.reshape(-1, *values.shape[1:])


def _pearson(x: Float[np.ndarray, " state"], y: Float[np.ndarray, " state"]) -> float:
    """Over the states that both know; NaN for fewer than three, or where one side is constant."""
    known = ~np.isnan(x) & ~np.isnan(y)
    if known.sum() < 3:
        return float("nan")
    x, y = x[known] - x[known].mean(), y[known] - y[known].mean()
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread > 1e-12 else float("nan")
