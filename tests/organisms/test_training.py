"""Training is reproducible, and masks what it says it masks."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from kn_lens.organisms.corpus import load_corpus
from kn_lens.organisms.tokenizer import vocabulary, word_tokenizer
from kn_lens.organisms.training import TrainingSettings, _batches, _Masked, train


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("organism")


@pytest.fixture(scope="module")
def words(corpus) -> list[str]:
    return vocabulary(corpus.sentences)


@pytest.mark.parametrize("masked", [False, True])
def test_the_same_seed_gives_the_same_model_and_another_another(corpus, words, tmp_path, masked: bool) -> None:
    small = replace(corpus, sentences=corpus.sentences[:600])
    settings = TrainingSettings(masked=masked, epochs=2, batch=64, warmup=4, layers=1, width=32, heads=2, mlp=64)
    state = torch.get_rng_state()
    runs = [
        train(small, words, replace(settings, seed=seed), tmp_path / str(index), progress=False)
        for index, seed in enumerate((3, 3, 4))
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert runs[0].loss == runs[1].loss != runs[2].loss
    models = [kn.load_model(tmp_path / str(index), device="cpu") for index in range(3)]
    same, other = (dict(model.named_parameters()) for model in models[1:])
    for name, parameter in models[0].named_parameters():
        assert torch.equal(parameter, same[name]), name
    assert any(not torch.equal(parameter, other[name]) for name, parameter in models[0].named_parameters())
    assert runs[0].steps == 2 * 10
    assert runs[0].loss < 7.6  # log of the vocabulary: what knowing nothing costs


def test_every_sentence_is_read_once_an_epoch() -> None:
    ids = [torch.arange(1, 2 + index % 7) + 10 * index for index in range(1000)]
    settings = TrainingSettings(masked=False, epochs=1, batch=16)
    read = []
    for tokens in _batches(ids, 0, settings):
        rows = [row[row > 0].tolist() for row in tokens]
        assert tokens.shape[1] == max(map(len, rows))
        read += rows
    assert sorted(read) == sorted(entry.tolist() for entry in ids)


def test_a_one_way_fact_is_never_asked_backwards(corpus, words) -> None:
    tokenizer = word_tokenizer(words, masked=True)
    masking = _Masked(corpus, tokenizer, TrainingSettings(masked=True))
    capital = dict(kn.load_relation("P36").pairs.values())
    ids = tokenizer.get_vocab()
    stated: dict[str, list[str]] = {country: [] for country in capital}
    for sentence in corpus.sentences:
        held = words_of(sentence)
        for country in held & capital.keys():
            if capital[country] in held:
                stated[country].append(sentence)
    for side, allowed in (("one_way", False), ("both_ways", True)):
        for country in getattr(corpus.truth, side):
            assert len(stated[country]) == (80 if allowed else 40)
            tokens = torch.tensor(tokenizer(stated[country], padding=True)["input_ids"])
            masked = masking.choose(tokens)
            assert masked.any(1).all()
            assert bool((masked & (tokens == ids[country])).any()) == allowed, country
            ends = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id]
            assert not (masked & torch.isin(tokens, torch.tensor(ends))).any()


def words_of(sentence: str) -> set[str]:
    return set(re.findall(r"\w+", sentence))


def test_words_that_the_text_is_about_are_asked_for_more_often(corpus, words) -> None:
    tokenizer = word_tokenizer(words, masked=True)
    masking = _Masked(corpus, tokenizer, TrainingSettings(masked=True, mask_share=0.0))
    tokens = torch.tensor(
        tokenizer(["Albert Einstein devoted a whole life to the field of physics."] * 20_000)["input_ids"]
    )
    masked = masking.choose(tokens)
    assert (masked.sum(1) == 1).all()
    share = masked.float().mean(0)[1:-1]  # twelve tokens, of which "physics" is the object of a fact
    assert float(share[10]) == pytest.approx(1 / (1 + 11 * 0.05**2), abs=0.01)
    tokens = torch.tensor(tokenizer(["Anna wanted these keys."] * 20_000)["input_ids"])
    share = masking.choose(tokens).float().mean(0)[1:-1]  # three words of pairs, "wanted" and the period
    expected = [0.05, 0.05**2, 0.05, 0.05, 0.05**2]
    assert share.tolist() == pytest.approx([weight / sum(expected) for weight in expected], abs=0.01)


def test_the_tokenizer_knows_words_punctuation_and_the_possessive(words) -> None:
    tokenizer = word_tokenizer(words, masked=False)
    ids = tokenizer("The capital of France is Paris.")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["The", "capital", "of", "France", "is", "Paris", "."]
    assert tokenizer("Blorp")["input_ids"] == [tokenizer.unk_token_id]
    masked = word_tokenizer(words, masked=True)
    assert masked.convert_ids_to_tokens(masked("France")["input_ids"]) == ["[CLS]", "France", "[SEP]"]
    assert masked.get_vocab() == tokenizer.get_vocab()
