"""Direct logit attribution adds up, equals a residual stream taken apart by hand, and shows a planted head."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from transformer_lens import HookedTransformer
from transformer_lens.tools.analysis import direct_logit_attribution as of_transformer_lens

import kn_lens as kn
from kn_lens.tracing.direct_logit_attribution import direct_logit_attribution
from tests.helpers import load_random_model
from tests.planted import HEAD, LAYER, copying_prompts, plant_copying_head
from tests.questions import assert_same_state, likely_batch, state_of

FAMILIES = ["gpt2", "gpt_neox", "llama", "qwen2"]


def with_norm_weights(model):
    """The same shape of model with weights and biases in its norms, not folded into the matrices behind them."""
    cfg = copy.deepcopy(model.cfg)
    cfg.normalization_type = {"LNPre": "LN", "RMSPre": "RMS"}[cfg.normalization_type]
    unfolded = HookedTransformer(cfg, tokenizer=model.tokenizer, move_to_device=False)
    unfolded.load_state_dict(model.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in unfolded.named_parameters():
            if ".ln" in f".{name}" or name.endswith(("b_O", "b_out")):
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return unfolded.to(model.W_E.dtype)


def logit_difference(model, resid, targets):
    """Of a last residual stream, through the model's own norm, whatever its scale."""
    logits = model.unembed(model.ln_final(resid[None, None]))[0, 0]
    return logits[targets[0]] - logits[targets[1]]


def share(model, part, resid, targets):
    """A part's contribution by hand: the derivative of the logit difference along it, the scale held fixed."""
    with torch.no_grad():
        centered = type(model.ln_final).__name__.startswith("LayerNorm")
        scale = (resid - resid.mean() if centered else resid).pow(2).mean().add(model.cfg.eps).sqrt()
        normed = (part - part.mean() if centered else part) / scale * getattr(model.ln_final, "w", 1.0)
        return float(normed @ (model.unembed.W_U[:, targets[0]] - model.unembed.W_U[:, targets[1]]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("norms", ["folded", "with weights"])
def test_equals_the_stream_taken_apart(exact_model, family, norms):
    model = exact_model(family) if norms == "folded" else with_norm_weights(exact_model(family))
    batch = likely_batch(model)
    before = state_of(model)
    found = direct_logit_attribution(model, batch, neurons=True, progress=False)
    assert_same_state(model, before)
    for index, entry in enumerate(batch.resolved):
        logits, cache = model.run_with_cache(torch.tensor([entry.ids]))
        targets = logits[0, -1].topk(2).indices.tolist()  # asked for the most likely, against the runner-up
        resid = cache["blocks.2.hook_resid_post"][0, -1]
        assert float(found.total[index]) == pytest.approx(float(logits[0, -1, targets[0]] - logits[0, -1, targets[1]]))
        assert float(found.total[index]) == pytest.approx(float(logit_difference(model, resid, targets)))
        assert found.foils[index] == batch.decode(targets[1])
        for layer, block in enumerate(model.blocks):
            z = cache[f"blocks.{layer}.attn.hook_z"][0, -1]
            for head in range(4):
                part = z[head] @ block.attn.W_O[head]
                expected = share(model, part, resid, targets)
                assert float(found.heads[index, layer, head]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
            out = share(model, cache[f"blocks.{layer}.hook_mlp_out"][0, -1], resid, targets)
            assert float(found.mlp[index, layer]) == pytest.approx(out, rel=1e-5, abs=1e-6)
            attention = share(model, cache[f"blocks.{layer}.hook_attn_out"][0, -1], resid, targets)
            assert float(found.attention[index, layer]) == pytest.approx(attention, rel=1e-5, abs=1e-5)
            neuron = cache[f"blocks.{layer}.mlp.hook_post"][0, -1, 7] * block.mlp.W_out[7]
            expected = share(model, neuron, resid, targets)
            assert float(found.neurons[index, layer, 7]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        embedding = share(model, cache["blocks.0.hook_resid_pre"][0, -1], resid, targets)
        assert float(found.embedding[index]) == pytest.approx(embedding, rel=1e-5, abs=1e-6)
    assert float(found.gap.abs().max()) < 1e-4
    assert torch.allclose(found.neurons.sum(-1) + found.mlp_bias, found.mlp, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_transformer_lens_where_norms_are_folded(random_model, family):
    """Its tool multiplies by the unembedding alone, which is right if the final norm's weights are folded into it."""
    model = random_model(family)
    batch = likely_batch(model)
    found = direct_logit_attribution(model, batch, progress=False)
    for index, entry in enumerate(batch.resolved):
        tokens = torch.tensor([entry.ids])
        answer, foil = model(tokens)[0, -1].topk(2).indices.tolist()
        theirs = of_transformer_lens(model, tokens, torch.tensor([answer]), torch.tensor([foil]), unit="head")
        assert torch.allclose(found.heads[index], theirs.attribution[: 3 * 4].reshape(3, 4), atol=1e-4)
        bias = float(model.unembed.b_U[answer] - model.unembed.b_U[foil])
        assert float(theirs.attribution.sum()) == pytest.approx(float(found.total[index]) - bias, abs=1e-3)


def test_transformer_lens_is_off_where_they_are_not(random_model):
    """Why this project has its own: with weights in the final norm theirs misses the parts."""
    model = with_norm_weights(random_model("gpt2"))
    batch = likely_batch(model).select([0])
    tokens = torch.tensor([batch.resolved[0].ids])
    answer, foil = model(tokens)[0, -1].topk(2).indices.tolist()
    theirs = of_transformer_lens(model, tokens, torch.tensor([answer]), torch.tensor([foil]), unit="head")
    found = direct_logit_attribution(model, batch, progress=False)
    assert abs(float(found.gap[0])) < 1e-4
    assert float((theirs.attribution[:12].reshape(3, 4) - found.heads[0]).abs().max()) > 1e-2


def test_company_and_memory_do_not_matter(exact_model):
    model = exact_model("llama")
    batch = likely_batch(model)
    together = direct_logit_attribution(model, batch, progress=False)
    small = direct_logit_attribution(model, batch, memory_budget=1.0, progress=False)
    assert torch.allclose(together.heads, small.heads, atol=1e-6)
    assert torch.allclose(together.mlp, small.mlp, atol=1e-6)
    assert together.foils == small.foils


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_planted_head(tmp_path, family):
    model = load_random_model(family, tmp_path)
    plant_copying_head(model)
    found = direct_logit_attribution(model, copying_prompts(model), progress=False)
    for values in found.heads:
        assert divmod(int(values.argmax()), values.shape[1]) == (LAYER, HEAD)
    assert (found.heads[:, LAYER, HEAD] > 10).all()


def test_organism_adds_up(organism):
    model = organism("tiny-causal")
    found = direct_logit_attribution(model, kn.load_relation("P36").prompts(model, groups=4), progress=False)
    assert float(found.gap.abs().max()) < 1e-4
    frame = found.to_frame()
    total = frame[frame["prompt"] == 0]["contribution"].sum()
    assert total == pytest.approx(float(found.total[0]), abs=1e-4)


def test_frame_names_the_strongest_neurons(exact_model):
    model = exact_model("gpt2")
    found = direct_logit_attribution(model, likely_batch(model).select([0]), neurons=True, progress=False)
    frame = found.to_frame(top=3)
    neurons = frame[frame["component"] == "neuron"]
    assert len(neurons) == 3
    place = divmod(int(found.neurons[0].abs().argmax()), model.cfg.d_mlp)
    assert (neurons.iloc[0]["layer"], neurons.iloc[0]["unit"]) == place


def test_a_masked_model_is_refused(random_model):
    model = random_model("bert")
    with pytest.raises(kn.ModelError, match=r"does not apply: .* is a masked model"):
        direct_logit_attribution(model, likely_batch(model), progress=False)


def test_a_norm_behind_the_layers_is_refused(random_model):
    model = random_model("gpt2")
    batch = likely_batch(model)
    model.cfg.use_normalization_before_and_after = True
    try:
        with pytest.raises(kn.ModelError, match="norms between its layers and the residual stream"):
            direct_logit_attribution(model, batch, progress=False)
    finally:
        model.cfg.use_normalization_before_and_after = False


def test_two_prefix_pairs_need_a_foil(organism):
    model = organism("tiny-causal")
    batch = kn.load_minimal_pairs("determiner_noun_agreement_2").prompts(model, groups=2, per_group=1)
    with pytest.raises(kn.PromptError, match=r"is a two-prefix pair without a foil: .*give foil="):
        direct_logit_attribution(model, batch, progress=False)
    foil = model.to_single_token(" river")
    named = [replace(entry, foil_ids=(foil,)) for entry in batch.resolved]
    found = direct_logit_attribution(model, kn.PromptBatch.from_resolved(model, named), progress=False)
    assert set(found.foils) == {"river"}
    assert float(found.gap.abs().max()) < 1e-3
