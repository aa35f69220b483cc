"""Groups of prompts that share a target: how they are made from pairs, and how a few are drawn."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.prompts.tokens import ResolvedPrompt, TokenResolver, UnusablePrompt

Groups = Mapping[str, Sequence[Prompt]]


def group_by_answer(prompts: Sequence[tuple[Prompt, str | None]]) -> dict[str, list[Prompt]]:
    """Prompts that ask for the same word against the same rival form a group, ``"these/this"``."""
    groups: dict[str, list[Prompt]] = {}
    for prompt, _ in prompts:
        name = f"{prompt.target}/{prompt.foil}" if prompt.foil else prompt.target
        groups.setdefault(name, []).append(replace(prompt, group=name))
    return groups


def augment_pairs(prompts: Sequence[tuple[Prompt, str | None]], seed: int = 0) -> dict[str, list[Prompt]]:
    """Each pair of cue and target in every sentence that can hold it (data augmentation).

    Args:
        prompts: Prompts with their frame class; a cue moves only between frames of one class.
        seed: Order of the sentences within each group (a draw of the first few is a random one).

    Returns:
        Groups named ``"cue → target"``. Prompts without a cue cannot be moved: they are in the groups of
        :func:`group_by_answer`.
    """
    with_cue = [(prompt, frame) for prompt, frame in prompts if prompt.cue is not None]
    groups = group_by_answer([(prompt, frame) for prompt, frame in prompts if prompt.cue is None])
    for index, (giver, frame_class) in enumerate(with_cue):
        name = f"{_cue_text(giver)} → {giver.target}"
        if name in groups:
            continue
        frames = [frame for frame, other_class in with_cue if other_class == frame_class]
        random.Random(f"{seed}:{index}").shuffle(frames)
        moved = [_with_cue_of(frame, giver, name) for frame in frames]
        groups[name] = list({(prompt.prefix, prompt.suffix): prompt for prompt in moved}.values())
    return groups


def gather_groups(
    model: Any,
    grouped: Groups,
    *,
    groups: int | None = None,
    per_group: int | None = None,
    seed: int = 0,
    dropped: Sequence[Dropped] = (),
    targets: str = "single",
) -> PromptBatch:
    """The first prompts that ``model`` can be asked, of groups drawn at random.

    Args:
        model: A loaded model.
        grouped: Prompts by group.
        groups: How many groups; None takes all in their order.
        per_group: How many prompts of each; None takes all.
        seed: Of the draw of groups.
        dropped: Prompts already left out, to be counted with those left out here.
        targets: ``"single"`` leaves out targets of several tokens, ``"any"`` keeps them.

    Raises:
        PromptError: If nothing is left.
    """
    resolver = TokenResolver(model)
    names = list(grouped)
    if groups is not None:
        random.Random(seed).shuffle(names)
    left_out = list(dropped)
    kept: list[ResolvedPrompt] = []
    taken = 0
    for name in names:
        usable: list[ResolvedPrompt] = []
        for prompt in grouped[name]:
            if len(usable) == per_group:
                break
            try:
                usable.append(resolver.resolve(prompt, single_token=targets == "single"))
            except UnusablePrompt as error:
                left_out.append(Dropped(text=prompt.text, reason=error.reason, source=prompt.source))
        kept += usable
        taken += bool(usable)
        if taken == groups:
            break
    return PromptBatch.from_resolved(model, kept, left_out)


def _cue_text(prompt: Prompt) -> str:
    start, end = prompt.cue_span() or (0, 0)
    return (prompt.prefix + prompt.suffix)[start:end]


def _with_cue_of(frame: Prompt, giver: Prompt, group: str) -> Prompt:
    """``frame`` with the cue, target and foil of ``giver``."""
    start, end = frame.cue_span() or (0, 0)
    cue = _cue_text(giver)
    fields: dict[str, Any] = {"target": giver.target, "foil": giver.foil, "group": group}
    if start < len(frame.prefix):
        fields["prefix"] = frame.prefix[:start] + cue + frame.prefix[end:]
    else:
        at, to = start - len(frame.prefix), end - len(frame.prefix)
        fields["suffix"] = frame.suffix[:at] + cue + frame.suffix[to:]
    if frame.foil_prefix is not None and giver.foil_prefix is not None:
        rival = _rival_cue(giver)
        frame_end = end + len(frame.foil_prefix) - len(frame.prefix)
        fields["foil_prefix"] = frame.foil_prefix[:start] + rival + frame.foil_prefix[frame_end:]
    return replace(frame, cue=(start, start + len(cue)), **fields)


def _rival_cue(prompt: Prompt) -> str:
    """The word that stands in ``foil_prefix`` where the cue stands in ``prefix``."""
    start, end = prompt.cue_span() or (0, 0)
    foil_prefix = prompt.foil_prefix or ""
    return foil_prefix[start : end + len(foil_prefix) - len(prompt.prefix)]
