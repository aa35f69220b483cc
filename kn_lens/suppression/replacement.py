"""What a unit is set to when it is taken away: 0, its mean, or its value in another prompt.

Zero ablation asks what an answer loses without the unit's output; mean ablation, what it loses without what the
unit says of this prompt in particular; resample ablation sets the unit to a value that the model itself makes, and
so stays among the states that it was trained on (Zhang and Nanda 2023). A head's value is its d_head weighted values.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kn_lens.errors import SettingsError, near_matches
from kn_lens.forward import bytes_per_row, run_in_chunks
from kn_lens.interventions import columns_of
from kn_lens.models.stepping import target_logits
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.positions import positions_of
from kn_lens.sites import Site
from kn_lens.tracing.answered import WRONG

log = logging.getLogger(__name__)

Ablation = Literal["zero", "mean", "resample"]
"""``zero``: the unit's value times the factor, 0. ``mean``: its mean over the chosen positions of all prompts of the
batch. ``resample``: its value in another prompt of the batch, of another group where there is one; at the chosen
position where that is a single one, else at one of the other prompt's chosen positions, drawn for each."""


def check_ablation(ablation: str, factor: float = 0.0) -> None:
    """Refuse an ablation that there is not, or that has no use for the factor.

    Raises:
        SettingsError: With what would be right.
    """
    known = get_args(Ablation)
    if ablation not in known:
        raise SettingsError(f"no ablation {ablation!r}.{near_matches(ablation, known)} Ablations: {', '.join(known)}")
    if ablation != "zero" and factor != 0:
        raise SettingsError(
            f"ablation={ablation!r} sets units to a value and has no use for factor={factor:g}; leave the factor at 0, "
            f"or take ablation='zero' to multiply by it"
        )


def replace_columns(
    mask: Bool[Tensor, "prompt column unit"],
    values: Float[Tensor, "prompt position unit ..."],
    positions: Sequence[int],
) -> Callable[..., Tensor]:
    """A hook that sets the units in ``mask`` to ``values``, per prompt and column.

    Args:
        mask: Which units of which column; columns that have not joined yet come last and are left out.
        values: What they are set to, per prompt and chosen position (1 where all are alike).
        positions: Chosen positions within the span.
    """

    def hook(activation: Tensor, hook: Any) -> Tensor:
        changed = activation.clone()
        view = columns_of(changed, mask.shape[0])
        chosen = mask[:, : view.shape[1], None]
        chosen = chosen.reshape(*chosen.shape, *[1] * (view.dim() - chosen.dim()))
        view[:, :, list(positions)] = torch.where(chosen, values[:, None].to(view), view[:, :, list(positions)])
        return changed

    return hook


class Replacement:
    """The values that units are set to, from clean runs of a batch.

    Args:
        model: The model.
        batch: The prompts whose values are averaged or drawn from.
        site: Where the units live.
        layers: The layers that hold units to be replaced.
        positions: The chosen positions, by name.
        ablation: ``"mean"`` or ``"resample"``.
        seed: Of the draws.
        memory_budget: Bytes that the rows of one pass may take.

    Raises:
        SettingsError: If the batch has a single prompt: there is nothing to average over or to draw from.

    Prompts of one group only are taken with a warning: their values come from prompts with the same answer.
    """

    def __init__(
        self,
        model: Any,
        batch: PromptBatch,
        site: Site,
        layers: Sequence[int],
        positions: str,
        ablation: str,
        seed: int,
        memory_budget: float,
    ) -> None:
        if len(batch) < 2:
            wrong = sum(entry.reason == WRONG for entry in batch.dropped)
            left = "there is a single one"
            if wrong:
                left = f"of {1 + wrong} a single one is left ({wrong} answered wrongly)"
            raise SettingsError(
                f"ablation={ablation!r} takes values from the other prompts, and {left}: give more prompts, or take "
                f"ablation='zero'"
            )
        if len(batch.groups) < 2:
            log.warning(
                "ablation=%r: all %d prompts are of the group %r, so units are set to values of prompts with the same "
                "answer and may still say it; prompts of several groups tell more",
                ablation,
                len(batch),
                next(iter(batch.groups)),
            )
        self.model, self.batch, self.site, self.layers, self.seed = model, batch, site, layers, seed
        self.positions = [positions_of(entry, positions) for entry in batch.resolved]
        row = bytes_per_row(model, batch.tokens.shape[1], batch.tokens.shape[1], gradients=False)
        # Beside what a pass takes, the recorded values of all layers are held until they are read.
        row += 4.0 * len(layers) * batch.tokens.shape[1] * site.n_units * (model.cfg.d_head if site.is_head else 1)
        self.at_once = max(1, int(memory_budget / row))
        self.donors = draw_donors(batch, seed) if ablation == "resample" else None
        self.means = None if self.donors else self._means()

    def values(
        self, indices: Sequence[int], n_positions: int
    ) -> Mapping[int, Float[Tensor, "prompt position unit ..."]]:
        """By layer, what the units of some prompts are set to at their chosen positions.

        Args:
            indices: Prompts of the batch.
            n_positions: How many positions are chosen in each of them.
        """
        if self.donors is None:
            assert self.means is not None
            return {layer: mean[None, None] for layer, mean in self.means.items()}
        donors = [self.donors[index] for index in indices]
        drawn = [self._positions(index, donor, n_positions) for index, donor in zip(indices, donors, strict=True)]
        found: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}

        def run(part: Sequence[int]) -> None:
            places = torch.tensor([drawn[slot] for slot in part], device=self.batch.tokens.device)
            read = {
                layer: value[torch.arange(len(part), device=value.device)[:, None], places]
                for layer, value in self._record([donors[slot] for slot in part]).items()
            }
            for layer, value in read.items():
                found[layer].append(value)

        run_in_chunks(range(len(donors)), self.at_once, run, what="prompts")
        return {layer: torch.cat(values) for layer, values in found.items()}

    def _positions(self, index: int, donor: int, count: int) -> list[int]:
        """Where a prompt's units take their values in its donor."""
        choice = self.positions[donor]
        generator = random.Random(f"{self.seed}:position:{index}")
        return [generator.choice(choice) for _ in range(count)]

    def _means(self) -> dict[int, Float[Tensor, "unit ..."]]:
        chosen = torch.zeros(self.batch.tokens.shape, dtype=torch.bool)
        for index, places in enumerate(self.positions):
            chosen[index, list(places)] = True
        chosen = chosen.to(self.batch.tokens.device)
        total: dict[int, Tensor] = {}

        def run(part: Sequence[int]) -> None:
            recorded = self._record(part).items()
            sums = {
                layer: value[chosen[list(part), : value.shape[1]]].cpu().double().sum(0) for layer, value in recorded
            }
            for layer, value in sums.items():
                total[layer] = total[layer] + value if layer in total else value

        run_in_chunks(range(len(self.batch)), self.at_once, run, what="prompts")
        return {layer: value / int(chosen.sum()) for layer, value in total.items()}

    @torch.no_grad()
    def _record(self, indices: Sequence[int]) -> dict[int, Float[Tensor, "prompt position unit ..."]]:
        """The units' clean values in some prompts, all positions."""
        store: dict[int, Tensor] = {}

        def record(layer: int) -> Callable[..., None]:
            def hook(activation: Tensor, hook: Any) -> None:
                store[layer] = activation.detach()

            return hook

        rows = list(indices)
        longest = max(self.batch.lengths[row] for row in rows)
        tokens, mask = self.batch.tokens[rows, :longest], self.batch.mask[rows, :longest]
        with self.model.hooks(fwd_hooks=[(self.site.hook(layer), record(layer)) for layer in self.layers]):
            target_logits(self.model, tokens, self.batch.target_positions[rows], mask)
        return store


def group_names(batch: PromptBatch) -> list[str]:
    """The group of each prompt; a prompt without one is of its target's."""
    names = [""] * len(batch)
    for name, indices in batch.groups.items():
        for index in indices:
            names[index] = name
    return names


def draw_donors(batch: PromptBatch, seed: int) -> list[int]:
    """For each prompt another one, of another group where there is one."""
    names = group_names(batch)
    donors = []
    for index, name in enumerate(names):
        others = [other for other, its in enumerate(names) if its != name]
        others = others or [other for other in range(len(names)) if other != index]
        donors.append(random.Random(f"{seed}:donor:{index}").choice(others))
    return donors
