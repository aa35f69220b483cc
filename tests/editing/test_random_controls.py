"""Controls differ from ROME in one choice only: the layer, or the direction of the key."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kn_lens.editing.hyperparameters import hyperparameters_of
from kn_lens.editing.random_controls import rome_at_random_layer, rome_random_direction, with_random_direction
from kn_lens.editing.rome import rome
from kn_lens.errors import ModelError, SettingsError
from kn_lens.prompts.fact import Fact

FACTS = [
    Fact("The capital of {} is", subject, "Prague", old=old)
    for subject, old in (("Spain", "Madrid"), ("Germany", "Berlin"), ("Italy", "Rome"))
]
SHORT = {"prefixes": (), "steps": 2}


def says(model, fact):
    with torch.no_grad():
        top = model(torch.tensor([model.tokenizer(fact.question)["input_ids"]]))[0, -1].argmax()
    return model.tokenizer.decode([int(top)]).strip()


def test_a_random_direction_keeps_the_norm_and_the_right_side(organism):
    model = organism("tiny-causal")
    edit = rome(model, FACTS[0], **SHORT)
    control = with_random_direction(edit, seed=1)
    assert control.norm == pytest.approx(edit.norm, rel=1e-5)
    assert float(torch.linalg.matrix_norm(control.update())) == pytest.approx(edit.norm, rel=1e-5)
    assert torch.equal(control.right, edit.right)
    torch.testing.assert_close(control.key @ control.update(), edit.right)  # the key drawn now gives the value
    cosine = float(torch.cosine_similarity(control.left, edit.left, dim=0))
    assert abs(cosine) < 4 / len(edit.left) ** 0.5
    assert (control.layer, control.parameter, control.fact) == (edit.layer, edit.parameter, edit.fact)
    assert control.editor == "rome, random direction"


def test_directions_come_from_the_seed_and_the_fact_alone(organism):
    edit = rome(organism("tiny-causal"), FACTS[0], **SHORT)
    lefts = [with_random_direction(edit, seed).left for seed in (0, 0, 1)]
    other = with_random_direction(replace(edit, fact=FACTS[1]), 0).left
    assert torch.equal(lefts[0], lefts[1])
    units = torch.stack([lefts[0], lefts[2], other])
    units = units / units.norm(dim=1, keepdim=True)
    assert float((units @ units.T - torch.eye(3)).abs().max()) < 0.25


def test_rome_with_a_random_direction_is_rome_and_then_the_draw(organism):
    model = organism("tiny-causal")
    state = torch.random.get_rng_state()
    found = rome_random_direction(model, FACTS[0], seed=2, **SHORT)
    assert torch.equal(torch.random.get_rng_state(), state)
    expected = with_random_direction(rome(model, FACTS[0], seed=2, **SHORT), 2)
    assert torch.equal(found.left, expected.left)
    assert torch.equal(found.right, expected.right)


def test_the_drawn_layer_is_any_but_the_chosen_one(organism):
    model = organism("tiny-causal")
    found = [rome_at_random_layer(model, fact, seed=seed, **SHORT) for fact in FACTS for seed in range(4)]
    chosen = hyperparameters_of(model).layer
    assert {edit.layer for edit in found} == {0, 1, 2, 3} - {chosen}
    assert {edit.settings["instead of layer"] for edit in found} == {chosen}
    assert {rome_at_random_layer(model, FACTS[0], layer=2, seed=seed, **SHORT).layer for seed in range(16)} == {0, 1, 3}
    plain = rome(model, FACTS[0], layer=found[0].layer, **SHORT)
    assert torch.equal(found[0].left, plain.left)
    assert torch.equal(found[0].right, plain.right)
    assert found[0].editor == "rome, random layer"


def test_a_random_direction_does_not_write_the_fact(organism):
    model = organism("tiny-causal")
    for fact in FACTS:
        edit = rome(model, fact, prefixes=())
        with edit.applied(model):
            assert says(model, fact) == "Prague"
        with with_random_direction(edit).applied(model):
            assert says(model, fact) != "Prague"


def test_bad_input_is_refused(random_model, organism, tmp_path):
    for control in (rome_at_random_layer, rome_random_direction):
        with pytest.raises(ModelError, match="masked model"):
            control(random_model("bert"), FACTS[0])
    with pytest.raises(ModelError, match="layers 0–3, and no layer 4"):
        rome_at_random_layer(organism("tiny-causal"), FACTS[0], layer=4)


def test_a_model_of_one_layer_has_no_other(monkeypatch, organism):
    model = organism("tiny-causal")
    monkeypatch.setattr(model.cfg, "n_layers", 1)
    with pytest.raises(SettingsError, match="has one layer"):
        rome_at_random_layer(model, FACTS[0], layer=0)
