"""The token resolver. User needs 1, 2, 11, 12, 20: the form is checked first, the space is never lost, ids only."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformer_lens import HookedTransformer
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

import kn_lens as kn
from kn_lens.errors import PromptError
from kn_lens.prompts.tokens import TokenResolver, UnusablePrompt
from kn_lens.scoring import target_distribution
from tests.helpers import FAMILIES, build_tokenizer, save_random_model
from tests.questions import likely_batch, questions

CAUSAL = [family for family in FAMILIES if family != "bert"]


def resolve(model, prefix, *, single_token=False, **fields):
    return TokenResolver(model).resolve(kn.Prompt(prefix, **fields), single_token=single_token)


def words(model, ids):
    return [model.tokenizer.decode([token]) for token in ids]


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("prefix", ["The capital of France is", "The capital of France is "])
@pytest.mark.parametrize("target", ["Paris", " Paris"])
def test_the_answer_carries_its_space(random_model, family, prefix, target):
    """User need 11: with or without a space in prefix or target, the tokens are those of the running text."""
    model = random_model(family)
    entry = resolve(model, prefix, target=target)
    assert list(entry.ids) + list(entry.target_ids) == model.tokenizer("The capital of France is Paris").input_ids
    assert words(model, entry.target_ids) == [" Paris"]
    assert entry.target_position == len(entry.ids) - 1


@pytest.mark.parametrize(("prefix", "expected"), [('He said "', "Paris"), ("He (", "Paris"), ("He said", " Paris")])
def test_no_space_after_an_opening_sign(random_model, prefix, expected):
    model = random_model("gpt2")
    assert words(model, resolve(model, prefix, target="Paris").target_ids) == [expected]


def test_a_bos_only_where_the_tokenizer_adds_one(random_model):
    """User needs 12 and 20."""
    prompt = kn.Prompt("The dogs", target="run")
    for family in FAMILIES:
        model = random_model(family)
        entry = TokenResolver(model).resolve(prompt)
        start = model.tokenizer.decode([entry.ids[0]])
        assert start == {"llama": "<s>", "bert": "[CLS]"}.get(family, "The")
        assert sum(token in model.tokenizer.all_special_ids for token in entry.ids) == {"llama": 1, "bert": 3}.get(
            family, 0
        )
        starts = kn.PromptBatch.from_prompts(model, [prompt]).starts_with_bos
        assert starts == (family in ("llama", "bert"))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_bos_can_be_forced_on_and_off(random_model, family):
    model = random_model(family)
    bos = model.tokenizer.bos_token_id
    prompt = kn.Prompt("The old dogs", target="run", cue="dogs")
    with_bos = TokenResolver(model, True).resolve(prompt)
    without = TokenResolver(model, False).resolve(prompt)
    assert with_bos.ids == (bos, *without.ids)
    assert bos not in without.ids
    assert with_bos.target_ids == without.target_ids
    assert words(model, [with_bos.ids[at] for at in with_bos.cue_positions]) == [" dogs"]
    assert words(model, [without.ids[at] for at in without.cue_positions]) == [" dogs"]
    batch = kn.PromptBatch.from_prompts(model, [prompt], prepend_bos=True)
    assert batch.prepend_bos is True
    assert batch.tokens[0, 0] == bos


def test_a_target_of_several_tokens(random_model):
    model = random_model("gpt2")
    entry = resolve(model, "It is", target="Parismouth")
    assert "".join(words(model, entry.target_ids)) == " Parismouth"
    with pytest.raises(UnusablePrompt, match=rf"'Parismouth' of 'It is' is {len(entry.target_ids)} tokens for"):
        resolve(model, "It is", target="Parismouth", single_token=True)
    batch = kn.PromptBatch.from_prompts(
        model,
        [kn.Prompt("It is", target="Parismouth"), kn.Prompt("It is", target="Paris")],
        targets="single",
        on_unusable="drop",
    )
    assert [entry.prompt.target for entry in batch.resolved] == ["Paris"]
    assert [entry.reason for entry in batch.dropped] == ["target is several tokens"]


def test_an_answer_that_merges_with_the_prompt_is_refused(random_model):
    """The blank may not cut a token: "- -" is one thing and "--" another."""
    model = random_model("gpt2")
    assert len(model.tokenizer("dogs").input_ids) == 1
    with pytest.raises(UnusablePrompt, match="shares a token with the end of 'an old-dog'"):
        _merging(model)


def _merging(model):
    resolver = TokenResolver(model)
    plain = resolver.encode
    prompt = kn.Prompt("an old-dog", target="s")

    def encode(text):  # a tokenizer that reads "dog" and "s" across the blank as "dogs"
        return plain(text.replace("dog s", "dogs"))

    resolver.encode = encode  # type: ignore[method-assign]
    return resolver.resolve(prompt)


def test_target_and_foil_that_share_tokens(random_model):
    """What both begin with moves before the blank; what both end in falls away; then one token each is left."""
    model = random_model("gpt2")
    resolver = TokenResolver(model)
    plain = resolver.resolve(kn.Prompt("It is", target="dog", foil="cat"))
    assert words(model, plain.target_ids + (plain.foil_ids or ())) == [" dog", " cat"]
    shared = resolver.resolve(kn.Prompt("It is", target="the dog", foil="the cat"))
    assert words(model, shared.ids) == ["It", " is", " the"]
    assert shared.target_position == 2
    assert words(model, shared.target_ids + (shared.foil_ids or ())) == [" dog", " cat"]
    end = resolver.resolve(kn.Prompt("It is", target="dog near", foil="cat near"))
    assert words(model, end.ids) == ["It", " is"]
    assert words(model, end.target_ids + (end.foil_ids or ())) == [" dog", " cat"]
    for target, foil in [("dog", "dog near"), ("old dog", "new cat"), ("dog", "red cat")]:
        with pytest.raises(UnusablePrompt, match="can be asked for one token"):
            resolver.resolve(kn.Prompt("It is", target=target, foil=foil))


@pytest.mark.parametrize("family", FAMILIES)
def test_cue_positions_before_the_blank(random_model, family):
    model = random_model(family)
    entry = resolve(model, "The big dogs near the old house", target="sleep", cue="big dogs")
    assert "".join(words(model, [entry.ids[at] for at in entry.cue_positions])).replace(" ", "") == "bigdogs"
    assert list(entry.cue_positions) == sorted(entry.cue_positions)
    by_span = resolve(model, "The big dogs near the old house", target="sleep", cue=(4, 12))
    assert by_span.cue_positions == entry.cue_positions


@pytest.mark.parametrize("suffix", [" dogs sleep.", "dogs sleep.", ", dogs sleep."])
@pytest.mark.parametrize("prefix", ["", "The", "The "])
def test_cue_positions_behind_the_blank(random_model, prefix, suffix):
    model = random_model("bert")
    entry = resolve(model, prefix, suffix=suffix, target="These", cue="dogs")
    assert words(model, [entry.ids[at] for at in entry.cue_positions]) == ["dogs"]
    assert entry.cue_positions[0] > entry.target_position
    assert entry.ids[entry.target_position] == model.tokenizer.mask_token_id
    assert entry.ids.count(model.tokenizer.mask_token_id) == 1


def test_cues_that_cannot_be_found_are_refused(random_model):
    model = random_model("gpt2")
    for cue, problem in [("cat", "does not occur"), ("dog", "occurs 2 times"), ((4, 99), "lies outside")]:
        with pytest.raises(UnusablePrompt, match=problem):
            resolve(model, "The dog and the dog", target="run", cue=cue)
    with pytest.raises(
        UnusablePrompt, match="stands behind the blank"
    ):  # a full stop, which a causal model is not shown
        resolve(model, "The dogs", suffix=".", target="run", cue=(8, 9))


def test_a_masked_prompt_keeps_the_text_on_both_sides(random_model):
    model = random_model("bert")
    entry = resolve(model, "The capital of", suffix=" is Paris.", target="France", foil="Spain")
    text = model.tokenizer("The capital of [MASK] is Paris.").input_ids
    assert list(entry.ids) == text
    assert words(model, entry.target_ids + (entry.foil_ids or ())) == ["France", "Spain"]
    with pytest.raises(UnusablePrompt, match="unknown for"):
        resolve(model, "The capital of", suffix=" is Paris.", target="Atlantis")
    with pytest.raises(UnusablePrompt, match="2 tokens for"):
        resolve(model, "The capital of", suffix=" is Paris.", target="old France")


def test_a_model_that_transformer_lens_loaded(random_model, tmp_path):
    """User needs 12 and 20: TransformerLens rebuilds the tokenizer of a model of one's own so that it adds a BOS.

    That BOS is then the tokenizer's own; the result says so, and ``prepend_bos=False`` takes it away.
    """
    plain = AutoTokenizer.from_pretrained(save_random_model(tmp_path / "own", "gpt2"))
    own = HookedTransformer(random_model("gpt2").cfg, tokenizer=plain)
    prompt = kn.Prompt("The old dogs", target="run", cue="dogs")
    as_loaded = kn.PromptBatch.from_prompts(own, [prompt])
    without = kn.PromptBatch.from_prompts(own, [prompt], prepend_bos=False)
    assert as_loaded.starts_with_bos
    assert list(as_loaded.resolved[0].ids) == own.to_tokens("The old dogs", prepend_bos=True)[0].tolist()
    assert not without.starts_with_bos
    assert list(without.resolved[0].ids) == plain("The old dogs").input_ids
    assert own.tokenizer is not None
    for batch in (as_loaded, without):
        assert [batch.token_labels(0)[at] for at in batch.resolved[0].cue_positions] == ["dogs"]


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["integrated_gradients", "suppress", "answers"])
def test_a_mask_in_a_causal_prompt_is_refused_first_thing(random_model, call):
    """User need 1: it used to crash deep in autograd."""
    prompt = kn.Prompt("The capital of France is [MASK]", target="Paris")
    arguments = ([(0, 0)],) if call == "suppress" else ()
    with pytest.raises(PromptError, match=r"has a \[MASK\] in its text, and .* is a causal model"):
        getattr(kn, call)(random_model("gpt2"), prompt, *arguments)


def test_a_mask_in_the_text_of_a_masked_prompt_is_refused_too(random_model):
    with pytest.raises(PromptError, match=r"write the blank as the gap between prefix and suffix"):
        kn.answers(random_model("bert"), kn.Prompt("The [MASK] of", suffix=" is.", target="France"))


def test_from_cloze_wants_one_mask():
    """User need 1: none in a masked prompt, or two, is said when the prompt is made."""
    with pytest.raises(PromptError, match=r"has no \[MASK\]; write exactly one"):
        kn.Prompt.from_cloze("Paris is in France.", "France")
    with pytest.raises(PromptError, match=r"has 2 \[MASK\]"):
        kn.Prompt.from_cloze("[MASK] is in [MASK].", "France")
    prompt = kn.Prompt.from_cloze("Paris is in [MASK] .", "France", cue="Paris")
    assert (prompt.prefix, prompt.suffix, prompt.target) == ("Paris is in", ".", "France")


def test_prompts_that_make_no_sense_are_refused():
    with pytest.raises(PromptError, match="the target of 'It is' is empty"):
        kn.Prompt("It is", target=" ")
    with pytest.raises(PromptError, match="are the same word, 'dog'"):
        kn.Prompt("It is", target="dog", foil=" dog")
    with pytest.raises(PromptError, match="lacks its foil_prefix"):
        kn.Prompt("These", target="dogs", form="two_prefix")


def test_text_after_the_blank_is_dropped_and_counted(random_model):
    """User need 2: templates whose object is not last are useless for a causal model."""
    model = random_model("gpt2")
    prompts = [
        kn.Prompt("The capital of France is", suffix=".", target="Paris"),
        kn.Prompt("", suffix=" is the capital of France.", target="Paris"),
        kn.Prompt("It was", suffix=" in France.", target="Paris"),
    ]
    batch = kn.PromptBatch.from_prompts(model, prompts, on_unusable="drop")
    assert len(batch) == 1
    assert [entry.reason for entry in batch.dropped] == ["text after the blank"] * 2
    assert batch.dropped[1].text == "It was [MASK] in France."
    with pytest.raises(PromptError, match=r"goes on after the blank, and .* is a causal model"):
        kn.PromptBatch.from_prompts(model, prompts)
    with pytest.raises(PromptError, match=r"can be asked none of the 2 prompts \(text after the blank: 2\)"):
        kn.PromptBatch.from_prompts(model, prompts[1:], on_unusable="drop")
    assert len(kn.PromptBatch.from_prompts(random_model("bert"), prompts)) == 3
    with pytest.raises(PromptError, match="no token before the blank"):
        kn.PromptBatch.from_prompts(model, [kn.Prompt("", target="Paris")])
    with pytest.raises(PromptError, match="no prompts: give at least one"):
        kn.PromptBatch.from_prompts(model, [])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_longer_than_the_context_is_refused(random_model, family):
    model = random_model(family)
    context = model.cfg.n_ctx
    specials = {"llama": 1, "bert": 3}.get(family, 0)  # BOS; CLS, SEP and the mask
    fits = kn.Prompt(" ".join(["the"] * (context - specials)), target="dogs")
    assert kn.PromptBatch.from_prompts(model, [fits]).lengths == [context]
    with pytest.raises(PromptError, match=rf"is {context + 1} tokens long; .* reads {context}"):
        kn.PromptBatch.from_prompts(model, [kn.Prompt(fits.prefix + " old", target="dogs")])


def word_level(**names):
    """A tokenizer of words that knows five of them."""
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[END]", *FEW_WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=core, **{"unk_token": "[UNK]", "pad_token": "[PAD]"} | names)


FEW_WORDS = ["The", "dog", "dogs", "run", "big"]


def load_word_model(folder, **names):
    folder = save_random_model(folder, "gpt2")
    for path in folder.glob("*token*.json"):
        path.unlink()
    word_level(**names).save_pretrained(folder)
    return kn.load_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def word_model(tmp_path_factory):
    """A causal model with one token for each word it knows, and one for all others."""
    return load_word_model(tmp_path_factory.mktemp("words"))


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        (kn.Prompt("The zebra and Zoe", target="run"), "'The zebra and Zoe' holds 'zebra', 'and', 'Zoe', unknown to"),
        (kn.Prompt("zebra zebra", target="run"), "'zebra zebra' holds 'zebra', unknown to"),
        (kn.Prompt("The dogs", target="sing"), "'The dogs sing' holds 'sing', unknown to"),
        (kn.Prompt("The dogs", target="Run"), "'The dogs Run' holds 'Run', unknown to"),
        (kn.Prompt("The dogs", target="run", foil="sings"), "'The dogs sings' holds 'sings', unknown to"),
        (kn.Prompt("The dogs", target="sing", foil="sings"), "'The dogs sing' holds 'sing', unknown to"),
        (kn.Prompt("The dogs", target="run and run"), "'The dogs run and run' holds 'and', unknown to"),
        (
            kn.Prompt("The dogs", foil_prefix="The zebra", target="run", form="two_prefix"),
            "'The zebra' holds 'zebra', unknown to",
        ),
    ],
)
def test_a_word_unknown_to_a_causal_model_is_refused(word_model, prompt, named):
    """All unknown words share one token: an answer to it would say nothing about the word."""
    with pytest.raises(UnusablePrompt) as refusal:
        TokenResolver(word_model).resolve(prompt)
    assert str(refusal.value).startswith(named)
    assert "use words that it knows" in str(refusal.value)
    assert refusal.value.reason == "word unknown to the model"


def test_unknown_words_are_counted_and_known_ones_stay(word_model):
    prompts = [kn.Prompt(f"The {word} dogs", target="run", source=f"a:{word}") for word in ("big", "old", "red")]
    batch = kn.PromptBatch.from_prompts(word_model, prompts, on_unusable="drop")
    assert [entry.ids for entry in batch.resolved] == [(3, 7, 5)]
    assert batch.target_ids.tolist() == [6]
    assert [(entry.reason, entry.source) for entry in batch.dropped] == [
        ("word unknown to the model", "a:old"),
        ("word unknown to the model", "a:red"),
    ]
    with pytest.raises(PromptError, match=r"'old', unknown to .*\(a:old\)$"):
        kn.PromptBatch.from_prompts(word_model, prompts)
    with pytest.raises(UnusablePrompt, match=r"'old' is unknown to .*, not one token"):
        TokenResolver(word_model).single_token("old")
    assert TokenResolver(word_model).single_token("big") == 7


def test_a_word_unknown_to_a_masked_model_is_refused_on_either_side(random_model):
    model = random_model("bert")
    for prefix, suffix in [("The zebra of", " is."), ("The city of", " is a zebra.")]:
        with pytest.raises(UnusablePrompt, match="holds 'zebra', unknown to") as refusal:
            resolve(model, prefix, suffix=suffix, target="France")
        assert refusal.value.reason == "word unknown to the model"
    assert words(model, resolve(model, "The city of", suffix=" is.", target="France").target_ids) == ["France"]


@pytest.mark.parametrize("role", ["bos_token", "eos_token"])
def test_an_unknown_token_that_begins_or_ends_texts_refuses_nothing(word_model, role):
    """GPT-2's marks the end of a text; what it stands for in a prompt is not a word the model lacks."""
    twin = copy.copy(word_model)
    twin.tokenizer = word_level(**{role: "[UNK]"})
    assert TokenResolver(twin).resolve(kn.Prompt("The zebra dogs", target="run")).ids == (3, 1, 5)
    twin.tokenizer = word_level(**{role: "[UNK]", "pad_token": "[UNK]"})
    assert TokenResolver(twin).resolve(kn.Prompt("The zebra dogs", target="run")).ids == (3, 1, 5)
    twin.tokenizer = word_level(eos_token="[END]")
    with pytest.raises(UnusablePrompt, match="holds 'zebra'"):
        TokenResolver(twin).resolve(kn.Prompt("The zebra", target="run"))


def test_an_unknown_token_lent_for_padding_still_means_an_unknown_word(tmp_path):
    """A tokenizer with neither pad nor end is given its unknown token for padding when the model is loaded."""
    model = load_word_model(tmp_path, pad_token=None)
    assert model.tokenizer.pad_token_id == model.tokenizer.unk_token_id == 1
    assert model.tokenizer.eos_token is None
    assert TokenResolver(model).resolve(kn.Prompt("The big dogs", target="run")).ids == (3, 7, 5)
    for prompt in (kn.Prompt("The zebra", target="run"), kn.Prompt("The dogs", target="zebra")):
        with pytest.raises(UnusablePrompt, match="holds 'zebra', unknown to") as refusal:
            TokenResolver(model).resolve(prompt)
        assert refusal.value.reason == "word unknown to the model"
    with pytest.raises(UnusablePrompt, match="'zebra' is unknown to"):
        TokenResolver(model).single_token("zebra")
    prompts = [kn.Prompt("The", target="dog"), kn.Prompt("The big dogs", target="run")]
    assert kn.PromptBatch.from_prompts(model, prompts).tokens.tolist() == [[3, 1, 1], [3, 7, 5]]  # and pads with it


def test_an_end_of_text_in_a_prompt_is_no_unknown_word(random_model):
    """Tokenizers without an unknown token (None), and GPT-2's own habit of naming its end mark as one."""
    model = copy.copy(random_model("gpt2"))
    expected = TokenResolver(model).resolve(kn.Prompt("<|endoftext|>The dogs", target="zebras"))
    assert expected.ids[0] == model.tokenizer.eos_token_id
    assert model.tokenizer.unk_token is None
    model.tokenizer = build_tokenizer("gpt2")
    model.tokenizer.unk_token = "<|endoftext|>"
    assert model.tokenizer.unk_token_id == expected.ids[0]
    assert TokenResolver(model).resolve(kn.Prompt("<|endoftext|>The dogs", target="zebras")) == expected


def test_a_tokenizer_that_cannot_say_which_word(word_model):
    class Slow(PreTrainedTokenizer):
        """Written in Python: no offsets."""

        vocab_size = property(lambda self: 3 + len(FEW_WORDS))  # type: ignore[assignment]

        def get_vocab(self):
            return word_level().get_vocab()

        def _tokenize(self, text, **_):
            return text.split()

        def _convert_token_to_id(self, token):
            return self.get_vocab().get(token, 1)

    twin = copy.copy(word_model)
    twin.tokenizer = Slow(unk_token="[UNK]", pad_token="[PAD]")
    assert TokenResolver(twin).resolve(kn.Prompt("The dogs", target="run")).ids == (3, 5)
    with pytest.raises(UnusablePrompt, match=r"^'The zebra' holds a word, unknown to"):
        TokenResolver(twin).resolve(kn.Prompt("The zebra", target="run"))


def test_batches_belong_to_one_kind_of_model(random_model):
    batch = kn.PromptBatch.from_prompts(random_model("gpt2"), questions(random_model("gpt2")))
    with pytest.raises(PromptError, match=r"a causal model; .* is masked: make them anew"):
        kn.answers(random_model("bert"), batch)
    with pytest.raises(PromptError, match=r"a masked model; .* is causal: make them anew"):
        kn.answers(
            random_model("gpt2"), kn.PromptBatch.from_prompts(random_model("bert"), questions(random_model("bert")))
        )


def test_a_model_without_tokenizer_is_told_so(random_model):
    class Bare:
        cfg = random_model("gpt2").cfg
        tokenizer = None

    with pytest.raises(kn.ModelError, match="has no tokenizer"):
        TokenResolver(Bare())


# -- padding and company ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_prompts_have_the_same_log_probabilities(exact_model, family):
    """User need 20: a batch of mixed lengths, padded, against each prompt by itself through the whole model."""
    model = exact_model(family)
    batch = kn.PromptBatch.from_prompts(model, questions(model))
    assert not batch.mask.all()
    together = target_distribution(model, batch)
    for index, entry in enumerate(batch.resolved):
        with torch.no_grad():
            alone = model(torch.tensor([entry.ids]))[0, entry.target_position].softmax(-1)
        torch.testing.assert_close(together[index].log(), alone.log(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_users_padding_side_does_not_matter(tmp_path, family):
    """User need 12: a tokenizer set to pad on the left."""
    from tests.helpers import load_random_model

    model = load_random_model(family, tmp_path).to(torch.float64)
    batch = likely_batch(model)
    expected = target_distribution(model, batch)
    model.tokenizer.padding_side = "left"
    again = kn.PromptBatch.from_prompts(model, batch.prompts)
    assert torch.equal(again.tokens, batch.tokens)
    torch.testing.assert_close(target_distribution(model, again), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_batched_answers_equal_single_ones(exact_model, family):
    model = exact_model(family)
    foils = [
        kn.Prompt(prompt.prefix, suffix=prompt.suffix, target="is", foil="are", cue=prompt.cue)
        for prompt in questions(model)
    ]
    together = kn.answers(model, foils)
    for index, prompt in enumerate(foils):
        alone = kn.answers(model, prompt)
        assert alone.top[0] == together.top[index]
        torch.testing.assert_close(alone.target[0], together.target[index], atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(alone.foil[0], together.foil[index], atol=1e-12, rtol=1e-9)
        assert alone.correct[0] == (together.target[index] > together.foil[index])
    assert kn.accuracy(model, foils) == pytest.approx((together.target > together.foil).double().mean().item())


def test_selected_prompts_are_not_tokenised_again(random_model, monkeypatch):
    model = random_model("gpt2")
    batch = kn.PromptBatch.from_prompts(model, questions(model))
    monkeypatch.setattr(TokenResolver, "resolve", lambda *_: pytest.fail("tokenised twice"))
    part = batch.select([4, 1])
    assert [entry.ids for entry in part.resolved] == [batch.resolved[4].ids, batch.resolved[1].ids]
    assert part.mask.sum(1).tolist() == part.lengths
    assert part.fingerprint() != batch.fingerprint()
    assert batch.select(range(len(batch))).fingerprint() == batch.fingerprint()


def test_one_word_as_one_token(random_model):
    for family in FAMILIES:
        model = random_model(family)
        resolver = TokenResolver(model)
        assert model.tokenizer.decode([resolver.single_token("these")]).strip() == "these"
        assert resolver.single_token(" these") == resolver.single_token("these")
        with pytest.raises(UnusablePrompt, match="not one"):
            resolver.single_token("thesethose")
        entry = resolver.resolve(kn.Prompt("The", target="these"))
        assert resolver.single_token("these") == entry.target_ids[0]
    assert len(build_tokenizer("gpt2")("these").input_ids) == 1
