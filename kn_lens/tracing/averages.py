"""Mean effects over prompts with intervals, for whatever was traced, patched or cut off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from kn_lens.prompts.cue_pairs import cue_labels
from kn_lens.prompts.prompt import Prompt
from kn_lens.statistics import bootstrap_mean

if TYPE_CHECKING:
    import pandas as pd


def average_frame(
    effects: Mapping[str, Float[Tensor, "prompt layer *unit"]],
    prompts: Sequence[Prompt],
    label: str,
    axes: Sequence[str],
    *,
    seed: int,
    draws: int,
) -> pd.DataFrame:
    """Means and 95 % bootstrap intervals; prompts with the same cue and answer are resampled together.

    Args:
        effects: By name (a class of positions, a block); NaN for a prompt that has none, and for what was not traced.
        prompts: The prompts.
        label: The column of those names; left out if it is empty.
        axes: Names of the axes behind the prompt's.
        seed: Of the bootstrap.
        draws: Of the bootstrap.

    Returns:
        Columns (label,) axes …, mean, low, high, prompts; one row per state that was traced.
    """
    import pandas as pd

    labels = cue_labels(prompts)
    parts = []
    for name, values in effects.items():
        flat = values.flatten(1).double().numpy()
        known = ~np.isnan(flat).all(1)
        if not known.any():
            continue
        asked = ~np.isnan(flat[known]).any(0)
        clusters = [labels[index] for index in known.nonzero()[0]]
        mean, low, high = bootstrap_mean(flat[known][:, asked], clusters=clusters, seed=seed, draws=draws)
        places = np.array(list(np.ndindex(*values.shape[1:])))[asked]
        part = pd.DataFrame(places, columns=list(axes))
        if label:
            part.insert(0, label, name)
        parts.append(part.assign(mean=mean, low=low, high=high, prompts=int(known.sum())))
    columns = [*([label] if label else []), *axes, "mean", "low", "high", "prompts"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)
