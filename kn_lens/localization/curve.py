"""The ablation curve: how many answers flip as more of the top units are taken away, beside random units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.prompts.prompt import Dropped, Prompt, group_indices
from kn_lens.results import Result
from kn_lens.suppression.controls import distinct_draws, p_among, percentile_of

if TYPE_CHECKING:
    import pandas as pd

HALF = 0.5
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its percentile bootstrap interval over groups of prompts.

    The prompts of a group are near-copies of each other, so whole groups are resampled.

    Attributes:
        value: NaN where it is not reached on the curve.
        low, high: Infinite where so many of the resampled curves do not reach it; NaN of a single group.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class HalfPoint:
    """Where half of the answers flip, in three currencies.

    Attributes:
        k: The rung: the smallest k of the curve.
        taken: Units in fact taken away there, mean over prompts: fewer than k where fewer have a score above 0.
        share: These as a share of all units of the site.
        norm: As the norm of the output taken away, over the norm of the residual stream; mean over prompts.
    """

    k: Estimate
    taken: Estimate
    share: Estimate
    norm: Estimate


@dataclass(frozen=True, kw_only=True)
class AblationCurve(Result):
    """Answers with the top k units taken away, for growing k, and with as many random units of the same layers.

    All prompts were answered rightly before.

    Attributes:
        ks: Numbers of units.
        taken: Units in fact taken from each prompt: fewer than k where fewer have a score above 0.
        flipped: Whether the answer flips: the preference of a pair, the top token of a fact.
        correct: Whether the answer is right.
        target: Probability of the target; ``clean_target`` before.
        norm: Size of the output taken away: :mod:`kn_lens.suppression.taken_away`.
        control_flipped, control_correct, control_target, control_norm: The same of the random draws.
        stream: Norm of the last residual stream at the target, before.
        n_units: All units of the site.
        site: Where the units live.
        ablation: What they are set to.
        answered_wrongly: Prompts that took no part since they were answered wrongly before.
        prompts: The prompts, in order.
        dropped: Prompts left out, with reasons; those answered wrongly among them.
        drawn: Which set of units each draw takes: equal numbers of a prompt and k are equal sets.
    """

    ks: tuple[int, ...]
    taken: Int[Tensor, "prompt k"]
    flipped: Bool[Tensor, "prompt k"]
    correct: Bool[Tensor, "prompt k"]
    target: Float[Tensor, "prompt k"]
    norm: Float[Tensor, "prompt k"]
    control_flipped: Bool[Tensor, "prompt k draw"]
    control_correct: Bool[Tensor, "prompt k draw"]
    control_target: Float[Tensor, "prompt k draw"]
    control_norm: Float[Tensor, "prompt k draw"]
    clean_target: Float[Tensor, " prompt"]
    stream: Float[Tensor, " prompt"]
    n_units: int
    site: str
    ablation: str
    answered_wrongly: int
    prompts: tuple[Prompt, ...]
    dropped: tuple[Dropped, ...] = ()
    drawn: Int[Tensor, "prompt k draw"] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def groups(self) -> dict[str, list[int]]:
        """Indices of the prompts of each group, in order of appearance."""
        return group_indices(self.prompts)

    @property
    def distinct_draws(self) -> list[int]:
        """At each k, how many of the random draws differ: a layer of few heads has few sets to draw."""
        if self.drawn is None:
            return [self.control_flipped.shape[-1]] * len(self.ks)
        return [distinct_draws(self.drawn[:, at]) for at in range(len(self.ks))]

    @property
    def relative_norm(self) -> Float[Tensor, "prompt k"]:
        """The output taken away over the residual stream's norm."""
        return self.norm / self.stream[:, None]

    @property
    def control_relative_norm(self) -> Float[Tensor, "prompt k draw"]:
        """The same of the random draws."""
        return self.control_norm / self.stream[:, None, None]

    def k_half(self, *, draws: int = 1000, confidence: float = 0.95, seed: int = 0) -> HalfPoint:
        """The smallest k at which half of the answers flip, in three currencies, with intervals over groups."""
        return self._half(self.flipped.numpy().astype(float), self.relative_norm.numpy(), draws, confidence, seed)

    def control_k_half(self, *, draws: int = 1000, confidence: float = 0.95, seed: int = 0) -> HalfPoint:
        """The same of random units: where half of the answers flip, on average over the draws."""
        flipped = self.control_flipped.float().mean(-1).numpy()
        return self._half(flipped, self.control_relative_norm.mean(-1).numpy(), draws, confidence, seed)

    def to_frame(self) -> pd.DataFrame:
        """One row per k: shares flipped and right, p(target), norms (over the stream's, but for ``norm_absolute``).

        Bounds of ``flipped`` are bootstrap intervals over groups; those of ``control_flipped`` hold 95 % of the draws.
        ``percentile_flipped`` says how many draws flip fewer answers than the top units do, and ``p_flipped`` is
        (1 + draws that flip at least as many) / (1 + draws); both are NaN with fewer than 20 distinct draws.
        """
        import pandas as pd

        flipped = self.flipped.double().mean(0).numpy()
        resampled = _means(self._counts(1000, 0)[1:], self.flipped.numpy())
        bounds = np.full((2, len(self.ks)), np.nan)
        low, high = np.quantile(resampled, [0.025, 0.975], axis=0) if len(resampled) else bounds
        by_draw = self.control_flipped.double().mean(0).numpy()
        bounds = np.quantile(by_draw, [0.025, 0.975], axis=1)
        ranked = list(zip(flipped.tolist(), by_draw, self.distinct_draws, strict=True))
        return pd.DataFrame(
            {
                "k": self.ks,
                "units": self.taken.double().mean(0).numpy(),
                "share_of_units": self.taken.double().mean(0).numpy() / self.n_units,
                "flipped": flipped,
                "flipped_low": low,
                "flipped_high": high,
                "control_flipped": by_draw.mean(1),
                "control_flipped_low": bounds[0],
                "control_flipped_high": bounds[1],
                "distinct_draws": self.distinct_draws,
                "percentile_flipped": [percentile_of(*entry) for entry in ranked],
                "p_flipped": [p_among(*entry, low=False) for entry in ranked],
                "correct": self.correct.float().mean(0).numpy(),
                "control_correct": self.control_correct.float().mean((0, 2)).numpy(),
                "target": self.target.double().mean(0).numpy(),
                "control_target": self.control_target.mean((0, 2)).numpy(),
                "norm": self.relative_norm.mean(0).numpy(),
                "control_norm": self.control_relative_norm.mean((0, 2)).numpy(),
                "norm_absolute": self.norm.double().mean(0).numpy(),
                "control_norm_absolute": self.control_norm.mean((0, 2)).numpy(),
            }
        )

    def _half(self, flipped: np.ndarray, norm: np.ndarray, draws: int, confidence: float, seed: int) -> HalfPoint:
        counts = self._counts(draws, seed)
        reached = _means(counts, flipped) >= HALF - _ROUNDING
        at = reached.argmax(1)
        rows = np.arange(len(counts))
        taken = _means(counts, self.taken.numpy())[rows, at]
        values = {
            "k": np.array(self.ks, float)[at],
            "taken": taken,
            "share": taken / self.n_units,
            "norm": _means(counts, norm)[rows, at],
        }
        return HalfPoint(
            **{name: _estimate(np.where(reached.any(1), value, np.inf), confidence) for name, value in values.items()}
        )

    def _counts(self, draws: int, seed: int) -> Float[np.ndarray, "draw prompt"]:
        """How often each prompt is drawn: first once, then as whole groups are resampled (not of a single group)."""
        groups = self.groups
        counts = np.ones((1, len(self)))
        if len(groups) > 1:
            drawn = np.random.default_rng(seed).multinomial(len(groups), np.full(len(groups), 1 / len(groups)), draws)
            of_prompt = np.zeros(len(self), int)
            for at, indices in enumerate(groups.values()):
                of_prompt[indices] = at
            counts = np.concatenate([counts, drawn[:, of_prompt]])
        return counts


def _means(
    counts: Float[np.ndarray, "draw prompt"], values: Float[np.ndarray, "prompt k"]
) -> Float[np.ndarray, "draw k"]:
    return counts @ values.astype(float) / counts.sum(1, keepdims=True)


def _estimate(values: np.ndarray, confidence: float) -> Estimate:
    """The first value, and the interval of the others."""
    value = float(values[0]) if np.isfinite(values[0]) else float("nan")
    if len(values) == 1:
        return Estimate(value=value, low=float("nan"), high=float("nan"))
    bounds = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(values[1:], bounds, method="inverted_cdf")  # between a number and ∞ lies nothing
    return Estimate(value=value, low=float(low), high=float(high))
