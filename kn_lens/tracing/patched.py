"""Copies of a run in which single states are taken from another run: the engine of tracing and of patching.

A copy whose state at position p and layer l is replaced equals the run it was copied from at all layers before l and,
in a causal model, at all positions before p. It therefore joins the batch at layer l, computes positions from p on, and
reads earlier keys and values from the run itself; copies of many layers and of many runs share one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.forward import (
    DEFAULT_MEMORY_BUDGET,
    CleanRun,
    Columns,
    Hook,
    Measure,
    bytes_per_row,
    run_in_chunks,
)
from kn_lens.models.stepping import can_step
from kn_lens.streams import Stream


@dataclass(frozen=True)
class Cell:
    """What one copy takes from the other run.

    Attributes:
        layers: The layers whose states are replaced together.
        unit: Head or neuron, for streams that have units.
    """

    layers: range
    unit: int | None = None


@torch.no_grad()
def patched(
    model: Any,
    stream: Stream,
    base: CleanRun,
    source: CleanRun,
    cells: Sequence[Cell],
    position: int | None,
    measure: Measure,
    *,
    severed: Stream | None = None,
    memory_budget: float = DEFAULT_MEMORY_BUDGET,
) -> Float[Tensor, "row cell metric"]:
    """Measure copies of ``base``, one per cell, with states from ``source``.

    Args:
        model: The model.
        stream: What is patched.
        base: The run copied; made with ``keep_prefix``.
        source: A run of as many rows of the same length, which kept the stream's activations.
        cells: In ascending order of their first layer.
        position: Where states are replaced, or None for all positions from ``base.start`` on.
        measure: Of each copy's logits; owners are rows of ``base``.
        severed: A stream that is held, at this position and in all layers after the patched ones, at its value in
            ``base`` (which kept it): Meng et al.'s severed paths.
        memory_budget: Bytes that the copies of one pass may take.
    """
    if position is not None:
        base, source = base.begin_at(position), source.begin_at(position)
    rows, last = len(base.tokens), model.cfg.n_layers
    owners = torch.arange(rows, device=base.logits.device)
    untouched = measure(base.logits, owners)
    found = untouched[:, None].expand(-1, len(cells), -1).clone()
    at_answer = position is None or position == base.target
    replaced = [at_answer and stream.hook(cell.layers[-1]) is None for cell in cells]  # nothing else reaches the logits
    if any(replaced):
        found[:, replaced] = measure(source.logits, owners)[:, None]
    # What the last block computes away from the answer goes nowhere; what its attention reads there does.
    reach = last if at_answer or stream.name in ("resid", "k", "v") else last - 1
    running = [
        index for index, cell in enumerate(cells) if not replaced[index] and stream.joins_at(cell.layers.start) < reach
    ]
    length = base.tokens.shape[1]
    row = bytes_per_row(model, length - base.start, length, gradients=False) * rows

    def run(chunk: Sequence[int]) -> None:
        chosen = [cells[index] for index in chunk]
        joins = [0] * last
        for cell in chosen:
            joins[stream.joins_at(cell.layers.start)] += 1
        hooks = _patches(model, stream, base, source, chosen, position)
        hooks += _severing(model, severed, base, chosen, position)
        found[:, list(chunk)] = Columns(model, base, joins, hooks).measure(measure)

    run_in_chunks(running, max(1, int(memory_budget / row)), run, what="patched states")
    return found


def _patches(
    model: Any, stream: Stream, base: CleanRun, source: CleanRun, cells: Sequence[Cell], position: int | None
) -> list[Hook]:
    """One hook per layer: the cells that patch it take their state from ``source``."""
    hooks: list[Hook] = []
    for layer in sorted({layer for cell in cells for layer in cell.layers}):
        name = stream.hook(layer)
        if name is None:
            continue
        columns = [column for column, cell in enumerate(cells) if layer in cell.layers]
        units = [cells[column].unit for column in columns]
        values = stream.by_position(source.activations[name], len(source.tokens))[:, 0]  # row, position, …
        local = None if position is None else position - base.start
        write = _write_all(columns, units, values) if local is None else _write_one(columns, units, values, local)
        hooks.append((name, _hook(stream, len(base.tokens), write, copy=not can_step(model))))
    return hooks


def _severing(
    model: Any, severed: Stream | None, base: CleanRun, cells: Sequence[Cell], position: int | None
) -> list[Hook]:
    """One hook per layer: the cells patched below it are held at their value in ``base``."""
    hooks: list[Hook] = []
    if severed is None or position is None:
        return hooks
    for layer in range(severed.n_layers):
        columns = [column for column, cell in enumerate(cells) if cell.layers.stop <= layer]
        name = severed.hook(layer)
        if columns and name is not None:
            local = position - base.start
            write = _write_one(columns, [None] * len(columns), base.activations[name], local)
            hooks.append((name, _hook(severed, len(base.tokens), write, copy=not can_step(model))))
    return hooks


def _hook(stream: Stream, rows: int, write: Callable[[Tensor], None], *, copy: bool) -> Callable[..., Tensor]:
    def hook(activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone() if copy else activation  # a stepped block's activations are its own
        write(stream.by_position(changed, rows))
        return changed

    return hook


def _write_one(columns: list[int], units: list[Any], values: Tensor, local: int) -> Callable[[Tensor], None]:
    """Writes one position of some columns: of all units, or of one unit each."""

    def write(view: Tensor) -> None:
        if units[0] is None:
            view[:, columns, local] = values[:, None, local].to(view.dtype)
        else:
            view[:, columns, local, units] = values[:, local, units].to(view.dtype)

    return write


def _write_all(columns: list[int], units: list[Any], values: Tensor) -> Callable[[Tensor], None]:
    """Writes all positions of some columns."""

    def write(view: Tensor) -> None:
        if units[0] is None:
            view[:, columns] = values[:, None].to(view.dtype)
        else:
            for column, unit in zip(columns, units, strict=True):
                view[:, column, :, unit] = values[:, :, unit].to(view.dtype)

    return write
