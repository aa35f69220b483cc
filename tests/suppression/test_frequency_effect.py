"""An edit's effect against frequency: planted relations, planted nothing, unseen pairs, and scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import kn_lens as kn
from kn_lens.frequency import PairCounts
from kn_lens.statistics import detectable_rho, mean_difference, rank_correlation
from kn_lens.suppression.effect import UnitEffect
from kn_lens.suppression.frequency_effect import FrequencyEffect, frequency_effect

DETERMINERS = ("this", "these")


def effect_of(
    pairs: Sequence[tuple[str, str]], changes: Sequence[float], *, factor: float = 0.0, controls: int = 0
) -> UnitEffect:
    """One prompt a pair, whose log p(target) changes by so much; control draws change each by a number of their own."""
    prompts = tuple(kn.Prompt(f"Anna saw {first}", target=second, cue=first, source="x:1") for first, second in pairs)
    before = torch.full((len(pairs), 1), 0.25, dtype=torch.float64)
    noise = torch.randn(len(pairs), controls, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1
    after = before * torch.cat([torch.tensor(changes, dtype=torch.float64)[:, None], noise], 1).exp()
    target = torch.cat([before, after], 1)
    return UnitEffect(
        target=target,
        foil=torch.full_like(target, float("nan")),
        rival=torch.full_like(target, float("nan")),
        top=torch.zeros(target.shape, dtype=torch.long),
        target_ids=torch.zeros(len(pairs), dtype=torch.long),
        probe_probabilities=torch.zeros(len(pairs), 2, 0),
        probes=(),
        units=(((0, 1),),) * len(pairs),
        site="mlp",
        factor=factor,
        prompts=prompts,
        settings={"factor": factor},
        provenance={"model": "none"},
    )


def counts_of(counts: dict[tuple[str, str], int], closed: bool = True) -> PairCounts:
    return PairCounts(counts=counts, source="a corpus", window=1, sha256="0", tokens=100, closed=closed)


def pairs_of(n: int) -> list[tuple[str, str]]:
    return [(DETERMINERS[index % 2], f"noun{index}") for index in range(n)]


def planted(
    n: int, slope: float, noise: float, seed: int = 0, level: float = 0.0, controls: int = 0
) -> FrequencyEffect:
    """Changes that go with log count, by determiner at a level of its own."""
    generator = np.random.default_rng(seed)
    pairs = pairs_of(n)
    counts = {pair: int(10 ** generator.uniform(0, 5)) for pair in pairs}
    changes = [
        slope * math.log(counts[pair]) + noise * generator.normal() + level * (pair[0] == "these") for pair in pairs
    ]
    return frequency_effect(effect_of(pairs, changes, controls=controls), counts_of(counts))


def test_worked_by_hand():
    """Two prompts of one pair are averaged; a pair that is absent is unseen; halves are split at the median count."""
    pairs = [
        ("these", "books"),
        ("this", "key"),
        ("These", "Books"),
        ("this", "cup"),
        ("these", "pens"),
        ("this", "jar"),
    ]
    changes = [-0.1, -0.4, -0.3, -0.6, -0.8, -0.5]
    counts = {("these", "books"): 100, ("this", "key"): 20, ("this", "cup"): 5, ("these", "pens"): 1}
    result = frequency_effect(effect_of(pairs, changes), counts_of(counts))
    frame = result.to_frame()
    assert frame["first"].tolist() == ["these", "this", "this", "these", "this"]
    assert frame["second"].tolist() == ["books", "key", "cup", "pens", "jar"]
    assert frame["count"].tolist() == [100, 20, 5, 1, 0]
    assert frame["half"].tolist() == ["frequent", "frequent", "rare", "rare", "unseen"]
    assert frame["prompts"].tolist() == [2, 1, 1, 1, 1]
    assert frame["log_probability_change"].tolist() == pytest.approx([-0.2, -0.4, -0.6, -0.8, -0.5])
    row = result.summary()
    assert (row["pairs"], row["prompts"], row["seen"], row["unseen"], row["unknown"]) == (5, 6, 4, 1, 0)
    assert row["rho"] == pytest.approx(1)
    assert row["rho_with_unseen"] == pytest.approx(0.7)  # ranks 5 4 3 2 1 and 5 4 2 1 3: 1 − 6 · 6 / 120
    assert row["change_rare"] == pytest.approx(-0.7)
    assert row["change_frequent"] == pytest.approx(-0.3)
    assert row["change_unseen"] == pytest.approx(-0.5)
    assert row["difference"] == pytest.approx(-0.4)
    error = math.sqrt(0.02 / 2 + 0.02 / 2)
    assert row["difference_error"] == pytest.approx(error)
    assert row["difference_detectable"] == pytest.approx((1.959964 + 0.841621) * error, rel=1e-5)
    assert row["rare_to_count"] == 5


def test_the_cue_may_stand_behind_the_blank():
    pairs = pairs_of(6)
    effect = effect_of(pairs, [0.1 * index for index in range(6)])
    behind = tuple(
        kn.Prompt("Anna saw", suffix=f"{prompt.target} near it.", target=str(prompt.cue), cue=prompt.target)
        for prompt in effect.prompts
    )
    turned = UnitEffect(**{**vars(effect), "prompts": behind})
    counts = counts_of({pair: 2**index for index, pair in enumerate(pairs)})
    assert frequency_effect(turned, counts).to_frame().equals(frequency_effect(effect, counts).to_frame())


def test_rho_is_scipys_and_found_where_it_was_planted():
    result = planted(n=40, slope=-0.1, noise=0.4)
    frame = result.to_frame()
    expected = stats.spearmanr(frame["count"].astype(float), frame["log_probability_change"])
    assert result.overall.rho == pytest.approx(np.asarray(expected)[0])
    assert result.overall.low < result.overall.rho < result.overall.high < 0
    assert result.overall.p < 0.01
    assert result.rare_less_frequent.low > 0
    said = result.sentence()
    assert "The more frequent the pair, the lower log p(target)" in said
    assert f"ρ = −{abs(result.overall.rho):.2f} [" in said
    assert "beyond chance" in said
    assert "over 40 of 40 pairs (40 prompts) with counts from a corpus" in said
    assert "The more frequent the pair, the higher" in planted(n=40, slope=0.1, noise=0.3).sentence()


def test_nothing_is_found_where_nothing_was_planted():
    result = planted(n=60, slope=0, noise=0.4, seed=2)
    assert result.overall.low < 0 < result.overall.high
    assert result.overall.p > 0.05
    said = result.sentence()
    assert "No relation between frequency and the change of log p(target) is shown" in said
    assert f"and above {result.overall.high:.2f}".replace("-", "−") in said
    assert f"|ρ| of {detectable_rho(60):.2f} would be found with 80 % power" in said
    assert "not told apart from 0" in said


def test_a_level_of_each_determiner_is_not_taken_for_frequency():
    """These-pairs change more and are rarer: overall a relation, within each determiner none."""
    generator = np.random.default_rng(0)
    pairs = pairs_of(80)
    counts = {pair: int(10 ** (generator.uniform(0, 2) + 2 * (pair[0] == "this"))) for pair in pairs}
    changes = [-(pair[0] == "these") + 0.1 * generator.normal() for pair in pairs]
    result = frequency_effect(effect_of(pairs, changes), counts_of(counts))
    assert result.overall.low > 0.5
    assert result.within.low < 0 < result.within.high
    assert "Within each word (this, these)" in result.sentence()
    assert "does not exclude 0" in result.sentence()
    assert planted(n=80, slope=0.1, noise=0.1, level=-5).within.low > 0.5


def test_pairs_that_a_table_lacks_are_not_taken_for_zero():
    pairs = pairs_of(10)
    changes = [0.1 * index for index in range(10)]
    known = {pair: 2**index for index, pair in enumerate(pairs) if index > 2}
    table = frequency_effect(effect_of(pairs, changes), counts_of({**known, pairs[0]: 0}, closed=False))
    row = table.summary()
    assert (row["seen"], row["unseen"], row["unknown"]) == (7, 3, 2)
    assert table.to_frame()["count"].isna().tolist() == [False, True, True] + [False] * 7
    assert (table.overall.n, table.with_unseen.n) == (7, 10)
    assert "3 pairs are not seen (2 of them are not in the table)" in table.sentence()
    assert "are not in the table, which need not mean" in (
        frequency_effect(effect_of(pairs, changes), counts_of(known, closed=False)).sentence()
    )
    assert "3 pairs do not occur; they change by +0.1 nats" in (
        frequency_effect(effect_of(pairs, changes), counts_of(known)).sentence()
    )


def test_the_random_units_are_compared():
    result = planted(n=40, slope=-0.1, noise=0.1, controls=9)
    row = result.summary()
    counts = result.counts.numpy()
    expected = [stats.spearmanr(counts, result.changes[:, column])[0] for column in range(1, 10)]
    assert row["control_rho"] == pytest.approx(np.mean(expected))
    assert row["percentile_rho"] == 0
    assert "0 % of their draws lie below" in result.sentence()
    assert "control_rho" not in planted(n=40, slope=-0.1, noise=0.1).summary()


def test_where_more_than_half_have_the_highest_count():
    counts = dict(zip(pairs_of(6), [1, 2, 9, 9, 9, 9], strict=True))
    result = frequency_effect(effect_of(pairs_of(6), [0.5, 0.4, 0, 0, 0, 0.1]), counts_of(counts))
    assert result.halves.tolist() == ["rare"] * 2 + ["frequent"] * 4
    lone = dict(zip(pairs_of(4), [1, 9, 9, 9], strict=True))
    result = frequency_effect(effect_of(pairs_of(4), [0.5, 0.4, 0, 0.1]), counts_of(lone))
    assert math.isnan(result.rare_less_frequent.low)
    assert "a half of one pair allows no interval" in result.sentence()


def test_an_edit_that_changes_all_pairs_alike():
    result = frequency_effect(
        effect_of(pairs_of(5), [0.0] * 5, factor=1.0), counts_of({pair: 2**k for k, pair in enumerate(pairs_of(5))})
    )
    assert math.isnan(result.overall.rho)
    assert result.sentence().startswith("When units are scaled by 1, log p(target) changes alike for all pairs")
    assert "nan" not in result.sentence().lower()


def test_what_cannot_be_compared_is_said():
    pairs = pairs_of(6)
    effect = effect_of(pairs, [0.1] * 6)
    three = {pair: 2 + index for index, pair in enumerate(pairs[:3])}
    with pytest.raises(
        kn.DataError, match="a corpus holds 3 of the 6 pairs of cue and target, not 'these noun3'; 4 are"
    ):
        frequency_effect(effect, counts_of(three))
    with pytest.raises(kn.DataError, match="all 6 pairs that a corpus holds have the same count, 7"):
        frequency_effect(effect, counts_of(dict.fromkeys(pairs, 7)))
    bare = UnitEffect(**{**vars(effect), "prompts": (kn.Prompt("Anna saw", target="it", source="d:4"),) * 6})
    with pytest.raises(kn.PromptError, match="d:4: 'Anna saw' has no cue"):
        frequency_effect(bare, counts_of(three))
    with pytest.raises(kn.DataError, match="holds 0 of the 0 pairs"):
        frequency_effect(effect.where(lambda prompt: False), counts_of(three))
    counts = counts_of({pair: 2**k for k, pair in enumerate(pairs)})
    with pytest.raises(kn.SettingsError, match="draws is 0"):
        frequency_effect(effect, counts, draws=0)
    with pytest.raises(kn.SettingsError, match="confidence is 95"):
        frequency_effect(effect, counts, confidence=95)


def test_a_filter_chooses_prompts():
    result = planted(n=40, slope=0.1, noise=0.1)
    pairs = list(zip(result.first, result.second, strict=True))
    counts = counts_of(dict(zip(pairs, result.counts.tolist(), strict=True)))
    effect = effect_of(pairs, result.change.tolist()).where(lambda prompt: prompt.cue == "these")
    part = frequency_effect(effect, counts)
    rows = np.array(result.first) == "these"
    assert part.change.tolist() == pytest.approx(result.change[rows].tolist())
    assert set(part.first) == {"these"}


def test_saved_and_loaded(tmp_path):
    result = planted(n=12, slope=0.1, noise=0.1, controls=3)
    back = FrequencyEffect.load(result.save(tmp_path / "r"))
    assert back.to_frame().equals(result.to_frame())
    assert back.summary() == pytest.approx(result.summary(), abs=0, nan_ok=True)  # no pair is unseen
    assert back.sentence() == result.sentence()
    assert back.settings == result.settings
    assert back.settings["counts"] == {"window": 1, "sha256": "0", "tokens": 100, "closed": True}


# -- the statistics ----------------------------------------------------------------------------------


def test_rank_correlation_with_ties_is_scipys():
    generator = np.random.default_rng(0)
    x = generator.integers(0, 6, 30).astype(float)
    y = np.round(0.4 * x + generator.normal(size=30))
    found = rank_correlation(x, y)
    rho, p = np.asarray(stats.spearmanr(x, y))
    assert found.rho == pytest.approx(rho)
    assert 0.001 < found.p == pytest.approx(p, abs=0.01)
    assert rank_correlation(x, y) == found  # the same seed
    assert rank_correlation(x, np.exp(y)).rho == pytest.approx(found.rho)  # ranks only


def test_the_interval_covers_what_it_says():
    """95 % intervals hold ρ = 0 in about 95 % of 200 samples without relation."""
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        found = rank_correlation(generator.normal(size=30), generator.normal(size=30), seed=seed, draws=300)
        covered += found.low <= 0 <= found.high
    assert 0.9 <= covered / 200 <= 0.99


def test_one_stratum_is_none_and_more_take_their_levels_out():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 24))
    assert rank_correlation(x, y, strata=np.zeros(24, int)) == rank_correlation(x, y)
    groups = np.repeat([0, 1], 12)
    rising = np.r_[np.arange(12.0), np.arange(12.0) + 100]
    found = rank_correlation(rising, np.r_[-np.arange(12.0), 100 - np.arange(12.0)], strata=groups)
    assert found.rho == pytest.approx(-1)
    assert (found.low, found.high) == pytest.approx((-1, -1))
    mean = np.mean([stats.spearmanr(x[groups == group], y[groups == group])[0] for group in (0, 1)])
    assert rank_correlation(x, y, strata=groups).rho == pytest.approx(mean)  # equal sizes without ties


def test_detectable_rho_has_its_power():
    """The test rejects in about 80 % of samples with that correlation (normal, and Spearman's of it)."""
    n = 50
    rho = detectable_rho(n)
    assert rho == pytest.approx(math.tanh((1.959964 + 0.841621) * math.sqrt(1.06 / 47)), rel=1e-5)
    generator = np.random.default_rng(0)
    pearson = 2 * math.sin(math.pi * rho / 6)  # of normal variables with this Spearman's ρ
    x = generator.normal(size=(1500, n))
    y = pearson * x + math.sqrt(1 - pearson**2) * generator.normal(size=(1500, n))
    found = [stats.spearmanr(one, other)[1] < 0.05 for one, other in zip(x, y, strict=True)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)
    assert detectable_rho(3) == 1


def test_mean_difference_is_welchs():
    generator = np.random.default_rng(0)
    first, second = generator.normal(1, 1, 40), generator.normal(0, 2, 30)
    found = mean_difference(first, second)
    welch = stats.ttest_ind(first, second, equal_var=False)
    assert found.difference / found.error == pytest.approx(np.asarray(welch)[0])
    interval = welch.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.12)
    assert found.detectable == pytest.approx(2.801585 * found.error, rel=1e-5)
    assert math.isnan(mean_difference(first[:1], second).low)


@pytest.mark.parametrize("against", ["foil", "rival"])
def test_the_preference_is_measured_against_the_rival_word(against):
    """log p(target) falls by the same for all; log p of the rival rises with the count."""
    pairs = pairs_of(8)
    counts = counts_of({pair: 10 ** (index + 1) for index, pair in enumerate(pairs)})
    effect = effect_of(pairs, [-0.5] * 8)
    rises = torch.arange(8, dtype=torch.float64) / 10
    rival = torch.stack([torch.full((8,), 0.1, dtype=torch.float64), 0.1 * rises.exp()], 1)
    effect = replace(effect, **{against: rival})
    result = frequency_effect(effect, counts, measure="preference")
    assert result.change.tolist() == pytest.approx((-0.5 - rises).tolist())
    assert result.summary()["rho"] == pytest.approx(-1)
    assert "log p(target) − log p(rival)" in result.sentence()
    assert result.to_frame()["preference_change"].tolist() == pytest.approx(result.change.tolist())
    title = kn.plots.frequency_scatter(result).to_dict()["layout"]["yaxis"]["title"]["text"]
    assert title == "change of log p(target) − log p(rival), nats"
    plain = frequency_effect(effect, counts)
    assert plain.change.tolist() == pytest.approx([-0.5] * 8)


def test_a_preference_needs_a_rival_and_a_measure_a_name():
    pairs = pairs_of(6)
    counts = counts_of({pair: index + 1 for index, pair in enumerate(pairs)})
    effect = effect_of(pairs, [0.1] * 6)
    with pytest.raises(kn.SettingsError, match="neither foil nor rival prefix"):
        frequency_effect(effect, counts, measure="preference")
    with pytest.raises(kn.SettingsError, match="Did you mean 'preference'"):
        frequency_effect(effect, counts, measure="preferense")  # type: ignore[arg-type]
