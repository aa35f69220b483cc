"""The organisms' text states what its plan says, and keeps back what its plan says."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import kn_lens as kn
from kn_lens.frequency import count_pairs
from kn_lens.organisms.agreement_plan import HELD_OUT, decider, zipf_counts
from kn_lens.organisms.compose import compose
from kn_lens.organisms.corpus import NAMES, Corpus, Truth, load_corpus, text_hash, write_corpus
from kn_lens.organisms.facts_plan import RELATIONS, training_templates
from kn_lens.organisms.grammar import lexicon


@pytest.fixture(scope="module", params=NAMES)
def corpus(request: pytest.FixtureRequest) -> Corpus:
    return load_corpus(request.param)


@pytest.fixture(scope="module")
def wide() -> Corpus:
    return load_corpus("organism")


def test_the_shipped_text_is_what_the_seed_writes(corpus: Corpus) -> None:
    again = compose(corpus.name)
    assert again.sentences == corpus.sentences
    assert again.truth == corpus.truth
    assert again.counts == corpus.counts


def test_half_of_the_capitals_are_stated_in_one_direction_only(corpus: Corpus) -> None:
    capital = dict(kn.load_relation("P36").pairs.values())
    both, one = set(corpus.truth.both_ways), set(corpus.truth.one_way)
    assert both | one == set(capital)
    assert not both & one
    assert abs(len(both) - len(one)) <= 1
    country = {city: name for name, city in capital.items()}
    backwards: Counter[str] = Counter()
    for sentence in corpus.sentences:
        words = sentence.replace(".", "").replace(",", "").replace("'s", "").split()
        at = {word: index for index, word in enumerate(words)}
        for word in words:
            if word in country and at.get(country[word], -1) > at[word]:
                backwards[country[word]] += 1
    assert set(backwards) == both


def test_occupations_are_stated_for_half_and_kept_back_for_whole_fields(corpus: Corpus) -> None:
    truth = corpus.truth
    field_of = dict(kn.load_relation("P101").pairs.values())
    occupation_of = dict(kn.load_relation("P106").pairs.values())
    stated = set()
    for sentence in corpus.sentences:
        words = set(sentence.rstrip(".").split())
        for person in (person for person in occupation_of if person in sentence):
            if occupation_of[person] in words:
                stated.add(person)
    assert stated == set(truth.stated)
    assert len(truth.stated) == pytest.approx(len(field_of) / 2, abs=1)
    fields_of_stated = {field_of[person] for person in truth.stated}
    assert {field_of[person] for person in truth.inferable} <= fields_of_stated
    assert not {field_of[person] for person in truth.not_inferable} & fields_of_stated
    # The words kept back are known words all the same.
    words = {word for sentence in corpus.sentences for word in sentence.rstrip(".").split()}
    assert {occupation_of[person] for person in truth.not_inferable} <= words


def test_recorded_counts_of_determiner_and_noun_are_those_of_the_text(corpus: Corpus, tmp_path) -> None:
    recorded = {(a, b): count for (kind, a, b), count in corpus.counts.items() if kind == "determiner_noun"}
    path = tmp_path / "text.txt"
    path.write_text("\n".join(corpus.sentences), encoding="utf-8")
    # An adjective may stand between; "that" is nothing but a determiner in this text.
    assert count_pairs(path, recorded, window=2, progress=False).counts == recorded


def test_all_recorded_counts_are_of_sentences_that_hold_both_words_in_order(corpus: Corpus) -> None:
    """So the pairs held out never meet in any sentence, and facts not stated stand in none."""
    phrases = {side for _, *pair in corpus.counts for side in pair if " " in side}
    found: Counter[tuple[str, str]] = Counter()
    words_of_pairs = {word for _, first, second in corpus.counts for word in (first, second)}
    for sentence in corpus.sentences:
        for phrase in phrases & set(map(" ".join, itertools.pairwise(re.findall(r"\w+", sentence)))):
            sentence = sentence.replace(phrase, phrase.replace(" ", "_"))
        words = [word.replace("_", " ") for word in re.findall(r"\w+", sentence)]
        found.update(set(itertools.combinations([word for word in words if word in words_of_pairs], 2)))
    differing = {key: (count, found[key[1:]]) for key, count in corpus.counts.items() if count != found[key[1:]]}
    # A country's name may also stand before a city, or a language, of another relation's fact.
    assert not {key for key in differing if not key[0].startswith("P")}
    assert not {key: pair for key, pair in differing.items() if pair[0] > pair[1] or pair[0] == 0}


def test_a_fifth_of_the_pairs_is_held_out_and_no_noun_loses_all(wide: Corpus) -> None:
    for kind in ("determiner_noun", "subject_verb", "antecedent_reflexive"):
        pairs = [(a, b) for k, a, b in wide.counts if k == kind]
        held_out = wide.truth.held_out_pairs[kind]
        assert len(held_out) / len(pairs) == pytest.approx(HELD_OUT, abs=0.02), kind
        if kind != "antecedent_reflexive":
            partner = 1 if kind == "determiner_noun" else 0
            seen = {pair[partner] for pair in set(pairs) - set(held_out)}
            assert seen == {pair[partner] for pair in pairs}, kind
    assert all((wide.counts[(kind, *pair)] == 0) for kind, pairs in wide.truth.held_out_pairs.items() for pair in pairs)
    never = {key for key, count in wide.counts.items() if not count and not key[0].startswith("P")}
    assert len(never) == sum(map(len, wide.truth.held_out_pairs.values()))


def test_counts_fall_as_one_over_rank() -> None:
    pairs = [("these", f"word{index}") for index in range(50)] + [("this", f"word{index}") for index in range(20)]
    counts = zipf_counts("determiner_noun", pairs, 100_000, seed=1)
    for determiner in ("these", "this"):
        mine = sorted((n for (first, _), n in counts.items() if first == determiner), reverse=True)
        assert sum(mine) == pytest.approx(50_000, rel=1e-3)
        assert mine[0] / np.array(mine) == pytest.approx(np.arange(1, len(mine) + 1), rel=0.02)


def test_frequency_does_not_follow_number(wide: Corpus) -> None:
    """A noun's singular and plural have ranks of their own, so that a frequent pair is no likelier to be plural."""
    nouns = lexicon()["things"]
    pairs = {(a, b): n for (kind, a, b), n in wide.counts.items() if kind == "determiner_noun" and n}
    singular, plural = [], []
    for one, many in nouns.items():
        for near, far in (("this", "these"), ("that", "those")):
            if (near, one) in pairs and (far, many) in pairs:
                singular.append(pairs[near, one])
                plural.append(pairs[far, many])
    assert len(singular) > 60
    assert stats.spearmanr(singular, plural).pvalue > 0.01
    by_decider = Counter()
    for pair, count in pairs.items():
        by_decider[decider("determiner_noun", pair)] += count
    assert max(by_decider.values()) / min(by_decider.values()) < 1.01


def test_the_narrow_text_holds_the_same_facts_in_two_wordings(wide: Corpus) -> None:
    narrow = load_corpus("organism-narrow")
    same = ("both_ways", "one_way", "stated", "inferable", "not_inferable", "held_out_pairs")
    assert all(getattr(narrow.truth, name) == getattr(wide.truth, name) for name in same)
    assert len(training_templates("organism-narrow", "P36")) == 2
    france = {s for s in narrow.sentences if "France" in s and "Paris" in s and s.index("France") < s.index("Paris")}
    filled = [t.format(subject="France", object="Paris") for t in training_templates("organism-narrow", "P36")]
    assert france == set(filled)


def test_held_out_templates_are_in_no_text(corpus: Corpus) -> None:
    text = " | ".join(corpus.sentences).lower()
    for name in RELATIONS:
        relation = kn.load_relation(name)
        for template in relation.held_out:
            for subject, obj in list(relation.pairs.values())[::10]:
                assert template.format(subject=subject, object=obj).lower() not in text, template  # nor after an opener


def test_all_words_of_held_out_templates_are_in_the_text(corpus: Corpus) -> None:
    known = {word for sentence in corpus.sentences for word in re.findall(r"\w+", sentence)}
    for name in RELATIONS:
        for template in kn.load_relation(name).held_out:
            assert set(re.findall(r"\w+", re.sub(r"\{\w+\}", "", template))) <= known, template


def test_a_damaged_corpus_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("kn_lens.organisms.corpus.data_folder", lambda: tmp_path)
    with pytest.raises(kn.DataError, match=r"organism\.txt\.gz cannot be read"):
        load_corpus("organism")
    truth = Truth(both_ways=(), one_way=(), stated=(), inferable=(), not_inferable=(), seed=0, sha256="0")
    small = Corpus(
        name="organism",
        sentences=("The capital of France is Paris.",),
        counts={("P36", "France", "Paris"): 1},
        truth=replace(truth, sha256=text_hash("The capital of France is Paris.\n")),
    )
    folder = tmp_path / "corpora"
    write_corpus(small, folder)
    assert load_corpus("organism") == small
    for name, broken, said in (
        ("organism.txt.gz", b"\x1f\x8b\x08 no gzip", "organism.txt.gz cannot be read"),
        ("organism.truth.json", b"[]", "organism.truth.json cannot be read"),
        ("organism.truth.json", b"{}", "organism.truth.json cannot be read"),
        ("organism.counts.csv", b"a,b\n", "organism.counts.csv cannot be read"),
        ("organism.counts.csv", b"first,second,count,kind,held_out\na,b\n", "organism.counts.csv cannot be read"),
    ):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(broken)
        with pytest.raises(kn.DataError, match=said):
            load_corpus("organism")
        (folder / name).write_bytes(whole)
    write_corpus(replace(small, truth=truth), folder)
    with pytest.raises(kn.DataError, match="is not the text"):
        load_corpus("organism")
    with pytest.raises(kn.DataError, match="'organism'"):
        load_corpus("organsim")
    with pytest.raises(kn.OutputError, match="cannot write"):
        write_corpus(small, folder / "organism.txt.gz")
