"""The number units of an organism: searched on some prompts, suppressed on others, saved whole, run once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.errors import DataError, OutputError, PromptError, SettingsError
from kn_lens.experiments.number_units import (
    FAMILIES,
    NumberSettings,
    NumberUnits,
    counts_source,
    is_plural,
    kept_number_units,
    number_data,
    number_settings,
)
from kn_lens.models.kind import is_masked
from kn_lens.organisms.corpus import load_corpus
from kn_lens.prompts.cue_pairs import cue_pair
from kn_lens.studies.pieces import Pieces

SETTINGS = NumberSettings(searched=20, singular=15, controls=20, seed=3)


def family(model: Any, at: int = 0) -> kn.MinimalPairs:
    return kn.load_minimal_pairs(f"{FAMILIES[at]}_{2 if is_masked(model) else 1}")


@pytest.fixture(scope="module", params=["tiny-causal", "tiny-masked"])
def model(request: pytest.FixtureRequest, organism: Any) -> Any:
    return organism(request.param)


@pytest.fixture(scope="module")
def result(model: Any) -> NumberUnits:
    return kept_number_units(model, [family(model)], SETTINGS, progress=False)


def test_units_are_searched_on_plural_prompts_and_tested_on_others(result: NumberUnits, model: Any) -> None:
    assert len(result.searched) == 20
    assert {cue_pair(prompt)[0] for prompt in result.searched} == {"these", "those"}
    assert not {prompt.source for prompt in result.searched} & {prompt.source for prompt in result.effect.prompts}
    plural, singular = result.plural, result.singular
    assert len(plural) + len(singular) == len(result.effect)
    batch = family(model).prompts(model)
    _, test = kn.split_half(batch, 3)
    held_out = [batch.prompts[index] for index in test]
    assert list(plural.prompts) == [prompt for prompt in held_out if is_plural(prompt)]
    assert len(singular) == 15
    assert {cue_pair(prompt)[0] for prompt in singular.prompts} == {"this", "that"}
    assert set(singular.prompts) <= set(held_out)


def test_numbers_are_those_of_the_single_functions(result: NumberUnits, model: Any) -> None:
    scores = kn.integrated_gradients(model, list(result.searched), progress=False)
    assert kn.find_knowledge_neurons(scores).units == result.found.units
    probes = ("this", "that", "these", "those", "the") if is_masked(model) else None
    asked = list(result.effect.prompts)
    again = kn.suppress(model, asked, result.found.units, probes=probes, controls=20, seed=3, progress=False)
    torch.testing.assert_close(again.target, result.effect.target)
    torch.testing.assert_close(again.probe_probabilities, result.effect.probe_probabilities)


def test_suppression_lowers_plural_answers_more_than_random_units_do(result: NumberUnits) -> None:
    summary = result.plural.summary()
    assert summary["log_probability_change"] < summary["control_log_probability_change"]
    assert summary["percentile_log_probability_change"] < 5


def test_counts_are_those_of_the_training_text(result: NumberUnits) -> None:
    counts = load_corpus("organism").counts
    frequency = result.frequency
    assert frequency is not None
    asked = list(zip(frequency.first, frequency.second, frequency.counts.tolist(), strict=True))
    assert len(asked) > 40
    for first, second, count in asked:
        assert counts["determiner_noun", first, second] == count
    assert 0 < (~frequency.seen).sum() < len(asked) / 2  # pairs that the text never joins are among them


def test_it_is_read_back(result: NumberUnits, tmp_path: Path) -> None:
    again = NumberUnits.load(result.save(tmp_path / "saved"))
    assert again.found == result.found
    assert (again.searched, again.left_out, again.n_layers) == (result.searched, result.left_out, result.n_layers)
    assert (again.settings, again.provenance) == (result.settings, result.provenance)
    pd.testing.assert_frame_equal(again.effect.answers_frame(), result.effect.answers_frame())
    assert again.frequency is not None
    assert result.frequency is not None
    pd.testing.assert_frame_equal(again.frequency.to_frame(), result.frequency.to_frame())
    bare = replace(result, frequency=None, preference=None, uncounted="none")
    again = NumberUnits.load(bare.save(tmp_path / "bare"))
    assert (again.frequency, again.preference, again.uncounted) == (None, None, "none")
    shutil.rmtree(tmp_path / "saved" / "preference")
    with pytest.raises(OutputError, match="saved"):
        NumberUnits.load(tmp_path / "saved")
    with pytest.raises(OutputError, match="nothing"):
        NumberUnits.load(tmp_path / "nothing")


def test_it_is_run_once(organism: Any, tmp_path: Path) -> None:
    model, settings = organism("tiny-masked"), replace(SETTINGS, controls=0, singular=2)
    data = [family(model, 2)]
    first = kept_number_units(model, data, settings, Pieces(tmp_path), progress=False)
    (piece,) = tmp_path.iterdir()
    written = (piece / "result.json").stat().st_mtime_ns
    again = kept_number_units(model, data, settings, Pieces(tmp_path), progress=False)
    assert again.found == first.found
    assert [*tmp_path.iterdir()] == [piece]
    assert (piece / "result.json").stat().st_mtime_ns == written
    kept_number_units(model, data, replace(settings, counts=None), Pieces(tmp_path), progress=False)
    assert len([*tmp_path.iterdir()]) == 2


def test_data_and_settings_of_a_size(organism: Any) -> None:
    causal, masked = organism("tiny-causal"), organism("tiny-masked")
    assert number_data(causal, "small")[0] == "determiner_noun_agreement_1"
    assert [name[-2:] for name in number_data(masked, "full")] == ["_2"] * 3
    assert number_settings(causal, "full", 4) == NumberSettings(seed=4)
    assert number_settings(causal, "small", 4) == NumberSettings(singular=30, seed=4)
    assert counts_source(causal) == "organism"
    assert counts_source(causal, "pairs.csv") == "pairs.csv"
    assert counts_source(causal, None) is None


def test_without_enough_counts_there_is_no_frequency(organism: Any, tmp_path: Path) -> None:
    model = organism("tiny-masked")
    few = tmp_path / "few.csv"
    few.write_text("first,second,count\nthese,maps,4\n", encoding="utf-8")
    settings = NumberSettings(searched=10, singular=1, controls=0)
    for counts, reason in ((None, "no counts were asked for"), (str(few), "4 are needed")):
        made = kept_number_units(model, [family(model)], replace(settings, counts=counts), progress=False)
        assert made.frequency is made.preference is None
        assert reason in made.uncounted


def test_refusals(organism: Any) -> None:
    model = organism("tiny-causal")
    for data, words in (
        ([], "such as determiner_noun_agreement_1, not nothing"),
        ([kn.load_relation("P36")], "not P36"),
    ):
        with pytest.raises(DataError, match=words):
            kept_number_units(model, data)
    for settings, words in (
        (NumberSettings(searched=0), "searched is 0"),
        (NumberSettings(singular=0), "singular is 0"),
        (NumberSettings(controls=-1), "controls is -1"),
    ):
        with pytest.raises(SettingsError, match=words):
            kept_number_units(model, [family(model)], settings)
    with pytest.raises(DataError, match="no counts named 'englisch'"):
        kept_number_units(model, [family(model)], NumberSettings(counts="englisch"))
    with pytest.raises(DataError, match="no prompt of subject_verb_agreement has a plural determiner"):
        kept_number_units(model, [kn.load_minimal_pairs("subject_verb_agreement")], progress=False)
    pairs = family(model)
    without = replace(pairs, pairs=tuple(replace(pair, cue=None) for pair in pairs.pairs[:4]))
    with pytest.raises(PromptError, match="has prompts without a cue"):
        kept_number_units(model, [without], progress=False)
