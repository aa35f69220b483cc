"""What a causal trace costs: its arithmetic counted by the engine's own rules, the speed reached here, and GPU-hours.

    python benchmarks/trace_cost.py [--model tiny-causal] [--measure] [--repeats 3]

First the count of kn_lens.tracing.patched is written out (which copies join at which layer, over which positions) and,
for a small model, held against the operations that torch really makes. With ``--measure`` traces are timed too, and
their operations a second set against those of one large matrix product of this machine. Last the count is made for
Llama-2-7B and a million prompts; speeds of GPUs are assumptions, named in the table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import kn_lens as kn
from kn_lens.tracing.windows import PAPER_WINDOW, default_window, window_of

STREAMS = ("resid", "mlp", "attn")
SAMPLES = 10
PROMPTS = (
    kn.Prompt("The capital of France is", target="Paris", cue="France"),
    kn.Prompt("In France, the capital is", target="Paris", cue="France"),
    kn.Prompt("On the map of France, the star marks the capital,", target="Paris", cue="France"),
)
PRODUCT = (2048, 2048, 2048)
"""Of the large matrix product."""


@dataclass(frozen=True)
class Shape:
    """What of a model decides the arithmetic; parameters are those of matrices."""

    n_layers: int
    d_attention: int
    layer: int
    readout: int

    @classmethod
    def of(cls, model: Any) -> Shape:
        """The shape of a loaded model."""
        cfg = model.cfg
        kv_heads = cfg.n_key_value_heads or cfg.n_heads
        attention = cfg.d_model * cfg.d_head * (2 * cfg.n_heads + 2 * kv_heads)
        mlp = (3 if cfg.gated_mlp else 2) * cfg.d_model * cfg.d_mlp
        return cls(cfg.n_layers, cfg.n_heads * cfg.d_head, attention + mlp, cfg.d_model * cfg.d_vocab)


LLAMA_2_7B = Shape(32, 4096, 4 * 4096**2 + 3 * 4096 * 11008, 4096 * 32000)


@dataclass(frozen=True)
class Cost:
    """What one prompt costs: copies of it, positions × layers that they run through, and floating-point operations."""

    copies: int
    token_layers: int
    flop: float


def cost(shape: Shape, stream: str, window: int, length: int, cue: int, samples: int = SAMPLES) -> Cost:
    """The arithmetic of the trace of one prompt, all layers and positions.

    Args:
        shape: Of the model.
        stream: ``"resid"``, ``"mlp"`` or ``"attn"``.
        window: Layers restored together.
        length: Tokens of the prompt, the one that begins every text with them.
        cue: Place of the cue's first token, from 0: what stands before it is never computed anew.
        samples: Draws of noise.
    """
    layers = shape.n_layers
    copies = token_layers = 0
    for position in range(cue, length):
        at_answer = position == length - 1
        reach = layers if at_answer or stream == "resid" else layers - 1
        for layer in range(layers):
            first = window_of(layer, window, layers).start
            joins = first + 1 if stream == "resid" else first
            if joins < reach:
                copies += samples
                token_layers += samples * (layers - joins) * (length - position)
    whole = 2 + samples  # is it answered rightly, the clean run, the corrupted ones: whole prompts through all layers
    token_layers += whole * length * layers
    scores = 2 * shape.d_attention * length  # a position's queries against all keys, and its pattern against all values
    return Cost(copies, token_layers, 2.0 * (token_layers * (shape.layer + scores) + (copies + whole) * shape.readout))


def window_for(stream: str, layers: int) -> int:
    """The package's default."""
    if stream == "resid":
        return 1
    return PAPER_WINDOW if layers > 20 else max(1, round(layers / 5))


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def product_speed(repeats: int) -> float:
    """Operations a second of one large matrix product in float32: the best of several."""
    rows, inner, columns = PRODUCT
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    best = min(timed(lambda: left @ right) for _ in range(3 * repeats + 2))
    return 2.0 * rows * inner * columns / best


def traces(model: Any, measure: bool, repeats: int) -> Table:
    """The count against what torch makes, and, if asked for, the time."""
    shape = Shape.of(model)
    threads = torch.get_num_threads()
    title = f"Traces of one prompt, {SAMPLES} draws; {threads} threads, torch {torch.__version__}"
    peak = product_speed(repeats) if measure else 0.0
    if measure:
        title += f"; one product of {PRODUCT[0]}³: {peak / 1e9:.0f} GFLOP/s"
    table = Table(title=title)
    heads = ["prompt", "tokens", "cue at", "stream", "copies", "GFLOP, counted", "GFLOP, torch"]
    for head in [*heads, *(["s", "copies/s", "GFLOP/s", "of the product"] if measure else [])]:
        table.add_column(head, justify="left" if head in ("prompt", "stream") else "right")
    for prompt in PROMPTS:
        batch = kn.PromptBatch.from_prompts(model, [prompt])
        entry = batch.resolved[0]
        for stream in STREAMS:

            def run(batch: Any = batch, stream: str = stream) -> kn.CausalTrace:
                return kn.causal_trace(model, batch, stream=stream, samples=SAMPLES, progress=False)

            counter = FlopCounterMode(display=False)
            with counter:
                trace = run()
            assert trace.window is not None
            counted = cost(shape, stream, trace.window, len(entry.ids), entry.cue_positions[0])
            cells = [prompt.text, str(len(entry.ids)), str(entry.cue_positions[0]), stream, str(counted.copies)]
            cells += [f"{counted.flop / 1e9:.2f}", f"{counter.get_total_flops() / 1e9:.2f}"]
            if measure:
                took = statistics.median(timed(run) for _ in range(repeats))
                speed = counted.flop / took
                cells += [f"{took:.2f}", f"{counted.copies / took:.0f}", f"{speed / 1e9:.0f}", f"{speed / peak:.0%}"]
            table.add_row(*cells)
    return table


# Peaks of the makers' data sheets (SXM cards, dense), TFLOP/s; float32 without TF32, as torch multiplies by default.
GPUS = {
    ("A100", "float32"): 19.5,
    ("A100", "bfloat16"): 312.0,
    ("H100", "float32"): 67.0,
    ("H100", "bfloat16"): 989.0,
}
USED = {"float32": (0.5, 0.8), "bfloat16": (0.2, 0.5)}
"""Assumed share of the peak that is reached: low and high."""
SHAPES = ((6, 4), (10, 1), (20, 1))
"""Tokens of a prompt, and where its cue begins."""
MILLION = 1_000_000


def llama() -> tuple[Table, Table]:
    """A million prompts on Llama-2-7B: operations, and hours."""
    work = Table(title="Llama-2-7B, one prompt, all layers and positions")
    for head in ("tokens", "cue at", "stream", "window", "copies", "positions × layers", "TFLOP"):
        work.add_column(head, justify="left" if head == "stream" else "right")
    hours = Table(title="A million prompts, three streams: GPU-hours, few to many")
    for head in ("tokens", "cue at", "EFLOP", *(f"{card} {kind}" for card, kind in GPUS)):
        hours.add_column(head, justify="right")
    for length, cue in SHAPES:
        total = 0.0
        for stream in STREAMS:
            window = window_for(stream, LLAMA_2_7B.n_layers)
            found = cost(LLAMA_2_7B, stream, window, length, cue)
            total += found.flop * MILLION
            cells = (length, cue, stream, window, f"{found.copies:,}", f"{found.token_layers:,}")
            work.add_row(*map(str, cells), f"{found.flop / 1e12:.1f}")
        ranges = []
        for (_, kind), peak in GPUS.items():
            many, few = (total / (peak * 1e12 * share) / 3600 for share in USED[kind])
            ranges.append(f"{few:,.0f} to {many:,.0f}")
        hours.add_row(str(length), str(cue), f"{total / 1e18:.0f}", *ranges)
    return work, hours


def main() -> None:
    """Count, perhaps measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny-causal")
    parser.add_argument("--measure", action="store_true", help="time the traces too; wants a quiet machine")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    console = Console(width=150)
    model = kn.load_model(arguments.model, device="cpu")
    assert window_for("mlp", model.cfg.n_layers) == default_window(kn_stream(model))
    console.print(traces(model, arguments.measure, arguments.repeats))
    for table in llama():
        console.print(table)
    shares = "; ".join(f"{kind}: {low:.0%} to {high:.0%}" for kind, (low, high) in USED.items())
    console.print(f"Assumed share of the peak that is reached: {shares}. None of it was measured on a GPU.")


def kn_stream(model: Any) -> Any:
    """The stream of MLP outputs."""
    from kn_lens.streams import stream_of

    return stream_of(model, "mlp")


if __name__ == "__main__":
    main()
