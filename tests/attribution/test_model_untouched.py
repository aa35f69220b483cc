"""The model comes back exactly as it was, whatever happens. User needs 10 and 13: one load, and no silent change."""

from __future__ import annotations

import pytest
import torch

import kn_lens as kn
from kn_lens import forward
from kn_lens.models import shared_prefix, stepping
from tests.helpers import FAMILIES
from tests.questions import assert_same_state, likely_batch, questions, state_of

UNITS = [(0, 1), (2, 3)]
CALLS = {
    "integrated_gradients": lambda model, batch: kn.integrated_gradients(model, batch, steps=3, progress=False),
    "integrated_gradients of heads": lambda model, batch: kn.integrated_gradients(
        model, batch, site="head", steps=3, positions="cue", progress=False
    ),
    "gradient_times_activation": lambda model, batch: kn.gradient_times_activation(model, batch, progress=False),
    "max_activation": lambda model, batch: kn.max_activation(model, batch, progress=False),
    "suppress": lambda model, batch: kn.suppress(model, batch, UNITS, controls=3, progress=False),
    "enhance heads": lambda model, batch: kn.enhance(model, batch, UNITS, site="head", controls=3, progress=False),
    "answers": kn.answers,
    "accuracy": kn.accuracy,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_leaves_no_trace(random_model, family, call):
    """Weights bit-identical; gradient flags, hooks and attributes (also of attention modules) as before."""
    model = random_model(family)
    batch = likely_batch(model)
    before = state_of(model)
    CALLS[call](model, batch)
    assert_same_state(model, before)


PLACES = {
    "while the rows run": (forward, "run_block", 4),
    "at the first clean layer": (stepping, "run_block", 1),
    "while the prefix is put in place": (shared_prefix, "_install", 2),
    "at the logits": (forward, "readout", 1),
}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", ["integrated_gradients", "integrated_gradients of heads", "suppress", "enhance heads"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_interrupted_call_leaves_no_trace(random_model, monkeypatch, family, call, place, error):
    """Ctrl-C in the midst of it."""
    model = random_model(family)
    batch = likely_batch(model)
    expected = CALLS[call](model, batch)
    before = state_of(model)
    module, name, count = PLACES[place]
    plain, calls = getattr(module, name), []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            raise error("stopped")
        return plain(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, interrupted)
        with pytest.raises(error, match="stopped"):
            CALLS[call](model, batch)
    assert len(calls) == count
    assert_same_state(model, before)
    again = CALLS[call](model, batch)
    name = "target" if "suppress" in call or "enhance" in call else "values"
    assert torch.equal(getattr(again, name), getattr(expected, name))


def test_an_interrupt_within_a_masked_model(random_model, monkeypatch):
    model = random_model("bert")
    batch = likely_batch(model)
    before = state_of(model)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(forward, "readout", interrupted)
    for call in ("integrated_gradients", "suppress"):
        with pytest.raises(KeyboardInterrupt):
            CALLS[call](model, batch)
        assert_same_state(model, before)


def test_flags_of_single_weights_come_back(random_model):
    """A user who trains a probe has frozen some weights and not others."""
    model = random_model("llama")
    flags = [parameter.requires_grad for parameter in model.parameters()]
    try:
        for index, parameter in enumerate(model.parameters()):
            parameter.requires_grad_(index % 3 == 0)
        chosen = [parameter.requires_grad for parameter in model.parameters()]
        kn.integrated_gradients(model, questions(model, 2), steps=2, progress=False)
        assert [parameter.requires_grad for parameter in model.parameters()] == chosen
        assert all(parameter.grad is None for parameter in model.parameters())
    finally:
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)


def test_the_users_own_hooks_stay_and_act(random_model):
    """A hook that the user set beforehand is part of her model: it acts in every call and is still there after."""
    model = random_model("gpt2")
    batch = likely_batch(model, questions(model, 2))
    plain = kn.integrated_gradients(model, batch, steps=3, progress=False)
    try:
        model.add_hook("blocks.0.attn.hook_z", lambda activation, hook: activation * 0)
        before = state_of(model)
        assert sum(hooks[0] for hooks in before["hooks"].values()) == 1
        hooked = kn.integrated_gradients(model, batch, steps=3, progress=False)
        assert_same_state(model, before)
    finally:
        model.reset_hooks()
    assert (hooked.values - plain.values).abs().max() > 1e-4 * plain.values.abs().max()
    with torch.no_grad(), model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z * 0)]):
        logits = model(batch.tokens[:1, : batch.lengths[0]])
    expected = logits[0, -1].softmax(-1)[batch.target_ids[0]]
    torch.testing.assert_close(hooked.probability[0], expected)


def test_same_call_same_numbers(random_model):
    model = random_model("llama")
    batch = likely_batch(model)
    first, second = (kn.integrated_gradients(model, batch, steps=4, progress=False) for _ in range(2))
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.convergence_delta, second.convergence_delta)
