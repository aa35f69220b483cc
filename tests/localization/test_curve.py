"""The ablation curve's tables and half points, from flips written by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.localization.curve import AblationCurve


def made(flipped: list[list[int]], control: list[list[list[int]]], taken: list[int]) -> AblationCurve:
    """A curve with these flips; a prompt's norm at the i-th k is i + 1, its stream's 10."""
    flips, draws = torch.tensor(flipped).bool(), torch.tensor(control).bool()
    n = len(flips)
    norm = torch.arange(1, 1 + flips.shape[1]).float().repeat(n, 1)
    return AblationCurve(
        ks=(1, 2, 5),
        taken=torch.tensor(taken).repeat(n, 1),
        flipped=flips,
        correct=~flips,
        target=1 - flips.float(),
        norm=norm,
        control_flipped=draws,
        control_correct=~draws,
        control_target=1 - draws.float(),
        control_norm=norm[..., None].repeat(1, 1, draws.shape[-1]) / 2,
        clean_target=torch.ones(n),
        stream=torch.full((n,), 10.0),
        n_units=20,
        site="head",
        ablation="zero",
        answered_wrongly=0,
        prompts=tuple(kn.Prompt(f"Prompt {index} is", target="x", group=f"g{index}") for index in range(n)),
        settings={},
        provenance={},
    )


def test_half_point_by_hand(tmp_path: Any) -> None:
    control = [[[0, 0], [0, 1], [0, 1]]] * 4  # one draw flips all from k = 2 on: half, on average
    curve = made([[0, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]], control, [1, 2, 4])
    half = curve.k_half()
    assert (half.k.value, half.taken.value, half.share.value, half.norm.value) == (2, 2, 2 / 20, pytest.approx(0.2))
    assert half.k.low == 2  # no prompt flips at k = 1
    assert half.k.high in (5, math.inf)
    random = curve.control_k_half()
    assert (random.k.value, random.k.low, random.k.high) == (2, 2, 2)
    assert random.norm.value == pytest.approx(0.1)
    rows = curve.to_frame().to_dict("list")
    assert rows["flipped"] == [0, 0.5, 0.75]
    assert rows["control_flipped"] == [0, 0.5, 0.5]
    assert rows["share_of_units"] == pytest.approx([0.05, 0.1, 0.2])
    assert rows["distinct_draws"] == [2, 2, 2]
    assert np.isnan(rows["percentile_flipped"]).all()  # two draws tell nothing
    assert rows["correct"] == [1, 0.5, 0.25]
    again = AblationCurve.load(curve.save(tmp_path / "curve"))
    assert again.to_frame().equals(curve.to_frame())
    assert again.ks == curve.ks


def test_the_price_is_what_was_taken_not_the_rung() -> None:
    """At k = 5 four units are taken from two of three prompts and two from the last: 10/3, not 5."""
    curve = made([[0, 0, 1], [0, 0, 1], [0, 0, 0]], [[[0], [0], [0]]] * 3, [1, 2, 4])
    taken = curve.taken.clone()
    taken[2, 2] = 2
    half = replace(curve, taken=taken).k_half()
    assert (half.k.value, half.taken.value) == (5, pytest.approx(10 / 3))
    assert half.share.value == pytest.approx(10 / 60)


def test_intervals_resample_whole_groups() -> None:
    """Two groups of three near-copies: a resample is one of four, so all 0.5, 0 and 1 appear; six prompts would not."""
    curve = made([[1, 1, 1]] * 3 + [[0, 0, 1]] * 3, [[[0], [0], [0]]] * 6, [1, 2, 4])
    prompts = tuple(replace(prompt, group="ab"[index // 3]) for index, prompt in enumerate(curve.prompts))
    curve = replace(curve, prompts=prompts)
    rows = curve.to_frame().to_dict("list")
    assert rows["flipped"] == [0.5, 0.5, 1]
    assert rows["flipped_low"] == [0, 0, 1]
    assert rows["flipped_high"] == [1, 1, 1]
    half = curve.k_half()
    assert (half.k.value, half.k.low, half.k.high) == (1, 1, 5)
    uneven = replace(curve, prompts=tuple(replace(p, group="a" if at else "b") for at, p in enumerate(prompts)))
    assert {tuple(row.tolist()) for row in uneven._counts(200, 0)} == {
        (1, 1, 1, 1, 1, 1),
        (2, 0, 0, 0, 0, 0),
        (0, 2, 2, 2, 2, 2),
    }
    rows = uneven.to_frame().to_dict("list")
    assert (rows["flipped_low"][0], rows["flipped_high"][0]) == (pytest.approx(2 / 5), 1)  # over 1, 5 or 6 prompts


def test_ranks_among_enough_draws() -> None:
    """One flip in each of 24 draws but two, which have none; the top units flip one too."""
    draws = [[[0] * 24, [0, 0] + [1] * 22, [1] * 24], [[0] * 24, [0] * 24, [1] * 24]]
    curve = made([[0, 1, 1], [0, 0, 1]], draws, [1, 2, 4])
    rows = curve.to_frame().to_dict("list")
    assert rows["distinct_draws"] == [24] * 3
    assert rows["percentile_flipped"] == pytest.approx([50, 100 * (2 + 11) / 24, 50])
    assert rows["p_flipped"] == pytest.approx([1, 23 / 25, 1])


def test_half_point_that_is_never_reached() -> None:
    curve = made([[0, 0, 0], [0, 0, 0], [0, 0, 1]], [[[0], [0], [0]]] * 3, [1, 2, 5])
    half = curve.k_half()
    assert math.isnan(half.k.value)
    assert math.isnan(half.share.value)
    assert half.k.low == 5
    assert half.k.high == math.inf
    assert curve.control_k_half().k.low == math.inf
    alone = made([[0, 1, 1]], [[[0], [0], [0]]], [1, 2, 5]).k_half()
    assert alone.k.value == 2
    assert math.isnan(alone.k.low)
