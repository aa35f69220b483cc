"""Causal tracing: restored rows against the textbook loop, on SmolLM2, in one run.

    python benchmarks/tracing.py [--repeats 3] [--streams resid mlp attn] [--prompts 0 1 2]

Times are medians; the textbook loop (tests/oracles/tracing.py: one whole forward pass of eleven copies per state) runs
once per prompt and stream, on the same model object. Where the cue stands decides how much the rows can save: no state
before it is computed, and a state's row begins at its own position.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import kn_lens as kn
from kn_lens.streams import stream_of
from kn_lens.tracing.corruption import corruption_of
from kn_lens.tracing.metrics import METRICS
from kn_lens.tracing.windows import default_window

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.oracles import tracing as textbook

PROMPTS = (
    kn.Prompt("The capital city of France is", target="Paris", cue="France"),
    kn.Prompt("Cuba's capital city is", target="Havana", cue="Cuba"),
    kn.Prompt("On the map of the country of France, the capital is", target="Paris", cue="France"),
)
SAMPLES = 10


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of one call."""
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def loop(model: Any, batch: kn.PromptBatch, trace: kn.CausalTrace, stream: str) -> dict[str, torch.Tensor]:
    """The same trace by the textbook loop, with the same noise."""
    spoiled = corruption_of(
        model, batch, "noise", samples=SAMPLES, noise=3.0, sigma=trace.sigma, swaps=None, seed=trace.settings["seed"]
    )
    entry = batch.resolved[0]
    noise = spoiled.noise(entry)

    def spoil(embeddings: torch.Tensor) -> torch.Tensor:
        embeddings[:, list(entry.cue_positions)] += noise
        return embeddings

    with torch.no_grad():
        logits = model(batch.tokens)[0, entry.target_position]
    logits[entry.target_ids[0]] = float("-inf")  # the foil of a fact is the runner-up of its clean run
    return textbook.causal_trace(
        model,
        torch.tensor(entry.ids),
        entry.target_position,
        entry.target_ids[0],
        int(logits.argmax()),
        spoil,
        stream=stream,
        window=trace.window,
        samples=SAMPLES,
    )


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--streams", nargs="+", default=["resid", "mlp", "attn"])
    parser.add_argument("--prompts", type=int, nargs="+", default=range(len(PROMPTS)), choices=range(len(PROMPTS)))
    arguments = parser.parse_args()
    console = Console(width=150)
    model = kn.load_model("smollm2-135m", device="cpu")
    console.print(
        f"SmolLM2-135M, {SAMPLES} samples, {model.cfg.n_layers} layers, float32; {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}"
    )
    table = Table(title="Causal trace of one prompt: seconds (rows: medians) and ratios")
    for head in ("prompt, cue in capitals", "tokens", "stream", "window", "rows", "textbook", "ratio"):
        table.add_column(head, justify="left" if head.startswith("prompt") else "right")
    for head in ("largest diff.", "largest effect"):
        table.add_column(head, justify="right")
    for number in arguments.prompts:
        prompt = PROMPTS[number]
        batch = kn.PromptBatch.from_prompts(model, [prompt])
        for stream in arguments.streams:
            window = default_window(stream_of(model, stream))

            def rows(batch: kn.PromptBatch = batch, stream: str = stream) -> kn.CausalTrace:
                return kn.causal_trace(model, batch, stream=stream, samples=SAMPLES, progress=False)

            trace = rows()
            fast = statistics.median(timed(rows)[0] for _ in range(arguments.repeats))
            slow, expected = timed(lambda b=batch, t=trace, s=stream: loop(model, b, t, s))
            differences = [float((trace.effects[name][0] - expected[name][..., 0]).abs().max()) for name in METRICS]
            table.add_row(
                prompt.text.replace(str(prompt.cue), str(prompt.cue).upper()),
                str(batch.lengths[0]),
                stream,
                str(window),
                f"{fast:.2f}",
                f"{slow:.1f}",
                f"{slow / fast:.1f}×",
                f"{max(differences):.1e}",
                f"{float(trace.effects['logit_difference'].abs().max()):.2f} logits",
            )
    console.print(table)


if __name__ == "__main__":
    main()
