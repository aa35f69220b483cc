"""Damaged or incomplete model files, each with its one clear line."""

from __future__ import annotations

import re
import shutil

import gguf
import numpy as np
import pytest
import torch
import transformers as hf

from kn_lens.errors import ModelError
from kn_lens.models.load import load_model
from tests.helpers import build_tokenizer, save_random_model


@pytest.fixture
def folder(tmp_path):
    return save_random_model(tmp_path / "model", "gpt2")


def refused(path, *parts: str) -> None:
    """The model is refused in one line that has every part."""
    with pytest.raises(ModelError) as caught:
        load_model(path, device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_folder_without_config(folder):
    (folder / "config.json").unlink()
    refused(folder, str(folder), "no config.json")


def test_folder_with_broken_config(folder):
    (folder / "config.json").write_text("{")
    refused(folder, "configuration", str(folder))


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights")


def test_folder_without_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    refused(folder, "no tokenizer", "save_pretrained")


@pytest.mark.parametrize("keep", [4, 100, -10])
def test_truncated_safetensors(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, str(path), "truncated or damaged")


def test_weights_that_are_missing(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    state = load_file(path)
    del state["transformer.h.1.mlp.c_fc.weight"]
    save_file(state, path, metadata={"format": "pt"})
    refused(folder, "lacks weights", "'transformer.h.1.mlp.c_fc.weight'")


def test_nan_in_the_weights_names_the_parameter(folder):
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    model.transformer.h[2].mlp.c_proj.weight.data[3, 4] = float("nan")
    model.save_pretrained(folder)
    refused(folder, "'transformer.h.2.mlp.c_proj.weight'", "1 of", "NaN")


def test_tokenizer_of_another_model(folder, tmp_path):
    config = hf.GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=4, n_positions=64)
    hf.GPT2LMHeadModel(config).save_pretrained(tmp_path / "small")
    build_tokenizer("gpt2").save_pretrained(tmp_path / "small")
    refused(tmp_path / "small", "belongs to another model", "50")


def test_encoder_decoder(tmp_path):
    config = hf.T5Config(vocab_size=760, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8)
    hf.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    build_tokenizer("gpt2").save_pretrained(tmp_path)
    refused(tmp_path, "T5ForConditionalGeneration", "…ForCausalLM")


def test_masked_model_other_than_bert(tmp_path):
    tokenizer = build_tokenizer("bert")
    config = hf.DistilBertConfig(vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    hf.DistilBertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    refused(tmp_path, "DistilBertForMaskedLM", "neither as HookedTransformer nor as TransformerBridge")


def write_gguf(path, layers=2, width=32, heads=4, kv_heads=2, inner=64):
    """A random Llama as GGUF, with the small tokenizer: what llama.cpp's converter would write."""
    tokenizer = build_tokenizer("gpt2")
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    merges = __import__("json").loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    random = np.random.default_rng(0)

    def add(name, *shape):
        writer.add_tensor(name, (random.normal(size=shape) * 0.2 + (len(shape) == 1)).astype(np.float32))

    add("token_embd.weight", len(tokens), width)
    add("output_norm.weight", width)
    add("output.weight", len(tokens), width)
    for layer in range(layers):
        add(f"blk.{layer}.attn_norm.weight", width)
        add(f"blk.{layer}.ffn_norm.weight", width)
        add(f"blk.{layer}.attn_q.weight", width, width)
        add(f"blk.{layer}.attn_k.weight", width * kv_heads // heads, width)
        add(f"blk.{layer}.attn_v.weight", width * kv_heads // heads, width)
        add(f"blk.{layer}.attn_output.weight", width, width)
        add(f"blk.{layer}.ffn_gate.weight", inner, width)
        add(f"blk.{layer}.ffn_up.weight", inner, width)
        add(f"blk.{layer}.ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_file_equals_hugging_face(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    model = load_model(path, device="cpu", verify=True)
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf").eval()
    ids = model.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        ours = model(ids).log_softmax(-1)
        torch.testing.assert_close(ours, theirs(ids).logits.log_softmax(-1), atol=1e-4, rtol=0)
    assert type(model).__name__ == "HookedTransformer"
    assert model.cfg.d_mlp == 64


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_truncated_gguf(tmp_path, share):
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, str(path), "truncated or damaged")


def test_what_is_no_gguf(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    refused(path, str(path), "not a GGUF file")
    path.unlink()
    refused(path, "no file", str(path))


def test_gguf_among_other_files_is_left_where_it_is(tmp_path):
    """The path may hold anything, and nothing is written beside the file."""
    folder = tmp_path / "bert llama"
    folder.mkdir()
    path = write_gguf(folder / "a b.gguf")
    shutil.copy(path, folder / "other.gguf")
    load_model(path, device="cpu")
    assert sorted(entry.name for entry in folder.iterdir()) == ["a b.gguf", "other.gguf"]
    assert re.search("bert", str(path))
