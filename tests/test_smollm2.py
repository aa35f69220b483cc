"""On a model that knows things: SmolLM2-135M. Skipped where it can be had neither from the cache nor from PyPI."""

from __future__ import annotations

import pytest
import torch

import kn_lens as kn
from tests.oracles import textbook


@pytest.fixture(scope="module")
def capital(smollm2):
    return kn.PromptBatch.from_prompts(smollm2, [kn.Prompt("The capital of France is", target="Paris", cue="France")])


def test_it_knows_the_capital_of_france(smollm2, capital):
    found = kn.answers(smollm2, capital)
    assert capital.decode(int(found.top[0])) == "Paris"
    assert found.target.item() == pytest.approx(0.77, abs=0.03)


def test_rows_equal_the_textbook_loop(smollm2, capital):
    """All 30 layers of the rows; the loop on the first, the middle and the last two."""
    scores = kn.integrated_gradients(smollm2, capital, progress=False)
    layers = [0, 14, 28, 29]
    expected = textbook.integrated_gradients(
        smollm2, capital.tokens[0], int(capital.target_ids[0]), steps=20, layers=layers
    )
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(scores.values[0, layers], expected, atol=1e-5, rtol=0)
    heads = kn.integrated_gradients(smollm2, capital, site="head", positions="cue_last", progress=False, steps=10)
    expected = textbook.integrated_gradients(
        smollm2,
        capital.tokens[0],
        int(capital.target_ids[0]),
        hook_name="attn.hook_z",
        positions=list(capital.resolved[0].cue_positions[-1:]),
        steps=10,
        layers=[3, 20],
    )
    assert expected.abs().max() > 0.005
    torch.testing.assert_close(heads.values[0, [3, 20]], expected, atol=1e-5, rtol=0)


def test_suppression_equals_a_whole_pass(smollm2, capital):
    scores = kn.integrated_gradients(smollm2, capital, steps=5, progress=False)
    units = [divmod(int(flat), scores.values.shape[2]) for flat in scores.values[0].flatten().topk(4).indices]
    effect = kn.suppress(smollm2, capital, units, controls=20, progress=False)
    expected = textbook.distribution_with_units_scaled(smollm2, capital.tokens[0], units)
    assert effect.target[0, 1].item() == pytest.approx(expected[capital.target_ids[0]].item(), abs=1e-5)
    assert effect.target[0, 1] < effect.target[0, 0]
    assert effect.summary()["percentile_log_probability_change"] == 0  # no random draw does as much


def test_it_knows_most_capitals(smollm2):
    batch = kn.load_relation("P36").prompts(smollm2)
    assert len(batch) > 60
    assert kn.accuracy(smollm2, batch) > 0.7


def test_it_knows_agreement(smollm2):
    batch = kn.load_minimal_pairs("subject_verb_agreement").prompts(smollm2)
    assert len(batch) == 300  # every verb is one token
    assert kn.accuracy(smollm2, batch) > 0.85
