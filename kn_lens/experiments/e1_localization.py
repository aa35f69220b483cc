"""E1: are facts kept more locally than agreement? |KN|, τ and R₁² side by side.

Groups of prompts that share an answer (the wordings of a fact; sentences with the same cue and target) are searched for
the units that the answer hangs on. Intervals are over groups: prompts of one group are no independent evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kn_lens.experiments.sizes import localize_data, localize_settings
from kn_lens.experiments.verdicts import Estimate, Verdict, at_least
from kn_lens.localization.measures import Concentration
from kn_lens.plots.levels import localization_levels
from kn_lens.plots.localization import concentration_curves
from kn_lens.plots.style import SERIES
from kn_lens.prompts.prompt import Dropped
from kn_lens.sites import UNIT_NAMES
from kn_lens.statistics import MeanDifference, mean_difference
from kn_lens.studies.localizations import localized_sets
from kn_lens.studies.localized import KIND_NAMES, Localized, LocalizedSets, left_out_findings
from kn_lens.studies.shares import around, grouped_share, mean_over_groups, told

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

TITLE = "Are facts kept more locally than grammar?"
PAPER = "Section on localization, tables of |KN|, τ and R₁²: BERT-base-cased, GPT-2, LLaMA-2 7B."
ABOUT = (
    "Integrated gradients score how much each neuron carries of the right answer, for facts in several wordings and "
    "for agreement in several sentences. In half of the prompts of each group, the neurons that score high in most are "
    "searched. |KN| is how many were found, τ the share of prompts at which the search ended, and R₁² how much the "
    "scores of a group's prompts point the same way, from 0 to 1."
)
Result = LocalizedSets

MARGIN = 0.1
"""Agreement localizes as well as facts if its mean R₁² is at most so much lower."""

MORE = 1.0
"""Agreement hangs on as few units if it takes at most so many more."""

MEASURES = ("|KN|", "τ", "R₁²", "stability", "top 10 share")
_FORMS = {"|KN|": ".1f"}


def unsuited(model: Any) -> str | None:
    """None: every model can be asked."""
    return None


data = localize_data
settings = localize_settings
run = localized_sets


def figures(result: LocalizedSets) -> Mapping[str, go.Figure]:
    """Measures, a dot per group; and how concentrated the attribution is."""
    made = tables(result)
    return {
        "levels": localization_levels(made["groups"], made["measures"], result.subtitle),
        "concentration": concentration_curves(_curves(result), result.subtitle),
    }


def tables(result: LocalizedSets) -> Mapping[str, pd.DataFrame]:
    """``measures``: a row per data set; ``comparison``: facts against agreement; ``groups``; ``units``."""
    import pandas as pd

    return {
        "measures": pd.DataFrame([_measures(entry) for entry in result.sets]),
        "comparison": pd.DataFrame([_compared(result, measure) for measure in MEASURES]),
        "groups": pd.DataFrame(
            [
                {"data": entry.data, "kind": KIND_NAMES[entry.data_kind]}
                | {name: value for name, value in row.items() if name not in ("data", "frequency")}
                | {"units": " ".join(f"{layer}:{unit}" for layer, unit in row["units"])}
                for entry in result.sets
                for row in entry.rows
            ]
        ),
        "units": pd.concat([entry.units_frame() for entry in result.sets], ignore_index=True),
    }


def findings(result: LocalizedSets) -> list[str]:
    """What was found for each data set, facts against agreement, and what was left out."""
    return [
        *[sentence for entry in result.sets for sentence in _set_findings(result, entry)],
        *[_comparison_finding(result, measure) for measure in ("R₁²", "τ", "|KN|")],
        *left_out_findings(result.left_out),
    ]


def verdicts(result: LocalizedSets) -> list[Verdict]:
    """Whether agreement localizes as well, and in as few units."""
    row, found = _compared(result, "R₁²"), _difference(result, "R₁²")
    units, more = _compared(result, "|KN|"), _difference(result, "|KN|")
    lower = Estimate(
        quantity="R₁² of facts − R₁² of agreement",
        value=found.difference,
        low=found.low,
        high=found.high,
        bar=MARGIN,
        below=True,
    )
    return [
        Verdict(
            experiment="E1",
            test=1,
            claim="Agreement localizes as well as facts",
            holds=lower.holds,
            measured=f"R₁² of facts {row['facts']:.2f} ({row['groups of facts']} groups), of agreement "
            f"{row['agreement']:.2f} ({row['groups of agreement']} groups): difference "
            f"{told(found.difference, '+.2f')}{around(found.low, found.high, '+.2f')}",
            rule=f"It holds if R₁² of facts is at most {MARGIN:g} above that of agreement, and fails if it is more "
            f"than that above, with the whole 95 % interval over groups.",
            estimate=lower,
        ),
        Verdict(
            experiment="E1",
            test=1,
            claim="Agreement hangs on as few units as facts",
            holds=at_least(more.low, more.high, -MORE),
            measured=f"|KN| of facts {units['facts']:.1f} ({units['groups of facts']} groups with units), of agreement "
            f"{units['agreement']:.1f} ({units['groups of agreement']} groups with units): difference "
            f"{told(more.difference, '+.1f')}{around(more.low, more.high, '+.1f')}",
            short=f"|KN| {units['agreement']:.1f} against {units['facts']:.1f}: {told(-more.difference, '+.1f')}"
            f"{around(-more.high, -more.low, '+.1f')}",
            rule=f"It holds if |KN| of agreement is at most {MORE:g} above that of facts, and fails if it is more than "
            f"that above, with the whole 95 % interval over groups.",
        ),
    ]


def dropped(result: LocalizedSets) -> list[tuple[str, Dropped]]:
    """Prompts and data sets left out."""
    return result.dropped()


def _curves(result: LocalizedSets) -> dict[str, Concentration]:
    """By data set; where there are more than colors, facts and agreement."""
    if len(result.sets) <= len(SERIES):
        return {entry.data: entry.curve for entry in result.sets}
    curves = {name: [entry.curve for entry in result.of_kind(kind)] for kind, name in KIND_NAMES.items()}
    return {
        name: Concentration(
            shares=torch.cat([curve.shares for curve in own]),
            ks=own[0].ks,
            gini=torch.cat([curve.gini for curve in own]),
            participation_ratio=torch.cat([curve.participation_ratio for curve in own]),
            n_units=own[0].n_units,
        )
        for name, own in curves.items()
    }


def _measures(entry: Localized) -> dict[str, Any]:
    row: dict[str, Any] = {
        "data": entry.data,
        "kind": KIND_NAMES[entry.data_kind],
        "groups": len(entry.rows),
        "prompts": entry.prompts,
        "searched": entry.searched,
        "accuracy": entry.accuracy,
    }
    for measure in MEASURES:
        mean, low, high, _ = mean_over_groups([group[measure] for group in entry.rows])
        row |= {measure: mean, f"{measure} low": low, f"{measure} high": high}
    share = grouped_share([group["in range"] for group in entry.rows], range(len(entry.rows)))
    return row | {
        "in range": share.share,
        "in range low": share.low,
        "in range high": share.high,
        "Gini": float(np.nanmean(entry.gini.numpy())),
        "participation ratio": float(np.nanmean(entry.participation_ratio.numpy())),
        "max |delta|": entry.gap,
    }


def _values(result: LocalizedSets, kind: str, measure: str) -> np.ndarray:
    """One value per group of a kind; groups without one are left out, of |KN| those without units."""
    values = np.array([row[measure] for entry in result.of_kind(kind) for row in entry.rows], float)
    return values[(values > 0) if measure == "|KN|" else ~np.isnan(values)]  # a search that found nothing has no size


def _difference(result: LocalizedSets, measure: str) -> MeanDifference:
    return mean_difference(_values(result, "facts", measure), _values(result, "pairs", measure))


def _compared(result: LocalizedSets, measure: str) -> dict[str, Any]:
    facts, pairs = (mean_over_groups(_values(result, kind, measure)) for kind in ("facts", "pairs"))
    found = _difference(result, measure)
    return {
        "measure": measure,
        "facts": facts[0],
        "agreement": pairs[0],
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "difference found with 80 % power": found.detectable,
        "groups of facts": facts[3],
        "groups of agreement": pairs[3],
    }


def _few(result: LocalizedSets) -> str:
    fewest, most = result.settings["count"]
    return f"{fewest}–{most} {UNIT_NAMES[result.settings['site']][1]}"


def _set_findings(result: LocalizedSets, entry: Localized) -> list[str]:
    row = _measures(entry)
    levels = ", ".join(
        f"{measure} {row[measure]:{_form(measure)}}"
        f"{around(row[f'{measure} low'], row[f'{measure} high'], _form(measure))}"
        for measure in ("|KN|", "τ", "R₁²")
    )
    fewest, most = result.settings["count"]
    sizes = [group["|KN|"] for group in entry.rows]
    ended = sum(group["in range"] for group in entry.rows)
    others = [
        f"{count} with {what}"
        for count, what in (
            (sum(size < fewest for size in sizes), "fewer"),
            (sum(size > most for size in sizes), "more"),
        )
        if count
    ]
    return [
        f"{entry.data} ({row['kind']}): {levels}; means over {row['groups']} groups. Of their {row['prompts']} "
        f"prompts the model answers {entry.accuracy:.0%} rightly. The search ended with {_few(result)} in {ended} of "
        f"{row['groups']} groups{', ' if others else ''}{' and '.join(others)}. The top 10 units hold "
        f"{row['top 10 share']:.0%}{around(row['top 10 share low'], row['top 10 share high'], '.0%')} of Σ|α|."
    ]


def _comparison_finding(result: LocalizedSets, measure: str) -> str:
    row, form = _compared(result, measure), _form(measure)
    low, high = row["low"], row["high"]
    if np.isnan(low):
        way = "too few groups to tell them apart"
    elif low > 0:
        way = "higher for facts"
    elif high < 0:
        way = "higher for agreement"
    else:
        least = row["difference found with 80 % power"]
        way = f"no difference is seen, where one of {least:.2g} would have been with 80 % power"
    return (
        f"{measure}: {row['facts']:{form}} for facts ({row['groups of facts']} groups) against "
        f"{row['agreement']:{form}} for agreement ({row['groups of agreement']} groups); difference "
        f"{told(row['difference'], '+' + form)}{around(low, high, '+' + form)}: {way}."
    )


def _form(measure: str) -> str:
    return _FORMS.get(measure, ".2f")
