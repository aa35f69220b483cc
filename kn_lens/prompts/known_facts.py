"""Facts for causal tracing in the format of Meng et al. (2022): subject, attribute and prompt in one JSON list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kn_lens.errors import DataError, PromptError
from kn_lens.prompts.jsonl import Report, read_json, stop
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.relations import Relation

_FIELDS = ("subject", "attribute", "prompt")


def read_known_facts(path: Path, name: str | None = None, report: Report = stop) -> Relation:
    """``[{"subject", "attribute", "prompt", …}, …]`` as facts of one prompt each.

    ``prompt`` is taken as it stands: it may be longer than the filled template.

    Args:
        path: The file.
        name: What the facts are called; by default the file's stem.
        report: Told of each entry that lacks a field, or makes no prompt, by its number. By default the first one ends
            the reading; else such entries are left out.

    Raises:
        DataError: If the file is no such list, or at a problem that ends the reading.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a list of facts, [{{…}}, …], that is not empty")
    facts: dict[str, tuple[Prompt, ...]] = {}
    for number, row in enumerate(rows):
        where = f"{path}[{number}]"
        broken = [field for field in _FIELDS if not _is_text(row.get(field) if isinstance(row, dict) else None)]
        for field in broken:
            report(where, f"field {field!r} is missing, or no text")
        if broken:
            continue
        fact = f"{row['subject']} → {row['attribute']}"
        fact = fact if fact not in facts else f"{fact} ({number})"
        cue = row["subject"] if row["prompt"].count(row["subject"]) == 1 else None
        try:
            prompt = Prompt(row["prompt"], target=row["attribute"], cue=cue, group=fact, source=where)
        except PromptError as error:
            report(where, str(error))
            continue
        facts[fact] = (prompt,)
    return Relation(name=name or path.stem, facts=facts, label="known facts", path=path)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
