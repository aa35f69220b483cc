"""Facts: a relation's subjects and objects, put into its templates; and ParaRel's bags of prompts."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kn_lens.errors import DataError
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.groups import gather_groups
from kn_lens.prompts.jsonl import read_json, read_jsonl
from kn_lens.prompts.prompt import MASK, Prompt

_SLOT = re.compile(r"\{(subject|object)\}")


@dataclass(frozen=True, kw_only=True)
class Relation:
    """The facts of one relation, each with its paraphrased prompts.

    Attributes:
        name: ``"P36"``.
        facts: Prompts by fact, ``"France → Paris"``.
        label: ``"capital"``.
        inverse: Name of the inverse relation, or None.
        path: Where it was read.
    """

    name: str
    facts: dict[str, tuple[Prompt, ...]] = field(repr=False)
    label: str = ""
    inverse: str | None = None
    path: Path | None = None
    kind: Literal["facts"] = "facts"

    def __len__(self) -> int:
        return len(self.facts)

    def prompts(
        self,
        model: Any,
        *,
        groups: int | None = None,
        per_group: int | None = None,
        seed: int = 0,
        targets: Literal["single", "any"] = "single",
    ) -> PromptBatch:
        """Prompts for ``model``, grouped by fact; what it cannot be asked is counted in ``.dropped``.

        Args:
            model: A loaded model. A causal one takes the templates that end in the object.
            groups: How many facts, drawn with ``seed``; None takes all.
            per_group: How many templates of each; None takes all.
            seed: Of the draw.
            targets: ``"single"`` leaves out objects of several tokens, ``"any"`` keeps them.

        Raises:
            PromptError: If the model can be asked none of them, with the reasons.
        """
        return gather_groups(model, self.facts, groups=groups, per_group=per_group, seed=seed, targets=targets)


def read_relation(path: Path, name: str | None = None) -> Relation:
    """A relation from ``P36.jsonl`` (subject, object) and ``P36.templates.jsonl`` beside it.

    Raises:
        DataError: A broken line, a missing field, a template without one ``{subject}`` and one
            ``{object}``, or a fact stated twice; with file and line.
    """
    name = name or path.stem
    templates_path = path.with_name(f"{path.stem}.templates.jsonl")
    templates: list[tuple[str, str]] = []
    for where, row in read_jsonl(templates_path, required=("template",)):
        slots = sorted(_SLOT.findall(row["template"]))
        if slots != ["object", "subject"]:
            raise DataError(
                f"{where}: template {row['template']!r} holds {', '.join(slots) or 'no slot'}; write exactly one "
                f"{{subject}} and one {{object}}"
            )
        templates.append((where, row["template"]))
    facts: dict[str, tuple[Prompt, ...]] = {}
    for where, row in read_jsonl(path, required=("subject", "object")):
        fact = f"{row['subject']} → {row['object']}"
        if fact in facts:
            raise DataError(f"{where}: the fact {fact!r} is stated twice")
        facts[fact] = tuple(_fill(template, row, fact, where) for _, template in templates)
    about = _about(path.with_name("relations.json")).get(name, {})
    return Relation(name=name, facts=facts, label=about.get("name", name), inverse=about.get("inverse"), path=path)


def read_pararel(path: Path, name: str) -> Relation:
    """One relation of ParaRel as Dai et al. store it: ``{relation: [[[prompt, answer, tag], …], …]}``.

    Raises:
        DataError: If the file is broken or holds no such relation.
    """
    bags = read_json(path)
    if name not in bags:
        raise DataError(f"{path} holds no relation {name!r}; it has {', '.join(sorted(bags))}")
    facts: dict[str, tuple[Prompt, ...]] = {}
    label = name
    for number, bag in enumerate(bags[name]):
        where = f"{path} {name}[{number}]"
        try:
            subject = _common_subject([entry[0] for entry in bag])
            label = bag[0][2].split("(")[-1].rstrip(")")
            fact = f"{subject or number} → {bag[0][1]}"
            if fact in facts:
                fact = f"{fact} ({number})"
            facts[fact] = tuple(
                Prompt.from_cloze(text, answer, group=fact, cue=_once(subject, text), source=where)
                for text, answer, _ in bag
            )
        except (IndexError, TypeError, ValueError) as error:
            raise DataError(f"{where}: not a bag of [prompt, answer, relation] ({error})") from None
    return Relation(name=name, facts=facts, label=label, path=path)


def _fill(template: str, row: dict[str, Any], fact: str, where: str) -> Prompt:
    """A template with its subject filled in and its object left blank; the cue is the subject."""
    before, after = template.split("{object}")
    subject = row["subject"]
    blank = len(before.rstrip())  # where the text goes on behind the object
    start = before.index("{subject}") if "{subject}" in before else blank + after.index("{subject}")
    return Prompt(
        before.replace("{subject}", subject).rstrip(),
        suffix=after.replace("{subject}", subject),
        target=row["object"],
        cue=(start, start + len(subject)),
        group=fact,
        source=where,
    )


def _about(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _common_subject(texts: list[str]) -> str:
    """The longest run of words, capitalised first, that all prompts of a bag share: their subject."""
    words = [text.replace(MASK, "").replace("'s", " ").strip(" .,").split() for text in texts]
    words = [[word.strip(".,") for word in entry] for entry in words]
    first = words[0]
    runs = [first[i:j] for i in range(len(first)) for j in range(len(first), i, -1)]
    joined = [f" {' '.join(entry)} " for entry in words]
    shared = [run for run in runs if all(f" {' '.join(run)} " in text for text in joined)]
    named = [run for run in shared if run[0][:1].isupper() or run[0][:1].isdigit()] or shared
    return " ".join(max(named, key=len, default=[]))


def _once(subject: str, text: str) -> str | None:
    found = re.findall(rf"(?<!\w){re.escape(subject)}(?!\w)", text) if subject else []
    return subject if len(found) == 1 else None
