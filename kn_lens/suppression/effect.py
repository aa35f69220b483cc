"""What scaling units did: probabilities and answers before and after, tests, and the random control."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.results import Result
from kn_lens.scoring import correct_answers
from kn_lens.sites import Unit
from kn_lens.statistics import benjamini_hochberg, compare_before_after, wilson_interval
from kn_lens.suppression.controls import distinct_draws, p_among, percentile_of

if TYPE_CHECKING:
    import pandas as pd

BEFORE, AFTER, CONTROLS = 0, 1, slice(2, None)
SMALLEST = 1e-45
"""Of float32: the log of a probability that was rounded to 0 is that of this."""
OWN_TARGET, OWN_FOIL, OWN_RIVAL = "⟨target⟩", "⟨foil⟩", "⟨target after the other prefix⟩"


@dataclass(frozen=True, kw_only=True)
class UnitEffect(Result):
    """Answers before and after scaling units. Column 0 is before, 1 after, the others are control draws.

    Attributes:
        target: Probability of each prompt's target.
        foil: Probability of its foil; NaN without one.
        rival: For two-prefix pairs, probability of the target after the other prefix; else NaN.
        top: The most probable token.
        target_ids: The target tokens.
        probe_probabilities: Probability of each probe word, before and after.
        probes: The probe words.
        units: The units scaled in each prompt.
        site: Where they live.
        factor: What they were multiplied by; 0 also where they were set to a value (``settings["ablation"]``).
        prompts: The prompts, in order.
        dropped: Prompts left out, with reasons.
        drawn: Which set of units each draw takes from each prompt: equal numbers of a prompt are equal sets.
    """

    target: Float[Tensor, "prompt column"]
    foil: Float[Tensor, "prompt column"]
    rival: Float[Tensor, "prompt column"]
    top: Int[Tensor, "prompt column"]
    target_ids: Int[Tensor, " prompt"]
    probe_probabilities: Float[Tensor, "prompt 2 probe"]
    probes: tuple[str, ...]
    units: tuple[tuple[Unit, ...], ...]
    site: str
    factor: float
    prompts: tuple[Prompt, ...]
    dropped: tuple[Dropped, ...] = ()
    drawn: Int[Tensor, "prompt draw"] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def correct(self) -> Bool[Tensor, "prompt column"]:
        """Right answers: p(good) > p(bad) for pairs, the target on top for facts."""
        return correct_answers(self.top == self.target_ids[:, None], self.target, self.foil, self.rival)

    @property
    def log_target(self) -> Float[Tensor, "prompt column"]:
        """Log-probability of each prompt's target, in float64; of what was rounded to 0, that of the least float32."""
        return self.target.double().clamp_min(SMALLEST).log()

    @property
    def flipped(self) -> Bool[Tensor, "prompt column"]:
        """Answers that differ from those before: the preference of a pair, the top token of a fact."""
        return flipped_answers(self.correct, self.top, self.foil, self.rival)

    @property
    def distinct_draws(self) -> int:
        """How many of the control draws differ: a layer of few heads has few sets to draw."""
        return self.target[:, CONTROLS].shape[1] if self.drawn is None else distinct_draws(self.drawn)

    @property
    def edit(self) -> str:
        """What was done to the units, in words that follow "units are"."""
        ablation = self.settings.get("ablation", "zero")
        if ablation != "zero":
            return {"mean": "set to their mean", "resample": "set to their values in another prompt"}[ablation]
        return "suppressed" if self.factor == 0 else f"scaled by {self.factor:g}"

    def where(self, keep: Callable[[Prompt], bool]) -> UnitEffect:
        """The effect on the prompts for which ``keep`` holds, say ``lambda p: p.target in ("these", "those")``."""
        rows = [index for index, prompt in enumerate(self.prompts) if keep(prompt)]
        tensors = {
            name: getattr(self, name)[rows]
            for name in ("target", "foil", "rival", "top", "target_ids", "probe_probabilities")
        }
        return replace(
            self,
            drawn=None if self.drawn is None else self.drawn[rows],
            prompts=tuple(self.prompts[row] for row in rows),
            units=tuple(self.units[row] for row in rows),
            **tensors,
        )

    def summary(self) -> dict[str, Any]:
        """Accuracy before and after with Wilson intervals, flips, and percentiles among the controls.

        A percentile says how many of the control draws fell below the edit: near 0 for accuracy or
        near 100 for flips means more than chance units do. ``p_accuracy`` and ``p_flipped`` are (1 + draws that do at
        least as much) / (1 + draws). All are NaN with fewer than 20 distinct draws.
        """
        right = self.correct.float().mean(0)
        flips = self.flipped.float().mean(0)
        change = (self.target.clamp_min(SMALLEST).log() - self.target[:, :1].clamp_min(SMALLEST).log()).mean(0)
        n = len(self)
        row: dict[str, Any] = {
            "prompts": n,
            "units": float(torch.tensor([len(u) for u in self.units]).float().mean()),
        }
        for name, column in (("before", BEFORE), ("after", AFTER)):
            low, high = wilson_interval(int(self.correct[:, column].sum()), n)
            row |= {
                f"accuracy_{name}": float(right[column]),
                f"accuracy_{name}_low": low,
                f"accuracy_{name}_high": high,
            }
        row |= {"flipped": float(flips[AFTER]), "log_probability_change": float(change[AFTER])}
        if self.target.shape[1] > 2:
            distinct = self.distinct_draws
            row |= {"draws": self.target.shape[1] - 2, "distinct_draws": distinct}
            for name, values in (("accuracy", right), ("flipped", flips), ("log_probability_change", change)):
                row[f"control_{name}"] = float(values[CONTROLS].mean())
                row[f"percentile_{name}"] = percentile_of(float(values[AFTER]), values[CONTROLS].numpy(), distinct)
            for name, values, low in (("accuracy", right, True), ("flipped", flips, False)):
                row[f"p_{name}"] = p_among(float(values[AFTER]), values[CONTROLS].numpy(), distinct, low=low)
        return row

    def to_frame(self) -> pd.DataFrame:
        """The paper's comparison, one row per probe word, and for the prompts' own targets and foils.

        Columns: mean before and after, relative change, p of the independent and of the paired t-test,
        and both adjusted by Benjamini-Hochberg over the rows.
        """
        import pandas as pd

        probes = [(name, self.probe_probabilities[:, :, at]) for at, name in enumerate(self.probes)]
        own = [(OWN_TARGET, self.target[:, :2])]
        if not self.foil.isnan().any():
            own.append((OWN_FOIL, self.foil[:, :2]))
        if not self.rival.isnan().any():
            own.append((OWN_RIVAL, self.rival[:, :2]))
        rows = []
        for name, values in own + probes:
            compared = compare_before_after(values[:, BEFORE].numpy(), values[:, AFTER].numpy())
            rows.append({"probe": name, **vars(compared)})
        frame = pd.DataFrame(rows)
        for kind in ("independent", "paired"):
            frame[f"{kind}_p_adjusted"] = benjamini_hochberg(frame[f"{kind}_p"].to_numpy())
        return frame

    def answers_frame(self) -> pd.DataFrame:
        """One row per prompt: text, target, probabilities and correctness before and after."""
        import pandas as pd

        return pd.DataFrame(
            {
                "text": [prompt.text for prompt in self.prompts],
                "group": [prompt.group for prompt in self.prompts],
                "target": [prompt.target for prompt in self.prompts],
                "foil": [prompt.foil for prompt in self.prompts],
                "target_before": self.target[:, BEFORE],
                "target_after": self.target[:, AFTER],
                "foil_before": self.foil[:, BEFORE],
                "foil_after": self.foil[:, AFTER],
                "rival_before": self.rival[:, BEFORE],
                "rival_after": self.rival[:, AFTER],
                "correct_before": self.correct[:, BEFORE],
                "correct_after": self.correct[:, AFTER],
                "flipped": self.flipped[:, AFTER],
            }
        )


def flipped_answers(
    correct: Bool[Tensor, "prompt column"],
    top: Int[Tensor, "prompt column"],
    foil: Float[Tensor, "prompt column"],
    rival: Float[Tensor, "prompt column"],
) -> Bool[Tensor, "prompt column"]:
    """Answers that differ from those of column 0: the preference where there is a foil or rival, else the top token."""
    is_pair = ~(foil.isnan() & rival.isnan())
    return torch.where(is_pair, correct != correct[:, :1], top != top[:, :1])


def layer_counts(units: Sequence[Unit], n_layers: int) -> list[int]:
    """How many of the units lie in each layer."""
    counts = Counter(layer for layer, _ in units)
    return [counts.get(layer, 0) for layer in range(n_layers)]
