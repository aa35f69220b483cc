"""The tables of a run as files, written a piece at a time, so that memory does not grow with the number of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kn_lens.batches.durable import write_durably
from kn_lens.batches.read import BatchRun
from kn_lens.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


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
    records = run.store.records()  # the run may go on meanwhile
    for name, tables in ((run.config.method, run.tables), ("prompts", run.prompt_tables)):
        schema = _schema(tables(records))
        if schema is None:
            continue
        for suffix, write in ((".parquet", _parquet), *(((".csv", _csv),) if csv else ())):
            path = out / f"{name}{suffix}"
            found[path] = _counted(path, partial(write, tables=tables(records), schema=schema))
    return found


def _counted(path: Path, write: Callable[[IO[bytes]], int]) -> int:
    """Write a file whole or not at all; how many rows it got."""
    rows: list[int] = []
    write_durably(path, lambda file: rows.append(write(file)))
    return rows[0]


def _schema(tables: Iterator[pd.DataFrame]) -> pa.Schema | None:
    """The columns of all tables: a piece may lack some, or hold nothing but missing values in one."""
    import pyarrow as pa

    found: pa.Schema | None = None
    for table in tables:
        schema = pa.Schema.from_pandas(table, preserve_index=False).remove_metadata()
        found = schema if found is None else pa.unify_schemas([found, schema], promote_options="permissive")
    return found


def _arranged(table: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    """A piece's table with the columns of all; those that it lacks are empty."""
    import pyarrow as pa

    own = pa.Table.from_pandas(table, preserve_index=False)
    columns = [
        own.column(field.name).cast(field.type) if field.name in own.column_names else pa.nulls(len(own), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _parquet(file: IO[bytes], tables: Iterator[pd.DataFrame], schema: pa.Schema) -> int:
    import pyarrow.parquet as pq

    rows = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(_arranged(table, schema))
            rows += len(table)
    return rows


def _csv(file: IO[bytes], tables: Iterator[pd.DataFrame], schema: pa.Schema) -> int:
    rows = 0
    for table in tables:
        text = table.reindex(columns=schema.names).to_csv(index=False, header=rows == 0, lineterminator="\n")
        file.write(text.encode())
        rows += len(table)
    return rows
