"""kn_lens: find, measure and edit the neurons and heads said to hold facts and grammar in a transformer.

    import kn_lens as kn

    model = kn.load_model("tiny-causal")  # or "smollm2-135m", "gpt2", a folder
    facts = kn.load_relation("P36")
    scores = kn.integrated_gradients(model, facts.prompts(model), site="mlp")
    found = kn.find_knowledge_neurons(scores)
    effect = kn.suppress(model, facts.prompts(model), found.units)
    edit = kn.rome(model, kn.Fact("The capital of {} is", "Canada", "Rome", old="Ottawa"))
    with edit.applied(model):
        kn.generate(model, "The capital of Canada is")
    kn.evaluate_edits(model, kn.rome, facts, edits=20).to_frame()

Every function takes a plain TransformerLens model. Names are loaded when first used, so that importing
the package is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kn_lens._version import __version__

_PUBLIC = {
    "batches.config": ["RunConfig"],
    "batches.read": ["BatchRun"],
    "batches.run": ["resume", "run"],
    "criteria.cases": ["edit_cases"],
    "criteria.evaluate": ["evaluate_edits"],
    "criteria.evaluation": ["EditEvaluation"],
    "criteria.generation": ["before_after", "generate"],
    "criteria.sweep": ["LayerSweep", "sweep_layers"],
    "editing.covariance": ["Covariance", "covariance_of"],
    "editing.edit": ["Edit", "edits_applied"],
    "editing.fine_tune": ["FineTuneEdit", "fine_tune"],
    "editing.head_edits": ["head_edit"],
    "editing.layer_choice": ["LayerChoice", "layer_by_tracing"],
    "editing.neuron_edits": ["neuron_edit"],
    "editing.random_controls": ["rome_at_random_layer", "rome_random_direction"],
    "editing.rank_one": ["RankOneEdit"],
    "editing.rome": ["rome"],
    "editing.units_for_fact": ["UnitSearch", "UnitsEdit"],
    "errors": [
        "DataError",
        "KnLensError",
        "ModelError",
        "OutputError",
        "PromptError",
        "SettingsError",
        "UnitsError",
    ],
    "models.load": ["load_model"],
    "models.names": ["available_models"],
    "prompts.fact": ["Fact"],
    "prompts.prompt": ["Prompt"],
    "prompts.batch": ["PromptBatch"],
    "prompts.load": ["load_data", "load_minimal_pairs", "load_relation"],
    "prompts.minimal_pairs": ["MinimalPair", "MinimalPairs"],
    "prompts.relations": ["Relation"],
    "organisms.corpus": ["Corpus", "load_corpus"],
    "scoring": ["accuracy", "answers"],
    "attribution.integrated_gradients": ["integrated_gradients"],
    "attribution.gradient_times_activation": ["gradient_times_activation"],
    "attribution.max_activation": ["max_activation"],
    "attribution.scores": ["AttributionScores"],
    "localization.ablation": ["ablation_curve"],
    "localization.curve": ["AblationCurve"],
    "localization.search": ["KnowledgeNeurons", "find_knowledge_neurons", "search_groups"],
    "localization.measures": ["concentration", "n_sample_similarity"],
    "localization.stability": ["split_half", "stability"],
    "suppression.suppress": ["enhance", "suppress"],
    "suppression.effect": ["UnitEffect"],
    "suppression.frequency_effect": ["FrequencyEffect", "frequency_effect"],
    "experiments.experiment": ["experiment"],
    "studies.localized": ["Localized"],
    "studies.site_comparison": ["SiteComparison"],
    "studies.sites": ["compare_sites"],
    "frequency": ["PairCounts", "count_pairs", "load_counts"],
    "results": ["Result"],
    "tracing.activation_patching": ["activation_patching"],
    "tracing.attention_knockout": ["attention_knockout"],
    "tracing.attribution_patching": ["attribution_patching"],
    "tracing.causal_trace": ["causal_trace"],
    "tracing.direct_logit_attribution": ["DirectLogits", "direct_logit_attribution"],
    "tracing.knockout_trace": ["KnockoutTrace"],
    "tracing.patch_effects": ["PatchEffects"],
    "tracing.path_patching": ["path_patching"],
    "tracing.trace": ["CausalTrace"],
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", "plots", *sorted(_HOME)]

if TYPE_CHECKING:
    from kn_lens import plots
    from kn_lens.attribution.gradient_times_activation import gradient_times_activation
    from kn_lens.attribution.integrated_gradients import integrated_gradients
    from kn_lens.attribution.max_activation import max_activation
    from kn_lens.attribution.scores import AttributionScores
    from kn_lens.batches.config import RunConfig
    from kn_lens.batches.read import BatchRun
    from kn_lens.batches.run import resume, run
    from kn_lens.criteria.cases import edit_cases
    from kn_lens.criteria.evaluate import evaluate_edits
    from kn_lens.criteria.evaluation import EditEvaluation
    from kn_lens.criteria.generation import before_after, generate
    from kn_lens.criteria.sweep import LayerSweep, sweep_layers
    from kn_lens.editing.covariance import Covariance, covariance_of
    from kn_lens.editing.edit import Edit, edits_applied
    from kn_lens.editing.fine_tune import FineTuneEdit, fine_tune
    from kn_lens.editing.head_edits import head_edit
    from kn_lens.editing.layer_choice import LayerChoice, layer_by_tracing
    from kn_lens.editing.neuron_edits import neuron_edit
    from kn_lens.editing.random_controls import rome_at_random_layer, rome_random_direction
    from kn_lens.editing.rank_one import RankOneEdit
    from kn_lens.editing.rome import rome
    from kn_lens.editing.units_for_fact import UnitSearch, UnitsEdit
    from kn_lens.errors import (
        DataError,
        KnLensError,
        ModelError,
        OutputError,
        PromptError,
        SettingsError,
        UnitsError,
    )
    from kn_lens.experiments.experiment import experiment
    from kn_lens.frequency import PairCounts, count_pairs, load_counts
    from kn_lens.localization.ablation import ablation_curve
    from kn_lens.localization.curve import AblationCurve
    from kn_lens.localization.measures import concentration, n_sample_similarity
    from kn_lens.localization.search import KnowledgeNeurons, find_knowledge_neurons, search_groups
    from kn_lens.localization.stability import split_half, stability
    from kn_lens.models.load import load_model
    from kn_lens.models.names import available_models
    from kn_lens.organisms.corpus import Corpus, load_corpus
    from kn_lens.prompts.batch import PromptBatch
    from kn_lens.prompts.fact import Fact
    from kn_lens.prompts.load import load_data, load_minimal_pairs, load_relation
    from kn_lens.prompts.minimal_pairs import MinimalPair, MinimalPairs
    from kn_lens.prompts.prompt import Prompt
    from kn_lens.prompts.relations import Relation
    from kn_lens.results import Result
    from kn_lens.scoring import accuracy, answers
    from kn_lens.studies.localized import Localized
    from kn_lens.studies.site_comparison import SiteComparison
    from kn_lens.studies.sites import compare_sites
    from kn_lens.suppression.effect import UnitEffect
    from kn_lens.suppression.frequency_effect import FrequencyEffect, frequency_effect
    from kn_lens.suppression.suppress import enhance, suppress
    from kn_lens.tracing.activation_patching import activation_patching
    from kn_lens.tracing.attention_knockout import attention_knockout
    from kn_lens.tracing.attribution_patching import attribution_patching
    from kn_lens.tracing.causal_trace import causal_trace
    from kn_lens.tracing.direct_logit_attribution import DirectLogits, direct_logit_attribution
    from kn_lens.tracing.knockout_trace import KnockoutTrace
    from kn_lens.tracing.patch_effects import PatchEffects
    from kn_lens.tracing.path_patching import path_patching
    from kn_lens.tracing.trace import CausalTrace


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"kn_lens.{_HOME[name]}"), name)
    if name == "plots":
        return importlib.import_module("kn_lens.plots")
    raise AttributeError(f"module 'kn_lens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
