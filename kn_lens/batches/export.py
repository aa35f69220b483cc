"""The tables of a run as files, written a piece at a time, so that memory does not grow with the number of prompts."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kn_lens.batches.read import BatchRun
from kn_lens.batches.storage.durable import sync_folder, temporary_name
from kn_lens.batches.storage.part import PartRecord
from kn_lens.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_FULL = {errno.ENOSPC, errno.EDQUOT}


def write_tables(
    run: BatchRun, out: Path, *, csv: bool = False, records: Mapping[int, PartRecord] | None = None
) -> dict[Path, int]:
    """Write the finished tables of a run.

    Args:
        run: Finished or in progress.
        out: Folder of the files (made if needed): named as the method, and ``prompts``.
        csv: Write CSV beside parquet.
        records: The store's at one moment; by default as they are now.

    Returns:
        Files and their rows.

    Raises:
        OutputError: If they cannot be written, or a part is damaged.
    """
    records = run.store.records() if records is None else records  # the run may go on meanwhile
    found: dict[Path, int] = {}
    for name, tables in ((run.config.method, run.tables), ("prompts", run.prompt_tables)):
        schema = _schema(tables(records))
        if schema is None:
            continue
        paths = [out / f"{name}{suffix}" for suffix in (".parquet", ".csv")[: 1 + csv]]
        with _whole_files(out, paths) as files:
            rows = _write(files, tables(records), schema)
        found |= dict.fromkeys(paths, rows)
    return found


@contextlib.contextmanager
def _whole_files(out: Path, paths: Sequence[Path]) -> Iterator[Sequence[IO[bytes]]]:
    """Files to write into, which get their names, once they are on the disk, when the block ends well."""
    temporary = [path.with_name(temporary_name(path.name)) for path in paths]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(path, "xb")) for path in temporary]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for path, name in zip(temporary, paths, strict=True):
            os.replace(path, name)
        sync_folder(out)
    except OSError as error:
        space = "free some space, or " if error.errno in _FULL else ""
        raise OutputError(
            f"cannot write tables into {out}: {error.strerror or error}; {space}name another folder: --out FOLDER"
        ) from None
    finally:
        for path in temporary:
            with contextlib.suppress(OSError):
                path.unlink()


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


def _write(files: Sequence[IO[bytes]], tables: Iterator[pd.DataFrame], schema: pa.Schema) -> int:
    """Write tables one after another, as parquet into the first file and as CSV into the second, if there is one."""
    import pyarrow.parquet as pq

    parquet, *others = files
    rows = 0
    with pq.ParquetWriter(parquet, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(_arranged(table, schema))
            for file in others:
                text = table.reindex(columns=schema.names).to_csv(index=False, header=rows == 0, lineterminator="\n")
                file.write(text.encode())
            rows += len(table)
    return rows
