"""The commands that show the bundled models, as processes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from kn_lens.criteria.evaluation import EditEvaluation
from kn_lens.editing.rank_one import RankOneEdit
from kn_lens.runs.demo import MODELS, PARTS
from kn_lens.suppression.effect import UnitEffect
from tests.test_cli import refused, run

EDIT_FIGURES = {"tiny-causal": 6, "tiny-masked": 2}
"""Criteria and cascade of each relation; of the causal model also one edit's search and what it writes."""


def test_the_demo_shows_both_organisms_without_a_network(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = run("demo", "--out", out)
    assert done.returncode == 0, done.stderr
    for model in MODELS:
        assert f"{model}: facts beside agreement" in done.stdout
        for part in PARTS:
            manifest = json.loads((out / model / part / "manifest.json").read_text())
            assert manifest["provenance"]["model"] == model
        number = json.loads((out / model / "number" / "manifest.json").read_text())
        effect = UnitEffect.load(out / model / "number" / "effect")
        assert [tuple(unit) for unit in number["units"]] == list(effect.units[0])
        said = " ".join(done.stdout.split())
        assert all(" ".join(sentence.split()) in said for sentence in number["findings"])
        edit = json.loads((out / model / "edit" / "manifest.json").read_text())
        assert all(" ".join(sentence.split()) in said for sentence in edit["findings"])
        one = EditEvaluation.load(out / model / "edit" / next(iter(edit["data"]["P36"]["evaluations"].values())))
        assert len(one) + len(one.failed) == 20
        figures = sorted((out / model).rglob("*.html"))
        assert len(figures) == 27 + EDIT_FIGURES[model]
        assert all(str(figure) in done.stdout for figure in figures)
        assert (
            "Probability change when units are suppressed"
            in (out / model / "number" / "figures" / "probability-change-plural.html").read_text()
        )
        assert "Restoring a state: mean effect" in (out / model / "trace" / "figures" / "averages.html").read_text()
        assert (
            "How much must go before answers flip?" in (out / model / "heads" / "figures" / "curves.html").read_text()
        )
    assert "tiny-masked is a masked model: ROME writes" in done.stdout
    edit = RankOneEdit.load(out / "tiny-causal" / "edit" / "edit")
    assert edit.fact is not None
    assert edit.fact.name == "France: Paris → Madrid"
    assert "the most probable word goes from Paris" in done.stdout
    again = run("demo", "tiny-masked", "--out", out)  # a former demo is replaced
    assert again.returncode == 0, again.stderr


def test_compare_tells_the_organisms_apart(tmp_path: Path) -> None:
    out = tmp_path / "compared"
    done = run("compare", "tiny-causal", "tiny-causal-narrow", "--data", "P36", "--facts", 8, "--out", out)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(out / "measures.csv").set_index("measure")
    assert table.loc["generality", "low"] > 0
    facts = pd.read_csv(out / "facts.csv")
    mean = facts[facts["model"] == "tiny-causal-narrow"]["generality"].mean()
    assert abs(mean - table.loc["generality", "tiny-causal-narrow"]) < 1e-9
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"] == {"relation": "P36", "facts": 8, "seed": 0}
    assert [entry["model"] for entry in manifest["provenance"]] == ["tiny-causal", "tiny-causal-narrow"]


def test_compare_refuses_what_it_cannot_compare() -> None:
    assert "name two" in refused("compare", "tiny-causal")
    assert "Did you mean 'tiny-causal'" in refused("compare", "tiny-casual", "tiny-masked")
    verbs = "subject_verb_agreement"
    assert "holds minimal pairs" in refused("compare", "tiny-causal", "tiny-causal-narrow", "--data", verbs)
