"""What a model writes, and how fluent it is, against loops and closed forms."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from kn_lens.criteria.fluency import ngram_entropy, perplexity
from kn_lens.criteria.generation import before_after, continuations, generate
from kn_lens.editing.edit import Edit
from kn_lens.errors import ModelError, PromptError, SettingsError
from kn_lens.models.hashing import weights_hash
from kn_lens.prompts.tokens import TokenResolver

CAUSAL = ("gpt2", "gpt_neox", "llama", "qwen2")
TEXTS = ("The dog", "The capital of France is", "The cat", "It was not the")


def likeliest(model, text, tokens):
    ids = TokenResolver(model).encode(text)
    start = len(ids)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[start:]


@pytest.mark.parametrize("family", CAUSAL)
def test_greedy_takes_the_likeliest_token_at_each_step(exact_model, family):
    model = exact_model(family)
    found = continuations(model, TEXTS, tokens=6)
    assert [row.tolist() for row in found] == [likeliest(model, text, 6) for text in TEXTS]


@pytest.mark.parametrize("family", CAUSAL)
def test_text_is_the_prompt_and_what_the_tokens_say(exact_model, family):
    model = exact_model(family)
    (text,) = generate(model, "The dog", tokens=6)
    ids = likeliest(model, "The dog", 6)
    if model.tokenizer.eos_token_id in ids:
        ids = ids[: ids.index(model.tokenizer.eos_token_id)]
    assert text == model.tokenizer.decode(TokenResolver(model).encode("The dog") + ids, skip_special_tokens=True)
    assert text.startswith("The dog")


def test_sampling_draws_from_the_likeliest_and_leaves_torch_alone(exact_model):
    model = exact_model("gpt2")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    drawn = {seed: continuations(model, ["The dog"], tokens=8, seed=seed, greedy=False)[0] for seed in range(4)}
    assert torch.equal(torch.rand(4), expected)
    again = continuations(model, ["The dog"], tokens=8, seed=2, greedy=False)[0]
    assert torch.equal(again, drawn[2])
    assert len({tuple(row.tolist()) for row in drawn.values()}) > 1
    for row in drawn.values():
        ids = TokenResolver(model).encode("The dog")
        for token in row.tolist():
            logits = model(torch.tensor([ids]))[0, -1]
            assert token in logits.topk(5).indices.tolist()
            ids.append(token)
    one = continuations(model, ["The dog"], tokens=8, greedy=False, top_k=1)[0]
    assert one.tolist() == likeliest(model, "The dog", 8)


def test_writing_ends_with_the_context(organism):
    model = organism("tiny-causal")
    text = "The capital of France is"
    (ids,) = continuations(model, [text], tokens=1000)
    assert len(ids) == model.cfg.n_ctx - len(TokenResolver(model).encode(text))
    assert generate(model, text, tokens=1) == ["The capital of France is Paris"]


def test_before_and_after_an_edit(organism):
    model = organism("tiny-causal")
    before = weights_hash(model)
    change = torch.zeros(1, model.cfg.d_vocab)
    change[0, model.tokenizer(" Rome")["input_ids"][0]] = 100.0
    edit = Edit(
        editor="by hand",
        fact=None,
        rows={"unembed.b_U": torch.tensor([0])},
        changes={"unembed.b_U": change},
        settings={},
        provenance={},
    )
    frame = before_after(model, edit, ["The capital of France is", "The capital of Spain is"], tokens=1)
    assert frame["before"].tolist() == ["The capital of France is Paris", "The capital of Spain is Madrid"]
    assert frame["after"].tolist() == ["The capital of France is Rome", "The capital of Spain is Rome"]
    assert weights_hash(model) == before


def test_entropies_in_closed_form():
    # Tokens all different: n − 1 bigrams and n − 2 trigrams, each once.
    assert ngram_entropy([range(10)]) == pytest.approx((math.log2(9) + 2 * math.log2(8)) / 3)
    assert ngram_entropy([[7] * 10]) == 0.0
    # 0 1 0 1 0: bigrams 01 and 10 twice each; trigrams 010 twice, 101 once.
    trigrams = -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
    assert ngram_entropy([[0, 1, 0, 1, 0]]) == pytest.approx((1 + 2 * trigrams) / 3)
    published = (2 / 3 * 1 + 4 / 3 * trigrams) / 2
    assert ngram_entropy([[0, 1, 0, 1, 0]]) == pytest.approx(published)
    assert ngram_entropy([[7] * 10, range(10), [1, 2]]) == pytest.approx(ngram_entropy([range(10)]) / 2)
    assert math.isnan(ngram_entropy([[1, 2]]))


@pytest.mark.parametrize("family", CAUSAL)
@torch.no_grad()
def test_perplexity_is_a_loop_over_tokens(exact_model, family):
    model = exact_model(family)
    texts = ["The dog sleeps and the cat eats .", "France is not Germany"]
    losses = []
    for text in texts:
        ids = TokenResolver(model).encode(text)
        for at in range(1, len(ids)):
            losses.append(-float(model(torch.tensor([ids[:at]]))[0, -1].log_softmax(-1)[ids[at]]))
    assert perplexity(model, texts) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-9)


@torch.no_grad()
def test_perplexity_in_half_precision_is_summed_in_single(exact_model):
    model = copy.deepcopy(exact_model("llama")).to(torch.bfloat16)
    ids = TokenResolver(model).encode("The dog sleeps and the cat eats .")
    log_p = model(torch.tensor([ids]))[0, :-1].double().log_softmax(-1)
    expected = -float(log_p.gather(1, torch.tensor(ids)[1:, None]).mean())
    assert math.log(perplexity(model, "The dog sleeps and the cat eats .")) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_long_texts_are_read_in_windows(exact_model):
    model = exact_model("gpt2")
    text = " ".join(["The dog sleeps and the cat eats ."] * 80)
    ids, size = TokenResolver(model).encode(text), model.cfg.n_ctx
    assert len(ids) > size
    total = count = 0
    for at in range(0, len(ids), size):
        window = torch.tensor([ids[at : at + size]])
        log_p = model(window)[0, :-1].log_softmax(-1).gather(1, window[0, 1:, None])
        total, count = total - float(log_p.sum()), count + len(log_p)
    assert perplexity(model, text) == pytest.approx(math.exp(total / count), rel=1e-9)


def test_what_cannot_be_written(exact_model):
    model = exact_model("gpt2")
    with pytest.raises(ModelError, match="masked model, which writes no text"):
        generate(exact_model("bert"), "The dog")
    with pytest.raises(ModelError, match="has no perplexity"):
        perplexity(exact_model("bert"), "The dog sleeps")
    with pytest.raises(SettingsError, match="tokens is 0"):
        generate(model, "The dog", tokens=0)
    with pytest.raises(PromptError, match="empty"):
        generate(model, [""])
    with pytest.raises(PromptError, match="no room to write"):
        generate(model, " ".join(["dog"] * (model.cfg.n_ctx + 1)))
    with pytest.raises(PromptError, match="at least two tokens"):
        perplexity(model, ["The"])
