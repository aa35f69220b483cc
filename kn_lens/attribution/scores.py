"""What an attribution returns: a score per prompt, layer and unit, with everything that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.prompts.prompt import Dropped, Prompt, group_indices
from kn_lens.results import Result

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class AttributionScores(Result):
    """Attribution of an answer to units.

    Attributes:
        values: Score of each unit for each prompt.
        probability: Clean probability of each prompt's target (mean over the target's tokens).
        convergence_delta: Σ_i α_i − (P(w̄) − P(0)) per layer: what the rule of integration misses;
            NaN for methods without an integral.
        site: Where the units live.
        method: ``"integrated_gradients"``, ``"gradient_times_activation"`` or ``"max_activation"``.
        prompts: The prompts, in order.
        dropped: Prompts left out, with reasons.
    """

    values: Float[Tensor, "prompt layer unit"]
    probability: Float[Tensor, " prompt"]
    convergence_delta: Float[Tensor, "prompt layer"]
    site: str
    method: str
    prompts: tuple[Prompt, ...]
    dropped: tuple[Dropped, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def groups(self) -> dict[str, list[int]]:
        """Indices of the prompts of each group, in order of appearance."""
        return group_indices(self.prompts)

    def select(self, indices: Sequence[int]) -> AttributionScores:
        """The scores of some of the prompts."""
        rows = torch.tensor(list(indices), dtype=torch.long)
        return replace(
            self,
            values=self.values[rows],
            probability=self.probability[rows],
            convergence_delta=self.convergence_delta[rows],
            prompts=tuple(self.prompts[index] for index in indices),
        )

    def to_frame(self, top: int | None = 100) -> pd.DataFrame:
        """A tidy frame, one row per prompt and unit: the ``top`` units of each prompt, or all with None."""
        import pandas as pd

        count = self.values[0].numel()
        keep = count if top is None else min(top, count)
        ranked = self.values.flatten(1).topk(keep, dim=1)
        units = self.values.shape[2]
        rows = [
            {
                "prompt": index,
                "group": prompt.group or prompt.target,
                "text": prompt.text,
                "target": prompt.target,
                "layer": int(flat) // units,
                "unit": int(flat) % units,
                "score": float(score),
            }
            for index, prompt in enumerate(self.prompts)
            for score, flat in zip(ranked.values[index], ranked.indices[index], strict=True)
        ]
        return pd.DataFrame(rows)
