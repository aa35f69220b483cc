"""Whether a model's heads write straight into the sum that its logits are read from."""

from __future__ import annotations

from typing import Any

from kn_lens.errors import ModelError
from kn_lens.models.kind import is_masked, model_name
from kn_lens.models.stepping import can_step


def check_writes_directly(model: Any, what: str) -> None:
    """Refuse models in which a head's output has no share of its own in the last residual stream.

    Args:
        model: The model.
        what: The method that needs it, for the message.

    Raises:
        ModelError: Saying why.
    """
    reason = None
    if is_masked(model):
        reason = "is a masked model, whose norms stand behind each sum and rescale what earlier layers wrote"
    elif not can_step(model):
        reason = f"is a {type(model).__name__}, whose last residual stream cannot be read out; load a HookedTransformer"
    elif _norm_behind_layers(model):
        reason = "has norms between its layers and the residual stream, which mix what its heads write"
    if reason is not None:
        raise ModelError(f"{what} does not apply: {model_name(model)} {reason}")


def _norm_behind_layers(model: Any) -> bool:
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

    cfg = model.cfg
    around = getattr(cfg, "use_normalization_before_and_after", False)
    return around or getattr(cfg, "original_architecture", None) in POST_NORM_ARCHITECTURES
