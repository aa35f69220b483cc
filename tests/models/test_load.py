"""Folders, names and files become the right TransformerLens model, equal to Hugging Face's."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
import transformers as hf

from kn_lens.errors import ModelError, SettingsError
from kn_lens.models import memory
from kn_lens.models.load import load_model
from tests.helpers import FAMILIES, build_tokenizer, load_random_model, save_random_model

TEXT = "The capital of France is Paris, and these dogs that run like the old house."


def log_probs(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().log_softmax(-1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One saved random model per family."""
    return {family: save_random_model(tmp_path_factory.mktemp("saved") / "m", family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_hugging_face(folders, family):
    auto = hf.AutoModelForMaskedLM if family == "bert" else hf.AutoModelForCausalLM
    theirs = auto.from_pretrained(folders[family]).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folders[family])
    model = load_model(folders[family], device="cpu")
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(log_probs(model(ids)), log_probs(theirs(ids).logits), atol=1e-4, rtol=0)
    assert type(model).__name__ == ("HookedEncoder" if family == "bert" else "HookedTransformer")
    assert not model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_is_hugging_faces_own(folders, family):
    """User needs 12 and 20: no stray BOS; ``to_tokens`` and ``tokenizer`` agree."""
    plain = hf.AutoTokenizer.from_pretrained(folders[family])
    model = load_model(folders[family], device="cpu")
    expected = plain(TEXT).input_ids
    assert model.tokenizer(TEXT).input_ids == expected
    tokens = model.to_tokens(TEXT)
    assert (tokens[0] if family == "bert" else tokens)[0].tolist() == expected
    assert model.cfg.default_prepend_bos is (family == "llama")
    assert model.tokenizer.padding_side == "right"
    assert model.tokenizer.pad_token is not None
    assert len(model.tokenizer) == len(plain)
    assert model(TEXT).shape[1] == len(expected)


@pytest.mark.parametrize("word", ["llama-2", "bert-base-cased", "gpt2-small", "gemma-3-1b", "santacoder", "t5"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_words_in_the_path_do_not_matter(folders, tmp_path, family, word):
    """TransformerLens 664: it takes words in a path for the architecture."""
    folder = tmp_path / word / word
    shutil.copytree(folders[family], folder)
    model, plain = load_model(folder, device="cpu"), load_model(folders[family], device="cpu")
    assert model.cfg.n_layers == plain.cfg.n_layers
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        assert torch.equal(model(ids), plain(ids))


def test_a_temporary_folder_with_a_model_name_is_not_used(folders, tmp_path, monkeypatch):
    place = tmp_path / "llama"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    assert load_model(folders["gpt2"], device="cpu").cfg.original_architecture == "GPT2LMHeadModel"
    assert list(place.iterdir()) == []


def save(folder, config, seed=0):
    """Save a random causal model of any transformers configuration with the small tokenizer."""
    torch.manual_seed(seed)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_tokenizer("gpt2").save_pretrained(folder)
    return folder


def small_shape() -> dict:
    return {
        "vocab_size": len(build_tokenizer("gpt2")),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


@pytest.mark.parametrize("config_class", [hf.StableLmConfig, hf.Starcoder2Config, hf.GemmaConfig, hf.Gemma2Config])
def test_bridge_where_no_hooked_transformer_can_be_built(tmp_path, caplog, config_class):
    extra = {"head_dim": 8} if "Gemma" in config_class.__name__ else {}
    folder = save(tmp_path / "m", config_class(**small_shape(), **extra))
    with caplog.at_level(logging.WARNING, "kn_lens"):
        model = load_model(folder, device="cpu", verify=True)
    assert type(model).__name__ == "TransformerBridge"
    assert [record.getMessage() for record in caplog.records if "TransformerBridge" in record.getMessage()]
    plain = hf.AutoTokenizer.from_pretrained(folder)
    assert model.tokenizer(TEXT).input_ids == plain(TEXT).input_ids
    assert model.to_tokens(TEXT)[0].tolist() == plain(TEXT).input_ids
    _, cache = model.run_with_cache(torch.arange(5)[None])
    assert cache["blocks.1.mlp.hook_post"].shape == (1, 5, 64)


def test_a_conversion_that_would_be_wrong_is_not_used(tmp_path, caplog):
    """TransformerLens drops the biases of a Llama that has some; the outputs would differ without a word."""
    config = hf.LlamaConfig(**small_shape(), mlp_bias=True, attention_bias=True)
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "m")
    build_tokenizer("gpt2").save_pretrained(tmp_path / "m")
    loaded = load_model(tmp_path / "m", device="cpu", verify=True)
    assert type(loaded).__name__ == "TransformerBridge"
    assert "would differ from Hugging Face's" in caplog.text


@pytest.mark.parametrize(
    "config",
    [
        hf.GPT2Config(vocab_size=756, n_embd=32, n_layer=2, n_head=4, n_positions=64, n_inner=80),
        hf.GPTNeoXConfig(
            **{k: v for k, v in small_shape().items() if k != "num_key_value_heads"},
            rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        ),
    ],
    ids=["gpt2 with n_inner", "gpt_neox with rope_theta"],
)
def test_what_transformer_lens_takes_for_granted_is_read_from_the_config(tmp_path, config):
    model = load_model(save(tmp_path / "m", config), device="cpu", verify=True)
    assert type(model).__name__ == "HookedTransformer"
    assert model.cfg.d_mlp == (80 if config.model_type == "gpt2" else 64)


def test_masked_models_load_the_same_twice(folders):
    """The checkpoint has no pooler; a random one would change the weights' hash from load to load."""
    from kn_lens.models.hashing import weights_hash

    assert weights_hash(load_model(folders["bert"], device="cpu")) == weights_hash(
        load_model(folders["bert"], device="cpu")
    )


def test_tied_weights_are_held_apart(folders):
    """An edit of the unembedding must not show in the embedding."""
    model = load_model(folders["gpt2"], device="cpu", dtype="float64")
    before = model.W_E.clone()
    with torch.no_grad():
        model.unembed.W_U.add_(1.0)
    assert torch.equal(model.W_E, before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_warns_with_a_measured_difference(folders, caplog, dtype):
    """User need 17."""
    model = load_model(folders["llama"], device="cpu", dtype=dtype)
    assert model.W_in.dtype == getattr(torch, dtype)
    assert "half precision" in caplog.text


def test_float64_is_exact(folders):
    theirs = hf.AutoModelForCausalLM.from_pretrained(folders["llama"], dtype=torch.float64).eval()
    model = load_model(folders["llama"], device="cpu", dtype="float64")
    ids = model.to_tokens(TEXT)
    with torch.no_grad():
        difference = (log_probs(model(ids)) - log_probs(theirs(ids).logits)).abs().max()
    assert difference < 2e-6  # transformers itself computes norms and rotations in float32


def test_loading_is_silent_and_leaves_logging_alone(folders, capfd, recwarn):
    root = logging.getLogger()
    before = (list(root.handlers), list(root.filters))
    load_model(folders["gpt2"], device="cpu")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert (list(root.handlers), list(root.filters)) == before


def test_smollm2_knows_the_capital_of_france(smollm2):
    ids = smollm2.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        probabilities = smollm2(ids)[0, -1].softmax(-1)
    paris = smollm2.tokenizer(" Paris").input_ids
    assert len(paris) == 1
    assert probabilities.argmax() == paris[0]
    assert probabilities[paris[0]].item() == pytest.approx(0.77, abs=0.01)


def test_unknown_name_has_near_matches():
    with pytest.raises(ModelError, match=r"no model 'smollm2-135'.*Did you mean.*'smollm2-135m'"):
        load_model("smollm2-135")
    with pytest.raises(ModelError, match="'pythia-70m'"):
        load_model("pythia-70x")


def test_known_hub_name_without_network_says_what_to_do(monkeypatch, tmp_path):
    """User need 19."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True, raising=False)
    with pytest.raises(ModelError, match=r"bert-base-cased' cannot be fetched.*path of a folder") as caught:
        load_model("bert-base-cased")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("setting", "value"), [("dtype", "int8"), ("device", "gpuu")])
def test_wrong_settings(folders, setting, value):
    with pytest.raises(SettingsError, match=value):
        load_model(folders["gpt2"], **{setting: value})


def test_a_model_larger_than_the_memory_is_refused(folders, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 2**20)
    with pytest.raises(ModelError, match=r"needs about .* GiB .* but only 0\.0 GiB are free"):
        load_model(folders["gpt2"], device="cpu")


def test_verify_refuses_what_differs(folders, monkeypatch):
    """With the conversion off by a little: the check itself, not its tolerance, is tried."""
    from kn_lens.models import compare

    honest = compare.log_probs
    monkeypatch.setattr(compare, "log_probs", lambda model, ids: honest(model, ids) + 0.005)
    with pytest.raises(ModelError, match=r"differ from Hugging Face's by 0\.005"):
        load_model(folders["gpt2"], device="cpu", verify=True)


def test_load_random_model_gives_what_it_says(tmp_path):
    model = load_random_model("llama", tmp_path)
    assert (model.cfg.n_heads, model.cfg.n_key_value_heads, model.cfg.gated_mlp) == (4, 2, True)
