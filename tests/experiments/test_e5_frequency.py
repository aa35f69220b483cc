"""E5: ρ is scipy's, the verdict follows from it, and the run is that of E2."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

import kn_lens as kn
from kn_lens.errors import DataError
from kn_lens.experiments import e2_suppression as e2
from kn_lens.experiments import e5_frequency as e5
from kn_lens.experiments.number_units import NumberSettings, NumberUnits, number_data
from kn_lens.studies.pieces import Pieces

SETTINGS = NumberSettings(searched=20, singular=1, controls=25)


def paradigms(model: Any) -> list[kn.MinimalPairs]:
    return [kn.load_minimal_pairs(number_data(model, "small")[0])]


@pytest.fixture(scope="module", params=["tiny-causal", "tiny-masked"])
def result(request: pytest.FixtureRequest, organism: Any) -> NumberUnits:
    model = organism(request.param)
    return e5.run(model, paradigms(model), SETTINGS, progress=False)


def test_tables_are_those_of_scipy(result: NumberUnits) -> None:
    tables = e5.tables(result)
    pairs, row = tables["pairs"], tables["correlations"].iloc[0]
    seen = pairs[pairs["count"] > 0]
    rho = stats.spearmanr(seen["count"].astype(int), seen["log_probability_change"]).statistic
    assert row["ρ"] == pytest.approx(rho)
    assert row["pairs seen"] == len(seen) < row["pairs"] == len(pairs)
    assert tables["correlations"].iloc[1]["ρ"] == pytest.approx(
        stats.spearmanr(seen["count"].astype(int), seen["preference_change"]).statistic
    )
    effect = result.frequency
    assert effect is not None
    random = [
        stats.spearmanr(effect.counts[effect.seen].numpy(), effect.changes[effect.seen, at].numpy()).statistic
        for at in range(1, 26)
    ]
    larger = int((np.abs(random) >= abs(rho) - 1e-9).sum())
    assert row["p among random draws"] == pytest.approx((1 + larger) / 26)
    assert f"{larger} of 25 random draws" in e5.verdicts(result)[0].measured


def test_findings_say_what_was_run(result: NumberUnits) -> None:
    said = e5.findings(result)
    assert f"the {len(result.found)} unit" in said[0]
    assert f"in {len(result.plural)} sentences" in said[0]
    assert "ρ = " in said[1]
    assert "log p(target) − log p(rival)" in said[2]
    assert "log p(rival)" not in said[1]
    assert list(e5.figures(result)) == ["frequency", "preference"]


def test_it_reads_the_same_without_the_model(result: NumberUnits, tmp_path: Path) -> None:
    again = e5.Result.load(result.save(tmp_path))
    assert e5.findings(again) == e5.findings(result)
    assert e5.verdicts(again) == e5.verdicts(result)
    for name, table in e5.tables(result).items():
        pd.testing.assert_frame_equal(e5.tables(again)[name], table)
    assert {name: figure.to_json() for name, figure in e5.figures(again).items()} == {
        name: figure.to_json() for name, figure in e5.figures(result).items()
    }


def made(result: NumberUnits, edit: str, random: str, pairs: int = 200) -> NumberUnits:
    """The result with changes that follow the count or do not, of the edit and of each random draw."""
    counts = torch.arange(1, pairs + 1)
    generator = torch.Generator().manual_seed(1)

    def change(kind: str) -> torch.Tensor:
        noise = torch.randn(pairs, generator=generator, dtype=torch.float64)
        return {"follows": counts / pairs * 4 + noise, "noise": noise, "same": torch.zeros(pairs).double()}[kind]

    assert result.frequency is not None
    words = tuple(f"w{at}" for at in range(pairs))
    effect = replace(
        result.frequency,
        first=words,
        second=words,
        counts=counts,
        changes=torch.stack([change(edit), *(change(random) for _ in range(25))], 1),
        prompts=torch.ones(pairs, dtype=torch.long),
    )
    return replace(result, frequency=effect)


def test_the_verdict_comes_out_either_way(result: NumberUnits) -> None:
    def holds(*way: Any) -> bool | None:
        return e5.verdicts(made(result, *way))[0].holds

    assert holds("follows", "noise") is True
    assert holds("follows", "follows") is None  # random units do the same
    assert holds("noise", "noise") is False
    assert holds("noise", "noise", 20) is None  # |ρ| of 0.6 would be needed
    assert holds("same", "noise") is None
    assert "all pairs change alike" in e5.verdicts(made(result, "same", "noise"))[0].measured
    few = made(result, "follows", "noise")
    assert few.frequency is not None
    few = replace(few, frequency=replace(few.frequency, changes=few.frequency.changes[:, :10]))
    assert e5.verdicts(few)[0].holds is None
    none = replace(few, frequency=None, preference=None, uncounted="no counts were asked for")
    assert (e5.verdicts(none)[0].holds, e5.verdicts(none)[0].measured) == (
        None,
        "not measured: no counts were asked for",
    )


def test_the_run_is_that_of_e2(organism: Any, tmp_path: Path) -> None:
    model, settings = organism("tiny-masked"), replace(SETTINGS, controls=0)
    pieces = Pieces(tmp_path)
    made_by_e2 = e2.run(model, paradigms(model), settings, pieces=pieces, progress=False)
    found = e5.run(model, paradigms(model), settings, pieces=pieces, progress=False)
    assert found.effect.target.equal(made_by_e2.effect.target)
    assert found.settings == made_by_e2.settings
    assert len([*tmp_path.iterdir()]) == 1
    with pytest.raises(DataError, match="nothing to set against frequency: no counts were asked for"):
        e5.run(model, paradigms(model), replace(settings, counts=None), progress=False)


def test_a_model_of_unknown_text_needs_english_counts(
    random_model: Any, organism: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert e5.unsuited(organism("tiny-causal")) is None
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wordsegment" else find(name))
    assert "pip install 'kn-lens[counts]'" in str(e5.unsuited(random_model("llama")))
    assert e5.unsuited(organism("tiny-causal")) is None
