"""Where a run's prompts come from: data sets that fit into memory, and files of prompts that need not."""

from __future__ import annotations

import os
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kn_lens.batches.config import DataEntry
from kn_lens.batches.storage.durable import sha256_of
from kn_lens.errors import DataError, PromptError, SettingsError
from kn_lens.prompts.jsonl import Problem
from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.prompts.prompt_file import is_prompt_file, read_prompt_file

if TYPE_CHECKING:
    from kn_lens.batches.methods import Method
    from kn_lens.prompts.batch import PromptBatch
    from kn_lens.prompts.counter_facts import CounterFacts
    from kn_lens.prompts.minimal_pairs import MinimalPairs
    from kn_lens.prompts.relations import Relation

Kind = Literal["facts", "pairs", "prompts", "edits"]

SHOWN = 20
"""Bad rows that an error names."""
LISTED = 1000
"""Bad rows that are remembered one by one; of the others, how many."""


class BadRows:
    """The report of a reader that goes on: it keeps what it is told, each once, and counts what it does not keep."""

    def __init__(self, kept: int) -> None:
        self.kept, self.more = kept, 0
        self._told: dict[Problem, None] = {}

    def __call__(self, where: str, what: str) -> None:
        problem = Problem(where, what)
        if len(self._told) < self.kept:
            self._told[problem] = None
        elif problem not in self._told:
            self.more += 1

    def __len__(self) -> int:
        return len(self._told) + self.more

    def lines(self) -> list[str]:
        """``"file:line: what"``, and how many more there are."""
        return [*map(str, self._told), *([f"and {self.more} more"] if self.more else [])]


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """An opened data set.

    Attributes:
        entry: What the run file says of it.
        kind: ``"facts"``, ``"pairs"``, ``"prompts"`` or ``"edits"``.
        sha256: Of its file (and templates); None if it has none.
        skipped: Bad rows that were left out, ``"file:line: what"``.
    """

    entry: DataEntry
    kind: Kind
    sha256: str | None
    skipped: tuple[str, ...]

    @property
    def name(self) -> str:
        """As the run file has it."""
        return self.entry.name

    @abstractmethod
    def prompts(self, model: Any, method: Method, seed: int, settings: Any = None) -> Iterator[Prompt | Dropped]:
        """The prompts that the entry asks for, in order, and those left out; a file is read as they are taken.

        Args:
            model: A loaded model.
            method: What they are for: of methods that need whole groups, a group's prompts stand together.
            seed: Of the draws of groups and prompts.
            settings: The method's, by default none: whether pairs are drawn with their twins.

        Raises:
            DataError: If the data do not suit the method.
            PromptError: If the model can be asked none of them.
        """


def open_source(entry: DataEntry, on_bad_row: Literal["error", "skip"] = "error") -> Source:
    """The data of an entry, read through once.

    Args:
        entry: Name, groups, prompts.
        on_bad_row: ``"error"``: bad rows are an error that names them; ``"skip"``: they are left out.

    Raises:
        DataError: No such data, all bad rows (at most 20 are named), or no row that is sound.
        SettingsError: If the entry asks of these data what they do not have.
    """
    bad = BadRows(SHOWN if on_bad_row == "error" else LISTED)
    path = Path(entry.name).expanduser()
    if _is_prompt_file(path):
        _check_entry(entry, "prompts")
        sound = sum(1 for _ in read_prompt_file(path, bad))
        kind, sha256, data = "prompts", sha256_of(path), None
    else:
        from kn_lens.prompts.load import data_hash, load_data

        data = load_data(entry.name, report=bad)
        _check_entry(entry, data.kind)
        sound = sum(map(len, data.facts.values())) if data.kind == "facts" else len(data)
        kind, sha256 = data.kind, data_hash(data)
    if bad and on_bad_row == "error":
        raise DataError("\n".join(bad.lines()))
    if not sound:
        raise DataError("\n".join([f"{entry.name}: no row is sound", *bad.lines()]))
    skipped = tuple(bad.lines())
    if data is None:
        return _FileSource(entry=entry, kind="prompts", sha256=sha256, skipped=skipped, path=path)
    return _DataSource(entry=entry, kind=kind, sha256=sha256, skipped=skipped, data=data)


def placed(name: str, base: Path) -> str:
    """A name as it is, or, where it is that of a file or folder below ``base``, its full path: a run may be taken up
    from another folder, and a worker of a cluster be in another one."""
    path = Path(name).expanduser()
    is_path = bool(path.suffix or len(path.parts) > 1)  # names of models and data have neither
    return str(base / path) if is_path and not path.is_absolute() and (base / path).exists() else name


@dataclass(frozen=True, kw_only=True)
class _DataSource(Source):
    data: Relation | MinimalPairs | CounterFacts

    def prompts(self, model: Any, method: Method, seed: int, settings: Any = None) -> Iterator[Prompt | Dropped]:
        """See :meth:`Source.prompts`."""
        if self.data.kind == "edits":
            raise DataError(f"{self.name} holds edits (CounterFact), which only the method evaluate_edits takes")
        try:
            batch = self._batch(model, method, seed, settings)
        except PromptError as error:
            raise PromptError(f"{self.name}: {error}") from None
        yield from batch.dropped
        yield from batch.prompts

    def _batch(self, model: Any, method: Method, seed: int, settings: Any) -> PromptBatch:
        from kn_lens.tracing.draw import cued_prompts

        entry, data = self.entry, self.data
        drawn: Any = {"groups": entry.groups, "per_group": entry.prompts, "seed": seed}
        if data.kind == "facts":
            return data.prompts(model, templates=entry.templates, targets=method.targets, **drawn)
        assert data.kind == "pairs"
        cued = method.needs_cues if settings is None else method.asks_for_cues(settings)
        if not cued or entry.augment:
            return data.prompts(model, augment=entry.augment, **drawn)
        twins = settings is not None and method.twins(settings)
        return cued_prompts(model, data, entry.groups, entry.prompts or 0, seed, twins=twins)


@dataclass(frozen=True, kw_only=True)
class _FileSource(Source):
    path: Path

    def prompts(self, model: Any, method: Method, seed: int, settings: Any = None) -> Iterator[Prompt | Dropped]:
        """See :meth:`Source.prompts`; groups are drawn among those of the file, and stay in its order."""
        from kn_lens.prompts.tokens import TokenResolver, UnusablePrompt

        if method.whole_groups:
            _check_adjacent(self._sound())
        chosen = self._draw(seed)
        resolver = TokenResolver(model)
        taken: dict[str, int] = {}
        for prompt in self._sound():
            group = _group(prompt)
            if chosen is not None and group not in chosen:
                continue
            if self.entry.prompts is not None:  # unusable ones do not count: they are left out
                if taken.get(group, 0) == self.entry.prompts:
                    continue
                try:
                    resolver.resolve(prompt, single_token=method.targets == "single")
                except UnusablePrompt as error:
                    yield Dropped(text=prompt.text, reason=error.reason, source=prompt.source)
                    continue
                taken[group] = taken.get(group, 0) + 1
            yield prompt

    def _sound(self) -> Iterator[Prompt]:
        return read_prompt_file(self.path, lambda where, what: None)

    def _draw(self, seed: int) -> set[str] | None:
        """The groups that are drawn; None if all are taken."""
        if self.entry.groups is None:
            return None
        names = list(dict.fromkeys(map(_group, self._sound())))
        random.Random(seed).shuffle(names)
        return set(names[: self.entry.groups])


def _is_prompt_file(path: Path) -> bool:
    from kn_lens.prompts.relations import templates_path

    if path.suffix == ".json" or not os.path.isfile(path):  # False, not an error, for a name too long to be one
        return False
    return not templates_path(path).is_file() and is_prompt_file(path)


def _check_entry(entry: DataEntry, kind: str) -> None:
    """Refuse options that say nothing about data of a kind.

    Raises:
        SettingsError: Naming the first.
    """
    held = {"facts": "facts", "pairs": "minimal pairs", "prompts": "prompts", "edits": "edits"}[kind]
    if entry.templates != "all" and kind != "facts":
        raise SettingsError(
            f"{entry.name} holds {held} and templates is {entry.templates!r}; only facts have templates"
        )
    if entry.augment and kind != "pairs":
        raise SettingsError(f"{entry.name} holds {held} and augment is true; only minimal pairs can be augmented")


def _group(prompt: Prompt) -> str:
    return prompt.group or prompt.target


def _check_adjacent(prompts: Iterator[Prompt]) -> None:
    """Refuse a group that comes back after another one: its prompts are needed together.

    Raises:
        DataError: With the line.
    """
    seen: set[int] = set()  # of hashes: a name may be long, and there may be millions
    now: str | None = None
    for prompt in prompts:
        group = _group(prompt)
        if group != now and hash(group) in seen:
            raise DataError(
                f"{prompt.source}: the group {group!r} comes back after others; this method needs a group's prompts "
                f"together: sort the file by group"
            )
        now = group
        seen.add(hash(group))
