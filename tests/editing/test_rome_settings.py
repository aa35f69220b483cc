"""ROME's layer, settings and facts come from where they should; what cannot be edited is refused."""

from __future__ import annotations

import copy
import re

import pytest
import torch

import kn_lens as kn
from kn_lens.editing.covariance import covariance_of
from kn_lens.editing.edit import unedited
from kn_lens.editing.fine_tune import fine_tune
from kn_lens.editing.hyperparameters import hyperparameters_of
from kn_lens.editing.layer_choice import layer_by_tracing
from kn_lens.editing.rome import rome
from kn_lens.errors import ModelError, PromptError, SettingsError
from kn_lens.prompts.fact import Fact
from tests.editing.test_rome import MIDDLE, PREFIXES, SEARCH, START, some_covariance
from tests.helpers import build_tokenizer
from tests.questions import assert_same_state, state_of


def test_the_layer_is_the_known_one_or_that_of_tracing(organism):
    model, fact = organism("tiny-causal"), Fact("The capital of {} is", "Spain", "Rome", old="Madrid")
    short = {"prefixes": (), "steps": 2}
    assert rome(model, fact, **short).layer == hyperparameters_of(model).layer == 1
    for position in ("subject_last", "last"):
        traced = layer_by_tracing(model, [fact], position=position, progress=False).layer
        assert rome(model, fact, layer="auto", position=position, **short).layer == traced
    assert rome(model, fact, layer="auto", position="subject_last", **short).layer == 0
    assert rome(model, fact, layer=0, **short).settings["position"] == "last"  # where this model is edited
    assert rome(model, fact, site="attn", **short).editor == "rome, attention"


@pytest.mark.parametrize(
    ("name", "layer", "steps", "weight_decay"),
    [("gpt2-xl", 17, 20, 0.5), ("meta-llama/Llama-2-7b-hf", 5, 25, 1e-3), ("gpt2", None, 25, 1e-3)],
)
def test_settings_go_by_the_models_name(random_model, name, layer, steps, weight_decay):
    model = copy.deepcopy(random_model("gpt2"))
    model.cfg.model_name = name
    known = hyperparameters_of(model)
    assert (known.layer, known.steps, known.weight_decay) == (layer, steps, weight_decay)
    assert (known.lr, known.clamp, known.kl_factor, known.position) == (0.5, 4.0, 0.0625, "subject_last")
    edit = rome(model, START, layer=1, prefixes=PREFIXES[:1], lr=0.1)
    found = {key: edit.settings[key] for key in ("steps", "lr", "weight_decay", "clamp", "kl_factor")}
    assert found == {"steps": steps, "lr": 0.1, "weight_decay": weight_decay, "clamp": 4.0, "kl_factor": 0.0625}
    refused = "not known of" if layer is None else rf"{name} has layers 0–2, and no layer {layer}"
    with pytest.raises((ModelError, PromptError), match=refused):
        rome(model, START, prefixes=())


@pytest.mark.parametrize(
    ("text", "cue", "target", "foil"),
    [
        ("My ladies over there", "ladies", "were", "was"),
        ("Your editor inside", "editor", "plays", "play"),
        ("Robert might touch that", "that", "coin", "coins"),
    ],
)
def test_a_minimal_pairs_foil_becomes_the_answer(organism, text, cue, target, foil):
    model = organism("tiny-causal")
    edit = rome(model, kn.Prompt(text, target=target, cue=cue, foil=foil))
    assert (edit.fact.subject, edit.fact.old, edit.fact.target) == (cue, target, foil)
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    numbers = [model.tokenizer(f"{text} {word}")["input_ids"][-1] for word in (target, foil)]
    with torch.no_grad():
        before = model(ids)[0, -1]
        with edit.applied(model):
            after = model(ids)[0, -1]
    assert before[numbers[0]] > before[numbers[1]]
    assert int(after.argmax()) == numbers[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_edited_alike(random_model, dtype):
    """δ and the loss are held in float32; what is left is the rounding of the model's own numbers."""
    rounded = copy.deepcopy(random_model("llama")).to(dtype)
    exact = copy.deepcopy(rounded).to(torch.float32)
    before = state_of(rounded)
    edits = [rome(model, MIDDLE, layer=1, prefixes=PREFIXES, **SEARCH) for model in (rounded, exact)]
    updates = [edit.update().double().flatten() for edit in edits]
    assert float(torch.cosine_similarity(*updates, dim=0)) > 0.98
    assert edits[0].losses.tolist() == pytest.approx(edits[1].losses.tolist(), rel=0.03)
    with edits[0].applied(rounded):
        change = (
            rounded.W_out[1].detach().double().flatten() - before["weights"]["blocks.1.mlp.W_out"].double().flatten()
        )
        assert float(torch.cosine_similarity(change, updates[1], dim=0)) > 0.95
    assert_same_state(rounded, before)


def test_in_half_precision_a_small_covariance_does_not_overflow(random_model):
    """C⁻¹k is a million times k, too large for float16; u is the identity's."""
    model = copy.deepcopy(random_model("llama")).to(torch.float16)
    small = some_covariance(model, matrix=1e-6 * torch.eye(model.W_out.shape[1]))
    edits = [rome(model, MIDDLE, layer=1, prefixes=PREFIXES, covariance=each, **SEARCH) for each in (small, "identity")]
    torch.testing.assert_close(edits[0].left, edits[1].left, rtol=1e-3, atol=1e-6)
    assert edits[0].left.dtype == torch.float16


def test_a_prefix_that_does_not_fit_the_context_is_left_out(random_model):
    long = " ".join(["The boys sing and the girls know the old teacher."] * 6)  # the model reads 64 tokens
    edit = rome(random_model("gpt2"), MIDDLE, layer=1, prefixes=(PREFIXES[0], long), **SEARCH)
    alone = rome(random_model("gpt2"), MIDDLE, layer=1, prefixes=PREFIXES[:1], **SEARCH)
    assert (edit.settings["prefixes"], edit.settings["prefixes left out"]) == (1, 1)
    assert torch.equal(edit.update(), alone.update())


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layer": -1}, ModelError, "has layers 0–2, and no layer -1"),
        ({"layer": 3}, ModelError, "has layers 0–2, and no layer 3"),
        ({"layer": 1.5}, SettingsError, "layer is 1.5; give a number, or 'auto'"),
        ({"layer": "first"}, SettingsError, "layer is 'first'"),
        ({"layer": True}, SettingsError, "layer is True"),
        ({"site": "mpl"}, SettingsError, "no site 'mpl'.*mlp"),
        ({"position": "frist"}, SettingsError, "no position 'frist'.*subject_last, last"),
        ({"steps": 0}, SettingsError, "steps is 0"),
        ({"lr": -0.1}, SettingsError, "lr -0.1"),
        ({"clamp": 0.0}, SettingsError, "clamp 0"),
        ({"lr": float("nan")}, SettingsError, "lr nan"),
        ({"weight_decay": -1.0}, SettingsError, "weight_decay is -1"),
        ({"kl_factor": float("nan")}, SettingsError, "kl_factor nan"),
    ],
)
def test_settings_outside_their_range_are_refused(random_model, arguments, error, message):
    with pytest.raises(error, match=message):
        rome(random_model("gpt2"), MIDDLE, **{"layer": 1, "prefixes": (), **arguments})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("The capital is", "France", "Rome", None), "subject 'France' is missing from 'The capital is'"),
        (("{} is in", "France", "Paris", " Paris"), "new answer to 'France is in' is the old one"),
        (("{} is in", "France", " ", None), "new answer to 'France is in' is empty"),
        (("{} is in", "", "Rome", None), "subject of '{} is in' is empty"),
    ],
)
def test_facts_that_no_edit_can_make_are_refused(fields, message):
    with pytest.raises(PromptError, match=re.escape(message)):
        Fact(*fields[:3], old=fields[3])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cue": "ladies"}, "has no foil, which would be the new answer"),
        ({"foil": "was"}, "has no cue, which would be the subject"),
        ({"cue": "gentlemen", "foil": "was"}, "'gentlemen' does not occur in"),
    ],
)
def test_pairs_without_a_subject_or_a_new_answer_are_refused(random_model, fields, message):
    with pytest.raises(PromptError, match=message):
        rome(random_model("gpt2"), kn.Prompt("My ladies over there", target="were", **fields), layer=1)


def test_masked_models_and_foreign_covariances_are_refused(random_model):
    with pytest.raises(ModelError, match=r"is a masked model.*kn\.neuron_edit"):
        rome(random_model("bert"), MIDDLE, layer=1)
    model = random_model("gpt2")
    for covariance, message in (
        (some_covariance(model, layer=0), r"of layer 0 \(mlp\), and the edit is of layer 1"),
        (some_covariance(model, site="attn"), r"of layer 1 \(attn\), and the edit is of layer 1 \(mlp\)"),
        (some_covariance(random_model("llama")), r"of 96 inputs \(by hand\), and the matrix of model-0 reads 128"),
        (some_covariance(model, provenance={}), "made on other weights"),
    ):
        with pytest.raises(ModelError, match=message):
            rome(model, MIDDLE, layer=1, prefixes=(), covariance=covariance, **SEARCH)


def test_models_without_an_mlp_in_each_layer_are_refused():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    tokenizer = build_tokenizer("gpt2")
    config = HookedTransformerConfig(
        n_layers=2, d_model=8, n_ctx=16, d_head=4, n_heads=2, attn_only=True, d_vocab=len(tokenizer),
        normalization_type=None, seed=2, model_name="attention only",
    )  # fmt: skip
    model = HookedTransformer(config)
    model.tokenizer = tokenizer
    edits = (rome, fine_tune, lambda model, fact, layer: covariance_of(model, "self", layer=layer))
    for edit in edits:
        with pytest.raises(ModelError, match=r"attention only has no weight blocks\.0\.mlp\.W_out.*mixture of experts"):
            edit(model, MIDDLE, layer=1)
    assert rome(model, MIDDLE, layer=1, site="attn", prefixes=(), steps=2).parameter == "blocks.1.attn.W_O"


@pytest.mark.parametrize("source", ["given", "self"])
def test_a_sequence_of_edits_shares_the_covariance_of_the_unedited_model(random_model, source, monkeypatch, tmp_path):
    monkeypatch.setenv("KN_LENS_CACHE", str(tmp_path))
    model = random_model("gpt2")
    before = state_of(model)
    covariance = covariance_of(model, "self", layer=1, progress=False)
    options = {"layer": 1, "prefixes": (), "covariance": covariance if source == "given" else "self", **SEARCH}
    first = rome(model, MIDDLE, **options)
    with first.applied(model):
        edited = model.W_out[1].detach().clone()
        second = rome(model, START, **options)
        assert torch.equal(model.W_out[1], edited)
        solved = covariance.solve(second.key)
        torch.testing.assert_close(second.left, solved / (second.key @ solved))
        with second.applied(model), unedited(model):
            assert_same_state(model, before)
        assert torch.equal(model.W_out[1], edited)
    assert_same_state(model, before)


def test_a_loss_that_is_not_finite_leaves_the_model_as_it_was(random_model):
    model = random_model("gpt2")
    before = state_of(model)
    with pytest.raises(ModelError, match=r"old France.*the loss is nan at step 1; the model is left as it was.*lr"):
        rome(model, MIDDLE, layer=1, prefixes=(), steps=4, lr=1e30)
    with pytest.raises(ModelError, match=r"no step can be taken with lr 1e\+300 .*try a smaller one"):
        rome(model, MIDDLE, layer=1, prefixes=(), steps=4, lr=1e300)
    assert_same_state(model, before)
