"""Batches: how many prompts a second against a plain loop, and how much memory, however many prompts.

    python benchmarks/batches.py [--model smollm2-135m] [--long] [--only throughput|memory]

Throughput: causal traces of the same prompts (one piece after another by `kn-lens run`, with 1 worker of 1 thread, 1 of
2 and 2 of 1; one prompt after another by `kn.causal_trace`; a few by the textbook loop of tests/oracles/tracing.py), in
one run, as ratios. "Working" leaves starting and planning out: it begins when as many pieces are done as there are
workers. Memory: the largest resident set of each process, looked at every 20 ms; pages that workers share (the mapped
model, libraries) count in each. With ``--long`` 200 and 20,000 prompts instead of 200 and 2,000, and traces too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

import kn_lens as kn
from kn_lens.tracing.answered import rightly_answered
from kn_lens.tracing.corruption import corruption_of
from kn_lens.tracing.metrics import METRICS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tracing import SAMPLES
from tracing import loop as textbook_loop

RELATIONS = ("P36", "P1376", "P17", "P30", "P37", "P38", "P101", "P103", "P106", "P19")
SIZES = {"tiny-causal": (192, 16, 3), "smollm2-135m": (32, 4, 1)}
"""By model: prompts of the throughput, prompts of a piece, prompts of the textbook loop."""
WORKERS = ((1, 1), (1, 2), (2, 1))
"""Workers × threads of each."""
POLL = 0.02


@dataclass
class Watched:
    """What was seen of a command: its time, the largest memory (bytes) by role, when which piece was done."""

    seconds: float = 0.0
    memory: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    done: list[float] = field(default_factory=list)


def known_prompts(model: Any, count: int) -> list[kn.Prompt]:
    """Prompts of bundled facts that the model answers rightly, beginning again where they end."""
    found: list[kn.Prompt] = []
    for name in RELATIONS:
        batch = kn.load_relation(name).prompts(model, templates="training")
        found += [batch.prompts[index] for index in rightly_answered(model, batch)]
        if len(found) >= count:
            break
    return list(islice(cycle(found), count))


def write_run(folder: Path, model: str, prompts: list[kn.Prompt], **fields: Any) -> Path:
    """A file of prompts and a run file for them."""
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for prompt in prompts:
            row = {name: getattr(prompt, name) for name in ("prefix", "suffix", "target", "cue", "group")}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    run = folder / "run.yaml"
    described = {"model": model, "data": str(folder / "prompts.jsonl"), "device": "cpu", **fields}
    run.write_text(json.dumps(described, indent=1), encoding="utf-8")  # JSON is YAML too
    return run


def kn_lens(*arguments: str, folder: Path) -> Watched:
    """Run a command and watch it.

    Raises:
        RuntimeError: If it fails.
    """
    seen = Watched()
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, "-m", "kn_lens", *arguments]
        with subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT) as process:
            watched, roles = psutil.Process(process.pid), {process.pid: "coordinator"}
            while process.poll() is None:
                _look(watched, folder, roles, seen)
                time.sleep(POLL)
        seen.seconds = time.perf_counter() - begin
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"kn-lens {' '.join(arguments)}: {said.read().decode(errors='replace')[-2000:]}")
    return seen


def _look(process: psutil.Process, folder: Path, roles: dict[int, str], seen: Watched) -> None:
    """Look once at all processes of a command, and at the index of its parts."""
    try:
        for one in (process, *process.children(recursive=True)):
            try:
                if one.pid not in roles:
                    helper = any("resource_tracker" in word for word in one.cmdline())
                    planned = (folder / "manifest.json").exists()
                    roles[one.pid] = "" if helper else "worker" if planned else "planner"
                role = roles[one.pid]
                seen.memory[role] = max(seen.memory[role], one.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return
    index = folder / "parts" / "index.jsonl"
    if index.exists():
        now = time.perf_counter()
        seen.done += [now] * (index.read_bytes().count(b"\n") - len(seen.done))


def timed_loop(model: Any, prompts: list[kn.Prompt], sigma: float, threads: int) -> tuple[float, list[kn.CausalTrace]]:
    """Prompts a second, one after another by the public function, and the traces."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        begin = time.perf_counter()
        traces = [kn.causal_trace(model, [one], sigma=sigma, samples=SAMPLES, progress=False) for one in prompts]
        return len(prompts) / (time.perf_counter() - begin), traces
    finally:
        torch.set_num_threads(before)


def difference(found: kn.CausalTrace, expected: list[Any]) -> float:
    """The largest between effects of the run and of prompts one by one."""
    most = 0.0
    for index, one in enumerate(expected):
        for name in METRICS:
            theirs = one.effects[name][0] if isinstance(one, kn.CausalTrace) else one[name][..., 0]
            ours = found.effects[name][index, : len(theirs)]
            most = max(most, float((ours - theirs).abs().max()))
    return most


def throughput(name: str, count: int, shard: int, textbook: int) -> Table:
    """A run against loops."""
    model = kn.load_model(name, device="cpu")
    prompts = known_prompts(model, count)
    batch = kn.PromptBatch.from_prompts(model, prompts)
    options = {"samples": SAMPLES, "noise": 3.0, "sigma": None, "swaps": None, "seed": 0}
    sigma = corruption_of(model, batch, "noise", **options).sigma
    assert sigma is not None
    rates: dict[int, float] = {}
    rows: list[tuple[str, int, float, float, list[Any]]] = []
    for threads in (1, 2):
        some = prompts if threads == 1 else prompts[: max(1, count // 4)]
        rates[threads], found = timed_loop(model, some, sigma, threads)
        what = f"loop over kn.causal_trace, {threads} thread{'s' * (threads > 1)}"
        rows.append((what, len(some), len(some) / rates[threads], rates[threads], found))
    traces = rows[0][-1]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        begin = time.perf_counter()
        slow = [textbook_loop(model, batch.select([at]), traces[at], "resid") for at in range(textbook)]
        took = time.perf_counter() - begin
        what = f"textbook loop, {threads} thread{'s' * (threads > 1)}"
        rows.append((what, textbook, took, textbook / took, slow))
    title = f"{name}: causal traces (resid, {SAMPLES} draws), pieces of {shard}; torch {torch.__version__}"
    table = Table(title=title)
    for head in ("how", "prompts", "s, in all", "prompts/s, working", "ratio", "largest diff."):
        table.add_column(head, justify="left" if head == "how" else "right")
    result: Any = None
    for workers, threads in WORKERS:
        with tempfile.TemporaryDirectory() as made:
            folder, out = Path(made), Path(made) / "run"
            settings = {"samples": SAMPLES, "sigma": sigma}
            run = write_run(
                folder, name, prompts, method="causal_trace", settings=settings, shard=shard, threads=threads
            )
            seen = kn_lens("run", str(run), "--out", str(out), "--workers", str(workers), folder=out)
            result = kn.BatchRun(out).result()
            pieces = len(seen.done) - workers
            rate = pieces * shard / (seen.done[-1] - seen.done[workers - 1])
            what = f"kn-lens run, {workers} worker{'s' * (workers > 1)} × {threads} thread{'s' * (threads > 1)}"
            table.add_row(what, str(count), f"{seen.seconds:.1f}", f"{rate:.2f}", f"{rate / rates[1]:.2f}×", "")
    for what, number, seconds, rate, expected in rows:
        cells = (what, str(number), f"{seconds:.1f}", f"{rate:.2f}", f"{rate / rates[1]:.3g}×")
        table.add_row(*cells, f"{difference(result, expected):.1e}")
    return table


def memory(name: str, cases: list[tuple[str, int]]) -> Iterator[tuple[str, ...]]:
    """A row for each method and number of prompts."""
    model = kn.load_model(name, device="cpu")
    prompts = known_prompts(model, max(count for _, count in cases))
    del model
    for method, count in cases:
        with tempfile.TemporaryDirectory() as made:
            folder, out = Path(made), Path(made) / "run"
            run = write_run(folder, name, prompts[:count], method=method)
            seen = kn_lens("run", str(run), "--out", str(out), "--workers", "2", folder=out)
            status = kn_lens("status", str(out), folder=out)
            results = kn_lens("results", str(out), "--csv", folder=out)
            peaks = [seen.memory[role] for role in ("planner", "coordinator", "worker")]
            peaks += [told.memory["coordinator"] for told in (status, results)]
            size = sum(path.stat().st_size for path in (out / "parts").iterdir())
            pieces = len(kn.BatchRun(out).store.tasks())
            cells = (f"{peak / 1e6:.0f}" for peak in peaks)
            yield (method, f"{count:,}", f"{pieces:,}", *cells, f"{size / 1e6:.1f}", f"{seen.seconds:.0f}")


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="tiny-causal", choices=SIZES, help="of the throughput")
    parser.add_argument("--long", action="store_true", help="memory of 20,000 prompts, and of traces")
    parser.add_argument("--only", choices=("throughput", "memory"))
    arguments = parser.parse_args()
    console = Console(width=150)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    console.print(f"{cores} cores, load {os.getloadavg()[0]:.1f} at the beginning")
    if arguments.only != "memory":
        console.print(throughput(arguments.model, *SIZES[arguments.model]))
    if arguments.only != "throughput":
        table = Table(title="tiny-causal, 2 workers, pieces of 16: largest resident set of each process, MB")
        heads = ("planner", "coordinator", "worker", "status", "results", "parts on disk, MB", "s")
        for head in ("method", "prompts", "pieces", *heads):
            table.add_column(head, justify="left" if head == "method" else "right")
        counts = (200, 20_000) if arguments.long else (200, 2_000)
        cases = [("max_activation", count) for count in counts]
        if arguments.long:
            cases += [("causal_trace", count) for count in (200, 2_000)]
        for row in memory("tiny-causal", cases):
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    main()
