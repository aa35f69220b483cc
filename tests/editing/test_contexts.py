"""Prefixes are sampled from the model itself: the same ones each time, and nothing else is touched."""

from __future__ import annotations

import copy

import pytest
import torch

from kn_lens.editing import contexts
from kn_lens.editing.contexts import LENGTHS, sample_tokens, sampled_prefixes
from kn_lens.editing.edit import Edit
from kn_lens.errors import ModelError
from kn_lens.models.kind import model_name
from tests.questions import assert_same_state, state_of

SHORT = ((2, 3), (4, 2))


def edit_of(model):
    name = "blocks.2.mlp.b_out"
    return Edit(
        editor="by hand",
        fact=None,
        rows={name: torch.tensor([0])},
        changes={name: 10 * torch.randn(1, model.cfg.d_model, generator=torch.Generator().manual_seed(0))},
        settings={},
        provenance={"model": model_name(model)},
    )


def read(model, tokens):
    """The tokens as the model reads them: of llama behind a BOS."""
    bos = model.tokenizer("The")["input_ids"][:-1]
    assert len(bos) == (model.cfg.original_architecture == "LlamaForCausalLM")
    return torch.cat([torch.tensor([bos], dtype=torch.long).expand(len(tokens), -1), tokens], dim=1)


def test_there_are_ten_of_five_tokens_and_ten_of_ten(organism):
    """As the published code samples them; the word that each begins with comes on top."""
    assert LENGTHS == ((5, 10), (10, 10))
    model = organism("tiny-causal")
    texts = sampled_prefixes(model)
    assert len(texts) == 20
    assert all(text == " ".join(text.split()) and text.endswith((".", "!", "?")) for text in texts)
    for text, length in zip(texts, [5] * 10 + [10] * 10, strict=True):
        # A full stop may have been put behind, and an end mark within is not text.
        assert len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) <= length + 2
    starts = ("The", "Therefore", "Because", "I", "You")
    assert all(text.startswith(starts) for text in texts)


def test_the_state_of_the_weights_and_the_seed_make_the_prefixes(random_model):
    model = random_model("gpt2")
    before, first = state_of(model), sampled_prefixes(model, lengths=SHORT)
    assert len(first) == 5
    assert_same_state(model, before)
    assert sampled_prefixes(model, lengths=SHORT) is first  # not sampled again
    assert sampled_prefixes(copy.deepcopy(model), lengths=SHORT) == first
    assert sampled_prefixes(model, seed=1, lengths=SHORT) != first
    with edit_of(model).applied(model):
        edited = sampled_prefixes(model, lengths=SHORT)
    assert edited != first
    assert sampled_prefixes(model, lengths=SHORT) is first


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "qwen2"])
def test_each_token_is_among_the_likeliest_five(exact_model, family):
    model = exact_model(family)
    before = state_of(model)
    tokens = sample_tokens(model, 7, 6, seed=3, top_k=5)
    assert_same_state(model, before)
    assert tokens.shape == (7, 6)
    words = [model.tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("The", "I", "You")]
    starts = [ids[0] for ids in words if len(ids) == 1]
    assert tokens[:, 0].tolist() == (starts * 7)[:7]
    with torch.no_grad():
        likeliest = model(read(model, tokens))[:, -6:].topk(5, dim=-1).indices
    chosen = (likeliest[:, :-1] == tokens[:, 1:, None]).any(-1)
    assert bool(chosen.all())
    ranks = (likeliest[:, :-1] == tokens[:, 1:, None]).long().argmax(-1)
    assert len(ranks.unique()) > 2  # sampled, not the likeliest each time


def test_of_one_token_the_likeliest_is_taken(exact_model):
    model = exact_model("llama")
    tokens = sample_tokens(model, 2, 5, top_k=1)
    with torch.no_grad():
        for at in range(1, 5):
            assert torch.equal(model(read(model, tokens[:, :at]))[:, -1].argmax(-1), tokens[:, at])


def test_tokens_come_as_often_as_the_model_says(random_model):
    """Temperature 1: of 4000 draws each frequency is within five standard deviations."""
    model, count = random_model("gpt_neox"), 4000
    tokens = sample_tokens(model, count, 2, seed=1)
    begin = int(tokens[0, 0])
    second = tokens[tokens[:, 0] == begin][:, 1]
    with torch.no_grad():
        p = model(torch.tensor([[begin]]))[0, -1].double().softmax(-1)
    frequency = torch.bincount(second, minlength=model.cfg.d_vocab).double() / len(second)
    deviation = (p * (1 - p) / len(second)).sqrt()
    assert len(second) > 1000
    assert float(((frequency - p).abs() / (deviation + 1 / len(second))).max()) < 5
    assert float(p.max()) < 0.9


def test_seeds_count_and_the_global_generator_does_not(random_model):
    model = random_model("gpt2")
    torch.manual_seed(1)
    first = sample_tokens(model, 3, 8, seed=5)
    drawn = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(2), drawn)
    assert torch.equal(sample_tokens(model, 3, 8, seed=5), first)
    assert not torch.equal(sample_tokens(model, 3, 8, seed=6), first)


def test_more_texts_than_are_sampled_at_once(random_model, monkeypatch):
    monkeypatch.setattr(contexts, "_ROWS_AT_ONCE", 4)
    tokens = sample_tokens(random_model("gpt2"), 10, 3, top_k=1)
    assert tokens.shape == (10, 3)
    monkeypatch.undo()
    assert torch.equal(sample_tokens(random_model("gpt2"), 10, 3, top_k=1), tokens)
    assert sample_tokens(random_model("gpt2"), 5, 1).shape == (5, 1)


@pytest.mark.parametrize(
    ("sampled", "text"),
    [
        ("The boys sing", "The boys sing."),
        ("The  boys\n\nsing .", "The boys sing."),
        ("Was it Rome ? And", "Was it Rome? And."),
        ("They sing , they run !", "They sing, they run!"),
    ],
)
def test_sampled_tokens_become_a_text_that_a_prompt_can_follow(random_model, sampled, text):
    model = random_model("gpt2")
    assert contexts._as_sentence(model, model.tokenizer(sampled)["input_ids"]) == text


def test_a_tokenizer_without_those_words_begins_with_its_own_start(random_model, monkeypatch):
    model = random_model("gpt2")
    monkeypatch.setattr(contexts, "_STARTS", ("Zyzzyva", "Xylophones"))
    assert contexts._start_tokens(model) == [model.tokenizer.bos_token_id]


def test_masked_models_write_nothing(random_model):
    with pytest.raises(ModelError, match=r"is a masked model, which writes no text of its own; give texts or a file"):
        sampled_prefixes(random_model("bert"))
