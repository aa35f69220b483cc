"""What a piece left out, from its record, which names every prompt, and its result, which may tell more or less."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from kn_lens.batches.storage.part import LeftOut
from kn_lens.prompts.prompt import Dropped


def all_left_out(
    said: Sequence[LeftOut], told: Sequence[Dropped], named: Callable[[Sequence[LeftOut]], list[Dropped]]
) -> list[Dropped]:
    """Every prompt that a record names, in their order, and what only the result tells (questions about an edit).

    A half of a piece of which nothing was left has no result: its prompts are known to the record alone.

    Args:
        said: Of the record.
        told: Of the result. What the record does not know of stays before the next prompt that both know of.
        named: Gives those that only the record knows as results name them.
    """
    unmatched: dict[tuple[str, str], list[LeftOut]] = defaultdict(list)
    for one in sorted(said, key=lambda one: one.prompt):
        unmatched[one.text, one.reason].append(one)
    found: list[tuple[int, Dropped]] = []
    others: list[Dropped] = []
    for entry in told:
        others.append(entry)
        same = unmatched.get((entry.text, entry.reason))
        if same:
            at = same.pop(0).prompt
            found += [(at, one) for one in others]
            others = []
    missing = [one for left in unmatched.values() for one in left]
    found += zip((one.prompt for one in missing), named(missing), strict=True)
    return [*(entry for _, entry in sorted(found, key=lambda one: one[0])), *others]
