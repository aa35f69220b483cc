"""Edits are added to weights, commute, and come off again bit by bit, whatever happens in between."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import pytest
import torch

from kn_lens.editing.edit import Edit, edits_applied
from kn_lens.editing.rank_one import RankOneEdit
from kn_lens.errors import ModelError, OutputError
from kn_lens.models.kind import model_name
from kn_lens.prompts.fact import Fact
from tests.helpers import FAMILIES
from tests.questions import assert_same_state, state_of

FACT = Fact("The capital of {} is", "France", "Rome", old="Paris", paraphrases=("{} has the capital",))
W_OUT = "blocks.1.mlp.W_out"
W_O = "blocks.1.attn.W_O"
B_OUT = "blocks.1.mlp.b_out"


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_edit(model, rows, seed=0, *, names=(W_OUT,), scale=1.0, fact=FACT):
    """Something random added to the same rows of some weights."""
    return Edit(
        editor=f"by hand {seed}",
        fact=fact,
        rows={name: torch.tensor(rows, dtype=torch.long) for name in names},
        changes={name: scale * draw(len(rows), model.cfg.d_model, seed=seed) for name in names},
        settings={"seed": seed},
        provenance={"model": model_name(model)},
    )


def rank_one(model, site="mlp", seed=0, scale=1.0, layer=1):
    d_in = model.W_out.shape[1] if site == "mlp" else model.cfg.n_heads * model.cfg.d_head
    left, right, none = draw(d_in, seed=seed), scale * draw(model.cfg.d_model, seed=seed + 50), torch.zeros(0)
    return RankOneEdit(
        editor="rome by hand", fact=FACT, rows={}, changes={}, layer=layer, site=site, key=left,
        left=left.clone(), right=right, start=torch.zeros_like(right), losses=none, nll=none, kl=none, settings={},
        provenance={"model": model_name(model)},
    )  # fmt: skip


def weight_of(model, name):
    return dict(model.named_parameters())[name].detach()


@pytest.fixture(params=FAMILIES)
def model(request, random_model):
    return random_model(request.param)


# -- on and off ------------------------------------------------------------------------------------


def test_rows_of_matrices_heads_and_vectors_change_and_nothing_else(model):
    edit = rows_edit(model, [0, 9, 31], names=(W_OUT, W_O))
    bias = rows_edit(model, [0], seed=3, names=(B_OUT,))
    before = state_of(model)
    edit.apply(model)
    bias.apply(model)
    after = state_of(model)["weights"]
    assert edit.parameters == (W_OUT, W_O)
    for name, old in before["weights"].items():
        expected = old.clone()
        if name in edit.parameters:
            flat = expected.view(-1, expected.shape[-1])
            for row, change in zip((0, 9, 31), edit.changes[name], strict=True):
                flat[row] += change
        if name == B_OUT:
            expected += bias.changes[name][0]
        assert torch.equal(after[name], expected), name
    bias.revert(model)
    edit.revert(model)
    assert_same_state(model, before)


@pytest.mark.parametrize("site", ["mlp", "attn"])
def test_a_rank_one_edit_adds_an_outer_product(model, site):
    edit, before = rank_one(model, site), state_of(model)
    old = before["weights"][edit.parameter]
    with edit.applied(model):
        change = (weight_of(model, edit.parameter) - old).reshape(-1, model.cfg.d_model)
        torch.testing.assert_close(change, torch.outer(edit.left, edit.right), rtol=1e-4, atol=1e-5)
    assert_same_state(model, before)
    assert edit.norm == pytest.approx(float(torch.outer(edit.left, edit.right).norm()), rel=1e-5)


def test_an_exception_inside_takes_the_edit_back(model):
    before = state_of(model)
    with pytest.raises(KeyError), rows_edit(model, [4]).applied(model):
        raise KeyError("inside")
    assert_same_state(model, before)
    with pytest.raises(KeyError), edits_applied(model, [rows_edit(model, [4], seed) for seed in range(3)]):
        raise KeyError("inside")
    assert_same_state(model, before)
    wrong = rows_edit(model, [10_000], seed=7)
    with pytest.raises(ModelError, match="does not fit"), edits_applied(model, [rows_edit(model, [4]), wrong]):
        raise AssertionError("the second edit does not fit")
    assert_same_state(model, before)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1), (2, 1, 0)])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_edits_of_one_matrix_come_off_in_any_order(random_model, family, order):
    """What is left is at each step, bit by bit, what the remaining edits alone would make."""
    model = random_model(family)
    edits = [rows_edit(model, [0, 4], 1, scale=1e3), rank_one(model, seed=2), rows_edit(model, [4, 5], 3, scale=1e-3)]
    before = state_of(model)
    for edit in edits:
        edit.apply(model)
    left = list(edits)
    for index in order:
        edits[index].revert(model)
        left.remove(edits[index])
        found = weight_of(model, W_OUT).clone()
        fresh = copy.deepcopy(model)
        fresh.load_state_dict(before["weights"])
        with edits_applied(fresh, left):
            assert torch.equal(found, weight_of(fresh, W_OUT))
    assert_same_state(model, before)


def test_edits_of_one_layer_commute(model):
    first, second = rank_one(model, seed=1), rows_edit(model, [0, 4, 7], 2)
    found = []
    for pair in ((first, second), (second, first)):
        with edits_applied(model, pair):
            found.append(weight_of(model, W_OUT).clone())
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)
    assert float((found[0] - weight_of(model, W_OUT)).abs().max()) > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_half_precision_comes_back_bit_by_bit(random_model, family, dtype):
    model = copy.deepcopy(random_model(family)).to(dtype)
    before = state_of(model)
    edits = [rank_one(model, "attn"), rank_one(model, "mlp"), rows_edit(model, [0, 3], scale=100.0)]
    old = weight_of(model, W_OUT).clone()
    with edits_applied(model, edits):
        change = (weight_of(model, W_OUT) - old).float()
        expected = torch.outer(edits[1].left, edits[1].right)
        expected[[0, 3]] += edits[2].changes[W_OUT]
        torch.testing.assert_close(change, expected, rtol=0.02, atol=0.1)
        edits[0].revert(model)
        edits[0].apply(model)
    assert_same_state(model, before)
    with pytest.raises(ModelError, match=rf"changes no weight of {W_OUT}; it is empty, or too small for {dtype}"):
        rows_edit(model, [0], scale=1e-12).apply(model)
    assert_same_state(model, before)


# -- refused ---------------------------------------------------------------------------------------


def test_applying_twice_and_reverting_what_is_not_applied_are_refused(random_model):
    model = random_model("gpt2")
    before, edit, twin = state_of(model), rows_edit(model, [4]), rows_edit(model, [4])
    with pytest.raises(ModelError, match=r"by hand 0 on France: Paris → Rome\) is not applied to model-0"):
        edit.revert(model)
    with edit.applied(model):
        once = weight_of(model, W_OUT).clone()
        with pytest.raises(ModelError, match="is applied to model-0 already; revert it first"):
            edit.apply(model)
        assert torch.equal(weight_of(model, W_OUT), once)
        with twin.applied(model):  # another edit, though it adds the same
            assert not torch.equal(weight_of(model, W_OUT), once)
    assert_same_state(model, before)
    with pytest.raises(ModelError, match="is not applied"):
        edit.revert(model)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_edit_that_would_write_nan_is_refused(model, bad):
    before = state_of(model)
    edit = rows_edit(model, [4], names=(W_OUT, W_O))
    edit.changes[W_O][0, 3] = bad
    product = rank_one(model)
    product.right[0] = bad
    for each in (edit, product):
        with pytest.raises(ModelError, match="would write NaN or ∞; the model is left as it was"):
            each.apply(model)
        assert_same_state(model, before)
        with pytest.raises(ModelError, match="is not applied"):
            each.revert(model)


def test_an_edit_of_nothing_is_refused(random_model):
    model = random_model("gpt2")
    for edit in (rows_edit(model, [4], scale=0.0), rows_edit(model, []), rank_one(model, scale=0.0)):
        with pytest.raises(ModelError, match=r"norm 0\) changes no weight of blocks\.1\.mlp\.W_out; it is empty"):
            edit.apply(model)


def test_edits_of_other_models_and_shapes_are_refused(random_model):
    gpt2, llama = random_model("gpt2"), random_model("llama")  # 128 and 96 neurons
    before = state_of(llama), state_of(gpt2)
    for edit, message in (
        (rows_edit(gpt2, [100]), r"does not fit model-0: it changes row 100 of width 32, and there are 96 rows"),
        (rank_one(gpt2), r"does not fit model-0: it is an update of 128 × 32, and the weight has 96 × 32"),
        (rows_edit(gpt2, [-1]), r"there are 96 rows"),
        (rows_edit(gpt2, [4, 4]), r"it names 1 different rows in 2 places and has 2 changes for them"),
        (replace(rows_edit(gpt2, [4]), rows={W_OUT: torch.tensor([4, 5])}), r"has 1 changes for them"),
        (replace(rows_edit(gpt2, [4]), rows={}, changes={}), r"is empty: it names no weight to change"),
        (rank_one(gpt2, layer=8), r"changes blocks\.8\.mlp\.W_out of model-0.*it has no such weight"),
    ):
        with pytest.raises(ModelError, match=message):
            edit.apply(llama)
    other = copy.deepcopy(gpt2)
    other.cfg.model_name = "another"
    with pytest.raises(ModelError, match="was made for another, and the model is model-0"):
        rows_edit(other, [4]).apply(gpt2)
    assert_same_state(llama, before[0])
    assert_same_state(gpt2, before[1])


def test_an_edit_that_cannot_be_put_back_leaves_those_that_can(random_model):
    """The last two were applied on top of the first; without it the last adds nothing that float32 holds."""
    model = random_model("gpt2")
    before = state_of(model)
    first, second, last = (rows_edit(model, [4], seed=seed) for seed in range(3))
    with torch.no_grad():
        first.changes[W_OUT].copy_(
            -weight_of(model, W_OUT)[4] - second.changes[W_OUT][0]
        )  # the row becomes 0 after both
        last.changes[W_OUT].fill_(1e-20)
    for edit in (first, second, last):
        edit.apply(model)
    with pytest.raises(ModelError, match=r"too small for torch\.float32"):
        first.revert(model)
    second.revert(model)
    assert_same_state(model, before)


# -- other hands on the weights --------------------------------------------------------------------


def test_a_change_by_something_else_is_reported_and_undone(random_model, caplog):
    model = random_model("gpt2")
    before, edit = state_of(model), rows_edit(model, [4])
    with caplog.at_level(logging.WARNING, logger="kn_lens"):
        with edit.applied(model):
            pass
        assert not caplog.records
        with edit.applied(model), torch.no_grad():
            model.blocks[1].mlp.W_out[7, 7] += 1
    assert [record.getMessage() for record in caplog.records] == [
        f"{W_OUT} of model-0 was changed by something else while an edit was applied; reverting undoes that too"
    ]
    assert_same_state(model, before)


def test_weights_changed_elsewhere_are_left_alone(random_model, caplog):
    model = copy.deepcopy(random_model("gpt2"))
    with caplog.at_level(logging.WARNING, logger="kn_lens"), rows_edit(model, [4]).applied(model), torch.no_grad():
        model.blocks[2].mlp.W_out[7, 7] = 5
    assert float(model.blocks[2].mlp.W_out[7, 7].detach()) == 5
    assert not caplog.records


# -- as a result -----------------------------------------------------------------------------------


def test_saved_and_read_again_it_is_the_same_edit(random_model, tmp_path):
    model = random_model("llama")
    edit = rows_edit(model, [0, 9, 31], names=(W_OUT, W_O))
    loaded = Edit.load(edit.save(tmp_path / "rows"))
    assert (loaded.fact, loaded.editor, loaded.settings, loaded.provenance) == (
        FACT, edit.editor, edit.settings, edit.provenance,
    )  # fmt: skip
    assert loaded.parameters == edit.parameters
    found = []
    for each in (edit, loaded):
        with each.applied(model):
            found.append(state_of(model)["weights"])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    without = Edit.load(rows_edit(model, [1], fact=None).save(tmp_path / "without"))
    assert (without.fact, without.describe()) == (None, "by hand 0")
    assert type(Edit.load(rank_one(model).save(tmp_path / "product"))) is RankOneEdit
    with pytest.raises(OutputError, match="not RankOneEdit"):
        RankOneEdit.load(tmp_path / "rows")


def test_it_says_what_it_changes_and_how_much(random_model):
    edit = rows_edit(random_model("gpt2"), [0, 9], names=(W_OUT, W_O))
    squares = sum(float((change.double() ** 2).sum()) for change in edit.changes.values())
    assert edit.norm == pytest.approx(squares**0.5, rel=1e-12)
    assert edit.describe() == "by hand 0 on France: Paris → Rome"
    frame = edit.to_frame()
    assert frame.parameter.tolist() == [W_OUT, W_O]
    assert frame.rows.tolist() == [2, 2]
    assert float((frame["norm"] ** 2).sum()) == pytest.approx(squares)
