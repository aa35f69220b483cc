"""Path patching equals a model run with all else held still, and sees what a planted head says to the logits."""

from __future__ import annotations

import pytest
import torch
from transformer_lens.tools.analysis.direct_path_patching import get_act_patch_direct_path

import kn_lens as kn
from kn_lens.tracing.path_patching import path_patching
from tests.helpers import load_random_model
from tests.planted import HEAD, LAYER, copying_prompts, plant_copying_head
from tests.questions import assert_same_state, state_of
from tests.tracing.by_hand import METRICS, Pair, pairs, run

FAMILIES = ["gpt2", "gpt_neox", "llama", "qwen2"]


def holding_still(pair, layer, head):
    """Hooks of a base run in which one head says what it says in the source and no later layer listens."""
    hooks = []
    for later in range(3):
        for kind in ("attn.hook_z", "hook_mlp_out"):
            name = f"blocks.{later}.{kind}"
            value = pair.base_states[name].clone()
            if (later, kind) == (layer, "attn.hook_z"):
                value[:, :, head] = pair.states[name][:, :, head]
            hooks.append((name, lambda activation, hook, value=value: value))
    return hooks


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("direction", ["sufficiency", "necessity"])
def test_to_the_logits_equals_all_else_held_still(exact_model, family, direction):
    model = exact_model(family)
    batch, twins = pairs(model)
    before = state_of(model)
    found = path_patching(model, batch, twins, direction=direction, progress=False)
    assert_same_state(model, before)
    for index, (entry, twin) in enumerate(zip(batch.resolved, twins.resolved, strict=True)):
        pair = Pair(model, entry, twin, direction)
        for layer in range(3):
            for head in range(4):
                expected = pair.effect(holding_still(pair, layer, head))
                for name in METRICS:
                    value = float(found.effects[name][index, layer, head])
                    assert value == pytest.approx(expected[name], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("component", ["q", "k", "v"])
@pytest.mark.parametrize("direction", ["sufficiency", "necessity"])
def test_to_a_head_equals_all_else_held_still(exact_model, family, component, direction):
    """Two runs, as in the paper: what the receiver reads with all else held still, then the model from there on."""
    model = exact_model(family)
    batch, twins = pairs(model)
    receiver = (2, 1)
    found = path_patching(
        model, batch, twins, receiver=receiver, component=component, direction=direction, progress=False
    )
    assert found.receiver == f"2:1 {component}"
    assert (found.effects["logit_difference"][:, 2] == 0).all()
    name = f"blocks.2.attn.hook_{component}"
    for index in (0, 2):
        pair = Pair(model, batch.resolved[index], twins.resolved[index], direction)
        for layer in range(2):
            for head in range(4):
                _, states = run(model, pair.base_ids, holding_still(pair, layer, head))
                value = states[name][:, :, 1]

                def write(activation, hook, value=value):
                    activation = activation.clone()
                    activation[:, :, 1] = value
                    return activation

                expected = pair.effect([(name, write)])
                for metric in METRICS:
                    value = float(found.effects[metric][index, layer, head])
                    assert value == pytest.approx(expected[metric], rel=1e-5, abs=1e-6)


def test_transformer_lens_holds_the_scale_of_the_norm(exact_model):
    """Why this project has its own: theirs equals a run whose norm keeps its scale, which is not what a head reads."""
    model = exact_model("llama")
    batch, twins = pairs(model)
    pair = Pair(model, batch.resolved[0], twins.resolved[0])
    clean, corrupted = (torch.tensor([one.resolved[0].ids]) for one in (batch, twins))
    _, clean_cache = model.run_with_cache(clean)
    _, corrupted_cache = model.run_with_cache(corrupted)

    def difference(logits):
        return logits[0, -1, pair.target] - logits[0, -1, pair.foil]

    with torch.no_grad():
        baseline = difference(model(corrupted))
        theirs = get_act_patch_direct_path(
            model,
            corrupted,
            clean_cache,
            corrupted_cache,
            lambda logits: difference(logits) - baseline,
            src_layer=0,
            src_head=2,
            component="q",
            verbose=False,
        )
    mine = path_patching(model, batch, twins, receiver=(1, 3), component="q", progress=False)
    scale = pair.base_states["blocks.1.ln1.hook_scale"]
    held = [*holding_still(pair, 0, 2), ("blocks.1.ln1.hook_scale", lambda activation, hook: scale)]
    value = run(model, pair.base_ids, held)[1]["blocks.1.attn.hook_q"]

    def write(activation, hook):
        activation = activation.clone()
        activation[:, :, 3] = value[:, :, 3]
        return activation

    expected = pair.effect([("blocks.1.attn.hook_q", write)])["logit_difference"]
    assert float(theirs[1, 3]) == pytest.approx(expected, rel=1e-5)
    assert abs(float(theirs[1, 3]) - float(mine.effects["logit_difference"][0, 0, 2])) > 0.01 * abs(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_planted_head(tmp_path, family):
    model = load_random_model(family, tmp_path)
    plant_copying_head(model)
    found = path_patching(model, copying_prompts(model), progress=False)
    for values in found.effects["logit_difference"]:
        assert divmod(int(values.argmax()), values.shape[1]) == (LAYER, HEAD)
    share = found.effects["logit_difference"][:, LAYER, HEAD] / found.total_effect()
    assert (share > 0.5).all()


@pytest.mark.parametrize("receiver", ["logits", (2, 1)])
def test_company_memory_and_a_pair_with_itself(exact_model, receiver):
    model = exact_model("llama")
    batch, twins = pairs(model)
    together = path_patching(model, batch, twins, receiver=receiver, progress=False)
    small = path_patching(model, batch, twins, receiver=receiver, memory_budget=1.0, progress=False)
    for name in METRICS:
        assert torch.allclose(together.effects[name], small.effects[name], atol=1e-6)
    itself = path_patching(model, batch, batch, receiver=receiver, progress=False)
    assert all((values == 0).all() for values in itself.effects.values())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"receiver": (3, 0)}, kn.UnitsError, "unit 3:0 is not in"),
        ({"receiver": (0, 1)}, kn.UnitsError, "no head writes before it"),
        ({"receiver": (1, 3), "component": "k"}, kn.UnitsError, "2 groups of k"),
        ({"receiver": (1, 3), "component": "z"}, kn.SettingsError, "Inputs: q, k, v"),
        ({"receiver": "logit"}, kn.SettingsError, r"give 'logits', or a head as \(layer, index\)"),
    ],
)
def test_bad_receivers(exact_model, options, error, message):
    batch, twins = pairs(exact_model("llama"))
    with pytest.raises(error, match=message):
        path_patching(exact_model("llama"), batch, twins, progress=False, **options)


def test_a_masked_model_is_refused(random_model):
    batch, twins = pairs(random_model("bert"))
    with pytest.raises(kn.ModelError, match="path patching does not apply"):
        path_patching(random_model("bert"), batch, twins, progress=False)
