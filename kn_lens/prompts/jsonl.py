"""JSON Lines files, read with the line number in every complaint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kn_lens.errors import DataError


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: Not UTF-8, or not JSON; with file and line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_jsonl(path: Path, required: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``("file:line", row)`` for each line that is not blank.

    Args:
        path: The file.
        required: Names that each row must hold, as strings that are not empty.

    Raises:
        DataError: No such file; not UTF-8; a line that is no JSON object; a missing field; no rows.
    """
    if not path.is_file():
        raise DataError(f"no file {path}")
    rows = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
                if not isinstance(row, dict):
                    raise DataError(f"{where}: expected an object {{…}}, found {type(row).__name__}")
                for name in required:
                    value = row.get(name)
                    if not isinstance(value, str) or not value.strip():
                        problem = "is missing" if name not in row else f"is {value!r}, not a text"
                        raise DataError(f"{where}: field {name!r} {problem}")
                rows += 1
                yield where, row
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if rows == 0:
        raise DataError(f"{path}: the file is empty; expected one JSON object per line")
