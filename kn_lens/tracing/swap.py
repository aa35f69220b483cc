"""The twin of a prompt: the same sentence with another cue of equal token length (symmetric token replacement)."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kn_lens.errors import NothingLeft, PromptError
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.positions import require_cues
from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.prompts.tokens import ResolvedPrompt, TokenResolver, UnusablePrompt
from kn_lens.tracing.answered import only

NO_PARTNER = "no cue of equal token length to swap with"


@dataclass(frozen=True)
class Swapped:
    """Prompts with their twins.

    Attributes:
        batch: The prompts that have one; the others are in its ``dropped``.
        ids: Tokens of each twin, as many as of its prompt.
        texts: The twins as text.
        answers: First token of the answer to each twin, where the batch holds it as a prompt of its own; else -1.
    """

    batch: PromptBatch
    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    answers: tuple[int, ...]

    def keep(self, kept: Sequence[int], reason: str) -> Swapped:
        """Some of the prompts with their twins; the others are dropped for ``reason``."""
        return Swapped(
            only(self.batch, kept, reason),
            tuple(self.ids[index] for index in kept),
            tuple(self.texts[index] for index in kept),
            tuple(self.answers[index] for index in kept),
        )


Swaps = Mapping[str, str] | Sequence[str] | Swapped
"""The new cue of each prompt, or new cues by old ones; or twins that were found before, among more prompts."""


def swap_partners(model: Any, batch: PromptBatch, swaps: Swaps | None = None) -> Swapped:
    """Find each prompt's twin.

    Without ``swaps`` a two-prefix pair takes its other prefix; another pair the cue, of those whose answer is its
    foil, that is spelled most like its own (*keys*, *key*); a fact the cue of the next prompt, of its own template
    where there is one, that has another answer. Cues of another token length are passed over. Twins that are given as
    :class:`Swapped`, of these very prompts, are taken as they are.

    Raises:
        NothingLeft: If no prompt has a twin.
        PromptError: If a prompt has no cue, a given swap does not fit (the nearest that does is named), or twins are of
            other prompts.
    """
    if isinstance(swaps, Swapped):
        return _found_before(batch, swaps)
    require_cues(batch)
    resolver = TokenResolver(model, batch.prepend_bos)
    cues = [_cue_text(entry) for entry in batch.resolved]
    given = _given(cues, swaps)
    kept: list[int] = []
    twins: list[tuple[tuple[int, ...], str]] = []
    for index, entry in enumerate(batch.resolved):
        if given is not None:
            found = _twin(resolver, entry, given[index])
            if found is None:
                raise PromptError(_misfit(resolver, entry, cues, index, given[index]))
            twin = (found.ids, found.prompt.text)
        else:
            twin = _partner(resolver, batch, cues, index)
        if twin is not None:
            kept.append(index)
            twins.append(twin)
    if not kept:
        first = batch.resolved[0]
        raise NothingLeft(
            f"no prompt has a cue to swap with: {cues[0]!r} of {first.prompt.text!r} is {_tokens(first)} long, and no "
            f"other prompt with another answer has a cue as long; give more prompts (--groups), or swaps= in Python",
            [Dropped(text=prompt.text, reason=NO_PARTNER, source=prompt.source) for prompt in batch.prompts],
        )
    ids, texts = zip(*twins, strict=True)
    known = {entry.ids: entry.target_ids[0] for entry in batch.resolved}
    return Swapped(only(batch, kept, NO_PARTNER), ids, texts, tuple(known.get(twin, -1) for twin in ids))


def _found_before(batch: PromptBatch, swapped: Swapped) -> Swapped:
    if swapped.batch.resolved != batch.resolved:
        raise PromptError(
            f"swaps holds twins of {len(swapped.batch)} prompts that are not the {len(batch)} given, or not in their "
            f"order; give the twins of these"
        )
    return replace(swapped, batch=batch)


def _partner(
    resolver: TokenResolver, batch: PromptBatch, cues: Sequence[str], index: int
) -> tuple[tuple[int, ...], str] | None:
    entry = batch.resolved[index]
    if entry.rival_ids is not None:
        fits = _same_outside_the_cue(entry, entry.rival_ids)
        return (entry.rival_ids, entry.prompt.foil_prefix or "") if fits else None
    for other in _candidates(batch, cues, index):
        found = _twin(resolver, entry, cues[other])
        if found is not None:
            return found.ids, found.prompt.text
    return None


def _candidates(batch: PromptBatch, cues: Sequence[str], index: int) -> list[int]:
    """Prompts whose cue may stand in for that of prompt ``index``, best first."""
    entry = batch.resolved[index]
    count = len(batch)
    others = [(index + step) % count for step in range(1, count)]
    others = [
        other
        for other in others
        if cues[other] != cues[index]
        and len(batch.resolved[other].cue_positions) == len(entry.cue_positions)
        and batch.resolved[other].target_ids != entry.target_ids
    ]
    if entry.foil_ids is not None:
        rivals = [other for other in others if batch.resolved[other].target_ids == entry.foil_ids]
        return sorted(rivals, key=lambda other: -_likeness(cues[index], cues[other]))
    return sorted(others, key=lambda other: batch.prompts[other].template != entry.prompt.template)


@functools.lru_cache(maxsize=2**16)
def _likeness(cue: str, other: str) -> float:
    """How alike two words are spelled: 1 the same, 0 no letter in common."""
    return difflib.SequenceMatcher(None, cue, other).ratio()


def _twin(resolver: TokenResolver, entry: ResolvedPrompt, cue: str) -> ResolvedPrompt | None:
    """The prompt with another cue, if it differs from the first in the cue's tokens only."""
    try:
        twin = resolver.resolve(_with_cue(entry.prompt, cue))
    except UnusablePrompt:
        return None
    same_places = (twin.cue_positions, twin.target_position) == (entry.cue_positions, entry.target_position)
    return twin if same_places and _same_outside_the_cue(entry, twin.ids) else None


def _tokens(entry: ResolvedPrompt) -> str:
    count = len(entry.cue_positions)
    return f"{count} token{'s' if count != 1 else ''}"


def _same_outside_the_cue(entry: ResolvedPrompt, ids: Sequence[int]) -> bool:
    outside = set(range(len(entry.ids))) - set(entry.cue_positions)
    return len(ids) == len(entry.ids) and all(ids[at] == entry.ids[at] for at in outside)


def _with_cue(prompt: Prompt, cue: str) -> Prompt:
    start, end = prompt.cue_span() or (0, 0)
    if start < len(prompt.prefix):
        text = {"prefix": prompt.prefix[:start] + cue + prompt.prefix[end:]}
    else:
        at, to = start - len(prompt.prefix), end - len(prompt.prefix)
        text = {"suffix": prompt.suffix[:at] + cue + prompt.suffix[to:]}
    return replace(prompt, cue=(start, start + len(cue)), foil_prefix=None, form="cloze", **text)


def _cue_text(entry: ResolvedPrompt) -> str:
    start, end = entry.prompt.cue_span() or (0, 0)
    return (entry.prompt.prefix + entry.prompt.suffix)[start:end]


def _given(cues: Sequence[str], swaps: Mapping[str, str] | Sequence[str] | None) -> list[str] | None:
    if swaps is None:
        return None
    if isinstance(swaps, Mapping):
        missing = next((cue for cue in cues if cue not in swaps), None)
        if missing is not None:
            raise PromptError(f"swaps has no entry for the cue {missing!r}; give one for each cue")
        return [swaps[cue] for cue in cues]
    if isinstance(swaps, str) or len(swaps) != len(cues):
        count = "one text" if isinstance(swaps, str) else f"{len(swaps)} cues"
        raise PromptError(f"swaps is {count} for {len(cues)} prompts; give one new cue for each, or a mapping")
    return list(swaps)


def _misfit(resolver: TokenResolver, entry: ResolvedPrompt, cues: Sequence[str], index: int, cue: str) -> str:
    """Why a given swap cannot be made, and the nearest that can."""
    own = _tokens(entry)
    try:
        length = _tokens(resolver.resolve(_with_cue(entry.prompt, cue)))
    except UnusablePrompt as error:
        length = f"no cue here ({error})"
    fitting = [other for other in dict.fromkeys(cues) if other != cues[index] and _twin(resolver, entry, other)]
    near = difflib.get_close_matches(cue, fitting, n=1, cutoff=0) or ["none of the other cues"]
    return (
        f"cannot swap {cues[index]!r} ({own}) for {cue!r}, which is {length}, in {entry.prompt.text!r}: the "
        f"twin must be as long; nearest that fits: {near[0]!r}"
    )
