"""Count the cue-target pairs of a data set in a text."""

from __future__ import annotations

import os
from pathlib import Path

from kn_lens.errors import DataError, OutputError
from kn_lens.frequency import PairCounts
from kn_lens.pair_counter import Pair
from kn_lens.prompts.cue_pairs import cue_pairs
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.relations import Relation


def check_table(out: Path) -> None:
    """Refuse a file that cannot be written, or is there already, before any work is done.

    Raises:
        OutputError: With the reason.
    """
    if out.exists():
        raise OutputError(f"{out} is there already; name a new file, or remove it")
    if not out.parent.is_dir():
        raise OutputError(f"cannot write {out}: there is no folder {out.parent}")
    if not os.access(out.parent, os.W_OK):
        raise OutputError(f"cannot write {out}: no permission in {out.parent}")


def pairs_to_count(data: Relation | MinimalPairs) -> tuple[list[Pair], int]:
    """The pairs of a data set, and how many of its prompts have none.

    Raises:
        DataError: If none has.
    """
    pairs, without = cue_pairs(data)
    if not pairs:
        raise DataError(f"no prompt of {data.name} has a cue, and so no pair of words to count")
    return pairs, without


def coverage_sentence(counts: PairCounts, pairs: list[Pair], without: int) -> str:
    """How much was read, how many pairs occur, and which do not (the first few)."""
    found = counts.coverage(pairs)
    total = sum(counts.counts.values())
    said = (
        f"{counts.source}: {counts.tokens:,} words; {found.seen} of {found.asked} pairs occur, {total:,} times in all, "
        f"within {counts.window} word{'s' if counts.window != 1 else ''}."
    )
    if found.unseen:
        some = ", ".join(" ".join(pair) for pair in found.unseen[:5])
        said += f" Not seen: {some}{', …' if len(found.unseen) > 5 else ''}."
    return said + (f" {without} prompts have no cue." if without else "")
