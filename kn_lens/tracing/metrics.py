"""How an answer is measured when states are patched: four metrics, always all of them.

p is the probability of the target t, f its foil, z the logits, P the distribution of the clean run:
probability p(t); log_probability log p(t), in nats; logit_difference z(t) − z(f); kl KL(P ‖ p), in nats.
Probability hides components that push an answer down (Zhang and Nanda 2023); the logit difference is the default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.errors import SettingsError, near_matches
from kn_lens.prompts.batch import PromptBatch

Metric = Literal["probability", "log_probability", "logit_difference", "kl"]
METRICS: tuple[Metric, ...] = ("probability", "log_probability", "logit_difference", "kl")
DEFAULT_METRIC: Metric = "logit_difference"


_PART = 1024


def check_metric(metric: str | None) -> None:
    """Raise SettingsError for a metric that there is not; None stands for the default."""
    if metric is not None and metric not in METRICS:
        raise SettingsError(f"no metric {metric!r}.{near_matches(metric, METRICS)} Metrics: {', '.join(METRICS)}")


def default_metric(metric: str | None, batch: PromptBatch) -> Metric:
    """The metric to show: by default the logit difference; of two-prefix pairs, which have no rival word, log p.

    Raises:
        SettingsError: For an unknown metric, or the logit difference of two-prefix pairs.
    """
    if metric is None:
        return DEFAULT_METRIC if batch.rivals is None else "log_probability"
    check_metric(metric)
    if metric == "logit_difference" and batch.rivals is not None:
        raise SettingsError(
            "two-prefix pairs ask for one word after two prefixes and have no rival word to take a logit difference "
            "against; take metric='log_probability'"
        )
    return metric  # type: ignore[return-value]


def all_metrics(
    targets: Int[Tensor, " prompt"], foils: Int[Tensor, " prompt"], clean_logits: Float[Tensor, "prompt d_vocab"]
) -> Callable[[Tensor, Tensor], Float[Tensor, "row metric"]]:
    """A measure of rows' logits: one column per metric, in the order of :data:`METRICS`."""
    wide = _wide(clean_logits)
    clean = wide.log_softmax(-1)
    probability = clean.exp()
    negative_entropy = (probability * clean).sum(-1)
    mass = probability.double().sum(-1).to(wide.dtype)  # not quite 1 in float32, and multiplied below by what is large

    def measure(logits: Tensor, owners: Tensor) -> Tensor:
        rows = _wide(logits)
        total = rows.logsumexp(-1)
        picked = rows.gather(1, torch.stack([targets[owners], foils[owners]], 1))
        log_probability = picked[:, 0] - total
        # Σ P log p = Σ P z − Σ P · log Σ exp z: products, no second softmax over the vocabulary. One product over all
        # of it would add small numbers to a large sum: on SmolLM2 it is off by 4e-4, in parts by 4e-6.
        parts = zip(rows.split(_PART, 1), probability.split(_PART, 1), strict=True)
        expected = torch.stack([part @ weight.T for part, weight in parts]).sum(0).gather(1, owners[:, None])[:, 0]
        kl = negative_entropy[owners] - expected + mass[owners] * total
        difference = picked[:, 0] - picked[:, 1]
        return torch.stack([log_probability.exp(), log_probability, difference, kl], dim=1)

    return measure


def effect(name: str, value: Tensor, baseline: Tensor, direction: str) -> Tensor:
    """How much a state speaks for the answer: what restoring it gives back, or corrupting it takes away."""
    gained = value - baseline if direction == "sufficiency" else baseline - value
    return -gained if name == "kl" else gained


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
