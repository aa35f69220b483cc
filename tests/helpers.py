"""Small real models for tests: random transformers models with a small real tokenizer, saved as folders."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

FAMILIES = ("gpt2", "gpt_neox", "llama", "qwen2", "bert")
LAYERS = 3

# Every word is one token, at the start of a text and after a space (causal) or anywhere (masked).
_TEXT = """
The the A a An an In in Of of It it Is is Was was Are are Were were To to And and That that This this These these Those
those Not not On on By by With with From from At at As as For for He he She she They they We we You you I his her its
their himself herself itself themselves who which has have do does did
capital city country language official largest France Paris Germany Berlin Spain Madrid Italy Rome Egypt Cairo Japan
Tokyo Poland Warsaw Sweden Stockholm French German Spanish Italian Arabic Japanese Polish Swedish
dog dogs cat cats boy boys girl girls man men woman women house houses key keys cabinet cabinets teacher teachers author
authors child children book books river rivers
run runs sleep sleeps eat eats sing sings know knows like likes near smile smiles laugh laughs fall falls
big small old new red green happy many most some every each one two three
"""
WORDS = _TEXT.split()
PUNCTUATION = [".", ",", "?", "!", ":", ";", "'", '"', "-"]


def save_random_model(folder: str | Path, family: str, seed: int = 0) -> Path:
    """Save a random model and its tokenizer in Hugging Face format.

    Args:
        folder: created if need be.
        family: one of `FAMILIES`. ``llama`` has 4 heads that share 2 keys and values, a gated MLP and a tokenizer
            that adds a BOS; the other causal ones add none; ``bert`` adds [CLS] and [SEP].
        seed: of the weights. They are larger than at a usual start, norms and biases too are random, so that
            each part matters for the output.

    Returns:
        The folder.
    """
    import torch

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(family)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = _build_model(family, len(tokenizer), tokenizer)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load_random_model(family: str, tmp_path: Path, seed: int = 0) -> Any:
    """A random model of the family, saved below ``tmp_path`` and loaded by `kn_lens.models.load.load_model`."""
    from kn_lens.models.load import load_model

    return load_model(str(save_random_model(tmp_path / f"model-{seed}", family, seed)), device="cpu")


def build_tokenizer(family: str) -> Any:
    """A fresh ``PreTrainedTokenizerFast``: word-level for ``bert``, byte-level BPE for the others."""
    from transformers import PreTrainedTokenizerFast

    names: dict[str, str]
    if family == "bert":
        names = {"unk": "[UNK]", "pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    elif family == "llama":
        names = {"bos": "<s>", "eos": "</s>"}
    else:
        names = {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=_from_json(_tokenizer_json(family if family in ("bert", "llama") else "gpt2")),
        **{f"{role}_token": token for role, token in names.items()},
    )


def _from_json(text: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(text)


@functools.cache
def _tokenizer_json(family: str) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    if family == "bert":
        specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        vocabulary = list(dict.fromkeys([*specials, *WORDS, *PUNCTUATION]))
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
        tokenizer.add_special_tokens(specials)
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return tokenizer.to_str()
    specials = ["<s>", "</s>"] if family == "llama" else ["<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=4000,  # more than there is to merge: training ends when every word is one token
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [form for word in [*WORDS, *PUNCTUATION] for form in (word, f" {word}")]
    tokenizer.train_from_iterator(texts, trainer)
    if family == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
        )
    return tokenizer.to_str()


def _build_model(family: str, vocab: int, tokenizer: Any) -> Any:
    import transformers as hf

    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "gpt2":
        config = hf.GPT2Config(
            vocab_size=vocab,
            n_embd=32,
            n_layer=LAYERS,
            n_head=4,
            n_positions=64,
            initializer_range=0.2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return hf.GPT2LMHeadModel(config).eval()
    if family == "gpt_neox":
        return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**shape, rotary_pct=0.5)).eval()
    if family == "llama":
        return hf.LlamaForCausalLM(hf.LlamaConfig(**shape, num_key_value_heads=2)).eval()
    if family == "qwen2":
        return hf.Qwen2ForCausalLM(hf.Qwen2Config(**shape, num_key_value_heads=2)).eval()
    if family == "bert":
        return hf.BertForMaskedLM(hf.BertConfig(**shape)).eval()
    raise ValueError(f"no random model of family {family!r}: choose from {FAMILIES}")
