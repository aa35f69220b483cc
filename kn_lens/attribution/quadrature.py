"""Rules for the integral of integrated gradients: points γ in [0, 1] and their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from kn_lens.errors import SettingsError, near_matches

Rule = Literal["riemann", "trapezoid", "midpoint", "gauss_legendre", "adaptive"]

ADAPTIVE = "adaptive"
"""Gauss-Legendre, refined layer by layer: no one set of points, so not in this file; see
:func:`kn_lens.attribution.integrated_gradients.integrate_adaptively`."""


def quadrature(rule: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of a rule with ``steps`` points.

    Args:
        rule: A name of :data:`Rule`.
        steps: Number of points, at least 2 (one point is the gradient at one place, not an integral).

    Raises:
        SettingsError: For an unknown rule or fewer than two points.
    """
    if rule not in _RULES:
        raise SettingsError(f"no rule {rule!r}.{near_matches(rule, get_args(Rule))} Rules: {', '.join(get_args(Rule))}")
    check_steps(steps)
    return _RULES[rule](steps)


def check_steps(steps: int) -> None:
    """Refuse fewer than two points.

    Raises:
        SettingsError: If ``steps`` < 2.
    """
    if steps < 2:
        raise SettingsError(
            f"steps is {steps}; integrated gradients need at least 2 (one is a gradient, not an integral)"
        )


def _riemann(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """γ = linspace(0, 1, m), weight 1/m: the published code of Dai et al. (2022)."""
    return np.linspace(0.0, 1.0, steps), np.full(steps, 1.0 / steps)


def _trapezoid(steps: int) -> tuple[np.ndarray, np.ndarray]:
    weights = np.full(steps, 1.0 / (steps - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0.0, 1.0, steps), weights


def _midpoint(steps: int) -> tuple[np.ndarray, np.ndarray]:
    return (np.arange(steps) + 0.5) / steps, np.full(steps, 1.0 / steps)


def _gauss_legendre(steps: int) -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(steps)
    return (points + 1) / 2, weights / 2


_RULES: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "riemann": _riemann,
    "trapezoid": _trapezoid,
    "midpoint": _midpoint,
    "gauss_legendre": _gauss_legendre,
}
