"""ROME: the search for v* on rows begun at the edit, against the textbook loop, on SmolLM2, in one run.

    python benchmarks/rome.py [--repeats 3] [--facts 0 1 2] [--steps N]

Both are given the same prefixes, already sampled, and the same settings. Our times are medians; the textbook
(tests/oracles/rome.py: each prompt through the whole model at each step) runs once per fact, on the same model object.
Where the subject stands decides how much is saved: no position before it, and no block below the layer, is computed
again.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import kn_lens as kn
from kn_lens.editing.contexts import sampled_prefixes
from kn_lens.editing.hyperparameters import Hyperparameters, hyperparameters_of
from kn_lens.editing.rome import rome
from kn_lens.prompts.fact import Fact

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.oracles import rome as textbook

FACTS = (
    Fact("The capital city of {} is", "France", "Rome", old="Paris"),
    Fact("In the country of {}, the largest city is", "Japan", "Madrid", old="Tokyo"),
    Fact("On the map of the country of {}, the capital is", "Cuba", "New Delhi", old="Havana"),
)


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of one call."""
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def loop(model: Any, fact: Fact, prefixes: tuple[str, ...], known: Hyperparameters) -> textbook.Textbook:
    """The same edit by the textbook loop."""
    assert known.layer is not None
    return textbook.rome(
        model,
        fact.template,
        fact.subject,
        fact.target,
        layer=known.layer,
        prefixes=prefixes,
        steps=known.steps,
        lr=known.lr,
        weight_decay=known.weight_decay,
        clamp=known.clamp,
        kl_factor=known.kl_factor,
        position=known.position,
    )


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--facts", type=int, nargs="+", default=range(len(FACTS)), choices=range(len(FACTS)))
    parser.add_argument("--steps", type=int, help="of the search, instead of the model's own setting")
    arguments = parser.parse_args()
    console = Console(width=180)
    model = kn.load_model("smollm2-135m", device="cpu")
    known = hyperparameters_of(model)
    if arguments.steps:
        known = replace(known, steps=arguments.steps)
    prefixes = sampled_prefixes(model)
    console.print(
        f"SmolLM2-135M, W_out of layer {known.layer} of {model.cfg.n_layers}, {len(prefixes)} prefixes, at most "
        f"{known.steps} steps, float32; {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{platform.processor() or platform.machine()}\n"
    )
    table = Table(box=box.MARKDOWN)
    table.add_column("fact, subject in capitals")
    for head in ("prompts", "steps", "ours, s", "textbook, s", "ratio", "loss at first", "at last", "difference"):
        table.add_column(head, justify="right")
    table.add_column("cosine of the updates", justify="right")
    for number in arguments.facts:
        fact = FACTS[number]

        def ours(fact: Fact = fact) -> Any:
            return rome(model, fact, layer=known.layer, steps=known.steps, prefixes=prefixes)

        edit = ours()
        fast = statistics.median(timed(ours)[0] for _ in range(arguments.repeats))
        slow, expected = timed(lambda f=fact: loop(model, f, prefixes, known))
        cosine = torch.cosine_similarity(edit.update().double().flatten(), expected.update.double().flatten(), dim=0)
        table.add_row(
            fact.template.replace("{}", fact.subject.upper()) + f" {fact.target}",
            str(edit.settings["prefixes"] + 1),
            str(len(edit.losses)),
            f"{fast:.2f}",
            f"{slow:.1f}",
            f"{slow / fast:.1f}×",
            f"{edit.losses[0]:.3f}",
            f"{edit.losses[-1]:.4f}",
            f"{abs(float(edit.losses[-1]) - expected.losses[-1]):.1e}",
            f"{float(cosine):.5f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
