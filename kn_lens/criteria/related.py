"""What goes with a relation: its inverse, the relation that says the same in other words, others of its subjects."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from kn_lens.bundled import data_folder
from kn_lens.prompts.load import bundled_names
from kn_lens.prompts.relations import Relation, read_about, read_relation, templates_path


@dataclass(frozen=True)
class Synonyms:
    """How another relation says what a relation states.

    Attributes:
        relation: The other one, ``P106`` (occupation) for ``P101`` (field of work).
        words: Its object by object, in lower case: ``{"physics": "physicist"}``.
    """

    relation: Relation
    words: dict[str, str]


def inverse_of(relation: Relation) -> Relation | None:
    """The inverse relation, from a file beside the relation's own or a bundled one; None if there is none.

    A relation that names no inverse (``pararel:P36``) has that of the bundled relation of its name.
    """
    name = relation.inverse or _bundled_about().get(relation.name, {}).get("inverse")
    if name is None:
        return None
    beside = None if relation.path is None else relation.path.with_name(f"{name}.jsonl")
    for path in (beside, _bundled_path(name)):
        if path is not None and path.is_file() and templates_path(path).is_file():
            return _read(path)
    return None


def synonyms_of(relation: Relation) -> Synonyms | None:
    """Occupation by field of work, or the other way round; None unless most objects are of one of these kinds."""
    fields = _fields()
    counts = Counter(fields.values())
    occupations = {word: name for name, word in fields.items() if counts[word] == 1}
    objects = [pair[1].lower() for pair in relation.pairs.values()]
    for words, other in ((fields, "P106"), (occupations, "P101")):
        path = _bundled_path(other)
        if path.is_file() and 2 * sum(word in words for word in objects) > len(objects):
            return Synonyms(_read(path), words)
    return None


def relations_of_same_subjects(relation: Relation, but: Iterable[str]) -> tuple[Relation, ...]:
    """The bundled relations that share subjects with a relation, except itself and those named."""
    subjects = {subject for subject, _ in relation.pairs.values()}
    names = [name for name in bundled_names() if _bundled_path(name).is_file()]
    others = [_read(_bundled_path(name)) for name in names if name not in {relation.name, *but}]
    return tuple(other for other in others if any(subject in subjects for subject, _ in other.pairs.values()))


def templates_of(relation: Relation) -> tuple[str, ...]:
    """A relation's templates that are not held out, in the order of its file; all if all are."""
    first = next(iter(relation.facts.values()), ())
    texts = [prompt.template for prompt in first if prompt.template is not None]
    return tuple(text for text in texts if text not in relation.held_out) or tuple(texts)


def with_inverse() -> list[str]:
    """Names of the bundled relations that have an inverse."""
    return sorted(name for name, about in _bundled_about().items() if about.get("inverse"))


def with_synonyms() -> list[str]:
    """Names of the bundled relations that have synonyms."""
    paths = {name: _bundled_path(name) for name in _bundled_about()}
    return sorted(name for name, path in paths.items() if path.is_file() and synonyms_of(_read(path)) is not None)


def _bundled_path(name: str) -> Path:
    return data_folder() / "relations" / f"{name}.jsonl"


def _bundled_about() -> dict[str, dict]:
    return read_about(data_folder() / "relations" / "relations.json")


def _fields() -> dict[str, str]:
    return json.loads((data_folder() / "synonyms.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=32)
def _read(path: Path) -> Relation:
    return read_relation(path)
