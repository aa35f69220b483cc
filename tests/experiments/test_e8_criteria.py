"""E8: editors judged by the criteria, and the paper's claims about edits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import kn_lens as kn
from kn_lens.criteria.evaluation import EditEvaluation
from kn_lens.errors import ModelError, OutputError, SettingsError
from kn_lens.experiments import e8_criteria
from kn_lens.experiments.criteria_verdicts import criteria_verdicts
from kn_lens.experiments.verdicts import Verdict
from kn_lens.statistics import wilson_interval
from kn_lens.studies.pieces import Pieces

SETTINGS = e8_criteria.Settings(edits={"rome": 6, "neurons": 4}, agreement={"rome": 3})
DATA = ("P36", "P101", "subject_verb_agreement_distractor")
CLAIMS = {
    "rome": "ROME makes the new answer come",
    "symmetry": "The inverse question seldom follows an edit",
    "synonymy": "Other words for the same seldom follow an edit",
    "neurons": "Editing knowledge neurons seldom makes the new answer come",
}


@pytest.fixture(scope="module")
def result(organism) -> e8_criteria.Result:
    data = [kn.load_data(name) for name in DATA]
    return e8_criteria.run(organism("tiny-causal"), data, SETTINGS, progress=False)


def _with(result: e8_criteria.Result, editor: str, criterion: str, success: float) -> e8_criteria.Result:
    """The result, every question of a criterion answered alike after the edits of an editor."""

    def changed(one: EditEvaluation) -> EditEvaluation:
        rows = [row | {"success_after": success} if row["criterion"] == criterion else row for row in one.rows]
        return replace(one, rows=tuple(rows))

    found = [
        replace(entry, evaluations={n: changed(e) if n == editor else e for n, e in entry.evaluations.items()})
        for entry in result.found
    ]
    return replace(result, found=tuple(found))


def _verdicts(result: e8_criteria.Result) -> dict[str, Verdict]:
    said = {verdict.claim: verdict for verdict in e8_criteria.verdicts(result)}
    return {name: said[claim] for name, claim in CLAIMS.items() if claim in said}


def test_each_editor_is_judged_on_what_the_model_knows(result) -> None:
    assert result.kinds == ("facts", "facts", "pairs")
    assert [list(entry.evaluations) for entry in result.found] == [["rome", "neurons"], ["rome", "neurons"], ["rome"]]
    capitals, fields, verbs = result.found
    assert [len(entry.evaluations["rome"]) for entry in result.found] == [6, 6, 3]
    for entry, criterion in ((capitals, "symmetry"), (fields, "synonymy")):
        ours, theirs = entry.evaluations.values()
        assert [edit["fact"] for edit in ours.edits[:4]] == [edit["fact"] for edit in theirs.edits]
        scored = [row["edit"] for row in ours.rows if row["criterion"] == criterion and row["scored"]]
        assert set(scored) == set(range(6))
    assert verbs.criteria == ("reliability", "generality", "locality")


def test_verdicts_count_the_questions(result) -> None:
    verdicts = _verdicts(result)
    assert list(verdicts) == list(CLAIMS)
    for editor in ("rome", "neurons"):
        rows = [row for one in result.of_facts(editor) for row in one.rows if row["criterion"] == "reliability"]
        right = sum(row["success_after"] for row in rows)
        estimate = verdicts[editor].estimate
        assert estimate is not None
        assert estimate.value == pytest.approx(right / len(rows))
        assert (estimate.low, estimate.high) == pytest.approx(wilson_interval(int(right), len(rows)))
        assert f"of {len(rows)} edits (P36 and P101)" in verdicts[editor].measured
        assert verdicts[editor].holds is estimate.holds
    rows = [row for row in result.found[0].evaluations["rome"].rows if row["criterion"] == "symmetry" and row["scored"]]
    came = {
        row["edit"]
        for row in result.found[0].evaluations["rome"].rows
        if row["criterion"] == "reliability" and row["success_after"] == 1
    }
    shares = [np.mean([row["success_after"] for row in rows if row["edit"] == edit]) for edit in sorted(came)]
    estimate = verdicts["symmetry"].estimate
    assert estimate is not None
    assert estimate.value == pytest.approx(np.mean(shares))
    assert f"({len(came)} edits of 6 after which" in verdicts["symmetry"].measured


def test_verdicts_go_either_way(result) -> None:
    both = _with(_with(result, "rome", "reliability", 1.0), "neurons", "reliability", 0.0)
    both = _with(_with(both, "rome", "symmetry", 0.0), "rome", "synonymy", 0.0)
    few = {name: verdict.holds for name, verdict in _verdicts(both).items()}
    # Of 8 edits none: Wilson's interval reaches above a fifth, and so do those of 6.
    assert few == {"rome": True, "symmetry": None, "synonymy": None, "neurons": None}
    more = criteria_verdicts({name: 3 * both.of_facts(name) for name in ("rome", "neurons")})
    assert {verdict.claim: verdict.holds for verdict in more} == dict.fromkeys(CLAIMS.values(), True)
    other = _with(_with(result, "rome", "reliability", 1.0), "neurons", "reliability", 1.0)
    other = _with(_with(other, "rome", "symmetry", 1.0), "rome", "synonymy", 1.0)
    held = {name: verdict.holds for name, verdict in _verdicts(other).items()}
    assert held == {"rome": True, "symmetry": False, "synonymy": False, "neurons": False}
    never = _verdicts(_with(result, "rome", "reliability", 0.0))
    assert never["rome"].holds is False
    assert never["symmetry"].holds is None
    assert "after none of 6 edits by rome" in never["symmetry"].measured


def test_what_the_model_does_not_know_is_not_judged(result) -> None:
    first = result.found[0]
    rows = tuple(
        row | {"scored": False} if row["criterion"] == "symmetry" else row for row in first.evaluations["rome"].rows
    )
    unknown = replace(first, evaluations={"rome": replace(first.evaluations["rome"], rows=rows)})
    verdict = _verdicts(replace(result, found=(unknown, *result.found[1:])))["symmetry"]
    assert verdict.holds is None
    assert verdict.estimate is None
    assert "passes no such probe" in verdict.measured


def test_what_is_read_back_says_the_same(result, tmp_path) -> None:
    result.save(tmp_path / "e8")
    again = e8_criteria.Result.load(tmp_path / "e8")
    assert e8_criteria.findings(again) == e8_criteria.findings(result)
    assert e8_criteria.verdicts(again) == e8_criteria.verdicts(result)
    assert again.settings == result.settings
    assert again.settings["data"] == list(DATA)
    assert e8_criteria.dropped(again) == e8_criteria.dropped(result)
    tables = e8_criteria.tables(again)
    assert list(tables)[:2] == ["summary", "cascade"]
    for name, table in e8_criteria.tables(result).items():
        assert table.equals(tables[name]), name
    figures = e8_criteria.figures(result)
    assert list(figures) == [f"{kind}-{name}" for kind in ("criteria", "cascade") for name in DATA]
    for name, figure in e8_criteria.figures(again).items():
        assert figure.to_json() == figures[name].to_json()
    (tmp_path / "e8" / "evaluated-1" / "evaluation-rome" / "result.json").write_text("[]")
    with pytest.raises(OutputError, match="evaluated-1"):
        e8_criteria.Result.load(tmp_path / "e8")


def test_a_run_goes_on_within_an_editor(organism, tmp_path) -> None:
    model, data = organism("tiny-causal"), [kn.load_data("P101")]
    settings = e8_criteria.Settings(edits={"rome": 3})
    first = e8_criteria.run(model, data, settings, pieces=Pieces(tmp_path), progress=False)
    kept = next(tmp_path.glob("evaluation-P101-rome-*"))
    made = (kept / "result.json").stat().st_mtime_ns
    again = e8_criteria.run(model, data, settings, pieces=Pieces(tmp_path), progress=False)
    assert (kept / "result.json").stat().st_mtime_ns == made
    assert e8_criteria.findings(again) == e8_criteria.findings(first)
    # Killed before the last edit: the piece is not there yet, and the journal lacks a line.
    (kept / "result.json").unlink()
    journal = next(tmp_path.glob("journal-P101-rome-*"))
    lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(lines) == 1 + 3
    journal.write_text("".join(lines[:-1]), encoding="utf-8")
    resumed = e8_criteria.run(model, data, settings, pieces=Pieces(tmp_path), progress=False)
    before, after = (one.found[0].evaluations["rome"].edits for one in (first, resumed))
    assert [edit["seconds"] for edit in after[:2]] == [edit["seconds"] for edit in before[:2]]
    assert after[2]["seconds"] != before[2]["seconds"]
    assert e8_criteria.findings(resumed) == e8_criteria.findings(first)


def test_masked_models_are_judged_by_their_neurons(organism) -> None:
    model = organism("tiny-masked")
    settings = replace(e8_criteria.settings(model, "small", 0), edits={"neurons": 3})
    assert settings.agreement == {}
    assert e8_criteria.data(model, "small") == ("P36", "P101")
    result = e8_criteria.run(model, [kn.load_data("P36")], settings, progress=False)
    assert set(_verdicts(result)) == {"symmetry", "synonymy", "neurons"}
    assert "no such question was asked" in _verdicts(result)["synonymy"].measured
    with pytest.raises(ModelError, match="masked"):
        e8_criteria.run(model, [kn.load_data("P36")], SETTINGS, progress=False)


def test_where_nothing_is_known_the_rest_is_judged(random_model) -> None:
    model = random_model("gpt2")
    settings = e8_criteria.Settings(edits={"neurons": 2}, agreement={})
    result = e8_criteria.run(model, [kn.load_data("P36")], settings, progress=False)
    verdicts = _verdicts(result)
    assert (
        verdicts["symmetry"].measured == "not to be judged: the unedited model passes no such probe for its own facts"
    )
    assert verdicts["neurons"].estimate is not None
    assert "of 2 edits (P36)" in verdicts["neurons"].measured


def test_bad_settings_are_refused(organism) -> None:
    model, data = organism("tiny-causal"), [kn.load_data("P36")]
    with pytest.raises(SettingsError, match="no editor 'rone'"):
        e8_criteria.run(model, data, e8_criteria.Settings(edits={"rone": 3}), progress=False)
    with pytest.raises(SettingsError, match="no edits are asked for"):
        e8_criteria.run(model, data, e8_criteria.Settings(edits={}), progress=False)
