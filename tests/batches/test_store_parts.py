"""Parts: what is read back is what was written, to the bit; what is damaged or half-written is not there."""

from __future__ import annotations

import hashlib
import random
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kn_lens.batches.storage.durable import canonical
from kn_lens.batches.storage.part import FileRecord, LeftOut
from kn_lens.batches.storage.store import Store
from kn_lens.errors import OutputError
from tests.batches.faults import child
from tests.batches.stores import Measured, flipped, manifest, names, result, store, table, write

__all__ = ["store"]

ROOT = Path(__file__).parents[2]


def test_part_comes_back(store):
    dropped = [LeftOut(prompt=3, text="a “b” \n 🙂", reason="answered wrongly")]
    failed = [LeftOut(prompt=4, text="c", reason="ValueError: no")]
    rows, made = table(), result()
    record = write(store, 2, rows, made, done=2, dropped=dropped, failed=failed)
    again = Store(store.folder)
    assert names(store) == ["part-00002.json", "part-00002.parquet", "part-00002.safetensors"]
    assert again.record(2) == record == again.record(store.tasks()[2])
    assert (record.run, record.task, record.prompts, record.done) == ("run-1", 2, 4, 2)
    assert (record.dropped, record.failed, record.seconds, record.worker) == (dropped, failed, 1.5, "here:1")
    for name in ("part-00002.parquet", "part-00002.safetensors"):
        raw = (store.parts / name).read_bytes()
        assert record.files[name] == FileRecord(sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw))
    pd.testing.assert_frame_equal(again.table(2), rows, check_exact=True)
    found = again.result(2)
    assert isinstance(found, Measured)
    assert torch.equal(found.values, made.values)
    assert torch.equal(found.by_name["kl"], made.values[:1])
    assert (found.settings, found.provenance) == (made.settings, made.provenance)
    assert again.problem(2, record) is None


def test_parts_that_are_not_there(store):
    assert store.records() == {}
    assert store.record(0) is store.table(0) is store.result(0) is None
    assert store.problem(0) == "part-00000.json is missing"


def test_part_without_rows_has_only_a_record(store):
    record = write(store, 1, None, None, done=0, dropped=[LeftOut(prompt=0, text="a", reason="b")])
    assert names(store) == ["part-00001.json"]
    assert record.files == {}
    assert store.problem(1) is None
    assert store.table(1) is store.result(1) is None
    assert list(store.records()) == [1]
    empty = write(store, 2, table().head(0), None, done=0)
    assert empty.files == {}


def bits(column):
    return [struct.pack("<d", value) for value in column]


def test_numbers_keep_their_bits_and_texts_their_characters(store):
    payload = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_0123))[0]  # a NaN like no other
    numbers = [0.1, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf"), float("nan"), payload]
    texts = ["a\nb", "\r\n\t", "🙂👩‍🚀", "“é”", "", " a ", "null", "NaN"]
    rows = pd.DataFrame(
        {
            "float64": numbers,
            "float32": np.array([0.1, -0.0, 1e-45, 3.4e38, np.inf, -np.inf, np.nan, 1], dtype=np.float32),
            "int64": [2**62 + 1, -1, 0, 1, 2, 3, 4, 5],
            "bool": [True, False] * 4,
            "text": texts,
            "some": [*texts[:7], None],
        },
        index=range(100, 108),
    )
    write(store, 0, rows)
    found = Store(store.folder).table(0)
    assert list(found.columns) == list(rows.columns)
    assert list(found.index) == list(range(8))
    assert bits(found["float64"]) == bits(numbers)
    assert found["float32"].to_numpy().tobytes() == rows["float32"].to_numpy().tobytes()
    assert found["int64"].tolist() == rows["int64"].tolist()
    assert found["bool"].tolist() == rows["bool"].tolist()
    assert found["text"].tolist() == texts
    assert found["some"].tolist()[:7] == texts[:7]
    assert found["some"].isna().tolist() == [False] * 7 + [True]


def test_nan_is_a_number_in_the_file_and_no_gap(store):
    import pyarrow.parquet as pq

    write(store, 0, pd.DataFrame({"x": [1.0, float("nan")]}))
    column = pq.ParquetFile(store.parts / "part-00000.parquet").read().column("x")
    assert column.null_count == 0


def test_no_type_for_a_column(store):
    with pytest.raises(OutputError, match="the column 'x' cannot be written as parquet"):
        write(store, 0, pd.DataFrame({"x": [1, "a", object()]}))
    assert names(store) == []


def test_tensors_that_share_memory(store):
    values = torch.arange(12.0)
    made = Measured(settings={}, provenance={}, values=values, by_name={"a": values[2:5], "b": values})
    write(store, 0, None, made)
    found = store.result(0)
    assert torch.equal(found.by_name["a"], torch.tensor([2.0, 3.0, 4.0]))
    assert torch.equal(found.by_name["b"], values)


SAME = """
import sys, os, time
import numpy as np, pandas as pd, torch
from kn_lens.batches.storage.store import Store
from tests.batches.stores import table, result, write
store = Store(sys.argv[1])
rows = table()
if sys.argv[2] == "b":  # another index, another order in memory: the same table
    rows = pd.concat([rows.iloc[:7], rows.iloc[7:]])
    rows.index = rows.index[::-1]
write(store, 0, rows, result(), seconds=float(os.getpid()), worker=sys.argv[2])
"""


def test_same_numbers_same_bytes(tmp_path):
    """Two processes, with other hashes of strings and in another time zone."""
    raw = []
    for name, zone, seed in (("a", "UTC", "1"), ("b", "Asia/Tokyo", "2")):
        store = Store(tmp_path / name)
        store.folder.mkdir()
        store.write_manifest(manifest())
        child(SAME, store.folder, name, env={"TZ": zone, "PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"}, cwd=ROOT)
        raw.append([(store.parts / f"part-00000{end}").read_bytes() for end in (".parquet", ".safetensors")])
    assert raw[0] == raw[1]
    assert b"pandas" not in raw[0][0]


# Damage


@pytest.mark.parametrize("end", [".parquet", ".safetensors"])
def test_damaged_files_are_found(store, end):
    record = write(store, 3, table(), result())
    path = store.parts / f"part-00003{end}"
    raw = path.read_bytes()
    for at in random.Random(0).sample(range(len(raw)), 20):
        path.write_bytes(flipped(raw, at))
        assert store.problem(3, record) == f"{path.name} is damaged (its SHA-256 is another)"
    read = store.table if end == ".parquet" else store.result
    with pytest.raises(OutputError) as caught:
        read(3)
    assert str(caught.value) == (
        f"{path} is damaged (its SHA-256 is another): `kn-lens resume {store.folder}` makes it again"
    )
    path.write_bytes(raw[:-1])
    assert store.problem(3) == f"{path.name} has {len(raw) - 1} bytes, not {len(raw)}"
    path.unlink()
    assert store.problem(3) == f"{path.name} is missing"
    with pytest.raises(OutputError, match=r"is damaged \(No such file or directory\)"):
        read(3)
    path.write_bytes(raw)
    assert store.problem(3) is None


def test_every_bit_of_a_record_counts(store):
    write(store, 0, table(), None)
    path = store.parts / "part-00000.json"
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(flipped(raw, at))
        assert store.record(0) is None, (at, raw[at : at + 1])
        assert store.table(0) is None
        assert store.problem(0).startswith("part-00000.json is damaged (")
    for length in range(0, len(raw), 7):
        path.write_bytes(raw[:length])
        assert store.record(0) is None
        assert store.records() == {}


def test_record_of_another_run_or_task(store, tmp_path):
    write(store, 0, table(), None)
    raw = (store.parts / "part-00000.json").read_bytes()
    (store.parts / "part-00001.json").write_bytes(raw)
    assert store.problem(1) == "part-00001.json is of task 0, not 1"
    other = Store(tmp_path / "other")
    other.folder.mkdir()
    other.write_manifest(manifest("run-2"))
    (other.parts / "part-00000.json").write_bytes(raw)
    assert other.problem(0) == "part-00000.json is of another run (run-1, not run-2)"
    assert other.records() == {}
    assert list(store.records()) == [0]


def test_newer_record(store):
    record = write(store, 0, None, None)
    newer = record.model_copy(update={"format": 2}).sealed()
    (store.parts / "part-00000.json").write_bytes(canonical(newer.model_dump(mode="json")))
    for read in (lambda: store.record(0), store.records, lambda: store.problem(0), lambda: store.table(0)):
        with pytest.raises(OutputError, match=r"part-00000.json was written by a newer kn_lens \(format 2; this is 1"):
            read()
    with pytest.raises(OutputError, match="newer kn_lens"):  # nor is it overwritten
        write(store, 0, table(), None)
    assert names(store) == ["part-00000.json"]


def test_files_that_are_no_parts_of_the_run(store):
    write(store, 9, None, None)
    for name in ("part-00010.json", "part-1.json", "notes.json", "part-00003.parquet"):
        (store.parts / name).write_text("{}")
    assert list(store.records()) == [9]
