"""The comparison of sites: its numbers are those of the single functions, its sentences follow from the table."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.errors import DataError, OutputError, PromptError, SettingsError
from kn_lens.localization.ablation import ablation_curve
from kn_lens.localization.measures import concentration
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.site_comparison import SiteComparison
from kn_lens.studies.sites import compare_sites, take_away
from kn_lens.studies.sites_findings import headline, sites_findings

DRAW: dict[str, Any] = {"groups": 3, "per_group": 4, "controls": 12}


@pytest.fixture(scope="module")
def result(organism: Any) -> SiteComparison:
    return compare_sites(organism("tiny-causal"), **DRAW, seed=1, progress=False)


def test_a_row_for_each_data_set_and_site(result: SiteComparison) -> None:
    table = result.to_frame()
    assert list(zip(table["data"], table["site"], strict=True)) == [
        ("P36", "mlp"),
        ("P36", "head"),
        ("subject_verb_agreement", "mlp"),
        ("subject_verb_agreement", "head"),
    ]
    assert table["kind"].tolist() == ["facts", "facts", "pairs", "pairs"]
    assert table["units of the site"].tolist() == [2048, 16, 2048, 16]
    assert (table["prompts searched"] + table["prompts held out"] == 12).all()
    assert result.settings["ablation"] == "zero"
    assert len(result.curves_frame()) == 2 * 17 + 2 * 7


def test_values_are_those_of_the_single_functions(result: SiteComparison, organism: Any) -> None:
    """Heads on facts, step by step."""
    model = organism("tiny-causal")
    batch = kn.load_relation("P36").prompts(model, groups=3, per_group=4, seed=1)
    scores = kn.integrated_gradients(model, batch, site="head", progress=False)
    search, test = kn.split_half(scores, 1)
    found = kn.search_groups(scores.select(search))
    row = result.to_frame().iloc[1]
    assert row["|KN|"] == pytest.approx(sum(map(len, found.values())) / 3)
    assert row["τ"] == pytest.approx(sum(entry.share for entry in found.values()) / 3)
    similarity = [kn.n_sample_similarity(scores.select(indices)) for indices in scores.groups.values()]
    assert row["R₁²"] == pytest.approx(sum(similarity) / 3)
    assert row["top 1 % units"] == 1
    assert row["top 1 % share"] == pytest.approx(concentration(scores, (1,)).shares.mean().item())
    assert row["top 10 share"] == pytest.approx(concentration(scores, (10,)).shares.mean().item())
    units = {group: list(entry.units) for group, entry in found.items()}
    effect = kn.suppress(model, batch.select(test), units, site="head", controls=12, seed=1, progress=False).summary()
    assert row["accuracy after"] == effect["accuracy_after"]
    assert row["accuracy after, random"] == pytest.approx(effect["control_accuracy"])
    assert math.isnan(row["accuracy percentile"])  # 12 draws tell nothing
    assert (row["draws"], row["distinct draws"]) == (12, effect["distinct_draws"])
    curve = ablation_curve(model, batch.select(test), scores.select(search), controls=12, seed=1, progress=False)
    half, random = curve.k_half(), curve.control_k_half()
    assert row["half: k"] == half.k.value
    assert row["half: norm high"] == half.norm.high
    assert row["half: units"] == half.taken.value <= half.k.value
    assert row["half: share of units"] == half.share.value == half.taken.value / 16
    assert row["half: k, random low"] == random.k.low
    assert row["answered rightly"] == len(curve)
    assert row["answered rightly"] + row["answered wrongly"] == row["prompts held out"]
    assert row["flipped at most"] == pytest.approx(curve.flipped.float().mean(0).max().item())
    assert row["flipped at the largest k"] == pytest.approx(curve.flipped[:, -1].float().mean().item())


def test_what_was_found_is_not_searched_on_what_it_is_tested_on(result: SiteComparison) -> None:
    for entry in result.entries:
        searched = {entry.found.scores.prompts[index] for index in entry.found.selection}
        assert not searched & set(entry.effect.prompts)
        assert set(entry.curve.prompts) <= set(entry.effect.prompts)


def test_figures_and_findings_are_of_these_numbers(result: SiteComparison) -> None:
    figures = result.figures()
    assert set(figures) == {"curves", "table", "accuracy", "layers", "heads"}
    maps = [trace for trace in figures["heads"].to_dict()["data"] if trace["type"] == "heatmap"]
    scores = result.entries[1].found.scores
    expected = scores.values.mean(0) / scores.probability.mean()
    assert maps[0]["z"][2][1] == pytest.approx(expected[2, 1].item())
    sentences = result.findings()
    assert sum("half of the answers" in sentence for sentence in sentences) >= 6
    assert all(sentence.endswith(".") and "nan" not in sentence for sentence in sentences)
    assert result.manifest()["findings"] == sentences


CURRENCIES = ("units", "share of units", "norm")


def table_row(data: str, kind: str, site: str, half: float, **other: Any) -> dict[str, Any]:
    """A row of the table whose half lies at ``half`` units, give or take one, and at as many hundredths."""
    row: dict[str, Any] = {"data": data, "kind": kind, "site": site, "units of the site": 100, "|KN|": 3.0, "R₁²": 0.5}
    row |= {"stability": 0.5, "Gini": 0.9, "top 1 % units": 1, "top 1 % share": 0.25, "prompts held out": 8}
    row |= {"accuracy before": 1.0, "accuracy after": 0.5, "accuracy after low": 0.2, "accuracy after high": 0.8}
    row |= {"accuracy after, random": 0.9, "accuracy p": 0.02, "draws": 100, "distinct draws": 90}
    row |= {"answered rightly": 7, "answered wrongly": 1, "flipped at most": 0.39, "flipped at most, random": 0.12}
    row |= {"flipped at the largest k": 0.25}
    for of, at in (("", half), (", random", math.nan)):
        for name, scale in (("units", 1.0), ("k", 2.0), ("share of units", 0.01), ("norm", 0.1)):
            known = not math.isnan(at)
            row |= {
                f"half: {name}{of}": at * scale,
                f"half: {name}{of} low": (at - 1) * scale if known else math.inf,
                f"half: {name}{of} high": (at + 1) * scale if known else math.inf,
            }
    return row | other


def test_findings_follow_the_numbers() -> None:
    rows = [table_row("F", "facts", "mlp", 20), table_row("F", "facts", "head", 2)]
    said = sites_findings(pd.DataFrame(rows))
    assert said == [
        "F: the search finds 3.0 of 100 neurons per group (R₁² 0.50, stability 0.50, Gini 0.90, the top neuron holds "
        "25% of Σ|α|), and 3.0 of 100 heads per group (R₁² 0.50, stability 0.50, Gini 0.90, the top head holds 25% of "
        "Σ|α|).",
        "F: without the neurons found, accuracy on 8 held-out prompts goes from 100.0% to 50.0% [20%, 80%]; random "
        "neurons of the same layers leave 90.0%: the drop is beyond chance (p = 0.02; 100 draws, 90 of them distinct).",
        "F: as the top neurons (of those with a score above 0) are taken away from the 7 prompts answered rightly (1 "
        "answered wrongly take no part), half of the answers flip at 20 neurons [19, 21 over groups] taken on average "
        "(k = 40), 20% of all, a change 2.00 times as large as the residual stream at the answer; with random neurons "
        "of the same layers, fewer than half of the answers flip anywhere on the curve (at most 12%).",
        "F: without the heads found, accuracy on 8 held-out prompts goes from 100.0% to 50.0% [20%, 80%]; random heads "
        "of the same layers leave 90.0%: the drop is beyond chance (p = 0.02; 100 draws, 90 of them distinct).",
        "F: as the top heads (of those with a score above 0) are taken away from the 7 prompts answered rightly (1 "
        "answered wrongly take no part), half of the answers flip at 2 heads [1, 3 over groups] taken on average "
        "(k = 4), 2% of all, a change 0.20 times as large as the residual stream at the answer; with random heads "
        "of the same layers, fewer than half of the answers flip anywhere on the curve (at most 12%).",
        "F, half of the answers: in number heads cost less; as a share of the site's units heads cost less; in output "
        "taken away heads cost less.",
    ]


def test_findings_turn_with_the_numbers() -> None:
    close = [table_row("F", "facts", "mlp", 3), table_row("F", "facts", "head", 4)]
    assert "in number neurons cost less (their intervals overlap)" in sites_findings(pd.DataFrame(close))[-1]
    same = [table_row("F", "facts", "mlp", 3), table_row("F", "facts", "head", 3)]
    assert "in number they cost the same;" in sites_findings(pd.DataFrame(same))[-1]
    one = [table_row("F", "facts", "mlp", math.nan), table_row("F", "facts", "head", 4)]
    assert sites_findings(pd.DataFrame(one))[-1] == (
        "F: taking heads away flips half of the answers; neurons do not on their curve."
    )
    one[0] |= {"half: units low": 5.0}
    assert sites_findings(pd.DataFrame(one))[-1].endswith("on their curve (their intervals overlap).")
    few = [row | {f"half: {name} {end}": math.nan for name in CURRENCIES for end in ("low", "high")} for row in close]
    said = sites_findings(pd.DataFrame(few))
    assert "in number neurons cost less (no intervals: too few groups)" in said[-1]
    assert "at 3 neurons (a single group: no interval)" in said[2]
    assert not any("overlap" in sentence for sentence in said)
    none = [table_row("F", "facts", "mlp", math.nan), table_row("F", "facts", "head", math.nan)]
    assert sites_findings(pd.DataFrame(none))[-1] == (
        "F: neither the top neurons nor the top heads flip half of the answers."
    )
    assert "half of the answers flip anywhere" in sites_findings(pd.DataFrame(none))[2]
    assert "(at most 39%); with random" in sites_findings(pd.DataFrame(none))[2]
    for p, words in ((0.05, "not beyond chance (p = 0.05;"), (0.0476, "is beyond chance (p = 0.048;")):
        chance = [table_row("F", "facts", "head", 4, **{"accuracy p": p})]
        assert f"the drop {words}" in sites_findings(pd.DataFrame(chance))[0].replace("is not", "not")
    few = [table_row("F", "facts", "head", 4, **{"accuracy p": math.nan, "distinct draws": 6})]
    assert sites_findings(pd.DataFrame(few))[0].endswith(
        "whether the drop is beyond chance, too few draws tell (100 draws, 6 of them distinct)."
    )
    still = [table_row("F", "facts", "head", 4, **{"accuracy after": 1.0})]
    assert sites_findings(pd.DataFrame(still))[0].endswith("no drop (100 draws, 90 of them distinct).")
    nothing = [table_row("F", "facts", "head", math.nan, **{"|KN|": 0.0})]
    assert sites_findings(pd.DataFrame(nothing))[0] == (
        "F: the search finds no heads, so there are none to take away (accuracy on 8 held-out prompts: 100.0%)."
    )
    mean = [table_row("F", "facts", "head", 17 / 3)]
    assert "flip at 5.7 heads [4.7, 6.7 over groups] taken on average" in sites_findings(pd.DataFrame(mean))[1]


def test_facts_and_pairs_are_compared_site_by_site() -> None:
    rows = [table_row("F", "facts", "head", 9), table_row("A", "pairs", "head", 2, **{"R₁²": 0.75})]
    last = sites_findings(pd.DataFrame(rows))[-1]
    assert last == (
        "Heads: half of the answers flip, to F at 9 [8, 10 over groups], to A at 2 [1, 3 over groups]: A hangs on "
        "fewer heads. Attributions point the same way no more in F than in A (R₁² 0.50 against 0.75). At the largest "
        "k, 25% of the answers to F flip, to another of many words, and 25% of those to A, to the other of two."
    )
    rows[1]["R₁²"] = math.nan
    said = sites_findings(pd.DataFrame(rows))
    assert "Which attributions point the same way more is not known: there is no R₁² for A." in said[-1]
    assert all("nan" not in sentence for sentence in said)
    rows[1] = table_row("A", "pairs", "head", math.nan)
    assert "to A never: F hangs on fewer heads" in sites_findings(pd.DataFrame(rows))[-1]


def test_mean_ablation_at_the_cue_of_one_data_set(organism: Any) -> None:
    data = kn.load_minimal_pairs("subject_verb_agreement")
    made = compare_sites(
        organism("tiny-masked"),
        data,
        ("head",),
        groups=2,
        per_group=4,
        controls=3,
        positions="cue_last",
        ablation="mean",
        progress=False,
    )
    (entry,) = made.entries
    for settings in (entry.effect.settings, entry.curve.settings):
        assert (settings["ablation"], settings["positions"]) == ("mean", "cue_last")
    assert set(made.figures()) == {"curves", "table", "accuracy", "layers", "heads"}


def test_a_comparison_is_read_back(result: SiteComparison, tmp_path: Path) -> None:
    again = SiteComparison.load(result.save(tmp_path / "saved"))
    pd.testing.assert_frame_equal(again.to_frame(), result.to_frame())
    pd.testing.assert_frame_equal(again.curves_frame(), result.curves_frame())
    pd.testing.assert_frame_equal(again.units_frame(), result.units_frame())
    assert again.manifest() == result.manifest()
    assert [entry.found.found for entry in again.entries] == [entry.found.found for entry in result.entries]
    for entry, other in zip(again.entries, result.entries, strict=True):
        pd.testing.assert_frame_equal(entry.found.groups_frame(), other.found.groups_frame())
        assert entry.effect.distinct_draws == other.effect.distinct_draws
    with pytest.raises(OutputError, match="holds no readable comparison of sites"):
        SiteComparison.load(tmp_path)


def test_a_site_without_units_is_kept(result: SiteComparison, organism: Any) -> None:
    """A search that found nothing: |KN| is 0 and nothing is taken away."""
    found = result.entries[1].found
    empty = {name: replace(units, units=(), frequency=()) for name, units in found.found.items()}
    entry = take_away(organism("tiny-causal"), replace(found, found=empty), 2, 1, "target", "mean", False)
    made = replace(result, entries=(entry,))
    row = made.to_frame().iloc[0]
    assert row["|KN|"] == 0
    assert row["accuracy after"] == row["accuracy before"] > 0
    assert row["flipped"] == 0
    assert row["draws"] == 0
    assert made.entries[0].effect.settings["ablation"] == "mean"
    assert "the search finds no heads" in made.findings()[0]
    assert len(made.units_frame()) == 0
    assert set(made.figures()) == {"curves", "table", "accuracy", "layers", "heads"}


def test_parts_that_are_done_are_not_made_again(result: SiteComparison, organism: Any, tmp_path: Path) -> None:
    model, draw = organism("tiny-causal"), {**DRAW, "seed": 1, "progress": False}
    first = compare_sites(model, "P36", ("head",), pieces=Pieces(tmp_path), **draw)
    pd.testing.assert_frame_equal(first.to_frame(), result.to_frame().iloc[[1]].reset_index(drop=True))
    names = sorted(path.name.rpartition("-")[0] for path in tmp_path.iterdir())
    assert names == ["curve-P36-head", "effect-P36-head", "localization-P36-head"]
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = compare_sites(model, "P36", ("head",), pieces=Pieces(tmp_path), **draw)
    pd.testing.assert_frame_equal(again.to_frame(), first.to_frame())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == written
    compare_sites(model, "P36", ("head",), pieces=Pieces(tmp_path), **{**draw, "controls": 3})
    assert len([*tmp_path.iterdir()]) == 5  # found once, taken away with as many draws as were asked for


def test_the_headline_tells_the_price_of_each_kind() -> None:
    rows = [
        table_row("F", "facts", "mlp", 20),
        table_row("F", "facts", "head", 1),
        table_row("A", "pairs", "mlp", 6, **{"half: norm": 0.05}),
        table_row("A", "pairs", "head", 2, **{"half: norm low": 0.55, "half: norm high": 0.65}),
    ]
    assert headline(pd.DataFrame(rows)) == (
        "Half of the answers flip: of facts (F) without 20 neurons (20% of all) or 1 head (1% of all); of agreement "
        "(A) without 6 neurons (6% of all) or 2 heads (2% of all). By output taken away, over the size of the residual "
        "stream, facts (F) hang more on heads (0.10 against 2.00), agreement (A) hang more on neurons (0.05 against "
        "0.20; their intervals overlap)."
    )
    rows = [table_row("F", "facts", "mlp", 20), table_row("F", "facts", "head", math.nan)]
    assert headline(pd.DataFrame(rows)) == (
        "Half of the answers flip: of facts (F) without 20 neurons (20% of all), but not without heads, as far as the "
        "curve goes."
    )
    rows = [table_row("A", "pairs", site, math.nan) for site in ("mlp", "head")]
    assert headline(pd.DataFrame(rows)) == (
        "Half of the answers flip: of agreement (A) not without neurons or heads, as far as the curve goes."
    )


def test_errors_name_the_data_set_and_the_site(organism: Any) -> None:
    model = organism("tiny-causal")
    with pytest.raises(SettingsError, match="in a single group have the same answer: draw 2 groups or more"):
        compare_sites(model, "P36", groups=1, ablation="resample")
    facts = kn.load_relation("P36")
    alone = replace(facts, facts=dict(list(facts.facts.items())[:1]), pairs={})
    with pytest.raises(SettingsError, match=r"^P36, site head: ablation='mean' sets units to values from other prompt"):
        compare_sites(model, alone, ("head",), groups=None, per_group=4, ablation="mean", progress=False)
    wrong = {fact: tuple(replace(prompt, target="keys") for prompt in prompts) for fact, prompts in facts.facts.items()}
    wrong = replace(facts, facts=dict(list(wrong.items())[:3]), pairs={})
    with pytest.raises(PromptError, match=r"^P36, site head: tiny-causal answers none of the"):
        compare_sites(model, wrong, ("head",), groups=None, per_group=4, progress=False)


def test_refusals(organism: Any) -> None:
    model = organism("tiny-causal")
    for options, words in (
        ({"sites": ("heads",)}, r"no site 'heads'\. Did you mean 'head'"),
        ({"sites": ("mlp_pre",)}, "take site 'mlp' or 'head'"),
        ({"sites": ()}, "no site was named"),
        ({"sites": ("mlp", "mlp")}, "the site 'mlp' is named twice"),
        ({"data": []}, "no data set was named"),
        ({"data": ["P36", "P36"]}, "the data set 'P36' is named twice"),
        ({"per_group": 1}, "1 prompt of each group cannot be both searched and tested"),
        ({"groups": 0}, "groups is 0"),
        ({"controls": 0}, "controls is 0"),
        ({"positions": "cues"}, r"no positions 'cues'\. Did you mean 'cue'"),
        ({"ablation": "noise"}, "no ablation 'noise'"),
    ):
        with pytest.raises(SettingsError, match=words):
            compare_sites(model, **options)
    with pytest.raises(DataError, match="no data named 'P366'"):
        compare_sites(model, "P366")
