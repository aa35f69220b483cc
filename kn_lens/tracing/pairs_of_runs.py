"""A sentence and its twin run side by side: what activation, attribution and path patching share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.errors import PromptError, SettingsError, near_matches
from kn_lens.forward import CleanRun, clean_run
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.prompt import Prompt
from kn_lens.results import provenance
from kn_lens.tracing.answered import WRONG, rightly_answered
from kn_lens.tracing.foils import foil_ids
from kn_lens.tracing.metrics import METRICS, all_metrics
from kn_lens.tracing.patch_effects import PatchEffects
from kn_lens.tracing.swap import Swapped, Swaps, swap_partners

Direction = Literal["sufficiency", "necessity"]
Sources = PromptBatch | Iterable[Prompt] | None
"""The twin of each prompt; None takes another prompt's cue (see :func:`kn_lens.tracing.swap.swap_partners`)."""


def check_direction(direction: str) -> None:
    """Raise SettingsError for a direction that there is not."""
    known = get_args(Direction)
    if direction not in known:
        hint = near_matches(direction, known)
        raise SettingsError(f"no direction {direction!r}.{hint} Directions: {', '.join(known)}")


def twins_of(
    model: Any, prompts: PromptBatch | Prompt | Iterable[Prompt], sources: Sources, swaps: Swaps | None = None
) -> Swapped:
    """The prompts that the model answers rightly, each with its twin.

    Raises:
        PromptError: If none is answered rightly or none has a twin; if a twin is of another length, or its blank lies
            elsewhere.
        SettingsError: If both ``sources`` and ``swaps`` are given.
    """
    batch = as_batch(model, prompts)
    if sources is None:
        swapped = swap_partners(model, batch, swaps)
        return swapped.keep(rightly_answered(model, swapped.batch), WRONG)
    if swaps is not None:
        raise SettingsError("sources and swaps both say what the twins are; give one of them")
    twins = as_batch(model, sources)
    if len(twins) != len(batch):
        raise PromptError(f"{len(twins)} sources for {len(batch)} prompts; give one for each, in the same order")
    for entry, twin in zip(batch.resolved, twins.resolved, strict=True):
        if len(twin.ids) != len(entry.ids) or twin.target_position != entry.target_position:
            raise PromptError(
                f"{twin.prompt.text!r} is {len(twin.ids)} tokens, asked at {twin.target_position}, and "
                f"{entry.prompt.text!r} is {len(entry.ids)}, asked at {entry.target_position}; states are patched "
                f"token by token: give sentences that run in parallel"
            )
    swapped = Swapped(
        batch,
        tuple(twin.ids for twin in twins.resolved),
        tuple(prompt.text for prompt in twins.prompts),
        tuple(twin.target_ids[0] for twin in twins.resolved),
    )
    return swapped.keep(rightly_answered(model, batch), WRONG)


@dataclass(frozen=True)
class Shape:
    """Prompts that can run together: of one length, answered at one position, differing from their twins from
    ``first`` on (a causal model's; a masked one sees every difference from everywhere). Twins that are the same
    sentence differ from ``length`` on: nowhere."""

    length: int
    target: int
    first: int


def shapes_of(swapped: Swapped) -> list[tuple[Shape, list[int]]]:
    """The prompts by shape, short ones first."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, (entry, twin) in enumerate(zip(swapped.batch.resolved, swapped.ids, strict=True)):
        length = len(entry.ids)
        first = next((at for at in range(length) if entry.ids[at] != twin[at]), length)
        if swapped.batch.masked and first < length:
            first = 0
        groups.setdefault((length, entry.target_position, first), []).append(index)
    return [(Shape(*key), indices) for key, indices in sorted(groups.items())]


@dataclass(frozen=True)
class RunPair:
    """Both runs of some prompts of one shape.

    Attributes:
        base: The run that is patched.
        source: The run that states are taken from.
        measure: The four metrics of rows' logits.
        clean, corrupted: Their values.
        foils: Tokens that the logit difference is taken against.
    """

    base: CleanRun
    source: CleanRun
    measure: Callable[[Tensor, Tensor], Float[Tensor, "row metric"]]
    clean: Float[Tensor, "prompt metric"]
    corrupted: Float[Tensor, "prompt metric"]
    foils: Int[Tensor, " prompt"]

    def baseline(self, direction: str) -> Float[Tensor, "prompt metric"]:
        """The metrics of the run that is patched."""
        return self.corrupted if direction == "sufficiency" else self.clean


def run_pair(
    model: Any, swapped: Swapped, indices: list[int], shape: Shape, keep: Sequence[str], direction: str, start: int
) -> RunPair:
    """Run some prompts and their twins, keeping the activations named in ``keep`` from ``start`` on."""
    batch = swapped.batch
    tokens = batch.tokens[indices, : shape.length]
    twins = torch.tensor([swapped.ids[index] for index in indices], device=tokens.device)
    begin = min(start, shape.target)
    clean, corrupted = (
        clean_run(model, ids, target=shape.target, start=begin, keep=keep, keep_prefix=True) for ids in (tokens, twins)
    )
    foils = foil_ids(batch, indices, clean.logits, [swapped.answers[index] for index in indices])
    measure = all_metrics(batch.target_ids[indices], foils, clean.logits)
    everyone = torch.arange(len(indices), device=tokens.device)
    base, source = (corrupted, clean) if direction == "sufficiency" else (clean, corrupted)
    return RunPair(base, source, measure, measure(clean.logits, everyone), measure(corrupted.logits, everyone), foils)


class Collected:
    """Effects of all prompts, filled in shape by shape; ``given``: the twins are the user's own sentences."""

    def __init__(
        self, swapped: Swapped, state: tuple[int, ...], metrics: Sequence[str] = METRICS, *, given: bool
    ) -> None:
        count = len(swapped.batch)
        self.swapped, self.metrics, self.given = swapped, tuple(metrics), given
        self.effects = torch.full((count, *state, len(metrics)), float("nan"))
        self.clean = torch.zeros(count, len(METRICS))
        self.corrupted = torch.zeros(count, len(METRICS))
        self.foils = torch.zeros(count, dtype=torch.long)

    def add_baselines(self, indices: list[int], pair: RunPair) -> None:
        """Record both runs of some prompts."""
        self.clean[indices], self.corrupted[indices] = pair.clean.float().cpu(), pair.corrupted.float().cpu()
        self.foils[indices] = pair.foils.cpu()

    def result(self, model: Any, settings: dict[str, Any], **fields: Any) -> PatchEffects:
        """The result, from what was filled in and the fields that the method knows."""
        batch = self.swapped.batch
        cues = []
        for entry, twin in zip(batch.resolved, self.swapped.ids, strict=True):
            differing = tuple(at for at, token in enumerate(entry.ids) if token != twin[at])
            # A given twin may differ elsewhere than in the cue; of swapped cues, tokens may be alike by chance.
            first, second = (differing, entry.cue_positions) if self.given else (entry.cue_positions, differing)
            cues.append(first or second or (entry.target_position,))
        return PatchEffects(
            effects=dict(zip(self.metrics, self.effects.unbind(-1), strict=True)),
            clean=dict(zip(METRICS, self.clean.unbind(-1), strict=True)),
            corrupted=dict(zip(METRICS, self.corrupted.unbind(-1), strict=True)),
            tokens=tuple(tuple(batch.token_labels(index)) for index in range(len(batch))),
            cue_positions=tuple(cues),
            target_positions=tuple(entry.target_position for entry in batch.resolved),
            foils=tuple(batch.decode(int(token)) for token in self.foils),
            twins=self.swapped.texts,
            prompts=batch.prompts,
            dropped=batch.dropped,
            settings={**settings, "starts_with_bos": batch.starts_with_bos},
            provenance=provenance(model, batch),
            **fields,
        )
