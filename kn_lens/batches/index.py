"""The index of a run's parts: a record a line, so that a reader need not open each. It may be torn, old or missing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from kn_lens.batches.durable import cannot_write, canonical, write_durably
from kn_lens.batches.part import PartRecord, read_record

INDEX = "index.jsonl"


class Index:
    """The index of a folder of parts; one process, the one that holds the run's lock, writes it.

    Args:
        parts: The folder.
    """

    def __init__(self, parts: Path) -> None:
        self.path = parts / INDEX

    def records(self) -> Iterator[PartRecord]:
        """What its whole lines say, in their order; a later line of a task replaces an earlier one."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError:
            return
        for line in lines:
            try:
                yield read_record(line, str(self.path))
            except ValueError:  # torn, damaged, or of a newer kn_lens: the record itself is opened instead
                continue

    def append(self, record: PartRecord) -> None:
        """Append a record and sync it to the disk.

        Raises:
            OutputError: If it cannot be written.
        """
        line = _line(record)
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

    def write(self, records: Iterable[PartRecord]) -> None:
        """Write it anew, at once.

        Raises:
            OutputError: If it cannot be written.
        """

        def write(file: BinaryIO) -> None:
            for record in records:
                file.write(_line(record))

        write_durably(self.path, write, self.path.parent.parent)


def _line(record: PartRecord) -> bytes:
    return canonical(record.model_dump(mode="json")) + b"\n"
