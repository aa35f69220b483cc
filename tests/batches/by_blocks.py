"""A method run block by block, each part packed and read back, as a batch does it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from kn_lens.batches.config import DataEntry
from kn_lens.batches.methods import METHODS, Work
from kn_lens.errors import NothingLeft
from kn_lens.results import Result
from kn_lens.tracing.swap import Swapped


class ByBlocks:
    """The parts of one variant over all prompts, in blocks of ``shard`` or of whole groups.

    Attributes:
        parts: (work, its result or the error that nothing was left) of each block.
        joined: The parts' results as one, where there are any.
        frame: All rows, ``prompt`` counting over all prompts.
        done: Which prompts are in the results.
    """

    def __init__(self, model, name, batch, *, variant=None, shard=3, seed=0, budget=1e9, data="data", **settings):
        method = self.method = METHODS[name]
        chosen = self.settings = method.Settings(**settings)
        chosen = method.Settings.model_validate(json.loads(json.dumps(chosen.model_dump(mode="json"))))
        assert chosen == self.settings  # as it is read back from a manifest
        method.check(chosen)
        method.check_model(model, chosen)
        swapped = None
        if method.twins(chosen):
            swapped = method.find_twins(model, batch, chosen)
            batch = swapped.batch
        self.batch = batch
        cuts = [*_starts(batch, shard, method.whole_groups), len(batch)]
        blocks = [range(first, last) for first, last in pairwise(cuts)]
        preparation = method.prepare(model, chosen)
        prepared = {}
        if preparation is not None:
            for block in blocks:
                preparation.add(batch.select(block))
            prepared = json.loads(json.dumps(preparation.values()))
        self.parts, results, frames, self.done = [], [], [], []
        for block in blocks:
            part = batch.select(block)
            work = Work(
                settings=chosen,
                variant=method.variants(chosen)[0] if variant is None else variant,
                seed=seed,
                memory_budget=budget,
                prepared=prepared,
                data=DataEntry(name=data),
                rows=block,
                batch=part,
                swaps=None if swapped is None else _some(swapped, block, part),
            )
            try:
                result = method.compute(model, work)
            except NothingLeft as error:
                self.parts.append((work, error))
                continue
            self.parts.append((work, result))
            result = Result.unpacked(*result.packed(), "a part")
            results.append(result)
            self.done += [block[at] for at in method.done(result, work)]
            frame = method.frame(result, work)
            frames.append(frame.assign(prompt=frame["prompt"] + block.start))
        self.frames = frames
        self.joined = method.join(results) if results else None

    @property
    def frame(self):
        import pandas as pd

        return pd.concat(self.frames, ignore_index=True)

    @property
    def left_out(self):
        """Texts and reasons of all that was left out."""
        return [(one.text, one.reason) for _, result in self.parts for one in result.dropped]


def _starts(batch, shard, whole_groups):
    starts, names = [], [prompt.group or prompt.target for prompt in batch.prompts]
    for at in range(len(batch)):
        full = not starts or at - starts[-1] >= shard
        if full and not (whole_groups and at and names[at] == names[at - 1]):
            starts.append(at)
    return starts


def _some(swapped, block, part):
    fields = {name: tuple(getattr(swapped, name)[at] for at in block) for name in ("ids", "texts", "answers")}
    return Swapped(batch=part, **fields)


def assert_same_result(joined, public, *, parts, apart=(), settings_apart=()):
    """Every field of two results, but for provenance, ``dropped`` and those named, is the same."""
    assert type(joined) is type(public)
    for field in dataclasses.fields(public):
        if field.name in ("settings", "provenance", "dropped", *apart):
            continue
        assert_same_value(getattr(joined, field.name), getattr(public, field.name), field.name)
    for key in set(joined.settings) | set(public.settings):
        if key not in settings_apart:
            assert_same_value(joined.settings[key], public.settings[key], key)
    expected = {key: value for key, value in public.provenance.items() if key != "prompts_hash"}
    assert joined.provenance == {**expected, "parts": parts}


def assert_same_value(found, expected, name):
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        exact = not expected.dtype.is_floating_point
        rtol, atol = (0, 0) if exact else (1e-5, 1e-6)
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m: f"{name}: {m}")
    elif isinstance(expected, dict):
        assert list(found) == list(expected), name
        for key, value in expected.items():
            assert_same_value(found[key], value, f"{name}.{key}")
    elif isinstance(expected, (list, tuple)) and not isinstance(expected, str):
        assert len(found) == len(expected), name
        for at, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same_value(one, other, f"{name}[{at}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6, nan_ok=True), name
    else:
        assert found == expected, name


def exact_organism(name):
    """An organism in float64, its own copy."""
    import kn_lens as kn

    return kn.load_model(name, device="cpu").to(torch.float64)


def with_wrong(batch, model, *wrong):
    """The batch with prompts that are answered wrongly at some places: their targets are swapped for another's."""
    from kn_lens.prompts.batch import PromptBatch

    prompts = list(batch.prompts)
    others = list(dict.fromkeys(prompt.target for prompt in prompts))
    for at in wrong:
        other = next(word for word in others if word != prompts[at].target)
        prompts[at] = replace(prompts[at], target=other, foil=prompts[at].target if prompts[at].foil else None)
    return PromptBatch.from_prompts(model, prompts)
