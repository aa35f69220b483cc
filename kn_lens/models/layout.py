"""Weights stored in the order in which the forward pass wants them.

TransformerLens keeps a matrix as ``[d_in, d_out]`` and hands ``W.T.contiguous()`` to ``F.linear`` so that its sums
run in the same order as Hugging Face's. That copies every weight matrix at every forward pass (SmolLM2-135M: 0.5 GB).
Stored with strides such that the transposed view *is* contiguous, ``.contiguous()`` returns the view itself: the same
numbers, the same sums, no copy. Values, shapes and names do not change, so that hooks, edits and ``state_dict`` work
as before; only `safetensors.save_file` asks for ``.contiguous()`` tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Which parameters a component copies, and the order of axes in which it reads them.
_TRANSPOSED = (1, 0)
_HEADS_IN = (0, 2, 1)  # [head, d_model, d_head] read as [(head d_head), d_model]
_HEADS_OUT = (2, 0, 1)  # [head, d_head, d_model] read as [d_model, (head d_head)]
_READ_ORDER: dict[str, dict[str, tuple[int, ...]]] = {
    "GatedMLP": {"W_in": _TRANSPOSED, "W_gate": _TRANSPOSED, "W_out": _TRANSPOSED},
    "Unembed": {"W_U": _TRANSPOSED},
    "Attention": {"W_Q": _HEADS_IN, "W_K": _HEADS_IN, "W_V": _HEADS_IN, "W_O": _HEADS_OUT},
    "GroupedQueryAttention": {
        "W_Q": _HEADS_IN,
        "_W_K": _HEADS_IN,
        "_W_V": _HEADS_IN,
        "W_O": _HEADS_OUT,
    },
}
# Not here because they copy nothing: MLP (torch.addmm takes [d_in, d_out] as it is), BertMLMHead and
# BertPooler (matmul), the embeddings (look-ups).


def speed_up_layout(model: torch.nn.Module) -> torch.nn.Module:
    """Reorder in memory the matrices that a HookedTransformer or HookedEncoder copies at each forward.

    Args:
        model: changed in place. Components this module does not know, and every part of a
            TransformerBridge, stay as they are. Done twice it does nothing more.

    Returns:
        The same model. Its outputs are bit-identical, a single forward of SmolLM2-135M about 2.6 times faster.
    """
    for module in model.modules():
        orders = _READ_ORDER.get(type(module).__name__)
        if orders is None or not type(module).__module__.startswith("transformer_lens.components"):
            continue
        for name, order in orders.items():
            parameter = module._parameters.get(name)
            # Packed 4-bit weights have other shapes: left alone.
            if parameter is not None and parameter.ndim == len(order):
                parameter.data = _stored_as(parameter.data, order)
    return model


def _stored_as(tensor: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """``tensor`` with equal values and shape, laid out so that ``tensor.permute(order)`` is contiguous."""
    inverse = tuple(order.index(axis) for axis in range(len(order)))
    return tensor.permute(order).contiguous().permute(inverse)
