"""Fine-tuning one matrix equals a plain training loop on the whole model, and touches nothing before it is applied."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import kn_lens as kn
from kn_lens.editing.fine_tune import FineTuneEdit, fine_tune
from kn_lens.editing.hyperparameters import hyperparameters_of
from kn_lens.errors import ModelError, PromptError, SettingsError
from kn_lens.prompts.fact import Fact
from tests.questions import assert_same_state, state_of

FREE = {"lr": 1e-2, "epsilon": math.inf}
FACT = Fact("The capital city of {} is", "France", "the old Rome", old="Paris")


def trained_by_hand(model, fact, layer, *, steps, lr, epsilon, weight_decay=0.0):
    """Losses and the change of W_out: whole forward passes of a copy, the loss token by token."""
    model = copy.deepcopy(model)
    weight = model.blocks[layer].mlp.W_out
    start = weight.detach().clone()
    change = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=lr, weight_decay=weight_decay)
    prompt = model.tokenizer(fact.question)["input_ids"]
    whole = model.tokenizer(f"{fact.question} {fact.target}")["input_ids"]
    losses = []
    for step in range(steps + 1):
        loss = torch.zeros(())
        for at in range(len(prompt), len(whole)):
            logits = torch.func.functional_call(
                model, {f"blocks.{layer}.mlp.W_out": start + change}, (torch.tensor([whole[:at]]),)
            )
            loss = loss - logits[0, -1].log_softmax(-1)[whole[at]] / (len(whole) - len(prompt))
        losses.append(float(loss.detach()))
        if step < steps:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            change.data.clamp_(-epsilon, epsilon)
    return losses, change.detach()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("settings", [FREE, {"lr": 1e-2, "epsilon": 1.5e-2}, {**FREE, "weight_decay": 0.5}])
def test_equals_training_the_whole_model(exact_model, family, settings):
    model = exact_model(family)
    losses, change = trained_by_hand(model, FACT, 1, steps=4, **settings)
    edit = fine_tune(model, FACT, layer=1, steps=4, stop_at=0.0, **settings)
    assert edit.losses.tolist() == pytest.approx(losses, rel=1e-9)
    torch.testing.assert_close(edit.changes["blocks.1.mlp.W_out"], change, rtol=1e-6, atol=1e-9)
    assert edit.losses[-1] < edit.losses[0]
    assert edit.norm == pytest.approx(float(change.norm()))
    if settings["epsilon"] < 1:
        assert float(change.abs().max()) == pytest.approx(1.5e-2)


def test_the_applied_edit_gives_the_last_loss(exact_model, tmp_path):
    model = exact_model("gpt2")
    before = state_of(model)
    edit = fine_tune(model, FACT, layer=2, steps=3, **FREE)
    assert_same_state(model, before)
    assert all(parameter.requires_grad for parameter in model.parameters())
    ids = model.tokenizer(f"{FACT.question} {FACT.target}")["input_ids"]

    def loss():
        with torch.no_grad():
            log_p = model(torch.tensor([ids]))[0].log_softmax(-1)
        return -sum(float(log_p[at - 1, ids[at]]) for at in range(len(ids) - 3, len(ids))) / 3

    assert loss() == pytest.approx(float(edit.losses[0]))
    for each in (edit, FineTuneEdit.load(edit.save(tmp_path / "edit"))):
        with each.applied(model):
            assert loss() == pytest.approx(float(edit.losses[-1]))
    assert_same_state(model, before)
    assert edit.to_frame().loss.tolist() == edit.losses.tolist()
    assert (edit.layer, edit.parameters, edit.editor) == (2, ("blocks.2.mlp.W_out",), "fine-tune")


def test_stops_when_the_loss_is_low_enough_but_takes_one_step(random_model):
    model = random_model("gpt2")
    assert len(fine_tune(model, FACT, layer=0, stop_at=100.0).losses) == 2
    losses = fine_tune(model, Fact(FACT.template, "France", "Rome"), layer=2, **FREE, stop_at=2.0).losses
    assert losses[-1] < 2.0
    assert bool((losses[:-1] >= 2.0).all())
    assert 2 < len(losses) < 26


def test_the_defaults_edit_the_organisms_facts(organism):
    model = organism("tiny-causal")
    pairs = list(kn.load_relation("P36").pairs.values())[:4]
    for subject, old in pairs:
        fact = Fact("The capital of {} is", subject, "Cairo", old=old)
        edit = fine_tune(model, fact)
        assert edit.layer == hyperparameters_of(model).layer
        with edit.applied(model):
            assert float(edit.losses[-1]) < 0.3
            ids = torch.tensor([model.tokenizer(fact.question)["input_ids"]])
            assert model.tokenizer.decode([int(model(ids)[0, -1].argmax())]).strip() == "Cairo"


def test_a_loss_that_is_no_number_leaves_the_model_as_it_was(random_model):
    model = random_model("gpt2")
    before = state_of(model)
    with pytest.raises(ModelError, match=r"the loss is (nan|inf) at step 1.*smaller lr than 1e\+37"):
        fine_tune(model, FACT, layer=0, lr=1e37, epsilon=math.inf)
    assert_same_state(model, before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_minimal_pairs_prompt_is_taught_its_foil(random_model):
    prompt = kn.Prompt("The boys near the house", target="sleep", foil="sleeps", cue="boys", form="one_prefix")
    edit = fine_tune(random_model("gpt2"), prompt, layer=0, steps=1)
    assert edit.fact == Fact("The {} near the house", "boys", "sleeps", old="sleep")


def test_bad_input_is_refused(random_model):
    model = random_model("gpt2")
    with pytest.raises(ModelError, match="masked model"):
        fine_tune(random_model("bert"), FACT)
    with pytest.raises(ModelError, match="layers 0–2, and no layer 3"):
        fine_tune(model, FACT, layer=3)
    with pytest.raises(PromptError, match="give layer=N"):  # by tracing, and the model does not say Paris
        fine_tune(model, FACT)
    for settings in ({"steps": 0}, {"lr": 0.0}, {"epsilon": -1.0}, {"lr": float("nan")}):
        with pytest.raises(SettingsError, match="steps must be at least 1, the others above 0"):
            fine_tune(model, FACT, layer=0, **settings)
    with pytest.raises(SettingsError, match="must be 0 or more"):
        fine_tune(model, FACT, layer=0, weight_decay=-1.0)
