"""Models in Hugging Face format, from a folder or from the Hub: one code path, whose source is a string."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from kn_lens.errors import ModelError
from kn_lens.models.quiet import quiet

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
_WEIGHT_PATTERNS = ("*.safetensors", "*.bin")


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be a whole model.

    Raises:
        ModelError: naming what is missing (config, weights, tokenizer) or which weight file is cut short.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"Folder {folder} has no config.json: it is not a model in Hugging Face format.")
    if not any(path for pattern in _WEIGHT_PATTERNS for path in folder.glob(pattern)):
        raise ModelError(f"Folder {folder} has no weights (model.safetensors or pytorch_model.bin).")
    # Without these transformers may build an empty tokenizer instead of failing.
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"Folder {folder} has no tokenizer ({', '.join(_TOKENIZER_FILES)}): save the model's own there with "
            "tokenizer.save_pretrained(folder)."
        )
    for path in sorted(folder.glob("*.safetensors")):
        check_safetensors(path)


def check_safetensors(path: Path) -> None:
    """Raise ModelError if a safetensors file is not as long as its own header says."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise ValueError("header cut")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is truncated or damaged: its header cannot be read. Copy it again.") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelError(f"{path} is truncated or damaged: {size} bytes instead of {expected}. Copy it again.")


def read_config(source: str) -> Any:
    """The transformers configuration of a folder or Hub name; ModelError if it cannot be had."""
    from transformers import AutoConfig

    with _explained(source, "configuration"), quiet(bars=_remote(source)):
        return AutoConfig.from_pretrained(source)


def read_tokenizer(source: str) -> Any:
    """The tokenizer of a folder or Hub name, as Hugging Face gives it by default."""
    from transformers import AutoTokenizer

    with _explained(source, "tokenizer"), quiet(bars=_remote(source)):
        return AutoTokenizer.from_pretrained(source)


def is_masked_config(config: Any, source: str) -> bool:
    """Whether a configuration is of a masked model; ModelError if it is of neither kind."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if not getattr(config, "architectures", None):
        # A bare configuration: take the language model of its type.
        causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
        masked = MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(config.model_type)
        guess = masked if config.model_type == "bert" else causal or masked
        config.architectures = [guess] if isinstance(guess, str) else []
    architecture = (config.architectures or ["an unknown architecture"])[0]
    if architecture == "BertForPreTraining" or architecture.endswith("ForMaskedLM"):
        return True
    if getattr(config, "is_encoder_decoder", False) or not architecture.endswith(
        ("ForCausalLM", "LMHeadModel", "LMHeadCustomModel")
    ):
        raise ModelError(
            f"{source!r} is {architecture}: kn_lens takes causal models (…ForCausalLM, …LMHeadModel) and masked ones "
            "(…ForMaskedLM)."
        )
    return False


def read_weights(source: str, config: Any, masked: bool, dtype: torch.dtype) -> Any:
    """The transformers model of a folder or Hub name, in eval mode on the CPU.

    BERT comes as `BertForPreTraining`, which TransformerLens wants; heads that the checkpoint lacks are zero (they do
    not touch the masked-LM logits), so that loading twice gives the same weights.

    Raises:
        ModelError: if weights cannot be had, or some that the logits depend on are missing.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, BertForPreTraining

    auto: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    if masked and config.model_type == "bert":
        auto = BertForPreTraining
    with _explained(source, "weights"), quiet(bars=_remote(source)):
        model, info = auto.from_pretrained(source, config=config, dtype=dtype, output_loading_info=True)
    spare = ("bert.pooler.", "cls.seq_relationship.")
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(spare))
    if missing or info["mismatched_keys"]:
        wrong = missing or sorted(str(entry[0]) for entry in info["mismatched_keys"])
        raise ModelError(
            f"{source!r} lacks weights of {config.architectures[0]} or has them in another shape: {wrong[0]!r}"
            + (f" and {len(wrong) - 1} more." if len(wrong) > 1 else ".")
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in info["missing_keys"]:
                parameter.zero_()
    return model.eval()


def _remote(source: str) -> bool:
    return not Path(source).is_dir()


class _explained:
    """Turn whatever transformers or the Hub raise into one ModelError line."""

    def __init__(self, source: str, part: str) -> None:
        self.source, self.part = source, part

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, ModelError):
            return
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if not _remote(self.source):
            raise ModelError(f"The {self.part} in folder {self.source} cannot be read: {reason}") from error
        raise ModelError(
            f"Model {self.source!r} cannot be fetched from the Hugging Face Hub ({reason}). Without a network give the "
            "path of a folder that holds it, or use a model that is here already ('kn-lens models' lists them)."
        ) from error
