"""The store of a run: its manifest, its index, its log; reading it writes nothing."""

from __future__ import annotations

import hashlib
import json
import os

import pandas as pd
import pytest
import torch

from kn_lens.batches.storage.durable import canonical
from kn_lens.batches.storage.index import stamp_of
from kn_lens.batches.storage.part import Task
from kn_lens.batches.storage.store import DamagedManifest, Store
from kn_lens.errors import OutputError
from tests.batches.faults import child, mounted, remount
from tests.batches.stores import flipped, manifest, result, store, table, write

__all__ = ["store"]

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
    assert [json.loads(line)[1]["task"] for line in lines] == [1, 3, 4, 7]
    assert store.records() == wanted


def test_index_spares_opening_the_records(store):
    record = write(store, 1, table(), None)
    store.append_index(record)
    path = store.parts / "part-00001.json"
    stat = path.stat()
    path.write_bytes(b" " * stat.st_size)  # it would be seen to be damaged if it were opened
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
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
        assert json.loads(path.read_bytes().splitlines()[-1])[1]["task"] == 2
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
    stamp, _ = list(store.index.records())[-1]
    for update in ({"run": "run-2", "done": 1}, {"task": 10}):
        store.index.append(stamp, new.model_copy(update=update).sealed())
    assert store.records() == {0: new}


def test_index_older_than_a_part(store):
    """The process died, or a reader came, between a part that replaced another and its line in the index."""
    for turn in range(20):  # at once, and of the same length: neither size nor time tells them apart for sure
        old = write(store, 0, table(turn), None)
        store.append_index(old)
        new = write(store, 0, table(turn + 100), None)
        assert new != old
        assert store.records() == {0: new}
        assert [record for _, record in store.index.records()][-1] == old
        store.append_index(old)  # it is no longer there
        assert store.records() == {0: new}


def test_newer_index_line_is_passed_over(store):
    record = write(store, 0, None, None)
    stamp = stamp_of((store.parts / "part-00000.json").stat())
    store.index.append(stamp, record.model_copy(update={"format": 2}).sealed())
    assert list(store.index.records()) == []
    assert store.records() == {0: record}


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


def test_light_to_import():
    code = """
        import sys
        import kn_lens.batches.storage.store, kn_lens.batches.storage.lock
        print([name for name in ("torch", "pandas", "pyarrow", "safetensors", "transformers") if name in sys.modules])
    """
    assert child(code) == "[]"
