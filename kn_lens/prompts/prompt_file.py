"""Prompts in JSON Lines, one a line, read as they are asked for: such a file may be longer than memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from typing import Any

from kn_lens.errors import PromptError, near_matches
from kn_lens.prompts.jsonl import Report, read_jsonl, stop
from kn_lens.prompts.prompt import MASK, Prompt

_TEXTS = ("prefix", "suffix", "text", "target", "foil", "foil_prefix", "group")
_FIELDS = (*_TEXTS, "cue")


def is_prompt_row(row: dict[str, Any]) -> bool:
    """Whether a row of JSON Lines is a prompt: it has a target, and a prefix or a text with its blank."""
    return "target" in row and ("prefix" in row or "text" in row)


def read_prompt_file(path: Path, report: Report = stop) -> Iterator[Prompt]:
    """The prompts of rows ``{"prefix": "The capital of France is", "target": "Paris", …}``, one by one.

    Fields: ``target``; ``prefix`` and perhaps ``suffix``, or ``text`` with one ``[MASK]`` for the blank; ``foil``,
    ``foil_prefix`` (a second prefix, after which the target is wrong), ``group``; ``cue``, a text that stands once in
    the prompt, or ``[start, end)`` characters of prefix + suffix, of ``text`` where that is given. Other fields are
    not read; one that looks like one of these misspelled is a problem.

    Args:
        path: The file.
        report: Told of each problem with its ``"file:line"``: a missing field, one that is no text, a cue that is not
            found once, a row with a ``foil_prefix`` among rows without one. By default the first one ends the
            reading; else such rows are left out.

    Raises:
        DataError: A problem that ends the reading, or no such file.
    """
    first: Prompt | None = None
    for where, row in read_jsonl(path, ("target",), report):
        problems = _field_problems(row)
        if not problems:
            try:
                prompt = _prompt(row, where)
            except PromptError as error:
                problems = [str(error)]
            else:
                first = first or prompt
                problems = _form_problems(prompt, first)
                if not problems:
                    yield prompt
        for problem in problems:
            report(where, problem)


def is_prompt_file(path: Path) -> bool:
    """Whether the first sound row of a file of JSON Lines is a prompt."""
    rows = read_jsonl(path, report=lambda where, what: None)
    return any(is_prompt_row(row) for _, row in islice(rows, 1))


def _field_problems(row: dict[str, Any]) -> list[str]:
    problems = [
        f"field {name!r} is {row[name]!r}, not a text"
        for name in _TEXTS
        if name != "target" and row.get(name) is not None and not isinstance(row[name], str)
    ]
    for name in row:
        near = "" if name in _FIELDS else near_matches(name, [field for field in _FIELDS if _alike(name, field)])
        if near:
            problems.append(f"unknown field {name!r}.{near}")
    given = [name for name in ("prefix", "text") if row.get(name) is not None]
    if len(given) != 1:
        problems.append("give 'prefix' or 'text', not both" if given else "field 'prefix' (or 'text') is missing")
    if row.get("text") is not None and row.get("suffix") is not None:
        problems.append(f"'suffix' stands beside 'text', which holds what follows its {MASK}; leave it out")
    if row.get("foil") is not None and row.get("foil_prefix") is not None:
        problems.append("give 'foil' (another word) or 'foil_prefix' (another text before it), not both")
    return problems


def _prompt(row: dict[str, Any], where: str) -> Prompt:
    """The prompt of a row whose fields are right.

    Raises:
        PromptError: If they make no prompt.
    """
    fields: dict[str, Any] = {
        "foil": row.get("foil"),
        "foil_prefix": row.get("foil_prefix"),
        "form": "two_prefix" if row.get("foil_prefix") is not None else "cloze",
        "group": row.get("group"),
        "source": where,
    }
    text, cue = row.get("text"), row.get("cue")
    if text is None:
        prompt = Prompt(row["prefix"], suffix=row.get("suffix") or "", target=row["target"], **fields)
    else:
        prompt = Prompt.from_cloze(text, row["target"], **fields)
    if cue is None:
        return prompt
    if isinstance(cue, list):
        if len(cue) != 2 or any(type(bound) is not int for bound in cue):
            raise PromptError(f"cue is {cue!r}; write a text, or [start, end] characters")
        cue = (cue[0], cue[1]) if text is None else _without_blank((cue[0], cue[1]), text, prompt)
    elif not isinstance(cue, str) or not cue.strip():
        raise PromptError(f"cue is {cue!r}; write a text, or [start, end] characters")
    prompt = replace(prompt, cue=cue)
    prompt.cue_span()  # raises where it is not found once
    return prompt


def _without_blank(span: tuple[int, int], text: str, prompt: Prompt) -> tuple[int, int]:
    """A span of a text with its blank as one of prefix + suffix."""
    start, end = span
    blank = text.index(MASK)
    if 0 <= start < end <= len(prompt.prefix):
        return start, end
    if start < blank + len(MASK) or not start < end <= len(text):
        raise PromptError(f"cue span {span} of {text!r} lies outside it, or holds its blank")
    moved = len(prompt.prefix + prompt.suffix) - len(text)  # counted from the end, which stays as it was
    return max(start + moved, len(prompt.prefix)), end + moved


def _form_problems(prompt: Prompt, first: Prompt) -> list[str]:
    """Pairs of prefixes are measured in another way than one prefix: no batch holds both."""
    if (prompt.foil_prefix is None) == (first.foil_prefix is None):
        return []
    has = ("no 'foil_prefix'", "one") if prompt.foil_prefix is None else ("a 'foil_prefix'", "none")
    line = str(first.source).rpartition(":")[2]
    return [f"{has[0]} here and {has[1]} in line {line}; put them into two files"]


def _alike(name: str, field: str) -> bool:
    """Whether a name is a field misspelled rather than a word of its own."""
    return SequenceMatcher(None, name.lower(), field).ratio() >= 0.8
