"""Integrated gradients: rows of one batch against the textbook loop, on SmolLM2, in one run.

    python benchmarks/attribution.py [--repeats 3] [--tokens 5 12 24]

Times are medians. The textbook loop (tests/oracles/textbook.py) runs on the same model object; once more it runs
on weights in TransformerLens' own memory order, as a model loaded without kn_lens has them. The floor is the
arithmetic of the rows at the speed of this machine's own matrix product of the same shape.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

import kn_lens as kn
from kn_lens.forward import DEFAULT_MEMORY_BUDGET, frozen_weights
from kn_lens.models.layout import speed_up_layout

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.oracles import textbook

STEPS = 20
PROMPTS = {
    5: "The capital of France is",
    12: "On the map of the country of France, the capital is",
    24: "Everyone who has read a book about the country of France and its many long rivers knows that "
    "its capital is the city of",
}
TARGET = "Paris"
_COPIES = ("copy_", "clone", "cat", "contiguous", "index", "fill_", "zero_", "select_backward", "slice_backward")
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear")


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of one call."""
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def resident() -> int:
    """Bytes of resident memory now."""
    return psutil.Process().memory_info().rss


def peak_memory(run: Callable[[], Any], loaded: int) -> float:
    """Bytes of resident memory at the peak of a call, above those with the model just loaded."""
    done, peak = threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        run()
    finally:
        done.set()
        thread.join()
    return float(max(0, peak - loaded))


def matrix_product_speed(model: Any, rows: int, repeats: int = 30) -> float:
    """Floating-point operations per second of ``rows`` vectors through one MLP matrix."""
    x, weight = torch.randn(rows, model.cfg.d_model), torch.randn(model.cfg.d_mlp, model.cfg.d_model)
    torch.nn.functional.linear(x, weight)
    seconds, _ = timed(lambda: [torch.nn.functional.linear(x, weight) for _ in range(repeats)])
    return repeats * 2 * rows * weight.numel() / seconds


def operations_of_rows(model: Any) -> float:
    """What the rows need, forward and backward: the layers above each row's own, and the unembedding."""
    cfg = model.cfg
    per_layer = sum(parameter.numel() for parameter in model.blocks[0].parameters())
    passes = STEPS * cfg.n_layers * (cfg.n_layers + 1) / 2  # a row of layer l goes through n_layers − l blocks
    return 4 * (passes * per_layer + STEPS * cfg.n_layers * cfg.d_model * cfg.d_vocab)


def row_major(model: Any) -> None:
    """Weights in the memory order that TransformerLens gives them."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()


def where_time_goes(run: Callable[[], Any]) -> dict[str, float]:
    """Shares of the time of one call by kind of operation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    kinds = {"matrix products": 0.0, "copies": 0.0, "softmax": 0.0, "other": 0.0}
    for event in profile.key_averages():
        name = event.key.removeprefix("aten::")
        if name in _PRODUCTS:
            kinds["matrix products"] += event.self_cpu_time_total
        elif name in _COPIES:
            kinds["copies"] += event.self_cpu_time_total
        elif "softmax" in name:
            kinds["softmax"] += event.self_cpu_time_total
        else:
            kinds["other"] += event.self_cpu_time_total
    total = sum(kinds.values())
    return {kind: value / total for kind, value in kinds.items()}


def main() -> None:
    """Measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="+", default=sorted(PROMPTS), choices=sorted(PROMPTS))
    arguments = parser.parse_args()
    console = Console(width=150)
    model = kn.load_model("smollm2-135m", device="cpu")
    loaded = resident()
    console.print(
        f"SmolLM2-135M, {STEPS} steps, {model.cfg.n_layers} layers, float32; {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}; budget {DEFAULT_MEMORY_BUDGET:.1e} B"
    )
    speed = matrix_product_speed(model, 300)
    floor = operations_of_rows(model) / speed
    table = Table(title="Integrated gradients of one prompt: seconds (medians) and ratios")
    heads = (
        "tokens",
        "rows",
        "textbook",
        "ratio",
        "textbook, plain order",
        "ratio",
        "8 prompts, each",
        "largest diff.",
    )
    for head in (*heads, "score max.", "peak above model", "of the floor"):
        table.add_column(head, justify="right")
    for count in arguments.tokens:
        batch = kn.PromptBatch.from_prompts(model, [kn.Prompt(PROMPTS[count], target=TARGET)])
        if batch.lengths != [count]:
            raise SystemExit(f"the prompt for {count} tokens has {batch.lengths[0]}")
        tokens, target = batch.tokens[0], int(batch.target_ids[0])

        def rows(batch: kn.PromptBatch = batch) -> Any:
            return kn.integrated_gradients(model, batch, steps=STEPS, progress=False)

        def loop(tokens: Any = tokens, target: int = target) -> Any:
            with frozen_weights(model):
                return textbook.integrated_gradients(model, tokens, target, steps=STEPS)

        rows()
        fast, slow, scores, reference = [], [], None, None
        for _ in range(arguments.repeats):
            seconds, scores = timed(rows)
            fast.append(seconds)
            seconds, reference = timed(loop)
            slow.append(seconds)
        assert scores is not None
        assert reference is not None
        memory = peak_memory(rows, loaded)
        eight = kn.PromptBatch.from_prompts(model, [kn.Prompt(PROMPTS[count], target=TARGET)] * 8)
        each = timed(lambda eight=eight: kn.integrated_gradients(model, eight, steps=STEPS, progress=False))[0] / 8
        row_major(model)
        plain, _ = timed(loop)
        speed_up_layout(model)
        quick, long = statistics.median(fast), statistics.median(slow)
        table.add_row(
            str(count),
            f"{quick:.2f}",
            f"{long:.1f}",
            f"{long / quick:.1f}×",
            f"{plain:.1f}",
            f"{plain / quick:.1f}×",
            f"{each:.2f}",
            f"{float((scores.values[0] - reference).abs().max()):.1e}",
            f"{float(reference.max()):.2f}",
            f"{memory / 1e6:.0f} MB",
            f"{quick / floor:.1f}×",
        )
    console.print(table)
    console.print(
        f"Floor: {operations_of_rows(model) / 1e9:.0f} GFLOP at {speed / 1e9:.0f} GFLOP/s = {floor:.2f} s a prompt. "
        "A call also hashes the weights for its result: "
        f"{timed(lambda: kn_hash(model))[0]:.2f} s the first time, less after."
    )
    batch = kn.PromptBatch.from_prompts(model, [kn.Prompt(PROMPTS[arguments.tokens[0]], target=TARGET)])
    shares = where_time_goes(lambda: kn.integrated_gradients(model, batch, steps=STEPS, progress=False))
    console.print("Where the time goes: " + ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items()))


def kn_hash(model: Any) -> str:
    """The weights hash, as results record it."""
    from kn_lens.models.hashing import weights_hash

    return weights_hash(model)


if __name__ == "__main__":
    main()
