"""Experiment E9: neurons beside heads. Which holds facts, which holds agreement, and at what price?

For each data set and site: how local the attribution is (|KN|, τ, R₁², stability, concentration), what taking the
units found away costs in accuracy, and how much must go before half of the answers flip. Neurons and heads are unlike
things, so the last is counted in three currencies, each beside random units of the same layers: units, share of all
units of the site, and size of the output taken away over the size of the residual stream.

A fact's answer flips when another token comes out on top, which is one of many; a pair's when its preference turns,
which is one of two. The table says how many flip at most and at the largest k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kn_lens.errors import KnLensError, PromptError, SettingsError
from kn_lens.localization.ablation import ablation_curve
from kn_lens.localization.curve import AblationCurve
from kn_lens.localization.localize import Localization, LocalizeSettings
from kn_lens.models.kind import model_name
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.load import load_prompts
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.positions import Positions
from kn_lens.prompts.relations import Relation
from kn_lens.studies.localizations import kept_localization, localization_about
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.site_comparison import SiteComparison, SiteResult
from kn_lens.suppression.effect import UnitEffect
from kn_lens.suppression.replacement import Ablation, check_ablation
from kn_lens.suppression.suppress import suppress
from kn_lens.suppression.taken_away import check_writes
from kn_lens.tracing.answered import keep_answered

DATA = ("P36", "subject_verb_agreement")
SITES = ("mlp", "head")

_MOST_CURVE_DRAWS = 20  # at every k

Data = str | Relation | MinimalPairs


def compare_sites(
    model: Any,
    data: Data | Sequence[Data] = DATA,
    sites: Sequence[str] = SITES,
    *,
    groups: int | None = 6,
    per_group: int | None = 6,
    seed: int = 0,
    controls: int = 100,
    positions: Positions = "target",
    ablation: Ablation = "zero",
    pieces: Pieces | None = None,
    progress: bool = True,
) -> SiteComparison:
    """Compare sites on facts and on agreement: how local, and what taking units away does.

    Units are attributed by integrated gradients and searched on one half of each group's prompts; they are taken away
    from the other half.

    Args:
        model: A loaded model; it is left as it was.
        data: A data set or several, loaded or by name: by default facts (P36) and subject-verb agreement.
        sites: ``"mlp"`` and ``"head"`` by default.
        groups: Groups to draw of each data set (facts; pairs of cue and target); None takes all.
        per_group: Prompts of each group at most, two or more; None takes all.
        seed: Of every draw.
        controls: Draws of random units; the curves, which draw for every k, take 20 of them at most.
        positions: Where units are read and taken away.
        ablation: What units are set to: ``"zero"`` (default), ``"mean"`` or ``"resample"``.
        pieces: Where parts that are done are found and kept; by default nowhere.
        progress: Show progress bars.

    Raises:
        SettingsError: For an unknown site, position or ablation, no data or sites, too few prompts or draws, or an
            ablation by values of other prompts where all are of one group.
        DataError: For unknown data.
        PromptError: If the model answers none of a data set's held-out prompts rightly; data set and site are named.
    """
    named = [data] if isinstance(data, (str, Relation, MinimalPairs)) else list(data)
    sets = [load_prompts(entry) if isinstance(entry, str) else entry for entry in named]
    check_comparison(
        [entry.name for entry in sets],
        sites,
        groups=groups,
        per_group=per_group,
        controls=controls,
        positions=positions,
        ablation=ablation,
    )
    pieces = pieces or Pieces()
    entries = []
    for entry in sets:
        for site in sites:
            wanted = LocalizeSettings(site=site, positions=positions, groups=groups, prompts=per_group, seed=seed)
            try:
                found = kept_localization(model, entry, wanted, pieces, progress)
                about = localization_about(entry, wanted)
                entries.append(take_away(model, found, controls, seed, positions, ablation, progress, pieces, about))
            except KnLensError as error:
                raise type(error)(f"{entry.name}, site {site}: {error}") from error
    return SiteComparison(
        entries=tuple(entries),
        model=model_name(model),
        n_layers=model.cfg.n_layers,
        settings={
            "data": [entry.name for entry in sets],
            "sites": list(sites),
            "groups": groups,
            "per_group": per_group,
            "seed": seed,
            "controls": controls,
            "positions": positions,
            "ablation": ablation,
        },
        provenance=entries[0].found.scores.provenance,
    )


def take_away(
    model: Any,
    found: Localization,
    controls: int,
    seed: int,
    positions: Positions,
    ablation: Ablation,
    progress: bool,
    pieces: Pieces | None = None,
    about: Mapping[str, Any] | None = None,
) -> SiteResult:
    """Take away what was found on one half of the prompts from the other: the units found, and more and more.

    With ``pieces``, ``about`` tells what the localization depends on.
    """
    if not found.test:
        raise PromptError(
            f"no prompts are left to test on: each group drawn has a single one that "
            f"{model_name(model)} can be asked; take more groups, or data with more prompts of each"
        )
    pieces = pieces or Pieces()
    about = {**(about or {}), "seed": seed, "controls": controls, "positions": positions, "ablation": ablation}
    held_out = PromptBatch.from_prompts(model, [found.scores.prompts[index] for index in found.test])
    answered = keep_answered(model, held_out, "ablation curves")
    if ablation != "zero":
        _check_groups(answered, len(held_out), ablation)
    site: str = found.scores.site
    shared: dict[str, Any] = {"positions": positions, "ablation": ablation, "seed": seed, "progress": progress}
    units = {group: list(result.units) for group, result in found.found.items()}
    most = min(controls, _MOST_CURVE_DRAWS)
    return SiteResult(
        found=found,
        effect=pieces.keep(
            f"effect-{found.data}-{site}",
            about,
            UnitEffect,
            lambda: (
                suppress(model, held_out, units, site=site, controls=controls, **shared)
                if any(units.values())
                else _no_effect(model, held_out, site, shared)
            ),
        ),
        curve=pieces.keep(
            f"curve-{found.data}-{site}",
            about,
            AblationCurve,
            lambda: ablation_curve(model, answered, found.scores.select(found.selection), controls=most, **shared),
        ),
    )


def _no_effect(model: Any, batch: PromptBatch, site: str, shared: dict[str, Any]) -> UnitEffect:
    """No units were found: answers after are those before, and there is nothing to draw at random."""
    # A factor of 1 changes no bit of any answer.
    kept = suppress(model, batch, [(0, 0)], factor=1.0, site=site, controls=0, **{**shared, "ablation": "zero"})
    settings = {**kept.settings, "factor": 0.0, "ablation": shared["ablation"]}
    return replace(kept, units=((),) * len(batch), factor=0.0, settings=settings)


def _check_groups(batch: PromptBatch, asked: int, ablation: str) -> None:
    """Values of prompts with the same answer take nothing of the answer away."""
    if len(batch.groups) < 2:
        raise SettingsError(
            f"ablation={ablation!r} sets units to values from other prompts, and of {asked} held-out prompts those "
            f"answered rightly ({len(batch)}) are all of the group {next(iter(batch.groups))!r}, with the same answer: "
            f"draw more groups, or take ablation='zero'"
        )


def check_comparison(
    names: Sequence[str],
    sites: Sequence[str],
    *,
    groups: int | None,
    per_group: int | None,
    controls: int,
    positions: str,
    ablation: str,
) -> None:
    """Refuse settings out of their range before any model is loaded.

    Raises:
        SettingsError: Naming the first one.
    """
    for what, given in (("data set", list(names)), ("site", list(sites))):
        if not given:
            raise SettingsError(f"no {what} was named; name at least one")
        for name in given:
            if given.count(name) > 1:
                raise SettingsError(f"the {what} {name!r} is named twice; name each once")
    for site in sites:
        LocalizeSettings(site=site, positions=positions).check()
        check_writes(site)
    check_ablation(ablation)
    if groups is not None and groups < 1:
        raise SettingsError(f"groups is {groups}; give 1 or more, or None for all")
    if groups == 1 and ablation != "zero":
        raise SettingsError(
            f"ablation={ablation!r} sets units to values from other prompts, which in a single group have the same "
            f"answer: draw 2 groups or more, or take ablation='zero'"
        )
    if per_group is not None and per_group < 2:
        raise SettingsError(f"{per_group} prompt of each group cannot be both searched and tested; take 2 or more")
    if controls < 1:
        raise SettingsError(f"controls is {controls}; give at least 1 draw")
