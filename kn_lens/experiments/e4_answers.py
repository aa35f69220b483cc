"""E4: do the answers change when the units found are switched off?

Units are searched on one half of each group's prompts and switched off on the other, beside as many random units of the
same layers. Prompts of groups for which no units were found take no part: nothing could be switched off in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens.errors import SettingsError
from kn_lens.experiments.answers import BEYOND, CHANGE, SwitchedOff, answer_row
from kn_lens.experiments.sizes import CONTROLS, Size, localize_data, localize_settings
from kn_lens.experiments.verdicts import SELDOM, Estimate, Verdict, at_most
from kn_lens.localization.localize import Localization, LocalizeSettings
from kn_lens.plots.answers import answers_before_after, answers_flipped
from kn_lens.plots.suppression import control_distribution
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import Dropped
from kn_lens.prompts.relations import Relation
from kn_lens.sites import UNIT_NAMES
from kn_lens.studies.localizations import kept_localizations, localization_about, require_kinds
from kn_lens.studies.localized import KIND_NAMES, dropped_sets, left_out_findings
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.shares import around, told
from kn_lens.suppression.effect import UnitEffect
from kn_lens.suppression.suppress import suppress

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

TITLE = "Do answers change when the units found are switched off?"
PAPER = (
    "Tables of accuracy and answers, all agreement paradigms and ParaRel relations: BERT-base-cased, GPT-2, LLaMA-2 7B."
)
ABOUT = (
    "The neurons that E1 found on one half of each group's prompts are set to 0 on the other half. The answer to a "
    "fact flips when another token comes out on top; that to a pair, when the other of its two words becomes the "
    "likelier. Beside it, as many random neurons of the same layers are switched off."
)


@dataclass(frozen=True, kw_only=True)
class AnswersSettings:
    """Settings of E4.

    Attributes:
        localize: How units are found; its seed is also that of the random units.
        controls: Draws of random units.
    """

    localize: LocalizeSettings = field(default_factory=LocalizeSettings)
    controls: int = CONTROLS


Result = SwitchedOff


def unsuited(model: Any) -> str | None:
    """None: every model can be asked."""
    return None


data = localize_data


def settings(model: Any, size: Size, seed: int) -> AnswersSettings:
    """The draw that E1, E3, E4 and E9 share, and 100 random draws."""
    return AnswersSettings(localize=localize_settings(model, size, seed))


def run(
    model: Any,
    data: Sequence[Relation | MinimalPairs],
    settings: AnswersSettings | None = None,
    *,
    pieces: Pieces | None = None,
    progress: bool = True,
) -> SwitchedOff:
    """Switch the units found off, data set by data set.

    Args:
        model: A loaded model; it is left as it was.
        data: Relations, minimal pairs, or both.
        settings: By default 5 groups of 6 prompts and 100 random draws.
        pieces: Where localizations and effects are found and kept.
        progress: Show progress bars.

    Raises:
        SettingsError: If no data is given, or a setting is out of its range.
        PromptError: If the model can be asked none of the facts, or none of the pairs, or no units are found for them.
    """
    settings, pieces = settings or AnswersSettings(), pieces or Pieces()
    if settings.controls < 1:
        raise SettingsError(f"controls is {settings.controls}; give at least 1 draw of random units")
    found, left_out = kept_localizations(model, data, settings.localize, pieces, progress)
    sets = {entry.name: entry for entry in data}
    effects: dict[str, UnitEffect] = {}
    for here in found:
        if not _held_out(here):
            left_out[here.data] = "no units were found for any of its groups"
            continue
        about = {**localization_about(sets[here.data], settings.localize), "controls": settings.controls}
        effects[here.data] = pieces.keep(
            f"answers-{here.data}-{settings.localize.site}",
            about,
            UnitEffect,
            lambda here=here: _switch_off(model, here, settings, progress),
        )
    require_kinds({entry.name: entry.kind for entry in data}, left_out)
    return SwitchedOff(
        effects=effects,
        kinds={here.data: here.kind for here in found if here.data in effects},
        without_units={
            here.data: sum(not len(units) for units in here.found.values()) for here in found if here.data in effects
        },
        left_out=left_out,
        settings={
            "data": list(sets),
            **asdict(settings.localize),
            "count": list(settings.localize.count),
            "controls": settings.controls,
        },
        provenance=next(iter(effects.values())).provenance,
    )


def figures(result: SwitchedOff) -> Mapping[str, go.Figure]:
    """Accuracy before and after; flips and changes of log p; and of each kind the first data set's random draws."""
    table, subtitle = tables(result)["answers"], _subtitle(result)
    made = {
        "accuracy": answers_before_after(table, subtitle),
        "flips": answers_flipped(table, SELDOM, subtitle),
    }
    for kind, name in KIND_NAMES.items():
        for data_name, effect in list(result.of_kind(kind).items())[:1]:
            made[f"random-draws-{name}"] = control_distribution(effect, f"{subtitle}, {data_name}")
    return made


def tables(result: SwitchedOff) -> Mapping[str, pd.DataFrame]:
    """``answers``: a row per data set; ``kinds``: facts and agreement pooled; ``prompts``: a row per prompt."""
    import pandas as pd

    rows = [
        {"data": name, "kind": KIND_NAMES[result.kinds[name]]}
        | answer_row({name: effect})
        | {"groups without units": result.without_units[name]}
        for name, effect in result.effects.items()
    ]
    kinds = [{"kind": KIND_NAMES[kind]} | row for kind, row in _pooled(result).items()]
    prompts = pd.concat([effect.answers_frame().assign(data=name) for name, effect in result.effects.items()])
    return {
        "answers": pd.DataFrame(rows),
        "kinds": pd.DataFrame(kinds),
        "prompts": prompts.reindex(columns=["data", *prompts.columns[:-1]]).reset_index(drop=True),
    }


def findings(result: SwitchedOff) -> list[str]:
    """What switching the units off does to each data set, and to facts and agreement as a whole."""
    sentences = []
    for name, effect in result.effects.items():
        row = answer_row({name: effect})
        none = result.without_units[name]
        more = f" For {none} more group{'' if none == 1 else 's'} no units were found." if none else ""
        sentences.append(f"{name} ({KIND_NAMES[result.kinds[name]]}): {_said(row, result)}{more}")
    for kind, row in _pooled(result).items():
        sentences.append(
            f"All {KIND_NAMES[kind]}: {_flips(row)}; of answers that were right, {told(row['right flipped'], '.1%')}. "
            f"The change of log p(target), less that with random units, is {_change(row)} nats."
        )
    return [*sentences, *left_out_findings(result.left_out)]


def verdicts(result: SwitchedOff) -> list[Verdict]:
    """Whether answers seldom change, agreement and facts apart, and whether probabilities do."""
    made, pooled = [], _pooled(result)
    for kind in ("pairs", "facts"):
        if kind not in pooled:
            continue
        name, row = KIND_NAMES[kind], pooled[kind]
        estimate = Estimate(
            quantity="share of answers flipped",
            value=row["flipped"],
            low=row["flipped low"],
            high=row["flipped high"],
            bar=SELDOM,
            below=True,
        )
        made.append(
            Verdict(
                experiment="E4",
                test=2,
                claim=f"Switching off the units of {name} seldom changes the answer",
                holds=estimate.holds,
                measured=_flips(row),
                rule=f"It holds if at most {SELDOM:.0%} of the answers flip, and fails if more do, with the whole 95 % "
                f"interval over groups of prompts.",
                estimate=estimate,
            )
        )
    held = [
        at_most(row[f"{CHANGE} beyond random low"], row[f"{CHANGE} beyond random high"], 0) for row in pooled.values()
    ]
    made.append(
        Verdict(
            experiment="E4",
            test=2,
            claim="Switching off the units found lowers the answer's probability more than random units do",
            holds=True if all(held) else False if False in held else None,
            measured="change of log p(target), less that with random units: "
            + "; ".join(
                f"{_change(row)} nats for {KIND_NAMES[kind]} ({row['prompts']} prompts of {row['groups']} groups)"
                for kind, row in pooled.items()
            ),
            short="; ".join(f"log p {_change(row)} nats, {KIND_NAMES[kind]}" for kind, row in pooled.items()),
            rule="It holds if the change of log p(target) lies below that with random units of the same layers for "
            "facts and for agreement, and fails if above for one of them, with the whole 95 % interval over groups.",
        )
    )
    return made


def dropped(result: SwitchedOff) -> list[tuple[str, Dropped]]:
    """Prompts and data sets left out."""
    sets = [(name, item) for name, effect in result.effects.items() for item in effect.dropped]
    return [*dropped_sets(result.left_out), *sets]


def _held_out(found: Localization) -> list[int]:
    """The prompts not searched, of groups that have units."""
    groups = found.scores.groups
    with_units = {index for name, units in found.found.items() if len(units) for index in groups[name]}
    return [index for index in found.test if index in with_units]


def _switch_off(model: Any, found: Localization, settings: AnswersSettings, progress: bool) -> UnitEffect:
    effect = suppress(
        model,
        [found.scores.prompts[index] for index in _held_out(found)],
        {group: list(units.units) for group, units in found.found.items()},
        site=settings.localize.site,
        positions=settings.localize.positions,  # type: ignore[arg-type]
        controls=settings.controls,
        seed=settings.localize.seed,
        progress=progress,
    )
    return replace(effect, dropped=found.scores.dropped)


def _pooled(result: SwitchedOff) -> dict[str, dict[str, Any]]:
    """A row for all data sets of each kind."""
    effects = {kind: result.of_kind(kind) for kind in KIND_NAMES}
    return {kind: answer_row(own) for kind, own in effects.items() if own}


def _flips(row: Mapping[str, Any]) -> str:
    return (
        f"{told(row['flipped'], '.1%')}{around(row['flipped low'], row['flipped high'], '.1%')} of the answers to "
        f"{row['prompts']} held-out prompts of {row['groups']} groups flip, with random units "
        f"{told(row['flipped random'], '.1%')}"
    )


def _change(row: Mapping[str, Any]) -> str:
    name = f"{CHANGE} beyond random"
    return f"{told(row[name], '+.2f')}{around(row[f'{name} low'], row[f'{name} high'], '+.2f')}"


def _said(row: Mapping[str, Any], result: SwitchedOff) -> str:
    """One data set's answers before and after."""
    many = UNIT_NAMES[result.settings["site"]][1]
    drop = row["accuracy before"] - row["accuracy after"]
    rank = row["accuracy percentile"]
    if drop <= 0:
        verdict = "no drop"
    elif np.isnan(rank):
        verdict = "too few distinct draws to tell the drop from chance"
    else:
        verdict = f"the drop is {'' if rank < BEYOND else 'not '}beyond chance"
    rank = row[f"{CHANGE} percentile"]
    lower = "" if np.isnan(rank) else f", {'' if rank < BEYOND else 'not '}lower than chance"
    shares = {
        when: f"{told(row[f'accuracy {when}'], '.1%')}"
        f"{around(row[f'accuracy {when} low'], row[f'accuracy {when} high'], '.0%')}"
        for when in ("before", "after")
    }
    random = told(row[f"{CHANGE} random"], "+.2g")
    return (
        f"without its {row['units']:.1f} {many} a group, accuracy goes from {shares['before']} to {shares['after']}, "
        f"without random ones to {told(row['accuracy random'], '.1%')}: {verdict}. {_flips(row)}. Log p(target) "
        f"changes by {told(row[CHANGE], '+.2g')} nats, with random units by {random}{lower}."
    )


def _subtitle(result: SwitchedOff) -> str:
    many = UNIT_NAMES[result.settings["site"]][1]
    return f"{result.provenance['model']}, {many} set to 0, {result.settings['controls']} draws of random ones"
