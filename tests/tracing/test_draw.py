"""Which prompts are traced: those with a cue, pairs with their mirror images, by the seed."""

from __future__ import annotations

import json

import kn_lens as kn
from kn_lens.runs.patch import PatchSettings
from kn_lens.runs.patch import patch as run_patch
from kn_lens.tracing.draw import NO_CUE, asked_of, cued_prompts


def test_pairs_are_drawn_with_their_twins(organism) -> None:
    model = organism("tiny-causal")
    data = kn.load_data("determiner_noun_agreement_1")
    batch = cued_prompts(model, data, 6, 1, seed=3, twins=True)
    words = {(prompt.target, prompt.foil) for prompt in batch.prompts}
    assert len(words) == 6
    assert {(foil, target) for target, foil in words} == words
    assert {prompt.target for prompt in batch.prompts} != {
        prompt.target for prompt in cued_prompts(model, data, 6, 1, seed=4, twins=True).prompts
    }
    found = run_patch(model, data, PatchSettings(component="attn", groups=6, attribution=False))
    assert len(found.exact) == 6


def test_prompts_without_a_cue_are_counted(organism, tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"sentence_good": "The parents were slow.", "sentence_bad": "The parents was slow.", "cue_span": [4, 11]},
        {"sentence_good": "The king was slow.", "sentence_bad": "The king were slow."},
    ]
    path.write_text("".join(json.dumps({**row, "one_prefix_method": True}) + "\n" for row in rows))
    batch = cued_prompts(organism("tiny-causal"), kn.load_data(str(path)), None, None, seed=0)
    assert [prompt.target for prompt in batch.prompts] == ["were"]
    assert [(entry.text, entry.reason) for entry in batch.dropped] == [("The king", NO_CUE)]


def test_draws_of_pairs(organism) -> None:
    model = organism("tiny-causal")
    few = kn.load_data("anaphor_number_agreement")
    everything = cued_prompts(model, few, None, None, 0)
    whole = few.prompts(model)
    assert {prompt.text for prompt in everything.prompts} == {prompt.text for prompt in whole.prompts}
    drawn = [tuple(prompt.text for prompt in cued_prompts(model, few, 2, 3, seed).prompts) for seed in range(3)]
    assert len(set(drawn)) == 3
    assert drawn[0] == tuple(prompt.text for prompt in cued_prompts(model, few, 2, 3, 0).prompts)
    assert all(len(set(one)) == 3 * 2 for one in drawn)
    agreement = kn.load_data("subject_verb_agreement")
    for count, expected in ((1, 2), (2, 2), (3, 4)):
        pair = cued_prompts(model, agreement, count, 1, seed=0, twins=True)
        words = [(prompt.target, prompt.foil) for prompt in pair.prompts]
        assert len(words) == expected
        assert {(foil, target) for target, foil in words} == set(words)
    assert len(run_patch(model, agreement, PatchSettings(component="attn", groups=1, attribution=False)).exact) >= 1


def test_prompts_are_found_again_in_their_batch(organism) -> None:
    batch = cued_prompts(organism("tiny-causal"), kn.load_data("P36"), 4, 2, 0)
    some = [batch.prompts[at] for at in (1, 3, 6)]
    assert [entry.ids for entry in asked_of(batch, some).resolved] == [batch.resolved[at].ids for at in (1, 3, 6)]
