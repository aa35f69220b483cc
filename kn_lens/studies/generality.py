"""Can knowledge be told from recall? Two models that both know a relation's facts, compared fact by fact.

Generality is an answer to wordings that were set apart; symmetry, to the inverse question. The measures of
localization (|KN|, τ, R₁²) are taken beside them on the same facts, over all wordings, as one would who does not
know what the models were trained on, and over the wordings that both were taught.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens.attribution.integrated_gradients import integrated_gradients
from kn_lens.attribution.scores import AttributionScores
from kn_lens.errors import DataError
from kn_lens.localization.measures import n_sample_similarity
from kn_lens.localization.search import find_knowledge_neurons
from kn_lens.models.kind import model_name
from kn_lens.organisms.corpus import corpus_of
from kn_lens.organisms.facts_plan import training_templates
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.load import load_relation
from kn_lens.prompts.relations import Relation
from kn_lens.results import provenance
from kn_lens.scoring import answers
from kn_lens.statistics import paired_difference

if TYPE_CHECKING:
    import pandas as pd

LOCALIZATION = ("|KN|", "τ", "in range", "R₁²")
"""``in range``: whether the search ended with as many units as wanted; where it rarely does, |KN| and τ say little."""

ALL, TAUGHT = "all wordings", "wordings both were taught"
MEASURES = (
    "recall",
    "generality",
    "symmetry",
    *(f"{measure}, {wordings}" for wordings in (ALL, TAUGHT) for measure in LOCALIZATION),
)
"""``recall``: share of the taught wordings answered rightly; ``generality``: of the held-out ones; ``symmetry``: of the
inverse relation's taught wordings, asked of the object."""


@dataclass(frozen=True, kw_only=True)
class Generality:
    """Measures of two models, fact by fact.

    Attributes:
        models: Their names.
        relation: The relation.
        values: Measure → ``[model, fact]``; NaN where a fact has none.
        facts: The facts, in order.
        settings: The arguments that made it.
        provenance: Of each model and its prompts.
    """

    models: tuple[str, str]
    relation: str
    values: Mapping[str, np.ndarray]
    facts: tuple[str, ...]
    settings: dict[str, Any]
    provenance: tuple[dict[str, Any], dict[str, Any]]

    def manifest(self) -> dict[str, Any]:
        """Settings, provenance and findings."""
        return {"settings": self.settings, "provenance": self.provenance, "findings": findings(self)}

    def facts_frame(self) -> pd.DataFrame:
        """One row per model and fact, one column per measure."""
        import pandas as pd

        rows = [
            {"model": model, "fact": fact} | {name: float(values[side, at]) for name, values in self.values.items()}
            for side, model in enumerate(self.models)
            for at, fact in enumerate(self.facts)
        ]
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """One row per measure: both means, their difference over the facts that have both, its 95 % interval, p."""
        import pandas as pd

        rows = []
        for name, (first, second) in self.values.items():
            both = ~np.isnan(first) & ~np.isnan(second)
            found = paired_difference(first[both], second[both])
            rows.append(
                {
                    "measure": name,
                    self.models[0]: float(first[both].mean()) if both.any() else float("nan"),
                    self.models[1]: float(second[both].mean()) if both.any() else float("nan"),
                    "difference": found.difference,
                    "low": found.low,
                    "high": found.high,
                    "p": found.p,
                    "facts": int(both.sum()),
                }
            )
        return pd.DataFrame(rows)


def run(
    models: tuple[Any, Any],
    relation: str = "P36",
    *,
    facts: int = 40,
    seed: int = 0,
    progress: bool = True,
) -> Generality:
    """Compare two models on the same facts.

    Args:
        models: Two models.
        relation: A relation with held-out templates. What counts as taught is known of organisms; of other
            models it is every template that is not held out.
        facts: How many facts, drawn with ``seed``.
        seed: Of the draw.
        progress: Show progress bars.

    Raises:
        DataError: If the relation has no held-out templates, or the models can be asked no fact in common.
    """
    data = load_relation(relation)
    if not data.held_out:
        raise DataError(f"{relation} has no held-out templates; generality cannot be measured on it")
    inverse = load_relation(data.inverse) if data.inverse else None
    names = (model_name(models[0]), model_name(models[1]))
    batches = [data.prompts(model, groups=facts, seed=seed) for model in models]
    found = [
        _measure(model, batch, data, inverse, names, progress) for model, batch in zip(models, batches, strict=True)
    ]
    shared = [fact for fact in found[0] if fact in found[1]]
    if not shared:
        raise DataError(f"{names[0]} and {names[1]} can be asked no fact of {relation} in common")
    values = {
        name: np.array([[side[fact][name] for fact in shared] for side in found], dtype=float) for name in MEASURES
    }
    return Generality(
        models=names,
        relation=relation,
        values=values,
        facts=tuple(shared),
        settings={"relation": relation, "facts": facts, "seed": seed},
        provenance=(provenance(models[0], batches[0]), provenance(models[1], batches[1])),
    )


def findings(result: Generality) -> list[str]:
    """Sentences that say which measures tell the models apart, computed from the numbers."""
    first, second = result.models
    said = []
    for row in result.to_frame().to_dict("records"):
        if not row["facts"]:
            said.append(f"{row['measure']}: not measured.")
            continue
        told = row["low"] > 0 or row["high"] < 0
        said.append(
            f"{row['measure']}: {row[first]:.2f} in {first}, {row[second]:.2f} in {second}; difference "
            f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] over {row['facts']} facts: "
            f"{'tells them apart' if told else 'does not tell them apart'}."
        )
    return said


def _measure(
    model: Any, batch: PromptBatch, data: Relation, inverse: Relation | None, models: Sequence[str], progress: bool
) -> dict[str, dict[str, float]]:
    """All measures of each fact."""
    taught = _taught(data, models)
    scores = integrated_gradients(model, batch, progress=progress)
    right = answers(model, batch).correct.float().numpy()
    backwards = {} if inverse is None else _symmetry(model, inverse, models)
    found: dict[str, dict[str, float]] = {}
    for fact, indices in batch.groups.items():
        of_taught = [index for index in indices if batch.prompts[index].template in taught]
        held_out = [index for index in indices if batch.prompts[index].template in data.held_out]
        subject, obj = data.pairs[fact]
        found[fact] = {
            "recall": _mean(right, of_taught),
            "generality": _mean(right, held_out),
            "symmetry": backwards.get((obj, subject), float("nan")),
            **_localization(scores, indices, ALL),
            **_localization(scores, of_taught, TAUGHT),
        }
    return found


def _taught(relation: Relation, models: Sequence[str]) -> set[str | None]:
    """The templates that all models were taught; what is not known of a model is no obstacle."""
    templates: set[str | None] = {prompt.template for fact in relation.facts.values() for prompt in fact}
    templates -= relation.held_out
    for corpus in filter(None, map(corpus_of, models)):
        templates &= set(training_templates(corpus, relation.name))
    return templates


def _localization(scores: AttributionScores, indices: list[int], wordings: str) -> dict[str, float]:
    values = (float("nan"),) * len(LOCALIZATION)
    if len(indices) > 1:  # R₁² compares prompts
        found = find_knowledge_neurons(scores.select(indices))
        similarity = n_sample_similarity(scores.select(indices))
        values = (float(len(found)), found.share, float(found.in_range), similarity)
    return {f"{measure}, {wordings}": value for measure, value in zip(LOCALIZATION, values, strict=True)}


def _symmetry(model: Any, inverse: Relation, models: Sequence[str]) -> dict[tuple[str, str], float]:
    """Share of right answers to the inverse question, by (subject, object) of the inverse relation."""
    batch = inverse.prompts(model)
    taught = _taught(inverse, models)
    right = answers(model, batch).correct.float().numpy()
    return {
        inverse.pairs[fact]: _mean(right, [index for index in indices if batch.prompts[index].template in taught])
        for fact, indices in batch.groups.items()
    }


def _mean(right: np.ndarray, indices: list[int]) -> float:
    return float(right[indices].mean()) if indices else float("nan")
