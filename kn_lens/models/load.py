"""``load_model``: from a name, a folder or a ``.gguf`` file to a TransformerLens model that has passed its checks."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from kn_lens.errors import ModelError, SettingsError
from kn_lens.models import compare, folder, gguf_file, memory, names
from kn_lens.models.checks import check_model, check_weights
from kn_lens.models.convert import CannotConvert, to_bridge, to_hooked
from kn_lens.models.layout import speed_up_layout
from kn_lens.models.quiet import quiet
from kn_lens.models.tokenizer import attach_tokenizer

logger = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
}
#: ``verify=True``: largest difference to Hugging Face's log-probabilities.
VERIFY_TOLERANCE = 1e-3
# Beyond this (in full precision) a conversion is not rounding but wrong, and TransformerBridge is used.
_WRONG = 0.02
# Models in TransformerLens' own format, which transformers cannot read.
_NATIVE = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")


def load_model(
    name: str | os.PathLike[str], device: str | None = None, dtype: str = "float32", *, verify: bool = False
) -> Any:
    """Load a model as a plain TransformerLens model, in eval mode, checked.

    Args:
        name: ``"smollm2-135m"`` or another name of `available_models`; a ``.gguf`` file; a folder in Hugging Face
            format; or a name that TransformerLens knows (``"gpt2"``, ``"bert-base-cased"``), fetched from the Hub.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …; default: a CUDA GPU if there is one, else the CPU.
        dtype: ``"float32"`` (default), ``"float64"``, ``"float16"`` or ``"bfloat16"``. In float32 norms are folded
            into the next matrix as TransformerLens does by default; the others keep the checkpoint's weights.
        verify: also require log-probabilities on a short text to equal Hugging Face's within 1e-3. In half
            precision the difference is only reported.

    Returns:
        A ``HookedTransformer`` (causal) or ``HookedEncoder`` (masked); where TransformerLens cannot build one, or
        builds a wrong one, a ``TransformerBridge`` in compatibility mode, with one log line. ``model.tokenizer`` is
        Hugging Face's own with its defaults; ``cfg.default_prepend_bos`` says whether it adds a BOS itself.

    Raises:
        ModelError: unknown name (with near matches), no network, damaged file, too little memory, failed check.
        SettingsError: unknown dtype or device.
    """
    torch_dtype, torch_device = _dtype(dtype), _device(device)
    text = os.fspath(name)
    path = Path(text).expanduser()
    if text in names.KNOWN:
        return _load(str(names.KNOWN[text].folder()), text, torch_device, torch_dtype, verify)
    if path.is_dir():
        folder.check_folder(path)
        return _load(str(path), path.resolve().name, torch_device, torch_dtype, verify)
    if path.suffix.lower() == ".gguf" or path.is_file():
        return _load_gguf(path, torch_device, torch_dtype, verify)
    official = names.official_name(text)
    if official is None:
        raise names.unknown_model(text)
    if official.startswith(_NATIVE):
        return _load_native(official, torch_device, torch_dtype)
    logger.info("fetching %s from the Hugging Face Hub unless it is cached", official)
    return _load(official, text, torch_device, torch_dtype, verify)


def _load(source: str, name: str, device: torch.device, dtype: torch.dtype, verify: bool) -> Any:
    """A folder or Hub name in Hugging Face format."""
    config = folder.read_config(source)
    masked = folder.is_masked_config(config, source)
    count = memory.count_parameters(config, masked)
    if count is not None:
        memory.require_memory(count, dtype, device, name)
    tokenizer = folder.read_tokenizer(source)
    hf_model = folder.read_weights(source, config, masked, dtype)
    return _finish(hf_model, tokenizer, masked, name, device, dtype, verify)


def _load_gguf(path: Path, device: torch.device, dtype: torch.dtype, verify: bool) -> Any:
    memory.require_memory(gguf_file.check_gguf(path), dtype, device, path.name)
    hf_model, tokenizer = gguf_file.load_gguf(path, dtype)
    return _finish(hf_model, tokenizer, False, path.stem, device, dtype, verify)


def _load_native(official: str, device: torch.device, dtype: torch.dtype) -> Any:
    """TransformerLens' own small models, which it fetches and builds itself."""
    try:
        with quiet(bars=True):
            from transformer_lens import HookedTransformer

            model = HookedTransformer.from_pretrained(official, device=str(device), dtype=dtype)  # type: ignore[arg-type]
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"Model {official!r} cannot be fetched from the Hugging Face Hub ({reason}). It exists in TransformerLens' "
            "own format only; without a network use another model ('kn-lens models')."
        ) from error
    speed_up_layout(model)
    if model.cfg.tokenizer_name is not None:
        attach_tokenizer(model, folder.read_tokenizer(model.cfg.tokenizer_name))
    check_model(model)
    return model.eval()


def _finish(
    hf_model: Any,
    tokenizer: Any,
    masked: bool,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    verify: bool,
) -> Any:
    check_weights(hf_model)
    ids = compare.sample_ids(tokenizer, getattr(hf_model.config, "max_position_embeddings", None))
    if int(ids.max()) >= hf_model.get_input_embeddings().weight.shape[0]:
        raise ModelError(
            f"The tokenizer of {name!r} gives token {int(ids.max())}, but the model's vocabulary has "
            f"{hf_model.get_input_embeddings().weight.shape[0]}: it belongs to another model."
        )
    theirs = compare.hf_log_probs(hf_model, ids)
    model, difference = _convert(hf_model, tokenizer, masked, name, dtype, ids, theirs)
    del hf_model
    attach_tokenizer(model, tokenizer)
    if dtype.itemsize < 4:
        logger.warning(
            "%s in half precision: log-probabilities differ from Hugging Face's by up to %.2g on a short text; "
            "dtype='float32' is exact",
            name,
            difference,
        )
    elif verify and difference > VERIFY_TOLERANCE:
        raise ModelError(
            f"Log-probabilities of {name!r} differ from Hugging Face's by {difference:.2g} on a short text "
            f"(allowed: {VERIFY_TOLERANCE:g})."
        )
    if device.type != "cpu":
        with quiet():
            model.to(str(device))  # given a torch.device, cfg.device would lose its index
    check_model(model)
    logger.info(
        "loaded %s as %s on %s; differs from Hugging Face by %.1e",
        name,
        type(model).__name__,
        device,
        difference,
    )
    return model


def _convert(
    hf_model: Any,
    tokenizer: Any,
    masked: bool,
    name: str,
    dtype: torch.dtype,
    ids: torch.Tensor,
    theirs: torch.Tensor,
) -> tuple[Any, float]:
    """The model and the largest difference of its log-probabilities to ``theirs``."""
    try:
        model = to_hooked(hf_model, masked, name, dtype)
        difference = compare.largest_difference(compare.log_probs(model, ids), theirs)
        if dtype.itemsize < 4 or difference <= _WRONG:
            return model, difference
        reason = f"its log-probabilities would differ from Hugging Face's by {difference:.2g}"
        del model
    except CannotConvert as error:
        reason = str(error)
    logger.warning(
        "%s is loaded as TransformerBridge: a %s cannot be built (%s)",
        name,
        "HookedEncoder" if masked else "HookedTransformer",
        reason,
    )
    bridge = to_bridge(hf_model, tokenizer, name, dtype)
    return bridge, compare.largest_difference(compare.log_probs(bridge, ids), theirs)


def _dtype(dtype: str) -> torch.dtype:
    if dtype not in DTYPES:
        raise SettingsError(f"Unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]


def _device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise SettingsError(f"Unknown device {device!r}: say 'cpu', 'cuda' or 'cuda:0'.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"Device {device!r} was asked for, but torch finds no CUDA GPU. Use device='cpu'.")
    if chosen.type == "meta":
        raise SettingsError("Device 'meta' holds no numbers: say 'cpu', 'cuda' or 'cuda:0'.")
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"Device {device!r} cannot be used here ({reason}). Use device='cpu'.") from None
    return chosen
