"""Processes that write parts are killed at any moment: what was finished is there, and nothing half-written is."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from kn_lens.batches.storage.durable import is_temporary
from tests.batches.faults import child
from tests.batches.stores import names, result, store, table

__all__ = ["store"]

ROOT = Path(__file__).parents[2]

KILLED = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from kn_lens.batches.storage.store import Store
from tests.batches.stores import result, table, write
store = Store(sys.argv[1])
parts = [(table(seed, 20 + 2 * seed), result(seed)) for seed in range(4)]
write(store, 0, *parts[1], done=1)  # what is imported on the way is imported before the forks
chance = random.Random(0)
at = 0
finished = set()
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
    there = {task for task in range(10) if store.record(task) is not None}
    assert finished <= there  # what is there once is there from then on
    finished = there
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


STEPS = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from kn_lens.batches.storage.store import Store
from tests.batches.stores import result, table, write
store = Store(sys.argv[1])
steps = []

def step(event, _):
    if steps and event in ("os.rename", "os.remove", "open"):
        steps[0] -= 1
        if steps[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(step)
olds, news, at, alive = 0, 0, 0, False
while not alive:
    at += 1
    store.remove_part(0)
    write(store, 0, table(1), result(1), done=1)
    old = write(store, 0, table(2), result(2), done=2)
    child = os.fork()
    if child == 0:
        steps.append(at)
        write(store, 0, table(3), None, done=3)
        os._exit(0)
    alive = os.waitpid(child, 0)[1] == 0
    assert store.problem(0) is None, store.problem(0)
    record = store.record(0)
    olds, news = olds + (record == old), news + (record.done == 3)
    store.sweep()
    assert store.rebuild_index() == {0: record}
    assert sorted(os.listdir(store.parts)) == sorted(["index.jsonl", "part-00000.json", *record.files])
print(at, olds, news)
"""


def test_killed_at_each_step_of_replacing(store):
    """Before each file that is opened, renamed or removed: the old part or the new one is there, and nothing else."""
    steps, olds, news = map(int, child(STEPS, store.folder, cwd=ROOT).split())
    assert olds + news == steps
    assert olds > 3
    assert news > 2


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
        from kn_lens.batches.storage.store import Store
        from tests.batches.stores import result, table, write
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
