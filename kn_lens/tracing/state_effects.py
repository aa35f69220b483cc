"""What tracing and patching results share: the effect of each state on each prompt's answer, by every metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.errors import SettingsError, near_matches
from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.tracing.averages import average_frame
from kn_lens.tracing.metrics import METRICS
from kn_lens.tracing.position_classes import CLASSES, classes_of

if TYPE_CHECKING:
    import pandas as pd

Self = TypeVar("Self", bound="StateEffects")


@dataclass(frozen=True, kw_only=True)
class StateEffects:
    """Effects of single states, by prompt, (position,) layer, and head or neuron where a layer has several.

    Attributes:
        effects: By metric, how much of the answer hangs on each state; positive if the clean state speaks for the
            answer. 0 where it cannot matter (in a causal model before the sentences differ), NaN past a prompt's end
            and where it was not asked for.
        clean, corrupted: By metric, its value in both runs.
        tokens: Labels of each prompt's tokens.
        cue_positions: Of each prompt, the tokens corrupted, or that differ from its twin's.
        target_positions: Of each prompt, where the answer is read.
        foils: The word that the logit difference is taken against.
        twins: The other sentence of each prompt; empty where there is none.
        direction: ``"sufficiency"``: clean states into the corrupted run; ``"necessity"``: the other way round.
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
    direction: Literal["sufficiency", "necessity"]
    metric: str
    prompts: tuple[Prompt, ...]
    dropped: tuple[Dropped, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def by_position(self) -> bool:
        """Whether effects have an axis of positions."""
        return True

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of ``effects``, the prompt's left out."""
        names = (*(["position"] if self.by_position else []), "layer", "unit")
        return names[: next(iter(self.effects.values())).dim() - 1]

    @property
    def has_units(self) -> bool:
        """Whether effects are of single heads or neurons."""
        return "unit" in self.axes

    def total_effect(self, metric: str | None = None) -> Float[Tensor, " prompt"]:
        """TE: what the corruption takes from the answer, clean − corrupted (for KL the other way round)."""
        name = self.metric_name(metric)
        lost = self.clean[name] - self.corrupted[name]
        return -lost if name == "kl" else lost

    def classes(self, index: int) -> list[str]:
        """The class of each position of prompt ``index``; see :data:`kn_lens.tracing.position_classes.CLASSES`."""
        return classes_of(len(self.tokens[index]), self.cue_positions[index], self.target_positions[index])

    def select(self: Self, indices: Sequence[int]) -> Self:
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
            twins=tuple(self.twins[row] for row in rows) if self.twins else (),
            prompts=tuple(self.prompts[row] for row in rows),
        )

    def by_class(self, metric: str | None = None) -> dict[str, Float[Tensor, "prompt layer *unit"]]:
        """Effects averaged over the positions of each class, prompt by prompt; NaN where a prompt has none.

        Raises:
            SettingsError: If all positions were patched at once.
        """
        if not self.by_position:
            raise SettingsError("positions were patched all at once; classes of positions need positions='each'")
        effects = self.effects[self.metric_name(metric)]
        kinds = [self.classes(index) for index in range(len(self))]
        pooled = {}
        for name in CLASSES:
            rows = torch.full((len(self), *effects.shape[2:]), float("nan"))
            for index, kind in enumerate(kinds):
                places = [at for at, found in enumerate(kind) if found == name]
                if places:
                    rows[index] = effects[index, places].mean(0)
            if not rows.isnan().all():
                pooled[name] = rows
        return pooled

    def average(self, metric: str | None = None, *, seed: int = 0, draws: int = 1000) -> pd.DataFrame:
        """AIE: the mean effect over prompts, by class of position and layer, with bootstrap intervals.

        Prompts with the same cue and answer (a fact's paraphrases) are resampled together.

        Args:
            metric: By default the result's own.
            seed: Of the bootstrap.
            draws: Of the bootstrap.

        Returns:
            Columns (class,) layer, (unit,) mean, low, high (95 %), prompts.
        """
        name = self.metric_name(metric)
        effects = self.by_class(name) if self.by_position else {"": self.effects[name]}
        axes = [axis for axis in self.axes if axis != "position"]
        label = "class" if self.by_position else ""
        return average_frame(effects, self.prompts, label, axes, seed=seed, draws=draws)

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt and state, one column per metric."""
        import pandas as pd

        known = ~next(iter(self.effects.values())).isnan()
        places = known.nonzero().numpy()
        frame = pd.DataFrame(places, columns=["prompt", *self.axes])
        if self.by_position:
            classes = [self.classes(index) for index in range(len(self))]
            frame.insert(2, "token", [self.tokens[row][at] for row, at in places[:, :2]])
            frame.insert(3, "class", [classes[row][at] for row, at in places[:, :2]])
        for name, values in self.effects.items():
            frame[name] = values[known].numpy()
        return frame

    def prompts_frame(self) -> pd.DataFrame:
        """One row per prompt: text, (twin,) answer, foil, and every metric clean and corrupted."""
        import pandas as pd

        frame = pd.DataFrame(
            {
                "text": [prompt.text for prompt in self.prompts],
                **({"twin": self.twins} if self.twins else {}),
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
