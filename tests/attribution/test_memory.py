"""User need 18: whatever the memory, the numbers are the same; when it runs out, halve and go on."""

from __future__ import annotations

import logging

import pytest
import torch

import kn_lens as kn
from kn_lens import forward
from kn_lens.attribution import path as module
from tests.helpers import FAMILIES, LAYERS
from tests.questions import assert_same_state, likely_batch, state_of

FIELDS = ("values", "probability", "convergence_delta")


def assert_equal(found, expected):
    for name in FIELDS:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-10, rtol=1e-6)


def limit_rows(monkeypatch, most):
    """The machine runs out of memory above ``most`` rows; returns the sizes asked for."""
    asked = []
    plain = forward.run_block

    def run_block(model, layer, resid, **extra):
        asked.append(len(resid))
        if len(resid) > most:
            raise torch.OutOfMemoryError(f"CUDA out of memory with {len(resid)} rows")
        return plain(model, layer, resid, **extra)

    monkeypatch.setattr(forward, "run_block", run_block)
    return asked


@pytest.mark.parametrize("budget", [1.0, 2e5, 1e7])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_budget_changes_nothing(exact_model, family, budget):
    """One byte forces one point of one prompt at a time."""
    model = exact_model(family)
    batch = likely_batch(model)
    expected = kn.integrated_gradients(model, batch, steps=5, positions="cue", progress=False)
    found = kn.integrated_gradients(model, batch, steps=5, positions="cue", progress=False, memory_budget=budget)
    assert_equal(found, expected)


def test_the_budget_bounds_the_rows(exact_model, monkeypatch):
    model = exact_model("gpt2")
    batch = likely_batch(model)
    asked = limit_rows(monkeypatch, 10**9)
    kn.integrated_gradients(model, batch, steps=5, progress=False, memory_budget=1.0)
    assert max(asked) == LAYERS  # one point in every layer
    asked.clear()
    kn.integrated_gradients(model, batch, steps=5, progress=False)
    assert max(asked) >= 5 * LAYERS


@pytest.mark.parametrize("rule", ["riemann", "gauss_legendre", "adaptive"])
def test_no_pass_holds_more_rows_than_the_budget(exact_model, monkeypatch, rule):
    """Several prompts and many points at once: their product is what takes memory."""
    model = exact_model("gpt2")
    batch = likely_batch(model).select([0, 5] * 4)
    row = forward.bytes_per_row(model, 1, batch.lengths[0], gradients=True)
    asked = limit_rows(monkeypatch, 10**9)
    options = {"rule": rule, "steps": 4, "tolerance": 1e-12, "progress": False}
    expected = kn.integrated_gradients(model, batch, **options)
    asked.clear()
    found = kn.integrated_gradients(model, batch, **options, memory_budget=row * LAYERS * 15.5)
    assert 10 * LAYERS < max(asked) <= 15 * LAYERS
    assert_equal(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_halving_prompts_loses_nothing(exact_model, family, monkeypatch, caplog):
    model = exact_model(family)
    batch = likely_batch(model)
    same = batch.select([0, 5, 0, 5, 0, 5, 5])  # prompts of one shape, which would share a pass
    assert len(set(same.lengths)) == 1
    expected = kn.integrated_gradients(model, same, steps=4, positions="cue", progress=False)
    before = state_of(model)
    asked = limit_rows(monkeypatch, 2 * 4 * LAYERS)
    with caplog.at_level(logging.WARNING, "kn_lens"):
        found = kn.integrated_gradients(model, same, steps=4, positions="cue", progress=False)
    assert max(asked) > 2 * 4 * LAYERS
    assert "out of memory" in caplog.text
    assert_equal(found, expected)
    assert_same_state(model, before)


def test_halving_the_points_of_a_single_prompt_loses_nothing(exact_model, monkeypatch, caplog):
    """A long prompt on a large model: not even its own points fit at once. What fitted is remembered."""
    model = exact_model("llama")
    batch = likely_batch(model)
    expected = kn.integrated_gradients(model, batch, steps=9, positions="cue", progress=False)
    asked = limit_rows(monkeypatch, 2 * LAYERS)
    with caplog.at_level(logging.WARNING, "kn_lens"):
        found = kn.integrated_gradients(model, batch, steps=9, positions="cue", progress=False)
    assert_equal(found, expected)
    assert max(asked[len(asked) // 2 :]) <= 2 * LAYERS
    assert caplog.text.count("points of a prompt at once") == 3 - 1  # 9 → 4 → 2


def test_what_cannot_fit_at_all_is_said(exact_model, monkeypatch):
    model = exact_model("gpt2")
    before = state_of(model)
    limit_rows(monkeypatch, 1)
    with pytest.raises(MemoryError, match="does not fit into memory"):
        kn.integrated_gradients(model, likely_batch(model), progress=False)
    assert_same_state(model, before)


def test_other_errors_are_not_taken_for_memory(exact_model, monkeypatch):
    model = exact_model("gpt2")

    def fail(*_, **__):
        raise RuntimeError("a size mismatch")

    monkeypatch.setattr(module.Columns, "gradients", fail)
    with pytest.raises(RuntimeError, match="a size mismatch"):
        kn.integrated_gradients(model, likely_batch(model), progress=False)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_run_in_chunks_visits_each_item_once(error):
    done = []

    def run(chunk):
        if len(chunk) > 3:
            raise error
        done.extend(chunk)

    assert forward.run_in_chunks(range(23), 16, run) == 2
    assert done == list(range(23))


def test_half_precision_keeps_token_ids_whole(tmp_path):
    """bfloat16 holds whole numbers up to 256 only; the top token's id must not pass through it."""
    from tests.helpers import load_random_model

    model = load_random_model("gpt2", tmp_path).to(torch.bfloat16)
    with torch.no_grad():
        model.unembed.b_U[[301, 703]] += 30  # odd ones above 256, which would be rounded
        model.unembed.W_U[:, 703] *= 2
    batch = likely_batch(model)
    assert {entry.target_ids[0] for entry in batch.resolved} <= {301, 703}
    effect = kn.suppress(model, batch, [(0, 0)], factor=1.5, controls=1, progress=False)
    assert effect.top[:, 0].tolist() == kn.answers(model, batch).top.tolist()
    assert effect.correct[:, 0].all()
