"""Activation patching equals one hooked forward pass per state, TransformerLens' own, and what must be so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformer_lens import patching

import kn_lens as kn
from kn_lens.tracing.activation_patching import COMPONENTS, activation_patching
from kn_lens.tracing.patch_effects import PatchEffects
from tests.helpers import load_random_model
from tests.planted import HEAD, LAYER, copying_prompts, plant_copying_head
from tests.questions import assert_same_state, state_of
from tests.tracing.by_hand import METRICS, Pair, pairs

FAMILIES = ["gpt2", "gpt_neox", "llama", "bert"]


def units_of(model, component):
    groups = 2 if hasattr(model.blocks[0].attn, "_W_K") else 4
    return {"mlp": [None], "attn": [None], "resid": [None], "k": range(groups), "v": range(groups)}.get(
        component, range(4) if component != "neuron" else [0, 50, 95]
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("direction", ["sufficiency", "necessity"])
def test_equals_a_pass_per_state(exact_model, family, component, direction):
    model = exact_model(family)
    batch, twins = pairs(model)
    chosen = [1, 2]
    batch, twins = batch.select(chosen), twins.select(chosen)
    before = state_of(model)
    options = {"component": component, "direction": direction, "progress": False}
    each = activation_patching(model, batch, twins, **options)
    together = activation_patching(model, batch, twins, positions="sum", **options)
    assert_same_state(model, before)
    for index, (entry, twin) in enumerate(zip(batch.resolved, twins.resolved, strict=True)):
        pair = Pair(model, entry, twin, direction)
        for name in METRICS:
            assert float(each.clean[name][index]) == pytest.approx(pair.before[name], rel=1e-5, abs=1e-6)
            assert float(each.corrupted[name][index]) == pytest.approx(pair.after[name], rel=1e-5, abs=1e-6)
        for layer in range(3):
            for unit in units_of(model, component):
                place = (layer,) if unit is None else (layer, unit)
                expected = pair.patched(component, layer, None, unit)
                for name in METRICS:
                    found = float(together.effects[name][(index, *place)])
                    assert found == pytest.approx(expected[name], rel=1e-5, abs=1e-6)
                for position in range(len(entry.ids)):
                    expected = pair.patched(component, layer, position, unit)
                    for name in METRICS:
                        found = float(each.effects[name][(index, position, *place)])
                        assert found == pytest.approx(expected[name], rel=1e-5, abs=1e-6)
        assert each.effects["kl"][index, len(entry.ids) :].isnan().all()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_equals_transformer_lens(exact_model, family):
    """Their functions: one sentence at a time, clean states into the corrupted run."""
    model = exact_model(family)
    batch, twins = pairs(model)
    by_position = {
        "head": patching.get_act_patch_attn_head_out_by_pos,
        "q": patching.get_act_patch_attn_head_q_by_pos,
        "k": patching.get_act_patch_attn_head_k_by_pos,
        "v": patching.get_act_patch_attn_head_v_by_pos,
        "pattern": patching.get_act_patch_attn_head_pattern_by_pos,
        "mlp": patching.get_act_patch_mlp_out,
        "attn": patching.get_act_patch_attn_out,
    }
    index = 0
    clean, corrupted = (torch.tensor([entry.resolved[index].ids]) for entry in (batch, twins))
    _, cache = model.run_with_cache(clean)
    pair = Pair(model, batch.resolved[index], twins.resolved[index])

    def metric(logits):
        return logits[0, -1, pair.target] - logits[0, -1, pair.foil]

    baseline = float(metric(model(corrupted)))
    for component, function in by_position.items():
        with torch.no_grad():
            theirs = function(model, corrupted, cache, metric) - baseline
        mine = activation_patching(model, batch, twins, component=component, progress=False)
        mine = mine.effects["logit_difference"][index][: clean.shape[1]].transpose(0, 1)
        if component == "pattern":
            theirs = theirs.transpose(1, 2)  # layer, head, position
        assert torch.allclose(mine, theirs.float(), atol=1e-5), component


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pair_with_itself_is_exactly_0(random_model, family):
    model = random_model(family)
    batch, _ = pairs(model)
    for component in COMPONENTS:
        for positions in ("each", "sum"):
            found = activation_patching(
                model, batch, batch, component=component, positions=positions, direction="necessity", progress=False
            )
            for name, values in found.effects.items():
                known = values[~values.isnan()]
                assert known.numel()
                assert (known == 0).all()
                assert torch.equal(found.clean[name], found.corrupted[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_all_positions_of_the_stream_give_the_whole_effect(exact_model, family):
    model = exact_model(family)
    batch, twins = pairs(model)
    for direction in ("sufficiency", "necessity"):
        found = activation_patching(
            model, batch, twins, component="resid", positions="sum", direction=direction, progress=False
        )
        for name in METRICS:
            whole = found.total_effect(name)[:, None].expand(-1, 3)
            assert torch.allclose(found.effects[name], whole, atol=1e-5)


def test_nothing_before_the_first_difference(exact_model):
    model = exact_model("llama")
    batch, twins = pairs(model)
    found = activation_patching(model, batch, twins, progress=False)
    for index, (entry, twin) in enumerate(zip(batch.resolved, twins.resolved, strict=True)):
        first = next(at for at in range(len(entry.ids)) if entry.ids[at] != twin.ids[at])
        assert first > 1
        assert (found.effects["logit_difference"][index, :first] == 0).all()
        assert (found.effects["logit_difference"][index, first] != 0).any()


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("component", ["head", "pattern", "resid"])
def test_company_and_memory_do_not_matter(exact_model, family, component):
    model = exact_model(family)
    batch, twins = pairs(model)
    for positions in ("each", "sum"):
        options = {"component": component, "positions": positions, "progress": False}
        together = activation_patching(model, batch, twins, **options)
        small = activation_patching(model, batch, twins, memory_budget=1.0, **options)
        values = together.effects["logit_difference"]
        assert torch.allclose(values, small.effects["logit_difference"], atol=1e-6, equal_nan=True)
        for index in range(len(batch)):
            single = activation_patching(model, batch.select([index]), twins.select([index]), **options)
            alone = single.effects["logit_difference"][0]
            cut = values[index, : len(alone)] if positions == "each" else values[index]
            assert torch.allclose(alone, cut, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_the_planted_head(tmp_path, family):
    model = load_random_model(family, tmp_path)
    plant_copying_head(model)
    batch = copying_prompts(model)
    found = activation_patching(model, batch, positions="sum", progress=False)
    assert len(found) == len(batch)
    assert all(twin != prompt.text for twin, prompt in zip(found.twins, found.prompts, strict=True))
    for values in found.effects["logit_difference"]:
        assert divmod(int(values.argmax()), values.shape[1]) == (LAYER, HEAD)
    each = activation_patching(model, batch, component="v", progress=False)
    group = HEAD // 2 if hasattr(model.blocks[0].attn, "_W_K") else HEAD
    for index, values in enumerate(each.effects["logit_difference"]):
        position, layer, unit = torch.unravel_index(values.nan_to_num(-1).argmax(), values.shape)
        assert int(position) == batch.resolved[index].cue_positions[0]
        assert (int(layer), int(unit)) == (LAYER, group)


def test_two_prefix_pairs_take_their_other_prefix(organism):
    model = organism("tiny-causal")
    batch = kn.load_minimal_pairs("determiner_noun_agreement_2").prompts(model, groups=3, per_group=2)
    found = activation_patching(model, batch, component="resid", positions="sum", progress=False)
    assert list(found.twins) == [prompt.foil_prefix for prompt in found.prompts]


def test_average_by_class_and_frames(exact_model):
    model = exact_model("gpt2")
    batch, twins = pairs(model)
    found = activation_patching(model, batch, twins, component="attn", progress=False)
    assert found.cue_positions[0] == (4, 5)  # "old France" for "new Spain": where the sentences differ
    assert found.classes(0)[4:] == ["first cue token", "last cue token", "target position"]
    table = found.average()
    values = found.effects["logit_difference"][torch.arange(4), list(found.target_positions), 1]
    row = table[(table["class"] == "target position") & (table["layer"] == 1)].iloc[0]
    assert row["mean"] == pytest.approx(float(values.mean()))
    assert row["prompts"] == 4
    frame = found.to_frame()
    assert len(frame) == sum(len(entry.ids) for entry in batch.resolved) * 3
    line = frame[(frame["prompt"] == 1) & (frame["position"] == 4) & (frame["layer"] == 2)].iloc[0]
    assert line["kl"] == pytest.approx(float(found.effects["kl"][1, 4, 2]))
    summed = activation_patching(model, batch, twins, component="attn", positions="sum", progress=False)
    assert summed.average().loc[2, "mean"] == pytest.approx(float(summed.effects["logit_difference"][:, 2].mean()))
    assert summed.prompts_frame()["twin"].tolist() == [prompt.text for prompt in twins.prompts]
    part = found.select([2])
    assert torch.equal(part.effects["kl"][0].nan_to_num(7), found.effects["kl"][2].nan_to_num(7))


def test_saved_and_read_back(exact_model, tmp_path):
    batch, twins = pairs(exact_model("gpt2"))
    found = activation_patching(exact_model("gpt2"), batch, twins, progress=False)
    back = PatchEffects.load(found.save(tmp_path / "effects"))
    assert back.settings == found.settings
    assert back.cue_positions == found.cue_positions
    for name, values in found.effects.items():
        assert torch.equal(back.effects[name].nan_to_num(7), values.nan_to_num(7))


def test_wrong_answers_are_counted_and_twins_stay_aligned(exact_model):
    model = exact_model("gpt2")
    batch, twins = pairs(model)
    worst = int(model(torch.tensor([batch.resolved[0].ids]))[0, -1].argmin())
    mixed = kn.PromptBatch.from_resolved(model, [replace(batch.resolved[0], target_ids=(worst,)), *batch.resolved[1:]])
    found = activation_patching(model, mixed, twins, positions="sum", progress=False)
    assert [entry.reason for entry in found.dropped] == ["answered wrongly"]
    assert list(found.twins) == [prompt.text for prompt in twins.prompts[1:]]
    right = activation_patching(model, batch, twins, positions="sum", progress=False)
    assert torch.allclose(found.effects["kl"], right.effects["kl"][1:], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"component": "heads"}, "Did you mean 'head'"),
        ({"positions": "all"}, "no positions 'all' to patch"),
        ({"direction": "necessary"}, "Did you mean 'necessity'"),
        ({"metric": "logits"}, "no metric 'logits'"),
        ({"swaps": ["a"]}, "give one of them"),
    ],
)
def test_bad_settings(exact_model, options, message):
    model = exact_model("gpt2")
    batch, twins = pairs(model)
    with pytest.raises(kn.KnLensError, match=message):
        activation_patching(model, batch, twins, progress=False, **options)


def test_twins_that_do_not_fit(exact_model):
    model = exact_model("gpt2")
    batch, twins = pairs(model)
    with pytest.raises(kn.PromptError, match=r"'These cats' is 2 tokens.* 'The capital city of old France is' is 7"):
        activation_patching(model, batch.select([0]), twins.select([2]), progress=False)
    with pytest.raises(kn.PromptError, match="3 sources for 4 prompts"):
        activation_patching(model, batch, twins.select([0, 1, 2]), progress=False)
    with pytest.raises(kn.PromptError, match="has no cue"):
        activation_patching(model, batch, progress=False)


def test_of_given_twins_the_cue_is_what_differs(organism):
    model = organism("tiny-causal")
    prompt, twin = (
        kn.Prompt(f"The capital of {place} is", target=city, cue="capital")
        for place, city in (("Spain", "Madrid"), ("Iran", "Tehran"))
    )
    found = activation_patching(model, [prompt], [twin], component="resid", progress=False)
    differs = found.tokens[0].index("Spain")
    assert found.cue_positions == ((differs,),)
    assert found.classes(0)[differs] == "last cue token"
    assert float(found.effects["logit_difference"][0, differs, 0]) > 1
    assert (found.effects["logit_difference"][0, :differs] == 0).all()
    swapped = [replace(one, cue=place) for one, place in ((prompt, "Spain"), (twin, "Iran"))]
    cue = kn.PromptBatch.from_prompts(model, swapped).resolved[0].cue_positions
    assert activation_patching(model, swapped, progress=False).cue_positions[0] == cue


@pytest.mark.parametrize(
    "method", [activation_patching, kn.attribution_patching, kn.path_patching, kn.attention_knockout]
)
def test_two_prefix_pairs_are_measured_by_log_probability(organism, method):
    model = organism("tiny-causal")
    batch = kn.load_minimal_pairs("determiner_noun_agreement_2").prompts(model, groups=2, per_group=1)
    found = method(model, batch, progress=False)
    assert found.metric == found.settings["metric"] == "log_probability"
    for entry, prompt in zip(batch.resolved, batch.prompts, strict=True):
        if prompt not in found.prompts:
            continue
        with torch.no_grad():
            logits = model(torch.tensor([entry.ids]))[0, -1].log_softmax(-1)
        at = found.prompts.index(prompt)
        assert float(found.clean["log_probability"][at]) == pytest.approx(float(logits[entry.target_ids[0]]), abs=1e-4)
    with pytest.raises(kn.SettingsError, match="have no rival word to take a logit difference against"):
        method(model, batch, metric="logit_difference", progress=False)
    assert method(model, batch, metric="probability", progress=False).metric == "probability"


def test_paraphrases_are_resampled_together(organism):
    """Two prompts of each of three facts, twice the same numbers: as wide an interval as of three prompts."""
    model = organism("tiny-causal")
    facts = [("Spain", "Madrid"), ("Iran", "Tehran"), ("Japan", "Tokyo")]
    prompts = [kn.Prompt(f"The capital of {place} is", target=city, cue=place) for place, city in facts]
    found = activation_patching(model, prompts, component="attn", positions="sum", progress=False)
    assert len(found) == 3
    doubled = found.select([0, 1, 2, 0, 1, 2])
    once, twice = found.average(), doubled.average()
    for column in ("mean", "low", "high"):
        assert np.allclose(once[column], twice[column])
    assert (once["low"] < once["high"]).any()
    assert (twice["prompts"] == 6).all()
    assert found.select([0, 0]).average()["low"].isna().all()  # one fact, however often it is asked
