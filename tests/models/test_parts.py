"""Load-time checks, layout, hash, memory, names."""

from __future__ import annotations

import time

import pytest
import torch

from kn_lens.errors import ModelError
from kn_lens.models import memory, smollm2
from kn_lens.models.checks import check_model
from kn_lens.models.hashing import weights_hash
from kn_lens.models.layout import speed_up_layout
from kn_lens.models.names import available_models
from tests.helpers import FAMILIES, load_random_model


def undo_layout(model):
    """As TransformerLens itself leaves the weights: row-major."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_layout_changes_no_bit(family, tmp_path):
    model = undo_layout(load_random_model(family, tmp_path))
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        before = model(ids)
        digest = weights_hash(model)
        assert speed_up_layout(model) is model
        assert torch.equal(model(ids), before)
    assert weights_hash(model) == digest


@pytest.mark.parametrize("family", FAMILIES)
def test_layout_leaves_nothing_to_copy(family, tmp_path):
    """What each component hands to F.linear is the stored memory itself."""
    model = load_random_model(family, tmp_path)
    shared = 0
    for block in model.blocks:
        attention = block.attn
        for name in ("W_Q", "W_K", "W_V", "_W_K", "_W_V"):
            weight = attention._parameters.get(name)
            if weight is not None:
                read = weight.permute(0, 2, 1).reshape(-1, weight.shape[1])
                assert read.data_ptr() == weight.data_ptr()
                shared += 1
        weight = attention.W_O
        assert weight.permute(2, 0, 1).reshape(weight.shape[2], -1).contiguous().data_ptr() == weight.data_ptr()
        if hasattr(block.mlp, "W_gate"):
            for weight in (block.mlp.W_in, block.mlp.W_gate, block.mlp.W_out):
                assert weight.T.contiguous().data_ptr() == weight.data_ptr()
    assert shared == 3 * model.cfg.n_layers
    assert model.unembed.W_U.T.contiguous().data_ptr() == model.unembed.W_U.data_ptr()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_a_forward_pass_copies_no_matrix(family, tmp_path):
    """Counted by torch's profiler: bytes newly allocated in a forward stay below one copy of the weights."""
    from torch.profiler import ProfilerActivity, profile

    def allocated(model):
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            model(torch.tensor([[5, 6]]))
        return sum(max(0, event.self_cpu_memory_usage) for event in record.key_averages())

    model = load_random_model(family, tmp_path)
    fast = allocated(model)
    slow = allocated(undo_layout(model))
    copied = model.unembed.W_U.numel() * 4
    assert slow - fast >= copied


def test_hash_sees_every_bit_and_no_layout(tmp_path):
    model = load_random_model("llama", tmp_path)
    digest = weights_hash(model)
    assert len(digest) == 32
    assert weights_hash(undo_layout(model)) == digest
    weight = model.blocks[1].mlp.W_out
    kept = weight[3, 4].item()
    weight.data[3, 4] = torch.nextafter(weight.data[3, 4], torch.tensor(9.0))
    assert weights_hash(model) != digest
    weight.data[3, 4] = kept
    assert weights_hash(model) == digest
    assert weights_hash(load_random_model("llama", tmp_path, seed=1)) != digest
    assert weights_hash(model.to(torch.bfloat16)) != digest


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_models_pass(family, tmp_path):
    check_model(load_random_model(family, tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_numbers_are_named(tmp_path, value):
    model = load_random_model("gpt2", tmp_path)
    model.blocks[1].mlp.W_out.data[0, :2] = value
    with pytest.raises(ModelError, match=r"'blocks\.1\.mlp\.W_out' has 2 of"):
        check_model(model)


def test_infinities_of_both_signs_do_not_cancel(tmp_path):
    model = load_random_model("bert", tmp_path)
    model.blocks[0].attn.W_Q.data[0, 0, 0] = float("inf")
    model.blocks[0].attn.W_Q.data[0, 0, 1] = float("-inf")
    with pytest.raises(ModelError, match=r"'blocks\.0\.attn\.W_Q' has 2 of"):
        check_model(model)


def test_wrong_width_is_refused(tmp_path):
    """TransformerLens 1646."""
    model = load_random_model("gpt2", tmp_path)
    model.cfg.d_mlp = 100
    with pytest.raises(ModelError, match=r"'blocks\.0\.mlp\.hook_post' has width 128, but cfg\.d_mlp is 100"):
        check_model(model)


def test_an_mlp_that_is_not_what_its_hook_says_is_refused(tmp_path):
    """TransformerLens 1645: something between hook_post and the output."""
    model = load_random_model("llama", tmp_path)
    honest = model.blocks[2].mlp.forward
    model.blocks[2].mlp.forward = lambda x: 1.01 * honest(x)
    with pytest.raises(ModelError, match=r"In layer 2 'hook_post @ W_out \+ b_out' differs"):
        check_model(model)


def test_checks_leave_no_hooks_and_are_fast(smollm2):
    start = time.process_time()
    check_model(smollm2)
    assert time.process_time() - start < 4  # alone on two cores it takes 0.15 s; other work may share them
    assert all(not point.fwd_hooks for point in smollm2.hook_dict.values())


def test_memory_counts_the_untied_unembedding():
    import transformers as hf

    config = hf.GPT2Config(vocab_size=100, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    model = hf.GPT2LMHeadModel(config)
    assert memory.count_parameters(config, masked=False) == sum(p.numel() for p in model.parameters()) + 800
    assert memory.count_parameters(object(), masked=False) is None


def test_container_limits_count(tmp_path):
    def group(name, **files):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file.replace("_", ".", 1)).write_text(content)
        return folder

    limited = group("a", memory_max="1000\n", memory_current="700\n", memory_stat="inactive_file 100\nanon 5\n")
    assert memory._cgroup_free(limited) == 400
    unlimited = group("b", memory_max="max\n", memory_current="700\n", memory_stat="anon 5\n")
    assert memory._cgroup_free(unlimited) is None
    old = group("c", memory_limit_in_bytes="1000", memory_usage_in_bytes="999", memory_stat="cache 1")
    assert memory._cgroup_free(old) == 1
    assert memory._cgroup_free(tmp_path / "none") is None
    own = tmp_path / "own"
    own.write_text("0::/x/y\n")
    assert memory._cgroups(tmp_path, own)[-2:] == [tmp_path / "x", tmp_path / "x" / "y"]


def test_available_models_says_what_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("KN_LENS_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    before = {model.name: model for model in available_models()}
    assert not before["smollm2-135m"].here
    assert before["smollm2-135m"].kind == "causal"
    assert before["bert-base-cased"].kind == "masked"
    for folder in (smollm2.smollm2_path(), tmp_path / "models--openai-community--gpt2" / "snapshots" / "abc"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    here = {model.name for model in available_models() if model.here}
    assert here == {"smollm2-135m", "gpt2", "tiny-causal", "tiny-masked", "tiny-causal-narrow"}  # the last are bundled
