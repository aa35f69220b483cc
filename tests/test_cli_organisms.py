"""The commands that show the bundled models, as processes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from tests.test_cli import refused, run


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
