"""E1: measures are those of the localizations, claims follow the numbers, and nothing is searched twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.errors import OutputError, PromptError, SettingsError
from kn_lens.experiments import e1_localization as e1
from kn_lens.localization.localize import Localization, LocalizeSettings, localize
from kn_lens.prompts.load import load_prompts
from kn_lens.prompts.minimal_pairs import read_minimal_pairs
from kn_lens.prompts.prompt import Dropped
from kn_lens.statistics import wilson_interval
from kn_lens.studies.localizations import kept_localization, kept_localizations
from kn_lens.studies.localized import Localized, LocalizedSets
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.shares import grouped_share, told

SETTINGS = LocalizeSettings(groups=4, prompts=4, steps=4)
NAMES = ("P36", "subject_verb_agreement")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("pieces")


@pytest.fixture(scope="module")
def result(organism: Any, folder: Any) -> LocalizedSets:
    sets = [load_prompts(name) for name in NAMES]
    return e1.run(organism("tiny-causal"), sets, SETTINGS, pieces=Pieces(folder), progress=False)


@pytest.fixture(scope="module")
def by_hand(organism: Any) -> Localization:
    return localize(organism("tiny-causal"), kn.load_relation("P36"), SETTINGS, progress=False)


def made(facts: list[float], agreement: list[float], units: tuple[int, int] = (3, 3)) -> LocalizedSets:
    """R₁² of each group of facts and of agreement, and the number of units of all groups of each."""
    return LocalizedSets(
        sets=(one("P36", "facts", facts, units[0]), one("agreement", "pairs", agreement, units[1])),
        left_out={},
        settings={"site": "mlp", "rule": "riemann", "steps": 20, "count": [2, 5]},
        provenance={"model": "m"},
    )


def one(name: str, kind: str, similarity: list[float], count: int, layer: int = 0) -> Localized:
    rows = [
        {
            **{"group": f"g{at}", "prompts": 4, "|KN|": count, "τ": 0.7, "R₁²": value, "stability": 0.5},
            **{"in range": 2 <= count <= 5, "note": "", "top 10 share": 0.2},
            **{"units": [[layer, unit] for unit in range(count)], "frequency": [1.0] * count},
        }
        for at, value in enumerate(similarity)
    ]
    return Localized(
        **{"data": name, "data_kind": kind, "rows": rows, "prompts": 4 * len(rows), "searched": 2 * len(rows)},
        **{"accuracy": 1.0, "gap": 0.0, "n_layers": 4, "ks": (1, 8), "n_units": 8},
        shares=torch.tensor([[0.5, 1.0]]),
        gini=torch.tensor([0.5]),
        participation_ratio=torch.tensor([2.0]),
        dropped=(Dropped(text="x", reason="two tokens"),),
        settings={},
        provenance={},
    )


def test_measures_are_those_of_the_localization(result: LocalizedSets, by_hand: Localization) -> None:
    row = e1.tables(result)["measures"].iloc[0]
    summary = by_hand.summary()
    for measure in ("|KN|", "τ", "R₁²", "stability", "Gini", "accuracy", "groups", "prompts"):
        assert row[measure] == pytest.approx(summary[measure], abs=1e-6), measure
    assert row["top 10 share"] == pytest.approx(summary["top 10 share"], abs=1e-6)  # groups are of one size
    groups = e1.tables(result)["groups"]
    mine = groups[groups["data"] == "P36"]
    assert mine["R₁²"].tolist() == pytest.approx(list(by_hand.similarity.values()), abs=1e-6)
    assert mine["units"].tolist() == by_hand.groups_frame()["units"].tolist()
    assert row["in range"] == np.mean([found.in_range for found in by_hand.found.values()])
    units = e1.tables(result)["units"]
    found = [unit for entry in by_hand.found.values() for unit in entry.units]
    assert list(zip(units["layer"], units["unit"], strict=True))[: len(found)] == found


def test_the_difference_is_of_means_over_groups(result: LocalizedSets) -> None:
    groups = e1.tables(result)["groups"]
    row = e1.tables(result)["comparison"].set_index("measure").loc["R₁²"]
    facts, agreement = (groups[groups["kind"] == kind]["R₁²"] for kind in ("facts", "agreement"))
    assert row["difference"] == pytest.approx(facts.mean() - agreement.mean(), abs=1e-9)
    assert row["low"] <= row["difference"] <= row["high"]
    verdict = e1.verdicts(result)[0]
    assert f"{facts.mean():.2f}" in verdict.measured
    assert verdict.estimate is not None
    assert verdict.holds == verdict.estimate.holds


@pytest.mark.parametrize(
    ("facts", "agreement", "holds"),
    [
        ([0.5, 0.51, 0.52, 0.5], [0.5, 0.52, 0.51, 0.5], True),
        ([0.5, 0.51, 0.52, 0.5], [0.9, 0.92, 0.91, 0.9], True),  # agreement is the more local
        ([0.9, 0.91, 0.92, 0.9], [0.5, 0.52, 0.51, 0.5], False),
        ([0.1, 0.9, 0.2, 0.8], [0.5, 0.1, 0.9, 0.2], None),
        ([0.9], [0.5], None),  # a single group has no interval
    ],
)
def test_agreement_localizes_as_well_or_not(facts: list[float], agreement: list[float], holds: bool | None) -> None:
    assert e1.verdicts(made(facts, agreement))[0].holds is holds


@pytest.mark.parametrize(("counts", "holds"), [((3, 3), True), ((3, 1), True), ((3, 4), True), ((3, 9), False)])
def test_as_few_units_or_not(counts: tuple[int, int], holds: bool) -> None:
    few = e1.verdicts(made([0.5] * 12, [0.5] * 12, counts))[1]
    assert few.holds is holds
    assert (
        f"of facts {counts[0]:.1f} (12 groups with units), of agreement {counts[1]:.1f} (12 groups with units)"
        in few.measured
    )


def test_a_few_groups_of_unlike_size_do_not_tell() -> None:
    facts, agreement = one("P36", "facts", [0.5] * 2, 3), one("agreement", "pairs", [0.5] * 2, 3)
    agreement.rows[0]["|KN|"], agreement.rows[1]["|KN|"] = 1, 9
    result = replace(made([0.5], [0.5]), sets=(facts, agreement))
    assert e1.verdicts(result)[1].holds is None


def test_a_group_without_a_similarity_is_not_counted() -> None:
    row = e1.tables(made([0.4, float("nan"), 0.6], [0.5, 0.5]))["comparison"].set_index("measure").loc["R₁²"]
    assert (row["facts"], row["groups of facts"]) == (pytest.approx(0.5), 2)


def test_saved_and_read_back_it_says_the_same(result: LocalizedSets, tmp_path: Any) -> None:
    back = e1.Result.load(result.save(tmp_path / "r"))
    assert e1.findings(back) == e1.findings(result)
    assert e1.verdicts(back) == e1.verdicts(result)
    assert e1.dropped(back) == e1.dropped(result)
    assert back.settings == result.settings
    for name, table in e1.tables(result).items():
        assert e1.tables(back)[name].equals(table), name
    for name, figure in e1.figures(result).items():
        assert e1.figures(back)[name].to_json() == figure.to_json(), name


def test_figures_show_every_group(result: LocalizedSets) -> None:
    traces = e1.figures(result)["levels"].to_dict()["data"]
    groups = e1.tables(result)["groups"]
    similarity = [list(trace["x"]) for trace in traces if trace.get("xaxis") == "x3"]
    assert similarity[0] == groups[groups["data"] == "P36"]["R₁²"].tolist()
    assert similarity[1] == [pytest.approx(np.mean(similarity[0]))]
    assert "units" in traces[0]["hovertext"][0]


@pytest.mark.parametrize("damage", ["fields.json", "0/result.json", "1/tensors.safetensors"])
def test_a_damaged_result_is_named(result: LocalizedSets, tmp_path: Any, damage: str) -> None:
    folder = result.save(tmp_path / "r")
    (folder / damage).write_text("{")
    with pytest.raises(OutputError, match="/r"):
        e1.Result.load(folder)


def test_a_second_run_searches_nothing(result: LocalizedSets, organism: Any, folder: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    sets = [load_prompts(name) for name in NAMES]
    again = e1.run(organism("tiny-causal"), sets, SETTINGS, pieces=Pieces(folder), progress=False)
    assert e1.findings(again) == e1.findings(result)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    other = replace(SETTINGS, seed=1)
    kept_localization(organism("tiny-causal"), kn.load_relation("P36"), other, Pieces(folder), False)
    assert len(list(folder.iterdir())) == len(NAMES) + 1


def test_data_that_cannot_be_asked_is_left_out(organism: Any, tmp_path: Any) -> None:
    model = organism("tiny-causal")
    (tmp_path / "odd.jsonl").write_text(
        '{"sentence_good": "The xylophonist sleeps.", "sentence_bad": "The xylophonists sleep."}\n'
    )
    odd = read_minimal_pairs(tmp_path / "odd.jsonl")
    sets = [*(load_prompts(name) for name in NAMES), odd]
    found, left_out = kept_localizations(model, sets, SETTINGS, progress=False)
    assert [entry.data for entry in found] == list(NAMES)
    assert list(left_out) == ["odd"]
    result = replace(made([0.5, 0.5], [0.5, 0.5]), left_out=left_out)
    assert f"odd is left out: {left_out['odd']}." in e1.findings(result)
    assert e1.dropped(result)[0] == ("odd", Dropped(text="the whole data set", reason=left_out["odd"]))
    with pytest.raises(PromptError, match="no prompts of agreement are left"):
        e1.run(model, [sets[0], odd], SETTINGS, progress=False)


def test_both_kinds_are_needed(organism: Any) -> None:
    relation = kn.load_relation("P36")
    with pytest.raises(SettingsError, match="no agreement"):
        e1.run(organism("tiny-causal"), [relation], SETTINGS, progress=False)
    with pytest.raises(SettingsError, match="given twice"):
        kept_localizations(organism("tiny-causal"), [relation, relation], SETTINGS, progress=False)


def test_a_share_is_no_narrower_than_groups_or_prompts_allow() -> None:
    """Groups that are alike within: the bootstrap is the wider. No success at all: Wilson's is."""
    flags = np.repeat([True, False, False, False, True, False, False, False], 10)
    groups = np.repeat(np.arange(8), 10).tolist()
    share, wilson = grouped_share(flags, groups), wilson_interval(20, 80)
    assert (share.share, share.successes, share.n, share.groups) == (0.25, 20, 80, 8)
    assert share.low < wilson[0]
    assert share.high > wilson[1]
    none = grouped_share([False] * 10, range(10))
    assert (none.low, none.high) == wilson_interval(0, 10)
    assert np.isnan(grouped_share([True, False], ["g", "g"]).low)
    assert told(-0.001, "+.2f") == "+0.00"
    assert told(-0.2, "+.2f") == "−0.20"
