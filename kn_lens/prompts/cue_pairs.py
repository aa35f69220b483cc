"""The pair of words that a prompt rests on: cue and target, in the order of the text."""

from __future__ import annotations

from collections.abc import Iterable

from kn_lens.errors import PromptError
from kn_lens.prompts.minimal_pairs import MinimalPairs, pair_prompt
from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.prompts.relations import Relation


def cue_pair(prompt: Prompt) -> tuple[str, str]:
    """(cue, target) where the cue stands before the blank, (target, cue) where it stands behind; lower case.

    Raises:
        PromptError: If the prompt has no cue.
    """
    span = prompt.cue_span()
    if span is None:
        where = f"{prompt.source}: " if prompt.source else ""
        raise PromptError(f"{where}{prompt.text!r} has no cue, and so no pair of words; give it one, or leave it out")
    cue = (prompt.prefix + prompt.suffix)[slice(*span)].strip().lower()
    target = prompt.target.strip().lower()
    return (cue, target) if span[0] < len(prompt.prefix) else (target, cue)


def cue_pairs(data: Relation | MinimalPairs) -> tuple[list[tuple[str, str]], int]:
    """The different cue-target pairs of a data set, and how many of its prompts have none for want of a cue.

    Minimal pairs are read as for a masked model, which sees the cue on either side.
    """
    prompts: Iterable[Prompt | Dropped]
    if isinstance(data, MinimalPairs):
        prompts = [pair_prompt(pair, masked=True) for pair in data.pairs]
    else:
        prompts = [prompt for fact in data.facts.values() for prompt in fact]
    with_cue = [prompt for prompt in prompts if isinstance(prompt, Prompt) and prompt.cue is not None]
    return list(dict.fromkeys(map(cue_pair, with_cue))), len(list(prompts)) - len(with_cue)


def cue_labels(prompts: Iterable[Prompt]) -> list[tuple[str, str]]:
    """A label for each prompt, shared by those with the same cue and answer: a fact's paraphrases, a pair's sentences.

    Such prompts are no independent evidence; statistics resample them together.
    """
    return [cue_pair(prompt) if prompt.cue is not None else (prompt.text, prompt.target) for prompt in prompts]
