"""The shared run of E2 and E5: the number of a determiner phrase hangs on a few units, which are switched off.

Units are searched on prompts whose answer is plural (half of one paradigm) and suppressed on prompts that they were
not searched on. E2 asks which words become more or less probable, E5 whether the change follows frequency.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kn_lens.attribution.integrated_gradients import integrated_gradients
from kn_lens.errors import DataError, PromptError, SettingsError
from kn_lens.experiments.sizes import CONTROLS, Size, quick
from kn_lens.frequency import ENGLISH, check_source, load_counts
from kn_lens.localization.search import KnowledgeNeurons, find_knowledge_neurons
from kn_lens.localization.stability import split_half
from kn_lens.models.kind import is_masked, model_name
from kn_lens.organisms.corpus import corpus_of
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.cue_pairs import cue_pair
from kn_lens.prompts.load import data_hash
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.prompts.relations import Relation
from kn_lens.results import Result
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.saved import reading
from kn_lens.suppression.effect import UnitEffect
from kn_lens.suppression.frequency_effect import FrequencyEffect, frequency_effect
from kn_lens.suppression.suppress import suppress

FAMILIES = (
    "determiner_noun_agreement",
    "determiner_noun_agreement_with_adjective",
    "determiner_noun_agreement_irregular",
)
"""Paradigms, without their ``_1`` or ``_2``: units are searched on the first; effects are measured on all."""

KNOWN_COUNTS = "known"
"""Counts from the text that the model was trained on, where it is known; else from English at large."""

COUNTS_MISSING = (
    "counts of how often two words stand together need the wordsegment package: pip install 'kn-lens[counts]'"
)

PLURAL = ("these", "those")
PROBES = ("this", "that", "these", "those", "the")
"""Words compared in a masked model, which is asked for the determiner; "the" goes with both numbers."""

_SEARCHED, _SINGULAR = 24, 30
"""Of a small run."""

_PARTS = {"found": KnowledgeNeurons, "effect": UnitEffect, "frequency": FrequencyEffect, "preference": FrequencyEffect}


@dataclass(frozen=True, kw_only=True)
class NumberSettings:
    """Settings of the run.

    Attributes:
        searched: Prompts with plural answers that units are searched on, at most; None takes half of the paradigm.
        singular: Prompts with singular answers asked of each paradigm, at most; None takes all, as of plural ones.
        counts: Where pair counts come from: :data:`KNOWN_COUNTS` (default), a source of :func:`kn_lens.load_counts`,
            or None for none.
        controls: Draws of random units.
        seed: Of every draw.
    """

    searched: int | None = None
    singular: int | None = None
    counts: str | None = KNOWN_COUNTS
    controls: int = CONTROLS
    seed: int = 0

    def check(self) -> None:
        """Refuse settings out of their range.

        Raises:
            SettingsError: Naming the first one.
            DataError: If there is no such source of counts.
        """
        for name in ("searched", "singular"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}; give 1 prompt or more, or None for all")
        if self.controls < 0:
            raise SettingsError(f"controls is {self.controls}; give 0 or more draws")
        if self.counts not in (None, KNOWN_COUNTS):
            check_source(self.counts)


@dataclass(frozen=True, kw_only=True)
class NumberUnits(Result):
    """What was found and what its suppression did.

    Attributes:
        found: The units that plural answers hang on.
        effect: Their suppression on prompts of both numbers that they were not searched on.
        frequency: The effect on plural answers, log p(target), against pair counts, or None without counts.
        preference: The same of the preference, log p(target) − log p(rival).
        uncounted: Why there are no counts; empty where there are.
        searched: The prompts searched.
        n_layers: Layers of the model.
        left_out: Prompts that the model was not asked, by the name of their data.
    """

    found: KnowledgeNeurons
    effect: UnitEffect
    frequency: FrequencyEffect | None
    preference: FrequencyEffect | None
    uncounted: str
    searched: tuple[Prompt, ...]
    n_layers: int
    left_out: dict[str, tuple[Dropped, ...]]

    @property
    def plural(self) -> UnitEffect:
        """The effect on prompts whose answer is plural."""
        return self.effect.where(is_plural)

    @property
    def singular(self) -> UnitEffect:
        """The effect on prompts whose answer is singular."""
        return self.effect.where(lambda prompt: not is_plural(prompt))

    @property
    def dropped(self) -> list[tuple[str, Dropped]]:
        """Prompts that were left out, each with the name of its data."""
        return [(name, entry) for name, entries in self.left_out.items() for entry in entries]

    def save(self, folder: str | Path) -> Path:
        """Write each part into a subfolder of ``folder`` (made if needed), and the rest.

        Raises:
            OutputError: If it cannot be written.
        """
        folder = Path(folder)
        parts = {name: part for name in _PARTS if (part := getattr(self, name)) is not None}
        for name, part in parts.items():
            part.save(folder / name)
        Result.save(replace(self, **{name: name for name in parts}), folder)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> NumberUnits:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds none, or a damaged one.
        """
        folder = Path(folder)
        with reading(folder, "number units"):
            plain = super().load(folder)
            written = [name for name in _PARTS if getattr(plain, name) is not None]
            return replace(plain, **{name: _PARTS[name].load(folder / name) for name in written})


def is_plural(prompt: Prompt) -> bool:
    """Whether a determiner-noun prompt has a plural determiner, as its cue or as its answer."""
    return cue_pair(prompt)[0] in PLURAL


def number_data(model: Any, size: Size) -> tuple[str, ...]:
    """Names of the paradigms: a masked model is asked for the determiner, a causal one for the noun."""
    return tuple(f"{name}_{2 if is_masked(model) else 1}" for name in FAMILIES)


def number_settings(model: Any, size: Size, seed: int) -> NumberSettings:
    """All prompts; of a small run fewer singular ones, and fewer searched on a model that takes seconds a prompt."""
    if size == "full":
        return NumberSettings(seed=seed)
    return NumberSettings(searched=None if quick(model) else _SEARCHED, singular=_SINGULAR, seed=seed)


def counts_source(model: Any, counts: str | None = KNOWN_COUNTS) -> str | None:
    """The source of counts that is taken for a model; None if there is none."""
    if counts != KNOWN_COUNTS:
        return counts
    return corpus_of(model_name(model)) or (ENGLISH if importlib.util.find_spec("wordsegment") else None)


def kept_number_units(
    model: Any,
    data: Sequence[Relation | MinimalPairs],
    settings: NumberSettings | None = None,
    pieces: Pieces | None = None,
    progress: bool = True,
) -> NumberUnits:
    """The run, from the pieces if it is there.

    Args:
        model: A loaded model; it is left as it was. A masked one is asked for the determiner, a causal one for the
            noun.
        data: Paradigms of determiner and noun, the first of which is searched.
        settings: By default those of :class:`NumberSettings`.
        pieces: Where it is found and kept; by default nowhere.
        progress: Show progress bars.

    Raises:
        DataError: If there is no data, data other than paradigms of determiner and noun, or no unit is found.
        SettingsError: For a setting out of its range.
        PromptError: If the model can be asked none of the prompts.
    """
    settings = settings or NumberSettings()
    settings.check()
    paradigms = [entry for entry in data if isinstance(entry, MinimalPairs)]
    if not data or len(paradigms) < len(data):
        given = ", ".join(entry.name for entry in data if not isinstance(entry, MinimalPairs)) or "nothing"
        raise DataError(f"number is searched in paradigms of determiner and noun, such as {FAMILIES[0]}_1, not {given}")
    source = counts_source(model, settings.counts)
    about = {
        "data": {entry.name: data_hash(entry) for entry in paradigms},
        **asdict(settings),
        "counts": source,
        "counts_written": Path(source).stat().st_mtime_ns if source and Path(source).is_file() else None,
    }
    return (pieces or Pieces()).keep(
        "number-units", about, NumberUnits, lambda: _number_units(model, paradigms, settings, source, progress)
    )


def _number_units(
    model: Any, data: Sequence[MinimalPairs], settings: NumberSettings, source: str | None, progress: bool
) -> NumberUnits:
    batches = [entry.prompts(model) for entry in data]
    for entry, batch in zip(data, batches, strict=True):
        _check_cues(entry.name, batch)
    first, seed = batches[0], settings.seed
    search, test = split_half(first, seed)
    plural = [index for index in search if is_plural(first.prompts[index])]
    if not plural:
        raise DataError(
            f"no prompt of {data[0].name} has a plural determiner, {' or '.join(PLURAL)}: nothing to search"
        )
    if settings.searched is not None and len(plural) > settings.searched:
        plural = sorted(random.Random(seed).sample(plural, settings.searched))
    scores = integrated_gradients(model, first.select(plural), progress=progress)
    found = find_knowledge_neurons(scores, group="plural")
    if not found.units:
        raise DataError(
            f"no unit is shared by the plural prompts of {data[0].name}: nothing to suppress ({found.note})"
        )
    held_out = [[first.prompts[index] for index in test], *(list(batch.prompts) for batch in batches[1:])]
    asked = [p for prompts in held_out for p in _fewer_singular(prompts, settings.singular, seed)]
    effect = suppress(
        model,
        PromptBatch.from_prompts(model, asked),
        found.units,
        probes=PROBES if is_masked(model) else None,
        controls=settings.controls,
        seed=seed,
        progress=progress,
    )
    frequency = preference = None
    uncounted = COUNTS_MISSING if settings.counts == KNOWN_COUNTS else "no counts were asked for"
    if source is not None:
        try:
            plural_effect = effect.where(is_plural)
            counts = load_counts(source, [cue_pair(prompt) for prompt in plural_effect.prompts], progress=progress)
            frequency = frequency_effect(plural_effect, counts, seed=seed)
            preference = frequency_effect(plural_effect, counts, measure="preference", seed=seed)
            uncounted = ""
        except DataError as error:  # E2 needs no counts
            uncounted = str(error)
    return NumberUnits(
        found=found,
        effect=effect,
        frequency=frequency,
        preference=preference,
        uncounted=uncounted,
        searched=scores.prompts,
        n_layers=model.cfg.n_layers,
        left_out={entry.name: batch.dropped for entry, batch in zip(data, batches, strict=True)},
        settings={"data": [entry.name for entry in data], **asdict(settings)},
        provenance=scores.provenance,
    )


def _check_cues(name: str, batch: PromptBatch) -> None:
    without = next((prompt for prompt in batch.prompts if prompt.cue is None), None)
    if without is not None:
        raise PromptError(
            f"{name} has prompts without a cue ({without.text!r}), so that their number is not known; take a paradigm "
            f"of determiner and noun"
        )


def _fewer_singular(prompts: list[Prompt], most: int | None, seed: int) -> list[Prompt]:
    """The prompts in their order, without some of those whose answer is singular."""
    singular = [index for index, prompt in enumerate(prompts) if not is_plural(prompt)]
    if most is None or len(singular) <= most:
        return prompts
    out = set(singular) - set(random.Random(seed).sample(singular, most))
    return [prompt for index, prompt in enumerate(prompts) if index not in out]
