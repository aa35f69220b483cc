"""E9: the comparison is that of compare_sites, the traces are those of causal_trace, and all is read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.errors import OutputError, PromptError, SettingsError
from kn_lens.experiments import e9_sites as e9
from kn_lens.experiments.sizes import localize_settings
from kn_lens.plots.circuits import CircuitPage
from kn_lens.prompts.load import load_prompts
from kn_lens.studies.localizations import kept_localization
from kn_lens.studies.pieces import Pieces
from kn_lens.tracing.draw import cued_prompts

SETTINGS = e9.SitesSettings(groups=2, per_group=4, controls=3, traced=3, samples=2, seed=1)


def sets(*names: str) -> list[Any]:
    return [load_prompts(name) for name in names]


@pytest.fixture(scope="module", params=["tiny-causal", "tiny-masked"])
def model(request: pytest.FixtureRequest, organism: Any) -> Any:
    return organism(request.param)


@pytest.fixture(scope="module")
def result(model: Any) -> e9.Result:
    return e9.run(model, sets("P36", "subject_verb_agreement"), SETTINGS, progress=False)


def test_the_comparison_is_that_of_compare_sites(result: e9.Result, model: Any) -> None:
    expected = kn.compare_sites(model, groups=2, per_group=4, controls=3, seed=1, progress=False)
    pd.testing.assert_frame_equal(result.comparison.to_frame(), expected.to_frame())
    assert result.comparison.settings == expected.settings
    sites = e9.tables(result)["sites"]
    assert sites["half: units"].tolist() == pytest.approx(expected.to_frame()["half: units"].tolist(), nan_ok=True)
    said = e9.findings(result)
    assert said[1 : 1 + len(expected.findings())] == expected.findings()
    assert said[0].startswith("Half of the answers flip: of facts (P36) ")
    assert "; of agreement (subject_verb_agreement) " in said[0]


def test_heads_are_traced_one_by_one(result: e9.Result, model: Any) -> None:
    for entry in result.traces:
        batch = cued_prompts(model, load_prompts(entry.data), 3, None, 1)
        expected = kn.causal_trace(model, batch, stream="head", samples=2, seed=1, progress=False)
        assert entry.first.prompts == expected.prompts
        for name, effects in expected.effects.items():
            torch.testing.assert_close(entry.first.effects[name], effects, equal_nan=True)
    heads = e9.tables(result)["heads"].query("data == 'P36'")
    best = heads.loc[heads["mean"].idxmax()]
    said = next(sentence for sentence in e9.findings(result) if sentence.startswith("P36, head: "))
    assert f"(head {best['layer']}:{best['unit']}, {best['prompts']} prompts)" in said
    assert f"{best['mean']:.3g} [" in said


def test_patterns_of_the_heads_with_the_largest_effects(result: e9.Result, model: Any) -> None:
    for entry in result.traces:
        table = entry.average("head")
        largest = table.loc[table["mean"].abs().idxmax()]
        page = e9.figures(result)[f"attention-{entry.data}"]
        assert isinstance(page, CircuitPage)
        props = page.parts[0].props
        layer, head = int(largest["layer"]), int(largest["unit"])
        assert props["attentionHeadNames"][0] == f"{layer}:{head}"
        batch = kn.PromptBatch.from_prompts(model, [entry.first.prompts[0]])
        _, cache = model.run_with_cache(batch.tokens)
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0, head]
        torch.testing.assert_close(torch.tensor(props["attention"][0]), pattern, atol=1e-5, rtol=0)


def test_it_reads_the_same_without_the_model(result: e9.Result, tmp_path: Path) -> None:
    again = e9.Result.load(result.save(tmp_path))
    assert (again.settings, again.provenance) == (result.settings, result.provenance)
    assert e9.findings(again) == e9.findings(result)
    assert e9.verdicts(again) == e9.verdicts(result) == []
    assert e9.dropped(again) == e9.dropped(result)
    for name, table in e9.tables(result).items():
        pd.testing.assert_frame_equal(e9.tables(again)[name], table)
    figures, others = e9.figures(result), e9.figures(again)
    assert [*figures][:4] == ["curves", "accuracy", "layers", "heads"]
    assert [*figures][4:] == [
        f"{kind}-{name}" for name in ("P36", "subject_verb_agreement") for kind in ("trace", "attention")
    ]
    assert {name: json.dumps(entry.to_json()) for name, entry in figures.items()} == {
        name: json.dumps(entry.to_json()) for name, entry in others.items()
    }
    (tmp_path / "fields.json").write_text("{}")
    with pytest.raises(OutputError, match="holds no readable comparison of neurons and heads"):
        e9.Result.load(tmp_path)


def test_neurons_are_searched_once_for_all_experiments(organism: Any, tmp_path: Path) -> None:
    """With the settings of a size, the localization of E1 is the one that is taken."""
    model, (facts,) = organism("tiny-causal"), sets("P36")
    small = e9.settings(model, "small", 5)
    few = replace(small, sites=("mlp",), groups=2, per_group=4, controls=1, traced=0)
    shared = replace(localize_settings(model, "small", 5), groups=2, prompts=4)
    assert (small.groups, small.per_group) == (20, 8)
    found = kept_localization(model, facts, shared, Pieces(tmp_path), progress=False)
    (piece,) = tmp_path.iterdir()
    written = (piece / "localization.json").stat().st_mtime_ns
    made = e9.run(model, [facts], few, pieces=Pieces(tmp_path), progress=False)
    assert made.comparison.entries[0].found.found == found.found
    assert (piece / "localization.json").stat().st_mtime_ns == written
    assert sorted(path.name.rpartition("-")[0] for path in tmp_path.iterdir()) == [
        "curve-P36-mlp",
        "effect-P36-mlp",
        "localization-P36-mlp",
    ]
    assert made.traces == ()
    assert "peaks" not in e9.tables(made)


def test_data_that_is_never_answered_is_left_out(organism: Any) -> None:
    model, (facts, pairs) = organism("tiny-causal"), sets("P36", "subject_verb_agreement")
    wrong = {fact: tuple(replace(prompt, target="keys") for prompt in prompts) for fact, prompts in facts.facts.items()}
    wrong = replace(facts, name="wrong", facts=dict(list(wrong.items())[:3]), pairs={})
    settings = replace(SETTINGS, sites=("head",))
    made = e9.run(model, [wrong, pairs], settings, progress=False)
    assert made.comparison.settings["data"] == ["subject_verb_agreement"]
    assert made.settings["data"] == ["wrong", "subject_verb_agreement"]
    assert "answers none of the" in made.left_out["wrong"]
    assert "answers none of the" in made.untraced["wrong"]
    assert e9.dropped(made)[0][0] == "wrong"
    last = e9.findings(made)[-2:]
    assert last[0].startswith("wrong is left out: site head: tiny-causal answers none of the")
    assert last[1].startswith("The heads of wrong were not traced: tiny-causal answers none of the")
    with pytest.raises(PromptError, match="wrong, site head: tiny-causal answers none of the"):
        e9.run(model, [wrong], settings, progress=False)


def test_data_and_refusals(organism: Any) -> None:
    model = organism("tiny-masked")
    assert e9.data(model, "small") == ("P36", "subject_verb_agreement")
    assert e9.data(model, "full") == ("P36", "P101", "subject_verb_agreement", "determiner_noun_agreement_2")
    assert e9.unsuited(model) is None
    with pytest.raises(SettingsError, match="no data sets were given"):
        e9.run(model, [], SETTINGS)
    with pytest.raises(SettingsError, match="controls is 0"):
        e9.run(model, sets("P36"), replace(SETTINGS, controls=0))
