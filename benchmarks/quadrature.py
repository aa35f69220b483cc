"""Which rule of integration reaches the converged integral at the lowest cost? On SmolLM2.

    python benchmarks/quadrature.py [--reference 400]

The reference is the midpoint rule with many points. Cost is counted in row-layers (how many layers all rows go
through), given as the number of steps of the plain rule that cost as much, so that the table does not depend on the
machine. Errors are ‖α − α_ref‖ / ‖α_ref‖ over all units of all layers, and over those of all layers but the first.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import kn_lens as kn
from kn_lens.forward import Columns

PROMPTS = [
    kn.Prompt("The capital of France is", target="Paris"),
    kn.Prompt("The official language of Japan is", target="Japanese"),
    kn.Prompt("The keys near the old door", target="are"),
]
RULES: list[dict[str, Any]] = [
    {"rule": "riemann", "steps": 20},
    {"rule": "riemann", "steps": 100},
    {"rule": "trapezoid", "steps": 20},
    {"rule": "midpoint", "steps": 20},
    {"rule": "gauss_legendre", "steps": 10},
    {"rule": "gauss_legendre", "steps": 20},
    {"rule": "gauss_legendre", "steps": 40},
    {"rule": "adaptive", "steps": 6, "tolerance": 1e-2},
    {"rule": "adaptive", "steps": 8, "tolerance": 1e-3},
    {"rule": "adaptive", "steps": 8, "tolerance": 1e-4},
]


class CountedColumns(Columns):
    """Columns that add up how many layers their rows go through."""

    row_layers = 0

    def __init__(self, model: Any, clean: Any, joins: Any, hooks: Any) -> None:
        above = sum(count * (len(joins) - layer) for layer, count in enumerate(joins))
        CountedColumns.row_layers += above * len(clean.tokens)
        super().__init__(model, clean, joins, hooks)


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reference", type=int, default=400, help="points of the reference")
    arguments = parser.parse_args()
    import kn_lens.attribution.path as path

    path.Columns = CountedColumns  # type: ignore[misc]
    model = kn.load_model("smollm2-135m", device="cpu")
    reference = kn.integrated_gradients(model, PROMPTS, rule="midpoint", steps=arguments.reference).values
    layers = model.cfg.n_layers
    one_step = len(PROMPTS) * layers * (layers + 1) / 2
    table = Table(title=f"Rules against {arguments.reference} midpoints, {len(PROMPTS)} prompts, SmolLM2-135M")
    for head in ("rule", "cost in steps", "error, median", "error, worst", "without layer 0, worst", "max |delta|"):
        table.add_column(head, justify="left" if head == "rule" else "right")
    for rule in RULES:
        CountedColumns.row_layers = 0
        scores = kn.integrated_gradients(model, PROMPTS, **rule)
        error, rest = relative(scores.values, reference), relative(scores.values[:, 1:], reference[:, 1:])
        table.add_row(
            " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in rule.values()),
            f"{CountedColumns.row_layers / one_step:.1f}",
            f"{float(error.median()):.1e}",
            f"{float(error.max()):.1e}",
            f"{float(rest.max()):.1e}",
            f"{float(scores.convergence_delta.abs().max()):.1e}",
        )
    Console(width=120).print(table)


def relative(values: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """‖values − reference‖ / ‖reference‖ per prompt."""
    return (values - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)


if __name__ == "__main__":
    main()
