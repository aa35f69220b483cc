"""A short campaign of faults on real runs; ``make test-faults`` does the long one."""

from __future__ import annotations

import pytest

from tests.faults import disks, kills
from tests.faults.bench import SUPPRESS, Bench, records_of

# Pieces enough that kills land among them, and soon done.
CONFIG = {**SUPPRESS, "shard": 1}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("faults"), seed=0, workers=1)
    folder, tables = made.undisturbed(CONFIG)
    assert len(records_of(folder)) == 96
    assert set(tables) == {"suppress.parquet", "prompts.parquet"}
    return made


def test_kills_lose_nothing(bench):
    """In planning, in work, then of a worker: what is finished stays as it is, and the tables come out the same."""
    row = kills.kill_coordinator(bench, 2, everyone=True, config=CONFIG, longest=0.3, worker_too=True)
    assert row.good, row
    assert row.times == 2
    assert row.equal


def test_damaged_parts_are_made_again_and_no_others(bench):
    row = disks.damaged_parts(bench, CONFIG)
    assert row.good, row
    assert row.finished == 96 - 12
