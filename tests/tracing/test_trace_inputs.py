"""What tracing is asked, what it refuses, and what its result says."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.errors import PromptError, SettingsError
from kn_lens.statistics import bootstrap_mean
from kn_lens.streams import stream_of
from kn_lens.tracing.answered import WRONG
from kn_lens.tracing.position_classes import CLASSES
from kn_lens.tracing.swap import NO_PARTNER, swap_partners
from kn_lens.tracing.windows import default_window, window_of
from tests.helpers import load_random_model
from tests.planted import copying_prompts, plant_copying_head
from tests.questions import likely_batch


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("corruption", ["noise", "swap"])
def test_a_planted_head_is_found(tmp_path, family, corruption):
    """A head that copies the cue: no other head's restoration at the answer gives back as much."""
    model = load_random_model(family, tmp_path)
    layer, head = plant_copying_head(model)
    trace = kn.causal_trace(model, copying_prompts(model), stream="head", corruption=corruption, progress=False)
    assert len(trace) >= 8
    answer = trace.by_class()["target position"].mean(0)
    assert divmod(int(answer.argmax()), answer.shape[1]) == (layer, head)
    assert answer[layer, head] > 0.6 * trace.total_effect().mean()
    rest = answer.clone()
    rest[layer, head] = 0
    assert rest.abs().max() < 0.3 * answer[layer, head]


# -- what is asked -----------------------------------------------------------------------------------------------------


def test_wrong_answers_are_counted(organism):
    model = organism("tiny-causal")
    right = kn.Prompt("The capital of France is", target="Paris", cue="France")
    wrong = kn.Prompt("The capital of Italy is", target="Paris", cue="Italy")
    trace = kn.causal_trace(model, [right, wrong], progress=False)
    assert [prompt.cue for prompt in trace.prompts] == ["France"]
    assert [(entry.text, entry.reason) for entry in trace.dropped] == [("The capital of Italy is", WRONG)]


def test_all_wrong_is_an_error_that_shows_what_the_model_says(organism):
    model = organism("tiny-causal")
    wrong = kn.Prompt("The capital of Italy is", target="Paris", cue="Italy")
    top = kn.answers(model, [wrong]).top
    first = kn.PromptBatch.from_prompts(model, [wrong]).decode(int(top[0]))
    with pytest.raises(
        PromptError, match=rf"answers none of the 1 prompts.*it says '{first}' \(.*right would be 'Paris'"
    ):
        kn.causal_trace(model, [wrong], progress=False)


@pytest.mark.parametrize(
    ("cue", "message"),
    [
        (None, "has no cue"),
        ("Spain", "cue 'Spain' does not occur"),
        ("the", r"cue 'the' occurs 2 times"),
    ],
)
def test_a_cue_that_is_not_there_once_is_refused(organism, cue, message):
    prompt = kn.Prompt("the capital of France is the city of", target="Paris", cue=cue)
    with pytest.raises(PromptError, match=message):
        kn.causal_trace(organism("tiny-causal"), [prompt], progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stream": "mpl"}, "no stream 'mpl'. Did you mean 'mlp'"),
        ({"stream": "q"}, "no stream 'q'"),
        ({"stream": "neuron"}, r"neurons a layer; say which layers"),
        ({"severed": "head"}, "no stream 'head'.*mlp, attn"),
        ({"corruption": "noize"}, "no corruption 'noize'. Did you mean 'noise'"),
        ({"direction": "sufficient"}, "Did you mean 'sufficiency'"),
        ({"metric": "prob"}, "no metric 'prob'.*probability"),
        ({"samples": 0}, "samples is 0"),
        ({"noise": 0.0}, "noise is 0.0; give a number above 0"),
        ({"noise": "3"}, "noise is '3'; give a number above 0"),
        ({"samples": 2.5}, "samples is 2.5; give a whole number"),
        ({"window": 2.5}, "window is 2.5; give a whole number"),
        ({"layers": [1.7]}, "a layer is 1.7; give a whole number"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"window": 0}, "window is 0"),
        ({"stream": "head", "window": 3}, "take window=1"),
        ({"layers": [4]}, r"layer 4 is not in the model; it has layers 0–3"),
        ({"layers": []}, "layers is empty"),
        ({"swaps": ["Italy"]}, "take corruption='swap'"),
    ],
)
def test_settings_out_of_range_are_refused(organism, settings, message):
    prompt = kn.Prompt("The capital of France is", target="Paris", cue="France")
    with pytest.raises(SettingsError, match=message):
        kn.causal_trace(organism("tiny-causal"), [prompt], progress=False, **settings)


def test_a_stream_that_the_model_does_not_expose(organism):
    model = organism("tiny-causal")
    hidden = {name: hook for name, hook in model.hook_dict.items() if "hook_mlp_out" not in name}

    class Without:
        cfg = model.cfg
        hook_dict = hidden

    with pytest.raises(SettingsError, match=r"does not expose the stream 'mlp' \(blocks.0.hook_mlp_out\); it exposes"):
        stream_of(Without(), "mlp")


# -- windows -----------------------------------------------------------------------------------------------------------


def test_a_window_larger_than_the_model_is_clipped_and_said(organism, caplog):
    """Why a window for MLP and attention and not for the residual? It is in every result."""
    prompt = kn.Prompt("The capital of France is", target="Paris", cue="France")
    with caplog.at_level(logging.WARNING):
        trace = kn.causal_trace(organism("tiny-causal"), [prompt], stream="mlp", window=10, progress=False)
    assert trace.window == trace.settings["window"] == 4
    assert "window 10 is clipped to the 4 layers" in caplog.text


def test_even_windows_have_one_more_layer_before():
    assert [list(window_of(layer, 4, 6)) for layer in (0, 2, 5)] == [[0, 1], [0, 1, 2, 3], [3, 4, 5]]
    assert list(window_of(2, 3, 6)) == [1, 2, 3]
    assert list(window_of(2, 1, 6)) == [2]


def test_default_windows(organism):
    stream = stream_of(organism("tiny-causal"), "mlp")
    assert default_window(stream) == 1
    assert default_window(replace(stream, n_layers=12)) == 2
    assert default_window(replace(stream, n_layers=48)) == 10
    assert default_window(replace(stream, name="resid", n_layers=48)) == 1


# -- swaps -------------------------------------------------------------------------------------------------------------


def capital(country, city):
    return kn.Prompt(f"The capital of {country} is", target=city, cue=country, group=country)


def test_facts_are_swapped_with_the_next_fact(organism):
    model = organism("tiny-causal")
    facts = [capital("France", "Paris"), capital("Italy", "Rome"), capital("Egypt", "Cairo")]
    trace = kn.causal_trace(model, facts, corruption="swap", progress=False)
    assert trace.twins == ("The capital of Italy is", "The capital of Egypt is", "The capital of France is")
    assert trace.foils == ("Rome", "Cairo", "Paris")  # the rival is the twin's answer
    twin = kn.answers(model, [kn.Prompt("The capital of Italy is", target="Paris", foil="Rome")])
    assert float(trace.corrupted["log_probability"][0]) == pytest.approx(float(twin.target[0].log()), abs=1e-5)


def test_pairs_are_swapped_for_the_other_number_of_the_same_word(organism):
    model = organism("tiny-causal")
    batch = kn.load_minimal_pairs("subject_verb_agreement").prompts(model)
    swapped = swap_partners(model, batch)
    assert len(swapped.ids) == len(swapped.batch) > 100
    for entry, ids in list(zip(swapped.batch.resolved, swapped.ids, strict=True))[:40]:
        different = [at for at, (old, new) in enumerate(zip(entry.ids, ids, strict=True)) if old != new]
        assert different == [*entry.cue_positions]
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, entry.target_position]
        assert logits[entry.foil_ids[0]] > logits[entry.target_ids[0]]


def test_two_prefix_pairs_are_swapped_for_their_other_prefix(organism):
    model = organism("tiny-causal")
    batch = kn.load_minimal_pairs("determiner_noun_agreement_2").prompts(model, groups=3, per_group=2)
    trace = kn.causal_trace(model, batch, corruption="swap", progress=False)
    assert trace.twins == tuple(prompt.foil_prefix for prompt in trace.prompts)
    other = kn.answers(model, trace.prompts).rival
    torch.testing.assert_close(trace.corrupted["probability"], other, rtol=1e-4, atol=1e-6)


def test_a_swap_of_another_length_names_the_nearest_that_fits(smollm2):
    facts = [capital("France", "Paris"), capital("Italy", "Rome"), capital("Saudi Arabia", "Riyadh")]
    batch = kn.PromptBatch.from_prompts(smollm2, facts, targets="any").select([0, 1])
    with pytest.raises(
        PromptError, match=r"cannot swap 'France' \(1 token\) for 'Saudi Arabia', which is 2 tokens.*'Italy'"
    ):
        swap_partners(smollm2, batch, {"France": "Saudi Arabia", "Italy": "France"})


@pytest.mark.parametrize(
    ("swaps", "message"),
    [
        ({"France": "Italy"}, "no entry for the cue 'Italy'"),
        (["Italy"], "1 cues for 2 prompts"),
        ("Italy", "one text for 2 prompts"),
    ],
)
def test_swaps_are_given_for_each_prompt(organism, swaps, message):
    facts = [capital("France", "Paris"), capital("Italy", "Rome")]
    with pytest.raises(PromptError, match=message):
        kn.causal_trace(organism("tiny-causal"), facts, corruption="swap", swaps=swaps, progress=False)


def test_swaps_are_matched_before_wrong_answers_are_left_out(organism):
    model = organism("tiny-causal")
    facts = [capital("France", "Lima"), capital("Italy", "Rome"), capital("Egypt", "Cairo")]
    swaps = ["Egypt", "France", "Italy"]
    trace = kn.causal_trace(model, facts, corruption="swap", swaps=swaps, progress=False)
    assert [prompt.cue for prompt in trace.prompts] == ["Italy", "Egypt"]
    assert trace.twins == ("The capital of France is", "The capital of Italy is")
    assert [entry.reason for entry in trace.dropped] == [WRONG]


def test_a_foil_is_never_the_answer_to_another_question(organism):
    """A twin's answer is known where the batch asks it; else the rival is the runner-up."""
    model = organism("tiny-causal")
    asked = [capital("France", "Paris"), kn.Prompt("The official language of Italy is", target="Italian", cue="Italy")]
    swapped = swap_partners(model, kn.PromptBatch.from_prompts(model, asked))
    assert swapped.texts == ("The capital of Italy is", "The official language of France is")
    assert swapped.answers == (-1, -1)


def test_a_two_prefix_twin_differs_in_the_cue_only(organism):
    model = organism("tiny-causal")
    batch = kn.load_minimal_pairs("determiner_noun_agreement_2").prompts(model, groups=2, per_group=1)
    entry = batch.resolved[0]
    other = replace(entry, rival_ids=(entry.rival_ids[0] + 1, *entry.rival_ids[1:]))
    assert entry.cue_positions[0] > 0
    changed = kn.PromptBatch.from_resolved(model, [other, batch.resolved[1]])
    assert [entry.reason for entry in swap_partners(model, changed).batch.dropped] == [NO_PARTNER]


def test_two_prefix_pairs_are_shown_by_log_probability(organism):
    model = organism("tiny-causal")
    batch = kn.load_minimal_pairs("determiner_noun_agreement_2").prompts(model, groups=3, per_group=2)
    trace = kn.causal_trace(model, batch, progress=False)
    assert trace.metric == trace.settings["metric"] == "log_probability"
    with pytest.raises(SettingsError, match="no rival word to take a logit difference against"):
        kn.causal_trace(model, batch, metric="logit_difference", progress=False)


def test_prompts_without_a_partner_are_counted_and_none_left_is_an_error(organism):
    model = organism("tiny-causal")
    facts = [capital("France", "Paris"), capital("Italy", "Rome")]
    odd = kn.Prompt("The capital of France is", target="Paris", foil="Lima", cue="capital of France")
    swapped = swap_partners(model, kn.PromptBatch.from_prompts(model, [*facts, odd]))
    assert [(entry.text, entry.reason) for entry in swapped.batch.dropped] == [("The capital of France is", NO_PARTNER)]
    with pytest.raises(PromptError, match=r"no prompt has a cue to swap with: 'France' of .* is 1 token long"):
        kn.causal_trace(model, facts[:1], corruption="swap", progress=False)


# -- the result --------------------------------------------------------------------------------------------------------


def test_every_position_has_one_class(exact_model):
    model = exact_model("gpt2")
    prompt = kn.Prompt("It was in the capital city of France that the", target="dogs", cue="the capital city of France")
    batch = likely_batch(model, [prompt])
    trace = kn.causal_trace(model, batch, layers=[0], progress=False)
    before, first, middle, last, following, _, answer = CLASSES
    assert trace.classes(0) == [before] * 3 + [first] + [middle] * 3 + [last, following, answer]
    short = replace(trace, cue_positions=((7,),))
    assert short.classes(0) == [before] * 7 + [last, following, answer]  # the only token of a cue is its last
    end = replace(trace, cue_positions=((8, 9),))
    assert end.classes(0)[8:] == [first, answer]


def test_averages_are_means_over_prompts_with_intervals(organism):
    model = organism("tiny-causal")
    batch = kn.load_relation("P36").prompts(model, groups=12, per_group=1, seed=3)
    trace = kn.causal_trace(model, batch, progress=False)
    frame = trace.average("probability").set_index(["class", "layer"])
    by_hand = np.array(
        [float(trace.effects["probability"][index, cue[-1], 1]) for index, cue in enumerate(trace.cue_positions)]
    )
    row = frame.loc[("last cue token", 1)]
    assert row["mean"] == pytest.approx(by_hand.mean(), abs=1e-6)
    assert row["prompts"] == len(trace)
    mean, low, high = bootstrap_mean(by_hand[:, None])
    assert row["low"] == pytest.approx(low[0], abs=0.02)
    assert row["high"] == pytest.approx(high[0], abs=0.02)
    assert row["low"] < mean[0] < row["high"]


def test_bootstrap_intervals_hold_the_normal_ones():
    values = np.random.default_rng(1).normal(2, 3, size=(400, 2))
    mean, low, high = bootstrap_mean(values, draws=4000)
    error = values.std(0, ddof=1) / 20
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(high - mean, 1.96 * error, rtol=0.1)
    np.testing.assert_allclose(mean - low, 1.96 * error, rtol=0.1)
    assert np.isnan(bootstrap_mean(values[:1])[1]).all()


def test_paraphrases_are_resampled_together():
    """Five copies of each of four observations say no more than the four do."""
    values = np.random.default_rng(2).normal(size=(4, 1))
    copies, labels = np.repeat(values, 5, axis=0), np.repeat(np.arange(4), 5).tolist()
    together = bootstrap_mean(copies, clusters=labels)
    alone = bootstrap_mean(values)
    np.testing.assert_allclose(together, alone)
    assert (bootstrap_mean(copies)[2] < alone[2]).all()


def test_the_frame_holds_every_state_once(organism):
    model = organism("tiny-causal")
    trace = kn.causal_trace(model, kn.load_relation("P36").prompts(model, groups=3, per_group=2), progress=False)
    frame = trace.to_frame()
    assert len(frame) == sum(len(tokens) for tokens in trace.tokens) * 4
    row = frame.iloc[-1]
    assert row["kl"] == pytest.approx(float(trace.effects["kl"][row["prompt"], row["position"], row["layer"]]))
    assert row["token"] == trace.tokens[row["prompt"]][row["position"]]
