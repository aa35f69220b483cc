"""How many units must go before answers flip? (The ablation curve, beside random units of the same layers.)

Fixing 2 to 5 neurons in advance rules a distributed code out. Here the units of a group are ranked by their mean
attribution over prompts that were searched, and the top k of them are taken away from other prompts, for growing k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from kn_lens.attribution.scores import AttributionScores
from kn_lens.errors import SettingsError, UnitsError
from kn_lens.forward import DEFAULT_MEMORY_BUDGET
from kn_lens.localization.curve import AblationCurve
from kn_lens.models.hashing import weights_hash
from kn_lens.models.kind import model_name
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.positions import Positions
from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.results import provenance
from kn_lens.scoring import correct_answers
from kn_lens.sites import Site, site_of
from kn_lens.suppression.controls import nested_controls
from kn_lens.suppression.edited_columns import FOIL, TARGET, TOP, EditedColumns, Measured, UnitColumns
from kn_lens.suppression.effect import flipped_answers
from kn_lens.suppression.replacement import Ablation, check_ablation, group_names
from kn_lens.suppression.taken_away import check_writes
from kn_lens.tracing.answered import WRONG, keep_answered

_STEPS = (1.2, 2, 3, 5, 8)
_MOST_NEURONS = 2000

Flat = Int[np.ndarray, " unit"]
"""Units as flat indices, layer · n_units + index."""


def ablation_curve(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    scores: AttributionScores,
    *,
    ks: Sequence[int] | None = None,
    controls: int = 20,
    ablation: Ablation = "zero",
    seed: int = 0,
    positions: Positions | None = None,
    memory_budget: float = DEFAULT_MEMORY_BUDGET,
    progress: bool = True,
) -> AblationCurve:
    """Take the top k units of each prompt's group away, for growing k, and count the answers that flip.

    Args:
        model: A loaded model; it is left as it was.
        prompts: Prompts that were not searched, of groups that were. Those answered wrongly are counted and left out.
        scores: Attribution of the prompts that were searched. The units of a group are ranked by their mean score
            over its prompts; only scores above 0 count.
        ks: Numbers of units; by default 1, 2, 3, 5, 8, 12, 20, 30, 50, 80 … up to all (of neurons at most 2000).
        controls: Draws of as many random units of the same layers, at least 1; 20 by default.
        ablation: What units are set to, as in :func:`kn_lens.suppress`: ``"zero"`` (default), ``"mean"``,
            ``"resample"``.
        seed: Of the draws.
        positions: Where; by default as in the scores.
        memory_budget: Bytes that the rows of one pass may take.
        progress: Show a progress bar.

    Returns:
        The curve: flips, answers, p(target) and what is taken from the residual stream, by prompt and k.

    Raises:
        UnitsError: If no prompt is of a group that was searched, or the scores are of another model.
        SettingsError: For a setting out of its range, or a site whose units do not write to the residual stream.
        PromptError: If all prompts are answered wrongly, or a target is of several tokens.
    """
    site = site_of(model, scores.site)
    check_writes(site.name)
    check_ablation(ablation)
    _check_scores(model, scores, site)
    if controls < 1:
        raise SettingsError(f"controls is {controls}; give at least 1 draw: a curve means little without its control")
    where: Any = positions or scores.settings.get("positions", "target")
    ladder = _ladder(ks, site)
    batch = as_batch(model, prompts)
    batch = keep_answered(model, _of_searched_groups(batch, scores), "ablation curves")
    plans = {
        name: _plan(_ranked(scores.values[indices].mean(0)), ladder, site, controls, f"{seed}:{name}")
        for name, indices in scores.groups.items()
        if name in group_names(batch)
    }
    own = [plans[name] for name in group_names(batch)]
    run = EditedColumns(
        model,
        site,
        batch,
        [plan.columns for plan in own],
        factor=0.0,
        positions=where,
        ablation=ablation,
        seed=seed,
        probe_ids=batch.tokens.new_zeros(0),
        memory_budget=memory_budget,
        norms=True,
    )
    total = len(batch) * (1 if batch.rivals is None else 2)
    with progress_bar(total, f"ablation curve ({site.name})", "prompt", progress) as bar:
        found = run(bar)
        rival = None if batch.rivals is None else run(bar, rivals=True).answers[..., TARGET]
    return AblationCurve(
        ks=ladder,
        taken=torch.tensor([plan.taken for plan in own]),
        **_curves(batch, found, rival, own, controls),
        n_units=site.n_layers * site.n_units,
        site=site.name,
        ablation=ablation,
        answered_wrongly=sum(entry.reason == WRONG for entry in batch.dropped),
        prompts=batch.prompts,
        dropped=batch.dropped,
        settings={
            "site": site.name,
            "ks": list(ladder),
            "controls": controls,
            "ablation": ablation,
            "seed": seed,
            "positions": where,
            "searched": len(scores),
            "scores": {"method": scores.method, **scores.settings},
            "starts_with_bos": batch.starts_with_bos,
        },
        provenance=provenance(model, batch),
    )


@dataclass(frozen=True)
class _Plan:
    """What is taken from the prompts of one group.

    Attributes:
        columns: For each k the top units, then the draws. A k that adds no unit to the one before is left empty.
        taken: Units taken at each k.
        source: For each k, the first k that takes the same units.
    """

    columns: UnitColumns
    taken: list[int]
    source: list[int]


def _plan(ranked: Flat, ks: Sequence[int], site: Site, controls: int, seed: str) -> _Plan:
    taken = [min(k, len(ranked)) for k in ks]
    source = [taken.index(count) for count in taken]
    sets = [ranked[: taken[at] if source[at] == at else 0] for at in range(len(ks))]
    drawn = nested_controls(sets, site, controls, seed)
    columns = [units for own, draws in zip(sets, drawn, strict=True) for units in (own, *draws)]
    return _Plan(UnitColumns(columns, site), taken, source)


def _curves(
    batch: PromptBatch, found: Measured, rival: Tensor | None, plans: Sequence[_Plan], controls: int
) -> dict[str, Tensor]:
    """The fields of the curve that are measured, ``[prompt, k]`` and ``[prompt, k, draw]``."""
    target, foil, top = (found.answers[..., at] for at in (TARGET, FOIL, TOP))
    nan = torch.full_like(target, float("nan"))
    foil = torch.where((batch.foil_ids >= 0).cpu()[:, None], foil, nan)
    against = nan if rival is None else rival
    correct = correct_answers(top == batch.target_ids.cpu()[:, None], target, foil, against)
    flipped = flipped_answers(correct, top, foil, against)
    drawn = torch.tensor([plan.columns.sets for plan in plans])
    assert found.norm is not None
    assert found.stream is not None
    # Columns are k by k, the top units before their draws; a k that adds nothing has the values of its source.
    source = torch.tensor([plan.source for plan in plans])[:, :, None].expand(-1, -1, 1 + controls)
    by_k = {
        name: values.unflatten(1, (-1, 1 + controls)).gather(1, source)
        for name, values in (
            ("flipped", flipped[:, 1:]),
            ("correct", correct[:, 1:]),
            ("target", target[:, 1:]),
            ("norm", found.norm),
            ("drawn", drawn),
        )
    }
    drawn = by_k.pop("drawn")[..., 1:]
    return {
        "drawn": drawn,
        **{name: values[..., 0] for name, values in by_k.items()},
        **{f"control_{name}": values[..., 1:] for name, values in by_k.items()},
        "clean_target": target[:, 0],
        "stream": found.stream,
    }


def _ranked(mean: Tensor) -> Flat:
    """Units with a mean score above 0, the largest first."""
    flat = mean.flatten()
    order = flat.argsort(descending=True, stable=True)
    return order[flat[order] > 0].numpy()


def _ladder(ks: Sequence[int] | None, site: Site) -> tuple[int, ...]:
    every = site.n_layers * site.n_units
    if ks is not None:
        if not ks or min(ks) < 1:
            raise SettingsError(f"ks are {list(ks)}; give numbers of units, each at least 1")
        return tuple(sorted({min(int(k), every) for k in ks}))
    most = every if site.is_head else min(every, _MOST_NEURONS)
    rungs = {round(step * 10**power) for power in range(9) for step in _STEPS}
    return (*sorted(k for k in rungs if k < most), most)


def _check_scores(model: Any, scores: AttributionScores, site: Site) -> None:
    if scores.values.shape[1:] != (site.n_layers, site.n_units):
        layers, units = scores.values.shape[1:]
        raise UnitsError(
            f"the scores are of {layers} layers with {units} units, and this model has {site.n_layers} with "
            f"{site.n_units} at site {site.name!r}: attribute in this model first"
        )
    made = scores.provenance.get("weights_hash")
    if made is not None and made != weights_hash(model):
        raise UnitsError(
            f"the scores are of {scores.provenance.get('model', 'a model')} with other weights, or another "
            f"number type, than the {model_name(model)} given: attribute in this model first"
        )


def _of_searched_groups(batch: PromptBatch, scores: AttributionScores) -> PromptBatch:
    """The prompts whose group has scores; the others join ``dropped``."""
    names = group_names(batch)
    kept = [index for index, name in enumerate(names) if name in scores.groups]
    if not kept:
        raise UnitsError(
            f"scores are given for groups {sorted(scores.groups)[:3]} and the prompts have groups "
            f"{sorted(set(names))[:3]}"
        )
    if len(kept) == len(batch):
        return batch
    others = [batch.prompts[index] for index in range(len(batch)) if index not in set(kept)]
    missing = [
        Dropped(text=prompt.text, reason="its group was not searched", source=prompt.source) for prompt in others
    ]
    return replace(batch.select(kept), dropped=(*batch.dropped, *missing))
