"""Facts for causal tracing in the format of Meng et al. (2022): subject, attribute and prompt in one JSON list."""

from __future__ import annotations

from pathlib import Path

from kn_lens.errors import DataError, PromptError
from kn_lens.prompts.jsonl import read_json
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.relations import Relation


def read_known_facts(path: Path, name: str | None = None) -> Relation:
    """``[{"subject", "attribute", "prompt", …}, …]`` as facts of one prompt each.

    ``prompt`` is taken as it stands: it may be longer than the filled template.

    Raises:
        DataError: If the file is no such list, or an entry lacks a field; entry named by number.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a list of facts, [{{…}}, …], that is not empty")
    facts: dict[str, tuple[Prompt, ...]] = {}
    for number, row in enumerate(rows):
        where = f"{path}[{number}]"
        for field in ("subject", "attribute", "prompt"):
            value = row.get(field) if isinstance(row, dict) else None
            if not isinstance(value, str) or not value.strip():
                raise DataError(f"{where}: field {field!r} is missing, or no text")
        fact = f"{row['subject']} → {row['attribute']}"
        fact = fact if fact not in facts else f"{fact} ({number})"
        cue = row["subject"] if row["prompt"].count(row["subject"]) == 1 else None
        try:
            prompt = Prompt(row["prompt"], target=row["attribute"], cue=cue, group=fact, source=where)
        except PromptError as error:
            raise DataError(f"{where}: {error}") from None
        facts[fact] = (prompt,)
    return Relation(name=name or path.stem, facts=facts, label="known facts", path=path)
