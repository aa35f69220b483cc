"""The organism that generalizes and the one that recalls are told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import kn_lens as kn
from kn_lens.organisms.facts_plan import training_templates
from kn_lens.studies import generality


@pytest.fixture(scope="module")
def result(organism: Any) -> generality.Generality:
    models = (organism("tiny-causal"), organism("tiny-causal-narrow"))
    return generality.run(models, "P36", facts=12, progress=False)


def test_generality_tells_them_apart(result: generality.Generality) -> None:
    frame = result.to_frame().set_index("measure")
    row = frame.loc["generality"]
    assert row["low"] > 0
    assert row["tiny-causal"] > 0.9
    assert row["facts"] == 12
    assert any("tells them apart" in sentence for sentence in generality.findings(result))


def test_both_recall_what_both_were_taught(result: generality.Generality) -> None:
    assert result.values["recall"].shape == (2, 12)
    assert (result.values["recall"] == 1).all()


def test_symmetry_is_of_facts_that_were_stated_both_ways(result: generality.Generality) -> None:
    both_ways = set(kn.load_corpus("organism").truth.both_ways)
    for at, fact in enumerate(result.facts):
        country = kn.load_relation("P36").pairs[fact][0]
        assert (result.values["symmetry"][:, at] > 0.5).all() == (country in both_ways), fact


def test_values_are_those_of_the_single_functions(result: generality.Generality, organism: Any) -> None:
    """One fact, measured by hand."""
    model = organism("tiny-causal")
    relation = kn.load_relation("P36")
    fact = result.facts[0]
    batch = kn.PromptBatch.from_prompts(
        model, [prompt for prompt in relation.facts[fact] if not any(c.isalnum() for c in prompt.suffix)]
    )
    scores = kn.integrated_gradients(model, batch, progress=False)
    found = kn.find_knowledge_neurons(scores)
    assert result.values["|KN|, all wordings"][0, 0] == len(found)
    assert result.values["τ, all wordings"][0, 0] == found.share
    assert result.values["R₁², all wordings"][0, 0] == pytest.approx(kn.n_sample_similarity(scores), abs=1e-6)
    taught = [
        index for index, p in enumerate(batch.prompts) if p.template in training_templates("organism-narrow", "P36")
    ]
    assert len(taught) == 2
    similarity = kn.n_sample_similarity(scores.select(taught))
    assert result.values["R₁², wordings both were taught"][0, 0] == pytest.approx(similarity, abs=1e-6)
    held_out = [index for index, prompt in enumerate(batch.prompts) if prompt.template in relation.held_out]
    assert len(held_out) == 2
    assert result.values["generality"][0, 0] == kn.accuracy(model, batch.select(held_out))


def test_a_relation_without_held_out_templates_is_refused(organism: Any, tmp_path: Any) -> None:
    (tmp_path / "r.jsonl").write_text('{"subject": "France", "object": "Paris"}\n')
    (tmp_path / "r.templates.jsonl").write_text('{"template": "The capital of {subject} is {object}."}\n')
    model = organism("tiny-causal")
    with pytest.raises(kn.DataError, match="no held-out templates"):
        generality.run((model, model), str(tmp_path / "r.jsonl"), progress=False)


def test_measures_without_a_value_are_left_out_of_the_comparison() -> None:
    values = {name: np.array([[1.0, 1.0, np.nan], [0.0, 0.5, 0.0]]) for name in generality.MEASURES}
    made = generality.Generality(
        models=("a", "b"), relation="r", values=values, facts=("x", "y", "z"), settings={}, provenance=({}, {})
    )
    row = made.to_frame().iloc[0]
    assert (row["a"], row["b"], row["difference"], row["facts"]) == (1.0, 0.25, 0.75, 2)
