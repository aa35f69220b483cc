"""Rows = the textbook loop, for every family, site and position; one prompt at a time or many in one batch.

The models are float64, so that what is compared is the method and not its rounding.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import transformers as hf
from transformer_lens import HookedTransformer, HookedTransformerConfig

import kn_lens as kn
from kn_lens.attribution.quadrature import quadrature
from kn_lens.models.kind import is_masked
from tests.helpers import FAMILIES, build_tokenizer, save_random_model
from tests.oracles import textbook
from tests.questions import POSITIONS, SITES, hooks_are_as_written, likely_batch, questions, tokens_of, unit_positions


def textbook_scores(model, batch, site, positions="target", **rule):
    return torch.stack(
        [
            textbook.integrated_gradients(
                model,
                tokens_of(entry),
                entry.target_ids[0],
                hook_name=SITES[site],
                positions=unit_positions(entry, positions),
                target_position=entry.target_position,
                **rule,
            )
            for entry in batch.resolved
        ]
    )


def assert_equal_scores(values, expected, relative=1e-6):
    """Equal within float32's rounding of the result, relative to each layer's largest score."""
    assert values.shape == expected.shape
    largest = expected.abs().amax(-1, keepdim=True)
    assert (largest > 0).any()
    worst = ((values - expected).abs() / largest.clamp_min(1e-30)).where(largest > 0, values.abs())
    assert worst.max() < relative


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_the_textbook_loop(exact_model, family, site, positions):
    """User needs 4, 15, 16 and 20: hook names only, grouped-query heads, six prompts of mixed lengths in one batch."""
    model = exact_model(family)
    batch = likely_batch(model)
    assert len(set(batch.lengths)) > 3
    assert hooks_are_as_written(model)
    scores = kn.integrated_gradients(model, batch, site=site, positions=positions, steps=5, progress=False)
    expected = textbook_scores(model, batch, site, positions, steps=5)
    assert scores.values.dtype == torch.float32
    assert expected.abs().max() > 1e-4
    assert_equal_scores(scores.values, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_models_agree_to_1e_5(random_model, family):
    model = random_model(family)
    batch = likely_batch(model)
    scores = kn.integrated_gradients(model, batch, progress=False)
    expected = textbook_scores(model, batch, "mlp")
    torch.testing.assert_close(scores.values, expected, atol=1e-6, rtol=0)
    assert_equal_scores(scores.values, expected, relative=1e-3)


@pytest.mark.parametrize("rule", ["riemann", "trapezoid", "midpoint", "gauss_legendre"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_every_rule_weighs_its_points(exact_model, family, rule):
    model = exact_model(family)
    batch = likely_batch(model, questions(model, 2))
    points, weights = quadrature(rule, 6)
    expected = textbook_scores(model, batch, "mlp", steps=6, points=points.tolist(), weights=weights.tolist())
    scores = kn.integrated_gradients(model, batch, rule=rule, steps=6, progress=False)
    assert_equal_scores(scores.values, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_many_prompts_equal_one_at_a_time(exact_model, family):
    """User need 20: neither padding nor company changes a score, a probability or a delta."""
    model = exact_model(family)
    batch = likely_batch(model)
    together = kn.integrated_gradients(model, batch, steps=4, positions="cue", progress=False)
    for index in range(len(batch)):
        alone = kn.integrated_gradients(model, batch.select([index]), steps=4, positions="cue", progress=False)
        for name in ("values", "probability", "convergence_delta"):
            torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[index], atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", SITES)
def test_gradient_times_activation_is_the_gradient_at_the_end(exact_model, family, site):
    model = exact_model(family)
    batch = likely_batch(model, questions(model, 3))
    expected = textbook_scores(model, batch, site, "cue", steps=1, points=[1.0], weights=[1.0])
    scores = kn.gradient_times_activation(model, batch, site=site, positions="cue", progress=False)
    assert_equal_scores(scores.values, expected)
    assert scores.convergence_delta.isnan().all()


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_max_activation_is_the_largest_value(exact_model, family, positions):
    model = exact_model(family)
    batch = likely_batch(model)
    for site, hook in SITES.items():
        scores = kn.max_activation(model, batch, site=site, positions=positions, progress=False)
        for index, entry in enumerate(batch.resolved):
            where = unit_positions(entry, positions)
            read = [values[where] for values in textbook.activations(model, tokens_of(entry), hook)]
            strength = [values.norm(dim=-1) if site == "head" else values for values in read]
            expected = torch.stack([values.amax(0) for values in strength]).float()
            torch.testing.assert_close(scores.values[index], expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_target_of_several_tokens_is_averaged_teacher_forced(exact_model, family):
    """α of "unhappy dog" = the mean of the α of its tokens, each asked after those before it."""
    model = exact_model(family)
    prompts = [kn.Prompt("The capital of France is", target="Parismouth dog"), kn.Prompt("The dogs", target="run")]
    batch = kn.PromptBatch.from_prompts(model, prompts)
    target = batch.resolved[0].target_ids
    assert len(target) > 2
    scores = kn.integrated_gradients(model, prompts, steps=4, progress=False)
    parts, deltas, probabilities = [], [], []
    for count, token in enumerate(target):
        tokens = torch.tensor([*batch.resolved[0].ids, *target[:count]])
        parts.append(textbook.integrated_gradients(model, tokens, token, steps=4))
        deltas.append(parts[-1].sum(-1) - textbook.change_from_zero(model, tokens, token))
        probabilities.append(model(tokens[None])[0, -1].softmax(-1)[token])
    assert_equal_scores(scores.values[0], torch.stack(parts).mean(0))
    torch.testing.assert_close(scores.convergence_delta[0], torch.stack(deltas).mean(0).float(), atol=1e-9, rtol=1e-5)
    torch.testing.assert_close(
        scores.probability[0], torch.stack(probabilities).mean().float().detach(), atol=1e-12, rtol=1e-6
    )
    last = batch.resolved[1]
    single = textbook.integrated_gradients(model, tokens_of(last), last.target_ids[0], steps=4)
    assert_equal_scores(scores.values[1], single)


def test_the_clean_probability_is_reported(exact_model):
    model = exact_model("gpt2")
    batch = likely_batch(model)
    scores = kn.integrated_gradients(model, batch, steps=2, progress=False)
    expected = [
        model(tokens_of(entry)[None])[0, entry.target_position].softmax(-1)[entry.target_ids[0]].item()
        for entry in batch.resolved
    ]
    assert scores.probability.tolist() == pytest.approx(expected, rel=1e-6)


def test_gradients_may_be_switched_off_around_the_call(exact_model):
    """Many notebooks begin with ``torch.set_grad_enabled(False)``."""
    model = exact_model("gpt2")
    batch = likely_batch(model, questions(model, 2))
    expected = kn.integrated_gradients(model, batch, steps=3, progress=False)
    with torch.no_grad():
        found = kn.integrated_gradients(model, batch, steps=3, progress=False)
        assert not torch.is_grad_enabled()
    assert torch.equal(found.values, expected.values)


# -- attention of other kinds, and settings of a model that change how its attention is computed ----------------------


@pytest.fixture(scope="module")
def own_model():
    """``own_model(**config)``: a HookedTransformer that the user made herself, in float64."""

    def make(**config):
        tokenizer = build_tokenizer("llama")
        shape = {"n_layers": 2, "d_model": 32, "n_ctx": 32, "d_head": 8, "n_heads": 4, "d_vocab": len(tokenizer)}
        settings = {"act_fn": "gelu", "normalization_type": "LN", "d_mlp": 48, "seed": 0, "init_weights": True}
        model = HookedTransformer(
            HookedTransformerConfig(**shape, **{**settings, **config}, initializer_range=0.3)
        ).double()
        model.tokenizer = tokenizer
        return model.eval()

    return make


@pytest.mark.parametrize(
    "config",
    [
        {"positional_embedding_type": "alibi"},
        {"positional_embedding_type": "rotary", "rotary_dim": 4},
        {"positional_embedding_type": "rotary", "rotary_dim": 8, "n_key_value_heads": 2},
        {"positional_embedding_type": "rotary", "rotary_dim": 8, "parallel_attn_mlp": True},
        {"positional_embedding_type": "rotary", "rotary_dim": 8, "use_qk_norm": True, "normalization_type": "RMS"},
        {"positional_embedding_type": "shortformer"},
        {"attn_scores_soft_cap": 2.0},
        {"use_local_attn": True, "attn_types": ["global", "local"], "window_size": 3},
        {"use_attn_scale": True, "attn_scale": 3.0},
        {"gated_mlp": True},
    ],
    ids=lambda config: "-".join(str(value) for value in config.values()),
)
@pytest.mark.parametrize("positions", ["target", "cue"])
def test_other_kinds_of_attention(own_model, config, positions):
    """Whether the prefix is shared or not, and whether or not the model can be stepped."""
    model = own_model(**config)
    batch = likely_batch(model)
    for site in ("mlp", "head"):
        scores = kn.integrated_gradients(model, batch, site=site, positions=positions, steps=3, progress=False)
        assert_equal_scores(scores.values, textbook_scores(model, batch, site, positions, steps=3))


@pytest.mark.parametrize(
    "setting", ["set_ungroup_grouped_query_attention", "set_use_split_qkv_input", "set_use_attn_in"]
)
def test_settings_of_transformer_lens(own_model, setting):
    """User need 15: the user may have switched these on for her own patching; the scores stay the same."""
    grouped = {} if setting == "set_use_attn_in" else {"n_key_value_heads": 2}
    model = own_model(positional_embedding_type="rotary", rotary_dim=8, **grouped)
    batch = likely_batch(model)
    plain = kn.integrated_gradients(model, batch, site="head", positions="cue", steps=3, progress=False)
    getattr(model, setting)(True)
    switched = kn.integrated_gradients(model, batch, site="head", positions="cue", steps=3, progress=False)
    torch.testing.assert_close(switched.values, plain.values, atol=1e-9, rtol=1e-6)


def test_a_model_of_attention_alone(own_model):
    model = own_model(attn_only=True, d_mlp=None)
    batch = likely_batch(model)
    scores = kn.integrated_gradients(model, batch, site="head", steps=3, progress=False)
    assert_equal_scores(scores.values, textbook_scores(model, batch, "head", steps=3))


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_a_bridge_gives_the_same(tmp_path, family):
    """Where no HookedTransformer can be built, TransformerBridge runs all rows whole: slower, same numbers."""
    from transformer_lens.model_bridge import TransformerBridge

    folder = save_random_model(tmp_path / "saved", family)
    auto = hf.AutoModelForMaskedLM if family == "bert" else hf.AutoModelForCausalLM
    bridge = TransformerBridge.boot_transformers(
        str(folder), hf_model=auto.from_pretrained(folder).eval(), tokenizer=hf.AutoTokenizer.from_pretrained(folder)
    )
    bridge.enable_compatibility_mode()
    assert is_masked(bridge) == (family == "bert")
    batch = likely_batch(bridge, questions(bridge, 3))
    for site in SITES:
        scores = kn.integrated_gradients(bridge, batch, site=site, positions="cue", steps=4, progress=False)
        expected = textbook_scores(bridge, batch, site, "cue", steps=4)
        assert_equal_scores(scores.values, expected, relative=1e-3)
    effect = kn.suppress(bridge, batch, [(0, 1), (2, 3)], site="head", controls=1, progress=False)
    for index, entry in enumerate(batch.resolved):
        distribution = textbook.distribution_with_units_scaled(
            bridge,
            tokens_of(entry),
            [(0, 1), (2, 3)],
            hook_name="attn.hook_z",
            positions=[entry.target_position],
            target_position=entry.target_position,
        )
        assert float(effect.target[index, 1]) == pytest.approx(distribution[entry.target_ids[0]].item(), rel=1e-4)


def test_quadrature_rules_integrate_what_they_should():
    """Each rule on ∫₀¹ γ^k dγ = 1/(k + 1), up to the degree for which it is exact."""
    exact_to = {"trapezoid": 1, "midpoint": 1, "gauss_legendre": 2 * 7 - 1}
    for rule, degree in exact_to.items():
        points, weights = quadrature(rule, 7)
        assert len(points) == 7
        assert all(low < high for low, high in pairwise(points.tolist()))
        for power in range(degree + 1):
            assert (weights * points**power).sum() == pytest.approx(1 / (power + 1), abs=1e-12)
    points, weights = quadrature("riemann", 20)
    assert np.array_equal(points, np.linspace(0, 1, 20))
    assert np.array_equal(weights, np.full(20, 1 / 20))
