"""Localizations that several experiments share: each data set is searched once.

A data set that a model cannot be asked, or that leaves nothing to test on, is left out with its reason; only where
that is so of all facts, or of all agreement, is there nothing to run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from kn_lens.errors import PromptError, SettingsError
from kn_lens.localization.localize import Localization, LocalizeSettings, localize
from kn_lens.models.kind import model_name
from kn_lens.prompts.load import data_hash
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.relations import Relation
from kn_lens.studies.localized import KIND_NAMES as KIND_NAMES
from kn_lens.studies.localized import Localized, LocalizedSets
from kn_lens.studies.localized import dropped_sets as dropped_sets
from kn_lens.studies.localized import left_out_findings as left_out_findings
from kn_lens.studies.pieces import Pieces

log = logging.getLogger(__name__)


def localization_about(data: Relation | MinimalPairs, settings: LocalizeSettings) -> dict[str, Any]:
    """All that a localization depends on but the model."""
    return {"data": data.name, "sha256": data_hash(data), **asdict(settings)}


def kept_localization(
    model: Any,
    data: Relation | MinimalPairs,
    settings: LocalizeSettings,
    pieces: Pieces | None = None,
    progress: bool = True,
) -> Localization:
    """The localization of a data set, from the pieces if it is there.

    Raises:
        PromptError: If the model can be asked none of the prompts.
    """
    return (pieces or Pieces()).keep(
        f"localization-{data.name}-{settings.site}",
        localization_about(data, settings),
        Localization,
        lambda: localize(model, data, settings, progress=progress),
    )


def kept_localizations(
    model: Any,
    data: Sequence[Relation | MinimalPairs],
    settings: LocalizeSettings,
    pieces: Pieces | None = None,
    progress: bool = True,
) -> tuple[list[Localization], dict[str, str]]:
    """Localizations of data sets, and why others of them have none.

    Args:
        model: A loaded model.
        data: Data sets.
        settings: Of each localization.
        pieces: Where they are found and kept.
        progress: Show progress bars.

    Returns:
        The localizations in order, and reasons by the names of the data left out.

    Raises:
        SettingsError: For a setting out of its range, or if there is no data, or one name twice.
        PromptError: If all facts that were given, or all agreement, are left out; with the reasons.
    """
    settings.check()
    names = [entry.name for entry in data]
    if not names:
        raise SettingsError("no data sets were given; give at least one")
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"the data set {name!r} is given twice; give each once")
    pieces = pieces or Pieces()
    found, left_out = [], {}
    for entry in data:
        try:
            here = kept_localization(model, entry, settings, pieces, progress)
        except PromptError as error:
            left_out[entry.name] = str(error)
            continue
        if here.test:
            found.append(here)
        else:
            left_out[entry.name] = (
                f"{model_name(model)} can be asked a single prompt of each group drawn, and units are searched on one "
                f"half of a group's prompts and tested on the other"
            )
    for name, reason in left_out.items():
        log.info("%s is left out: %s", name, reason)
    require_kinds({entry.name: entry.kind for entry in data}, left_out)
    return found, left_out


def require_kinds(kinds: Mapping[str, str], left_out: Mapping[str, str]) -> None:
    """Refuse to go on if all data of a kind is left out.

    Raises:
        PromptError: With the reasons.
    """
    for kind in dict.fromkeys(kinds.values()):
        names = [name for name, own in kinds.items() if own == kind]
        if all(name in left_out for name in names):
            reasons = "; ".join(f"{name}: {left_out[name]}" for name in names)
            raise PromptError(f"no prompts of {KIND_NAMES[kind]} are left to ask: {reasons}")


def check_both_kinds(data: Sequence[Relation | MinimalPairs]) -> None:
    """Refuse data without facts or without pairs.

    Raises:
        SettingsError: Naming the kind that is missing.
    """
    kinds = {entry.kind for entry in data}
    for kind, verb, what in (("facts", "were", "a relation"), ("pairs", "was", "a paradigm of minimal pairs")):
        if kind not in kinds:
            raise SettingsError(
                f"facts are compared with agreement, and no {KIND_NAMES[kind]} {verb} given: add {what}"
            )


def localized_sets(
    model: Any,
    data: Sequence[Relation | MinimalPairs],
    settings: LocalizeSettings | None = None,
    *,
    pieces: Pieces | None = None,
    progress: bool = True,
) -> LocalizedSets:
    """Localize facts and agreement, for E1 and E3.

    Args:
        model: A loaded model; it is left as it was.
        data: Relations and minimal pairs, at least one of each.
        settings: Of each localization; by default 5 groups of 6 prompts.
        pieces: Where localizations are found and kept.
        progress: Show progress bars.

    Raises:
        SettingsError: If facts or agreement are missing, or a setting is out of its range.
        PromptError: If the model can be asked no facts, or for no agreement.
    """
    settings = settings or LocalizeSettings()
    check_both_kinds(data)
    found, left_out = kept_localizations(model, data, settings, pieces, progress)
    return LocalizedSets(
        sets=tuple(Localized.of(entry) for entry in found),
        left_out=left_out,
        settings={"data": [entry.name for entry in data], **asdict(settings), "count": list(settings.count)},
        provenance=found[0].scores.provenance,
    )
