"""ROME equals its textbook form, and its update does what linear algebra says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kn_lens.editing.covariance import Covariance
from kn_lens.editing.rank_one import RankOneEdit
from kn_lens.editing.rome import rome
from kn_lens.errors import ModelError
from kn_lens.models.hashing import weights_hash
from kn_lens.prompts.fact import Fact
from tests.helpers import build_tokenizer
from tests.oracles import rome as textbook
from tests.questions import assert_same_state, state_of

PREFIXES = ("Not in Rome.", "It was near the old house and they know the river.")
MIDDLE = Fact("The capital city of {} is", "old France", "the old Rome", old="Paris")
START = Fact("{} has one capital city and it is", "new Spain", "Cairo")
END = Fact("They like the city of {}", "France", "Rome", old="Paris")
SEARCH = {"steps": 4, "lr": 0.2, "weight_decay": 0.1, "clamp": 0.9, "kl_factor": 0.0625}
FAMILIES = ("gpt2", "gpt_neox", "llama", "qwen2")


def by_hand(model, fact, prefixes=PREFIXES, **settings):
    return textbook.rome(model, fact.template, fact.subject, fact.target, prefixes=prefixes, **settings)


def some_covariance(model, layer=1, site="mlp", **changes):
    """A well-conditioned C that is not diagonal."""
    d_in = model.W_out.shape[1] if site == "mlp" else model.cfg.n_heads * model.cfg.d_head
    draw = torch.randn(d_in, 3 * d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    provenance = {"model": "by hand", "weights_hash": weights_hash(model)}
    fields = dict(layer=layer, site=site, tokens=1000, source="self", sha256="", settings={}, provenance=provenance)
    return Covariance(**{"matrix": draw @ draw.T / draw.shape[1], **fields, **changes})


def assert_equals(edit, expected, **tolerance):
    for name in ("losses", "nll", "kl"):
        torch.testing.assert_close(
            getattr(edit, name), torch.tensor(getattr(expected, name), dtype=torch.float64), **tolerance
        )
    for name in ("left", "right", "value"):
        torch.testing.assert_close(getattr(edit, name), getattr(expected, name), **tolerance)
    torch.testing.assert_close(edit.update(), expected.update, **tolerance)


# -- the textbook ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("layer", "site", "position", "fact", "more"),
    [
        (0, "mlp", "subject_last", MIDDLE, {}),
        (1, "mlp", "subject_last", START, {"clamp": 0.05}),
        (2, "mlp", "last", MIDDLE, {"kl_factor": 1.0}),
        (1, "mlp", "last", START, {"mixed_key": True}),
        (0, "attn", "last", MIDDLE, {"weight_decay": 0.0}),
        (1, "attn", "subject_last", START, {"mixed_key": True}),
        (2, "attn", "last", END, {"lr": 0.5}),
    ],
)
def test_equals_the_textbook(exact_model, family, layer, site, position, fact, more):
    """In float64 nothing but the order of sums differs."""
    model = exact_model(family)
    settings = {**SEARCH, **more}
    before = state_of(model)
    edit = rome(model, fact, layer=layer, site=site, position=position, prefixes=PREFIXES, **settings)
    assert_same_state(model, before)
    assert edit.settings["prefixes left out"] == 0
    assert edit.settings["essence prompt"]
    assert_equals(
        edit, by_hand(model, fact, layer=layer, site=site, position=position, **settings), rtol=1e-8, atol=1e-8
    )
    assert edit.losses[-1] < edit.losses[0]
    assert edit.right.norm() == pytest.approx(settings["clamp"] * edit.start.norm()) or settings["clamp"] > 0.5


@pytest.mark.parametrize(("family", "site", "mixed_key"), [("gpt2", "mlp", False), ("llama", "attn", True)])
def test_equals_the_textbook_with_a_covariance(exact_model, family, site, mixed_key):
    model = exact_model(family)
    covariance = some_covariance(model, site=site)
    settings = {**SEARCH, "layer": 1, "site": site, "position": "subject_last", "mixed_key": mixed_key}
    edit = rome(model, MIDDLE, prefixes=PREFIXES, covariance=covariance, **settings)
    assert_equals(edit, by_hand(model, MIDDLE, covariance=covariance.matrix, **settings), rtol=1e-8, atol=1e-8)
    plain = rome(model, MIDDLE, prefixes=PREFIXES, **settings)
    assert torch.equal(edit.right, plain.right)  # C bears on where v* is written, not on v*
    assert float(torch.cosine_similarity(edit.left, plain.left, dim=0)) < 0.99


def test_equals_the_textbook_on_smollm2(smollm2):
    """In float32 rounding grows from step to step of Adam."""
    fact = Fact("The capital of {} is", "Canada", "Rome", old="Ottawa")
    prefixes = ("The weather was fine all day.",)
    settings = {**SEARCH, "steps": 4, "lr": 0.5, "clamp": 4.0, "layer": 4}
    edit = rome(smollm2, fact, prefixes=prefixes, **settings)
    expected = by_hand(smollm2, fact, prefixes, **settings)
    assert float(edit.losses[-1]) == pytest.approx(expected.losses[-1], rel=0.01)
    assert edit.losses[-1] < 0.7 * edit.losses[0]
    assert float(torch.cosine_similarity(edit.update().flatten(), expected.update.flatten(), dim=0)) > 0.999


def test_a_subject_that_begins_the_text_keeps_its_prefixes(exact_model):
    """Behind a prefix France has a space before it, and is another token than at the start of a text."""
    model, fact = exact_model("gpt2"), Fact("{} has one capital city and it is", "France", "Rome")
    edit = rome(model, fact, layer=1, prefixes=PREFIXES, **SEARCH)
    assert (edit.settings["prefixes"], edit.settings["prefixes left out"]) == (2, 0)
    assert_equals(edit, by_hand(model, fact, PREFIXES, layer=1, **SEARCH), rtol=1e-8, atol=1e-8)


def test_the_search_stops_once_the_loss_is_small(exact_model):
    model = exact_model("gpt2")
    settings = {**SEARCH, "steps": 60, "lr": 0.5, "clamp": 1e3, "kl_factor": 0.0, "weight_decay": 0.0}
    edit = rome(model, END, layer=1, position="last", prefixes=(), **settings)
    assert len(edit.losses) < 60
    assert edit.losses[-1] < 0.05 <= float(edit.losses[:-1].min())
    assert_equals(edit, by_hand(model, END, (), layer=1, position="last", **settings), rtol=1e-6, atol=1e-6)
    # Twice the steps, the same edit: nothing was changed after the last evaluation.
    again = rome(model, END, layer=1, position="last", prefixes=(), **{**settings, "steps": 120})
    assert torch.equal(again.right, edit.right)


def test_an_answer_that_the_model_gives_already_is_refused(exact_model):
    """The search would end before its first step, and the update would be 0."""
    model = exact_model("gpt2")
    settings = {**SEARCH, "steps": 60, "lr": 0.5, "clamp": 1e3, "kl_factor": 0.0, "weight_decay": 0.0}
    edit = rome(model, END, layer=1, position="last", prefixes=(), **settings)
    with (
        edit.applied(model),
        pytest.raises(ModelError, match=r"answers 'They like the city of France' with 'Rome' already \(loss 0\.0"),
    ):
        rome(model, END, layer=1, position="last", prefixes=(), **settings)


def test_what_the_answer_does_not_read_is_refused(exact_model):
    """No block reads the last layer at the subject: every gradient is 0."""
    with pytest.raises(ModelError, match=r"nothing added to the mlp output of layer 2 at the subject's last token of "):
        rome(exact_model("gpt2"), MIDDLE, layer=2, prefixes=PREFIXES, **SEARCH)


# -- the update ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "near"), [("random_model", 1e-4), ("exact_model", 1e-9)])
@pytest.mark.parametrize(("family", "site"), [("gpt2", "mlp"), ("llama", "mlp"), ("qwen2", "attn")])
def test_the_key_gives_the_value_and_keys_orthogonal_to_it_what_they_gave(request, dtype, near, family, site):
    model = request.getfixturevalue(dtype)(family)
    edit = rome(model, MIDDLE, layer=1, site=site, prefixes=PREFIXES, **SEARCH)
    weight, bias = textbook.matrix_and_bias(model, 1, site)
    others = torch.randn(20, len(edit.key), generator=torch.Generator().manual_seed(0)).to(weight)
    others = others - torch.outer(others @ edit.key, edit.key) / (edit.key @ edit.key)
    gave = others @ weight
    before = state_of(model)
    with edit.applied(model):
        edited, _ = textbook.matrix_and_bias(model, 1, site)
        torch.testing.assert_close(edit.key @ edited + bias, edit.value, rtol=0, atol=near)
        torch.testing.assert_close(others @ edited, gave, rtol=0, atol=near)
    assert_same_state(model, before)
    assert edit.norm == pytest.approx(float(edit.update().norm()), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_edited_model_says_what_the_search_found(exact_model, family):
    """In the last layer nothing reads what the edit changes elsewhere: the model's own NLL is the search's last."""
    model = exact_model(family)
    edit = rome(model, END, layer=2, position="last", prefixes=(), **SEARCH)
    text = textbook.tokenize(model, END.template, END.subject, "last", END.target)
    with edit.applied(model), torch.no_grad():
        logits, cache = model.run_with_cache(torch.tensor([text.ids]))
        nll = -logits[0, -1].log_softmax(-1)[text.answer[0]]
    torch.testing.assert_close(cache["blocks.2.hook_mlp_out"][0, -1], edit.value, rtol=1e-9, atol=1e-9)
    assert float(nll) == pytest.approx(float(edit.nll[-1]), rel=1e-9)


def test_with_a_covariance_the_update_disturbs_other_keys_least(exact_model):
    """min tr(Δᵀ C Δ) with kᵀΔ = rᵀ, solved as one system with Lagrange multipliers."""
    model = exact_model("gpt2")
    covariance = some_covariance(model)
    edit = rome(model, MIDDLE, layer=1, prefixes=PREFIXES, covariance=covariance, **SEARCH)
    key, right, matrix = (each.numpy() for each in (edit.key, edit.right, covariance.matrix))
    system = np.block([[matrix, key[:, None]], [key[None], np.zeros((1, 1))]])
    solution = np.linalg.solve(system, np.vstack([np.zeros((len(key), len(right))), right[None]]))[:-1]
    np.testing.assert_allclose(edit.update().numpy(), solution, rtol=1e-8, atol=1e-10)


def test_mixed_keys_are_the_published_formula(exact_model):
    """u = C⁻¹k̄ / (k₀ᵀC⁻¹k̄): the plain prompt's key k₀ gives v*, the mean key k̄ does not."""
    model = exact_model("gpt2")
    mixed, plain = (rome(model, MIDDLE, layer=1, prefixes=PREFIXES, mixed_key=each, **SEARCH) for each in (True, False))
    texts = [
        textbook.tokenize(model, MIDDLE.template, MIDDLE.subject, "subject_last", before=p) for p in ("", *PREFIXES)
    ]
    keys = torch.stack([textbook.key_and_output(model, text, 1, "mlp")[0] for text in texts])
    torch.testing.assert_close(plain.key, keys.mean(0))
    torch.testing.assert_close(mixed.key, keys[0])
    torch.testing.assert_close(mixed.left, keys.mean(0) / (keys[0] @ keys.mean(0)))
    assert float(keys[0] @ mixed.left) == pytest.approx(1, rel=1e-12)
    assert abs(float(keys.mean(0) @ mixed.left) - 1) > 1e-3
    assert float(keys.mean(0) @ plain.left) == pytest.approx(1, rel=1e-12)


def test_one_layer_without_attention_is_edited_as_computed_by_hand():
    """Adam's first step is −lr · sign(gradient), and the gradient is W_U (p − e_target): all by matrix products."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    tokenizer = build_tokenizer("gpt2")
    config = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=16, d_head=4, n_heads=2, d_mlp=20, act_fn="relu", d_vocab=len(tokenizer),
        normalization_type=None, seed=2, model_name="one layer",
    )  # fmt: skip
    model = HookedTransformer(config).to(torch.float64)
    model.tokenizer = tokenizer
    with torch.no_grad():
        model.blocks[0].attn.W_O.zero_()
        for weight in (model.W_E, model.W_pos, model.blocks[0].mlp.W_in, model.blocks[0].mlp.W_out, model.W_U):
            weight.mul_(4)
    ids, target = tokenizer(END.question)["input_ids"], tokenizer(" Rome")["input_ids"][0]
    with torch.no_grad():
        x = model.W_E[ids[-1]] + model.W_pos[len(ids) - 1]
        key = (x @ model.W_in[0] + model.b_in[0]).relu()
        out = key @ model.W_out[0] + model.b_out[0]
        wanted = torch.nn.functional.one_hot(torch.tensor(target), len(tokenizer)).double()
        gradient = model.W_U @ (((x + out) @ model.W_U + model.b_U).softmax(-1) - wanted)
    for step, clamp in ((0.01, 100.0), (0.005, 0.005 * 8**0.5 / float(out.norm()))):
        edit = rome(model, END, layer=0, prefixes=(), steps=2, lr=0.01, clamp=clamp, weight_decay=0.5)
        expected = torch.outer(key, -step * gradient.sign()) / (key @ key)
        torch.testing.assert_close(edit.update(), expected, rtol=1e-5, atol=1e-12)
        with edit.applied(model), torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1]
        expected = (x + out - step * gradient.sign()) @ model.W_U + model.b_U
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-8)
        assert logits.log_softmax(-1)[target] > -edit.nll[0]


def test_saved_and_read_again_it_is_the_same_edit(exact_model, tmp_path):
    model = exact_model("llama")
    edit = rome(model, MIDDLE, layer=1, prefixes=PREFIXES, covariance=some_covariance(model), **SEARCH)
    loaded = RankOneEdit.load(edit.save(tmp_path / "edit"))
    for name in ("key", "left", "right", "start", "losses", "nll", "kl"):
        assert torch.equal(getattr(loaded, name), getattr(edit, name)), name
    assert (loaded.fact, loaded.layer, loaded.site) == (MIDDLE, 1, "mlp")
    assert (loaded.settings, loaded.provenance) == (edit.settings, edit.provenance)
    assert loaded.describe() == "rome on old France: Paris → the old Rome"
    weights = []
    for each in (edit, loaded):
        with each.applied(model):
            weights.append(model.W_out[1].detach().clone())
    assert torch.equal(*weights)
    frame = loaded.to_frame()
    assert frame.step.tolist() == [0, 1, 2, 3]
    assert frame.loss.tolist() == edit.losses.tolist()


def test_one_seed_makes_one_edit_and_the_generators_are_left_alone(organism):
    model, fact = organism("tiny-causal"), Fact("The capital of {} is", "Spain", "Rome", old="Madrid")
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    edits = [rome(model, fact, prefixes=None, steps=3, position="subject_last", seed=seed) for seed in (0, 0)]
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(edits[0].update(), edits[1].update())
