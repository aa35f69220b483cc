"""Where in a prompt units are read, and which prompts are alike enough to share a pass."""

from __future__ import annotations

from typing import Literal, get_args

from kn_lens.errors import PromptError, SettingsError, near_matches
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.tokens import ResolvedPrompt

Positions = Literal["target", "cue_last", "cue", "all"]
"""``target``: the mask, or the last token of a causal prompt; ``cue_last``: the cue's last token;
``cue``: all its tokens; ``all``: every position that can reach the answer."""


def positions_of(entry: ResolvedPrompt, positions: str) -> tuple[int, ...]:
    """Token positions of a prompt, ascending.

    Raises:
        SettingsError: If there are no such positions.
        PromptError: If the prompt has no cue and one is needed.
    """
    if positions not in get_args(Positions):
        known = get_args(Positions)
        raise SettingsError(
            f"no positions {positions!r}.{near_matches(positions, known)} Positions: {', '.join(known)}"
        )
    if positions == "target":
        return (entry.target_position,)
    if positions == "all":
        return tuple(range(len(entry.ids)))
    if not entry.cue_positions:
        raise PromptError(
            f"positions={positions!r} needs a cue, and {entry.prompt.text!r} has none; give cue=, or take 'target'"
        )
    return entry.cue_positions if positions == "cue" else entry.cue_positions[-1:]


def require_cues(batch: PromptBatch) -> None:
    """Refuse a batch with a prompt that has no cue, before any work is done.

    Raises:
        PromptError: Naming the first.
    """
    for prompt, entry in zip(batch.prompts, batch.resolved, strict=True):
        if not entry.cue_positions:
            where = f" ({prompt.source})" if prompt.source else ""
            raise PromptError(
                f"{prompt.text!r} has no cue{where}; give cue=, the words that decide the answer: a fact's subject, "
                f"of a pair the word that its target agrees with"
            )


def alike(batch: PromptBatch, positions: str) -> list[tuple[list[int], tuple[int, ...]]]:
    """Prompts of one length, target position and unit positions, with those unit positions; short ones first."""
    groups: dict[tuple, list[int]] = {}
    for index, entry in enumerate(batch.resolved):
        key = (len(entry.ids), entry.target_position, positions_of(entry, positions))
        groups.setdefault(key, []).append(index)
    return [(indices, key[2]) for key, indices in sorted(groups.items())]
