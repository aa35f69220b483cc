"""The adaptive rule reaches the converged integral, and spends points only where they are wanted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.attribution.integrated_gradients import integrate_adaptively
from kn_lens.attribution.quadrature import quadrature
from tests.questions import likely_batch


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_adaptive_is_the_converged_integral(exact_model, family: str) -> None:
    model = exact_model(family)
    batch = likely_batch(model)
    found = kn.integrated_gradients(model, batch, rule="adaptive", steps=2, tolerance=1e-8, progress=False)
    converged = kn.integrated_gradients(model, batch, rule="gauss_legendre", steps=60, progress=False)
    assert float(found.convergence_delta.abs().max()) <= 1e-7  # results are kept in float32
    torch.testing.assert_close(found.values, converged.values, atol=1e-6, rtol=1e-5)
    assert found.settings["tolerance"] == 1e-8


def test_only_layers_above_the_tolerance_are_refined() -> None:
    """Layer 1 of this stand-in path converges at 16 points, the others at once; scores say who made them."""

    class Path:
        site = type("Site", (), {"n_layers": 3})()
        probability = torch.ones(1)

        def __init__(self) -> None:
            self.asked: list[tuple[int, list[int]]] = []

        def integrate(self, points: np.ndarray, weights: np.ndarray, layers) -> tuple[torch.Tensor, torch.Tensor]:
            layers = list(layers)
            self.asked.append((len(points), layers))
            assert np.allclose(points, quadrature("gauss_legendre", len(points))[0])
            delta = torch.tensor([[0.5 / len(points) if layer == 1 else 0.0 for layer in layers]])
            return torch.full((1, len(layers), 4), len(points) / 1024), delta

    path = Path()
    scores, delta = integrate_adaptively(path, steps=4, tolerance=0.04)  # type: ignore[arg-type]
    assert path.asked == [(4, [0, 1, 2]), (8, [1]), (16, [1])]
    assert (1024 * scores[0, :, 0]).tolist() == [4.0, 16.0, 4.0]
    assert delta[0].tolist() == pytest.approx([0.0, 0.5 / 16, 0.0])


def test_refinement_ends() -> None:
    """A tolerance below rounding is not reached; the rule stops and the delta says so."""

    class Path:
        site = type("Site", (), {"n_layers": 1})()
        probability = torch.ones(1)
        passes = 0

        def integrate(self, points: np.ndarray, weights: np.ndarray, layers) -> tuple[torch.Tensor, torch.Tensor]:
            self.passes += 1
            return torch.zeros(1, 1, 2), torch.ones(1, 1)

    path = Path()
    _, delta = integrate_adaptively(path, steps=4, tolerance=1e-9)  # type: ignore[arg-type]
    assert path.passes == 6  # 4, 8, … 128 points
    assert float(delta) == 1.0


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_adaptive_scores_do_not_depend_on_company(exact_model, family: str) -> None:
    """User need 20: a prompt that has converged is not refined because another in its pass has not."""
    model = exact_model(family)
    batch = likely_batch(model)
    same = batch.select([0, 5])
    options = {"rule": "adaptive", "steps": 2, "tolerance": 3e-3, "positions": "cue", "progress": False}
    together = kn.integrated_gradients(model, same, **options)
    for index in range(2):
        alone = kn.integrated_gradients(model, same.select([index]), **options)
        torch.testing.assert_close(alone.values[0], together.values[index], atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(alone.convergence_delta[0], together.convergence_delta[index], atol=1e-9, rtol=1e-6)
