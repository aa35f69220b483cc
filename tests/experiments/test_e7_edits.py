"""E7: edits by ROME shown whole, on facts and on agreement."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

import kn_lens as kn
from kn_lens.errors import ModelError, OutputError
from kn_lens.experiments import e7_edits
from kn_lens.prompts.batch import PromptBatch
from kn_lens.scoring import answers
from kn_lens.studies.edit_fact import RomeSettings
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.shown_edit import PROMPT

PARADIGMS = ("subject_verb_agreement", "determiner_noun_agreement_1")


@pytest.fixture(scope="module")
def result(organism) -> e7_edits.Result:
    model = organism("tiny-causal")
    data = [kn.load_data(name) for name in PARADIGMS]
    return e7_edits.run(model, data, e7_edits.settings(model, "small", 0), progress=False)


def test_two_facts_and_two_pairs_are_edited(result, organism) -> None:
    assert result.data == ("facts", "facts", *PARADIGMS)
    names = [one.fact.name for one in result.shown]
    assert names[:2] == ["France: Paris → Madrid", "Japan: Tokyo → Vienna"]
    model = organism("tiny-causal")
    asked = e7_edits.tables(result)["asked"]
    for one in result.shown:
        prompt = one.fact.prompt()
        batch = PromptBatch.from_prompts(model, [prompt])
        before = float(answers(model, batch).target[0])
        with one.edit.applied(model):
            after = float(answers(model, batch).target[0])
        row = asked[(asked["edit"] == one.fact.name) & (asked["kind"] == PROMPT)].iloc[0]
        assert (row["p_before"], row["p_after"]) == pytest.approx((before, after), rel=1e-4)
        assert after > before


def test_pairs_are_turned_whose_right_word_the_model_prefers(organism) -> None:
    model, pairs = organism("tiny-causal"), kn.load_minimal_pairs(PARADIGMS[0])
    facts, dropped = e7_edits.turned_pairs(model, pairs, 5, 0)
    assert len(facts) == 5
    assert not dropped
    by_source = {pair.source: pair for pair in pairs.pairs}
    for fact in facts:
        pair = by_source[fact.source]
        prefix, good, bad, _ = pair.difference()
        assert (fact.old, fact.target, fact.question, fact.relation) == (good, bad, prefix, PARADIGMS[0])
        assert (pair.sentence_good[slice(*pair.cue)]) == fact.subject
        right, wrong = (
            float(answers(model, PromptBatch.from_prompts(model, [fact.prompt(word)])).target[0])
            for word in (good, bad)
        )
        assert right > wrong
    assert e7_edits.turned_pairs(model, pairs, 5, 0)[0] == facts
    assert e7_edits.turned_pairs(model, pairs, 5, 1)[0] != facts


def test_paradigms_of_another_form_are_passed_over_with_the_reason(organism) -> None:
    pairs = kn.load_minimal_pairs("determiner_noun_agreement_2")
    assert pairs.form == "two_prefix"
    facts, (dropped,) = e7_edits.turned_pairs(organism("tiny-causal"), pairs, 1, 0)
    assert not facts
    assert "two_prefix" in dropped.reason


def test_findings_are_named_by_the_edit(result) -> None:
    said = e7_edits.findings(result)
    for one in result.shown:
        own = one.findings()
        assert [sentence for sentence in said if sentence.startswith(f"{one.fact.name}. ")] == [
            f"{one.fact.name}. {sentence}" for sentence in own
        ]
    assert not e7_edits.verdicts(result)


def test_what_is_read_back_says_the_same(result, tmp_path) -> None:
    result.save(tmp_path / "e7")
    again = e7_edits.Result.load(tmp_path / "e7")
    assert e7_edits.findings(again) == e7_edits.findings(result)
    assert e7_edits.dropped(again) == e7_edits.dropped(result)
    assert again.settings == result.settings
    for name, table in e7_edits.tables(result).items():
        assert table.equals(e7_edits.tables(again)[name]), name
    figures = e7_edits.figures(result)
    assert list(figures)[:2] == ["generations-1-France", "generations-2-Japan"]
    for name, figure in e7_edits.figures(again).items():
        assert figure.to_json() == figures[name].to_json()
    (tmp_path / "e7" / "edit-2" / "written.parquet").write_bytes(b"torn")
    with pytest.raises(OutputError, match="edit-2 holds no readable edit"):
        e7_edits.Result.load(tmp_path / "e7")


def test_a_run_goes_on_where_it_stopped(organism, tmp_path, caplog) -> None:
    model = organism("tiny-causal")
    settings = e7_edits.Settings(facts=e7_edits.settings(model, "small", 0).facts, rome=RomeSettings(steps=3), pairs=1)
    first = e7_edits.run(model, [], settings, pieces=Pieces(tmp_path), progress=False)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/fields.json")}
    assert len(made) == 2
    (damaged,) = (path for path in made if "Japan" in path.parent.name)
    damaged.write_text("{}")
    with caplog.at_level(logging.WARNING):
        again = e7_edits.run(model, [], settings, pieces=Pieces(tmp_path), progress=False)
    assert "edit-Japan" in caplog.text
    assert {path for path, when in made.items() if path.stat().st_mtime_ns != when} == {damaged}
    assert e7_edits.findings(again) == e7_edits.findings(first)
    assert again.shown[0].seconds == first.shown[0].seconds


def test_an_edit_that_cannot_be_made_is_said(organism) -> None:
    model = organism("tiny-causal")
    done = kn.Fact(e7_edits.CAPITAL, "France", "Paris")
    fine = e7_edits.settings(model, "small", 0).facts[0]
    settings = e7_edits.Settings(facts=(done, fine), rome=RomeSettings(steps=3))
    result = e7_edits.run(model, [], settings, progress=False)
    assert [one.fact.target for one in result.shown] == ["Madrid"]
    assert "not edited: " in e7_edits.findings(result)[-1]
    assert "already" in e7_edits.findings(result)[-1]
    with pytest.raises(kn.KnLensError, match="already"):
        e7_edits.run(model, [], replace(settings, facts=(done,)), progress=False)


def test_masked_models_are_told_why_not(organism) -> None:
    model = organism("tiny-masked")
    assert e7_edits.unsuited(organism("tiny-causal")) is None
    assert e7_edits.unsuited(model) == "ROME is for causal models, and tiny-masked is a masked one"
    with pytest.raises(ModelError, match="masked"):
        e7_edits.run(model, [], e7_edits.Settings(), progress=False)
