"""A run's folder: what is on the disk is what is done.

Reading writes nothing, so that a run in progress can be read, and one in a folder that cannot be written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kn_lens.batches.storage.durable import cannot_write, is_temporary, write_durably
from kn_lens.batches.storage.index import Index, Stamp, stamp_of
from kn_lens.batches.storage.part import DamagedManifest, Manifest, PartRecord, Task, TaskList, read_manifest, tasks_of
from kn_lens.batches.storage.part_files import read_result, read_table
from kn_lens.batches.storage.part_store import RESULT, TABLE, TRIES, PartStore, now, number_of
from kn_lens.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.results import Result

__all__ = ["DamagedManifest", "Store"]

log = logging.getLogger(__name__)

MANIFEST, LOG = "manifest.json", "log.txt"
_IS_RECORD = re.compile(r"part-(\d{5,})\.json")
_IS_FILE = re.compile(r"part-(\d{5,})\.(?:[0-9a-f]{16}\.)?(?:parquet|safetensors)")


class Store(PartStore):
    """The folder of a run: its manifest, its parts, their index, its log. Making one touches nothing.

    Args:
        folder: Where.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.index = Index(self.parts)
        self._manifest: Manifest | None = None
        self._tasks: TaskList | None = None

    def exists(self) -> bool:
        """Whether the run was planned to the end: its manifest is there."""
        return (self.folder / MANIFEST).is_file()

    def write_manifest(self, manifest: Manifest) -> Manifest:
        """Write the manifest, with its checksum.

        Raises:
            OutputError: If it cannot be written.
        """
        manifest = manifest.sealed()
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False)
        self.make_parts()
        write_durably(self.folder / MANIFEST, lambda file: file.write(text.encode()))
        self._manifest, self._tasks = manifest, None
        return manifest

    def manifest(self) -> Manifest:
        """The manifest.

        Raises:
            DamagedManifest: If it is damaged.
            OutputError: If there is none, or a newer kn_lens wrote it.
        """
        if self._manifest is None:
            path = self.folder / MANIFEST
            try:
                raw = path.read_bytes()
            except FileNotFoundError:
                raise OutputError(
                    f"{self.folder} holds no planned run (there is no {MANIFEST}); name the folder of a run"
                ) from None
            except OSError as error:
                raise OutputError(f"cannot read {path}: {error.strerror or error}") from None
            self._manifest = read_manifest(raw, str(path))
        return self._manifest

    def tasks(self) -> Sequence[Task]:
        """The tasks of the run; raises as :meth:`manifest`."""
        if self._tasks is None:
            self._tasks = tasks_of(self.manifest())
        return self._tasks

    def sweep(self) -> int:
        """Remove the temporary files that processes left which died; to be called under the lock. Returns how many.

        A worker that outlived its coordinator may still be writing one: it will write it again.
        """
        count = 0
        for folder in (self.folder, self.parts):
            try:
                for path in folder.iterdir() if folder.is_dir() else ():
                    if is_temporary(path.name):
                        path.unlink(missing_ok=True)
                        count += 1
            except OSError as error:
                raise cannot_write(folder, error, self.folder) from None
        return count

    def records(self) -> dict[int, PartRecord]:
        """The records of all parts, by the number of their task.

        What the index says is taken for true as long as the record's file is the one that it was read from; the others
        are opened.

        Raises:
            OutputError: If the folder cannot be read, or a newer kn_lens wrote a part.
        """
        there = self._stamps()
        run = self.manifest().run
        found = {
            record.task: record
            for stamp, record in self.index.records()
            if record.run == run and there.get(record.task) == stamp
        }
        for number in there.keys() - found.keys():
            record = self.record(number)
            if record is not None:
                found[number] = record
        return dict(sorted(found.items()))

    def rebuild_index(self) -> dict[int, PartRecord]:
        """Open every record, write the index anew from them, and return them: for the process that holds the lock.

        Files that a process left which died while it replaced a part are removed.

        Raises:
            OutputError: If it cannot be written, or a newer kn_lens wrote a part.
        """
        opened = {number: self._stamped_record(number) for number in sorted(self._stamps())}
        stamped = {number: found for number, found in opened.items() if not isinstance(found, str)}
        records = {number: record for number, (_, record) in stamped.items()}
        self.make_parts()
        self._remove_strays(records)
        self.index.write(stamped.values())
        return records

    def append_index(self, record: PartRecord) -> None:
        """Append a record to the index, unless the part has been replaced: for the process that holds the lock.

        Raises:
            OutputError: If it cannot be written.
        """
        found = self._stamped_record(record.task)
        if not isinstance(found, str) and found[1].checksum == record.checksum:
            self.index.append(*found)

    def whole(self, number: int) -> tuple[PartRecord, Result | None] | None:
        """The record of a part and the result that belongs to it, also while it is being replaced.

        Args:
            number: Of the task.

        Returns:
            None if the part is not done; None for its result if it has none.

        Raises:
            OutputError: If it is damaged, or another version's.
        """
        found = self._whole(number, RESULT)
        if found is None:
            return None
        record, raw = found
        return record, None if raw is None else read_result(raw, self._path(number, RESULT))

    def whole_table(self, number: int) -> tuple[PartRecord, pd.DataFrame | None] | None:
        """The record of a part and the table that belongs to it; as :meth:`whole`."""
        found = self._whole(number, TABLE)
        if found is None:
            return None
        record, raw = found
        return record, None if raw is None else read_table(raw)

    def table(self, task: Task | int) -> pd.DataFrame | None:
        """The rows of a part; None if it is not done or has none.

        Raises:
            OutputError: If it is damaged.
        """
        found = self.whole_table(number_of(task))
        return None if found is None else found[1]

    def result(self, task: Task | int) -> Result | None:
        """The result of a part; None if it is not done or has none.

        Raises:
            OutputError: If it is damaged, or another version's.
        """
        found = self.whole(number_of(task))
        return None if found is None else found[1]

    def log(self, text: str) -> None:
        """Append a line with the time to the run's log. That it cannot be written is no reason to stop."""
        line = f"{now()} {' '.join(text.split())}\n".encode(errors="replace")
        try:
            with open(self.folder / LOG, "ab", buffering=0) as file:
                file.write(line)
        except OSError as error:
            log.warning("cannot write %s: %s", self.folder / LOG, error.strerror or error)

    def _whole(self, number: int, suffix: str) -> tuple[PartRecord, bytes | None] | None:
        path, why = self._path(number, suffix), ""
        for _ in range(TRIES):  # between the record and the file, a part may have been replaced
            record = self.record(number)
            if record is None:
                return None
            name = next((name for name in record.files if name.endswith(suffix)), None)
            if name is None:
                return record, None
            path = self.parts / name
            try:
                raw = path.read_bytes()
            except OSError as error:
                why = error.strerror or str(error)
                continue
            if hashlib.sha256(raw).hexdigest() == record.files[name].sha256:
                return record, raw
            why = "its SHA-256 is another"
        resume = f"`kn-lens resume {shlex.quote(str(self.folder))}`"
        raise OutputError(f"{path} is damaged ({why}): {resume} makes it again")

    def _stamps(self) -> dict[int, Stamp]:
        """The numbers of the tasks that have a record file, and its stamp."""
        count = len(self.tasks())
        found: dict[int, Stamp] = {}
        try:
            with os.scandir(self.parts) as entries:
                for entry in entries:
                    match = _IS_RECORD.fullmatch(entry.name)
                    if match is not None and int(match[1]) < count:
                        with contextlib.suppress(FileNotFoundError):  # removed just now
                            found[int(match[1])] = stamp_of(entry.stat())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise OutputError(f"cannot read {self.parts}: {error.strerror or error}") from None
        return found

    def _remove_strays(self, records: Mapping[int, PartRecord]) -> None:
        """Remove files of finished parts that their records do not name."""
        strays: defaultdict[int, list[str]] = defaultdict(list)
        try:
            with os.scandir(self.parts) as entries:
                for entry in entries:
                    match = _IS_FILE.fullmatch(entry.name)
                    record = None if match is None else records.get(int(match[1]))
                    if record is not None and entry.name not in record.files:
                        strays[record.task].append(entry.name)
        except OSError as error:
            raise OutputError(f"cannot read {self.parts}: {error.strerror or error}") from None
        for number, names in strays.items():
            self._remove_unnamed(number, names)
