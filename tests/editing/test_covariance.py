"""C is the mean of k kᵀ over a text, solved as linear algebra says, kept, and refused where it does not belong."""

from __future__ import annotations

import gzip
import logging
from dataclasses import replace

import pytest
import torch

from kn_lens.editing import covariance as room
from kn_lens.editing.covariance import Covariance, check_covariance, covariance_for, covariance_of
from kn_lens.editing.second_moment import _until_end
from kn_lens.errors import DataError, ModelError, SettingsError

LINES = ["The capital city of France is Paris.", "", "The boys sing and the girls know the old teacher.", "It was Rome"]
HOOKS = {"mlp": "blocks.1.mlp.hook_post", "attn": "blocks.1.attn.hook_z"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KN_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(room, "_IN_MEMORY", {})


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def keys_by_hand(model, lines, site, skip):
    """k of every token, each line run alone by the whole model."""
    found = []
    for line in filter(None, lines):
        tokens = torch.tensor([model.tokenizer(line)["input_ids"]])
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens, names_filter=HOOKS[site])
        found.append(cache[HOOKS[site]][0, skip:].flatten(1).double())
    return torch.cat(found)


def covariance(matrix, **changes):
    fields = dict(layer=1, site="mlp", tokens=100, source="self", sha256="", settings={}, provenance={})
    return Covariance(matrix=matrix, **{**fields, **changes})


@pytest.mark.parametrize("site", ["mlp", "attn"])
@pytest.mark.parametrize(("family", "first"), [("gpt2", 0), ("llama", 1)])
def test_is_the_mean_outer_product_of_the_inputs(random_model, text, family, first, site):
    """llama puts a BOS first, which does not count."""
    model = random_model(family)
    keys = keys_by_hand(model, LINES, site, first)
    found = covariance_of(model, text, layer=1, site=site, progress=False)
    assert found.tokens == len(keys)
    assert found.matrix.dtype == torch.float32
    torch.testing.assert_close(found.matrix.double(), keys.T @ keys / len(keys), rtol=1e-5, atol=1e-6)


def test_only_so_many_tokens_are_read_and_gzip_is_read_alike(random_model, text, tmp_path):
    model = random_model("gpt2")
    keys = keys_by_hand(model, LINES, "mlp", 0)[:10]
    zipped = tmp_path / "text.txt.gz"
    zipped.write_bytes(gzip.compress(text.read_bytes()))
    for path in (text, zipped):
        found = covariance_of(model, path, layer=1, tokens=10, progress=False)
        assert found.tokens == 10
        torch.testing.assert_close(found.matrix.double(), keys.T @ keys / 10, rtol=1e-5, atol=1e-6)


def test_lines_longer_than_the_context_are_read_in_windows(random_model, tmp_path):
    model = random_model("gpt2")  # of 64 positions
    words = ["the cat and the dog sleep near the old house"] * 15
    (tmp_path / "long.txt").write_text(" ".join(words), encoding="utf-8")
    ids = model.tokenizer(" ".join(words))["input_ids"]
    keys = []
    for at in range(0, len(ids), 64):
        with torch.no_grad():
            _, cache = model.run_with_cache(torch.tensor([ids[at : at + 64]]), names_filter=HOOKS["mlp"])
        keys.append(cache[HOOKS["mlp"]][0].double())
    keys = torch.cat(keys)
    found = covariance_of(model, tmp_path / "long.txt", layer=1, progress=False)
    assert found.tokens == len(ids) == 150
    torch.testing.assert_close(found.matrix.double(), keys.T @ keys / 150, rtol=1e-5, atol=1e-6)


def test_the_models_own_text_depends_on_the_seed_alone(random_model):
    model = random_model("gpt2")
    state = torch.random.get_rng_state()
    first, again, other = (
        covariance_of(model, "self", layer=0, tokens=300, seed=seed, progress=False) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (first.tokens, first.source) == (300, "self")
    assert torch.equal(first.matrix, again.matrix)
    assert not torch.equal(first.matrix, other.matrix)
    assert float(first.matrix.diagonal().min()) > 0


def test_sampled_text_ends_with_its_end_mark_or_where_it_only_repeats():
    assert _until_end([5, 6, 9, 7, 8], 9) == [5, 6]
    assert _until_end([9, 6, 7, 8], 9) == [9, 6, 7, 8]
    assert _until_end([5, 6, 3, 3, 3], None) == [5, 6, 3]
    assert _until_end([3, 3, 3], None) == [3]


def test_solves_as_linear_algebra_says():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(400, 20, generator=generator)
    found = covariance(keys.T @ keys / 400)
    several = torch.randn(3, 20, generator=generator)
    assert found.ridge == 0
    torch.testing.assert_close(
        found.solve(several), torch.linalg.solve(found.matrix, several.T).T, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(found.solve(several[0]), found.solve(several)[0])
    assert found.describe() == "self, 100 tokens"


@pytest.mark.parametrize(("least", "ridge"), [(1e-4, 0.0), (1e-9, 1e-6), (0.0, 1e-6)])
def test_takes_the_smallest_ridge_that_is_enough(least, ridge, caplog):
    """Eigenvalues 1, …, 1 and one small one: a condition number of 1 / least, and of about 1 / ridge with a ridge."""
    diagonal = torch.ones(8)
    diagonal[3] = least
    found = covariance(torch.diag(diagonal), tokens=5)
    with caplog.at_level(logging.WARNING):
        assert found.ridge == ridge
    key = torch.arange(1.0, 9.0)
    torch.testing.assert_close(found.solve(key), key / (diagonal + ridge * diagonal.mean()))
    assert ("5 tokens for 8 inputs" in caplog.text) == (ridge > 0)
    assert ("ridge 1e-06" in found.describe()) == (ridge > 0)


def test_a_ridge_leaves_the_matrix_as_it_was():
    matrix = torch.diag(torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    found = covariance(matrix.clone())
    assert found.ridge > 0
    assert torch.equal(found.matrix, matrix)


def test_a_covariance_of_nothing_cannot_be_inverted():
    with pytest.raises(ModelError, match=r"cannot be inverted even with 0\.01"):
        covariance(torch.zeros(4, 4)).solve(torch.ones(4))


def test_fewer_tokens_than_inputs_are_regularized(random_model, text):
    found = covariance_of(random_model("gpt2"), text, layer=1, progress=False)
    assert found.tokens < len(found.matrix)
    assert found.ridge > 0
    key = found.matrix[:, 0]
    regular = found.matrix.double() + found.ridge * found.matrix.double().diagonal().mean() * torch.eye(len(key))
    torch.testing.assert_close(regular @ found.solve(key).double(), key.double(), rtol=1e-3, atol=1e-5)


def test_is_made_once_and_read_from_the_cache_afterwards(random_model, text, tmp_path, monkeypatch):
    model = random_model("gpt2")
    found = covariance_of(model, text, layer=1, progress=False)
    folders = list((tmp_path / "cache" / "covariance").iterdir())
    assert [found.provenance["weights_hash"] in folder.name for folder in folders] == [True]
    assert covariance_of(model, text, layer=1, progress=False) is found
    room._IN_MEMORY.clear()

    def never(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(room, "second_moment", never)
    again = covariance_of(model, text, layer=1, progress=False)
    assert torch.equal(again.matrix, found.matrix)
    assert (again.tokens, again.source, again.sha256) == (found.tokens, "text.txt", found.sha256)
    assert (again.settings, again.provenance) == (found.settings, found.provenance)
    monkeypatch.undo()


def test_another_text_layer_or_length_is_another_covariance(random_model, text, tmp_path):
    model = random_model("gpt2")
    first = covariance_of(model, text, layer=1, progress=False)
    assert covariance_of(model, text, layer=1, tokens=5, progress=False).tokens == 5
    assert covariance_of(model, text, layer=2, progress=False).layer == 2
    text.write_text("These dogs sleep.", encoding="utf-8")
    changed = covariance_of(model, text, layer=1, progress=False)
    assert changed.tokens == 4
    assert changed.sha256 != first.sha256
    assert len(list((tmp_path / "cache" / "covariance").iterdir())) == 4


def test_a_cache_that_cannot_be_written_is_done_without(random_model, text, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KN_LENS_CACHE", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        assert covariance_of(random_model("gpt2"), text, layer=1, progress=False).tokens == 22
    assert "cannot be kept" in caplog.text


def test_a_saved_one_is_taken_by_folder_or_file(random_model, text, tmp_path):
    model = random_model("gpt2")
    found = covariance_of(model, text, layer=1, progress=False)
    folder = found.save(tmp_path / "saved")
    for path in (folder, folder / "tensors.safetensors"):
        loaded = covariance_for(model, path, layer=1)
        assert loaded is not None
        assert torch.equal(loaded.matrix, found.matrix)
    assert covariance_for(model, "identity", layer=1) is None
    assert covariance_for(model, found, layer=1) is found


def test_one_of_something_else_is_refused(random_model, text, tmp_path):
    model = random_model("gpt2")
    found = covariance_of(model, text, layer=1, progress=False)
    check_covariance(found, model, 1, "mlp")
    with pytest.raises(ModelError, match=r"is of layer 1 \(mlp\), and the edit is of layer 2 \(mlp\)"):
        check_covariance(found, model, 2, "mlp")
    with pytest.raises(ModelError, match=r"of layer 1 \(attn\)"):
        covariance_for(model, found, layer=1, site="attn")
    with pytest.raises(ModelError, match=r"is of 5 inputs .*reads 128"):
        check_covariance(replace(found, matrix=torch.eye(5)), model, 1, "mlp")
    with pytest.raises(ModelError, match="made on other weights"):
        check_covariance(replace(found, provenance={"weights_hash": "other"}), model, 1, "mlp")
    with pytest.raises(ModelError, match="is of layer 1"):
        covariance_of(model, found.save(tmp_path / "saved"), layer=0)


def test_bad_sources_are_named_in_one_line(random_model, tmp_path):
    model = random_model("gpt2")
    (tmp_path / "blank.txt").write_text("\n \n\n")
    (tmp_path / "empty").mkdir()
    for source, message in {
        tmp_path / "no.txt": "no file .*no.txt",
        tmp_path / "no" / "tensors.safetensors": "no file .*tensors.safetensors",
        tmp_path / "empty": "is no saved covariance",
        tmp_path / "blank.txt": "holds no tokens",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            covariance_of(model, source, layer=0, progress=False)
        assert "\n" not in str(caught.value)


def test_bad_settings_are_refused(random_model):
    model = random_model("gpt2")
    with pytest.raises(ModelError, match="layers 0–2, and no layer 3"):
        covariance_of(model, "self", layer=3)
    with pytest.raises(SettingsError, match=r"no site 'mpl'.*Did you mean 'mlp'"):
        covariance_of(model, "self", layer=0, site="mpl")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="at least 1"):
        covariance_of(model, "self", layer=0, tokens=0)
    with pytest.raises(ModelError, match="masked model"):
        covariance_of(random_model("bert"), "self", layer=0)
