"""Facts to be edited in CounterFact's format (Meng et al. 2022): each with a rephrasing and a neighbor."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kn_lens.errors import DataError, PromptError
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.jsonl import read_json

_TEXTS = (
    "subject",
    "prompt",
    "target_new",
    "ground_truth",
    "rephrase_prompt",
    "locality_prompt",
    "locality_ground_truth",
)


@dataclass(frozen=True)
class CounterFact:
    """One entry.

    Attributes:
        case_id: Its number in the published data.
        fact: What is to be edited.
        rephrase: The question in other words, up to its blank.
        neighbor: A question about another subject, up to its blank.
        neighbor_answer: The right answer to that.
    """

    case_id: str
    fact: Fact
    rephrase: str
    neighbor: str
    neighbor_answer: str


@dataclass(frozen=True, kw_only=True)
class CounterFacts:
    """The entries of one file."""

    name: str
    entries: tuple[CounterFact, ...] = field(repr=False)
    path: Path | None = None
    kind: Literal["edits"] = "edits"

    def __len__(self) -> int:
        return len(self.entries)


def is_counter_facts(rows: Any) -> bool:
    """Whether a JSON value is a list of edits, not one of known facts."""
    first = rows[0] if isinstance(rows, list) and rows else None
    return isinstance(first, dict) and "target_new" in first


def read_counter_facts(path: Path, name: str | None = None) -> CounterFacts:
    """``[{"case_id", "subject", "prompt", "target_new", "ground_truth", "rephrase_prompt", …}, …]``.

    Raises:
        DataError: If the file is no such list, or an entry lacks a field or contradicts itself; entry named by number.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: expected a list of edits, [{{…}}, …], that is not empty")
    return CounterFacts(
        name=name or path.stem,
        entries=tuple(_entry(row, number, f"{path}[{number}]") for number, row in enumerate(rows)),
        path=path,
    )


def _entry(row: Any, number: int, where: str) -> CounterFact:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object {{…}}, found {type(row).__name__}")
    for name in _TEXTS:
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            problem = "is missing" if name not in row else f"is {value!r}, not a text"
            raise DataError(f"{where}: field {name!r} {problem}")
    texts = {name: row[name].strip() for name in _TEXTS}
    try:
        fact = Fact(texts["prompt"], texts["subject"], texts["target_new"], old=texts["ground_truth"], source=where)
    except PromptError as error:
        raise DataError(f"{where}: {error}") from None
    return CounterFact(
        case_id=str(row.get("case_id", number)),
        fact=fact,
        rephrase=texts["rephrase_prompt"],
        neighbor=texts["locality_prompt"],
        neighbor_answer=texts["locality_ground_truth"],
    )
