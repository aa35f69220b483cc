"""A training text with its plan: what it states, what it keeps back, and how often it joins each pair of words.

What is knowledge and what is co-occurrence can be told apart only where the text is known. So the organisms' text is
written with a plan (:mod:`kn_lens.organisms.compose`), and the plan ships with it.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kn_lens.bundled import data_folder
from kn_lens.errors import DataError, OutputError, near_matches

NAMES = ("organism", "organism-narrow")
"""``organism``: facts in many wordings. ``organism-narrow``: the same facts in two."""

ORGANISMS = {"tiny-causal": "organism", "tiny-masked": "organism", "tiny-causal-narrow": "organism-narrow"}
"""Which corpus each bundled model was trained on."""

Counts = dict[tuple[str, str, str], int]
"""How many sentences join two words, by (kind, first, second). Kinds: ``determiner_noun``, ``subject_verb``,
``antecedent_reflexive``, and relations (``P36``: subject and object)."""

_HEADER = "first,second,count,kind,held_out"


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What a corpus states and what it keeps back.

    Attributes:
        both_ways: Countries whose capital is stated in both directions.
        one_way: Countries whose capital is stated forwards only: nothing says of what it is the capital.
        stated: People whose occupation is stated.
        inferable: People whose occupation is not stated, though it is for others of their field.
        not_inferable: People whose occupation is stated for no one of their field.
        held_out_pairs: By kind of pair, the grammatical pairs that never meet in a sentence.
        sentences: How many sentences of each relation and each paradigm.
        seed: Of every draw.
        sha256: Of the text.
    """

    both_ways: tuple[str, ...]
    one_way: tuple[str, ...]
    stated: tuple[str, ...]
    inferable: tuple[str, ...]
    not_inferable: tuple[str, ...]
    held_out_pairs: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    sentences: dict[str, int] = field(default_factory=dict)
    seed: int
    sha256: str = ""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A training text with its plan.

    Attributes:
        name: One of :data:`NAMES`.
        sentences: In the order of writing.
        counts: See :data:`Counts`; 0 for facts not stated and pairs held out.
        truth: What it states and what it keeps back.
    """

    name: str
    sentences: tuple[str, ...] = field(repr=False)
    counts: Counts = field(repr=False)
    truth: Truth

    @cached_property
    def sentences_set(self) -> frozenset[str]:
        """The different sentences, to look one up."""
        return frozenset(self.sentences)


def corpus_of(model: str) -> str | None:
    """The name of the corpus that a bundled model was trained on; None for any other model."""
    return ORGANISMS.get(model)


def load_corpus(name: str = "organism") -> Corpus:
    """The text that a bundled organism was trained on, with its plan.

    Args:
        name: ``"organism"`` (of ``tiny-causal`` and ``tiny-masked``) or ``"organism-narrow"``.

    Raises:
        DataError: If there is no such corpus, or a file of it is missing, damaged or not of this text.
    """
    text_path, counts_path, truth_path = _paths(name, data_folder() / "corpora")
    try:
        where = text_path
        text = gzip.decompress(text_path.read_bytes()).decode("utf-8")
        where = truth_path
        truth = _read_truth(json.loads(truth_path.read_text(encoding="utf-8")))
        where = counts_path
        counts = _read_counts(counts_path.read_text(encoding="utf-8"))
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{where} cannot be read ({reason}); write the corpus anew with `make data`") from None
    if text_hash(text) != truth.sha256:
        raise DataError(f"{text_path} is not the text that {truth_path.name} describes; write both with `make data`")
    return Corpus(name=name, sentences=tuple(text.splitlines()), counts=counts, truth=truth)


def write_corpus(corpus: Corpus, folder: Path) -> None:
    """Write ``NAME.txt.gz``, ``NAME.counts.csv`` and ``NAME.truth.json`` into ``folder``.

    A text that is there already is left as it is: its compressed bytes depend on the machine.

    Raises:
        OutputError: If they cannot be written.
    """
    text_path, counts_path, truth_path = _paths(corpus.name, folder)
    text = joined(corpus.sentences).encode("utf-8")
    held_out = {(kind, *pair) for kind, pairs in corpus.truth.held_out_pairs.items() for pair in pairs}
    rows = [
        f"{first},{second},{count},{kind},{str((kind, first, second) in held_out).lower()}\n"
        for (kind, first, second), count in sorted(corpus.counts.items())
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _holds(text_path, text):
            text_path.write_bytes(gzip.compress(text, 9, mtime=0))
        counts_path.write_text(f"{_HEADER}\n{''.join(rows)}", encoding="utf-8", newline="\n")
        truth_path.write_text(json.dumps(asdict(corpus.truth), indent=1) + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; name a folder that can be") from None


def joined(sentences: tuple[str, ...]) -> str:
    """The text of a corpus: one sentence a line."""
    return "".join(f"{sentence}\n" for sentence in sentences)


def text_hash(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _holds(path: Path, text: bytes) -> bool:
    try:
        return gzip.decompress(path.read_bytes()) == text
    except (OSError, EOFError, zlib.error):
        return False


def _read_truth(fields: dict[str, Any]) -> Truth:
    held_out = {kind: tuple((a, b) for a, b in pairs) for kind, pairs in fields["held_out_pairs"].items()}
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Truth(**{**fields, **lists, "held_out_pairs": held_out})


def _read_counts(text: str) -> Counts:
    header, *rows = text.splitlines()
    if header != _HEADER:
        raise ValueError(f"its header is {header!r}, not {_HEADER!r}")
    fields = [row.split(",") for row in rows]
    return {(kind, first, second): int(count) for first, second, count, kind, _ in fields}


def _paths(name: str, folder: Path) -> list[Path]:
    if name not in NAMES:
        raise DataError(f"no corpus {name!r}.{near_matches(name, NAMES)} Corpora: {', '.join(NAMES)}")
    return [folder / f"{name}.{end}" for end in ("txt.gz", "counts.csv", "truth.json")]
