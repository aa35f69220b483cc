"""Edits of heads: the edited W_O and b_O against passes with hooks at every position, and what the edits do."""

from __future__ import annotations

import pytest
import torch

import kn_lens as kn
from kn_lens.editing.contexts import sample_tokens
from kn_lens.editing.edit import Edit
from kn_lens.editing.head_edits import TEXTS, head_edit
from kn_lens.editing.units_for_fact import UnitSearch, UnitsEdit
from kn_lens.errors import PromptError, SettingsError, UnitsError
from kn_lens.models.kind import is_masked
from kn_lens.prompts.fact import Fact
from kn_lens.scoring import answers
from tests.editing.test_neuron_edits import france, ids_of, logits_of, old_prompts
from tests.helpers import FAMILIES, LAYERS
from tests.questions import assert_same_state, state_of

HEADS = [(0, 1), (2, 3), (2, 0)]


def set_to(values):
    """Hooks that set heads to a value at all positions, written out; ``values``: (layer, head) → [d_head]."""

    def hook(layer):
        def write(activation, hook):
            for (at, head), value in values.items():
                if at == layer:
                    activation[:, :, head] = value
            return activation

        return write

    return [(f"blocks.{layer}.attn.hook_z", hook(layer)) for layer in {layer for layer, _ in values}]


def textbook_means(model, fact, seed):
    """z̄ of each head: over 16 sampled texts, or over the positions of the fact's prompts; one text at a time."""
    skip, texts = 0, ids_of(model, fact)
    if not is_masked(model):
        lead = model.tokenizer("The")["input_ids"][:-1]  # llama's BOS is read and does not count
        skip, texts = (
            len(lead),
            [torch.tensor([[*lead, *row]]) for row in sample_tokens(model, *TEXTS, seed=seed).tolist()],
        )
    total, count = torch.zeros(LAYERS, model.cfg.n_heads, model.cfg.d_head, dtype=torch.float64), 0
    for tokens in texts:
        cache = model.run_with_cache(tokens)[1]
        total += torch.stack(
            [cache[f"blocks.{layer}.attn.hook_z"][0, skip:].detach().sum(0) for layer in range(LAYERS)]
        )
        count += tokens.shape[1] - skip
    return total / count


@pytest.mark.parametrize("method", ["mean", "suppress"])
@pytest.mark.parametrize("family", FAMILIES)
def test_edited_weights_are_heads_set_at_every_position(exact_model, family, method):
    model = exact_model(family)
    fact = france(model)
    before = state_of(model)
    edit = head_edit(model, fact, method=method, heads=HEADS, seed=3)
    assert_same_state(model, before)
    assert edit.units == tuple(HEADS)
    assert (edit.site, edit.method, edit.share, edit.editor) == ("head", method, None, f"heads, {method}")
    means = textbook_means(model, fact, seed=3)
    values = {unit: means[unit] if method == "mean" else torch.tensor(0.0) for unit in HEADS}
    for tokens in ids_of(model, fact):
        clean = logits_of(model, tokens)
        with torch.no_grad(), model.hooks(fwd_hooks=set_to(values)):
            expected = model(tokens)
        with edit.applied(model):
            found = logits_of(model, tokens)
        assert (found - expected).abs().max() < 1e-9
        assert (found - clean).abs().max() > 1e-3
    assert_same_state(model, before)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_heads_are_those_of_the_old_answer(exact_model, family):
    model = exact_model(family)
    fact = france(model)
    scores = kn.integrated_gradients(model, old_prompts(fact), site="head", steps=5, progress=False)
    expected = kn.find_knowledge_neurons(scores, threshold=0.3, count=(1, 6))
    assert expected.units
    edit = head_edit(model, fact, method="suppress", search=UnitSearch(steps=5, threshold=0.3, count=(1, 6)))
    assert (edit.units, edit.share, edit.note) == (expected.units, expected.share, expected.note)
    assert edit.settings["search"]["count"] == [1, 6]


def test_the_mean_is_over_texts_of_the_seed(exact_model):
    model = exact_model("gpt2")
    first, same, other = (head_edit(model, france(model), heads=HEADS, seed=seed) for seed in (0, 0, 1))
    name = "blocks.2.attn.b_O"
    assert torch.equal(first.changes[name], same.changes[name])
    assert not torch.equal(first.changes[name], other.changes[name])
    assert first.settings["mean_over"] == "16 × 16 tokens sampled from the model"
    bert = exact_model("bert")
    count = sum(tokens.shape[1] for tokens in ids_of(bert, france(bert)))
    edit = head_edit(bert, france(bert), heads=HEADS)
    assert edit.settings["mean_over"] == f"{count} positions of the fact's prompts"


def test_edits_of_the_organisms_lower_the_old_answer(organism):
    texts = ("The capital of {} is", "In {}, the capital is")
    for name, end in (("tiny-causal", ""), ("tiny-masked", " [MASK].")):
        model = organism(name)
        fact = Fact(texts[0] + end, "France", "Warsaw", old="Paris", paraphrases=(texts[1] + end,))
        before = answers(model, old_prompts(fact)).target
        assert (before > 0.8).all()
        for method in ("mean", "suppress"):
            with head_edit(model, fact, method=method).applied(model):
                assert (answers(model, old_prompts(fact)).target < before).all()


def test_saved_and_read_back_it_is_the_same_edit(exact_model, tmp_path):
    model = exact_model("llama")
    edit = head_edit(model, france(model), heads=HEADS)
    read = Edit.load(edit.save(tmp_path / "edit"))
    assert isinstance(read, UnitsEdit)
    assert (read.units, read.method, read.settings) == (edit.units, "mean", edit.settings)
    tokens = ids_of(model, france(model))[0]
    with edit.applied(model):
        expected = logits_of(model, tokens)
    with read.applied(model):
        assert torch.equal(logits_of(model, tokens), expected)


def test_what_cannot_be_edited_is_refused(exact_model):
    model = exact_model("gpt2")
    fact = france(model)
    before = state_of(model)
    for options, error, message in [
        ({"method": "means"}, SettingsError, "Did you mean 'mean'"),
        ({"heads": [(1, 4)]}, UnitsError, "unit 1:4 is not in .* heads 0–3"),
        ({"heads": []}, UnitsError, "no units to edit"),
        ({"search": UnitSearch(steps=1)}, SettingsError, "steps"),
    ]:
        with pytest.raises(error, match=message):
            head_edit(model, fact, **options)
    bert = exact_model("bert")
    with pytest.raises(PromptError, match="unknown"):
        head_edit(bert, france(bert, old="Zagreb"))
    assert_same_state(model, before)
