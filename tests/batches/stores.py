"""A small run, and parts to write into it: what the store is tested with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from kn_lens.batches.storage.part import DataPlan, Manifest
from kn_lens.batches.storage.store import Store
from kn_lens.prompts.prompt import Dropped
from kn_lens.results import Result


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
        "dropped_sha256": "1" * 64,
        "provenance": {"model": "m", "weights_hash": "w"},
        "host": {"name": "here"},
        "created": "2024-01-01T00:00:00+00:00",
    }
    return Manifest(**(values | fields))


@pytest.fixture
def store(tmp_path):
    """A run of ten tasks in an empty folder."""
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


def flipped(raw, at):
    """Bytes with a bit of one flipped."""
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
