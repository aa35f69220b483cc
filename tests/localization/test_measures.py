"""Closed forms of R₁² and of concentration, and R₁² against the singular value of its definition."""

from __future__ import annotations

import math

import pytest
import torch

import kn_lens as kn
from kn_lens.errors import SettingsError
from tests.localization.test_search import scores_of
from tests.oracles import textbook


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [2, 5, 17])
def test_identical_directions_give_one(n):
    vector = normal(1, 3, 4)
    lengths = torch.rand(n, 1, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    assert kn.n_sample_similarity(vector * lengths) == pytest.approx(1.0, abs=1e-6)
    signs = torch.tensor([(-1.0) ** k for k in range(n)]).reshape(-1, 1, 1)
    assert kn.n_sample_similarity(vector * lengths * signs) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("n", [2, 5, 17])
def test_orthogonal_directions_give_zero(n):
    rotation = torch.linalg.qr(normal(20, 20)).Q
    assert kn.n_sample_similarity(rotation[:n]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 3, math.pi / 2, 2.5, math.pi])
def test_two_vectors_give_the_absolute_cosine(angle):
    pair = torch.tensor([[2.0, 0.0, 0.0], [5 * math.cos(angle), 0.0, 5 * math.sin(angle)]], dtype=torch.float64)
    assert kn.n_sample_similarity(pair) == pytest.approx(abs(math.cos(angle)), abs=1e-9)


def test_k_pairs_of_twins():
    """n vectors in k orthogonal bundles of n/k: s₁² = n/k."""
    axes = torch.eye(4).repeat_interleave(3, dim=0)
    assert kn.n_sample_similarity(axes) == pytest.approx((3 - 1) / (12 - 1), abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_similarity_equals_the_singular_value(seed):
    values = normal(3 + seed, 4, 25, seed=seed) + seed * 0.2 * normal(1, 4, 25, seed=100 + seed)
    expected = textbook.n_sample_similarity(values)
    assert kn.n_sample_similarity(values) == pytest.approx(expected, abs=1e-9)
    assert kn.n_sample_similarity(scores_of(values)) == pytest.approx(expected, abs=1e-9)
    scale = 10.0 ** normal(len(values), 1, 1, seed=seed + 50)
    assert kn.n_sample_similarity(values.double() * scale.double()) == pytest.approx(expected, abs=1e-6)
    assert kn.n_sample_similarity(-values) == pytest.approx(expected, abs=1e-9)
    assert kn.n_sample_similarity(values.flip(0)) == pytest.approx(expected, abs=1e-9)
    assert 0 < expected < 1


def test_similarity_refuses_what_has_no_direction():
    values = normal(4, 2, 3)
    with pytest.raises(SettingsError, match="1 is too few"):
        kn.n_sample_similarity(values[:1])
    values[2] = 0
    with pytest.raises(SettingsError, match="prompt 2 has no direction"):
        kn.n_sample_similarity(values)
    values[2] = torch.nan
    with pytest.raises(SettingsError, match="prompt 2 has no direction"):
        kn.n_sample_similarity(values)


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_one_unit_that_holds_everything(n):
    values = torch.zeros(1, 1, n)
    values[0, 0, n // 2] = -3.0
    found = kn.concentration(values, (1, n))
    assert found.gini.item() == pytest.approx(1 - 1 / n, abs=1e-6)
    assert found.participation_ratio.item() == pytest.approx(1.0)
    assert found.shares.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_units_that_all_hold_the_same(n):
    signs = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
    found = kn.concentration((signs * 0.25).reshape(1, 1, n), (1, n))
    assert found.gini.item() == pytest.approx(0.0, abs=1e-6)
    assert found.participation_ratio.item() == pytest.approx(n)
    assert found.shares[0].tolist() == pytest.approx([1 / n, 1.0])


def test_a_case_worked_by_hand():
    """|α| = 1, 2, 3, 4: Gini = (2·(1·1 + 2·2 + 3·3 + 4·4)/(4·10)) − 5/4 = 0.25; 100/30 units."""
    found = kn.concentration(torch.tensor([[[2.0, -4.0], [1.0, 3.0]]]), (1, 2, 3, 4))
    assert found.gini.item() == pytest.approx(0.25)
    assert found.participation_ratio.item() == pytest.approx(100 / 30)
    assert found.shares[0].tolist() == pytest.approx([0.4, 0.7, 0.9, 1.0])
    assert found.n_units == 4


@pytest.mark.parametrize("seed", range(4))
def test_gini_is_the_mean_absolute_difference(seed):
    """G = Σᵢⱼ |xᵢ − xⱼ| / (2 n² mean)."""
    values = normal(3, 2, 30, seed=seed)
    size = values.flatten(1).abs().double()
    differences = (size[:, :, None] - size[:, None]).abs().sum((1, 2))
    expected = differences / (2 * size.shape[1] ** 2 * size.mean(1))
    torch.testing.assert_close(kn.concentration(values).gini.double(), expected, atol=1e-6, rtol=0)


def test_the_curve_rises_to_one():
    found = kn.concentration(scores_of(normal(5, 3, 70)))
    assert found.ks == (1, 2, 5, 10, 20, 50, 100, 200, 210)
    assert (found.shares.diff(dim=1) > 0).all()
    assert found.shares[:, -1].tolist() == pytest.approx([1.0] * 5)
    frame = found.to_frame()
    assert frame["share"].tolist() == pytest.approx(found.shares.mean(0).tolist())


def test_more_units_than_there_are_is_all_of_them_and_none_is_refused():
    values = normal(2, 1, 5)
    assert kn.concentration(values, (5, 50)).shares[:, 1].tolist() == pytest.approx([1.0, 1.0])
    with pytest.raises(SettingsError, match=r"ks are .* at least 1"):
        kn.concentration(values, (0, 1))


def test_a_prompt_without_scores_has_no_concentration():
    values = normal(2, 1, 5)
    values[1] = 0
    found = kn.concentration(values)
    assert not found.gini[0].isnan()
    assert found.gini[1].isnan()
    assert found.participation_ratio[1].isnan()
    assert found.shares[1].isnan().all()
