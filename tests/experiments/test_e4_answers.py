"""E4: the units of a group are switched off in its held-out prompts, and shares are of groups, not of prompts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.errors import OutputError, PromptError, SettingsError
from kn_lens.experiments import e4_answers as e4
from kn_lens.experiments.answers import SwitchedOff, answer_row
from kn_lens.experiments.e4_answers import AnswersSettings
from kn_lens.localization.localize import LocalizeSettings, localize
from kn_lens.prompts.load import load_prompts
from kn_lens.scoring import answers
from kn_lens.statistics import bootstrap_mean, wilson_interval
from kn_lens.studies.pieces import Pieces
from kn_lens.suppression.effect import UnitEffect

SETTINGS = AnswersSettings(localize=LocalizeSettings(groups=4, prompts=4, steps=4), controls=20)
NAMES = ("P101", "subject_verb_agreement")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("pieces")


@pytest.fixture(scope="module")
def result(organism: Any, folder: Any) -> SwitchedOff:
    sets = [load_prompts(name) for name in NAMES]
    return e4.run(organism("tiny-causal"), sets, SETTINGS, pieces=Pieces(folder), progress=False)


def effect(flips: list[bool], *, pairs: bool, change: float = -0.5, draws: int = 20, per_group: int = 2) -> UnitEffect:
    """Right answers, some of which flip; log p falls by ``change``, with random units not at all."""
    n = len(flips)
    before, after = torch.full((n,), 0.6), torch.full((n,), 0.6 * float(np.exp(change)))
    target = torch.stack([before, after, *[before] * draws], 1)
    flipped = torch.tensor(flips)
    foil = torch.full_like(target, float("nan"))
    if pairs:
        foil = torch.full_like(target, 0.0)
        foil[flipped, 1] = 1.0
    top = torch.full((n, 2 + draws), 7)
    top[flipped, 1] = 3
    return UnitEffect(
        target=target,
        foil=foil,
        rival=torch.full_like(target, float("nan")),
        top=top,
        target_ids=torch.full((n,), 7),
        probe_probabilities=torch.zeros(n, 2, 0),
        probes=(),
        units=(((1, 2), (0, 1)),) * n,
        site="mlp",
        factor=0.0,
        prompts=tuple(kn.Prompt(f"Prompt {i} is", target="Paris", group=f"g{i // per_group}") for i in range(n)),
        drawn=torch.arange(draws).repeat(n, 1),
        settings={},
        provenance={},
    )


def made(facts: UnitEffect, pairs: UnitEffect) -> SwitchedOff:
    return SwitchedOff(
        effects={"P36": facts, "agreement": pairs},
        kinds={"P36": "facts", "agreement": "pairs"},
        without_units={"P36": 0, "agreement": 1},
        left_out={},
        settings={"site": "mlp", "controls": 20},
        provenance={"model": "m"},
    )


def test_each_groups_units_are_switched_off_in_its_held_out_prompts(result: SwitchedOff, organism: Any) -> None:
    found = localize(organism("tiny-causal"), kn.load_relation("P101"), SETTINGS.localize, progress=False)
    own = result.effects["P101"]
    held_out = [found.scores.prompts[at] for at in found.test if len(found.found[found.scores.prompts[at].group])]
    assert list(own.prompts) == held_out
    assert [list(units) for units in own.units] == [list(found.found[p.group].units) for p in held_out]
    assert own.factor == 0
    before = answers(organism("tiny-causal"), held_out)
    assert own.target[:, 0].tolist() == pytest.approx(before.target.tolist(), abs=1e-5)
    assert result.without_units["P101"] == sum(not len(units) for units in found.found.values())


def test_the_table_is_that_of_the_effects(result: SwitchedOff) -> None:
    table, prompts = e4.tables(result)["answers"].set_index("data"), e4.tables(result)["prompts"]
    for name, own in result.effects.items():
        row, summary = table.loc[name], own.summary()
        for column, key in (
            ("accuracy before", "accuracy_before"),
            ("accuracy after", "accuracy_after"),
            ("accuracy random", "control_accuracy"),
            ("accuracy percentile", "percentile_accuracy"),
            ("accuracy p", "p_accuracy"),
            ("flipped", "flipped"),
            ("flipped random", "control_flipped"),
            ("flipped p", "p_flipped"),
            ("change of log p", "log_probability_change"),
            ("change of log p random", "control_log_probability_change"),
            ("change of log p percentile", "percentile_log_probability_change"),
            ("distinct draws", "distinct_draws"),
        ):
            assert row[column] == pytest.approx(summary[key], abs=1e-5, nan_ok=True), (name, column)
        mine = prompts[prompts["data"] == name]
        change = np.log(mine["target_after"] / mine["target_before"])
        assert row["change of log p"] == pytest.approx(change.mean(), abs=1e-4)
        _, low, high = bootstrap_mean(change.to_numpy()[:, None], clusters=mine["group"].tolist())
        assert (row["change of log p low"], row["change of log p high"]) == pytest.approx((low[0], high[0]), abs=1e-4)
    pooled = e4.tables(result)["kinds"].set_index("kind")
    assert pooled.loc["facts", "prompts"] == len(result.effects["P101"])


def test_effects_are_pooled_prompt_by_prompt() -> None:
    """30 prompts of which 6 flip and 10 of which 4 do; groups of one name in two sets are two groups."""
    one, two = (
        effect([True] * 6 + [False] * 24, pairs=False),
        effect([True] * 4 + [False] * 6, pairs=False, change=-1.5),
    )
    row = answer_row({"one": one, "two": two})
    assert (row["prompts"], row["groups"], row["flipped"]) == (40, 20, 0.25)
    assert row["change of log p"] == pytest.approx((30 * -0.5 + 10 * -1.5) / 40, abs=1e-5)
    assert row["change of log p beyond random"] == pytest.approx(row["change of log p"])
    assert row["flipped low"] < wilson_interval(10, 40)[0]  # the two prompts of a group flip together
    assert row["right flipped"] == 0.25
    assert row["flipped p"] == pytest.approx(1 / 21)
    assert row["accuracy p"] == pytest.approx(1 / 21)


@pytest.mark.parametrize(
    ("share", "holds"),
    [(0, True), (2, True), (40, False), (10, None)],
)
@pytest.mark.parametrize("pairs", [True, False])
def test_answers_seldom_change_or_not(share: int, holds: bool | None, pairs: bool) -> None:
    own = effect([True] * share + [False] * (60 - share), pairs=pairs)
    other = effect([False] * 60, pairs=not pairs)
    agreement, facts, _ = e4.verdicts(made(*((other, own) if pairs else (own, other))))
    mine, rest = (agreement, facts) if pairs else (facts, agreement)
    assert mine.holds is holds
    assert rest.holds is True
    assert f"{share / 60:.1%}" in mine.measured


@pytest.mark.parametrize(("facts", "pairs", "holds"), [(-0.5, -0.1, True), (-0.5, 0.2, False), (0.1, -0.5, False)])
def test_probabilities_fall_or_not(facts: float, pairs: float, holds: bool) -> None:
    still = [False] * 20
    result = made(effect(still, pairs=False, change=facts), effect(still, pairs=True, change=pairs))
    verdict = e4.verdicts(result)[2]
    assert verdict.holds is holds
    assert f"{facts:+.2f}".replace("-", "−") in verdict.measured


def test_probabilities_of_one_group_tell_nothing() -> None:
    one = effect([False] * 4, pairs=False, per_group=4)
    result = made(one, effect([False] * 20, pairs=True))
    assert e4.verdicts(result)[1].holds is None
    assert e4.verdicts(result)[2].holds is None


def test_findings_say_how_it_came_out() -> None:
    said = e4.findings(made(effect([True] * 30 + [False] * 30, pairs=False), effect([False] * 60, pairs=True)))
    assert "accuracy goes from 100.0% [94%, 100%] to 50.0%" in said[0]
    assert "the drop is beyond chance" in said[0]
    assert "lower than chance" in said[0]
    assert "no drop" in said[1]
    assert "For 1 more group no units were found." in said[1]
    assert said[2].startswith("All facts: 50.0% ")
    few = e4.findings(made(effect([True] * 4, pairs=False, draws=5), effect([False] * 4, pairs=True, draws=5)))
    assert "too few distinct draws" in few[0]


def test_saved_and_read_back_it_says_the_same(result: SwitchedOff, tmp_path: Any) -> None:
    back = e4.Result.load(result.save(tmp_path / "r"))
    assert e4.findings(back) == e4.findings(result)
    assert e4.verdicts(back) == e4.verdicts(result)
    assert e4.dropped(back) == e4.dropped(result)
    assert (back.settings, back.provenance) == (result.settings, result.provenance)
    for name, table in e4.tables(result).items():
        assert e4.tables(back)[name].equals(table), name
    for name, figure in e4.figures(result).items():
        assert e4.figures(back)[name].to_json() == figure.to_json(), name
    (tmp_path / "r" / "1" / "result.json").unlink()
    with pytest.raises(OutputError, match="/r"):
        e4.Result.load(tmp_path / "r")


def test_figures_show_the_table(result: SwitchedOff) -> None:
    row = e4.tables(result)["answers"].iloc[0]
    figure = e4.figures(result)["flips"].to_dict()
    facts = [trace for trace in figure["data"] if trace["name"] == "facts"]
    assert facts[0]["x"][0] == row["flipped"]
    assert facts[1]["x"][0] == row["change of log p"]
    assert facts[1]["x"][0] - facts[1]["error_x"]["arrayminus"][0] == pytest.approx(row["change of log p low"])
    accuracy = e4.figures(result)["accuracy"].to_dict()["data"]
    after = next(trace for trace in accuracy if trace.get("name") == "facts, after")
    assert after["x"][0] == row["accuracy after"]


def test_a_second_run_computes_nothing(result: SwitchedOff, organism: Any, folder: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    sets = [load_prompts(name) for name in NAMES]
    again = e4.run(organism("tiny-causal"), sets, SETTINGS, pieces=Pieces(folder), progress=False)
    assert e4.findings(again) == e4.findings(result)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_damaged_piece_is_made_again(result: SwitchedOff, organism: Any, folder: Any, caplog: Any) -> None:
    damaged = next(folder.glob("answers-P101-*")) / "result.json"
    kept = damaged.read_text()
    damaged.write_text("{")
    sets = [load_prompts(name) for name in NAMES]
    again = e4.run(organism("tiny-causal"), sets, SETTINGS, pieces=Pieces(folder), progress=False)
    assert "made again" in caplog.text
    assert damaged.read_text() == kept
    assert e4.findings(again) == e4.findings(result)


def test_groups_without_units_take_no_part(organism: Any) -> None:
    """With a high threshold few units are coarse, and the search for a single one ends with none in some groups."""
    model, relation = organism("tiny-masked"), kn.load_relation("P36")
    settings = replace(SETTINGS, localize=replace(SETTINGS.localize, threshold=0.8, count=(1, 1)))
    found = localize(model, relation, settings.localize, progress=False)
    with_units = {name for name, units in found.found.items() if len(units)}
    assert 0 < len(with_units) < len(found.found)
    result = e4.run(model, [relation], settings, progress=False)
    assert {prompt.group for prompt in result.effects["P36"].prompts} == with_units
    assert result.without_units["P36"] == len(found.found) - len(with_units)
    assert e4.verdicts(result)[0].claim.endswith("facts seldom changes the answer")
    first = replace(settings, localize=replace(settings.localize, groups=1))
    with pytest.raises(PromptError, match="P36: no units were found for any of its groups"):
        e4.run(model, [relation], first, progress=False)


def test_no_draws_are_refused(organism: Any) -> None:
    with pytest.raises(SettingsError, match="at least 1"):
        e4.run(organism("tiny-causal"), [kn.load_relation("P36")], AnswersSettings(controls=0), progress=False)
