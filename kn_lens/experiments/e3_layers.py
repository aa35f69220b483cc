"""E3: in which layers do the units of facts and of agreement lie?

The units of one group were searched in the same prompts and are no independent evidence: intervals and the test of a
difference take groups as they are, with all their units. A unit found for two groups counts twice, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from kn_lens.experiments.sizes import localize_data, localize_settings
from kn_lens.experiments.verdicts import MOSTLY, Estimate, Verdict
from kn_lens.plots.localization import layers_of_units
from kn_lens.plots.style import SERIES
from kn_lens.prompts.prompt import Dropped
from kn_lens.sites import UNIT_NAMES
from kn_lens.studies.localizations import localized_sets
from kn_lens.studies.localized import KIND_NAMES, Localized, LocalizedSets, left_out_findings
from kn_lens.studies.shares import Share, grouped_share
from kn_lens.suppression.effect import layer_counts

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

TITLE = "Do the units of facts and of grammar lie in the same layers?"
PAPER = "Histogram of layers: BERT-base-cased, GPT-2, LLaMA-2 7B."
ABOUT = (
    "The neurons that the search of E1 ended with are counted by layer, those of facts beside those of agreement. The "
    "distance of the two distributions is held against that of groups shuffled between them."
)
Result = LocalizedSets

_DRAWS = 2000
_LEVEL = 0.05


def unsuited(model: Any) -> str | None:
    """Why not, if the model has a single layer."""
    return None if model.cfg.n_layers > 1 else "the model has a single layer, and so no upper ones"


data = localize_data
settings = localize_settings
run = localized_sets


def figures(result: LocalizedSets) -> Mapping[str, go.Figure]:
    """Layers of the units found: facts beside agreement; and by data set, where there are few enough."""
    n_layers = result.sets[0].n_layers
    kinds = {KIND_NAMES[kind]: [unit for entry in result.of_kind(kind) for unit in entry.units] for kind in KIND_NAMES}
    made = {"layers": layers_of_units(kinds, n_layers, result.subtitle)}
    if len(result.sets) <= len(SERIES):
        sets = {entry.data: entry.units for entry in result.sets}
        made["layers-by-data"] = layers_of_units(sets, n_layers, result.subtitle)
    return made


def tables(result: LocalizedSets) -> Mapping[str, pd.DataFrame]:
    """``layers``: where units lie, a row per data set and per kind; ``counts``: units by layer; ``units``."""
    import pandas as pd

    rows = [{"data": entry.data, **_row([entry])} for entry in result.sets]
    rows += [{"data": f"all {KIND_NAMES[kind]}", **_row(result.of_kind(kind))} for kind in KIND_NAMES]
    counts = [
        {"data": entry.data, "kind": KIND_NAMES[entry.data_kind], "layer": layer, "units": count}
        for entry in result.sets
        for layer, count in enumerate(layer_counts(entry.units, entry.n_layers))
    ]
    return {
        "layers": pd.DataFrame(rows),
        "counts": pd.DataFrame(counts),
        "units": pd.concat([entry.units_frame() for entry in result.sets], ignore_index=True),
    }


def findings(result: LocalizedSets) -> list[str]:
    """Where the units lie, and whether those of facts and of agreement lie apart."""
    n_layers = result.sets[0].n_layers
    upper = f"layers {_first_upper(n_layers)}–{n_layers - 1} of 0–{n_layers - 1}"
    sentences = []
    for kind, name in KIND_NAMES.items():
        row, share = _row(result.of_kind(kind)), upper_share(result.of_kind(kind))
        if not share.n:
            sentences.append(
                f"No units were found for {name}, in {row['groups']} group{'' if row['groups'] == 1 else 's'}."
            )
            continue
        side = (
            "mostly in the upper half"
            if share.low >= MOSTLY
            else "mostly not in the upper half"
            if share.high < MOSTLY
            else "not surely on one side"
        )
        sentences.append(
            f"Units of {name}: {share} of {share.n} lie in the upper half of the layers ({upper}), median layer "
            f"{row['median layer']:g}; {share.groups} groups with units, 95 % interval over groups: {side}."
        )
    distance, p = layer_distance(result)
    if not np.isnan(distance):
        apart = "they lie apart" if p < _LEVEL else "no more than chance"
        sentences.append(
            f"From the layers of facts to those of agreement it is {distance:.2f} layers on average (Wasserstein "
            f"distance; overlap of the histograms {overlap(result):.0%}); of groups shuffled between the two, "
            f"{p:.1%} of {_DRAWS:,} draws lie as far apart: {apart}."
        )
    return [*sentences, *left_out_findings(result.left_out)]


def verdicts(result: LocalizedSets) -> list[Verdict]:
    """Whether the units of each kind lie mostly in the upper layers."""
    made = []
    n_layers = result.sets[0].n_layers
    for kind, name in KIND_NAMES.items():
        share = upper_share(result.of_kind(kind))
        estimate = Estimate(
            quantity="share of units in the upper half",
            value=share.share,
            low=share.low,
            high=share.high,
            bar=MOSTLY,
            below=False,
        )
        made.append(
            Verdict(
                experiment="E3",
                test=1,
                claim=f"Units of {name} lie mostly in the upper layers",
                holds=estimate.holds,
                measured=f"{share.successes} of {share.n} {UNIT_NAMES[result.settings['site']][1]} found for "
                f"{share.groups} groups lie in layers {_first_upper(n_layers)}–{n_layers - 1}: {share}"
                if share.n
                else "no units were found",
                rule=f"It holds if more than {MOSTLY:.0%} of the units lie in the upper half of the layers, and fails "
                f"if fewer, with the whole 95 % interval over groups.",
                estimate=estimate if share.n else None,
                beside=True,
            )
        )
    return made


def dropped(result: LocalizedSets) -> list[tuple[str, Dropped]]:
    """Prompts and data sets left out."""
    return result.dropped()


def upper_share(sets: Sequence[Localized]) -> Share:
    """The share of units that lie in the upper half of the layers (the middle one of an odd number does not)."""
    found = [
        (layer >= _first_upper(entry.n_layers), (entry.data, row["group"]))
        for entry in sets
        for row in entry.rows
        for layer, _ in row["units"]
    ]
    return grouped_share([flag for flag, _ in found], [group for _, group in found])


def overlap(result: LocalizedSets) -> float:
    """Σ min(share of facts' units, share of agreement's units) over layers: 1 for like histograms, 0 for disjoint."""
    facts, pairs = (_by_group(result.of_kind(kind)).sum(0) for kind in KIND_NAMES)
    if not facts.sum() or not pairs.sum():
        return float("nan")
    return float(np.minimum(facts / facts.sum(), pairs / pairs.sum()).sum())


def layer_distance(result: LocalizedSets, seed: int = 0) -> tuple[float, float]:
    """Wasserstein distance between the layers of facts' and of agreement's units, Σ |CDF − CDF|, and its p.

    Groups, each with all of its units, are shuffled between facts and agreement; p = (1 + draws as far apart) /
    (1 + draws). Both are NaN where one kind has no units.
    """
    facts, pairs = (_by_group(result.of_kind(kind)) for kind in KIND_NAMES)
    if not facts.sum() or not pairs.sum():
        return float("nan"), float("nan")
    observed = _distance(facts.sum(0), pairs.sum(0))
    together, generator = np.concatenate([facts, pairs]), np.random.default_rng(seed)
    beyond = 0
    for _ in range(_DRAWS):
        order = generator.permutation(len(together))
        one, two = together[order[: len(facts)]].sum(0), together[order[len(facts) :]].sum(0)
        beyond += _distance(one, two) >= observed - 1e-12
    return observed, (1 + beyond) / (1 + _DRAWS)


def _distance(first: Float[np.ndarray, " layer"], second: Float[np.ndarray, " layer"]) -> float:
    return float(np.abs(np.cumsum(first / first.sum()) - np.cumsum(second / second.sum())).sum())


def _by_group(sets: Sequence[Localized]) -> Float[np.ndarray, "group layer"]:
    """Units by layer of each group that has any."""
    counts = [layer_counts([(*unit,) for unit in row["units"]], entry.n_layers) for entry in sets for row in entry.rows]
    found = np.array(counts, float)
    return found[found.sum(1) > 0]


def _row(sets: Sequence[Localized]) -> dict[str, Any]:
    share, layers = upper_share(sets), [layer for entry in sets for layer, _ in entry.units]
    return {
        "kind": KIND_NAMES[sets[0].data_kind],
        "groups": sum(len(entry.rows) for entry in sets),
        "groups with units": share.groups,
        "units": share.n,
        "distinct units": len({unit for entry in sets for unit in entry.units}),
        "median layer": float(np.median(layers)) if layers else float("nan"),
        "mean layer": float(np.mean(layers)) if layers else float("nan"),
        "upper half": share.share,
        "upper half low": share.low,
        "upper half high": share.high,
    }


def _first_upper(n_layers: int) -> int:
    return (n_layers + 1) // 2
