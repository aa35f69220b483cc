"""A neuron and a head that are made to carry the answer are found."""

from __future__ import annotations

import pytest
import torch

import kn_lens as kn
from tests.helpers import load_random_model

PREFIXES = ["The capital of France is", "These dogs", "It was in the old city that she", "The author of the new book"]
LAYER, NEURON, HEAD, WORD = 1, 41, 2, "house"


def prompts(model):
    suffix = "." if type(model).__name__ == "HookedEncoder" else ""
    return kn.PromptBatch.from_prompts(
        model, [kn.Prompt(prefix, suffix=suffix, target=WORD, group=WORD) for prefix in PREFIXES]
    )


def direction_of_answer(model):
    """What the unembedding reads as ``WORD`` and as nothing else."""
    target = int(prompts(model).target_ids[0])
    column = model.unembed.W_U[:, target] - model.unembed.W_U.mean(1)
    return column / column.norm()


@torch.no_grad()
def plant_neuron(model, strength):
    """Always on, whatever it reads, and writing the answer."""
    mlp = model.blocks[LAYER].mlp
    mlp.W_in[:, NEURON] = 0
    mlp.b_in[NEURON] = 2
    mlp.W_out[NEURON] = strength * direction_of_answer(model)


@torch.no_grad()
def plant_head(model, strength):
    """Its values are the same at every position, so that any attention pattern reads them."""
    attention = model.blocks[LAYER].attn
    attention.W_V[HEAD] = 0
    attention.b_V[HEAD] = 1
    attention.W_O[HEAD] = strength * direction_of_answer(model)


def quiet_rest(model):
    """The rest of the model speaks more softly, so that the answer hangs on one unit."""
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.W_out.mul_(0.3)
            block.attn.W_O.mul_(0.3)
        model.unembed.W_U.mul_(4)
        if hasattr(
            model, "mlm_head"
        ):  # let the head read the stream as it is: gelu(x + 8) − 8 ≈ x, and norms shift back
            model.mlm_head.W.copy_(torch.eye(len(model.mlm_head.W)))
            model.mlm_head.b.fill_(8.0)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "bert"])
@pytest.mark.parametrize("site", ["mlp", "head"])
def test_what_was_planted_is_found(tmp_path, family, site):
    model = load_random_model(family, tmp_path)
    quiet_rest(model)
    (plant_neuron if site == "mlp" else plant_head)(model, 4.0)
    planted = (LAYER, NEURON if site == "mlp" else HEAD)
    batch = prompts(model)
    assert (kn.answers(model, batch).target > 0.2).all()

    scores = kn.integrated_gradients(model, batch, site=site, progress=False)
    for values in scores.values:
        assert divmod(int(values.argmax()), values.shape[1]) == planted
    found = kn.find_knowledge_neurons(scores, count=(1, 5))
    assert found.units[0] == planted
    assert found.frequency[0] == 1.0

    effect = kn.suppress(model, batch, found.units[:1], site=site, controls=40, progress=False)
    summary = effect.summary()
    assert (effect.target[:, 1] < 0.5 * effect.target[:, 0]).all()
    if site == "mlp":
        assert summary["percentile_log_probability_change"] == 0  # no random unit of the layer does as much
    else:  # a layer's four heads are too few for a rank; each of the others does less
        assert summary["distinct_draws"] == 4
        same = (effect.target[:, 2:] - effect.target[:, 1:2]).abs().amax(0) < 1e-3
        assert 2 <= same.sum() <= 20  # one draw in four takes the planted head itself
        assert (effect.target[:, 2:][:, ~same] > 2 * effect.target[:, 1:2]).all()


def test_a_planted_unit_is_as_local_as_can_be(tmp_path):
    """Its prompts point the same way (R₁²), and few units hold the score."""
    model = load_random_model("gpt2", tmp_path)
    quiet_rest(model)
    batch = prompts(model)
    before = kn.integrated_gradients(model, batch, progress=False)
    plant_neuron(model, 6.0)
    after = kn.integrated_gradients(model, batch, progress=False)
    assert kn.n_sample_similarity(after) > max(0.8, kn.n_sample_similarity(before))
    assert (kn.concentration(after).gini > kn.concentration(before).gini).all()
    assert (kn.concentration(after).participation_ratio < kn.concentration(before).participation_ratio).all()
