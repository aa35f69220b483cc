"""The parts of a run on the disk: written so that a reader sees a whole one or none, and checked."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kn_lens.batches.storage.durable import Staged, cannot_write, canonical, sha256_of, stage, sync_folder
from kn_lens.batches.storage.index import Stamp, stamp_of
from kn_lens.batches.storage.part import LeftOut, Manifest, PartRecord, Task, read_record
from kn_lens.batches.storage.part_files import write_result, write_table
from kn_lens.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.results import Result

log = logging.getLogger(__name__)

PARTS = "parts"
TABLE, RESULT, _RECORD = ".parquet", ".safetensors", ".json"
TRIES = 3


class PartStore(ABC):
    """The parts of a run: each is one task's table, its result and a record of both. The record is written last, and a
    part without a valid one does not exist.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.parts = self.folder / PARTS

    @abstractmethod
    def manifest(self) -> Manifest:
        """The manifest of the run; records of other runs do not count."""

    def write_part(
        self,
        task: Task | int,
        table: pd.DataFrame | None,
        result: Result | None,
        *,
        prompts: int,
        done: int,
        dropped: Sequence[LeftOut] = (),
        failed: Sequence[LeftOut] = (),
        seconds: float,
        worker: str,
    ) -> PartRecord:
        """Write a part: all under temporary names first, so that a part that it replaces is kept if the disk is full.

        A whole part that it replaces is there until the new one is, whenever the process dies; and one that does a
        prompt that the new one does not do is kept. Workers may call it at the same time, for the same task too: one
        that finds the same part leaves it as it is.

        Args:
            task: Whose part.
            table: Its rows, or None if it has none.
            result: Its result, or None if it has none.
            prompts: How many prompts the task has.
            done: How many have a result.
            dropped: Those that the method left out.
            failed: Those that it failed on.
            seconds: How long it took.
            worker: ``host:pid``.

        Returns:
            The record of the part that is there now: of this one, or of the one that is kept.

        Raises:
            OutputError: If it cannot be written.
        """
        number = number_of(task)
        path = self._path(number, _RECORD)
        self.make_parts()
        for _ in range(TRIES):
            contents = []
            if table is not None and len(table):
                contents.append((TABLE, lambda file: write_table(file, table)))
            if result is not None:
                contents.append((RESULT, lambda file: write_result(file, result)))
            staged: list[Staged] = []
            try:
                for suffix, write in contents:
                    staged.append(stage(self._path(number, suffix), write, self.folder))
                replaces = path.exists()
                old = self.record(number)
                if old is not None and self.problem(number) is not None:
                    old = None
                if old is not None:
                    staged = [replace(one, path=self._beside(old, one)) for one in staged]
                record = PartRecord(
                    run=self.manifest().run,
                    task=number,
                    files={one.path.name: one.record for one in staged},
                    prompts=prompts,
                    done=done,
                    dropped=list(dropped),
                    failed=list(failed),
                    seconds=round(seconds, 3),
                    worker=worker,
                    finished=now(),
                ).sealed()
                if old is not None and (old.says_the_same(record) or not _left_out(record) <= _left_out(old)):
                    return old
                text = canonical(record.model_dump(mode="json"))
                staged.append(stage(path, lambda file, text=text: file.write(text), self.folder))
                if old is None and replaces:  # else one that another worker has just written is not taken away again
                    self._make_room(number, record)
                *files, last = staged
                if all([one.place() for one in files]):
                    sync_folder(self.parts, self.folder)
                    if self._has_files(record) and last.place():
                        sync_folder(self.parts, self.folder)
                        self._remove_unnamed(number, () if old is None else old.files)
                        if self._has_files(record):
                            return record
            finally:
                for one in staged:
                    one.discard()
            log.debug("the files of part %d were tidied up while it was written; it is written again", number)
        raise OutputError(
            f"cannot write {path}: its temporary files vanish; see that no one else cleans up {self.parts}"
        )

    def remove_part(self, task: Task | int) -> None:
        """Remove what is there of a part: its record first.

        Raises:
            OutputError: If it cannot be removed.
        """
        number = number_of(task)
        record = self.record(number)
        others = [] if record is None else [self.parts / name for name in record.files]
        self._unlink(self._path(number, _RECORD))
        self._unlink(self._path(number, TABLE), self._path(number, RESULT), *others)

    def record(self, task: Task | int) -> PartRecord | None:
        """The record of a part; None if there is no valid one (:meth:`problem` says why).

        Raises:
            OutputError: If a newer kn_lens wrote it.
        """
        found = self._read_record(number_of(task))
        return found if isinstance(found, PartRecord) else None

    def problem(self, task: Task | int, record: PartRecord | None = None) -> str | None:
        """What is missing or damaged of a part; None if it is whole. All its files are read.

        Args:
            task: Whose.
            record: What the index says of it: another part than the one there is a problem too.

        Raises:
            OutputError: If a newer kn_lens wrote it.
        """
        number = number_of(task)
        found = self._read_record(number)
        while True:
            said = self._problem(found, record)
            if said is None or isinstance(found, str):
                return said
            before, found = found, self._read_record(number)
            if found == before:  # else the part was replaced between its record and its files
                return said

    def _beside(self, old: PartRecord, file: Staged) -> Path:
        """A file's place in a part that replaces a whole one: in no other file's, by a name that tells its content."""
        for name, known in old.files.items():
            if known == file.record and name.endswith(file.path.suffix):
                return self.parts / name
        return file.path.with_suffix(f".{file.record.sha256[:16]}{file.path.suffix}")

    def _make_room(self, number: int, record: PartRecord) -> None:
        """Before new files: no reader may see a damaged record beside them, nor old files that they do not replace."""
        old = self.record(number)
        names = {} if old is None else old.files
        others = [self._path(number, suffix) for suffix in (TABLE, RESULT)] + [self.parts / name for name in names]
        self._unlink(self._path(number, _RECORD))
        self._unlink(*(path for path in others if path.name not in record.files))

    def _remove_unnamed(self, number: int, names: Iterable[str]) -> None:
        """Remove those files of a finished part that its record, as it is now, does not name."""
        record = self.record(number) if names else None
        if record is not None:
            self._unlink(*(self.parts / name for name in names if name not in record.files))

    def _has_files(self, record: PartRecord) -> bool:
        """Whether all files of a part are there: another process may have tidied up some that no record named yet."""
        return all((self.parts / name).exists() for name in record.files)

    def _unlink(self, *paths: Path) -> None:
        there = [path for path in paths if path.exists()]
        for path in there:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(path, error, self.folder) from None
        if there:
            sync_folder(self.parts, self.folder)

    def _path(self, number: int, suffix: str) -> Path:
        return self.parts / f"part-{number:05d}{suffix}"

    def make_parts(self) -> None:
        """Make the folder of the parts, if need be; raises OutputError."""
        try:
            self.parts.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self.parts, error, self.folder) from None

    def _read_record(self, number: int) -> PartRecord | str:
        """A part's record, or why there is none."""
        found = self._stamped_record(number)
        return found if isinstance(found, str) else found[1]

    def _stamped_record(self, number: int) -> tuple[Stamp, PartRecord] | str:
        """A part's record with the stamp of its file, or why there is none."""
        path = self._path(number, _RECORD)
        try:
            with open(path, "rb") as file:
                stamp = stamp_of(os.fstat(file.fileno()))
                record = read_record(file.read(), str(path))
        except FileNotFoundError:
            return f"{path.name} is missing"
        except OSError as error:
            return f"{path.name} cannot be read ({error.strerror or error})"
        except OutputError:
            raise
        except ValueError as error:
            return f"{path.name} is damaged ({error})"
        if record.run != self.manifest().run:
            return f"{path.name} is of another run ({record.run}, not {self.manifest().run})"
        if record.task != number:
            return f"{path.name} is of task {record.task}, not {number}"
        return stamp, record

    def _problem(self, found: PartRecord | str, record: PartRecord | None) -> str | None:
        if isinstance(found, str):
            return found
        if record is not None and not record.says_the_same(found):
            return f"{self._path(found.task, _RECORD).name} is not the record that the index has"
        for name, file in found.files.items():
            try:
                size = (self.parts / name).stat().st_size
                if size != file.bytes:
                    return f"{name} has {size} bytes, not {file.bytes}"
                if sha256_of(self.parts / name) != file.sha256:
                    return f"{name} is damaged (its SHA-256 is another)"
            except FileNotFoundError:
                return f"{name} is missing"
            except (OSError, OutputError) as error:
                return f"{name} cannot be read ({error})"
        return None


def number_of(task: Task | int) -> int:
    """The number of a task."""
    return task if isinstance(task, int) else task.number


def _left_out(record: PartRecord) -> set[int]:
    """The prompts of a part that have no result."""
    return {one.prompt for one in (*record.dropped, *record.failed)}


def now() -> str:
    """The time, with its zone, for people."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
