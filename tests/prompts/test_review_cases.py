"""Prompts that once went wrong: spaces at the blank, cues of rivals, pairs without a cue, mixed forms."""

from __future__ import annotations

import json

import pytest

import kn_lens as kn
from kn_lens.prompts.minimal_pairs import MinimalPair, MinimalPairs, read_minimal_pairs
from kn_lens.prompts.prompt import count_reasons
from kn_lens.prompts.tokens import _space_between
from tests.helpers import load_random_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_random_model("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.mark.parametrize(
    ("prefix", "word", "space"),
    [
        ("The teachers'", "books", " "),
        ('The word "dog"', "is", " "),
        ("The answer –", "Paris", " "),
        ("The temperature is", "-5", " "),
        ('She said "', "yes", ""),
        ('She said ("', "yes", ""),
        ("'", "yes", ""),
        ("The capital (", "Paris", ""),
        ("The boy", ".", ""),
        ("The boy", "'s", " "),
        ("The capital is", "Paris", " "),
        ("", "Paris", ""),
    ],
)
def test_the_space_that_a_sentence_has(prefix: str, word: str, space: str) -> None:
    assert _space_between(prefix, word) == space


def test_a_rival_keeps_its_cue(model) -> None:
    prompt = kn.Prompt(
        "He likes this big", foil_prefix="He likes these big", target="house", cue="this", form="two_prefix"
    )
    batch = kn.PromptBatch.from_prompts(model, [prompt])
    assert batch.rivals is not None
    rival = batch.rivals.resolved[0]
    assert [batch.rivals.decode(rival.ids[at]) for at in rival.cue_positions] == ["these"]
    effect = kn.suppress(model, batch, [(0, 1)], positions="cue_last", controls=2, progress=False)
    assert not effect.rival.isnan().any()


def test_pairs_without_a_cue_are_kept_when_others_have_one(model) -> None:
    good = "The boy near the house sleeps."
    with_cue = MinimalPair(
        sentence_good=good, sentence_bad=good.replace("sleeps", "sleep"), form="one_prefix", cue=(4, 7)
    )
    without = MinimalPair(sentence_good="The girl sings.", sentence_bad="The girl sing.", form="one_prefix")
    batch = MinimalPairs(name="mixed", pairs=(with_cue, without)).prompts(model, augment=True)
    assert [prompt.target for prompt in batch.prompts] == ["sings", "sleeps"]


def test_a_mixed_paradigm_keeps_the_form_of_most_pairs(model, tmp_path) -> None:
    one = {"sentence_good": "The boy sleeps.", "sentence_bad": "The boy sleep.", "one_prefix_method": True}
    two = {
        "sentence_good": "He likes this house.",
        "sentence_bad": "He likes these house.",
        "two_prefix_method": True,
        "two_prefix_prefix_good": "He likes this",
        "two_prefix_prefix_bad": "He likes these",
        "two_prefix_word": "house",
    }
    path = tmp_path / "mixed.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in (one, two, two | {"sentence_good": "We like this house."}))
    )
    batch = read_minimal_pairs(path).prompts(model)
    assert len(batch) == 2
    assert count_reasons(batch.dropped) == {"of another form than most pairs (two_prefix)": 1}


def test_an_unusable_pair_is_counted_once_however_many_sentences_it_would_go_into(model) -> None:
    rows = [
        ("The boy near the house sleeps.", "sleeps", "sleep"),
        ("The girl near the river sings.", "sings", "sing"),
        ("The man near the book perambulates.", "perambulates", "zigzags"),
    ]
    pairs = [
        MinimalPair(
            sentence_good=good,
            sentence_bad=good.replace(right, wrong),
            form="one_prefix",
            cue=(4, 4 + len(good.split()[1])),
        )
        for good, right, wrong in rows
    ]
    batch = MinimalPairs(name="verbs", pairs=tuple(pairs)).prompts(model, augment=True)
    assert len(batch) == 2 * 2  # two nouns with their verbs in two sentences
    assert count_reasons(batch.dropped) == {"target or foil is not one token": 1}


def test_a_target_of_several_tokens_is_refused_by_suppress(model) -> None:
    with pytest.raises(kn.PromptError, match="scaling units compares single tokens"):
        kn.suppress(model, kn.Prompt("The capital of France is", target="Paris Rome"), [(0, 1)], progress=False)
