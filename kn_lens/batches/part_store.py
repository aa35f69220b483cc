"""The parts of a run on the disk: written so that a reader sees a whole one or none, checked, read back."""

from __future__ import annotations

import hashlib
import logging
import shlex
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kn_lens.batches.durable import cannot_write, canonical, sha256_of, stage, sync_folder
from kn_lens.batches.part import LeftOut, Manifest, PartRecord, Task, read_record
from kn_lens.batches.part_files import read_result, read_table, write_result, write_table
from kn_lens.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.results import Result

log = logging.getLogger(__name__)

PARTS = "parts"
_TABLE, _RESULT, _RECORD = ".parquet", ".safetensors", ".json"
_TRIES = 3


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

        Workers may call it at the same time, for the same task too: one that finds the same part leaves it as it is.

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

        Raises:
            OutputError: If it cannot be written.
        """
        number = _number(task)
        self.make_parts()
        for _ in range(_TRIES):
            contents = []
            if table is not None and len(table):
                contents.append((_TABLE, lambda file: write_table(file, table)))
            if result is not None:
                contents.append((_RESULT, lambda file: write_result(file, result)))
            staged = []
            try:
                for suffix, write in contents:
                    staged.append(stage(self._path(number, suffix), write, self.folder))
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
                path, text = self._path(number, _RECORD), canonical(record.model_dump(mode="json"))
                replaces = path.exists()
                known = self.record(number)
                if known is not None and known.says_the_same(record) and self.problem(number) is None:
                    return known
                staged.append(stage(path, lambda file, text=text: file.write(text), self.folder))
                if replaces:  # else one that another worker has just written is not taken away again
                    self._make_room(number, record)
                *files, last = staged
                if all([one.place() for one in files]):
                    sync_folder(self.parts, self.folder)
                    if last.place():
                        sync_folder(self.parts, self.folder)
                        return record
            finally:
                for one in staged:
                    one.discard()
            log.debug("the temporary files of part %d were tidied up while it was written; it is written again", number)
        raise OutputError(
            f"cannot write {path}: its temporary files vanish; see that no one else cleans up {self.parts}"
        )

    def remove_part(self, task: Task | int) -> None:
        """Remove what is there of a part: its record first.

        Raises:
            OutputError: If it cannot be removed.
        """
        number = _number(task)
        self._unlink(self._path(number, _RECORD))
        self._unlink(self._path(number, _TABLE), self._path(number, _RESULT))

    def record(self, task: Task | int) -> PartRecord | None:
        """The record of a part; None if there is no valid one (:meth:`problem` says why).

        Raises:
            OutputError: If a newer kn_lens wrote it.
        """
        found = self._read_record(_number(task))
        return found if isinstance(found, PartRecord) else None

    def problem(self, task: Task | int, record: PartRecord | None = None) -> str | None:
        """What is missing or damaged of a part; None if it is whole. All its files are read.

        Args:
            task: Whose.
            record: What the index says of it: another part than the one there is a problem too.

        Raises:
            OutputError: If a newer kn_lens wrote it.
        """
        number = _number(task)
        found = self._read_record(number)
        if isinstance(found, str):
            return found
        if record is not None and not record.says_the_same(found):
            return f"{self._path(number, _RECORD).name} is not the record that the index has"
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

    def table(self, task: Task | int) -> pd.DataFrame | None:
        """The rows of a part; None if it is not done or has none.

        Raises:
            OutputError: If it is damaged.
        """
        raw = self._bytes(_number(task), _TABLE)
        return None if raw is None else read_table(raw)

    def result(self, task: Task | int) -> Result | None:
        """The result of a part; None if it is not done or has none.

        Raises:
            OutputError: If it is damaged, or another version's.
        """
        raw = self._bytes(_number(task), _RESULT)
        return None if raw is None else read_result(raw, self._path(_number(task), _RESULT))

    def _make_room(self, number: int, record: PartRecord) -> None:
        """Before new files: no reader may see an old record beside them, nor an old file that they do not replace."""
        self._unlink(self._path(number, _RECORD))
        others = (self._path(number, suffix) for suffix in (_TABLE, _RESULT))
        self._unlink(*(path for path in others if path.name not in record.files))

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
        path = self._path(number, _RECORD)
        try:
            record = read_record(path.read_bytes(), str(path))
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
        return record

    def _bytes(self, number: int, suffix: str) -> bytes | None:
        path = self._path(number, suffix)
        why = ""
        for _ in range(_TRIES):  # between the record and the file, a part may have been replaced
            record = self.record(number)
            file = None if record is None else record.files.get(path.name)
            if file is None:
                return None
            try:
                raw = path.read_bytes()
            except OSError as error:
                why = error.strerror or str(error)
                continue
            if hashlib.sha256(raw).hexdigest() == file.sha256:
                return raw
            why = "its SHA-256 is another"
        resume = f"`kn-lens resume {shlex.quote(str(self.folder))}`"
        raise OutputError(f"{path} is damaged ({why}): {resume} makes it again")


def _number(task: Task | int) -> int:
    return task if isinstance(task, int) else task.number


def now() -> str:
    """The time, with its zone, for people."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
