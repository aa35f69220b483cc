"""Random units to compare an edit with: as many, of the same layers."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from kn_lens.sites import Site, Unit


def with_controls(units: list[Unit], site: Site, controls: int, seed: str) -> Iterable[list[Unit]]:
    """The units, then ``controls`` draws of as many others from the same layers.

    Where a layer has too few others (most of a layer's heads were chosen), all of them are drawn and the rest are
    drawn from the chosen ones: a control of fewer units would look weaker than chance is.
    """
    yield units
    generator = random.Random(seed)
    for _ in range(controls):
        drawn: list[Unit] = []
        for layer in sorted({layer for layer, _ in units}):
            own = sorted({index for at, index in units if at == layer})
            others = [index for index in range(site.n_units) if index not in own]
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
        own = np.zeros(site.n_layers * site.n_units, dtype=bool)
        own[units] = True
        draws = []
        for order in orders:
            parts = []
            for layer, count in zip(layers, counts, strict=True):
                flat = layer * site.n_units + order[layer]
                others_first = np.concatenate([flat[~own[flat]], flat[own[flat]]])
                parts.append(others_first[:count])
            draws.append(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64))
        found.append(draws)
    return found
