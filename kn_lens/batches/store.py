"""A run's folder: what is on the disk is what is done.

Reading writes nothing, so that a run in progress can be read, and one in a folder that cannot be written.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kn_lens.batches.durable import cannot_write, is_temporary, write_durably
from kn_lens.batches.index import Index
from kn_lens.batches.part import DamagedManifest, Manifest, PartRecord, Task, TaskList, read_manifest, tasks_of
from kn_lens.batches.part_store import PartStore, now
from kn_lens.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DamagedManifest", "Store"]

log = logging.getLogger(__name__)

MANIFEST, LOG = "manifest.json", "log.txt"
_IS_RECORD = re.compile(r"part-(\d{5,})\.json")


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

        What the index says is taken for true as long as the record is there; those that it lacks are opened.

        Raises:
            OutputError: If the folder cannot be read, or a newer kn_lens wrote a part.
        """
        there = self._numbers()
        run = self.manifest().run
        found = {record.task: record for record in self.index.records() if record.run == run and record.task in there}
        return self._opened(there, found)

    def rebuild_index(self) -> dict[int, PartRecord]:
        """Open every record, write the index anew from them, and return them: for the process that holds the lock.

        Raises:
            OutputError: If it cannot be written, or a newer kn_lens wrote a part.
        """
        found = self._opened(self._numbers(), {})
        self.make_parts()
        self.index.write(found.values())
        return found

    def append_index(self, record: PartRecord) -> None:
        """Append a record to the index: for the process that holds the lock.

        Raises:
            OutputError: If it cannot be written.
        """
        self.index.append(record)

    def iter_tables(self, numbers: Iterable[int] | None = None) -> Iterator[tuple[Task, pd.DataFrame]]:
        """The tables of tasks one after another (default: of all that are done); those without rows are passed over."""
        for number in sorted(self._numbers()) if numbers is None else numbers:
            table = self.table(number)
            if table is not None:
                yield self.tasks()[number], table

    def log(self, text: str) -> None:
        """Append a line with the time to the run's log. That it cannot be written is no reason to stop."""
        line = f"{now()} {' '.join(text.split())}\n".encode(errors="replace")
        try:
            with open(self.folder / LOG, "ab", buffering=0) as file:
                file.write(line)
        except OSError as error:
            log.warning("cannot write %s: %s", self.folder / LOG, error.strerror or error)

    def _numbers(self) -> set[int]:
        """The numbers of the tasks that have a record file."""
        count = len(self.tasks())
        try:
            with os.scandir(self.parts) as entries:
                matches = [_IS_RECORD.fullmatch(entry.name) for entry in entries]
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise OutputError(f"cannot read {self.parts}: {error.strerror or error}") from None
        return {number for match in matches if match is not None and (number := int(match[1])) < count}

    def _opened(self, there: set[int], found: dict[int, PartRecord]) -> dict[int, PartRecord]:
        for number in there - found.keys():
            record = self.record(number)
            if record is not None:
                found[number] = record
        return dict(sorted(found.items()))
