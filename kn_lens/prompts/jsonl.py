"""JSON and JSON Lines files, read with the line number in every complaint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kn_lens.errors import DataError

Report = Callable[[str, str], None]
"""Called with where a problem is (``"file:line"``) and what it is; may raise, or note it and go on."""


def stop(where: str, what: str) -> None:
    """The report of a reader: the first problem ends it.

    Raises:
        DataError: Always.
    """
    raise DataError(f"{where}: {what}")


@dataclass(frozen=True)
class Problem:
    """Where (``"file:line"``) and what, with what would be right."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Problems(list[Problem]):
    """The report of a checker: it keeps what it is told."""

    def __call__(self, where: str, what: str) -> None:
        self.append(Problem(where, what))

    def of(self, error: DataError) -> None:
        """Keep what a reader stopped at."""
        where, _, what = str(error).partition(": ")
        self(where, what)


def line_of(where: str) -> str:
    """The line of a ``"file:line"``."""
    return where.rpartition(":")[2]


def read_json(path: Path, *, pairs: bool = False) -> Any:
    """The value in a JSON file.

    Args:
        path: The file.
        pairs: Give each object as a list of (key, value), so that a key stated twice shows; default False.

    Raises:
        DataError: Not UTF-8, or not JSON; with file and line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list if pairs else None)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_jsonl(
    path: Path, required: tuple[str, ...] = (), report: Report = stop
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``("file:line", row)`` for each line that is not blank; those with a problem are reported and left out.

    Problems: a line that is not UTF-8, or no JSON object; a missing field; no lines. The file is read line by line,
    however long it is.

    Args:
        path: The file.
        required: Names that each row must hold, as strings that are not empty.
        report: Told of each problem; by default the first one ends the reading with a DataError.

    Raises:
        DataError: No such file.
    """
    if not path.is_file():
        raise DataError(f"no file {path}")
    empty = True
    for number, raw in enumerate(_lines(path), start=1):
        where = f"{path}:{number}"
        try:
            line = raw.decode()
            if not line.strip():
                continue
            empty = False
            row = json.loads(line)
        except UnicodeDecodeError as error:
            empty = False
            report(where, f"not UTF-8 text (byte {error.start} of the line); save it as UTF-8")
            continue
        except json.JSONDecodeError as error:
            report(where, f"not JSON ({error.msg} at column {error.colno})")
            continue
        if not isinstance(row, dict):
            report(where, f"expected an object {{…}}, found {type(row).__name__}")
            continue
        broken = [name for name in required if not isinstance(row.get(name), str) or not row[name].strip()]
        for name in broken:
            problem = "is missing" if name not in row else f"is {row[name]!r}, not a text"
            report(where, f"field {name!r} {problem}")
        if not broken:
            yield where, row
    if empty:
        report(str(path), "the file is empty; expected one JSON object per line")


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file without their ends, which may be those of any system."""
    with path.open("rb") as file:
        for chunk in file:
            yield from chunk.splitlines()
