"""The vocabulary of units: a site is where units live, and says which hook to read and how it is shaped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from kn_lens.errors import SettingsError, UnitsError, near_matches
from kn_lens.models.kind import model_name

SiteName = Literal["mlp", "mlp_pre", "head"]
"""``mlp``: MLP neurons after the non-linearity (for a gated MLP act(gate)·up), the definition of the paper.
``mlp_pre``: before it (for a gated MLP the gate projection), as the published code reads GPT-2 and LLaMA.
``head``: attention heads, by their weighted values."""

_HOOKS = {"mlp": "mlp.hook_post", "mlp_pre": "mlp.hook_pre", "head": "attn.hook_z"}

UNIT_NAMES = {
    "mlp": ("neuron", "neurons"),
    "mlp_pre": ("neuron before the non-linearity", "neurons before the non-linearity"),
    "head": ("head", "heads"),
}
"""What a site's units are called, one and many."""

Unit = tuple[int, int]
"""A unit: (layer, index), both from 0."""


@dataclass(frozen=True)
class Site:
    """One kind of unit in one model.

    Attributes:
        name: See :data:`SiteName`.
        n_layers: Layers of the model.
        n_units: Units per layer: neurons or heads.
        is_head: Whether a unit is a head, with ``d_head`` values, rather than one number.
    """

    name: SiteName
    n_layers: int
    n_units: int
    is_head: bool

    def hook(self, layer: int) -> str:
        """Hook name of this site at ``layer``: ``"blocks.3.mlp.hook_post"``."""
        return f"blocks.{layer}.{_HOOKS[self.name]}"

    def per_unit(self, values: Float[Tensor, "... width"]) -> Float[Tensor, "... unit"]:
        """One number per unit: heads are summed over ``d_head``, neurons are as they are."""
        return values.sum(-1) if self.is_head else values

    def check(self, units: list[Unit], model: Any) -> None:
        """Refuse units that the model does not have.

        Raises:
            UnitsError: Naming the first one, and the ranges.
        """
        for layer, index in units:
            if not (0 <= layer < self.n_layers and 0 <= index < self.n_units):
                kind = "heads" if self.is_head else "neurons"
                raise UnitsError(
                    f"unit {layer}:{index} is not in {model_name(model)}, which has layers 0–{self.n_layers - 1} "
                    f"with {kind} 0–{self.n_units - 1}"
                )


def site_of(model: Any, name: str) -> Site:
    """The site ``name`` of ``model``.

    Raises:
        SettingsError: If there is no such site.
    """
    if name not in get_args(SiteName):
        raise SettingsError(
            f"no site {name!r}.{near_matches(name, get_args(SiteName))} Sites: {', '.join(get_args(SiteName))}"
        )
    cfg = model.cfg
    is_head = name == "head"
    return Site(name, cfg.n_layers, cfg.n_heads if is_head else cfg.d_mlp, is_head)  # type: ignore[arg-type]
