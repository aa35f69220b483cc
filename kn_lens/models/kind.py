"""What kind of model is this? The only questions that code above the models room asks of a model's type."""

from __future__ import annotations

from typing import Any

from kn_lens.errors import ModelError


def is_masked(model: Any) -> bool:
    """True for a bidirectional (masked) language model, False for a causal one."""
    return getattr(model.cfg, "attention_dir", "causal") == "bidirectional" or hasattr(model, "mlm_head")


def model_name(model: Any) -> str:
    """The name a model goes by in messages and manifests."""
    return str(getattr(model.cfg, "model_name", None) or type(model).__name__)


def tokenizer_of(model: Any) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: If it has none.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ModelError(f"{model_name(model)} has no tokenizer; set model.tokenizer to a Hugging Face one")
    return tokenizer
