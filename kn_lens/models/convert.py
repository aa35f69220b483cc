"""From a loaded transformers model to TransformerLens: HookedTransformer, HookedEncoder or TransformerBridge.

This is the only place that knows how TransformerLens 3.9 builds its models, and works around what it trips over with
models that are not on its list: it decides by names found in the path, wants ``n_ctx`` of a GPT-2 configuration, and
a next-sentence head on BERT.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from kn_lens.errors import ModelError
from kn_lens.models.cache import cache_folder
from kn_lens.models.layout import speed_up_layout
from kn_lens.models.quiet import quiet

logger = logging.getLogger(__name__)

# Architectures that TransformerLens recognizes by a word in the path instead of by the configuration.
_WORDS_IN_PATHS = ("llama", "gemma", "wav2vec2", "santacoder")


class CannotConvert(Exception):
    """HookedTransformer or HookedEncoder does not know this architecture, or stumbles over the model."""


def to_hooked(hf_model: Any, masked: bool, name: str, dtype: torch.dtype) -> Any:
    """Build the HookedTransformer (causal) or HookedEncoder (masked) with the weights of ``hf_model``, on the CPU.

    Causal models are processed as ``HookedTransformer.from_pretrained`` does by default (norms folded into the next
    matrix; with LayerNorm also centred weights and value biases folded): exact in function. Only in float32, in
    which the processing is done: other dtypes keep the checkpoint's own weights.

    Raises:
        CannotConvert: with the reason.
    """
    if masked and hf_model.config.model_type != "bert":
        raise CannotConvert(f"HookedEncoder knows BERT only, not {hf_model.config.model_type}")
    fold = not masked and dtype == torch.float32
    hf_model.requires_grad_(False)
    try:
        with quiet(), torch.no_grad():
            cfg = _tl_config(hf_model.config, masked, name, fold, dtype)
            model = _encoder(hf_model, cfg) if masked else _transformer(hf_model, cfg, fold)
            speed_up_layout(model)
    except ModelError:
        raise
    except Exception as error:  # an architecture it half knows fails anywhere: a missing key, a shape, an assert
        raise CannotConvert(f"{type(error).__name__}: {str(error).strip() or 'no reason given'}") from error
    return model.eval()


def to_bridge(hf_model: Any, tokenizer: Any, name: str, dtype: torch.dtype) -> Any:
    """Wrap ``hf_model`` as a TransformerBridge in compatibility mode (HookedTransformer's hook names).

    Weights are left as they are: outputs are Hugging Face's own.

    Raises:
        ModelError: if TransformerLens has no adapter for the architecture.
    """
    architecture = (getattr(hf_model.config, "architectures", None) or [type(hf_model).__name__])[0]
    try:
        with quiet(), torch.no_grad():
            from transformer_lens.model_bridge import TransformerBridge

            hf_model.set_attn_implementation("eager")  # the others never form the pattern that hooks read
            # A copy: TransformerLens changes the tokenizer that it is given.
            bridge = TransformerBridge.boot_transformers(
                name, hf_model=hf_model, tokenizer=copy.deepcopy(tokenizer), dtype=dtype, device="cpu"
            )
            bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = reason.split(" Available architectures", 1)[0][:300]  # it lists all hundred and fifty
        raise ModelError(
            f"TransformerLens supports the architecture {architecture} of {name!r} neither as HookedTransformer nor "
            f"as TransformerBridge: {reason}"
        ) from error
    return bridge.eval()


def _tl_config(hf_config: Any, masked: bool, name: str, fold: bool, dtype: torch.dtype) -> Any:
    from transformer_lens import loading_from_pretrained as loading

    content = hf_config.to_dict()
    content["architectures"] = ["BertForMaskedLM"] if masked else list(hf_config.architectures)
    if content.get("n_ctx") is None and content.get("n_positions") is not None:
        content["n_ctx"] = content["n_positions"]  # transformers 5 no longer saves it
    with _neutral_folder() as folder:
        (folder / "config.json").write_text(json.dumps(content, default=str))
        cfg = loading.get_pretrained_model_config(
            str(folder), fold_ln=fold, dtype=dtype, device="cpu", default_prepend_bos=False
        )
    cfg.model_name = name
    cfg.tokenizer_name = None  # the tokenizer is attached later, as it is
    # TransformerLens takes 4 × d_model and base 10000 for granted where the configuration may say otherwise.
    inner = content.get("n_inner")
    if inner and hf_config.architectures[0] == "GPT2LMHeadModel":
        cfg.d_mlp = inner
    rope = content.get("rope_parameters") or {}
    if hf_config.architectures[0] == "GPTNeoXForCausalLM" and rope.get("rope_theta"):
        cfg.rotary_base = rope["rope_theta"]
    return cfg


def _neutral_folder() -> tempfile.TemporaryDirectory:
    """A temporary folder without any word in its path by which TransformerLens would misjudge a model."""

    class Neutral(tempfile.TemporaryDirectory):
        def __enter__(self) -> Path:
            return Path(super().__enter__())

    places = [None, "/tmp", "/var/tmp", str(cache_folder()), os.getcwd()]
    for place in places:
        if place is not None and not Path(place).is_dir():
            continue
        folder = Neutral(prefix="kn", dir=place)
        if not any(word in folder.name.lower() for word in _WORDS_IN_PATHS):
            return folder
        folder.cleanup()
    raise ModelError(
        f"No temporary folder without one of {', '.join(_WORDS_IN_PATHS)} in its path (TransformerLens takes these "
        "for model names): set TMPDIR to one."
    )


def _transformer(hf_model: Any, cfg: Any, fold: bool) -> Any:
    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading
    from transformer_lens.weight_processing import ProcessWeights

    # With the model in hand the name is not used; any existing path avoids a look-up on its list.
    state = loading.get_pretrained_state_dict(os.sep, cfg, hf_model)
    model = HookedTransformer(cfg, move_to_device=False)
    state = loading.fill_missing_keys(model, state)
    if fold:
        layer_norm = cfg.normalization_type in ("LN", "LNPre") and not cfg.final_rms
        soft_cap = (getattr(cfg, "output_logits_soft_cap", None) or 0) > 0
        state = ProcessWeights.process_weights(
            state,
            cfg,
            fold_ln=True,
            center_writing_weights=layer_norm,
            center_unembed=layer_norm and not soft_cap,
            fold_value_biases=layer_norm,
        )
    _take(model, state)
    return model


def _encoder(hf_model: Any, cfg: Any) -> Any:
    from transformer_lens import HookedEncoder
    from transformer_lens import loading_from_pretrained as loading

    state = loading.get_pretrained_state_dict(os.sep, cfg, hf_model)
    model = HookedEncoder(cfg, move_to_device=False)
    _take(model, state)
    return model


def _take(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Move ``state`` into ``model``, freeing as it goes.

    Each tensor is copied: some are views of Hugging Face's weights, tied ones (embedding and unembedding) even of one
    another, and an edit of one must not show in the other.
    """
    for name, parameter in model.named_parameters():
        if name not in state:
            raise KeyError(f"no weights for {name}")
        tensor = state.pop(name)
        if tensor.shape != parameter.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} instead of {tuple(parameter.shape)}")
        parameter.data = tensor.to(parameter.dtype).clone()
    model.load_state_dict(state, strict=False)  # buffers; norms that were folded away are left over
