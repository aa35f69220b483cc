"""The number units of an organism, and the frequency of what they decide."""

from __future__ import annotations

from typing import Any

import pytest

import kn_lens as kn
from kn_lens.experiments import number_units
from kn_lens.organisms.corpus import load_corpus
from kn_lens.prompts.cue_pairs import cue_pair


@pytest.fixture(scope="module", params=["tiny-causal", "tiny-masked"])
def result(request: pytest.FixtureRequest, organism: Any) -> number_units.NumberUnits:
    families = number_units.FAMILIES[:1]
    return number_units.run(organism(request.param), families=families, controls=20, progress=False)


def test_units_are_searched_on_plural_prompts_and_tested_on_others(result: number_units.NumberUnits) -> None:
    assert 60 <= len(result.searched) <= 90  # half of the 150 plural pairs
    assert len(result.effect) + 2 * len(result.searched) == pytest.approx(300, abs=20)
    assert not {prompt.source for prompt in result.searched} & {prompt.source for prompt in result.effect.prompts}
    assert {cue_pair(prompt)[0] for prompt in result.searched} == {"these", "those"}
    plural, singular = result.plural, result.singular
    assert len(plural) + len(singular) == len(result.effect)
    assert {cue_pair(prompt)[0] for prompt in plural.prompts} == {"these", "those"}
    assert {cue_pair(prompt)[0] for prompt in singular.prompts} == {"this", "that"}


def test_suppression_lowers_plural_answers_more_than_random_units_do(result: number_units.NumberUnits) -> None:
    summary = result.plural.summary()
    assert summary["log_probability_change"] < summary["control_log_probability_change"]
    assert summary["percentile_log_probability_change"] < 5


def test_counts_are_those_of_the_training_text(result: number_units.NumberUnits) -> None:
    counts = load_corpus("organism").counts
    frequency = result.frequency
    assert frequency is not None
    asked = list(zip(frequency.first, frequency.second, frequency.counts.tolist(), strict=True))
    assert len(asked) > 40
    for first, second, count in asked:
        assert counts["determiner_noun", first, second] == count
    assert 0 < (~frequency.seen).sum() < len(asked) / 2  # pairs that the text never joins are among them


def test_findings_hold_the_numbers_of_the_run(result: number_units.NumberUnits) -> None:
    said = number_units.findings(result)
    assert f"{len(result.found)} units" in said[0]
    flipped = result.plural.summary()["flipped"]
    assert f"{flipped:.1%} flip" in said[1]
    assert "ρ = " in said[-1]
    assert "log p(target) − log p(rival)" in said[-1]
    assert "log p(rival)" not in said[-2]
    figures = number_units.figures(result, "tiny")
    assert set(figures) == {"probability-change-plural", "probability-change-singular", "layers"} | {
        "frequency",
        "frequency-preference",
    }


def test_without_counts_there_is_no_frequency(organism: Any) -> None:
    model = organism("tiny-masked")
    result = number_units.run(model, families=number_units.FAMILIES[2:], counts=None, controls=0, progress=False)
    assert result.frequency is None
    assert result.preference is None
    assert "frequency" not in number_units.figures(result)
    assert isinstance(result.effect, kn.UnitEffect)
