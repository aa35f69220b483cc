"""Sentences of the grammar against a checker of its own, and the bundled pairs written from it."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

import kn_lens as kn
from kn_lens.bundled import data_folder
from kn_lens.errors import OutputError, SettingsError
from kn_lens.organisms.grammar import PARADIGMS, pairs_of, possessive_sentence, quantified_sentence, sentence
from kn_lens.organisms.minimal_pairs import write_minimal_pairs
from kn_lens.prompts.groups import augment_pairs
from kn_lens.prompts.minimal_pairs import pair_prompt
from kn_lens.prompts.prompt import Prompt

LEXICON = json.loads((data_folder() / "lexicon.json").read_text(encoding="utf-8"))
PEOPLE = [LEXICON[kind][gender] for kind in ("people", "irregular") for gender in ("neutral", "female", "male")]
THINGS = [LEXICON["things"], LEXICON["irregular"]["things"]]
NUMBER = {form: at for nouns in (*PEOPLE, *THINGS) for forms in nouns.items() for at, form in enumerate(forms)}
DETERMINERS = {"this": 0, "that": 0, "these": 1, "those": 1}
VERBS = {
    *("is", "are", "was", "were", "has", "have", "eats", "eat", "runs", "run", "walks", "walk", "waits", "wait"),
    *("plays", "play", "sings", "sing", "works", "work", "travels", "travel"),
}
ANTECEDENTS = {
    form: "themselves" if at else reflexive
    for gender, reflexive in (("female", "herself"), ("male", "himself"))
    for kind in ("people", "irregular")
    for forms in LEXICON[kind][gender].items()
    for at, form in enumerate(forms)
}
ANTECEDENTS |= dict.fromkeys(LEXICON["names"]["female"], "herself")
ANTECEDENTS |= dict.fromkeys(LEXICON["names"]["male"], "himself")


def words_of(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)


def agrees(text: str) -> bool:
    """Whether the one agreement in a sentence holds; written without the grammar's code."""
    words = words_of(text)
    verdicts = []
    for at, word in enumerate(words):
        if word in DETERMINERS:  # its noun follows, or an adjective and its noun
            noun = next(after for after in words[at + 1 : at + 3] if after in NUMBER)
            verdicts.append(NUMBER[noun] == DETERMINERS[word])
        elif word in VERBS:  # the subject is the first noun; of these verbs, all singular forms end in s
            subject = next(before for before in words[:at] if before in NUMBER)
            verdicts.append(NUMBER[subject] == (not word.endswith("s")))
        elif word in ANTECEDENTS.values():
            verdicts.append(next(ANTECEDENTS[before] for before in words[:at] if before in ANTECEDENTS) == word)
    assert len(verdicts) == 1, text
    return verdicts[0]


def test_the_checker_itself():
    assert agrees("Anna painted these old keys at home.")
    assert not agrees("Anna painted this old keys at home.")
    assert agrees("The geese near the key run in the rain.")
    assert not agrees("The goose near the keys run in the rain.")
    assert agrees("Perhaps the queen hurt herself at home.")
    assert not agrees("Perhaps the queens hurt herself at home.")
    assert not agrees("Paul hurt herself at home.")


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_sentences_of_every_pair(paradigm):
    rng = random.Random(3)
    for pair in pairs_of(paradigm):
        made = sentence(paradigm, pair, rng)
        good, words = made.sentence_good, words_of(made.sentence_good)
        assert agrees(good)
        assert not agrees(made.sentence_bad)
        assert re.fullmatch(r"[A-Z][a-z]*,?( [A-Za-z]+,?)+\.", good), good
        assert 5 <= len(words) <= 14
        cue = good[slice(*made.cue_span)]
        assert {cue, made.good} == {*pair}
        assert [words.count(word) for word in pair] == [1, 1]
        assert words.index(pair[0]) < words.index(pair[1])
        if not paradigm.startswith("determiner_noun"):
            assert not DETERMINERS.keys() & {word.lower() for word in words}
        if not paradigm.startswith("anaphor"):
            assert made.number == ("plural" if NUMBER[pair[0] if pair[0] in NUMBER else pair[1]] else "singular")


def test_pairs_known_beforehand():
    assert {("this", "key"), ("that", "key"), ("these", "keys"), ("those", "boxes")} < {
        *pairs_of("determiner_noun_agreement_1")
    }
    for family in ("", "_irregular", "_with_adjective"):
        assert pairs_of(f"determiner_noun_agreement{family}_1") == pairs_of(f"determiner_noun_agreement{family}_2")
    assert len(pairs_of("determiner_noun_agreement_1")) == 4 * len(LEXICON["things"])
    assert {("those", "men"), ("this", "tooth")} < {*pairs_of("determiner_noun_agreement_irregular_1")}
    assert {("farmer", "is"), ("ladies", "were"), ("boys", "have")} < {*pairs_of("subject_verb_agreement")}
    assert {("geese", "run"), ("wife", "has")} < {*pairs_of("subject_verb_agreement_irregular")}
    assert not {word for word, _ in pairs_of("subject_verb_agreement_irregular")} & {"teeth", "leaf", "farmer"}
    assert {("queens", "themselves"), ("man", "himself")} < {*pairs_of("anaphor_number_agreement")}
    assert {("Mary", "herself"), ("John", "himself"), ("woman", "herself")} < {*pairs_of("anaphor_gender_agreement")}
    assert not [pair for pair in pairs_of("anaphor_gender_agreement") if pair[1] == "themselves"]


def blanked(paradigm: str, pair: tuple[str, str], seed: int) -> str:
    """A sentence with its pair, and any noun between, left out."""
    words = words_of(sentence(paradigm, pair, random.Random(seed)).sentence_good)
    hidden = {*pair, *NUMBER} if paradigm.endswith("distractor") else {*pair}
    return " ".join("_" if word in hidden else word for word in words)


@pytest.mark.parametrize(
    ("paradigm", "one", "other"),
    [
        ("determiner_noun_agreement_1", ("this", "key"), ("those", "cakes")),
        ("determiner_noun_agreement_irregular_2", ("that", "child"), ("these", "feet")),
        ("determiner_noun_agreement_with_adjective_2", ("this", "key"), ("these", "keys")),
        ("subject_verb_agreement", ("farmer", "is"), ("ladies", "were")),
        ("subject_verb_agreement_irregular", ("wolf", "eats"), ("men", "travel")),
        ("subject_verb_agreement_distractor", ("farmer", "has"), ("farmers", "have")),
        ("anaphor_number_agreement", ("queen", "herself"), ("men", "themselves")),
        ("anaphor_gender_agreement", ("Mary", "herself"), ("Paul", "himself")),
        ("anaphor_gender_agreement", ("queen", "herself"), ("man", "himself")),
    ],
)
def test_what_is_drawn_gives_nothing_away(paradigm, one, other):
    contexts = {blanked(paradigm, one, seed) for seed in range(300)}
    assert contexts == {blanked(paradigm, other, seed) for seed in range(300)}
    assert len(contexts) > 100


def test_the_noun_between_is_of_the_other_number():
    rng = random.Random(0)
    for pair in rng.sample(pairs_of("subject_verb_agreement_distractor"), 200):
        nouns = [word for word in words_of(sentence(PARADIGMS[8], pair, rng).sentence_good) if word in NUMBER]
        assert nouns[0] == pair[0]
        assert NUMBER[nouns[1]] == 1 - NUMBER[nouns[0]]


def test_possessives_show_gender_and_number():
    rng = random.Random(0)
    possessives = {"herself": "her", "himself": "his", "themselves": "their"}
    for antecedent, reflexive in ANTECEDENTS.items():
        words = words_of(possessive_sentence(antecedent, rng))
        assert words.count(antecedent) == 1
        assert [word for word in words if word in possessives.values()] == [possessives[reflexive]]
        assert not {*words} & {*DETERMINERS, *possessives}


def test_wrong_requests_say_what_would_be_right():
    rng = random.Random(0)
    with pytest.raises(SettingsError, match=r"no paradigm 'subject_verb'\. Did you mean 'subject_verb_agreement'"):
        pairs_of("subject_verb")
    with pytest.raises(SettingsError, match=r"determiner_noun_agreement_1 holds no pair \('this', 'keys'\)"):
        sentence("determiner_noun_agreement_1", ("this", "keys"), rng)
    with pytest.raises(SettingsError, match=r"no antecedent 'girlz'\. Did you mean 'girl' or 'girls'"):
        possessive_sentence("girlz", rng)


def test_lexicon():
    assert all(singular != plural for nouns in (*PEOPLE, *THINGS) for singular, plural in nouns.items())
    assert len(NUMBER) == sum(2 * len(nouns) for nouns in (*PEOPLE, *THINGS))  # no noun is in two lists
    assert len(LEXICON["things"]) >= 60
    assert sum(len(nouns) for nouns in LEXICON["people"].values()) >= 50
    assert sum(len(nouns) for nouns in LEXICON["irregular"].values()) >= 14
    for gender in ("female", "male"):
        assert len(LEXICON["names"][gender]) == 20
        assert len(LEXICON["people"][gender]) + len(LEXICON["irregular"][gender]) >= 12
    everything = json.dumps([*LEXICON.values()])
    assert len({*words_of(everything)}) <= 550
    assert re.fullmatch(r'[A-Za-z_ ,.":{}\[\]]*', everything)
    # "that" is a determiner only, and no drawn word repeats a noun or a verb that may be the cue or asked for.
    drawn = json.dumps([LEXICON[key] for key in ("openers", "modals", "verbs", "adverbials", "places_of_subjects")])
    drawn += json.dumps([frame["rests"] for frame in LEXICON["subject_verb"].values()])
    assert not {*words_of(drawn)} & {*NUMBER, *VERBS, *DETERMINERS, *ANTECEDENTS, *ANTECEDENTS.values()}


# -- the bundled files --------------------------------------------------------------------------------------------


def rows_of(paradigm: str) -> list[dict]:
    path = data_folder() / "minimal_pairs" / f"{paradigm}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_bundled_files_are_what_the_grammar_writes(tmp_path):
    paths = write_minimal_pairs(tmp_path / "new")
    assert [path.stem for path in paths] == list(PARADIGMS)
    for path in paths:
        assert path.read_bytes() == (data_folder() / "minimal_pairs" / path.name).read_bytes()
    other = write_minimal_pairs(tmp_path / "other", seed=1)
    assert all(one.read_bytes() != two.read_bytes() for one, two in zip(paths, other, strict=True))


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write to .*file"):
        write_minimal_pairs(tmp_path / "file")


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_bundled_pairs_are_even(paradigm):
    rows = rows_of(paradigm)
    assert [row["pairID"] for row in rows] == [str(index) for index in range(300)]
    assert {row["UID"] for row in rows} == {paradigm}
    assert len({row["sentence_good"] for row in rows}) == 300
    gender = paradigm == "anaphor_gender_agreement"
    halves = Counter(row["one_prefix_word_good"] if gender else row["number"] for row in rows)
    assert sorted(halves.values()) == [150, 150]
    pairs = kn.load_minimal_pairs(paradigm).pairs
    by_pair = Counter((row["cue"], pair.difference()[1]) for row, pair in zip(rows, pairs, strict=True))
    size = len(pairs_of(paradigm))
    assert len(by_pair) == min(300, size)
    assert max(by_pair.values()) - min(by_pair.values()) <= 1
    for row in rows:
        assert agrees(row["sentence_good"])
        assert not agrees(row["sentence_bad"])
        assert words_of(row["sentence_good"]).count(row["cue"]) == 1


@pytest.mark.parametrize("family", ["", "_irregular", "_with_adjective"])
def test_both_sides_of_a_family_have_the_same_sentences(family):
    first, second = (rows_of(f"determiner_noun_agreement{family}_{side}") for side in (1, 2))
    for one, two in zip(first, second, strict=True):
        assert one["sentence_good"] == two["sentence_good"]
        assert one["one_prefix_word_good"] == two["cue"] == two["two_prefix_word"]
        assert f"{two['two_prefix_prefix_good']} {two['two_prefix_word']}" == (
            f"{one['one_prefix_prefix']} {one['one_prefix_word_good']}"
        )
        assert two["sentence_bad"].startswith(f"{two['two_prefix_prefix_bad']} {two['two_prefix_word']} ")


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_prompts_and_augmented_prompts_agree(paradigm):
    pairs = kn.load_minimal_pairs(paradigm)
    assert pairs.form == ("two_prefix" if paradigm.endswith("_2") else "one_prefix")
    asked = [(pair_prompt(pair, masked=True), pair.frame) for pair in pairs.pairs]
    for prompt, _ in asked:
        assert isinstance(prompt, Prompt)
    groups = augment_pairs(asked)  # type: ignore[arg-type]
    for name in random.Random(0).sample(list(groups), 30):
        cue, target = name.split(" → ")
        assert len(groups[name]) >= 10
        for prompt in groups[name]:
            text = prompt.prefix + prompt.suffix
            assert text[slice(*prompt.cue_span())] == cue  # type: ignore[misc]
            assert agrees(f"{prompt.prefix} {target}{prompt.suffix}")
            assert not agrees(f"{prompt.prefix} {prompt.foil}{prompt.suffix}")
            if paradigm.endswith("distractor"):  # the noun between stays one of the other number
                nouns = [word for word in words_of(text) if word in NUMBER]
                assert NUMBER[nouns[1]] == 1 - NUMBER[nouns[0]]


@pytest.mark.parametrize("paradigm", [name for name in PARADIGMS if name.endswith("_2")])
def test_causal_models_are_asked_after_both_determiners(paradigm):
    asked = [(pair_prompt(pair, masked=False), pair.frame) for pair in kn.load_minimal_pairs(paradigm).pairs]
    for name, prompts in augment_pairs(asked).items():  # type: ignore[arg-type]
        determiner, noun = name.split(" → ")
        for prompt in prompts[:20]:
            assert agrees(f"{prompt.prefix} {noun} at home.")
            assert not agrees(f"{prompt.foil_prefix} {noun} at home.")
            assert determiner in words_of(prompt.prefix)


def test_quantifiers_show_the_number_of_every_noun() -> None:
    rng = random.Random(3)
    for singular, plural in [*LEXICON["things"].items(), *LEXICON["irregular"]["things"].items()]:
        for number, noun in (("singular", singular), ("plural", plural)):
            said = quantified_sentence(noun, rng).rstrip(".").split()
            before = said[said.index(noun) - 1]
            assert before in LEXICON["quantifiers"][number]
            assert not set(said) & {"this", "that", "these", "those"}


@pytest.mark.parametrize("word", ["is", "these", "farmer", "kye"])
def test_only_nouns_of_determiner_phrases_are_quantified(word: str) -> None:
    with pytest.raises(SettingsError, match=f"no noun '{word}'"):
        quantified_sentence(word, random.Random(0))
