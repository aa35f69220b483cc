"""Attention knockout equals one hooked forward pass per cell, and shows the head that was planted."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForMaskedLM

import kn_lens as kn
from kn_lens.models.convert import to_bridge
from kn_lens.models.load import load_model
from kn_lens.tracing.attention_knockout import BLOCKS, attention_knockout
from kn_lens.tracing.knockout_trace import KnockoutTrace
from tests.helpers import load_random_model, save_random_model
from tests.planted import HEAD, LAYER, copying_prompts, plant_copying_head
from tests.questions import assert_same_state, likely_batch, state_of

FAMILIES = ["gpt2", "gpt_neox", "llama", "bert"]


def sources_of(entry, block):
    """Written from the definition."""
    target = {entry.target_position}
    cue = set(entry.cue_positions) - target
    other = set(range(len(entry.ids))) - cue - target
    return sorted({"cue": cue, "other": other, "target": target}[block])


def metrics_by_hand(model, entry, hooks=()):
    """The four metrics of one prompt, run whole; the foil is the runner-up of the clean run."""
    tokens = torch.tensor([entry.ids])
    with torch.no_grad():
        clean = model(tokens)[0, entry.target_position]
        logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks))[0, entry.target_position]
    target = entry.target_ids[0]
    foil = entry.foil_ids[0] if entry.foil_ids else int(clean.topk(2).indices[1])
    before, after = clean.log_softmax(-1), logits.log_softmax(-1)
    return {
        "probability": float(after[target].exp()),
        "log_probability": float(after[target]),
        "logit_difference": float(logits[target] - logits[foil]),
        "kl": float((before.exp() * (before - after)).sum()),
    }


def cutting(layers, query, keys, heads=slice(None)):
    def hook(scores, hook):
        scores[:, heads, query, keys] = float("-inf")
        return scores

    return [(f"blocks.{layer}.attn.hook_attn_scores", hook) for layer in layers]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window", [1, 2])
def test_equals_a_pass_per_cell(exact_model, family, window):
    model = exact_model(family)
    batch = likely_batch(model)
    before = state_of(model)
    trace = attention_knockout(model, batch, window=window, progress=False)
    assert_same_state(model, before)
    windows = {1: [[0], [1], [2]], 2: [[0], [0, 1], [1, 2]]}[window]  # l − 1 and l
    for index, entry in enumerate(batch.resolved):
        clean = metrics_by_hand(model, entry)
        for place, block in enumerate(BLOCKS):
            keys = sources_of(entry, block)
            for layer, layers in enumerate(windows):
                if not keys:
                    assert all(values[index, place].isnan().all() for values in trace.effects.values())
                    continue
                cut = metrics_by_hand(model, entry, cutting(layers, entry.target_position, keys))
                for name, values in trace.effects.items():
                    lost = clean[name] - cut[name]
                    expected = -lost if name == "kl" else lost
                    assert float(values[index, place, layer]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        for name, values in trace.clean.items():
            assert float(values[index]) == pytest.approx(clean[name], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_single_heads_equal_a_pass_per_cell(exact_model, family):
    model = exact_model(family)
    batch = likely_batch(model).select([0, 3])
    trace = attention_knockout(model, batch, heads=True, blocks=("other", "cue"), progress=False)
    assert trace.window == 1
    assert trace.blocks == ("other", "cue")
    for index, entry in enumerate(batch.resolved):
        clean = metrics_by_hand(model, entry)["logit_difference"]
        for place, block in enumerate(trace.blocks):
            for layer in range(3):
                for head in range(4):
                    hooks = cutting([layer], entry.target_position, sources_of(entry, block), head)
                    cut = metrics_by_hand(model, entry, hooks)["logit_difference"]
                    found = float(trace.effects["logit_difference"][index, place, layer, head])
                    assert found == pytest.approx(clean - cut, rel=1e-5, abs=1e-6)


def test_a_head_with_nothing_to_read_attends_to_nothing(exact_model):
    """All three blocks cut together leave the layer's bias: the same as values of 0."""
    model = exact_model("llama")
    entry = likely_batch(model).resolved[0]
    everything = list(range(len(entry.ids)))
    cut = metrics_by_hand(model, entry, cutting([1], entry.target_position, everything))

    def silence(z, hook):
        z[:, entry.target_position] = 0
        return z

    silent = metrics_by_hand(model, entry, [("blocks.1.attn.hook_z", silence)])
    assert cut["log_probability"] == pytest.approx(silent["log_probability"], abs=1e-12)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_company_and_memory_do_not_matter(exact_model, family):
    model = exact_model(family)
    batch = likely_batch(model)
    together = attention_knockout(model, batch, window=1, progress=False)
    small = attention_knockout(model, batch, window=1, memory_budget=1.0, progress=False)
    for name, values in together.effects.items():
        assert torch.allclose(values, small.effects[name], atol=1e-6, equal_nan=True)
        for index in range(len(batch)):
            single = attention_knockout(model, batch.select([index]), window=1, progress=False)
            assert torch.allclose(single.effects[name][0], values[index], atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_planted_head(tmp_path, family):
    model = load_random_model(family, tmp_path)
    assert plant_copying_head(model) == (LAYER, HEAD)
    batch = copying_prompts(model)
    trace = attention_knockout(model, batch, heads=True, progress=False)
    cue = trace.effects["logit_difference"][:, trace.blocks.index("cue")]
    for values in cue:
        assert divmod(int(values.argmax()), values.shape[1]) == (LAYER, HEAD)
    assert cue[:, LAYER, HEAD].mean() > 0.8 * trace.clean["logit_difference"].mean()
    other = trace.effects["logit_difference"][:, trace.blocks.index("other")]
    assert float(other.abs().max()) < 0.2 * float(cue.max())


def test_average_and_frame(exact_model):
    model = exact_model("gpt2")
    trace = attention_knockout(model, likely_batch(model), window=1, progress=False)
    table = trace.average()
    other = trace.effects["logit_difference"][:, 1]
    known = other[~other.isnan().any(1)]
    row = table[(table["block"] == "other") & (table["layer"] == 1)].iloc[0]
    assert row["mean"] == pytest.approx(float(known[:, 1].mean()), abs=1e-6)
    assert row["low"] < row["mean"] < row["high"]
    assert row["prompts"] == len(known) < len(trace)  # "These dogs" is all cue
    frame = trace.to_frame()
    assert len(frame) == int((~trace.effects["kl"].isnan()).sum())
    line = frame[(frame["prompt"] == 0) & (frame["block"] == "other") & (frame["layer"] == 2)].iloc[0]
    assert line["kl"] == pytest.approx(float(trace.effects["kl"][0, 1, 2]))


def test_saved_and_read_back(exact_model, tmp_path):
    trace = attention_knockout(exact_model("gpt2"), likely_batch(exact_model("gpt2")), window=1, progress=False)
    back = KnockoutTrace.load(trace.save(tmp_path / "trace"))
    assert back.settings == trace.settings
    assert back.blocks == trace.blocks
    for name, values in trace.effects.items():
        assert torch.equal(back.effects[name].nan_to_num(7), values.nan_to_num(7))


def test_a_large_window_is_clipped_and_said(exact_model, caplog):
    model = exact_model("gpt2")
    batch = likely_batch(model).select([0])
    with caplog.at_level(logging.WARNING):
        trace = attention_knockout(model, batch, window=9, progress=False)
    assert trace.window == trace.settings["window"] == 3
    assert trace.settings["window_asked"] == 9
    assert "window 9 is clipped to the 3 layers" in caplog.text


def test_wrong_answers_are_counted(exact_model):
    model = exact_model("gpt2")
    batch = likely_batch(model)
    worst = replace(batch.resolved[1], target_ids=(int(model(torch.tensor([batch.resolved[1].ids]))[0, -1].argmin()),))
    mixed = kn.PromptBatch.from_resolved(model, [batch.resolved[0], worst])
    trace = attention_knockout(model, mixed, window=1, progress=False)
    assert len(trace) == 1
    assert [entry.reason for entry in trace.dropped] == ["answered wrongly"]
    with pytest.raises(kn.PromptError, match="answers none of the 1 prompts rightly"):
        attention_knockout(model, kn.PromptBatch.from_resolved(model, [worst]), progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window is 0; it must be at least 1"),
        ({"window": 3, "heads": True}, "take window=1"),
        ({"blocks": ("cues",)}, "no block 'cues'. Did you mean 'cue'"),
        ({"blocks": ()}, "no blocks to cut"),
        ({"metric": "logits"}, "no metric 'logits'"),
        ({"window": 1.5}, "window is 1.5; give a whole number"),
    ],
)
def test_bad_settings(exact_model, options, message):
    model = exact_model("gpt2")
    with pytest.raises(kn.KnLensError, match=message):
        attention_knockout(model, likely_batch(model), progress=False, **options)


def test_a_prompt_without_a_cue_is_named(exact_model):
    model = exact_model("gpt2")
    prompt = kn.Prompt("The cat that the boys know", target="is")
    with pytest.raises(kn.PromptError, match="'The cat that the boys know' has no cue"):
        attention_knockout(model, prompt, progress=False)


def test_paraphrases_are_resampled_together(exact_model):
    model = exact_model("gpt2")
    trace = attention_knockout(model, likely_batch(model), window=1, progress=False)

    def of(rows):
        parts = {name: values[rows] for name, values in trace.effects.items()}
        return replace(trace, effects=parts, prompts=tuple(trace.prompts[row] for row in rows)).average()

    once, twice = of([0, 1, 3]), of([0, 1, 3, 0, 1, 3])
    for column in ("mean", "low", "high"):
        assert twice[column].tolist() == pytest.approx(once[column].tolist())
    assert (twice["prompts"] == 6).all()


@pytest.mark.parametrize("method", [attention_knockout, kn.activation_patching])
def test_a_masked_bridge_is_refused(tmp_path, method):
    """Its scores are read nowhere: nothing would be cut, and effects of 0 reported."""
    folder = save_random_model(tmp_path / "bert", "bert")
    hooked = load_model(str(folder), device="cpu")
    bridge = to_bridge(AutoModelForMaskedLM.from_pretrained(folder).eval(), hooked.tokenizer, "bert", torch.float32)
    batch = likely_batch(hooked)
    options = {"component": "pattern"} if method is kn.activation_patching else {}
    with pytest.raises(kn.ModelError, match="take it as a HookedEncoder"):
        method(bridge, batch, progress=False, **options)
