"""Folders that results of several parts are saved in: fields as JSON, tables as parquet, each read back or refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.errors import OutputError
from kn_lens.prompts.prompt import Dropped

if TYPE_CHECKING:
    import pandas as pd

FIELDS = "fields.json"


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """The folder, made if needed.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from None


@contextmanager
def reading(folder: Path, what: str) -> Iterator[Path]:
    """The folder, for parts of ``what`` to be read.

    Raises:
        OutputError: If a part is missing, or is not what was written.
    """
    try:
        yield folder
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"{folder} holds no readable {what} ({error!r}); make it again") from None


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are read back: of lists and dicts, not tuples."""
    return json.loads(json.dumps(dict(settings)))


def write_fields(folder: Path, fields: Mapping[str, Any]) -> None:
    """Fields as JSON."""
    (folder / FIELDS).write_text(json.dumps(dict(fields), indent=1, ensure_ascii=False), encoding="utf-8")


def read_fields(folder: Path) -> dict[str, Any]:
    """What :func:`write_fields` wrote."""
    return json.loads((folder / FIELDS).read_text(encoding="utf-8"))


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Tables by name."""
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A table that :func:`write_tables` wrote."""
    import pandas as pd

    return pd.read_parquet(folder / f"{name}.parquet")


def dropped_fields(entries: Iterable[Dropped]) -> list[dict[str, Any]]:
    """What was left out, as JSON."""
    return [vars(entry) for entry in entries]


def dropped_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Dropped, ...]:
    """What :func:`dropped_fields` made JSON of."""
    return tuple(Dropped(**row) for row in rows)
