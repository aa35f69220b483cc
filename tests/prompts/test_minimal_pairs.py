"""Minimal pairs: three forms, files with mistakes, BLiMP's own files, and data augmentation."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

import kn_lens as kn
from kn_lens.errors import DataError, PromptError
from kn_lens.prompts.load import BLIMP_FOLDER
from kn_lens.prompts.minimal_pairs import pair_prompt, read_minimal_pairs

BLIMP = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "blimp"
needs_blimp = pytest.mark.skipif(not BLIMP.is_dir(), reason=f"BLiMP's files are not at {BLIMP}")

ONE = {"sentence_good": "The dogs near the house run.", "sentence_bad": "The dogs near the house runs."}
TWO = {
    "sentence_good": "The boy knows these dogs.",
    "sentence_bad": "The boy knows this dogs.",
    "two_prefix_method": True,
    "two_prefix_prefix_good": "The boy knows these",
    "two_prefix_prefix_bad": "The boy knows this",
    "two_prefix_word": "dogs",
}


def write(folder, *rows):
    path = folder / "pairs.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_one_prefix_two_words(tmp_path, random_model):
    pairs = read_minimal_pairs(write(tmp_path, {**ONE, "one_prefix_method": True, "cue_span": [4, 8]}))
    assert pairs.form == "one_prefix"
    batch = pairs.prompts(random_model("gpt2"))
    (prompt,) = batch.prompts
    assert (prompt.prefix, prompt.target, prompt.foil) == ("The dogs near the house", "run", "runs")
    assert batch.token_labels(0)[batch.resolved[0].cue_positions[0]] == "dogs"
    masked = pairs.prompts(random_model("bert"))
    assert masked.prompts[0].text == "The dogs near the house [MASK]."
    assert masked.token_labels(0)[masked.resolved[0].cue_positions[0]] == "dogs"


def test_two_prefixes_one_word(tmp_path, random_model):
    pairs = read_minimal_pairs(write(tmp_path, {**TWO, "cue_span": [20, 24]}))
    assert pairs.form == "two_prefix"
    batch = pairs.prompts(random_model("gpt2"))
    (prompt,) = batch.prompts
    assert (prompt.prefix, prompt.foil_prefix, prompt.target) == ("The boy knows these", "The boy knows this", "dogs")
    assert prompt.foil is None
    assert batch.token_labels(0)[batch.resolved[0].cue_positions[0]] == "these"
    assert batch.rivals is not None
    assert batch.rivals.token_labels(0) == ["The", "boy", "knows", "this"]
    masked = pairs.prompts(random_model("bert"))  # a masked model takes the pair as it is
    assert (masked.prompts[0].text, masked.prompts[0].target) == ("The boy knows [MASK] dogs.", "these")
    assert masked.token_labels(0)[masked.resolved[0].cue_positions[0]] == "dogs"
    assert masked.rivals is None


def test_two_prefixes_are_compared_on_the_same_word(tmp_path, exact_model):
    """p(dogs | … these) against p(dogs | … this), by two whole passes."""
    model = exact_model("gpt2")
    batch = read_minimal_pairs(write(tmp_path, TWO)).prompts(model)
    with torch.no_grad():
        good, bad = (
            model(torch.tensor([model.tokenizer(text).input_ids]))[0, -1].softmax(-1)[batch.target_ids[0]].item()
            for text in ("The boy knows these", "The boy knows this")
        )
    found = kn.answers(model, batch)
    assert found.target.item() == pytest.approx(good, rel=1e-9)
    assert found.rival.item() == pytest.approx(bad, rel=1e-9)
    assert found.foil.isnan().all()
    assert found.correct.item() == (good > bad)


def test_whole_sentences(tmp_path, exact_model, random_model):
    """Accuracy takes them; attribution of a causal model refuses them with the reason."""
    rows = [
        {"sentence_good": "The dogs run near the house.", "sentence_bad": "Near dogs the run the house."},
        {"sentence_good": "He knows the boys.", "sentence_bad": "He the knows boys."},
    ]
    pairs = read_minimal_pairs(write(tmp_path, *rows))
    assert pairs.form == "sentence"
    with pytest.raises(PromptError, match=r"has the form 'sentence' for .* a causal model: .*accuracy only"):
        pairs.prompts(random_model("gpt2"))
    model = exact_model("gpt2")

    def log_probability(text):
        ids = torch.tensor([model.tokenizer(text).input_ids])
        with torch.no_grad():
            return model(ids)[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).sum().item()

    right = [log_probability(row["sentence_good"]) > log_probability(row["sentence_bad"]) for row in rows]
    assert kn.accuracy(model, pairs) == sum(right) / 2


def test_prefix_cut_is_for_comparison_only(tmp_path, random_model):
    """As the paper's code cuts, also where what decides comes later; the prompt says which form it has."""
    pairs = read_minimal_pairs(write(tmp_path, TWO))
    (prompt,) = pairs.prompts(random_model("gpt2"), form="prefix_cut").prompts
    assert (prompt.prefix, prompt.target, prompt.foil) == ("The boy knows", "these", "this")
    assert prompt.form == "prefix_cut"
    assert prompt.cue is None


def test_what_cannot_be_asked_is_counted(tmp_path, random_model):
    rows = [
        {**ONE, "one_prefix_method": True},
        {"sentence_good": "Dogs run.", "sentence_bad": "Dog run.", "one_prefix_method": True},
        {"sentence_good": "The dogs run.", "sentence_bad": "The dogs runsies.", "one_prefix_method": True},
        {"sentence_good": "The dogs like the cat.", "sentence_bad": "The dogs likes a cat.", "one_prefix_method": True},
    ]
    pairs = read_minimal_pairs(write(tmp_path, *rows))
    reasons = [entry.reason for entry in pairs.prompts(random_model("gpt2")).dropped]
    assert reasons == ["nothing before the differing word", "target or foil is not one token"]
    masked = [entry.reason for entry in pairs.prompts(random_model("bert")).dropped]
    assert sorted(masked) == sorted(
        ["target or foil is unknown", "target or foil is unknown", "the sentences differ in more than one word"]
    )
    assert all(entry.source and "pairs.jsonl:" in entry.source for entry in pairs.prompts(random_model("gpt2")).dropped)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ONE, "{broken"], "pairs.jsonl:2: not JSON"),
        ([ONE, "[1, 2]"], "pairs.jsonl:2: expected an object {…}, found list"),
        ([ONE, "", {"sentence_good": "a b"}], "pairs.jsonl:3: field 'sentence_bad' is missing"),
        ([{**ONE, "sentence_bad": 7}], "pairs.jsonl:1: field 'sentence_bad' is 7, not a text"),
        ([{**ONE, "sentence_bad": " "}], "pairs.jsonl:1: field 'sentence_bad' is ' ', not a text"),
        ([ONE, {**ONE, "sentence_bad": ONE["sentence_good"]}], "pairs.jsonl:2: sentence_good and sentence_bad are the"),
        ([], "pairs.jsonl: the file is empty"),
        (["", " "], "pairs.jsonl: the file is empty"),
        ([{**ONE, "cue_span": [4, 99]}], "pairs.jsonl:1: cue_span is [4, 99]; expected [start, end]"),
        ([{**ONE, "cue_span": "dogs"}], "pairs.jsonl:1: cue_span is 'dogs'"),
        (
            [{name: value for name, value in TWO.items() if name != "two_prefix_word"}],
            "pairs.jsonl:1: 'two_prefix_prefix_good' is there and 'two_prefix_word' is missing",
        ),
    ],
)
def test_mistakes_in_a_file_are_named_with_their_line(tmp_path, rows, message):
    with pytest.raises(DataError) as refusal:
        kn.load_minimal_pairs(str(write(tmp_path, *rows)))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"sentence_good": "caf\xe9"}\n')
    with pytest.raises(DataError, match="not UTF-8 text"):
        read_minimal_pairs(path)


def test_a_cue_that_is_the_word_asked_for_is_none(tmp_path, random_model):
    """It must not be taken for some other word, whose place it would have once the blank is cut out."""
    pairs = read_minimal_pairs(write(tmp_path, {**TWO, "cue_span": [14, 19]}))
    assert pairs.pairs[0].sentence_good[14:19] == "these"
    assert pairs.prompts(random_model("bert")).prompts[0].cue is None


# -- augmentation -------------------------------------------------------------------------------------------------


def agreement(number):
    subject, verb, other = {"sg": ("dog", "runs", "run"), "pl": ("cats", "run", "runs")}[number]
    return subject, verb, other


def augmentable(tmp_path):
    """Four frames of two classes; subjects and verbs of either number."""
    rows = []
    for frame, text in [
        ("near", "The {} near the house {}."),
        ("near", "That old {} near the river {}."),
        ("in", "In the house the {} {}."),
        ("in", "In France the big {} {}."),
    ]:
        subject, good, bad = agreement("sg" if "The {}" in text or "big" in text else "pl")
        sentence = text.format(subject, good)
        start = sentence.index(subject)
        rows.append(
            {
                "sentence_good": sentence,
                "sentence_bad": text.format(subject, bad),
                "one_prefix_method": True,
                "cue_span": [start, start + len(subject)],
                "frame": frame,
            }
        )
    return read_minimal_pairs(write(tmp_path, *rows))


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_augmentation_moves_cue_and_target_into_every_frame_of_a_class(tmp_path, random_model, family):
    model = random_model(family)
    batch = augmentable(tmp_path).prompts(model, augment=True)
    groups = {name: [batch.prompts[index] for index in indices] for name, indices in batch.groups.items()}
    assert set(groups) == {"dog → runs", "cats → run"}
    for name, prompts in groups.items():
        cue, target = name.split(" → ")
        assert {prompt.target for prompt in prompts} == {target}
        assert len({prompt.prefix for prompt in prompts}) == len(prompts) == 2
        for prompt in prompts:
            start, end = prompt.cue_span() or (0, 0)
            assert (prompt.prefix + prompt.suffix)[start:end] == cue
    # "dog" stands first in a frame with "near" and "cats" likewise: no group holds a frame of the other class
    frames = {name: {"near" in prompt.prefix for prompt in prompts} for name, prompts in groups.items()}
    assert all(len(classes) == 1 for classes in frames.values())
    assert {prompt.prefix for prompt in groups["dog → runs"]} == {
        "The dog near the house",
        "That old dog near the river",
    }


def test_augmented_draws_are_seeded(tmp_path, random_model):
    model = random_model("gpt2")
    pairs = augmentable(tmp_path)
    draws = [pairs.prompts(model, augment=True, groups=1, per_group=1, seed=seed).prompts for seed in range(8)]
    assert all(len(drawn) == 1 for drawn in draws)
    assert draws[3] == pairs.prompts(model, augment=True, groups=1, per_group=1, seed=3).prompts
    assert len(set(draws)) > 1


def test_augmented_two_prefix_pairs_keep_their_rivals(tmp_path, random_model):
    other = {
        "sentence_good": "The old teacher likes this cat.",
        "sentence_bad": "The old teacher likes these cat.",
        "two_prefix_method": True,
        "two_prefix_prefix_good": "The old teacher likes this",
        "two_prefix_prefix_bad": "The old teacher likes these",
        "two_prefix_word": "cat",
    }
    batch = read_minimal_pairs(write(tmp_path, TWO, other)).prompts(random_model("gpt2"), augment=True)
    found = {(prompt.prefix, prompt.foil_prefix, prompt.target) for prompt in batch.prompts}
    assert found == {
        ("The boy knows these", "The boy knows this", "dogs"),
        ("The old teacher likes these", "The old teacher likes this", "dogs"),
        ("The boy knows this", "The boy knows these", "cat"),
        ("The old teacher likes this", "The old teacher likes these", "cat"),
    }
    assert set(batch.groups) == {"these → dogs", "this → cat"}


# -- BLiMP --------------------------------------------------------------------------------------------------------


@pytest.fixture
def blimp(monkeypatch):
    monkeypatch.setenv(BLIMP_FOLDER, str(BLIMP))
    return lambda uid: kn.load_minimal_pairs(f"blimp:{uid}")


@needs_blimp
def test_every_blimp_file_loads(blimp):
    """The form of each paradigm is what its own flags say; no paradigm mixes forms."""
    uids = sorted(path.stem for path in BLIMP.glob("*.jsonl"))
    assert len(uids) >= 33
    for uid in uids:
        pairs = blimp(uid)
        rows = [json.loads(line) for line in (BLIMP / f"{uid}.jsonl").read_text(encoding="utf-8").splitlines()]
        identical = sum(row["sentence_good"].strip() == row["sentence_bad"].strip() for row in rows)
        assert len(pairs) == len(rows) - identical
        flags = {(row["one_prefix_method"], row["two_prefix_method"]) for row in rows}
        assert len(flags) == 1
        one, two = flags.pop()
        expected = {"one_prefix"} if one else {"two_prefix", "sentence"} if two else {"sentence"}
        assert {pair.form for pair in pairs.pairs} <= expected
        assert len({pair.form for pair in pairs.pairs}) == 1


@needs_blimp
def test_forms_of_the_agreement_paradigms(blimp):
    expected = {
        "anaphor_number_agreement": "one_prefix",
        "anaphor_gender_agreement": "one_prefix",
        "determiner_noun_agreement_1": "one_prefix",
        "determiner_noun_agreement_2": "two_prefix",
        "determiner_noun_agreement_with_adj_irregular_2": "two_prefix",
        "regular_plural_subject_verb_agreement_1": "one_prefix",
        "regular_plural_subject_verb_agreement_2": "two_prefix",
        "principle_A_case_2": "one_prefix",
    }
    assert {uid: blimp(uid).form for uid in expected} == expected


@needs_blimp
def test_identical_pairs_are_left_out_with_a_warning(blimp, caplog):
    """BLiMP's own file holds three; they are not the user's to mend."""
    with caplog.at_level(logging.WARNING, "kn_lens"):
        pairs = blimp("principle_A_case_2")
    assert len(pairs) == 497
    assert len(caplog.records) == 3
    assert "principle_A_case_2.jsonl:" in caplog.text
    assert "are the same" in caplog.text
    with pytest.raises(DataError, match=r"principle_A_case_2.jsonl:\d+: .* are the same"):
        kn.load_minimal_pairs(str(BLIMP / "principle_A_case_2.jsonl"))  # a file of one's own is stopped at


@needs_blimp
def test_determiner_before_its_noun(blimp, random_model):
    """determiner_noun_agreement_2: two prefixes for a causal model; one mask, its cue the noun, for a masked one."""
    pairs = blimp("determiner_noun_agreement_2")
    for pair in pairs.pairs:
        causal = pair_prompt(pair, masked=False)
        assert isinstance(causal, kn.Prompt)
        assert causal.form == "two_prefix"
        assert causal.foil_prefix is not None
        assert causal.prefix != causal.foil_prefix
        assert pair.sentence_good.startswith(f"{causal.prefix} {causal.target}")
        assert pair.sentence_bad.startswith(f"{causal.foil_prefix} {causal.target}")
        start, end = causal.cue_span() or (0, 0)
        assert causal.prefix[start:end].lower() in ("this", "that", "these", "those")
        masked = pair_prompt(pair, masked=True)
        assert isinstance(masked, kn.Prompt)
        start, end = masked.cue_span() or (0, 0)
        assert (masked.prefix + masked.suffix)[start:end] == causal.target.split(" ")[-1]
        assert f"{masked.prefix} {masked.target}{masked.suffix}".strip() == pair.sentence_good


@needs_blimp
def test_every_masked_prompt_gives_its_sentence_back(blimp):
    for uid in ("anaphor_gender_agreement", "determiner_noun_agreement_1", "regular_plural_subject_verb_agreement_1"):
        kept = 0
        for pair in blimp(uid).pairs:
            prompt = pair_prompt(pair, masked=True)
            if isinstance(prompt, kn.Prompt):
                kept += 1
                assert f"{prompt.prefix} {prompt.target}{prompt.suffix}".strip() == pair.sentence_good
                assert f"{prompt.prefix} {prompt.foil}{prompt.suffix}".strip() == pair.sentence_bad
        assert kept > 450


@needs_blimp
def test_an_unknown_paradigm_names_near_matches(blimp):
    with pytest.raises(DataError, match="Did you mean 'anaphor_number_agreement'"):
        blimp("anaphor_number_agrement")
