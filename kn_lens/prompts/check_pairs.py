"""Every problem of a file of minimal pairs: differences, cues, prefixes, numbers, sentences stated twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kn_lens.errors import DataError
from kn_lens.prompts.jsonl import Problems, line_of, read_jsonl
from kn_lens.prompts.minimal_pairs import MinimalPair, read_minimal_pairs
from kn_lens.prompts.relations import begins

_NUMBERS = ("singular", "plural")
_PREFIXES = {  # by form of the pair: a sentence, and the fields that it begins with
    "one_prefix_method": (
        ("sentence_good", "one_prefix_prefix", "one_prefix_word_good"),
        ("sentence_bad", "one_prefix_prefix", "one_prefix_word_bad"),
    ),
    "two_prefix_method": (
        ("sentence_good", "two_prefix_prefix_good", "two_prefix_word"),
        ("sentence_bad", "two_prefix_prefix_bad", "two_prefix_word"),
    ),
}


def check_pairs(path: Path, report: Problems) -> int:
    """Report all problems of a file of minimal pairs.

    A pair whose prefix is compared must differ in one word, have its cue once (before the target in the one-prefix
    form) and begin with the prefixes it names; no good sentence may stand there twice.

    Args:
        path: The file.
        report: Told of each problem.

    Returns:
        How many pairs it holds.
    """
    before = len(report)
    lines: dict[str, str] = {}
    rows = list(read_jsonl(path, ("sentence_good", "sentence_bad"), report))
    for where, row in rows:
        for problem in _pair_problems(row):
            report(where, problem)
        earlier = lines.setdefault(row["sentence_good"].strip(), where)
        if earlier != where:
            report(where, f"sentence_good is that of line {line_of(earlier)} already; remove one")
    if len(report) == before:
        try:
            read_minimal_pairs(path)
        except DataError as error:
            report.of(error)
    return len(rows)


def _pair_problems(row: dict[str, Any]) -> list[str]:
    """What is wrong with one pair: its difference, its cue, its prefixes, its number."""
    good, bad = row["sentence_good"].strip(), row["sentence_bad"].strip()
    if good == bad:
        return [f"sentence_good and sentence_bad are the same: {good!r}"]
    problems: list[str] = []
    if ("number" in row or "cue" in row) and row.get("number") not in _NUMBERS:
        problems.append(f'number is {row.get("number")!r}; write "singular" or "plural"')
    prefixes = next((names for method, names in _PREFIXES.items() if row.get(method)), ())
    if not prefixes:  # whole sentences are compared: they may differ in any way
        return problems
    pair = MinimalPair(sentence_good=good, sentence_bad=bad, form="sentence")
    prefix, word_good, word_bad, rest = pair.difference()
    if rest is None or not word_good or not word_bad or word_good == word_bad:
        return [*problems, f"{good!r} and {bad!r} must differ in exactly one word"]
    return problems + _cue_problems(row, good, prefix, word_good) + _prefix_problems(row, prefixes)


def _cue_problems(row: dict[str, Any], good: str, prefix: str, word: str) -> list[str]:
    cue, span = row.get("cue"), row.get("cue_span")
    if cue is None and span is None:
        return []
    whole = isinstance(span, list) and len(span) == 2 and all(type(bound) is int for bound in span)
    if not whole or not 0 <= span[0] < span[1] <= len(good):  # type: ignore[index]
        return [f"cue_span is {span!r}; expected [start, end] characters of sentence_good"]
    start, end = span  # type: ignore[misc]
    text = good[start:end]
    if cue is not None and text != cue:
        return [f"cue_span {span} holds {text!r}, and cue is {cue!r}; make them the same"]
    times = len(re.findall(rf"(?<!\w){re.escape(text)}(?!\w)", good))
    if times != 1:
        return [f"the cue {text!r} stands {times} times in {good!r} as a word; it must stand there once"]
    target = len(prefix) + (1 if prefix else 0)
    if start < target + len(word) and end > target:
        return [f"the cue {text!r} is the word asked for; give the word that decides it"]
    if row.get("one_prefix_method") and start > target:
        return [
            f"the cue {text!r} stands behind {word!r}; one_prefix_method wants it before (or use two_prefix_method)"
        ]
    return []


def _prefix_problems(row: dict[str, Any], prefixes: tuple[tuple[str, str, str], ...]) -> list[str]:
    names = list(dict.fromkeys(name for _, *fields in prefixes for name in fields))
    missing = [name for name in names if not isinstance(row.get(name), str) or not row[name].strip()]
    if missing:  # copies of BLiMP lack all of them, and the loader can do without
        return [] if len(missing) == len(names) else [f"{', '.join(missing)} missing beside the others of {names}"]
    return [
        f"{sentence} is {row[sentence]!r}; it must begin with {prefix} and {word}, {row[prefix]!r} and {row[word]!r}"
        for sentence, prefix, word in prefixes
        if not begins(f"{row[prefix]} {row[word]}", row[sentence].strip())
    ]
