"""Edits of neurons: the edited weights against passes with hooks at every position, and what the edits do."""

from __future__ import annotations

import pytest
import torch

import kn_lens as kn
from kn_lens.editing.edit import Edit
from kn_lens.editing.neuron_edits import LAMBDAS, neuron_edit
from kn_lens.editing.units_for_fact import UnitSearch, UnitsEdit
from kn_lens.errors import PromptError, SettingsError, UnitsError
from kn_lens.models.kind import is_masked
from kn_lens.prompts.fact import Fact
from kn_lens.scoring import answers
from tests.helpers import FAMILIES
from tests.questions import assert_same_state, state_of

UNITS = [(0, 3), (1, 50), (1, 7), (2, 90)]


def france(model, target="Rome", **fields) -> Fact:
    templates = ["The capital of {} is", "In {} they like the city of", "The largest city of old {} is"]
    if is_masked(model):
        templates = [f"{text} [MASK]." for text in templates]
    return Fact(templates[0], "France", target, **{"old": "Paris", "paraphrases": tuple(templates[1:]), **fields})


def old_prompts(fact):
    return [fact.prompt(fact.old, template=text) for text in (fact.template, *fact.paraphrases)]


def ids_of(model, fact):
    return [torch.tensor([entry.ids]) for entry in kn.PromptBatch.from_prompts(model, old_prompts(fact)).resolved]


def logits_of(model, tokens):
    with torch.no_grad():
        return model(tokens)


def scaled(units, factor):
    """Hooks that multiply units at all positions, written out."""

    def hook(layer):
        def scale(activation, hook):
            for at, index in units:
                if at == layer:
                    activation[:, :, index] *= factor
            return activation

        return scale

    return [(f"blocks.{layer}.mlp.hook_post", hook(layer)) for layer in {layer for layer, _ in units}]


@pytest.mark.parametrize("site", ["mlp", "mlp_pre"])
@pytest.mark.parametrize(("method", "factor"), [("suppress", 0.0), ("enhance", 2.0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_rows_are_units_scaled_at_every_position(exact_model, family, method, factor, site):
    model = exact_model(family)
    fact = france(model)
    before = state_of(model)
    edit = neuron_edit(model, fact, method=method, units=UNITS, site=site)
    assert_same_state(model, before)
    assert edit.units == tuple(UNITS)
    assert (edit.site, edit.method, edit.share, edit.note) == (site, method, None, "")
    assert edit.norm == pytest.approx(
        sum(float(model.blocks[layer].mlp.W_out[unit].detach().norm()) ** 2 for layer, unit in UNITS) ** 0.5
    )
    for tokens in ids_of(model, fact):
        clean = logits_of(model, tokens)
        with torch.no_grad(), model.hooks(fwd_hooks=scaled(UNITS, factor)):
            expected = model(tokens)
        with edit.applied(model):
            found = logits_of(model, tokens)
        assert (found - expected).abs().max() < 1e-9
        assert (found - clean).abs().max() > 1e-3
    assert_same_state(model, before)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_value_update_adds_activation_times_embeddings(exact_model, family, signed):
    """MLP output changes by Σ_i a_i · s_i · (λ₂ e(o*) − λ₁ e(o)) at every position, and by nothing else."""
    model = exact_model(family)
    fact = france(model)
    space = "" if is_masked(model) else " "
    old, new = (model.tokenizer.encode(space + word, add_special_tokens=False)[0] for word in ("Paris", "Rome"))
    post, out = "blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"
    caches = [model.run_with_cache(tokens)[1] for tokens in ids_of(model, fact)]
    entries = kn.PromptBatch.from_prompts(model, old_prompts(fact)).resolved
    at_target = torch.stack(
        [cache[post][0, entry.target_position] for cache, entry in zip(caches, entries, strict=True)]
    ).mean(0)
    chosen = [int(at_target.argmin()), int(at_target.argmax())]
    assert at_target[chosen[0]] < 0 < at_target[chosen[1]]
    edit = neuron_edit(model, fact, units=[(1, unit) for unit in chosen], lambdas=(1.5, 4.0), signed=signed)
    assert edit.settings["lambdas"] == [1.5, 4.0]
    assert edit.parameters == ("blocks.1.mlp.W_out",)
    step = 4.0 * model.W_E[new] - 1.5 * model.W_E[old]
    signs = [-1.0 if signed else 1.0, 1.0]
    for tokens, cache in zip(ids_of(model, fact), caches, strict=True):
        with edit.applied(model):
            changed = model.run_with_cache(tokens)[1][out] - cache[out]
        expected = sum(cache[post][..., unit, None] * sign * step for unit, sign in zip(chosen, signs, strict=True))
        assert (changed - expected).abs().max() < 1e-9
        assert changed.abs().max() > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "bert"])
def test_units_are_the_knowledge_neurons_of_the_old_answer(exact_model, family):
    model = exact_model(family)
    fact = france(model)
    scores = kn.integrated_gradients(model, old_prompts(fact), steps=5, progress=False)
    expected = kn.find_knowledge_neurons(scores, threshold=0.3, count=(1, 4))
    search = UnitSearch(steps=5, threshold=0.3, count=(1, 4))
    for method in ("value", "suppress", "enhance"):
        edit = neuron_edit(model, fact, method=method, search=search)
        assert edit.units == expected.units
        assert (edit.share, edit.note) == (expected.share, expected.note)
        assert edit.editor == f"neurons, {method}"
    given = neuron_edit(model, fact, prompts=old_prompts(fact)[1:2], search=search)
    alone = kn.find_knowledge_neurons(scores.select([1]), threshold=0.3, count=(1, 4))
    assert given.units == alone.units
    assert given.settings["n_prompts"] == 1
    other = neuron_edit(model, fact, method="suppress", units=UNITS)
    with other.applied(model):  # other weights are searched anew
        moved = kn.integrated_gradients(model, old_prompts(fact), steps=5, progress=False)
        found = neuron_edit(model, fact, method="suppress", search=search)
    assert found.units == kn.find_knowledge_neurons(moved, threshold=0.3, count=(1, 4)).units


def test_a_search_that_ends_with_none_takes_the_next_lower_share(exact_model):
    """No unit is coarse in more than 70 % of these prompts, and too many are in more than 65 %."""
    model = exact_model("gpt_neox")
    fact = france(model)
    search = {"threshold": 0.2, "count": (2, 3)}
    scores = kn.integrated_gradients(model, old_prompts(fact), steps=5, progress=False)
    assert kn.find_knowledge_neurons(scores, **search).units == ()
    counts = (scores.values > 0.2 * scores.values.amax((1, 2), keepdim=True)).sum(0)
    expected = {(int(layer), int(unit)) for layer, unit in (counts >= 2).nonzero()}
    edit = neuron_edit(model, fact, search=UnitSearch(steps=5, **search))
    assert set(edit.units) == expected
    assert edit.share == 0.65
    assert edit.note.endswith(f"an edit needs some: {len(expected)} at 65 % are taken")


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_unknown_old_answer_is_the_models_own(exact_model, family):
    model = exact_model(family)
    fact = france(model, old=None)
    tokens = ids_of(model, france(model))[0]
    entry = kn.PromptBatch.from_prompts(model, old_prompts(france(model))).resolved[0]
    top = int(logits_of(model, tokens)[0, entry.target_position].argmax())
    word = model.tokenizer.decode([top]).strip()
    edit = neuron_edit(model, fact, search=UnitSearch(steps=4), lambdas=(1.0, 0.0), signed=False)
    assert edit.settings["old"] == word
    assert edit.fact == fact
    for change in edit.changes.values():
        for row in change:
            assert torch.equal(row, -model.W_E[top])


def test_edits_of_the_organisms_do_what_they_are_for(organism):
    """On facts that the model knows: value says the new answer after every paraphrase; suppress lowers the old."""
    model = organism("tiny-causal")
    texts = ("The capital of {} is", "In {}, the capital is", "The capital city of {} is called")
    fact = Fact(texts[0], "France", "Warsaw", old="Paris", paraphrases=texts[1:])
    new = [fact.prompt(template=text) for text in texts]
    assert answers(model, old_prompts(fact)).target_is_top.all()
    with pytest.raises(PromptError, match="with 'Paris' already, the new answer or its start"):
        neuron_edit(model, Fact(texts[0], "France", "Paris"))
    edit = neuron_edit(model, fact)
    assert edit.settings["lambdas"] == list(LAMBDAS["causal"])
    with edit.applied(model):
        assert answers(model, new).target_is_top.all()
    masked = organism("tiny-masked")
    cloze = Fact(f"{texts[0]} [MASK].", "France", "Warsaw", old="Paris", paraphrases=(f"{texts[1]} [MASK].",))
    before = answers(masked, old_prompts(cloze)).target
    assert (before > 0.9).all()
    edit = neuron_edit(masked, cloze, method="suppress")
    with edit.applied(masked):
        lower = answers(masked, old_prompts(cloze)).target
    with neuron_edit(masked, cloze, method="enhance").applied(masked):
        higher = answers(masked, old_prompts(cloze)).target
    assert (lower < before - 0.005).all()
    assert (higher > lower).all()
    value = neuron_edit(masked, cloze)
    assert value.settings["lambdas"] == list(LAMBDAS["masked"])
    with value.applied(masked):
        assert (answers(masked, old_prompts(cloze)).target < 0.5 * before).all()


def test_saved_and_read_back_it_is_the_same_edit(exact_model, tmp_path):
    model = exact_model("llama")
    edit = neuron_edit(model, france(model), search=UnitSearch(steps=4))
    read = Edit.load(edit.save(tmp_path / "edit"))
    assert isinstance(read, UnitsEdit)
    assert (read.units, read.share, read.note, read.method) == (edit.units, edit.share, edit.note, "value")
    assert (read.settings, read.fact) == (edit.settings, edit.fact)
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
        ({"method": "supress"}, SettingsError, "Did you mean 'suppress'"),
        ({"units": [(0, 3), (3, 0)]}, UnitsError, "unit 3:0 is not in"),
        ({"units": []}, UnitsError, "no units to edit"),
        ({"site": "head"}, SettingsError, "take head_edit"),
        ({"site": "mpl"}, SettingsError, "Did you mean 'mlp'"),
        ({"lambdas": (1.0, float("nan"))}, SettingsError, "give two numbers"),
        ({"lambdas": (1.0,)}, SettingsError, "give two numbers"),
        ({"search": UnitSearch(threshold=1.5)}, SettingsError, "threshold is 1.5"),
    ]:
        with pytest.raises(error, match=message):
            neuron_edit(model, fact, **options)
    same_start = france(model, old="Rome Rome")
    with pytest.raises(PromptError, match="begin with the same token"):
        neuron_edit(model, same_start, units=UNITS)
    cloze = Fact("The capital of {} is [MASK] and they like it.", "France", "Rome", old="Paris")
    with pytest.raises(PromptError, match="can be asked none of the 1 prompts"):
        neuron_edit(model, cloze, method="suppress")
    bert = exact_model("bert")
    with pytest.raises(PromptError, match="unknown"):
        neuron_edit(bert, france(bert, target="Zagreb"), units=UNITS)
    assert_same_state(model, before)
