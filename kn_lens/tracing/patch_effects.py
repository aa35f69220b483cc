"""What patching between the two sentences of a pair returns: the effect of each state on each prompt's answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.errors import SettingsError, near_matches
from kn_lens.prompts.cue_pairs import cue_labels
from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.results import Result
from kn_lens.statistics import bootstrap_mean
from kn_lens.tracing.metrics import METRICS
from kn_lens.tracing.trace import CLASSES, classes_of

if TYPE_CHECKING:
    import pandas as pd


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
class PatchEffects(Result):
    """Effects of single states, by prompt, layer, and head or neuron where a layer has several.

    Attributes:
        effects: By metric, how much of the answer hangs on each state; positive if the clean sentence's state speaks
            for the answer. With ``positions="each"`` there is an axis of positions: 0 before the sentences first
            differ (in a causal model), NaN past a prompt's end.
        clean, corrupted: By metric, its value for the sentence and for its twin.
        tokens: Labels of each prompt's tokens.
        cue_positions: Where the two sentences differ: the cue that was swapped, or the tokens in which a twin that was
            given differs.
        target_positions: Where the answer is read.
        foils: The word that the logit difference is taken against.
        twins: The other sentence of each pair.
        component: What was patched; see :data:`kn_lens.streams.StreamName`.
        positions: ``"each"``: one by one; ``"sum"``: all at once.
        direction: ``"sufficiency"``: clean states into the twin's run; ``"necessity"``: the twin's into the clean run.
        method: ``"activation_patching"`` (exact), ``"attribution_patching"`` (its linear estimate, of one metric) or
            ``"path_patching"`` (along one path only).
        receiver: Where the path of path patching ends: ``"logits"`` or ``"2:5 q"``; else None.
        metric: The one shown by default.
        prompts: The prompts, in order.
        dropped: Prompts left out, with reasons.
    """

    effects: dict[str, Float[Tensor, "prompt ..."]]
    clean: dict[str, Float[Tensor, " prompt"]]
    corrupted: dict[str, Float[Tensor, " prompt"]]
    tokens: tuple[tuple[str, ...], ...]
    cue_positions: tuple[tuple[int, ...], ...]
    target_positions: tuple[int, ...]
    foils: tuple[str, ...]
    twins: tuple[str, ...]
    component: str
    positions: Literal["each", "sum"]
    direction: Literal["sufficiency", "necessity"]
    method: str
    receiver: str | None = None
    metric: str
    prompts: tuple[Prompt, ...]
    dropped: tuple[Dropped, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of ``effects``, the prompt's left out."""
        names = (*(["position"] if self.positions == "each" else []), "layer", "unit")
        return names[: next(iter(self.effects.values())).dim() - 1]

    @property
    def has_units(self) -> bool:
        """Whether effects are of single heads or neurons."""
        return "unit" in self.axes

    def total_effect(self, metric: str | None = None) -> Float[Tensor, " prompt"]:
        """What the twin loses of the answer: clean − corrupted (for KL the other way round)."""
        name = self.metric_name(metric)
        lost = self.clean[name] - self.corrupted[name]
        return -lost if name == "kl" else lost

    def classes(self, index: int) -> list[str]:
        """The class of each position of prompt ``index``; see :data:`kn_lens.tracing.trace.CLASSES`."""
        return classes_of(len(self.tokens[index]), self.cue_positions[index], self.target_positions[index])

    def select(self, indices: Sequence[int]) -> PatchEffects:
        """The effects of some of the prompts."""
        rows = list(indices)

        def some(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value[rows] for name, value in values.items()}

        return replace(
            self,
            effects=some(self.effects),
            clean=some(self.clean),
            corrupted=some(self.corrupted),
            tokens=tuple(self.tokens[row] for row in rows),
            cue_positions=tuple(self.cue_positions[row] for row in rows),
            target_positions=tuple(self.target_positions[row] for row in rows),
            foils=tuple(self.foils[row] for row in rows),
            twins=tuple(self.twins[row] for row in rows),
            prompts=tuple(self.prompts[row] for row in rows),
        )

    def by_class(self, metric: str | None = None) -> dict[str, Float[Tensor, "prompt layer *unit"]]:
        """Effects averaged over the positions of each class, prompt by prompt; NaN where a prompt has none.

        Raises:
            SettingsError: If all positions were patched at once.
        """
        if self.positions != "each":
            raise SettingsError("positions were patched all at once; classes of positions need positions='each'")
        effects = self.effects[self.metric_name(metric)]
        pooled = {}
        for name in CLASSES:
            rows = torch.full((len(self), *effects.shape[2:]), float("nan"))
            for index in range(len(self)):
                places = [at for at, kind in enumerate(self.classes(index)) if kind == name]
                if places:
                    rows[index] = effects[index, places].mean(0)
            if not rows.isnan().all():
                pooled[name] = rows
        return pooled

    def average(self, metric: str | None = None, *, seed: int = 0, draws: int = 1000) -> pd.DataFrame:
        """The mean effect over prompts by layer (and unit), with bootstrap intervals over facts or pairs.

        Prompts with the same cue and answer are resampled together.

        Args:
            metric: By default the result's own.
            seed: Of the bootstrap.
            draws: Of the bootstrap.

        Returns:
            Columns (class,) layer, (unit,) mean, low, high (95 %), prompts; classes of positions for ``"each"``.
        """
        import pandas as pd

        each = self.positions == "each"
        pooled = self.by_class(metric) if each else {"": self.effects[self.metric_name(metric)]}
        names = [name for name in self.axes if name != "position"]
        labels = cue_labels(self.prompts)
        rows = []
        for name, values in pooled.items():
            has_state = ~values.flatten(1).isnan().any(1)
            known = values[has_state]
            clusters = [labels[int(index)] for index in has_state.nonzero()]
            mean, low, high = bootstrap_mean(known.flatten(1).numpy(), clusters=clusters, seed=seed, draws=draws)
            for place, index in enumerate(np.ndindex(*values.shape[1:])):
                spread = {"mean": mean[place], "low": low[place], "high": high[place], "prompts": len(known)}
                rows.append(({"class": name} if each else {}) | dict(zip(names, index, strict=True)) | spread)
        return pd.DataFrame(rows)

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

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt and state, one column per metric."""
        import pandas as pd

        known = ~next(iter(self.effects.values())).isnan()
        places = known.nonzero().numpy()
        frame = pd.DataFrame(places, columns=["prompt", *self.axes])
        if self.positions == "each":
            classes = [self.classes(index) for index in range(len(self))]
            frame.insert(2, "token", [self.tokens[row][at] for row, at in places[:, :2]])
            frame.insert(3, "class", [classes[row][at] for row, at in places[:, :2]])
        for name, values in self.effects.items():
            frame[name] = values[known].numpy()
        return frame

    def prompts_frame(self) -> pd.DataFrame:
        """One row per prompt: text, twin, answer, foil, and every metric of both."""
        import pandas as pd

        frame = pd.DataFrame(
            {
                "text": [prompt.text for prompt in self.prompts],
                "twin": self.twins,
                "group": [prompt.group for prompt in self.prompts],
                "target": [prompt.target for prompt in self.prompts],
                "foil": self.foils,
            }
        )
        for name in METRICS:
            frame[f"{name} clean"] = self.clean[name].numpy()
            frame[f"{name} corrupted"] = self.corrupted[name].numpy()
        return frame

    def metric_name(self, metric: str | None) -> str:
        """``metric``, or the result's own.

        Raises:
            SettingsError: If the result does not hold it.
        """
        name = self.metric if metric is None else metric
        if name not in self.effects:
            raise SettingsError(
                f"no metric {name!r} in this result.{near_matches(name, self.effects)} It holds "
                f"{', '.join(self.effects)}"
            )
        return name


def _is_rounding(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the largest of one is nothing beside the largest of the other."""
    small, large = sorted((float(np.abs(first).max()), float(np.abs(second).max())))
    return small <= _NOTHING * large
