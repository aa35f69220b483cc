"""The index of a run's parts, so that a reader need not open each. It may be torn, old or missing.

Each line holds a record and the stamp of the file that it was read from: a line whose stamp is not that of the file
that is there now is of a part that was replaced, and says nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from kn_lens.batches.storage.durable import cannot_write, canonical, write_durably
from kn_lens.batches.storage.part import PartRecord, read_record

INDEX = "index.jsonl"

Stamp = tuple[int, int, int]
"""Size of a file in bytes, when it was written in nanoseconds, and its inode: a file that replaces another has another
one, however fast and alike it is."""


def stamp_of(stat: os.stat_result) -> Stamp:
    """The stamp of a file."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


class Index:
    """The index of a folder of parts; one process, the one that holds the run's lock, writes it.

    Args:
        parts: The folder.
    """

    def __init__(self, parts: Path) -> None:
        self.path = parts / INDEX

    def records(self) -> Iterator[tuple[Stamp, PartRecord]]:
        """What its whole lines say, in their order."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError:
            return
        for line in lines:
            try:
                stamp, _, record = line.partition(b"],")
                bytes_, modified, inode = map(int, json.loads(stamp.removeprefix(b"[") + b"]"))
                yield (bytes_, modified, inode), read_record(record.removesuffix(b"]"), str(self.path))
            except (ValueError, TypeError):  # torn, damaged, or of a newer kn_lens: the record itself is opened instead
                continue

    def append(self, stamp: Stamp, record: PartRecord) -> None:
        """Append a record, and the stamp of its file, and sync it to the disk.

        Raises:
            OutputError: If it cannot be written.
        """
        line = _line(stamp, record)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a line that a crash tore
                    line = b"\n" + line
                while line:
                    line = line[os.write(descriptor, line) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise cannot_write(self.path, error, self.path.parent.parent) from None

    def write(self, records: Iterable[tuple[Stamp, PartRecord]]) -> None:
        """Write it anew, at once.

        Raises:
            OutputError: If it cannot be written.
        """

        def write(file: BinaryIO) -> None:
            for stamp, record in records:
                file.write(_line(stamp, record))

        write_durably(self.path, write, self.path.parent.parent)


def _line(stamp: Stamp, record: PartRecord) -> bytes:
    return canonical([stamp, record.model_dump(mode="json")]) + b"\n"
