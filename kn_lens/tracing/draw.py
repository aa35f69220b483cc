"""Draws of prompts that can be traced: with a cue, and with twins where those are asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.prompts.relations import Relation

NO_CUE = "no cue"


def cued_prompts(
    model: Any,
    data: Relation | MinimalPairs,
    groups: int | None,
    prompts: int | None,
    seed: int,
    *,
    twins: bool = False,
) -> PromptBatch:
    """The prompts of some groups; those without a known cue are left out and counted, unless all are.

    Args:
        model: A loaded model.
        data: Facts or pairs.
        groups: How many groups are drawn; None takes all.
        prompts: How many of each at most; 0 takes all; None one of a fact, and of pairs, whose groups are pairs of
            words and may be few (*himself/herself*), as many as make about as many prompts as ``groups`` says: all of
            them without ``groups``.
        seed: Of the draw of groups, and of prompts from a pair's group.
        twins: Draw a pair's group together with its mirror image (*runs/run* and *run/runs*), so that a prompt's
            twin, whose answer is its foil, is among them: one group more where ``groups`` would part them.
    """
    if isinstance(data, MinimalPairs):
        batch = data.prompts(model, seed=seed)
        each = prompts
        if each is None and groups is not None:
            each = -(-groups // min(groups, len(batch.groups)))
        batch = _some_groups(batch, groups, each, seed, twins=twins)
    else:
        batch = data.prompts(model, groups=groups, per_group=1 if prompts is None else prompts or None, seed=seed)
    kept = [index for index, entry in enumerate(batch.resolved) if entry.cue_positions]
    if not kept or len(kept) == len(batch):
        return batch
    without = [
        Dropped(text=entry.prompt.text, reason=NO_CUE, source=entry.prompt.source)
        for entry in batch.resolved
        if not entry.cue_positions
    ]
    return replace(batch.select(kept), dropped=(*batch.dropped, *without))


def asked_of(batch: PromptBatch, prompts: Sequence[Prompt]) -> PromptBatch:
    """Some prompts of a batch, given in its order, with the tokens that they have there."""
    found: list[int] = []
    for prompt in prompts:
        start = found[-1] + 1 if found else 0
        found.append(next(at for at in range(start, len(batch)) if batch.prompts[at] == prompt))
    return batch.select(found)


def _some_groups(batch: PromptBatch, count: int | None, each: int | None, seed: int, *, twins: bool) -> PromptBatch:
    """Some prompts (0 and None: all) of ``count`` groups (None: all) drawn at random.

    With ``twins`` groups that have a mirror image come first, each with it.
    """
    rows = {(batch.prompts[at[0]].target, batch.prompts[at[0]].foil or ""): at for at in batch.groups.values()}
    words = list(rows)
    if count is not None:
        random.Random(seed).shuffle(words)
    if each:
        for (good, bad), indices in rows.items():
            random.Random(f"{seed}:{good}/{bad}").shuffle(indices)
    if not twins or count is None:
        return batch.select([index for name in words[:count] for index in rows[name][: each or None]])
    words.sort(key=lambda pair: (pair[1], pair[0]) not in rows)
    chosen: dict[tuple[str, str], None] = {}
    for good, bad in words:
        if len(chosen) >= count:
            break
        chosen |= dict.fromkeys(name for name in ((good, bad), (bad, good)) if name in rows)
    return batch.select([index for name in chosen for index in rows[name][: each or None]])
