"""Random units to compare an edit with: as many, of the same layers, and whether there are enough draws of them.

Of a layer's many neurons, others than those found are drawn. A layer has few heads, and to leave out those found would
draw the same few others again and again: heads are drawn from all of the layer's, those found among them, so that
the edit is one of the sets that chance may draw.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.sites import Site, Unit
from kn_lens.statistics import percentile_among

FEWEST_DRAWS = 20
"""With fewer distinct draws no rank among them is told: even the most extreme would rest on p > 0.05 or on repeats."""

_ROUNDING = 1e-9


def with_controls(units: list[Unit], site: Site, controls: int, seed: str) -> Iterable[list[Unit]]:
    """The units, then ``controls`` draws of as many from the same layers: of all heads, or of other neurons.

    Where a layer has too few other neurons, all of them are drawn and the rest are drawn from the chosen ones: a
    control of fewer units would look weaker than chance is.
    """
    yield units
    generator = random.Random(seed)
    for _ in range(controls):
        drawn: list[Unit] = []
        for layer in sorted({layer for layer, _ in units}):
            own = sorted({index for at, index in units if at == layer})
            others = [index for index in range(site.n_units) if site.is_head or index not in own]
            chosen = generator.sample(others, min(len(own), len(others)))
            if len(chosen) < len(own):
                chosen += generator.sample(own, len(own) - len(chosen))
            drawn += [(layer, index) for index in chosen]
        yield drawn


def nested_controls(
    chosen: Sequence[Int[np.ndarray, " unit"]], site: Site, controls: int, seed: str
) -> list[list[Int[np.ndarray, " unit"]]]:
    """Draws for sets of units that grow: ``[set][draw]``, each as :func:`with_controls`, from one order per draw.

    Args:
        chosen: The sets as flat indices, layer · n_units + index.
        site: Where the units live.
        controls: How many draws.
        seed: Of the draws.
    """
    generator = np.random.default_rng(random.Random(seed).getrandbits(64))
    orders = [[generator.permutation(site.n_units) for _ in range(site.n_layers)] for _ in range(controls)]
    found: list[list[np.ndarray]] = []
    for units in chosen:
        layers, counts = np.unique(units // site.n_units, return_counts=True)
        last = np.zeros(site.n_layers * site.n_units, dtype=bool)
        if not site.is_head:
            last[units] = True
        draws = []
        for order in orders:
            parts = []
            for layer, count in zip(layers, counts, strict=True):
                flat = layer * site.n_units + order[layer]
                parts.append(np.concatenate([flat[~last[flat]], flat[last[flat]]])[:count])
            draws.append(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64))
        found.append(draws)
    return found


def distinct_draws(sets: Int[Tensor, "prompt draw"]) -> int:
    """How many draws differ from all before them in the units of some prompt.

    Args:
        sets: Which set of units each draw takes from each prompt; equal numbers of a prompt are equal sets.
    """
    return torch.unique(sets, dim=1).shape[1] if sets.numel() else 0


def percentile_of(value: float, draws: Float[np.ndarray, " draw"], distinct: int) -> float:
    """Percent of the draws below ``value``, ties counted half; NaN with fewer than 20 distinct draws."""
    return percentile_among(value, draws) if distinct >= FEWEST_DRAWS else float("nan")


def p_among(value: float, draws: Float[np.ndarray, " draw"], distinct: int, *, low: bool) -> float:
    """(1 + number of draws at least as extreme) / (1 + number of draws): p that chance does as much, one-sided.

    Args:
        value: What the edit does.
        draws: What the random draws do.
        distinct: How many of them are distinct; NaN is returned for fewer than 20.
        low: Whether lower values are more extreme.
    """
    if distinct < FEWEST_DRAWS:
        return float("nan")
    draws = np.asarray(draws, float)
    extreme = draws <= value + _ROUNDING if low else draws >= value - _ROUNDING
    return float((1 + extreme.sum()) / (1 + len(draws)))
