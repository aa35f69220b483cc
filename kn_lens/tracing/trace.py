"""What causal tracing returns: the effect of each state on each prompt's answer, by every metric."""

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

if TYPE_CHECKING:
    import pandas as pd

CLASSES = (
    "before the cue",
    "first cue token",
    "middle cue tokens",
    "last cue token",
    "first following token",
    "other following tokens",
    "target position",
)
"""Classes of positions, in the order of a sentence. Each position is in one: the only token of a cue is its last, and
the target position (a causal prompt's last token, a masked one's blank) is itself even where it follows the cue."""


@dataclass(frozen=True, kw_only=True)
class CausalTrace(Result):
    """Effects of single states. Where the result has heads or neurons, ``effects`` has one more axis, for them.

    Attributes:
        effects: By metric, how much of the answer hangs on each state; positive if the clean state speaks for the
            answer. 0 where it cannot matter (before the cue of a causal prompt), NaN past a prompt's end and where it
            was not asked for.
        clean, corrupted: By metric, its value in both runs (corrupted: mean over samples).
        tokens: Labels of each prompt's tokens.
        cue_positions: Of each prompt, the tokens corrupted.
        target_positions: Of each prompt, where the answer is read.
        foils: The word that the logit difference is taken against.
        twins: The prompts with swapped cues; empty for other corruptions.
        stream: What was restored; see :data:`kn_lens.streams.StreamName`.
        window: Layers restored at once, centered on the one named.
        corruption: How the cue was corrupted.
        direction: ``"sufficiency"``: clean states into the corrupted run; ``"necessity"``: the other way round.
        severed: What was held at the values of the run patched into, after the patched layers; or None.
        metric: The one shown by default.
        sigma: Standard deviation of the noise; NaN without noise.
        prompts: The prompts, in order.
        dropped: Prompts left out, with reasons.
    """

    effects: dict[str, Float[Tensor, "prompt position layer *unit"]]
    clean: dict[str, Float[Tensor, " prompt"]]
    corrupted: dict[str, Float[Tensor, " prompt"]]
    tokens: tuple[tuple[str, ...], ...]
    cue_positions: tuple[tuple[int, ...], ...]
    target_positions: tuple[int, ...]
    foils: tuple[str, ...]
    twins: tuple[str, ...]
    stream: str
    window: int
    corruption: str
    direction: Literal["sufficiency", "necessity"]
    severed: str | None
    metric: str
    sigma: float
    prompts: tuple[Prompt, ...]
    dropped: tuple[Dropped, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def has_units(self) -> bool:
        """Whether effects are of single heads or neurons."""
        return next(iter(self.effects.values())).dim() == 4

    def total_effect(self, metric: str | None = None) -> Float[Tensor, " prompt"]:
        """TE: what corrupting the cue takes from the answer, clean − corrupted (for KL the other way round)."""
        name = self._metric(metric)
        lost = self.clean[name] - self.corrupted[name]
        return -lost if name == "kl" else lost

    def classes(self, index: int) -> list[str]:
        """The class of each position of prompt ``index``; see :data:`CLASSES`."""
        return classes_of(len(self.tokens[index]), self.cue_positions[index], self.target_positions[index])

    def select(self, indices: Sequence[int]) -> CausalTrace:
        """The trace of some of the prompts."""
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
        """Effects averaged over the positions of each class, prompt by prompt; NaN where a prompt has none."""
        effects = self.effects[self._metric(metric)]
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
        """AIE: the mean effect over prompts, by class of position and layer, with bootstrap intervals.

        Prompts with the same cue and answer (a fact's paraphrases) are resampled together.

        Args:
            metric: By default the trace's own.
            seed: Of the bootstrap.
            draws: Of the bootstrap.

        Returns:
            Columns class, layer, (unit,) mean, low, high (95 %), prompts.
        """
        import pandas as pd

        rows = []
        labels = cue_labels(self.prompts)
        for name, values in self.by_class(metric).items():
            known = ~values.flatten(1).isnan().all(1)
            traced = values[known].flatten(1)
            asked = (~traced.isnan().any(0)).numpy()  # a trace of some layers leaves the others out
            clusters = [label for label, there in zip(labels, known.tolist(), strict=True) if there]
            mean, low, high = np.full((3, len(asked)), np.nan)
            some = traced[:, asked].double().numpy()
            mean[asked], low[asked], high[asked] = bootstrap_mean(some, clusters=clusters, seed=seed, draws=draws)
            for place, index in enumerate(np.ndindex(*values.shape[1:])):
                row = {"class": name, "layer": index[0]} | ({"unit": index[1]} if self.has_units else {})
                if not np.isnan(mean[place]):
                    rows.append(row | {"mean": mean[place], "low": low[place], "high": high[place]})
                    rows[-1]["prompts"] = int(known.sum())
        columns = ["class", "layer", *(["unit"] if self.has_units else []), "mean", "low", "high", "prompts"]
        return pd.DataFrame(rows, columns=columns)

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt and state, one column per metric."""
        import pandas as pd

        known = ~self.effects[METRICS[0]].isnan()
        places = known.nonzero().numpy()
        classes = [self.classes(index) for index in range(len(self))]
        axes = ["prompt", "position", "layer", *(["unit"] if self.has_units else [])]
        frame = pd.DataFrame(places, columns=axes)
        frame.insert(2, "token", [self.tokens[row][at] for row, at in places[:, :2]])
        frame.insert(3, "class", [classes[row][at] for row, at in places[:, :2]])
        for name, values in self.effects.items():
            frame[name] = values[known].numpy()
        return frame

    def prompts_frame(self) -> pd.DataFrame:
        """One row per prompt: text, answer, foil, and every metric clean and corrupted."""
        import pandas as pd

        frame = pd.DataFrame(
            {
                "text": [prompt.text for prompt in self.prompts],
                "group": [prompt.group for prompt in self.prompts],
                "target": [prompt.target for prompt in self.prompts],
                "foil": self.foils,
            }
        )
        for name in METRICS:
            frame[f"{name} clean"] = self.clean[name].numpy()
            frame[f"{name} corrupted"] = self.corrupted[name].numpy()
        return frame

    def _metric(self, metric: str | None) -> str:
        name = self.metric if metric is None else metric
        if name not in self.effects:
            raise SettingsError(f"no metric {name!r}.{near_matches(name, METRICS)} Metrics: {', '.join(METRICS)}")
        return name


def classes_of(length: int, cue: Sequence[int], target: int) -> list[str]:
    """The class of each position of a prompt; see :data:`CLASSES`."""
    before, first, middle, last, following, other, answer = CLASSES
    found = []
    for position in range(length):
        if position == target:
            found.append(answer)
        elif position < cue[0]:
            found.append(before)
        elif position == cue[-1]:
            found.append(last)
        elif position == cue[0]:
            found.append(first)
        elif position < cue[-1]:
            found.append(middle)
        else:
            # A masked model's blank may stand right behind the cue; what follows it is no first token then.
            found.append(following if position == cue[-1] + 1 else other)
    return found
