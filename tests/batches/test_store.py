"""The store: what is read back is what was written, to the bit; what is damaged or half-written is not there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from kn_lens.batches.durable import canonical, is_temporary, temporary_name
from kn_lens.batches.part import DataPlan, FileRecord, LeftOut, Manifest, Task
from kn_lens.batches.store import DamagedManifest, Store
from kn_lens.errors import OutputError
from kn_lens.prompts.prompt import Dropped
from kn_lens.results import Result
from tests.batches.faults import child, mounted, remount

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Measured(Result):
    """A result to store."""

    values: Tensor
    by_name: dict[str, Tensor]
    dropped: tuple[Dropped, ...] = ()


def plan(name, first, starts, prompts, **fields):
    empty: dict[str, Any] = {"sha256": None, "dropped": {}, "skipped": [], "prepared": {}}
    return DataPlan(name=name, kind="facts", first=first, starts=starts, prompts=prompts, **(empty | fields))


def manifest(run="run-1", **fields):
    values: dict[str, Any] = {
        "run": run,
        "config": {"method": "causal_trace", "memory_budget": 1e9, "seed": 0},
        "variants": ["hidden", "mlp"],
        "data": [
            plan("P36", 0, [0, 4, 8], 10, dropped={"no cue": 2}, prepared={"sigma": 0.1 + 0.2}),
            plan("none", 10, [], 0),
            plan("päirs", 10, [0, 3], 7),
        ],
        "prompts_sha256": "0" * 64,
        "provenance": {"model": "m", "weights_hash": "w"},
        "host": {"name": "here"},
        "created": "2024-01-01T00:00:00+00:00",
    }
    return Manifest(**(values | fields))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.write_manifest(manifest())
    return store


def table(seed=0, rows=20):
    chance = np.random.default_rng(seed)
    return pd.DataFrame({"prompt": range(rows), "value": chance.normal(size=rows), "text": ["a", "b"] * (rows // 2)})


def result(seed=0):
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    return Measured(settings={"steps": 2}, provenance={"model": "m"}, values=values, by_name={"kl": values[:1]})


def write(store, number, rows=None, made=None, **fields):
    said: dict[str, Any] = {"prompts": 4, "done": 4, "seconds": 1.5, "worker": "here:1"}
    return store.write_part(store.tasks()[number], rows, made, **(said | fields))


def names(store):
    return sorted(path.name for path in store.parts.iterdir())


# The manifest and its tasks


def test_making_a_store_touches_nothing(tmp_path):
    store = Store(tmp_path / "run")
    assert not store.exists()
    assert not store.folder.exists()


def test_manifest_comes_back(tmp_path):
    written = Store(tmp_path).write_manifest(manifest())
    store = Store(tmp_path)
    assert store.exists()
    assert store.manifest() == written
    assert store.manifest().data[0].prepared["sigma"] == 0.30000000000000004
    assert {**written.model_dump(), "checksum": ""} == manifest().model_dump()
    rest = {name: value for name, value in manifest().model_dump(mode="json").items() if name != "checksum"}
    assert written.checksum == hashlib.sha256(canonical(rest)).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "parts"]


def test_no_manifest(tmp_path):
    with pytest.raises(
        OutputError, match=r"holds no planned run \(there is no manifest.json\); name the folder of a run"
    ):
        Store(tmp_path).manifest()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[:-20], "it is no whole JSON"),
        (lambda raw: b"", "it is empty"),
        (lambda raw: b"[1]", "it is no JSON object"),
        (lambda raw: b"\xff" + raw, "it is no whole JSON"),
        (lambda raw: raw.replace(b'"run-1"', b'"run-2"'), "its checksum does not fit"),
        (lambda raw: raw.replace(b"0.30000000000000004", b"0.30000000000000003"), None),  # the same number
        (lambda raw: raw.replace(b"0.30000000000000004", b"0.3"), "its checksum does not fit"),
        (lambda raw: raw.replace(b"0.30000000000000004", b"NaN"), "not JSON compliant"),
    ],
)
def test_damaged_manifest(store, damage, said):
    path = store.folder / "manifest.json"
    path.write_bytes(damage(path.read_bytes()))
    if said is None:
        assert Store(store.folder).manifest() == store.manifest()
        return
    with pytest.raises(DamagedManifest) as caught:
        Store(store.folder).manifest()
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert said in str(caught.value)


def test_newer_manifest(store):
    path = store.folder / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(
        OutputError, match=r"written by a newer kn_lens \(format 2; this is 1.*\): update kn_lens"
    ) as caught:
        Store(store.folder).manifest()
    assert not isinstance(caught.value, DamagedManifest)


def test_manifest_with_foreign_fields(store):
    path = store.folder / "manifest.json"
    fields = json.loads(path.read_text()) | {"more": 1}
    rest = {name: value for name, value in fields.items() if name != "checksum"}
    path.write_text(json.dumps(rest | {"checksum": hashlib.sha256(canonical(rest)).hexdigest()}))
    with pytest.raises(DamagedManifest, match="more: Extra inputs are not permitted"):
        Store(store.folder).manifest()


def test_tasks(store):
    tasks = store.tasks()
    wanted = [
        Task(0, 0, 0, "hidden", range(0, 4), 0),
        Task(1, 0, 0, "mlp", range(0, 4), 0),
        Task(2, 0, 1, "hidden", range(4, 8), 4),
        Task(3, 0, 1, "mlp", range(4, 8), 4),
        Task(4, 0, 2, "hidden", range(8, 10), 8),
        Task(5, 0, 2, "mlp", range(8, 10), 8),
        Task(6, 2, 0, "hidden", range(0, 3), 10),
        Task(7, 2, 0, "mlp", range(0, 3), 10),
        Task(8, 2, 1, "hidden", range(3, 7), 13),
        Task(9, 2, 1, "mlp", range(3, 7), 13),
    ]
    assert list(tasks) == wanted
    assert [tasks[number] for number in range(len(tasks))] == wanted
    assert tasks[-1] == wanted[-1]
    assert tasks[3:9:2] == wanted[3:9:2]
    with pytest.raises(IndexError):
        tasks[10]


# Parts


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
from tests.batches.test_store import Store, table, result, write
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


def flipped(raw, at):
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


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


# Replacing


def test_same_part_again_changes_nothing(store):
    first = write(store, 0, table(), result())
    before = [(path.name, path.stat().st_ino) for path in sorted(store.parts.iterdir())]
    assert write(store, 0, table(), result(), seconds=99, worker="there:2") == first
    assert [(path.name, path.stat().st_ino) for path in sorted(store.parts.iterdir())] == before


def test_same_part_again_repairs_a_damaged_one(store):
    write(store, 0, table(), result())
    (store.parts / "part-00000.parquet").write_bytes(b"x")
    write(store, 0, table(), result())
    assert store.problem(0) is None
    pd.testing.assert_frame_equal(store.table(0), table())


def test_other_part_replaces(store):
    old = write(store, 0, table(), result())
    new = write(store, 0, table(seed=1), None, done=3)
    assert names(store) == ["part-00000.json", "part-00000.parquet"]
    assert store.record(0) == new
    assert store.problem(0, new) is None
    assert store.problem(0, old) == "part-00000.json is not the record that the index has"
    pd.testing.assert_frame_equal(store.table(0), table(seed=1))
    assert store.result(0) is None


def test_remove_part(store):
    write(store, 0, table(), result())
    write(store, 1, table(), result())
    store.remove_part(0)
    store.remove_part(5)
    assert names(store) == ["part-00001.json", "part-00001.parquet", "part-00001.safetensors"]


def test_reader_beside_a_writer_sees_whole_parts(store):
    """A part is replaced again and again; who reads meanwhile gets the one or the other, or none for a moment."""
    wanted = [table(seed=0), table(seed=1, rows=40)]
    write(store, 0, wanted[0])
    ended = threading.Event()
    seen = {20: 0, 40: 0, None: 0}

    def read():
        reader = Store(store.folder)
        while not ended.is_set():
            found = reader.table(0)
            seen[None if found is None else len(found)] += 1
            if found is not None:
                pd.testing.assert_frame_equal(found, wanted[len(found) == 40])

    failed = []

    def watched():
        try:
            read()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=watched)
    thread.start()
    try:
        for turn in range(60):
            write(store, 0, wanted[turn % 2], None, done=turn % 2)
    finally:
        ended.set()
        thread.join()
    assert not failed
    assert sum(seen.values()) > 10


def test_disk_full_keeps_the_part_that_was_to_be_replaced(tmp_path):
    with mounted(tmp_path / "small", "size=256k") as folder:
        store = Store(folder)
        store.write_manifest(manifest())
        write(store, 0, table(), result())
        large = Measured(settings={}, provenance={}, values=torch.zeros(100_000), by_name={})
        with pytest.raises(OutputError) as caught:
            write(store, 0, table(), large)
        assert str(caught.value) == (
            f"cannot write {folder}/parts/part-00000.safetensors: No space left on device; what is finished is kept: "
            f"free some space and run `kn-lens resume {folder}`"
        )
        assert names(store) == ["part-00000.json", "part-00000.parquet", "part-00000.safetensors"]
        assert store.problem(0) is None
        assert torch.equal(store.result(0).values, result().values)
        write(store, 1, table(), None)  # the space is free again
        assert list(store.records()) == [0, 1]


@dataclass(frozen=True, kw_only=True)
class Swept(Measured):
    """Tidies up, as another coordinator would, while it is being written."""

    def packed(self):
        if not SWEPT:
            SWEPT.append(Store(self.settings["folder"]).sweep())
        return super().packed()


SWEPT: list[int] = []


def test_worker_survives_that_its_temporary_files_are_tidied_up(store):
    SWEPT.clear()
    fields = {field.name: getattr(result(), field.name) for field in dataclasses.fields(Measured)}
    record = write(store, 0, table(), Swept(**(fields | {"settings": {"folder": str(store.folder)}})))
    assert SWEPT == [2]  # the table, and the file that the result is being written into
    assert store.problem(0, record) is None
    pd.testing.assert_frame_equal(store.table(0), table())


@dataclass(frozen=True, kw_only=True)
class Overtaken(Measured):
    """Another worker finishes the same part while this one is being written."""

    def packed(self):
        plain = Measured(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Measured)})
        tensors, text = plain.packed()
        if not OVERTOOK:
            OVERTOOK.append(write(Store(self.settings["folder"]), 0, table(), plain, worker="other:1"))
        return tensors, text


OVERTOOK: list[PartRecord] = []


def test_worker_that_is_overtaken_leaves_the_finished_part(store):
    OVERTOOK.clear()
    fields = {field.name: getattr(result(), field.name) for field in dataclasses.fields(Measured)}
    record = write(store, 0, table(), Overtaken(**(fields | {"settings": {"folder": str(store.folder)}})))
    assert record == OVERTOOK[0]
    assert store.record(0).worker == "other:1"
    assert store.problem(0) is None
    assert names(store) == ["part-00000.json", "part-00000.parquet", "part-00000.safetensors"]


def test_sweep(store):
    write(store, 0, table(), None)
    left = [store.folder / temporary_name("prompts.parquet"), store.parts / temporary_name("part-00001.json")]
    kept = [store.folder / ".gitignore", store.parts / ".nfs0001"]
    for path in (*left, *kept):
        path.write_text("x")
    assert store.sweep() == 2
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)
    assert store.problem(0) is None


# The index


def test_index_gives_the_same_as_the_records(store):
    for number in (4, 1, 7):
        store.append_index(write(store, number, table(number), None))
    write(store, 3, table(3), None)  # not yet in the index
    wanted = {number: store.record(number) for number in (1, 3, 4, 7)}
    assert store.records() == wanted
    assert list(store.records()) == [1, 3, 4, 7]
    (store.parts / "index.jsonl").unlink()
    assert Store(store.folder).records() == wanted
    assert store.rebuild_index() == wanted
    lines = (store.parts / "index.jsonl").read_text().splitlines()
    assert [json.loads(line)["task"] for line in lines] == [1, 3, 4, 7]
    assert store.records() == wanted


def test_index_spares_opening_the_records(store):
    record = write(store, 1, table(), None)
    store.append_index(record)
    (store.parts / "part-00001.json").write_bytes(b"damaged")
    assert store.records() == {1: record}
    assert store.problem(1, record).startswith("part-00001.json is damaged")
    assert store.rebuild_index() == {}


def test_torn_index(store):
    records = {number: write(store, number, None, None) for number in range(3)}
    store.append_index(records[0])
    store.append_index(records[1])
    path = store.parts / "index.jsonl"
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) - 2, len(whole) // 2 + 9, 5, 0):
        path.write_bytes(whole[:length])
        assert store.records() == records
        store.append_index(records[2])  # does not stick to the torn line
        assert json.loads(path.read_bytes().splitlines()[-1])["task"] == 2
        assert store.records() == records
    path.write_bytes(flipped(whole, 40) + b"\xff\xfe\n[]\nnull\n\n")
    assert store.records() == records


def test_stale_index(store, tmp_path):
    """Lines of parts that are gone, of parts that were made again, of another run, of no task."""
    old = write(store, 0, table(), None)
    gone = write(store, 1, table(), None)
    for record in (old, gone):
        store.append_index(record)
    store.remove_part(1)
    new = write(store, 0, table(seed=1), None, done=3)
    store.append_index(new)
    for update in ({"run": "run-2", "done": 1}, {"task": 10}):
        store.append_index(new.model_copy(update=update).sealed())
    assert store.records() == {0: new}


def test_newer_index_line_is_passed_over(store):
    record = write(store, 0, None, None)
    store.append_index(record.model_copy(update={"format": 2}).sealed())
    assert store.records() == {0: record}


def test_iter_tables(store):
    for number in (5, 2):
        write(store, number, table(number), None)
    write(store, 3, None, None)
    assert [(task.number, len(rows)) for task, rows in store.iter_tables()] == [(2, 20), (5, 20)]
    found = list(store.iter_tables([5, 3, 0, 2]))
    assert [task for task, _ in found] == [store.tasks()[5], store.tasks()[2]]
    pd.testing.assert_frame_equal(found[0][1], table(5))


def test_log(store):
    store.log("begins\nwith 3")
    store.log("ended")
    lines = (store.folder / "log.txt").read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["begins with 3", "ended"]
    (store.folder / "log.txt").unlink()
    (store.folder / "log.txt").mkdir()
    store.log("that this cannot be written stops nothing")


def test_reading_writes_nothing(tmp_path):
    with mounted(tmp_path / "small", "size=1m") as folder:
        store = Store(folder)
        store.write_manifest(manifest())
        record = write(store, 0, table(), result())
        remount(folder, "ro")
        reader = Store(folder)
        assert reader.exists()
        assert reader.records() == {0: record}
        assert reader.problem(0) is None
        pd.testing.assert_frame_equal(reader.table(0), table())
        assert torch.equal(reader.result(0).values, result().values)
        for refused in (
            lambda: write(store, 1, table(), None),
            lambda: store.remove_part(0),
            lambda: store.append_index(record),
            store.rebuild_index,
            lambda: store.write_manifest(manifest()),
        ):
            with pytest.raises(OutputError, match=r"Read-only file system; what is finished is kept: make it writable"):
                refused()


# Sudden death

KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from tests.batches.test_store import Store, result, table, write
store = Store(sys.argv[1])
parts = [(table(seed, 20 + 2 * seed), result(seed)) for seed in range(4)]
write(store, 0, *parts[1], done=1)  # what is imported on the way is imported before the forks
chance = random.Random(0)
at = 0
for turn in range(int(sys.argv[2])):
    reads, writes = os.pipe()
    at += 1
    child = os.fork()
    while child == 0:
        number, seed = at % 10, at % 4
        write(store, number, parts[seed][0], parts[seed][1] if seed else None, done=seed)
        os.write(writes, b"x")
        at += 1
    os.read(reads, 1)  # it has written at least one, however busy the machine is
    time.sleep(chance.random() * 0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for task in range(10):
        if store.record(task) is not None:
            assert store.problem(task) is None, store.problem(task)
        else:
            assert store.problem(task) == "part-0000%d.json is missing" % task, store.problem(task)
    os.close(writes)
    at += len(os.read(reads, 1000))
    os.close(reads)
print(at, sum(name.startswith(".") for name in os.listdir(store.parts)))
"""


def test_killed_at_any_moment(store):
    """Every part that has a record checks out and holds what its record says; no other has one."""
    written, torn = map(int, child(KILLED, store.folder, 25, cwd=ROOT).split())
    assert written >= 25
    assert torn > 0  # some did die in the middle
    assert len(store.records()) >= 5
    for number, record in store.records().items():
        assert store.problem(number, record) is None
        pd.testing.assert_frame_equal(store.table(number), table(record.done, 20 + 2 * record.done))
        found = store.result(number)
        assert (found is None) == (record.done == 0)
        assert found is None or torch.equal(found.values, result(record.done).values)
    store.sweep()
    assert not any(map(is_temporary, names(store)))


def test_two_workers_with_the_same_part(store):
    """One is killed while the other has finished the same part: it stays finished."""
    code = """
        import os, random, signal, sys, time
        import torch
        torch.set_num_threads(1)
        from tests.batches.test_store import Store, result, table, write
        store = Store(sys.argv[1])
        rows, made = table(), result()
        write(store, 0, rows, made)
        chance = random.Random(0)
        for turn in range(25):
            store.remove_part(0)
            orphan = os.fork()
            while orphan == 0:
                write(store, 0, rows, made)
            time.sleep(chance.random() * 0.004)
            record = write(store, 0, rows, made)
            os.kill(orphan, signal.SIGKILL)
            os.waitpid(orphan, 0)
            print(store.problem(0, record))
    """
    assert child(code, store.folder, cwd=ROOT).splitlines() == ["None"] * 25


def test_light_to_import():
    code = """
        import sys
        import kn_lens.batches.store, kn_lens.batches.lock
        print([name for name in ("torch", "pandas", "pyarrow", "safetensors", "transformers") if name in sys.modules])
    """
    assert child(code) == "[]"
