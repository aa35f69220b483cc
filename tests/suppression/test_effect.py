"""The tables of an effect, from numbers worked by hand. User need 23: paired, corrected and controlled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import kn_lens as kn
from kn_lens.suppression.effect import OWN_FOIL, OWN_TARGET, layer_counts

NAN = float("nan")


def effect_of(target, foil=None, rival=None, top=None, target_ids=None, probes=None, groups=None):
    target = torch.tensor(target)
    n = len(target)
    nothing = torch.full_like(target, NAN)
    return kn.UnitEffect(
        target=target,
        foil=nothing if foil is None else torch.tensor(foil),
        rival=nothing if rival is None else torch.tensor(rival),
        top=torch.zeros(target.shape, dtype=torch.long) if top is None else torch.tensor(top),
        target_ids=torch.zeros(n, dtype=torch.long) if target_ids is None else torch.tensor(target_ids),
        probe_probabilities=torch.zeros(n, 2, 0) if probes is None else torch.tensor(probes),
        probes=() if probes is None else tuple(f"probe {k}" for k in range(len(probes[0][0]))),
        units=(((0, 1), (2, 3)),) * n,
        site="mlp",
        factor=0.0,
        prompts=tuple(
            kn.Prompt(f"text {index}", target="a", group=None if groups is None else groups[index])
            for index in range(n)
        ),
        settings={},
        provenance={},
    )


def test_accuracy_and_flips_of_pairs():
    """p(good) > p(bad), before, after, and in two control draws; a flip is a change of preference, not of the top."""
    effect = effect_of(
        target=[[0.6, 0.2, 0.6, 0.6], [0.3, 0.5, 0.3, 0.1], [0.4, 0.3, 0.4, 0.4], [0.1, 0.2, 0.1, 0.1]],
        foil=[[0.1, 0.4, 0.1, 0.1], [0.4, 0.4, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1], [0.1, 0.3, 0.0, 0.1]],
        top=[[5, 6, 7, 8]] * 4,
    )
    assert effect.correct.tolist() == [
        [True, False, True, True],
        [False, True, False, False],
        [True, True, True, True],
        [False, False, True, False],  # equal is not right
    ]
    assert effect.flipped.tolist() == [
        [False, True, False, False],
        [False, True, False, False],
        [False, False, False, False],
        [False, False, True, False],
    ]
    row = effect.summary()
    assert row["prompts"] == 4
    assert row["units"] == 2
    assert row["accuracy_before"] == 0.5
    assert row["accuracy_after"] == 0.5
    assert row["flipped"] == 0.5
    assert row["control_accuracy"] == pytest.approx((0.75 + 0.5) / 2)
    assert row["control_flipped"] == pytest.approx((0.25 + 0) / 2)
    assert (row["draws"], row["distinct_draws"]) == (2, 2)
    for name in ("percentile_flipped", "percentile_accuracy", "p_flipped", "p_accuracy"):
        assert np.isnan(row[name])  # two draws tell nothing
    change = np.log(np.array([0.2 / 0.6, 0.5 / 0.3, 0.3 / 0.4, 2.0])).mean()
    assert row["log_probability_change"] == pytest.approx(change, rel=1e-5)
    low, high = stats.binomtest(2, 4).proportion_ci(method="wilson")
    assert (row["accuracy_before_low"], row["accuracy_before_high"]) == pytest.approx((low, high))


def test_ranks_among_enough_draws():
    """Accuracy 0.5 after the edit; 0.5 in 6 of 24 draws, else 1."""
    after = [[0] + [1] * 24, [1] + [0] * 6 + [1] * 18]
    tops = [[1, *row] for row in after]
    effect = effect_of(target=[[0.5] * 26] * 2, top=tops, target_ids=[1, 1])
    row = effect.summary()
    assert row["distinct_draws"] == 24
    assert row["percentile_accuracy"] == pytest.approx(100 * 3 / 24)  # ties count half
    assert row["percentile_flipped"] == pytest.approx(100 * 21 / 24)
    assert row["p_accuracy"] == row["p_flipped"] == pytest.approx(7 / 25)


def test_repeated_draws_are_counted_once():
    """Of 24 draws 4 are distinct of the one prompt and 6 of the other: 12 in all, too few for a rank."""
    effect = effect_of(target=[[0.5] * 26] * 2, top=[[1] * 26] * 2, target_ids=[1, 1])
    drawn = torch.tensor([[draw % 4 for draw in range(24)], [draw % 6 for draw in range(24)]])
    effect = replace(effect, drawn=drawn)
    assert effect.distinct_draws == 12
    assert np.isnan(effect.summary()["p_accuracy"])
    part = effect.where(lambda prompt: prompt.text == "text 0")
    assert (part.distinct_draws, part.drawn.tolist()) == (4, drawn[:1].tolist())


def test_accuracy_and_flips_of_facts():
    """The target on top; a flip is any change of the top token, also from wrong to wrong."""
    effect = effect_of(
        target=[[0.6, 0.2], [0.3, 0.5], [0.1, 0.1]],
        top=[[7, 8], [3, 9], [4, 4]],
        target_ids=[7, 9, 9],
    )
    assert effect.correct.tolist() == [[True, False], [False, True], [False, False]]
    assert effect.flipped[:, 1].tolist() == [True, True, False]
    wrong_to_wrong = effect_of(target=[[0.1, 0.1]], top=[[1, 2]], target_ids=[3])
    assert wrong_to_wrong.flipped.tolist() == [[False, True]]
    assert "control_accuracy" not in effect.summary()


def test_two_prefix_pairs_by_their_rivals():
    effect = effect_of(target=[[0.6, 0.2], [0.1, 0.3]], rival=[[0.5, 0.5], [0.2, 0.2]], top=[[1, 1], [1, 1]])
    assert effect.correct.tolist() == [[True, False], [False, True]]
    assert effect.flipped[:, 1].tolist() == [True, True]


def test_p_values_are_scipys():
    generator = np.random.default_rng(0)
    before = generator.uniform(0.1, 0.6, (12, 3))
    after = before * generator.uniform(0.5, 1.2, (12, 3))
    probes = np.stack([before, after], axis=1)
    target = np.stack([before[:, 0] + 0.01, after[:, 0]], axis=1)
    foil = np.stack([before[:, 1] + 0.02, after[:, 1]], axis=1)
    frame = effect_of(target.tolist(), foil=foil.tolist(), probes=probes.tolist()).to_frame()
    assert frame["probe"].tolist() == [OWN_TARGET, OWN_FOIL, "probe 0", "probe 1", "probe 2"]
    pairs = [target.T, foil.T, *np.moveaxis(probes, 2, 0).transpose(0, 2, 1)]
    independent = [np.asarray(stats.ttest_ind(new, old))[1] for old, new in pairs]
    paired = [np.asarray(stats.ttest_rel(new, old))[1] for old, new in pairs]
    assert frame["independent_p"].tolist() == pytest.approx(independent, rel=1e-4)
    assert frame["paired_p"].tolist() == pytest.approx(paired, rel=1e-4)
    for kind, values in (("independent", independent), ("paired", paired)):
        adjusted = stats.false_discovery_control(values)
        assert frame[f"{kind}_p_adjusted"].tolist() == pytest.approx(adjusted.tolist(), rel=1e-4)
    for (old, new), change in zip(pairs, frame["relative_change"], strict=True):
        bar = (new.mean() - old.mean()) / min(new.mean(), old.mean())
        assert change == pytest.approx(bar, rel=1e-4)
    assert (frame["n"] == 12).all()


def test_a_filter_keeps_whole_rows():
    effect = effect_of(
        target=[[0.6, 0.2], [0.3, 0.5], [0.1, 0.1]],
        top=[[7, 8], [3, 9], [4, 4]],
        target_ids=[7, 9, 9],
        groups=["x", "y", "x"],
    )
    part = effect.where(lambda prompt: prompt.group == "x")
    assert len(part) == 2
    assert part.target.tolist() == effect.target[[0, 2]].tolist()
    assert part.target_ids.tolist() == [7, 9]
    assert [prompt.prefix for prompt in part.prompts] == ["text 0", "text 2"]
    assert part.summary()["accuracy_before"] == 0.5
    table = effect.answers_frame()
    assert table["correct_before"].tolist() == [True, False, False]
    assert table["flipped"].tolist() == [True, True, False]


def test_layers_of_units():
    assert layer_counts([(0, 4), (2, 1), (2, 9)], 4) == [1, 0, 2, 0]
