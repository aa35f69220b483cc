"""A rank-one edit: W += u (v* − kW)ᵀ with u = C⁻¹k / (kᵀC⁻¹k), so that the key k now gives v*."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.editing.edit import Edit
from kn_lens.editing.rows import EditSite

if TYPE_CHECKING:
    import pandas as pd

WEIGHTS = {"mlp": "mlp.W_out", "attn": "attn.W_O"}
"""The matrix of each site, as [d_in, d_out]; W_O with its heads side by side."""


def parameter_of(layer: int, site: str) -> str:
    """The name of a site's matrix at a layer: ``"blocks.4.mlp.W_out"``."""
    return f"blocks.{layer}.{WEIGHTS[site]}"


@dataclass(frozen=True, kw_only=True)
class RankOneEdit(Edit):
    """An edit of one matrix by an outer product; ``rows`` and ``changes`` are empty, the product is made when applied.

    Attributes:
        layer: Of the matrix.
        site: ``"mlp"``: W_out; ``"attn"``: W_O.
        key: k, the mean input over the prefixes.
        left: u = C⁻¹k / (kᵀC⁻¹k); of the variant with mixed keys, the denominator holds the plain prompt's key.
        right: What the output at the key changes by, v* − kW − b.
        start: v₀, the output at the key before the edit.
        losses, nll, kl: The whole loss of the search for v*, and its parts, at each step; empty where none was made.
    """

    layer: int
    site: EditSite
    key: Float[Tensor, " d_in"]
    left: Float[Tensor, " d_in"]
    right: Float[Tensor, " d_out"]
    start: Float[Tensor, " d_out"]
    losses: Float[Tensor, " step"]
    nll: Float[Tensor, " step"]
    kl: Float[Tensor, " step"]

    @property
    def parameter(self) -> str:
        """The name of the matrix."""
        return parameter_of(self.layer, self.site)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the weights that change."""
        return (self.parameter,)

    @property
    def value(self) -> Float[Tensor, " d_out"]:
        """v*, what the key gives after the edit."""
        return self.start + self.right

    @property
    def norm(self) -> float:
        """Frobenius norm of the update: ‖u‖ · ‖v* − kW‖."""
        return float(self.left.double().norm() * self.right.double().norm())

    def update(self) -> Float[Tensor, "d_in d_out"]:
        """What is added to the matrix."""
        return torch.outer(self.left, self.right)

    def add_to(self, name: str, weight: Tensor) -> None:
        """Add the update to ``weight`` in place."""
        left, right = self.left.to(weight), self.right.to(weight)
        weight += torch.outer(left, right).reshape(weight.shape)

    def shape_problem(self, name: str, weight: Tensor) -> str | None:
        """Why this edit does not fit ``weight``, or None."""
        d_in, d_out = weight[..., 0].numel(), weight.shape[-1]
        if (d_in, d_out) == (len(self.left), len(self.right)):
            return None
        return f"it is an update of {len(self.left)} × {len(self.right)}, and the weight has {d_in} × {d_out}"

    def to_frame(self) -> pd.DataFrame:
        """One row per step of the search: loss and its parts."""
        import pandas as pd

        columns = {"loss": self.losses, "nll": self.nll, "kl": self.kl}
        frame = pd.DataFrame({name: values.tolist() for name, values in columns.items()})
        return frame.rename_axis("step").reset_index()
