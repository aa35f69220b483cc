"""The tables of a run as files, written a piece at a time, so that memory does not grow with the number of prompts."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kn_lens.batches.durable import write_durably
from kn_lens.batches.read import BatchRun
from kn_lens.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd


def write_tables(run: BatchRun, out: Path, *, csv: bool = False) -> dict[Path, int]:
    """Write the finished tables of a run.

    Args:
        run: Finished or in progress.
        out: Folder of the files (made if needed): named as the method, and ``prompts``.
        csv: Write CSV beside parquet.

    Returns:
        Files and their rows.

    Raises:
        OutputError: If they cannot be written, or a part is damaged.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from None
    found: dict[Path, int] = {}
    for name, tables in ((run.config.method, run.tables), ("prompts", run.prompt_tables)):
        for suffix, write in ((".parquet", _parquet), *(((".csv", _csv),) if csv else ())):
            path = out / f"{name}{suffix}"
            rows = _write(path, write, tables())
            if rows is not None:
                found[path] = rows
    return found


def _write(path: Path, write: Callable[[IO[bytes], Iterator[pd.DataFrame]], int], tables: Iterator[pd.DataFrame]):
    first = next(tables, None)
    if first is None:
        return None
    counted: list[int] = []

    def every() -> Iterator[pd.DataFrame]:
        yield first
        yield from tables

    write_durably(path, lambda file: counted.append(write(file, every())))
    return counted[0]


def _parquet(file: IO[bytes], tables: Iterator[pd.DataFrame]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, rows = None, 0
    try:
        for table in tables:
            found = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
            if writer is None:
                writer = pq.ParquetWriter(file, found.schema, compression="zstd")
            writer.write_table(_as(found, writer.schema))
            rows += len(table)
    finally:
        if writer is not None:
            writer.close()
    return rows


def _as(found, schema):
    """A table with another's columns: one that a piece lacks is empty there."""
    import pyarrow as pa

    columns = []
    for field in schema:
        if field.name in found.column_names:
            columns.append(found.column(field.name).cast(field.type))
        else:
            columns.append(pa.nulls(len(found), field.type))
    return pa.table(columns, schema=schema)


def _csv(file: IO[bytes], tables: Iterator[pd.DataFrame]) -> int:
    rows = 0
    columns = None
    for table in tables:
        columns = list(table.columns) if columns is None else columns
        text = io.StringIO()
        table.reindex(columns=columns).to_csv(text, index=False, header=rows == 0)
        file.write(text.getvalue().encode())
        rows += len(table)
    return rows
