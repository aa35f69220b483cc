"""A part takes another's place: the better one stays, and a reader sees the one or the other."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass

import pandas as pd
import pytest
import torch

from kn_lens.batches.storage.durable import temporary_name
from kn_lens.batches.storage.part import LeftOut, PartRecord
from kn_lens.batches.storage.store import Store
from kn_lens.errors import OutputError
from tests.batches.faults import mounted
from tests.batches.stores import Measured, manifest, names, result, store, table, write

__all__ = ["store"]


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
    (name,) = new.files
    assert name == f"part-00000.{new.files[name].sha256[:16]}.parquet"
    assert names(store) == sorted(["part-00000.json", name])
    assert store.record(0) == new
    assert store.problem(0, new) is None
    assert store.problem(0, old) == "part-00000.json is not the record that the index has"
    pd.testing.assert_frame_equal(store.table(0), table(seed=1))
    assert store.result(0) is None


def left_out(*prompts):
    return [LeftOut(prompt=prompt, text="a", reason="b") for prompt in prompts]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ({"failed": [1]}, {}, False),
        ({"failed": [1, 2]}, {"failed": [2]}, False),
        ({"failed": [1, 2]}, {"dropped": [1], "failed": [2]}, False),
        ({"failed": [1]}, {"failed": [1]}, False),  # as good, and newer
        ({"failed": [1]}, {"failed": [0, 1, 2, 3]}, True),
        ({"failed": [1]}, {"failed": [2]}, True),
        ({"dropped": [1]}, {"dropped": [1], "failed": [2]}, True),
        ({}, {"dropped": [3]}, True),
    ],
)
def test_part_that_does_less_does_not_replace(store, first, second, kept):
    old, new = ({name: left_out(*prompts) for name, prompts in one.items()} for one in (first, second))
    was = write(store, 0, table(), result(), **old)
    found = write(store, 0, table(seed=1), None, **new)
    assert (found == was) == kept
    assert found == store.record(0)
    assert store.problem(0, found) is None
    pd.testing.assert_frame_equal(store.table(0), table(seed=0 if kept else 1))
    assert (store.result(0) is not None) == kept
    assert names(store) == sorted(["part-00000.json", *found.files])


def test_damaged_part_is_replaced_by_one_that_does_less(store):
    write(store, 0, table(seed=1), None)
    record = write(store, 0, table(), result())
    (store.parts / next(iter(record.files))).write_bytes(b"x")
    new = write(store, 0, table(seed=2), None, failed=left_out(1))
    assert store.record(0) == new
    assert store.problem(0) is None
    assert names(store) == ["part-00000.json", "part-00000.parquet"]


def test_record_and_result_belong_together(store):
    assert store.whole(0) is store.whole_table(0) is None
    first = write(store, 0, table(), result(1), done=1)
    second = write(store, 1, None, None, done=0)
    (record, found), (same, rows) = store.whole(0), store.whole_table(0)
    assert record == same == first
    assert torch.equal(found.values, result(1).values)
    pd.testing.assert_frame_equal(rows, table())
    assert store.whole(1) == store.whole_table(1) == (second, None)
    (store.parts / "part-00000.safetensors").write_bytes(b"x")
    with pytest.raises(OutputError, match=r"part-00000\.safetensors is damaged"):
        store.whole(0)
    assert store.whole_table(0)[0] == first


def test_remove_part(store):
    write(store, 0, table(), result())
    write(store, 0, table(seed=1), result(1))
    write(store, 1, table(), result())
    store.remove_part(0)
    store.remove_part(5)
    assert names(store) == ["part-00001.json", "part-00001.parquet", "part-00001.safetensors"]


def test_reader_beside_a_writer_sees_whole_parts(store):
    """A part is replaced again and again; who reads meanwhile gets the one or the other, and the record of that one."""
    wanted = [table(seed=0), table(seed=1, rows=40)]
    write(store, 0, wanted[0], None, done=0)
    ended = threading.Event()
    seen = {20: 0, 40: 0}

    def read():
        reader = Store(store.folder)
        while not ended.is_set():
            record, found = reader.whole_table(0)
            seen[len(found)] += 1
            assert record.done == (len(found) == 40)
            pd.testing.assert_frame_equal(found, wanted[len(found) == 40])
            assert reader.problem(0) is None
            assert list(reader.records()) == [0]

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
