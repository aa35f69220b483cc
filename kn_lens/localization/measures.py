"""How local is it? Measures of attribution over a set of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.attribution.scores import AttributionScores
from kn_lens.errors import SettingsError

if TYPE_CHECKING:
    import pandas as pd


def n_sample_similarity(scores: AttributionScores | Float[Tensor, "prompt ..."]) -> float:
    """R₁², how much the attributions of n prompts point the same way (Niu et al. 2024).

    Each prompt's scores are a vector, scaled to length 1 and stacked; with s₁ the largest singular
    value, R₁² = (s₁² − 1) / (n − 1). 1: all the same direction; 0: mutually orthogonal; for n = 2
    the absolute cosine.

    Raises:
        SettingsError: With fewer than two prompts, or a prompt whose scores are all 0 or not finite.
    """
    values = scores.values if isinstance(scores, AttributionScores) else scores
    vectors = values.flatten(1).double()
    if len(vectors) < 2:
        raise SettingsError(f"R₁² compares prompts; {len(vectors)} is too few")
    norms = vectors.norm(dim=1, keepdim=True)
    bad = (~torch.isfinite(norms) | (norms == 0)).flatten().nonzero()
    if len(bad):
        raise SettingsError(f"prompt {int(bad[0])} has no direction: its scores are all 0 or not finite")
    unit = vectors / norms
    gram = unit @ unit.T  # its largest eigenvalue is s₁²
    largest = torch.linalg.eigvalsh(gram)[-1]
    return float((largest - 1) / (len(vectors) - 1))


@dataclass(frozen=True, kw_only=True)
class Concentration:
    """How unevenly |α| is spread over all units, per prompt.

    Attributes:
        shares: Share of Σ|α| held by the ``ks`` largest units.
        ks: The numbers of units.
        gini: 0: all units alike; towards 1: a single unit holds everything.
        participation_ratio: (Σ|α|)² / Σα²: the number of units that would hold as much evenly.
        n_units: All units of the site.
    """

    shares: Float[Tensor, "prompt k"]
    ks: tuple[int, ...]
    gini: Float[Tensor, " prompt"]
    participation_ratio: Float[Tensor, " prompt"]
    n_units: int

    def to_frame(self) -> pd.DataFrame:
        """The concentration curve, one row per k: mean share and its standard deviation over prompts."""
        import pandas as pd

        deviation = self.shares.std(0, correction=0)
        return pd.DataFrame({"k": self.ks, "share": self.shares.mean(0), "deviation": deviation})


def concentration(
    scores: AttributionScores | Float[Tensor, "prompt ..."], ks: tuple[int, ...] | None = None
) -> Concentration:
    """Concentration of |α|: the share of the top k units, Gini's coefficient, the participation ratio.

    Args:
        scores: Attribution of prompts.
        ks: Numbers of units; by default 1, 2, 5, 10, 20, 50 … up to all.

    Returns:
        The measures; NaN for a prompt whose scores are all 0.

    Raises:
        SettingsError: If one of ``ks`` is below 1.
    """
    values = scores.values if isinstance(scores, AttributionScores) else scores
    size = values.flatten(1).double().abs().sort(dim=1, descending=True).values
    n_units = size.shape[1]
    if ks is None:
        ladder = (step * 10**power for power in range(12) for step in (1, 2, 5))
        ks = (*(k for k in ladder if k < n_units), n_units)
    if min(ks, default=1) < 1:
        raise SettingsError(f"ks are {ks}; each must be at least 1")
    total = size.sum(1)
    total = total.masked_fill(total == 0, float("nan"))  # without any score there is nothing to spread
    running = size.cumsum(1) / total[:, None]
    ranks = torch.arange(n_units, 0, -1, dtype=torch.double)  # largest first
    gini = (2 * (size * ranks).sum(1) / total - (n_units + 1)) / n_units
    return Concentration(
        shares=running[:, [min(k, n_units) - 1 for k in ks]].float(),
        ks=tuple(ks),
        gini=gini.float(),
        participation_ratio=(total**2 / (size**2).sum(1)).float(),
        n_units=n_units,
    )
