"""Prompts traced, patched and attributed block by block give what the public function gives over all of them."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.batches.methods import METHODS
from kn_lens.errors import NothingLeft, OutputError, PromptError, SettingsError
from kn_lens.prompts.batch import PromptBatch
from kn_lens.tracing.answered import WRONG
from kn_lens.tracing.draw import cued_prompts
from kn_lens.tracing.swap import NO_PARTNER, swap_partners
from tests.batches.by_blocks import ByBlocks, assert_same_result, exact_organism, with_wrong

QUIET = {"progress": False}
WRONG_AT = (2, 3, 4, 5, 8)  # all of the second block, one each of the first and the third


@pytest.fixture(scope="module")
def exact():
    """``exact(name)``: an organism in float64, so that what differs between blocks is no rounding."""
    return functools.cache(exact_organism)


@pytest.fixture(scope="module")
def facts(exact):
    """Ten prompts of three lengths; five are answered wrongly, one stands twice."""
    model = exact("tiny-causal")
    batch = kn.load_relation("P36").prompts(model, groups=4, per_group=3)
    rows = [0, 1, 2, 3, 4, 5, 6, 6, 8, 9]
    return with_wrong(batch.select(rows), model, *WRONG_AT)


@pytest.fixture(scope="module")
def pairs(exact):
    model = exact("tiny-causal")
    data = kn.load_minimal_pairs("subject_verb_agreement")
    return with_wrong(cued_prompts(model, data, 4, 2, 0, twins=True), model, 1)


def assert_rows_are_of_the_prompts(found, public):
    """The table of all blocks is the public one, with each prompt's number among all prompts."""
    frame = public.to_frame()
    frame = frame.assign(prompt=np.array(found.done)[frame["prompt"].to_numpy()])
    rows = found.frame
    assert list(rows.columns) == list(frame.columns)
    assert len(rows) == len(frame)
    for name in frame.columns:
        if frame[name].dtype.kind == "f":
            np.testing.assert_allclose(rows[name], frame[name], rtol=1e-5, atol=1e-6)
        else:
            assert rows[name].tolist() == frame[name].tolist()


def assert_left_out(found, public):
    left = [(one.text, one.reason) for one in public.dropped]
    assert sorted(found.left_out) == sorted(left)
    assert [found.batch.prompts[at] for at in found.done] == list(public.prompts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stream": "mlp", "window": 2, "samples": 3, "severed": "attn", "direction": "necessity"},
        {"stream": "head", "samples": 2, "positions": "cue_last", "metric": "kl"},
        {"corruption": "mean", "layers": [1, 3]},
        {"corruption": "zero", "stream": "attn"},
        {"sigma": 0.7, "samples": 2},
    ],
)
def test_causal_trace(exact, facts, options):
    model = exact("tiny-causal")
    public = kn.causal_trace(model, facts, seed=5, **options, **QUIET)
    found = ByBlocks(model, "causal_trace", facts, seed=5, **options)
    assert_same_result(found.joined, public, parts=3)
    assert found.done == [0, 1, 6, 7, 9]
    assert_left_out(found, public)
    assert_rows_are_of_the_prompts(found, public)
    work, error = found.parts[1]
    assert isinstance(error, NothingLeft)
    assert [one.reason for one in error.dropped] == [WRONG] * 3
    assert [one.text for one in error.dropped] == [prompt.text for prompt in work.batch.prompts]


def test_sigma_is_that_of_all_prompts_whatever_the_blocks(exact, facts):
    model = exact("tiny-causal")
    method = METHODS["causal_trace"]
    settings = method.Settings(noise=2.0)
    values = set()
    for size in (1, 3, 10):
        preparation = method.prepare(model, settings)
        for first in range(0, len(facts), size):
            preparation.add(facts.select(range(first, min(first + size, len(facts)))))
        values.add(json.dumps(preparation.values()))
    (text,) = values  # to the last bit
    cues = [entry.ids[at] for entry in facts.resolved for at in entry.cue_positions]
    expected = 2.0 * model.embed.W_E.detach()[cues].double().std(correction=0)
    assert json.loads(text) == {"sigma": pytest.approx(float(expected), rel=1e-9)}


def test_swaps_cross_blocks(exact, facts, pairs):
    """A prompt's twin may stand in another block, and so may the answer to it, which is its foil."""
    model = exact("tiny-causal")
    for batch, shard in ((facts, 3), (pairs, 2)):
        public = kn.causal_trace(model, batch, corruption="swap", **QUIET)
        found = ByBlocks(model, "causal_trace", batch, corruption="swap", shard=shard)
        assert len(public.twins) == len(public) > 0
        assert any(
            twin not in {p.text for p in work.batch.prompts} for work, _ in found.parts for twin in work.swaps.texts
        )
        assert_same_result(found.joined, public, parts=found.joined.provenance["parts"])
        assert_rows_are_of_the_prompts(found, public)


def test_swaps_of_the_settings(exact, facts):
    model = exact("tiny-causal")
    cues = list(dict.fromkeys(prompt.prefix[slice(*prompt.cue_span())] for prompt in facts.prompts))
    swaps = dict(zip(cues, [*cues[1:], cues[0]], strict=True))
    public = kn.causal_trace(model, facts, corruption="swap", swaps=swaps, **QUIET)
    found = ByBlocks(model, "causal_trace", facts, corruption="swap", swaps=swaps)
    assert_same_result(found.joined, public, parts=3)


def test_masked_models(exact):
    model = exact("tiny-masked")
    batch = with_wrong(kn.load_relation("P103").prompts(model, groups=3, per_group=3), model, 1, 3, 4, 5)
    for method, options in (("causal_trace", {"samples": 2}), ("attention_knockout", {})):
        public = getattr(kn, method)(model, batch, **options, **QUIET)
        found = ByBlocks(model, method, batch, **options)
        assert_same_result(found.joined, public, parts=2)
        assert_rows_are_of_the_prompts(found, public)


@pytest.mark.parametrize("options", [{}, {"window": 2, "blocks": ["cue", "target"]}, {"heads": True, "metric": "kl"}])
def test_attention_knockout(exact, facts, options):
    model = exact("tiny-causal")
    public = kn.attention_knockout(model, facts, **options, **QUIET)
    found = ByBlocks(model, "attention_knockout", facts, **options)
    assert_same_result(found.joined, public, parts=3)
    assert_left_out(found, public)
    assert_rows_are_of_the_prompts(found, public)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("activation_patching", {}),
        ("activation_patching", {"component": "mlp", "positions": "sum", "direction": "necessity"}),
        ("attribution_patching", {"component": "neuron", "metric": "log_probability"}),
        ("path_patching", {}),
        ("path_patching", {"receiver": "2:1", "component": "v", "direction": "necessity"}),
    ],
)
def test_patching(exact, facts, pairs, name, options):
    model = exact("tiny-causal")
    given = {**options, **({"receiver": (2, 1)} if "receiver" in options else {})}
    for batch in (facts, pairs):
        public = getattr(kn, name)(model, batch, **given, **QUIET)
        found = ByBlocks(model, name, batch, **options)
        assert_same_result(found.joined, public, parts=len(found.frames))
        assert_rows_are_of_the_prompts(found, public)
        assert [found.batch.prompts[at] for at in found.done] == list(public.prompts)


@pytest.mark.parametrize("neurons", [False, True])
def test_direct_logit_attribution(exact, facts, neurons):
    model = exact("tiny-causal")
    public = kn.direct_logit_attribution(model, facts, neurons=neurons, **QUIET)
    found = ByBlocks(model, "direct_logit_attribution", facts, neurons=neurons)
    assert_same_result(found.joined, public, parts=3)
    assert_left_out(found, public)
    if not neurons:
        assert_rows_are_of_the_prompts(found, public)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("integrated_gradients", {"steps": 4}),
        ("integrated_gradients", {"steps": 4, "rule": "adaptive", "tolerance": 1e-4, "site": "head"}),
        ("gradient_times_activation", {"positions": "all"}),
        ("max_activation", {"site": "mlp_pre", "positions": "cue"}),
    ],
)
def test_scores(exact, facts, name, options):
    model = exact("tiny-causal")
    public = getattr(kn, name)(model, facts, **options, **QUIET)
    found = ByBlocks(model, name, facts, **options)
    assert_same_result(found.joined, public, parts=4)
    assert found.done == list(range(10))
    rows, expected = found.frame, public.to_frame()
    assert rows["prompt"].tolist() == expected["prompt"].tolist()
    np.testing.assert_allclose(rows["score"], expected["score"], rtol=1e-5, atol=1e-6)


def test_targets_of_several_tokens(random_model):
    """They are averaged over their tokens, prompt by prompt."""
    model = random_model("gpt2")
    texts = [("The capital of France is", "Paris"), ("The capital of Spain is", "Madrid Rome"), ("The dog is", "old")]
    batch = PromptBatch.from_prompts(model, [kn.Prompt(prefix, target=target) for prefix, target in texts])
    public = kn.integrated_gradients(model, batch, steps=3, **QUIET)
    found = ByBlocks(model, "integrated_gradients", batch, steps=3, shard=1)
    assert_same_result(found.joined, public, parts=3)


def test_parts_of_other_settings_are_not_joined(exact, facts):
    model = exact("tiny-causal")
    batch = facts.select([0, 1])
    one, other = (kn.attention_knockout(model, batch, window=window, **QUIET) for window in (1, 2))
    with pytest.raises(OutputError, match="window"):
        METHODS["attention_knockout"].join([one, other])
    with pytest.raises(OutputError, match="no parts"):
        METHODS["attention_knockout"].join([])


def test_the_same_text_twice_is_told_apart(exact, facts):
    """Two prompts of one text, the first answered wrongly since it asks for another word."""
    model = exact("tiny-causal")
    first = facts.prompts[0]
    batch = PromptBatch.from_prompts(model, [replace(first, target="Madrid"), first, first, facts.prompts[1]])
    found = ByBlocks(model, "attention_knockout", batch, shard=4)
    assert found.done == [1, 2, 3]


def test_twins_found_before(exact, facts):
    model = exact("tiny-causal")
    swapped = swap_partners(model, facts)
    assert swap_partners(model, facts, swapped).ids == swapped.ids
    some = facts.select([1, 0])
    with pytest.raises(PromptError, match="twins of 10 prompts that are not the 2 given"):
        swap_partners(model, some, swapped)
    with pytest.raises(NothingLeft, match="no prompt has a cue to swap with") as error:
        swap_partners(model, facts.select([0, 1]))
    assert [one.reason for one in error.value.dropped] == [NO_PARTNER] * 2


def test_a_given_mean(exact, facts):
    model = exact("tiny-causal")
    batch = facts.select([0, 1])
    mean = torch.linspace(-1, 1, model.cfg.d_model, dtype=torch.float64)
    options = {"corruption": "mean", **QUIET}
    given = kn.causal_trace(model, batch, mean=mean.tolist(), **options)
    own = kn.causal_trace(model, batch, **options)
    assert not torch.allclose(given.corrupted["logit_difference"], own.corrupted["logit_difference"], atol=1e-3)

    def spoil(activation: Any, hook: Any) -> Any:
        for row, entry in enumerate(batch.resolved):
            activation[row, list(entry.cue_positions)] = mean
        return activation

    with torch.no_grad(), model.hooks(fwd_hooks=[("hook_embed", spoil)]):
        logits = model(batch.tokens)
    for row, entry in enumerate(batch.resolved):
        at = logits[row, entry.target_position].log_softmax(-1)[entry.target_ids[0]]
        assert float(given.corrupted["log_probability"][row]) == pytest.approx(float(at), rel=1e-4, abs=1e-5)
    with pytest.raises(SettingsError, match="no embedding of this model; give"):
        kn.causal_trace(model, batch, mean=[0.0, 1.0], **options)
    with pytest.raises(SettingsError, match="mean is given and the corruption is 'noise'"):
        kn.causal_trace(model, batch, mean=mean, **QUIET)


def test_two_prefix_pairs(exact):
    """Their metric is log p; what has no rival word is refused in planning."""
    model = exact("tiny-causal")
    prompts = [
        kn.Prompt("The poet", target="has", cue="poet", foil_prefix="The poets", form="two_prefix"),
        kn.Prompt("The poets", target="have", cue="poets", foil_prefix="The poet", form="two_prefix"),
    ]
    batch = PromptBatch.from_prompts(model, prompts)
    public = kn.attention_knockout(model, batch, **QUIET)
    found = ByBlocks(model, "attention_knockout", batch, shard=1)
    assert found.joined.metric == public.metric == "log_probability"
    assert_same_result(found.joined, public, parts=2)
    with pytest.raises(PromptError, match="without a foil"):
        ByBlocks(model, "direct_logit_attribution", batch)
    with pytest.raises(SettingsError, match="two-prefix pairs"):
        ByBlocks(model, "activation_patching", batch, metric="logit_difference")
    preparation = METHODS["causal_trace"].prepare(model, METHODS["causal_trace"].Settings())
    preparation.add(batch)
    with pytest.raises(PromptError, match="cannot share a data set"):
        preparation.add(PromptBatch.from_prompts(model, [kn.Prompt("The poet", target="has", cue="poet")]))
