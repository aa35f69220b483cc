"""What is shown of knowledge neurons and of ablation curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kn_lens.experiments import e1_localization as e1
from kn_lens.localization.curve import HALF
from kn_lens.plots.localization import layers_of_units
from kn_lens.plots.sites import ablation_curves
from kn_lens.runs.method_pages.material import NOTHING, Material, MethodPage, Shown, each_apart, together
from kn_lens.sites import UNIT_NAMES
from kn_lens.studies.localized import LocalizedSets
from kn_lens.studies.shares import around, told

if TYPE_CHECKING:
    from kn_lens.localization.curve import AblationCurve, Estimate, HalfPoint
    from kn_lens.studies.localized import Localized


def show_localized(of: Material) -> Shown:
    """The units found, group by group, their layers, and how concentrated the attribution is."""
    parts = of.each(lambda variant, found: _localized(of, variant, found))
    return parts[0] if parts else NOTHING


def _localized(of: Material, variant: str, found: Localized) -> Shown:
    sets = _sets([found])
    tables, figures = e1.tables(sets), e1.figures(sets)
    return Shown(
        findings=e1.findings(sets)[:1],  # the others compare kinds of data: see show_levels
        figures={
            "layers": layers_of_units({found.data: found.units}, found.n_layers, of.subtitle(variant)),
            "concentration": figures["concentration"],
        },
        tables={name: tables[name] for name in ("groups", "units")},
        kept=found,
    )


def show_levels(found: Sequence[Localized]) -> Shown:
    """Measures of all data sets side by side; facts against agreement where there are both."""
    sets = _sets(found)
    tables, said = e1.tables(sets), []
    if all(sets.of_kind(kind) for kind in ("facts", "pairs")):
        said = e1.findings(sets)[len(found) :]
    else:
        tables = {name: table for name, table in tables.items() if name != "comparison"}
    shown = {name: tables[name] for name in ("measures", "comparison") if name in tables}
    return Shown(findings=said, figures={"levels": e1.figures(sets)["levels"]}, tables=shown, brief=said)


def _sets(found: Sequence[Localized]) -> LocalizedSets:
    first = found[0]
    return LocalizedSets(sets=tuple(found), left_out={}, settings=first.settings, provenance=first.provenance)


def show_curves(of: Material) -> Shown:
    """How many answers flip as more of the top units are taken away; sites side by side."""
    curves: list[Any] = []

    def one(variant: str, curve: AblationCurve) -> Shown:
        frame, called = curve.to_frame(), of.called(variant)
        # What the figure asks of a curve, without the answers of each prompt and draw: they would stay in memory.
        curves.append((of.label, SimpleNamespace(site=curve.site, to_frame=lambda: frame)))
        found, random = curve.k_half(), curve.control_k_half()
        frame = frame.drop(columns=[name for name in frame.columns if frame[name].isna().all()])
        frame.insert(0, "site", curve.site)
        half = _half_rows(curve.site, found, random)
        return Shown(
            findings=_findings(called, curve, found, random), figures={}, tables={"half": half, "curve": frame}
        )

    parts = of.each(one)
    if not parts:
        return NOTHING
    said = [sentence for part in parts for sentence in part.findings]
    return Shown(
        findings=said,
        brief=said,
        figures={"curves": ablation_curves(curves, of.subtitle())},
        tables={name: together([part.tables[name] for part in parts]) for name in ("half", "curve")},
    )


def _half_rows(site: str, found: HalfPoint, random: HalfPoint) -> Any:
    """Where half of the answers flip, by what is taken away: a row for the top units, one for random ones."""
    import pandas as pd

    rows = []
    for name, point in (("top units", found), ("random units", random)):
        row: dict[str, Any] = {"site": site, "taken away": name}
        for measure in ("k", "taken", "share", "norm"):
            one: Estimate = getattr(point, measure)
            row |= {measure: one.value, f"{measure} low": one.low, f"{measure} high": one.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _findings(called: str, curve: AblationCurve, found: HalfPoint, random: HalfPoint) -> list[str]:
    one, many = UNIT_NAMES[curve.site]
    frame: Any = curve.to_frame()
    asked = f"{len(curve)} prompts of {len(curve.groups)} groups"
    last = frame.iloc[-1]
    ending = (
        f"with the top {int(last['k'])}, {last['flipped']:.0%} flip, with random ones {last['control_flipped']:.0%}"
    )
    if math.isnan(found.k.value):
        return [
            f"{called}: fewer than half of the answers to {asked}, all right before, flip as far as the curve goes; "
            f"{ending}."
        ]
    at = f"{found.taken.value:.4g}{around(found.taken.low, found.taken.high, '.4g')}"
    taken = f"{one} is" if found.taken.value == 1 else f"{many} are"
    beside = (
        f"random {many} do not flip half anywhere on the curve"
        if math.isnan(random.k.value)
        else f"of random {many} it takes {random.taken.value:.4g}{around(random.taken.low, random.taken.high, '.4g')}"
    )
    return [
        f"{called}: of the answers to {asked}, all right before, at least {HALF:.0%} flip once {at} {taken} taken away "
        f"({told(found.share.value, '.2%')} of all, their output {told(found.norm.value, '.2f')} of the residual "
        f"stream's norm); {beside}; {ending}."
    ]


PAGES = {
    "knowledge_neurons": MethodPage(
        about="Integrated gradients score how much each unit carries of the right answer. In half of the prompts of "
        "each group the units are searched that score high in most. |KN| is how many were found, τ the share of "
        "prompts at which the search ended, R₁² how much the scores of a group's prompts point the same way.",
        show=show_localized,
        groups=each_apart,
        across=show_levels,
    ),
    "ablation_curve": MethodPage(
        about="Units are ranked by integrated gradients on one half of each group's prompts and taken away, more and "
        "more of them, from the other half, beside as many random units of the same layers.",
        show=show_curves,
    ),
}
"""By method."""
