"""Switch units off (or up) and see what the model answers, beside random units of the same layers.

Suppress: unit × 0 at the chosen positions. Enhance: unit × 2. Any factor. Hooks do it: no weight changes,
and the model comes back as it was whatever happens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.attribution.path import first_change
from kn_lens.editing.effect import UnitEffect
from kn_lens.errors import PromptError, SettingsError, UnitsError
from kn_lens.forward import DEFAULT_MEMORY_BUDGET, Columns, bytes_per_row, clean_run, run_in_chunks
from kn_lens.interventions import scale_columns
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.positions import Positions, alike
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.tokens import TokenResolver, UnusablePrompt
from kn_lens.results import provenance
from kn_lens.sites import Site, Unit, site_of

Units = Sequence[Unit] | Mapping[str, Sequence[Unit]]
"""The same units for all prompts, or the units of each group by its name."""

_MAX_PROBES = 12
_TARGET, _FOIL, _TOP, _FIRST_PROBE = range(4)  # columns of what is measured


def suppress(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    units: Units,
    *,
    factor: float = 0.0,
    site: str = "mlp",
    positions: Positions = "target",
    probes: Sequence[str] | None = None,
    controls: int = 100,
    seed: int = 0,
    memory_budget: float = DEFAULT_MEMORY_BUDGET,
    progress: bool = True,
) -> UnitEffect:
    """Scale units and measure the answers before and after, with a random control.

    Args:
        model: A loaded model; it is left as it was.
        prompts: Prompts, or a batch from ``.prompts(model)``.
        units: ``[(layer, index), …]``, the same for all prompts; or a mapping from a group's name to its
            units (prompts of a group that has none are left alone).
        factor: 0 suppresses (default), 2 doubles.
        site: Where the units live: ``"mlp"`` (default), ``"mlp_pre"``, ``"head"``.
        positions: Where they are scaled: ``"target"`` (default), ``"cue_last"``, ``"cue"``, ``"all"``.
        probes: Words whose probability is compared, each one token; by default the most frequent
            targets and foils, at most 12.
        controls: Draws of as many random other units of the same layers, 100 by default.
        seed: Of the draws.
        memory_budget: Bytes that the rows of one pass may take.
        progress: Show a progress bar.

    Returns:
        Probabilities, answers and controls per prompt; tables and tests are methods of it.

    Raises:
        UnitsError: If a unit is not in the model, or there are none.
        SettingsError: For an unknown site or position, a factor that is no number, or a probe of several tokens.
        PromptError: If a target is of several tokens.
    """
    where = site_of(model, site)
    batch = as_batch(model, prompts)
    for entry in batch.resolved:
        if len(entry.target_ids) > 1:
            raise PromptError(
                f"target {entry.prompt.target!r} of {entry.prompt.text!r} is {len(entry.target_ids)} tokens for "
                f"{batch.model_name}; scaling units compares single tokens"
            )
    by_prompt = _units_by_prompt(batch, units)
    where.check([unit for found in by_prompt for unit in found], model)
    if not any(by_prompt):
        raise UnitsError("no units to scale; give [(layer, index), …], or units for the groups of these prompts")
    if factor != factor:
        raise SettingsError("factor is NaN; give a number: 0 suppresses, 2 doubles")
    if controls < 0:
        raise SettingsError(f"controls is {controls}; give 0 or more draws")
    names, probe_ids = _probes(model, batch, probes)
    columns = [
        [*_with_controls(found, where, controls, f"{seed}:{group}")]
        for found, group in zip(by_prompt, _group_names(batch), strict=True)
    ]
    run = _Runner(model, where, columns, factor, positions, probe_ids, memory_budget)
    total = len(batch) * (1 if batch.rivals is None else 2)
    with progress_bar(total, f"scale units × {factor:g} ({site})", "prompt", progress) as bar:
        measured = run(batch, bar)
        rival = None if batch.rivals is None else run(batch.rivals, bar)[..., _TARGET]
    nan = torch.full_like(measured[..., _TARGET], float("nan"))
    has_foil = (batch.foil_ids >= 0).cpu()[:, None]
    return UnitEffect(
        target=measured[..., _TARGET],
        foil=torch.where(has_foil, measured[..., _FOIL], nan),
        rival=nan if rival is None else rival,
        top=measured[..., _TOP].long(),
        target_ids=batch.target_ids.cpu(),
        probe_probabilities=measured[:, :2, _FIRST_PROBE:],
        probes=tuple(names),
        units=tuple(tuple(found) for found in by_prompt),
        site=where.name,
        factor=factor,
        prompts=batch.prompts,
        dropped=batch.dropped,
        settings={
            "site": site,
            "factor": factor,
            "positions": positions,
            "controls": controls,
            "seed": seed,
            "starts_with_bos": batch.starts_with_bos,
        },
        provenance=provenance(model, batch),
    )


def enhance(model: Any, prompts: PromptBatch | Prompt | Iterable[Prompt], units: Units, **options: Any) -> UnitEffect:
    """:func:`suppress` with ``factor=2.0``: units doubled."""
    return suppress(model, prompts, units, **{"factor": 2.0, **options})


class _Runner:
    """Runs prompts clean, edited, and under each control draw."""

    def __init__(
        self,
        model: Any,
        site: Site,
        columns: list[list[list[Unit]]],
        factor: float,
        positions: Positions,
        probe_ids: Tensor,
        memory_budget: float,
    ) -> None:
        self.model, self.site, self.columns, self.factor = model, site, columns, factor
        self.positions, self.probe_ids, self.memory_budget = positions, probe_ids, memory_budget

    @torch.no_grad()
    def __call__(self, batch: PromptBatch, bar: Any) -> Float[Tensor, "prompt column measure"]:
        """Columns: clean, edited, controls. Measures: target, foil, top token, then the probes."""
        count = len(self.columns[0])
        found = torch.zeros(len(batch), 1 + count, _FIRST_PROBE + len(self.probe_ids))
        for indices, unit_positions in alike(batch, self.positions):
            length = len(batch.resolved[indices[0]].ids)
            start = first_change(batch, unit_positions)
            row = bytes_per_row(self.model, length - start, length, gradients=False)
            row += 4.0 * self.site.n_units * max(len({layer for layer, _ in units[0]}) for units in self.columns)

            def run(chunk: Sequence[int], unit_positions=unit_positions, start=start) -> None:
                found[list(chunk)] = self._chunk(batch, list(chunk), unit_positions, start).float().cpu()
                bar.update(len(chunk))

            run_in_chunks(indices, max(1, int(self.memory_budget / (row * count))), run, what="prompts")
        return found

    def _chunk(
        self, batch: PromptBatch, chunk: list[int], unit_positions: tuple[int, ...], start: int
    ) -> Float[Tensor, "prompt column measure"]:
        entry = batch.resolved[chunk[0]]
        tokens = batch.tokens[chunk, : len(entry.ids)]
        clean = clean_run(self.model, tokens, target=entry.target_position, start=start)
        targets, foils = batch.target_ids[chunk], batch.foil_ids[chunk].clamp_min(0)

        def measure(logits: Tensor, owners: Tensor) -> Tensor:
            probability = logits.float().softmax(-1)  # in half precision a token's id would be rounded below
            pair = torch.stack([targets[owners], foils[owners]], 1)
            top = probability.argmax(-1, keepdim=True)
            return torch.cat([probability.gather(1, pair), top, probability[:, self.probe_ids]], dim=1)

        before = measure(clean.logits, torch.arange(len(chunk), device=clean.logits.device))[:, None]
        local = [position - clean.start for position in unit_positions]
        layers, hooks = self._hooks(chunk, local)
        if not hooks:
            return before.expand(-1, 1 + len(self.columns[chunk[0]]), -1)
        joins = [0] * self.site.n_layers
        joins[min(layers)] = len(self.columns[chunk[0]])
        rows = Columns(self.model, clean, joins, hooks).measure(measure)
        left_alone = [slot for slot, index in enumerate(chunk) if not self.columns[index][0]]
        rows[left_alone] = before[left_alone]  # exactly as before, not to within rounding
        return torch.cat([before, rows], dim=1)

    def _hooks(self, chunk: list[int], local: list[int]) -> tuple[list[int], list]:
        """One hook per layer that holds a scaled unit of any column of these prompts."""
        factors: dict[int, Tensor] = {}
        if self.factor == 1:
            return [], []
        shape = (len(chunk), len(self.columns[chunk[0]]), self.site.n_units)
        for slot, index in enumerate(chunk):
            for column, units in enumerate(self.columns[index]):
                for layer, unit in units:
                    if layer not in factors:  # a large tensor: made once
                        factors[layer] = torch.ones(shape)
                    factors[layer][slot, column, unit] = self.factor
        hooks = [(self.site.hook(layer), scale_columns(factor, local)) for layer, factor in factors.items()]
        return list(factors), hooks


def _group_names(batch: PromptBatch) -> list[str]:
    return [prompt.group or prompt.target for prompt in batch.prompts]


def _units_by_prompt(batch: PromptBatch, units: Units) -> list[list[Unit]]:
    if not isinstance(units, Mapping):
        shared = [(int(layer), int(index)) for layer, index in units]
        return [shared] * len(batch)
    names = _group_names(batch)
    if not set(units) & set(names):
        raise UnitsError(
            f"units are given for groups {sorted(units)[:3]} and the prompts have groups {sorted(set(names))[:3]}"
        )
    return [[(int(layer), int(index)) for layer, index in units.get(name, ())] for name in names]


def _with_controls(units: list[Unit], site: Site, controls: int, seed: str) -> Iterable[list[Unit]]:
    """The units, then ``controls`` draws of as many others from the same layers."""
    yield units
    generator = random.Random(seed)
    for _ in range(controls):
        drawn: list[Unit] = []
        for layer in sorted({layer for layer, _ in units}):
            own = {index for at, index in units if at == layer}
            others = [index for index in range(site.n_units) if index not in own]
            drawn += [(layer, index) for index in generator.sample(others, min(len(own), len(others)))]
        yield drawn


def _probes(model: Any, batch: PromptBatch, probes: Sequence[str] | None) -> tuple[list[str], Tensor]:
    device = batch.tokens.device
    if probes is not None:
        resolver = TokenResolver(model, batch.prepend_bos)
        try:
            return list(probes), torch.tensor([resolver.single_token(word) for word in probes], device=device)
        except UnusablePrompt as error:
            raise SettingsError(f"probe {error}") from None
    counts: dict[int, int] = {}
    for token in [*batch.target_ids.tolist(), *batch.foil_ids[batch.foil_ids >= 0].tolist()]:
        counts[token] = counts.get(token, 0) + 1
    chosen = sorted(counts, key=lambda token: -counts[token])[:_MAX_PROBES]
    return [batch.decode(token) for token in chosen], torch.tensor(chosen, device=device)
