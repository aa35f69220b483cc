"""A journal of a long run: what is finished is on disk, so that the run can be taken up where it broke off.

A JSON Lines file: a header that says which run it is, then an entry for each finished part. Every line is on the disk
before the next part begins. Of a run that was killed while it wrote, the last line may be torn: it is dropped.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from kn_lens.errors import OutputError

log = logging.getLogger(__name__)

_MARK = "journal"
"""The key by which a header is known."""


class Journal:
    """A journal to read and go on with. Use as a context manager.

    Attributes:
        entries: What was finished earlier, in order.

    Args:
        path: The file; made, with its folders, where there is none.
        header: What makes this run the same as another: only a journal with an equal one is gone on with.

    Raises:
        OutputError: If the file is no journal, is of another run (what differs is named), is damaged before its last
            line, or cannot be read or written.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any]) -> None:
        self.path = Path(path)
        first = _line({_MARK: dict(header)})
        self.entries: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            known = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise OutputError(f"cannot read {self.path}: {error.strerror or error}") from None
        whole = known[: known.rfind(b"\n") + 1]
        torn = known[len(whole) :]
        if not whole and not first.startswith(torn):
            raise OutputError(f"{self.path} is no journal of kn-lens; name a new file")
        if torn:
            log.warning(
                "the last line of %s is torn; it is dropped, and what it would have told is done again", self.path
            )
        if whole:
            self._read(whole.split(b"\n")[:-1], json.loads(first)[_MARK])
        try:
            self._file = self.path.open("r+b" if self.path.exists() else "w+b")
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from None
        if not whole:
            self._write(first)

    def _read(self, lines: list[bytes], header: dict[str, Any]) -> None:
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict) or (number == 1 and not isinstance(value.get(_MARK), dict)):
                if number == 1:
                    raise OutputError(f"{self.path} is no journal of kn-lens; name a new file")
                raise OutputError(f"{self.path}:{number} is damaged; delete the lines from there on to do those again")
            found.append(value)
        differing = [
            f"{name} (there {_short(found[0][_MARK].get(name))}, here {_short(header.get(name))})"
            for name in dict.fromkeys([*found[0][_MARK], *header])
            if found[0][_MARK].get(name) != header.get(name)
        ]
        if differing:
            raise OutputError(
                f"{self.path} is the journal of another run, which differs in {', '.join(differing)}; name a new file"
            )
        self.entries = found[1:]

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add an entry; when this returns it is on the disk.

        Raises:
            OutputError: If it cannot be written.
        """
        self._write(_line(entry))
        self.entries.append(dict(entry))

    def _write(self, line: bytes) -> None:
        if self._file is None:
            raise OutputError(f"{self.path} is closed")
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror or error}") from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def finished_parts(place: Path) -> int:
    """How many parts the journals of a folder, or one journal, tell of."""
    paths = [place] if place.suffix == ".jsonl" else sorted(place.rglob("*.jsonl"))
    return sum(max(path.read_bytes().count(b"\n") - 1, 0) for path in paths if path.is_file())


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:39]}…"
