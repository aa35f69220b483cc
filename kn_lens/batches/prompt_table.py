"""The prompts of a run on disk: written as they are drawn, read a block at a time, never all at once."""

from __future__ import annotations

import shlex
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from kn_lens.batches.storage.durable import sha256_of
from kn_lens.errors import OutputError
from kn_lens.prompts.prompt import Dropped, Prompt

if TYPE_CHECKING:
    from kn_lens.tracing.swap import Swapped

PROMPTS, DROPPED = "prompts.parquet", "dropped.parquet"

_TEXT = ("prefix", "suffix", "target", "foil", "group", "foil_prefix", "form", "source", "template")
_SCHEMA = pa.schema(
    [
        ("data", pa.string()),
        *((name, pa.string()) for name in _TEXT),
        ("cue", pa.string()),
        ("cue_start", pa.int32()),
        ("cue_end", pa.int32()),
        ("twin", pa.string()),
        ("twin_ids", pa.list_(pa.int32())),
        ("twin_answer", pa.int32()),
    ]
)
_DROPPED_SCHEMA = pa.schema([(name, pa.string()) for name in ("data", "text", "reason", "source")])


@dataclass(frozen=True)
class Twin:
    """The twin of a prompt, as :class:`kn_lens.tracing.swap.Swapped` has them."""

    text: str
    ids: tuple[int, ...]
    answer: int


class PromptWriter:
    """Writes prompts, and those left out, into two open files; use as a context manager."""

    def __init__(self, prompts: Any, dropped: Any) -> None:
        self._prompts = pq.ParquetWriter(prompts, _SCHEMA, compression="zstd")
        self._dropped = pq.ParquetWriter(dropped, _DROPPED_SCHEMA, compression="zstd")

    def __enter__(self) -> PromptWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._prompts.close()
        self._dropped.close()

    def write(self, data: str, prompts: Sequence[Prompt], swapped: Swapped | None = None) -> None:
        """Append prompts of a data set, with their twins if they have any."""
        rows = [_row(data, prompt) for prompt in prompts]
        if swapped is not None:
            for row, text, ids, answer in zip(rows, swapped.texts, swapped.ids, swapped.answers, strict=True):
                row |= {"twin": text, "twin_ids": list(ids), "twin_answer": answer}
        if rows:
            self._prompts.write_table(pa.Table.from_pylist(rows, _SCHEMA))

    def drop(self, data: str, dropped: Iterable[Dropped]) -> None:
        """Append prompts that were left out."""
        rows = [{"data": data, "text": one.text, "reason": one.reason, "source": one.source} for one in dropped]
        if rows:
            self._dropped.write_table(pa.Table.from_pylist(rows, _DROPPED_SCHEMA))


class PromptReader:
    """Reads prompts by their numbers.

    Args:
        folder: The run's.
        sha256: That of the file as the manifest has it; None does not ask whether it is still so.

    Raises:
        OutputError: If the file is not there, or damaged.
    """

    def __init__(self, folder: Path, sha256: str | None = None) -> None:
        self.path = folder / PROMPTS
        if sha256 is not None and sha256_of(self.path) != sha256:
            resume = f"`kn-lens resume {shlex.quote(str(folder))}`"
            raise OutputError(f"{self.path} is damaged (its SHA-256 is another): {resume} makes it again")
        try:
            self._file = pq.ParquetFile(self.path)
        except (OSError, pa.ArrowInvalid) as error:
            raise OutputError(f"{self.path} cannot be read ({error})") from None
        groups = range(self._file.num_row_groups)
        self._ends = list(accumulate(self._file.metadata.row_group(group).num_rows for group in groups))
        self._kept: tuple[int, list[dict[str, Any]]] = (-1, [])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, numbers: range) -> list[tuple[Prompt, Twin | None]]:
        """The prompts of consecutive numbers."""
        return [(_prompt(row), _twin(row)) for row in self.rows(numbers)]

    def rows(self, numbers: range) -> list[dict[str, Any]]:
        """The same as the table has them."""
        found: list[dict[str, Any]] = []
        at = numbers.start
        while at < numbers.stop:
            group = bisect_right(self._ends, at)
            first = self._ends[group - 1] if group else 0
            stop = min(numbers.stop, self._ends[group])
            found += self._group(group)[at - first : stop - first]
            at = stop
        return found

    def _group(self, group: int) -> list[dict[str, Any]]:
        if self._kept[0] != group:  # blocks come in order: the last group is most often the next one too
            try:
                self._kept = (group, self._file.read_row_group(group).to_pylist())
            except (OSError, pa.ArrowInvalid) as error:
                raise OutputError(f"{self.path} is damaged ({error})") from None
        return self._kept[1]


def dropped_rows(folder: Path) -> list[dict[str, Any]]:
    """What was left out in planning: data, text, reason, source.

    Raises:
        OutputError: If the file is not there, or damaged.
    """
    try:
        return pq.read_table(folder / DROPPED).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise OutputError(f"{folder / DROPPED} cannot be read ({error})") from None


def _row(data: str, prompt: Prompt) -> dict[str, Any]:
    row: dict[str, Any] = {"data": data, **{name: getattr(prompt, name) for name in _TEXT}}
    if isinstance(prompt.cue, str):
        row["cue"] = prompt.cue
    elif prompt.cue is not None:
        row["cue_start"], row["cue_end"] = prompt.cue
    return row


def _prompt(row: dict[str, Any]) -> Prompt:
    cue = row["cue"] if row["cue_start"] is None else (row["cue_start"], row["cue_end"])
    fields = {name: row[name] for name in _TEXT if name != "prefix"}
    return Prompt(row["prefix"], cue=cue, **fields)


def _twin(row: dict[str, Any]) -> Twin | None:
    return None if row["twin"] is None else Twin(row["twin"], tuple(row["twin_ids"]), row["twin_answer"])
