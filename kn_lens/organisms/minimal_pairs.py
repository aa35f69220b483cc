"""The bundled minimal pairs, written from the grammar: ``python -m kn_lens.organisms.minimal_pairs [--out FOLDER]``."""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kn_lens.bundled import data_folder
from kn_lens.errors import OutputError
from kn_lens.organisms.grammar import PARADIGMS, Agreement, Pair, lexicon, pairs_of, sentence

SEED = 20240502
PAIRS = 300
"""Of each paradigm: half with a singular cue and half with a plural one; for gender, half of each reflexive."""

_TERMS = {
    "determiner_noun": "determiner_noun_agreement",
    "subject_verb": "subject_verb_agreement",
    "anaphor_number": "anaphor_agreement",
    "anaphor_gender": "anaphor_agreement",
}


def write_minimal_pairs(folder: Path, seed: int = SEED) -> list[Path]:
    """One JSON Lines file a paradigm, in BLiMP's fields and a few of ours; the same seed writes the same bytes.

    Args:
        folder: Made if need be.
        seed: Of every draw; by default that of the bundled files.

    Returns:
        The files, in the order of :data:`~kn_lens.organisms.grammar.PARADIGMS`.

    Raises:
        OutputError: If a file cannot be written.
    """
    paths = [folder / f"{paradigm}.jsonl" for paradigm in PARADIGMS]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for paradigm, path in zip(PARADIGMS, paths, strict=True):
            rows = minimal_pairs(paradigm, seed)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error}; name a folder that can be written") from error
    return paths


def minimal_pairs(paradigm: str, seed: int = SEED) -> list[dict[str, Any]]:
    """The rows of one file: no two are one question to a causal model, and pairs of words are spread evenly.

    Args:
        paradigm: One of :data:`~kn_lens.organisms.grammar.PARADIGMS`. The ``_2`` of a family asks about the
            sentences of its ``_1``.
        seed: Of every draw.
    """
    rng = random.Random(f"{seed}:{paradigm.removesuffix('_1').removesuffix('_2')}")
    made: dict[str, Agreement] = {}
    for pairs in _halves(paradigm):
        for pair in _spread(pairs, PAIRS // 2, rng):
            drawn = sentence(paradigm, pair, rng)
            while _question(drawn) in made:
                drawn = sentence(paradigm, pair, rng)
            made[_question(drawn)] = drawn
    mixed = list(made.values())
    rng.shuffle(mixed)
    return [as_row(agreement, index) for index, agreement in enumerate(mixed)]


def _halves(paradigm: str) -> tuple[list[Pair], list[Pair]]:
    """The pairs of the singular and of the plural; for gender, those of each reflexive."""
    pairs = pairs_of(paradigm)
    if paradigm == "anaphor_gender_agreement":
        first = {lexicon()["reflexives"]["female"]}
    else:  # the determiner, the verb or the reflexive of a pair is in one of these
        words = lexicon()
        verbs = [singular for frame in words["subject_verb"].values() for singular, _ in frame["verbs"]]
        first = {*words["determiners"]["singular"], *verbs, words["reflexives"]["female"], words["reflexives"]["male"]}
    return [pair for pair in pairs if first & {*pair}], [pair for pair in pairs if not first & {*pair}]


def _spread(pairs: Sequence[Pair], count: int, rng: random.Random) -> list[Pair]:
    """``count`` pairs: each about as often as any other, and so each asked word, and so each word before it."""
    chosen: list[Pair] = []
    of_pair: Counter[Pair] = Counter()
    of_first: Counter[str] = Counter()
    of_second: Counter[str] = Counter()
    for _ in range(count):
        pair = min(pairs, key=lambda pair: (of_pair[pair], of_second[pair[1]], of_first[pair[0]], rng.random()))
        chosen.append(pair)
        of_pair[pair] += 1
        of_first[pair[0]] += 1
        of_second[pair[1]] += 1
    return chosen


def _question(agreement: Agreement) -> str:
    """The sentence up to the second word of its pair: all that a causal model is asked."""
    return agreement.sentence_good[: max(agreement.cue_span[1], len(f"{agreement.prefix} {agreement.good}"))]


def as_row(agreement: Agreement, index: int) -> dict[str, Any]:
    """A pair in BLiMP's fields, with ours at the end."""
    start, end = agreement.cue_span
    good = agreement.sentence_good
    one_prefix = end <= len(agreement.prefix)
    if one_prefix:
        asked = {
            "one_prefix_prefix": agreement.prefix,
            "one_prefix_word_good": agreement.good,
            "one_prefix_word_bad": agreement.bad,
        }
    else:  # what decides comes later: a causal model is asked for it after both forms
        between = good[len(f"{agreement.prefix} {agreement.good}") : start - 1]
        asked = {
            "two_prefix_prefix_good": f"{agreement.prefix} {agreement.good}{between}",
            "two_prefix_prefix_bad": f"{agreement.prefix} {agreement.bad}{between}",
            "two_prefix_word": good[start:end],
        }
    kind = "_".join(agreement.paradigm.split("_")[:2])
    return {
        "sentence_good": good,
        "sentence_bad": agreement.sentence_bad,
        **asked,
        "field": "morphology",
        "linguistics_term": _TERMS[kind],
        "UID": agreement.paradigm,
        "simple_LM_method": True,
        "one_prefix_method": one_prefix,
        "two_prefix_method": not one_prefix,
        "lexically_identical": kind == "determiner_noun",
        "pairID": str(index),
        "cue": good[start:end],
        "cue_span": [start, end],
        "frame": agreement.frame,
        "number": agreement.number,
    }


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description="Write the bundled minimal pairs, one file a paradigm.")
    default = data_folder() / "minimal_pairs"
    parser.add_argument("--out", type=Path, default=default, help="folder (default: minimal_pairs in the bundled data)")
    write_minimal_pairs(parser.parse_args().out)


if __name__ == "__main__":
    main()
