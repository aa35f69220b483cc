"""How effects are put into words, the same in figures and in findings: numbers, prompts, what a corruption takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from kn_lens.plots.layers import METRIC_NAMES, METRIC_UNITS
from kn_lens.prompts.cue_pairs import cue_labels
from kn_lens.prompts.prompt import Prompt
from kn_lens.statistics import bootstrap_mean

INTERVALS = "95 % bootstrap intervals over facts or pairs"
"""Prompts with the same cue and answer are no independent evidence: they are resampled together."""

_KL_ROUNDING = 5e-5  # a clean run's KL from itself in float32 is about 1e-5, either way


def tidy(value: float, metric: str) -> float:
    """The value; of a KL divergence that is rounding, 0."""
    return 0.0 if metric == "kl" and abs(value) < _KL_ROUNDING else float(value)


def number(value: float, metric: str) -> str:
    """Three significant digits, tidied."""
    return f"{tidy(value, metric):.3g}"


def amount(mean: float, low: float, high: float, metric: str) -> str:
    """``0.5 [0.2, 0.9] logits``; without its interval where there is none."""
    around = "" if low != low else f" [{number(low, metric)}, {number(high, metric)}]"
    return f"{number(mean, metric)}{around} {METRIC_UNITS[metric]}"


def at_the(kind: str) -> str:
    """Where a class of positions lies: ``at the target position``, ``before the cue``."""
    return kind if kind.startswith("before") else f"at the {kind}"


def counted(prompts: Sequence[Prompt]) -> str:
    """``40 prompts``, or ``40 prompts of 5 facts or pairs`` where several share cue and answer."""
    clusters = len(set(cue_labels(prompts)))
    many = f"{len(prompts)} prompt{'s' if len(prompts) != 1 else ''}"
    if clusters == len(prompts):
        return many
    return f"{many} of {clusters} facts or pairs" if clusters > 1 else f"{many} of 1 fact or pair"


@dataclass(frozen=True)
class Total:
    """What a corruption takes from the answer: the mean over prompts, and its interval over facts or pairs.

    Attributes:
        mean, low, high: Of clean − corrupted (for KL the other way round); a single fact or pair has no interval.
        metric: Whose.
    """

    mean: float
    low: float
    high: float
    metric: str

    @classmethod
    def of(cls, effects: Float[Tensor, " prompt"], prompts: Sequence[Prompt], metric: str) -> Total:
        """From the total effect of each prompt."""
        mean, low, high = bootstrap_mean(effects[:, None].double().numpy(), clusters=cue_labels(prompts))
        return cls(float(mean[0]), float(low[0]), float(high[0]), metric)

    @property
    def is_loss(self) -> bool:
        """Whether the interval lies above 0. Only of such a total can effects be shares."""
        return self.low > (_KL_ROUNDING if self.metric == "kl" else 0)

    def share(self, effect: float) -> float:
        """An effect as a part of the total; NaN where the total's interval does not lie above 0."""
        return effect / self.mean if self.is_loss else float("nan")

    def sentence(self, what: str, prompts: str) -> str:
        """``what`` (*corrupting the cue*) lowers the answer by so much, as the mean of so many ``prompts``."""
        size = amount(self.mean, self.low, self.high, self.metric)
        if self.metric == "kl":
            return f"{what} moves the distribution by {size} ({METRIC_NAMES['kl']}), mean of {prompts}"
        taken = f"{what} lowers the {METRIC_NAMES[self.metric]} by {size}, mean of {prompts}"
        if self.is_loss or (self.low != self.low and self.mean > 0):
            return taken
        return f"{taken}, and so is not seen to lower it: no effect is given as a share of it"
