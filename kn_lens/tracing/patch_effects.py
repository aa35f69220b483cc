"""What patching between the two sentences of a pair returns, and how an estimate compares with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from kn_lens.errors import SettingsError
from kn_lens.results import Result
from kn_lens.tracing.state_effects import StateEffects

_ROUNDING = 1e-6  # of the largest effect: below it, in float32, an effect is 0
_NOTHING = 1e-5  # of the other side's largest: one whose largest is below it holds no effects, only rounding


@dataclass(frozen=True)
class Agreement:
    """How well estimated effects follow exact ones, over the states of all prompts.

    NaN where either side has no spread, or is rounding beside the other.
    """

    pearson: float
    spearman: float
    states: int


@dataclass(frozen=True, kw_only=True)
class PatchEffects(StateEffects, Result):
    """Effects of patched states, ``[prompt, (position,) layer, (unit)]``.

    Attributes:
        component: What was patched; see :data:`kn_lens.streams.StreamName`.
        positions: ``"each"``: one by one; ``"sum"``: all at once, without an axis of positions.
        method: ``"activation_patching"`` (exact), ``"attribution_patching"`` (its linear estimate, of one metric) or
            ``"path_patching"`` (along one path only).
        receiver: Where the path of path patching ends: ``"logits"`` or ``"2:5 q"``; else None.

    The others are those of :class:`kn_lens.tracing.state_effects.StateEffects`; the corrupted run is the twin's.
    """

    component: str
    positions: Literal["each", "sum"]
    method: str
    receiver: str | None = None

    @property
    def by_position(self) -> bool:
        """Whether effects have an axis of positions."""
        return self.positions == "each"

    def correlation(self, exact: PatchEffects, metric: str | None = None) -> Agreement:
        """How an estimate follows the exact effects of the same states: Pearson's r and Spearman's ρ.

        States that cannot matter (0 to within rounding in both: a last layer's heads away from the target, say) are
        left out: they would agree by construction, and their ranks would be rounding.

        Args:
            exact: From :func:`kn_lens.activation_patching`, of the same prompts, component, positions and direction.
            metric: By default this result's own.

        Raises:
            SettingsError: If the two are not of the same states, or ``exact`` is no result of activation patching.
        """
        from scipy import stats

        if exact.method != "activation_patching":
            raise SettingsError(f"exact is from {exact.method}; give effects from activation_patching")
        for name in ("prompts", "twins", "component", "positions", "direction", "receiver"):
            if getattr(self, name) != getattr(exact, name):
                shown = "" if name in ("prompts", "twins") else f": {getattr(self, name)!r}, {getattr(exact, name)!r}"
                raise SettingsError(
                    f"the two results differ in their {name}{shown}; compare effects of the same states"
                )
        name = self.metric_name(metric)
        mine, theirs = self.effects[name].double(), exact.effects[exact.metric_name(name)].double()
        larger = torch.maximum(mine.abs(), theirs.abs()).nan_to_num(0)
        known = larger > _ROUNDING * larger.max()
        first, second = mine[known].numpy(), theirs[known].numpy()
        if len(first) < 2 or min(np.ptp(first), np.ptp(second)) == 0 or _is_rounding(first, second):
            return Agreement(float("nan"), float("nan"), len(first))
        pearson, spearman = stats.pearsonr(first, second), stats.spearmanr(first, second)
        return Agreement(float(np.asarray(pearson)[0]), float(np.asarray(spearman)[0]), len(first))


def _is_rounding(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the largest of one is nothing beside the largest of the other."""
    small, large = sorted((float(np.abs(first).max()), float(np.abs(second).max())))
    return small <= _NOTHING * large
