"""Facts for causal tracing in the format of Meng et al. (2022): subject, attribute and prompt in one JSON list."""

from __future__ import annotations

import json
from pathlib import Path

from kn_lens.errors import DataError, PromptError
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.relations import Relation


def read_known_facts(path: Path, name: str | None = None) -> Relation:
    """``[{"subject", "attribute", "prompt", …}, …]`` as facts of one prompt each.

    ``prompt`` is taken as it stands: it may be longer than the filled template.

    Raises:
        DataError: If the file is no such list, or an entry lacks a field; entry named by number.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a list of facts, [{{…}}, …], that is not empty")
    facts: dict[str, tuple[Prompt, ...]] = {}
    for number, row in enumerate(rows):
        where = f"{path}[{number}]"
        for field in ("subject", "attribute", "prompt"):
            if not isinstance(row, dict) or not str(row.get(field) or "").strip():
                raise DataError(f"{where}: field {field!r} is missing")
        fact = f"{row['subject']} → {row['attribute']}"
        fact = fact if fact not in facts else f"{fact} ({number})"
        cue = row["subject"] if row["prompt"].count(row["subject"]) == 1 else None
        try:
            prompt = Prompt(row["prompt"], target=row["attribute"], cue=cue, group=fact, source=where)
        except PromptError as error:
            raise DataError(f"{where}: {error}") from None
        facts[fact] = (prompt,)
    return Relation(name=name or path.stem, facts=facts, label="known facts", path=path)
