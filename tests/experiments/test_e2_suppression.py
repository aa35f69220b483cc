"""E2: sentences, tables and verdicts are those of the raw probabilities, whichever way they come out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from scipy import stats

import kn_lens as kn
from kn_lens.experiments import e2_suppression as e2
from kn_lens.experiments.number_units import NumberSettings, NumberUnits, number_data


@pytest.fixture(scope="module", params=["tiny-causal", "tiny-masked"])
def result(request: pytest.FixtureRequest, organism: Any) -> NumberUnits:
    model = organism(request.param)
    data = [kn.load_minimal_pairs(number_data(model, "small")[0])]
    return e2.run(model, data, NumberSettings(searched=20, singular=15, controls=25), progress=False)


def test_tables_are_those_of_the_raw_probabilities(result: NumberUnits) -> None:
    tables = e2.tables(result)
    assert list(tables) == ["answers", "words", "units", "prompts"]
    row = tables["answers"].set_index("answers").loc["plural"]
    effect = result.plural
    logs = effect.target.double().log()
    change = logs[:, 1] - logs[:, 0]
    assert row["p(good) before"] == pytest.approx(effect.target[:, 0].mean().item())
    assert row["p(bad) after"] == pytest.approx(effect.foil[:, 1].mean().item())
    assert row["change of log p(good)"] == pytest.approx(change.mean().item())
    t = stats.ttest_rel(logs[:, 1].numpy(), logs[:, 0].numpy())
    assert row["paired p of log p"] == pytest.approx(t.pvalue)
    assert row["change of log p(good) low"] == pytest.approx(t.confidence_interval().low)
    draws = (logs[:, 2:] - logs[:, :1]).mean(0).abs()
    larger = int((draws >= change.mean().abs()).sum())
    assert row["p among random draws"] == pytest.approx((1 + larger) / 26)
    assert row["flipped"] == effect.flipped[:, 1].float().mean()
    words = tables["words"].query("answers == 'singular'")
    pd.testing.assert_frame_equal(
        words.drop(columns="answers").reset_index(drop=True), result.singular.to_frame(), check_dtype=False
    )
    assert len(tables["prompts"]) == len(result.effect)
    assert tables["units"]["unit"].tolist() == [unit for _, unit in result.found.units]


def test_findings_hold_the_numbers(result: NumberUnits) -> None:
    said = e2.findings(result)
    assert len(said) == 3
    assert f"hang on {len(result.found)} unit" in said[0]
    row = e2.tables(result)["answers"].iloc[0]
    assert f"p(good) goes from {row['p(good) before']:.3g} to {row['p(good) after']:.3g}" in said[1]
    assert f"over {len(result.plural)} plural answers" in said[1]
    assert "of 25 draws of random units" in said[1]
    assert "over 15 singular answers" in said[2]
    assert all("nan" not in sentence and sentence.endswith(".") for sentence in said)
    assert all("random" not in sentence for sentence in e2.findings(fewer_draws(result, 0))[1:])


def test_it_reads_the_same_without_the_model(result: NumberUnits, tmp_path: Path) -> None:
    again = e2.Result.load(result.save(tmp_path))
    assert e2.findings(again) == e2.findings(result)
    assert e2.verdicts(again) == e2.verdicts(result)
    assert e2.dropped(again) == e2.dropped(result)
    for name, table in e2.tables(result).items():
        pd.testing.assert_frame_equal(e2.tables(again)[name], table)
    figures = e2.figures(result)
    assert list(figures) == ["plural", "singular"]
    assert {name: figure.to_json() for name, figure in e2.figures(again).items()} == {
        name: figure.to_json() for name, figure in figures.items()
    }


def fewer_draws(result: NumberUnits, draws: int) -> NumberUnits:
    """The result with some of its random draws."""
    effect = result.effect
    tensors = {name: getattr(effect, name)[:, : 2 + draws] for name in ("target", "foil", "rival", "top")}
    assert effect.drawn is not None
    return replace(result, effect=replace(effect, drawn=effect.drawn[:, :draws], **tensors))


def shifted(result: NumberUnits, edit: float, draws: float, flipped: int = 0) -> NumberUnits:
    """The result with log p(target) changed by ``edit``, and by ``draws`` in each random draw; some answers flipped."""
    effect = result.effect
    before = torch.linspace(0.3, 0.4, len(effect), dtype=torch.float64)[:, None]
    jitter = torch.linspace(-0.05, 0.05, len(effect), dtype=torch.float64)[:, None]
    wide = torch.linspace(0.9, 1.1, 25, dtype=torch.float64)[None]
    after, random = before * (edit + jitter).exp(), before * (draws * wide + jitter).exp()
    target = torch.cat([before, after, random], 1)
    foil = 0.02 * before.expand_as(target).clone()
    plural = [at for at, prompt in enumerate(effect.prompts) if prompt in result.plural.prompts]
    foil[plural[:flipped], 1] = before[plural[:flipped], 0] + 0.4
    rival = torch.full_like(target, float("nan"))
    return replace(result, effect=replace(effect, target=target, foil=foil, rival=rival))


def test_verdicts_come_out_either_way(result: NumberUnits) -> None:
    n = len(result.plural)
    for edit, draws, holds in ((-0.3, 0.01, True), (0.3, -0.01, True), (-0.01, -0.3, False), (0.0, 0.1, False)):
        verdict, stay = e2.verdicts(shifted(result, edit, draws))
        assert verdict.holds is holds
        assert (stay.holds, stay.estimate) == (True, stay.estimate)
        assert f"0 of {n} plural answers flip: 0.0%" in stay.measured
    assert "25 of 25 random draws" in e2.verdicts(shifted(result, -0.01, -0.3))[0].measured
    assert "0 of 25 random draws" in e2.verdicts(shifted(result, -0.3, 0.01))[0].measured
    assert e2.verdicts(fewer_draws(shifted(result, -0.3, 0.01), 10))[0].holds is None
    for flipped, holds in ((n // 2, False), (n // 5, None), (n, False)):
        _, stay = e2.verdicts(shifted(result, -0.3, 0.01, flipped))
        assert stay.holds is holds
        assert stay.estimate is not None
        assert stay.estimate.value == pytest.approx(flipped / n)
        assert f"{flipped} of {n} plural answers" in stay.measured


def test_no_answer_of_a_number(result: NumberUnits) -> None:
    none = replace(result, effect=result.effect.where(lambda prompt: prompt in result.singular.prompts))
    assert [verdict.holds for verdict in e2.verdicts(none)] == [None, None]
    assert {verdict.measured for verdict in e2.verdicts(none)} == {"no plural answers"}
    assert list(e2.figures(none)) == ["singular"]
    assert len(e2.findings(none)) == 2
