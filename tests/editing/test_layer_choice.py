"""The layer chosen is the one whose MLP holds the answer."""

from __future__ import annotations

import pytest
import torch

import kn_lens as kn
from kn_lens.editing.layer_choice import LayerChoice, layer_by_tracing
from kn_lens.errors import ModelError, PromptError
from kn_lens.prompts.fact import Fact
from tests.helpers import WORDS, load_random_model
from tests.questions import assert_same_state, state_of

TEMPLATE = "The capital city of {} is"


def wordy_model(folder):
    """A random model whose answers are words of one token, as they stand within a sentence."""
    model = load_random_model("gpt2", folder)
    words = [ids[0] for word in WORDS if len(ids := model.tokenizer(f" {word}")["input_ids"]) == 1]
    with torch.no_grad():
        others = torch.ones(model.cfg.d_vocab, dtype=torch.bool)
        others[words] = False
        model.unembed.b_U[others] -= 50
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return wordy_model(tmp_path_factory.mktemp("wordy"))


def believed_facts(model, subjects=("France", "Germany", "Spain", "Italy", "Egypt", "Japan")):
    """Facts whose old answer is what the model says."""
    facts = []
    for subject in subjects:
        text = TEMPLATE.format(subject)
        with torch.no_grad():
            top = int(model(torch.tensor([model.tokenizer(text)["input_ids"]]))[0, -1].argmax())
        old = model.tokenizer.decode([top]).strip()
        facts.append(Fact(TEMPLATE, subject, "cats" if old != "cats" else "dogs", old=old))
    return facts


def test_effects_are_those_of_causal_tracing_at_the_subjects_last_token(model):
    facts = believed_facts(model, ("old France", "Germany", "new Spain"))
    before = state_of(model)
    choice = layer_by_tracing(model, facts, seed=3, progress=False)
    assert_same_state(model, before)
    prompts = [fact.prompt(fact.old) for fact in facts]
    trace = kn.causal_trace(model, prompts, stream="mlp", seed=3, progress=False)
    last = [positions[-1] for positions in trace.cue_positions]
    assert last == [5, 4, 5]
    expected = torch.stack([trace.effects[trace.metric][row, at] for row, at in enumerate(last)])
    torch.testing.assert_close(choice.effects, expected)
    assert choice.layer == int(expected.mean(0).argmax())
    assert choice.facts == tuple(facts)
    assert (choice.metric, choice.window) == (trace.metric, trace.window)
    torch.testing.assert_close(torch.tensor(choice.to_frame().effect).float(), expected.mean(0))


@pytest.mark.parametrize("layer", [0, 1])
def test_only_a_layer_whose_mlp_writes_something_has_an_effect(tmp_path, layer):
    model = wordy_model(tmp_path)
    with torch.no_grad():
        for at, block in enumerate(model.blocks):
            block.mlp.W_out.mul_(4.0 if at == layer else 0.0)
            block.mlp.b_out.zero_()
    choice = layer_by_tracing(model, believed_facts(model), progress=False)
    others = [at for at in range(3) if at != layer]
    assert float(choice.effects[:, others].abs().max()) < 1e-5
    assert float(choice.effects[:, layer].abs().min()) > 1e-3
    assert choice.layer == int(choice.effects.mean(0).argmax())


def test_the_organisms_facts_lie_in_its_first_layer(organism, tmp_path):
    """Where rank-one edits work, too."""
    relation = kn.load_relation("P36")
    pairs = list(relation.pairs.values())[:8]
    facts = [Fact("The capital of {} is", subject, "Rome", old=old) for subject, old in pairs if old != "Rome"]
    choice = layer_by_tracing(organism("tiny-causal"), facts, progress=False)
    assert choice.layer == 0
    loaded = LayerChoice.load(choice.save(tmp_path / "choice"))
    assert torch.equal(loaded.effects, choice.effects)
    assert (loaded.layer, loaded.facts) == (0, choice.facts)


def test_what_is_left_out_is_counted(model):
    known = believed_facts(model, ("France", "Germany"))
    wrong = Fact(TEMPLATE, "Spain", "dogs", old="cats", source="facts.jsonl:3")
    unknown = Fact(TEMPLATE, "Italy", "dogs")
    long = Fact(TEMPLATE, "Egypt", "dogs", old="old Cairo")
    choice = layer_by_tracing(model, [*known, wrong, unknown, long], progress=False)
    assert choice.facts == tuple(known)
    assert choice.settings["left out"] == {
        "old answer not known": 1,
        "target is several tokens": 1,
        "answered wrongly": 1,
    }
    assert choice.effects.shape == (2, 3)


def test_without_a_known_answer_it_says_what_to_do(model):
    with pytest.raises(PromptError, match=r"not known of 'The capital city of Italy is'; .*give layer=N"):
        layer_by_tracing(model, [Fact(TEMPLATE, "Italy", "dogs")])
    with pytest.raises(PromptError, match=r"answers none of the 1 prompts rightly.*give layer=N"):
        layer_by_tracing(model, [Fact(TEMPLATE, "Spain", "dogs", old="cats")], progress=False)
    with pytest.raises(PromptError, match="give layer=N"):
        layer_by_tracing(model, [])
    with pytest.raises(PromptError, match=r"target is several tokens.*give layer=N"):
        layer_by_tracing(model, [Fact(TEMPLATE, "Spain", "dogs", old="old Madrid")], progress=False)


def test_a_model_that_cannot_be_edited_is_refused(monkeypatch, model):
    from kn_lens.editing import edit

    monkeypatch.setattr(edit, "can_step", lambda model: False)
    with pytest.raises(ModelError, match="weights are those of another library"):
        layer_by_tracing(model, [Fact(TEMPLATE, "Spain", "dogs", old="cats")])
