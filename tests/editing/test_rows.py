"""Rows begun at the edited layer and position give what whole forward passes of each text give."""

from __future__ import annotations

import functools

import pytest
import torch

from kn_lens.editing.rows import OUTPUTS, EditedRows, Row
from kn_lens.models.shared_prefix import can_share_prefix
from tests.oracles.rome import Text as ByHand
from tests.oracles.rome import key_and_output, logits_with
from tests.questions import assert_same_state, state_of

FAMILIES = ("gpt2", "gpt_neox", "llama", "qwen2")
BUILT = ("alibi", "soft cap", "local attention", "no prefix needed")

ROWS = (  # prefixes of several lengths, answers of several tokens, one row without any
    Row(ids=(5, 9, 7, 30, 11), position=3, answers=(41,)),
    Row(ids=(8, 21, 5, 9, 7, 30, 11, 41, 42), position=5, answers=(41, 42, 43)),
    Row(ids=(60, 61, 62, 63, 64, 65, 66, 5, 9, 7, 30, 11, 41), position=10, answers=(41, 42)),
    Row(ids=(9, 7, 30), position=2),
)


@functools.cache
def built_model(kind):
    """Causal models of other kinds than the families: TransformerLens' own, random, in float64."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    extra = {
        "alibi": {"positional_embedding_type": "alibi"},
        "soft cap": {"attn_scores_soft_cap": 5.0},
        "local attention": {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local", "local"]},
        "no prefix needed": {"attn_only": False},
    }[kind]
    config = HookedTransformerConfig(
        n_layers=3, d_model=24, n_ctx=32, d_head=8, n_heads=4, d_mlp=40, act_fn="gelu", d_vocab=80, seed=1, **extra
    )
    model = HookedTransformer(config).to(torch.float64)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(params=[*FAMILIES, *BUILT])
def model(request, exact_model):
    return exact_model(request.param) if request.param in FAMILIES else built_model(request.param)


def whole_passes(model, rows, layer, site, delta):
    """Logits at the predicting positions, text by text."""
    found = []
    for row in rows:
        logits = logits_with(model, list(row.ids), f"blocks.{layer}.{OUTPUTS[site]}", row.position, delta)
        found.append(logits[-max(1, len(row.answers)) :])
    return torch.cat(found)


def all_places(run):
    return [place for index in range(len(run.rows)) for place in run.places(index)]


@pytest.mark.parametrize("site", ["mlp", "attn"])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_logits_and_gradients_are_those_of_whole_passes(model, layer, site):
    before = state_of(model)
    run = EditedRows(model, ROWS, layer, site)
    delta = torch.randn(model.cfg.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(layer))
    weights = torch.randn(7, model.cfg.d_vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    places = all_places(run)
    assert len(places) == 1 + 3 + 2 + 1
    gradients = []
    for logits_of in (
        lambda delta: run.logits(delta, places),
        lambda delta: whole_passes(model, ROWS, layer, site, delta),
    ):
        leaf = delta.clone().requires_grad_()
        logits = logits_of(leaf)
        (gradient,) = torch.autograd.grad((logits * weights).sum(), leaf)
        gradients.append((logits.detach(), gradient))
    (fast, fast_gradient), (slow, slow_gradient) = gradients
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-10, atol=1e-10)
    unchanged = run.logits(torch.zeros_like(delta), places).detach()
    assert float((fast - unchanged).abs().max()) > 0.01  # the change matters
    assert_same_state(model, before)


@pytest.mark.parametrize("site", ["mlp", "attn"])
def test_keys_and_outputs_are_those_at_the_edited_position(model, site):
    run = EditedRows(model, ROWS, 1, site)
    for index, row in enumerate(ROWS):
        key, output = key_and_output(model, ByHand(list(row.ids), row.position, []), 1, site)
        torch.testing.assert_close(run.keys[index], key, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(run.outputs[index], output, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("positions", "what"), [((4, 4, 4), "one length"), ((0, 0, 0), "none"), ((0, 4, 2), "none for one row")]
)
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_prefixes_of_one_length_and_of_none(exact_model, family, positions, what):
    model = exact_model(family)
    rows = [Row(ids=(5 + at, 9, 7, 30, 11, 12 + at), position=position) for at, position in enumerate(positions)]
    run = EditedRows(model, rows, 1, "mlp")
    delta = torch.linspace(-1, 1, model.cfg.d_model, dtype=torch.float64)
    found = run.logits(delta, all_places(run))
    torch.testing.assert_close(found, whole_passes(model, rows, 1, "mlp", delta), rtol=1e-10, atol=1e-10)


def test_a_longer_text_read_before_does_not_matter():
    """TransformerLens keeps the alibi bias of the longest text so far."""
    model = built_model("alibi")
    with torch.no_grad():
        model(torch.arange(30)[None])
    run = EditedRows(model, ROWS, 1, "mlp")
    delta = torch.ones(model.cfg.d_model, dtype=torch.float64)
    found = run.logits(delta, all_places(run))
    torch.testing.assert_close(found, whole_passes(model, ROWS, 1, "mlp", delta), rtol=1e-10, atol=1e-10)


def test_only_the_edited_layer_on_is_computed_and_only_from_the_position_on(exact_model):
    """What makes it fast: 4 positions instead of 13, and no block below the layer."""
    model = exact_model("llama")
    run = EditedRows(model, ROWS, 1, "mlp")
    seen = {}
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(3)]

    def note(value, hook):
        seen[hook.name] = tuple(value.shape[:2])

    with model.hooks(fwd_hooks=[(name, note) for name in names]):
        run.logits(torch.zeros(model.cfg.d_model, dtype=torch.float64), all_places(run))
    assert seen == {names[1]: (4, 4), names[2]: (4, 4)}


def test_models_that_share_no_prefix_are_among_those_compared():
    assert [can_share_prefix(built_model(kind)) for kind in BUILT] == [True, False, False, True]
