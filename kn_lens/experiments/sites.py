"""Experiment E9: neurons beside heads. Which holds facts, which holds agreement, and at what price?

For each data set and site: how local the attribution is (|KN|, τ, R₁², stability, concentration), what taking the
units found away costs in accuracy, and how much must go before half of the answers flip. Neurons and heads are unlike
things, so the last is counted in three currencies, each beside random units of the same layers: units, share of all
units of the site, and size of the output taken away over the size of the residual stream.

A fact's answer flips when another token comes out on top, a pair's when its preference turns: a model that knows
nothing still prefers the right word in about half of the pairs, so that half is nearly all that can flip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kn_lens.editing.replacement import Ablation, check_ablation
from kn_lens.editing.suppress import suppress
from kn_lens.editing.taken_away import check_writes
from kn_lens.errors import PromptError, SettingsError
from kn_lens.experiments.site_comparison import SiteComparison, SiteResult
from kn_lens.localization.ablation import ablation_curve
from kn_lens.localization.localize import Localization, LocalizeSettings, localize
from kn_lens.models.kind import model_name
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.load import load_data
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.positions import Positions
from kn_lens.prompts.relations import Relation

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
        progress: Show progress bars.

    Raises:
        SettingsError: For an unknown site, position or ablation, no data or sites, or too few prompts or draws.
        DataError: For unknown data.
        PromptError: If the model answers none of a data set's held-out prompts rightly.
    """
    named = [data] if isinstance(data, (str, Relation, MinimalPairs)) else list(data)
    sets = [load_data(entry) if isinstance(entry, str) else entry for entry in named]
    check_comparison(
        [entry.name for entry in sets],
        sites,
        groups=groups,
        per_group=per_group,
        controls=controls,
        positions=positions,
        ablation=ablation,
    )
    entries = []
    for entry in sets:
        for site in sites:
            wanted = LocalizeSettings(site=site, positions=positions, groups=groups, prompts=per_group, seed=seed)
            found = localize(model, entry, wanted, progress=progress)
            entries.append(_take_away(model, found, controls, seed, positions, ablation, progress))
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


def _take_away(
    model: Any, found: Localization, controls: int, seed: int, positions: Positions, ablation: Ablation, progress: bool
) -> SiteResult:
    if not found.test:
        raise PromptError(
            f"no prompts of {found.data} are left to test on: each group drawn has a single one that "
            f"{model_name(model)} can be asked; take more groups, or data with more prompts of each"
        )
    held_out = PromptBatch.from_prompts(model, [found.scores.prompts[index] for index in found.test])
    site: str = found.scores.site
    shared: dict[str, Any] = {"positions": positions, "ablation": ablation, "seed": seed, "progress": progress}
    units = {group: list(result.units) for group, result in found.found.items()}
    return SiteResult(
        found=found,
        effect=suppress(model, held_out, units, site=site, controls=controls, **shared),
        curve=ablation_curve(
            model,
            held_out,
            found.scores.select(found.selection),
            controls=min(controls, _MOST_CURVE_DRAWS),
            **shared,
        ),
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
    if per_group is not None and per_group < 2:
        raise SettingsError(f"{per_group} prompt of each group cannot be both searched and tested; take 2 or more")
    if controls < 1:
        raise SettingsError(f"controls is {controls}; give at least 1 draw")
