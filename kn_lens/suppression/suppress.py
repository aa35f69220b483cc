"""Switch units off (or up) and see what the model answers, beside random units of the same layers.

Suppress: unit × 0 at the chosen positions, or set to its mean, or to its value in another prompt. Enhance: unit × 2.
Any factor. Hooks do it: no weight changes, and the model comes back as it was whatever happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kn_lens.errors import PromptError, SettingsError, UnitsError
from kn_lens.forward import DEFAULT_MEMORY_BUDGET
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.positions import Positions
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.tokens import TokenResolver, UnusablePrompt
from kn_lens.results import provenance
from kn_lens.sites import Site, Unit, site_of
from kn_lens.suppression.controls import with_controls
from kn_lens.suppression.edited_columns import FIRST_PROBE, FOIL, TARGET, TOP, EditedColumns, UnitColumns
from kn_lens.suppression.effect import UnitEffect
from kn_lens.suppression.replacement import Ablation, check_ablation, group_names

Units = Sequence[Unit] | Mapping[str, Sequence[Unit]]
"""The same units for all prompts, or the units of each group by its name."""

_MAX_PROBES = 12


def suppress(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    units: Units,
    *,
    factor: float = 0.0,
    ablation: Ablation = "zero",
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
        ablation: ``"zero"`` (default) multiplies by the factor; ``"mean"`` sets a unit (a head: its d_head values) to
            its mean over these prompts, ``"resample"`` to its value in another of them, drawn with the seed:
            :data:`kn_lens.suppression.replacement.Ablation`.
        site: Where the units live: ``"mlp"`` (default), ``"mlp_pre"``, ``"head"``.
        positions: Where they are scaled: ``"target"`` (default), ``"cue_last"``, ``"cue"``, ``"all"``.
        probes: Words whose probability is compared, each one token; by default the most frequent
            targets and foils, at most 12.
        controls: Draws of as many random units of the same layers (other neurons; any heads), 100 by default.
        seed: Of the draws.
        memory_budget: Bytes that the rows of one pass may take.
        progress: Show a progress bar.

    Returns:
        Probabilities, answers and controls per prompt; tables and tests are methods of it.

    Raises:
        UnitsError: If a unit is not in the model, or there are none.
        SettingsError: For an unknown site, position or ablation, a factor that is no number or has no use, a probe of
            several tokens, or a single prompt where values are taken from the others.
        PromptError: If a target is of several tokens.
    """
    where = site_of(model, site)
    batch = as_batch(model, prompts)
    check_single_tokens(batch, "scaling units")
    by_prompt = _units_by_prompt(batch, units)
    where.check([unit for found in by_prompt for unit in found], model)
    if not any(by_prompt):
        raise UnitsError("no units to scale; give [(layer, index), …], or units for the groups of these prompts")
    if factor != factor:
        raise SettingsError("factor is NaN; give a number: 0 suppresses, 2 doubles")
    check_ablation(ablation, factor)
    if controls < 0:
        raise SettingsError(f"controls is {controls}; give 0 or more draws")
    names, probe_ids = _probes(model, batch, probes)
    columns = _columns(batch, by_prompt, where, controls, seed)
    run = EditedColumns(
        model,
        where,
        batch,
        columns,
        factor=factor,
        positions=positions,
        ablation=ablation,
        seed=seed,
        probe_ids=probe_ids,
        memory_budget=memory_budget,
    )
    total = len(batch) * (1 if batch.rivals is None else 2)
    what = f"scale units × {factor:g}" if ablation == "zero" else f"{ablation} ablation"
    with progress_bar(total, f"{what} ({site})", "prompt", progress) as bar:
        measured = run(bar).answers
        rival = None if batch.rivals is None else run(bar, rivals=True).answers[..., TARGET]
    nan = torch.full_like(measured[..., TARGET], float("nan"))
    has_foil = (batch.foil_ids >= 0).cpu()[:, None]
    return UnitEffect(
        target=measured[..., TARGET],
        foil=torch.where(has_foil, measured[..., FOIL], nan),
        rival=nan if rival is None else rival,
        top=measured[..., TOP].long(),
        target_ids=batch.target_ids.cpu(),
        probe_probabilities=measured[:, :2, FIRST_PROBE:],
        probes=tuple(names),
        units=tuple(tuple(found) for found in by_prompt),
        site=where.name,
        factor=factor,
        prompts=batch.prompts,
        dropped=batch.dropped,
        drawn=torch.tensor([own.sets[1:] for own in columns], dtype=torch.long),
        settings={
            "site": site,
            "factor": factor,
            "ablation": ablation,
            "positions": positions,
            "controls": controls,
            "seed": seed,
            "starts_with_bos": batch.starts_with_bos,
        },
        provenance=provenance(model, batch),
    )


def check_single_tokens(batch: PromptBatch, what: str) -> None:
    """Refuse targets of several tokens.

    Raises:
        PromptError: Naming the first, and what compares single ones.
    """
    for entry in batch.resolved:
        if len(entry.target_ids) > 1:
            raise PromptError(
                f"target {entry.prompt.target!r} of {entry.prompt.text!r} is {len(entry.target_ids)} tokens for "
                f"{batch.model_name}; {what} compares single tokens"
            )


def enhance(model: Any, prompts: PromptBatch | Prompt | Iterable[Prompt], units: Units, **options: Any) -> UnitEffect:
    """:func:`suppress` with ``factor=2.0``: units doubled."""
    return suppress(model, prompts, units, **{"factor": 2.0, **options})


def _columns(
    batch: PromptBatch, by_prompt: list[list[Unit]], site: Site, controls: int, seed: int
) -> list[UnitColumns]:
    """The units of each prompt and its control draws; prompts of a group share one object."""
    made: dict[str, UnitColumns] = {}
    columns = []
    for name, units in zip(group_names(batch), by_prompt, strict=True):
        if name not in made:
            made[name] = UnitColumns.of_units([*with_controls(units, site, controls, f"{seed}:{name}")], site)
        columns.append(made[name])
    return columns


def _units_by_prompt(batch: PromptBatch, units: Units) -> list[list[Unit]]:
    if not isinstance(units, Mapping):
        shared = [(int(layer), int(index)) for layer, index in units]
        return [shared] * len(batch)
    names = group_names(batch)
    if not set(units) & set(names):
        raise UnitsError(
            f"units are given for groups {sorted(units)[:3]} and the prompts have groups {sorted(set(names))[:3]}"
        )
    return [[(int(layer), int(index)) for layer, index in units.get(name, ())] for name in names]


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
