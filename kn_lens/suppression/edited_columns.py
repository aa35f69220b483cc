"""Prompts answered clean and with units edited: each edit is a column, and all columns of a prompt share a pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kn_lens.attribution.path import first_change
from kn_lens.forward import Columns, Hook, bytes_per_row, clean_run, run_in_chunks
from kn_lens.interventions import scale_columns
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.positions import Positions, alike
from kn_lens.sites import Site, Unit
from kn_lens.suppression.replacement import Replacement, check_ablation, replace_columns
from kn_lens.suppression.taken_away import last_stream_hook, norm_taken

TARGET, FOIL, TOP, FIRST_PROBE = range(4)
"""What is measured of each column."""


class UnitColumns:
    """The units that each column of a prompt edits.

    Args:
        columns: For each column, its units as flat indices, layer · n_units + index.
        site: Where the units live.
    """

    def __init__(self, columns: Sequence[Int[np.ndarray, " unit"]], site: Site) -> None:
        self.count, self.n_units = len(columns), site.n_units
        sizes = [len(units) for units in columns]
        columns = [np.asarray(units, dtype=np.int64) for units in columns]
        flat = np.concatenate(columns)
        seen: dict[bytes, int] = {}
        self.sets = [seen.setdefault(np.sort(units).tobytes(), at) for at, units in enumerate(columns)]
        """For each column, the first one of the same units."""
        column = np.repeat(np.arange(self.count), sizes)
        layer, index = flat // site.n_units, flat % site.n_units
        self._entries = {
            int(at): (torch.from_numpy(column[layer == at]), torch.from_numpy(index[layer == at]))
            for at in np.unique(layer)
        }
        self.first = torch.full((self.count,), site.n_layers)
        """The lowest layer that a column edits; the number of layers for a column without units."""
        for at in sorted(self._entries, reverse=True):
            self.first[self._entries[at][0]] = at

    @classmethod
    def of_units(cls, columns: Sequence[Sequence[Unit]], site: Site) -> UnitColumns:
        """From units as ``(layer, index)``."""
        flat = [np.array([layer * site.n_units + index for layer, index in units], dtype=np.int64) for units in columns]
        return cls(flat, site)

    @property
    def layers(self) -> list[int]:
        """The layers that hold units of any column."""
        return list(self._entries)

    def mask(self, layer: int) -> Bool[Tensor, "column unit"]:
        """Which units of a layer each column edits."""
        mask = torch.zeros(self.count, self.n_units, dtype=torch.bool)
        if layer in self._entries:
            mask[self._entries[layer]] = True
        return mask


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Answers by column, and what was taken from the residual stream.

    Attributes:
        answers: Target, foil, top token, then probes; column 0 is the clean run, the edits follow.
        norm: Norm of what each edit takes away; None unless asked for.
        stream: Norm of the clean run's last residual stream at the target; None likewise.
    """

    answers: Float[Tensor, "prompt column measure"]
    norm: Float[Tensor, "prompt column"] | None
    stream: Float[Tensor, " prompt"] | None


class EditedColumns:
    """Runs prompts clean, and with the units of each column edited.

    Args:
        model: The model.
        site: Where the units live.
        batch: The prompts.
        columns: The edits of each prompt, as many of each.
        factor: What units are multiplied by.
        positions: Where.
        ablation: ``"zero"`` multiplies; others set units to a value: :data:`kn_lens.suppression.replacement.Ablation`.
        seed: Of the draws of ``ablation="resample"``.
        probe_ids: Tokens whose probability is measured too.
        memory_budget: Bytes that the rows of one pass may take.
        norms: Whether to measure what is taken from the residual stream.
    """

    def __init__(
        self,
        model: Any,
        site: Site,
        batch: PromptBatch,
        columns: Sequence[UnitColumns],
        *,
        factor: float,
        positions: Positions,
        ablation: str,
        seed: int,
        probe_ids: Int[Tensor, " probe"],
        memory_budget: float,
        norms: bool = False,
    ) -> None:
        check_ablation(ablation, factor)
        self.model, self.site, self.batch, self.columns, self.factor = model, site, batch, columns, factor
        self.positions, self.probe_ids, self.memory_budget, self.norms = positions, probe_ids, memory_budget, norms
        self.layers = sorted({layer for entry in {id(own): own for own in columns}.values() for layer in entry.layers})
        self.replacement = (
            None
            if ablation == "zero"
            else Replacement(model, batch, site, self.layers, positions, ablation, seed, memory_budget)
        )

    @torch.no_grad()
    def __call__(self, bar: Any, *, rivals: bool = False) -> Measured:
        """Answers of all prompts, or of their rivals (the other prefixes of two-prefix pairs)."""
        batch = self.batch
        if rivals:
            assert self.batch.rivals is not None
            batch = self.batch.rivals
        count = self.columns[0].count
        answers = torch.zeros(len(batch), 1 + count, FIRST_PROBE + len(self.probe_ids))
        norm, stream = torch.zeros(len(batch), count), torch.zeros(len(batch))
        for indices, unit_positions in alike(batch, self.positions):
            length = len(batch.resolved[indices[0]].ids)
            start = first_change(batch, unit_positions)
            row = bytes_per_row(self.model, length - start, length, gradients=False) + 5.0 * self.site.n_units
            fitting = max(1, int(self.memory_budget / row))

            def run(chunk: Sequence[int], unit_positions=unit_positions, start=start, fitting=fitting) -> None:
                rows = list(chunk)
                found = _Chunk(self, batch, rows, unit_positions, start).run(fitting)
                answers[rows] = found.answers.float().cpu()
                if found.norm is not None and found.stream is not None:
                    norm[rows], stream[rows] = found.norm.float().cpu(), found.stream.float().cpu()
                bar.update(len(rows))

            run_in_chunks(indices, max(1, fitting // count), run, what="prompts")
        return Measured(answers=answers, norm=norm if self.norms else None, stream=stream if self.norms else None)


class _Chunk:
    """Some alike prompts, and all their columns."""

    def __init__(
        self, runner: EditedColumns, batch: PromptBatch, rows: list[int], unit_positions: tuple[int, ...], start: int
    ) -> None:
        self.runner, self.rows = runner, rows
        entry = batch.resolved[rows[0]]
        site, model = runner.site, runner.model
        keep = [site.hook(layer) for layer in runner.layers] + [last_stream_hook(model)] if runner.norms else []
        tokens = batch.tokens[rows, : len(entry.ids)]
        self.clean = clean_run(model, tokens, target=entry.target_position, start=start, keep=keep)
        self.local = [position - self.clean.start for position in unit_positions]
        self.targets, self.foils = batch.target_ids[rows], batch.foil_ids[rows].clamp_min(0)
        self.own = [runner.columns[row] for row in rows]
        self.set_to: Mapping[int, Tensor] = {}
        if runner.replacement is not None:
            self.set_to = runner.replacement.values(rows, len(unit_positions))

    def run(self, fitting: int) -> Measured:
        """Measure all columns, ``fitting`` rows at a time."""
        count, prompts = self.own[0].count, len(self.rows)
        before = self._measure(self.clean.logits, torch.arange(prompts, device=self.clean.logits.device))[:, None]
        answers = before.repeat(1, 1 + count, 1)
        norm = before.new_zeros(prompts, count) if self.runner.norms else None
        first = torch.stack([own.first for own in self.own]).amin(0)
        order = first.argsort(stable=True)
        edited = order[first[order] < self.runner.site.n_layers].tolist()
        if self.runner.factor == 1 or not edited:  # exactly as before, not to within rounding
            return Measured(answers=answers, norm=norm, stream=self._stream_norm())

        def run(block: Sequence[int]) -> None:
            columns = list(block)
            joins = torch.bincount(first[columns], minlength=self.runner.site.n_layers).tolist()
            hooks = [self._hook(layer, columns) for layer in self.runner.layers]
            rows = Columns(self.runner.model, self.clean, joins, hooks).measure(self._measure)
            for slot, own in enumerate(self.own):
                left_alone = (own.first[columns] == self.runner.site.n_layers).nonzero()[:, 0]
                rows[slot, left_alone.to(rows.device)] = before[slot]
            answers[:, [1 + column for column in columns]] = rows
            if norm is not None:
                norm[:, columns] = self._norm(columns).to(norm)

        size = max(1, fitting // prompts)
        if prompts > 1:  # out of memory: the caller halves the prompts
            for at in range(0, len(edited), size):
                run(edited[at : at + size])
        else:
            run_in_chunks(edited, size, run, what="columns of a prompt")
        return Measured(answers=answers, norm=norm, stream=self._stream_norm())

    def _measure(self, logits: Tensor, owners: Tensor) -> Tensor:
        probability = logits.float().softmax(-1)  # in half precision a token's id would be rounded below
        pair = torch.stack([self.targets[owners], self.foils[owners]], 1)
        top = probability.argmax(-1, keepdim=True)
        return torch.cat([probability.gather(1, pair), top, probability[:, self.runner.probe_ids]], dim=1)

    def _mask(self, layer: int, columns: list[int]) -> Bool[Tensor, "prompt column unit"]:
        made = {id(own): own.mask(layer)[columns] for own in {id(own): own for own in self.own}.values()}
        return torch.stack([made[id(own)] for own in self.own]).to(self.clean.logits.device)

    def _hook(self, layer: int, columns: list[int]) -> Hook:
        """The edit of one layer; its mask is made when the layer is reached, and holds the columns joined by then."""

        def edit(activation: Tensor, hook: Any) -> Tensor:
            mask = self._mask(layer, columns)[:, : activation.shape[0] // len(self.rows)]
            change: Callable[..., Tensor]
            if layer in self.set_to:
                change = replace_columns(mask, self.set_to[layer], self.local)
            else:
                factors = torch.where(mask, float(self.runner.factor), 1.0)
                change = scale_columns(factors, self.local)
            return change(activation, hook)

        return self.runner.site.hook(layer), edit

    def _norm(self, columns: list[int]) -> Float[Tensor, "prompt column"]:
        site = self.runner.site
        changes, masks = {}, {}
        for layer in self.runner.layers:
            value = self.clean.activations[site.hook(layer)][:, self.local]
            after = self.set_to[layer].to(value) if layer in self.set_to else value * self.runner.factor
            changes[layer], masks[layer] = after - value, lambda layer=layer: self._mask(layer, columns)
        return norm_taken(self.runner.model, site, changes, masks)

    def _stream_norm(self) -> Float[Tensor, " prompt"] | None:
        if not self.runner.norms:
            return None
        stream = self.clean.activations[last_stream_hook(self.runner.model)]
        return stream[:, self.clean.target - self.clean.start].norm(dim=-1)
