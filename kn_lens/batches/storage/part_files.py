"""The files of a part as bytes: the same numbers give the same bytes, whenever and wherever they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from kn_lens.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.results import Result

_TEXT = "result"
"""The key of a result's JSON in the metadata of its safetensors file."""


def write_table(file: BinaryIO, table: pd.DataFrame) -> None:
    """Write a table as parquet, without its index and without metadata of the program that made it.

    Args:
        file: Open for writing.
        table: Its floats keep their bits, NaN among them; None and NaN among strings become null.

    Raises:
        OutputError: If a column holds what parquet has no type for.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = []
    for name in table.columns:
        column: Any = table[name]
        if isinstance(column.dtype, np.dtype) and column.dtype.kind == "f":
            column = column.to_numpy()  # of pandas' own columns pyarrow makes every NaN a null
        try:
            arrays.append(pa.array(column))
        except pa.ArrowException as error:
            raise OutputError(f"the column {name!r} cannot be written as parquet ({error})") from None
    rows = pa.Table.from_arrays(arrays, names=[str(name) for name in table.columns])
    pq.write_table(rows, file, compression="zstd", compression_level=3)


def read_table(raw: bytes) -> pd.DataFrame:
    """The table that :func:`write_table` wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.BufferReader(raw)).read().to_pandas()


def write_result(file: BinaryIO, result: Result) -> None:
    """Write a result as safetensors, with the rest of it as JSON in the metadata."""
    from safetensors.torch import save

    tensors, text = result.packed()
    # safetensors refuses tensors that share memory, as views of one another do
    file.write(save({name: tensor.clone() for name, tensor in tensors.items()}, {_TEXT: text}))


def read_result(raw: bytes, where: Path) -> Result:
    """The result that :func:`write_result` wrote.

    Raises:
        OutputError: If it is none that this version can read.
    """
    from safetensors.torch import load

    from kn_lens.results import Result

    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    return Result.unpacked(load(raw), header["__metadata__"][_TEXT], where)
