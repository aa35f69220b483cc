"""What a run and its parts say of themselves: the manifest, its tasks, and the record that each finished part has."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar, overload

from pydantic import BaseModel, ConfigDict, ValidationError

from kn_lens._version import __version__
from kn_lens.batches.storage.durable import FileRecord, canonical
from kn_lens.errors import OutputError

FORMAT = 1
"""Of the manifest and the records. Whatever the format, ``format`` and ``checksum`` mean the same."""


class DamagedManifest(OutputError):
    """A manifest that is not as it was written."""


_Kind = TypeVar("_Kind", bound="Sealed")


class LeftOut(BaseModel):
    """A prompt without a result: its number within the run, its text, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: int
    text: str
    reason: str


class DataPlan(BaseModel):
    """A data set of a run, as it was planned.

    Attributes:
        name: As in the run file.
        kind: ``facts``, ``pairs``, ``prompts`` or ``edits``.
        sha256: Of its file, if it has one.
        first: Number of its first prompt within the run.
        prompts: How many it has.
        starts: Where each block begins, counted within the data set.
        dropped: How many prompts were left out in planning, by reason.
        skipped: Bad rows of the file, ``file:line: what``.
        prepared: What was measured over all its prompts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: str
    sha256: str | None
    first: int
    prompts: int
    starts: list[int]
    dropped: dict[str, int]
    skipped: list[str]
    prepared: dict[str, Any]


class Sealed(BaseModel):
    """JSON with a checksum: SHA-256 of all its other fields as canonical JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    checksum: str = ""

    def sealed(self: _Kind) -> _Kind:
        """The same with its checksum."""
        return self.model_copy(update={"checksum": _checksum(self.model_dump(mode="json"))})


class PartRecord(Sealed):
    """What a task left.

    Attributes:
        run: Fingerprint of the run.
        task: Its number.
        files: By name; none if no prompt has a result.
        prompts: How many the task had.
        done: How many of them have a result.
        dropped: Those that the method left out.
        failed: Those that it failed on.
        seconds: How long it took.
        worker: ``host:pid``.
        finished: When, for people; nothing reads it.
    """

    run: str
    task: int
    files: dict[str, FileRecord]
    prompts: int
    done: int
    dropped: list[LeftOut] = []
    failed: list[LeftOut] = []
    seconds: float
    worker: str
    finished: str

    def says_the_same(self, other: PartRecord) -> bool:
        """Whether two records are of the same part, whoever made it and when."""
        by_whom = {"seconds", "worker", "finished", "checksum"}
        return self.model_dump(exclude=by_whom) == other.model_dump(exclude=by_whom)


class Manifest(Sealed):
    """What a run is: written once, when it is planned.

    Attributes:
        run: Fingerprint of all that decides its results.
        config: The run file's content.
        variants: What the method is repeated over.
        data: Its data sets.
        prompts_sha256: Of the file of its prompts.
        dropped_sha256: Of the file of those that planning left out.
        provenance: Model, hash of its weights, versions, device.
        host: Where it was planned; relative names of files are below its ``folder``.
        created: When, for people.
    """

    run: str
    config: dict[str, Any]
    variants: list[str]
    data: list[DataPlan]
    prompts_sha256: str
    dropped_sha256: str
    provenance: dict[str, Any]
    host: dict[str, Any]
    created: str


def read_record(raw: bytes, where: str) -> PartRecord:
    """The record of a part.

    Args:
        raw: Its JSON.
        where: Its file, for errors.

    Raises:
        ValueError: Saying what is damaged. The checksum is looked at before the format: a damaged number there is no
            reason to ask for an update.
        OutputError: If a newer kn_lens wrote it.
    """
    fields = _fields(raw)
    if fields.get("checksum") != _checksum(fields):
        raise ValueError("its checksum does not fit")
    _check_format(fields, where)
    return _validated(PartRecord, fields)


def read_manifest(raw: bytes, where: str) -> Manifest:
    """The manifest of a run; arguments as of :func:`read_record`.

    Raises:
        DamagedManifest: If it is damaged.
        OutputError: If a newer kn_lens wrote it.
    """
    try:
        fields = _fields(raw)
        _check_format(fields, where)
        if fields.get("checksum") != _checksum(fields):
            raise ValueError("its checksum does not fit: it was changed after it was written")
        return _validated(Manifest, fields)
    except OutputError:
        raise
    except ValueError as error:
        raise DamagedManifest(f"{where} is damaged ({error}); bring back a copy of it, or plan the run anew") from None


def _checksum(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({name: value for name, value in fields.items() if name != "checksum"})).hexdigest()


def _fields(raw: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError("it is no whole JSON" if raw else "it is empty") from None
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object")
    return fields


def _check_format(fields: Mapping[str, Any], where: str) -> None:
    written = fields.get("format")
    if isinstance(written, int) and written > FORMAT:
        raise OutputError(
            f"{where} was written by a newer kn_lens (format {written}; this is {FORMAT}, kn_lens {__version__}): "
            f"update kn_lens"
        )


def _validated(kind: type[_Kind], fields: Mapping[str, Any]) -> _Kind:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


@dataclass(frozen=True)
class Task:
    """A piece of a run: a block of prompts for one variant.

    Attributes:
        number: Of the task.
        data: Number of its data set.
        block: Number of its block within the data set.
        variant: ``""`` where there is one only.
        rows: Numbers of its prompts within the data set.
        first: Number of the first of them within the run.
    """

    number: int
    data: int
    block: int
    variant: str
    rows: range
    first: int

    @property
    def numbers(self) -> range:
        """Numbers of its prompts within the run."""
        return range(self.first, self.first + len(self.rows))


class TaskList(Sequence[Task]):
    """The tasks of a run, numbered data set → block → variant; each is made when it is asked for."""

    def __init__(self, manifest: Manifest) -> None:
        self._data, self._variants = manifest.data, manifest.variants
        self._ends = list(accumulate(len(plan.starts) * len(self._variants) for plan in self._data))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, number: int) -> Task: ...
    @overload
    def __getitem__(self, number: slice) -> list[Task]: ...
    def __getitem__(self, number: int | slice) -> Task | list[Task]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        number = number + len(self) if number < 0 else number
        if not 0 <= number < len(self):
            raise IndexError(f"there is no task {number}; the run has {len(self)}")
        data = bisect_right(self._ends, number)
        within = number - (self._ends[data - 1] if data else 0)
        block, variant = divmod(within, len(self._variants))
        plan = self._data[data]
        stop = plan.starts[block + 1] if block + 1 < len(plan.starts) else plan.prompts
        rows = range(plan.starts[block], stop)
        return Task(number, data, block, self._variants[variant], rows, plan.first + rows.start)

    def __iter__(self) -> Iterator[Task]:
        return (self[number] for number in range(len(self)))


def tasks_of(manifest: Manifest) -> TaskList:
    """The tasks of a run."""
    return TaskList(manifest)
