"""Experiments E2 and E5: the number of a determiner phrase hangs on a few units; what does switching them off do?

Units are searched on prompts whose answer is plural (half of one paradigm) and suppressed on prompts that they were
not searched on. E2: which words become more or less probable (Niu et al. 2024, the suppression figure). E5: does the
change of log p(target) follow how often determiner and noun stand together in the text (the frequency figure)?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kn_lens.attribution.integrated_gradients import integrated_gradients
from kn_lens.errors import DataError
from kn_lens.frequency import load_counts
from kn_lens.localization.search import KnowledgeNeurons, find_knowledge_neurons
from kn_lens.localization.stability import split_half
from kn_lens.models.kind import is_masked, model_name
from kn_lens.organisms.corpus import corpus_of
from kn_lens.plots import frequency_scatter, layers_of_units, probability_change
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.cue_pairs import cue_pair
from kn_lens.prompts.load import load_minimal_pairs
from kn_lens.prompts.prompt import Prompt
from kn_lens.suppression.effect import OWN_FOIL, OWN_TARGET, UnitEffect
from kn_lens.suppression.frequency_effect import FrequencyEffect, frequency_effect
from kn_lens.suppression.suppress import suppress

if TYPE_CHECKING:
    import plotly.graph_objects as go

FAMILIES = (
    "determiner_noun_agreement",
    "determiner_noun_agreement_with_adjective",
    "determiner_noun_agreement_irregular",
)
"""Paradigms: units are searched on the first; effects are measured on all."""

TRAINING_TEXT = "training text"
"""Counts from the text that the model was trained on, where it is known."""

PLURAL = ("these", "those")
PROBES = ("this", "that", "these", "those", "the")
"""Words compared in a masked model, which is asked for the determiner; "the" goes with both numbers."""


@dataclass(frozen=True, kw_only=True)
class NumberUnits:
    """What was found and what its suppression did.

    Attributes:
        found: The units that plural answers hang on.
        effect: Their suppression on prompts of both numbers that they were not searched on.
        frequency: The effect on plural answers, log p(target), against pair counts, or None without counts.
        preference: The same of the preference, log p(target) − log p(rival).
        searched: The prompts searched.
        n_layers: Layers of the model.
    """

    found: KnowledgeNeurons
    effect: UnitEffect
    frequency: FrequencyEffect | None
    preference: FrequencyEffect | None
    searched: tuple[Prompt, ...]
    n_layers: int

    @property
    def plural(self) -> UnitEffect:
        """The effect on prompts whose answer is plural."""
        return self.effect.where(is_plural)

    @property
    def singular(self) -> UnitEffect:
        """The effect on prompts whose answer is singular."""
        return self.effect.where(lambda prompt: not is_plural(prompt))


def is_plural(prompt: Prompt) -> bool:
    """Whether a determiner-noun prompt has a plural determiner, as its cue or as its answer."""
    return cue_pair(prompt)[0] in PLURAL


def run(
    model: Any,
    *,
    families: Sequence[str] = FAMILIES,
    counts: str | None = TRAINING_TEXT,
    controls: int = 100,
    seed: int = 0,
    progress: bool = True,
) -> NumberUnits:
    """Find the units that plural answers hang on, and suppress them.

    Args:
        model: A loaded model. A masked one is asked for the determiner, a causal one for the noun.
        families: Bundled paradigms of determiner-noun agreement, without their ``_1`` or ``_2``.
        counts: Where pair counts come from (:func:`kn_lens.load_counts`); by default the training text, which is known
            of organisms; None leaves E5 out.
        controls: Draws of random units.
        seed: Of every draw.
        progress: Show progress bars.
    """
    masked = is_masked(model)
    batches = [load_minimal_pairs(f"{name}_{2 if masked else 1}").prompts(model) for name in families]
    search, test = split_half(batches[0], seed)
    plural = [index for index in search if is_plural(batches[0].prompts[index])]
    scores = integrated_gradients(model, batches[0].select(plural), progress=progress)
    found = find_knowledge_neurons(scores, group="plural")
    if not found.units:
        raise DataError(f"no unit is shared by the plural prompts of {families[0]}: nothing to suppress ({found.note})")
    asked = [batches[0].prompts[index] for index in test] + [p for batch in batches[1:] for p in batch.prompts]
    dropped = tuple(entry for batch in batches for entry in batch.dropped)
    effect = suppress(
        model,
        replace(PromptBatch.from_prompts(model, asked), dropped=dropped),
        found.units,
        probes=PROBES if masked else None,
        controls=controls,
        seed=seed,
        progress=progress,
    )
    frequency = preference = None
    if counts == TRAINING_TEXT:
        counts = corpus_of(model_name(model))
    if counts is not None:
        plural_effect = effect.where(is_plural)
        table = load_counts(counts, [cue_pair(prompt) for prompt in plural_effect.prompts], progress=progress)
        frequency = frequency_effect(plural_effect, table, seed=seed)
        preference = frequency_effect(plural_effect, table, measure="preference", seed=seed)
    return NumberUnits(
        found=found,
        effect=effect,
        frequency=frequency,
        preference=preference,
        searched=scores.prompts,
        n_layers=model.cfg.n_layers,
    )


def figures(result: NumberUnits, subtitle: str = "") -> dict[str, go.Figure]:
    """Figures by name: the probability change for plural and singular answers, the units' layers, frequency."""
    found = {
        f"probability-change-{number}": probability_change(effect, _joined(subtitle, f"{number} answers"))
        for number, effect in (("plural", result.plural), ("singular", result.singular))
    }
    found |= {
        "layers": layers_of_units({"plural": result.found.units}, result.n_layers, subtitle),
    }
    if result.frequency is not None:
        found["frequency"] = frequency_scatter(result.frequency, _joined(subtitle, "plural answers"))
    if result.preference is not None:
        found["frequency-preference"] = frequency_scatter(result.preference, _joined(subtitle, "plural answers"))
    return found


def _joined(*parts: str) -> str:
    return ", ".join(filter(None, parts))


def findings(result: NumberUnits) -> list[str]:
    """Sentences computed from the numbers of this run."""
    named = ", ".join(f"{layer}:{unit}" for layer, unit in result.found.units)
    said = [
        f"Plural answers hang on {len(result.found)} units ({named}; layer:unit), found on {len(result.searched)} "
        f"prompts with τ = {result.found.share:.2f}."
    ]
    for name, effect in (("plural", result.plural), ("singular", result.singular)):
        frame = effect.to_frame().set_index("probe")
        summary = effect.summary()
        target = frame.loc[OWN_TARGET]
        against = ""
        if "control_flipped" in summary:
            against = f", against {summary['control_flipped']:.1%} with random units of the same layers"
        parts = [f"p(good) goes from {target['mean_before']:.3f} to {target['mean_after']:.3f}"]
        if OWN_FOIL in frame.index:
            foil = frame.loc[OWN_FOIL]
            parts.append(f"p(bad) from {foil['mean_before']:.3f} to {foil['mean_after']:.3f}")
        said.append(
            f"With them off, over {summary['prompts']} {name} answers {' and '.join(parts)} (paired t-test p = "
            f"{target['paired_p']:.2g}), and log p(good) changes by {summary['log_probability_change']:.2g} nats on "
            f"average; {summary['flipped']:.1%} flip{against}."
        )
    if result.frequency is not None:
        said.append(result.frequency.sentence())
    if result.preference is not None:
        said.append(result.preference.sentence())
    return said
