"""The same text through Hugging Face's model and through ours."""

from __future__ import annotations

from typing import Any

import torch

# Long enough that positions, and not only tokens, decide.
TEXT = "The capital of France is Paris, and these dogs that run do not sleep in this house."


def sample_ids(tokenizer: Any, n_ctx: int | None) -> torch.Tensor:
    """Token ids ``[1, position]`` of a short text, as the tokenizer makes them by default."""
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    return ids[:, : min(32, n_ctx or 32)]


@torch.no_grad()
def hf_log_probs(hf_model: Any, ids: torch.Tensor) -> torch.Tensor:
    """``[position, vocab]`` log-probabilities of a transformers model, in float64 on the CPU."""
    out = hf_model(ids.to(hf_model.device))
    logits = out.prediction_logits if hasattr(out, "prediction_logits") else out.logits
    return logits[0].double().log_softmax(-1).cpu()


@torch.no_grad()
def log_probs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The same of a TransformerLens model."""
    logits = model(ids.to(next(model.parameters()).device))
    return logits[0].double().log_softmax(-1).cpu()


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference over positions and vocabulary; infinite if the shapes differ or NaN appears."""
    if ours.shape != theirs.shape:
        return float("inf")
    difference = float((ours - theirs).abs().max())
    return difference if difference == difference else float("inf")
