"""Attribution patching is exact on a linear model, and elsewhere the derivative that it claims to be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

import kn_lens as kn
from kn_lens.tracing.activation_patching import COMPONENTS, activation_patching
from kn_lens.tracing.attribution_patching import attribution_patching
from tests.helpers import build_tokenizer, load_random_model
from tests.planted import HEAD, LAYER, copying_prompts, plant_copying_head
from tests.questions import assert_same_state, state_of
from tests.tracing.by_hand import METRICS, Pair, hook_of, pairs, writing

FAMILIES = ["gpt2", "gpt_neox", "llama", "bert"]


def linear_model(layers, *, grouped=False, attends=False):
    """No norms, MLPs without their non-linearity, and, unless ``attends``, the same attention whatever is read."""
    tokenizer = build_tokenizer("gpt2")
    cfg = HookedTransformerConfig(
        n_layers=layers,
        d_model=32,
        n_ctx=32,
        d_head=8,
        n_heads=4,
        n_key_value_heads=2 if grouped else None,
        d_mlp=48,
        d_vocab=len(tokenizer),
        act_fn="relu",
        normalization_type=None,
        seed=0,
        dtype=torch.float64,
        device="cpu",
    )
    model = HookedTransformer(cfg, move_to_device=False)
    model.tokenizer = tokenizer
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for block in model.blocks:
            block.mlp.act_fn = lambda pre: pre
            if not attends:
                block.attn.W_Q.zero_()
                block.attn.b_Q.zero_()
    return model


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("component", ["head", "v", "mlp", "attn", "resid", "neuron"])
@pytest.mark.parametrize("direction", ["sufficiency", "necessity"])
def test_exact_on_a_linear_model(grouped, component, direction):
    model = linear_model(3, grouped=grouped)
    batch, twins = pairs(model)
    for positions in ("each", "sum"):
        options = {"component": component, "positions": positions, "direction": direction, "progress": False}
        exact = activation_patching(model, batch, twins, **options)
        estimate = attribution_patching(model, batch, twins, **options)
        values = exact.effects["logit_difference"]
        assert float(values.nan_to_num(0).abs().max()) > 0.1
        assert torch.allclose(estimate.effects["logit_difference"], values, atol=1e-5, equal_nan=True)
        agreement = estimate.correlation(exact)
        assert agreement.pearson == pytest.approx(1, abs=1e-6)
        if positions == "each":  # summed, the streams of all layers have one and the same effect, and ranks say nothing
            assert agreement.spearman > 0.999
        assert agreement.states == int((values.abs() > 1e-5).sum())  # those from which a path leads to the answer


def test_exact_for_patterns_that_nothing_attends_to_again():
    model = linear_model(1, attends=True)
    batch, twins = pairs(model)
    exact = activation_patching(model, batch, twins, component="pattern", progress=False)
    estimate = attribution_patching(model, batch, twins, component="pattern", progress=False)
    assert float(exact.effects["logit_difference"].nan_to_num(0).abs().max()) > 0.1
    assert torch.allclose(
        estimate.effects["logit_difference"], exact.effects["logit_difference"], atol=1e-5, equal_nan=True
    )


def slope(pair, component, layer, position, unit, step=1e-4):
    """The derivative of every effect at the base run along (source − base), by central differences."""
    name = hook_of(pair.model, component, layer)
    base, source = pair.base_states[name], pair.states[name]
    ahead, behind = (
        pair.effect([writing(name, component, base + sign * step * (source - base), position, unit)])
        for sign in (1, -1)
    )
    return {metric: (ahead[metric] - behind[metric]) / (2 * step) for metric in METRICS}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("direction", ["sufficiency", "necessity"])
def test_is_the_derivative_at_the_base_run(exact_model, family, component, direction):
    model = exact_model(family)
    batch, twins = pairs(model)
    index = 2
    before = state_of(model)
    with_gradient = [name for name in METRICS if (name, direction) != ("kl", "necessity")]
    found = {
        name: attribution_patching(
            model, batch, twins, component=component, direction=direction, metric=name, progress=False
        ).effects[name]
        for name in with_gradient
    }
    assert_same_state(model, before)
    pair = Pair(model, batch.resolved[index], twins.resolved[index], direction)
    position = batch.resolved[index].target_position
    single = component in ("mlp", "attn", "resid")
    for layer in range(3):
        unit = None if single else 1
        expected = slope(pair, component, layer, position, unit)
        for name in with_gradient:
            place = (index, position, layer) if single else (index, position, layer, 1)
            assert float(found[name][place]) == pytest.approx(expected[name], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_company_and_memory_do_not_matter(exact_model, family):
    model = exact_model(family)
    batch, twins = pairs(model)
    together = attribution_patching(model, batch, twins, progress=False)
    small = attribution_patching(model, batch, twins, memory_budget=1.0, progress=False)
    values = together.effects["logit_difference"]
    assert torch.allclose(values, small.effects["logit_difference"], atol=1e-6, equal_nan=True)
    for index, entry in enumerate(batch.resolved):
        single = attribution_patching(model, batch.select([index]), twins.select([index]), progress=False)
        assert torch.allclose(single.effects["logit_difference"][0], values[index, : len(entry.ids)], atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_planted_head(tmp_path, family):
    model = load_random_model(family, tmp_path)
    plant_copying_head(model)
    batch = copying_prompts(model)
    estimate = attribution_patching(model, batch, positions="sum", progress=False)
    for values in estimate.effects["logit_difference"]:
        assert divmod(int(values.argmax()), values.shape[1]) == (LAYER, HEAD)
    for values in kn.integrated_gradients(model, batch, site="head", progress=False).values:
        assert divmod(int(values.argmax()), values.shape[1]) == (LAYER, HEAD)
    exact = activation_patching(model, batch, positions="sum", progress=False)
    assert estimate.correlation(exact).pearson > 0.8


def test_only_results_of_the_same_states_are_compared(exact_model):
    model = exact_model("gpt2")
    batch, twins = pairs(model)
    estimate = attribution_patching(model, batch, twins, progress=False)
    assert list(estimate.effects) == ["logit_difference"]
    for options, name in [({"component": "v"}, "component: 'head', 'v'"), ({"positions": "sum"}, "positions")]:
        exact = activation_patching(model, batch, twins, progress=False, **options)
        with pytest.raises(kn.SettingsError, match=f"differ in their {name}"):
            estimate.correlation(exact)
    with pytest.raises(kn.SettingsError, match="no metric 'kl' in this result"):
        estimate.average("kl")


def test_a_pair_with_itself_is_0(random_model):
    for family in FAMILIES:
        batch, _ = pairs(random_model(family))
        estimate = attribution_patching(random_model(family), batch, batch, progress=False)
        values = estimate.effects["logit_difference"]
        assert (values[~values.isnan()] == 0).all()


def test_where_the_gradient_is_0_there_is_no_estimate(exact_model):
    """In the clean run the KL from itself is least: moving a state either way, however little, makes it larger."""
    model = exact_model("gpt2")
    batch, twins = pairs(model)
    pair = Pair(model, batch.resolved[0], twins.resolved[0], "necessity")
    assert slope(pair, "mlp", 1, batch.resolved[0].target_position, None)["kl"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(kn.SettingsError, match="minimum in the clean run, where its gradient is 0; take direction="):
        attribution_patching(model, batch, twins, metric="kl", direction="necessity", progress=False)


def test_rounding_is_not_correlated(exact_model):
    model = exact_model("gpt2")
    batch, twins = pairs(model)
    exact = activation_patching(model, batch, twins, progress=False)
    estimate = attribution_patching(model, batch, twins, progress=False)
    values = exact.effects["logit_difference"]

    def scaled(factor):
        return replace(estimate, effects={"logit_difference": factor * values})

    assert scaled(1e-3).correlation(exact).pearson == pytest.approx(1)
    for found in (
        scaled(1e-6).correlation(exact),
        scaled(1.0).correlation(replace(exact, effects={**exact.effects, "logit_difference": 1e-6 * values})),
    ):
        assert found.pearson != found.pearson
        assert found.spearman != found.spearman


def test_estimates_are_compared_with_exact_effects_only(exact_model):
    model = exact_model("gpt2")
    batch, twins = pairs(model)
    path = kn.path_patching(model, batch, twins, progress=False)
    at_once = activation_patching(model, batch, twins, positions="sum", progress=False)
    estimate = attribution_patching(model, batch, twins, positions="sum", progress=False)
    with pytest.raises(kn.SettingsError, match="differ in their receiver: 'logits', None"):
        path.correlation(at_once)
    for other, name in ((path, "path_patching"), (estimate, "attribution_patching")):
        with pytest.raises(kn.SettingsError, match=f"exact is from {name}; give effects from activation_patching"):
            estimate.correlation(other)
    assert at_once.correlation(at_once).pearson == pytest.approx(1)
