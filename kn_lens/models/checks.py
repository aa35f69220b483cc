"""What a model must satisfy before anything is measured on it.

Hook points that are missing or of the wrong width, or weights that are not finite, give plausible and wrong
figures (TransformerLens 1645, 1646). A model that fails is refused with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kn_lens.errors import ModelError

if TYPE_CHECKING:
    import torch

# Relative to the largest entry of the MLP output. Half precision rounds sums over d_mlp terms.
_TOLERANCE = {"torch.float64": 1e-6, "torch.float32": 1e-3, "torch.float16": 3e-2, "torch.bfloat16": 1e-1}
_TOKENS = 6


def check_model(model: Any) -> None:
    """Refuse a model whose weights or hooks would give wrong figures.

    Checked: every weight is finite; on a few fixed random tokens, in every layer, ``mlp.hook_post`` has width
    ``cfg.d_mlp`` and ``hook_post @ W_out + b_out`` equals ``hook_mlp_out``; the logits are finite. The MLP check is
    left out where it does not apply (attention-only models, mixtures of experts, a norm after the MLP).

    Args:
        model: a HookedTransformer, HookedEncoder or TransformerBridge; not changed. Less than a second for 135 M
            parameters.

    Raises:
        ModelError: with the first thing found wrong, naming the parameter or the layer.
    """
    check_weights(model)
    _check_activations(model)


def check_weights(model: torch.nn.Module) -> None:
    """Raise ModelError naming the first parameter that holds NaN or infinity, and how many."""
    import torch

    for name, parameter in model.named_parameters():
        # A sum over all entries is not finite if any entry is not: one pass, no temporary. Only on suspicion
        # (a sum may also overflow) is each entry looked at.
        wide = torch.float32 if parameter.element_size() < 4 else None
        if torch.isfinite(parameter.detach().sum(dtype=wide)):
            continue
        bad = int((~torch.isfinite(parameter.detach())).sum())
        if bad:
            raise ModelError(
                f"The model's weight {name!r} has {bad} of {parameter.numel()} entries that are NaN or infinite: "
                "the file is damaged, or the training diverged. Load another copy."
            )


def _check_activations(model: Any) -> None:
    import torch

    cfg = model.cfg
    layers = range(cfg.n_layers)
    check_mlp = has_plain_mlp(model)
    names = {f"blocks.{layer}.{hook}" for layer in layers for hook in ("mlp.hook_post", "hook_mlp_out")}
    generator = torch.Generator().manual_seed(0)
    length = max(1, min(_TOKENS, cfg.n_ctx))
    tokens = torch.randint(0, cfg.d_vocab, (1, length), generator=generator).to(_device(model))
    with torch.no_grad():
        logits, cache = model.run_with_cache(
            tokens, names_filter=(lambda name: name in names) if check_mlp else (lambda name: False)
        )
        if logits is None or not bool(torch.isfinite(logits).all()):
            raise ModelError(
                "The model's logits are not finite on random tokens although its weights are: "
                f"{str(cfg.dtype).removeprefix('torch.')} overflows. Load it with dtype='float32'."
            )
        if check_mlp:
            for layer in layers:
                _check_layer(model, cache, layer)


def _check_layer(model: Any, cache: Any, layer: int) -> None:
    for hook in (f"blocks.{layer}.mlp.hook_post", f"blocks.{layer}.hook_mlp_out"):
        if hook not in cache:
            raise ModelError(f"The model has no hook {hook!r}, where kn_lens reads and sets MLP neurons.")
    post, out = cache[f"blocks.{layer}.mlp.hook_post"], cache[f"blocks.{layer}.hook_mlp_out"]
    if post.shape[-1] != model.cfg.d_mlp:
        raise ModelError(
            f"'blocks.{layer}.mlp.hook_post' has width {post.shape[-1]}, but cfg.d_mlp is {model.cfg.d_mlp}: "
            "neurons could not be told apart. The model's configuration is wrong."
        )
    mlp = model.blocks[layer].mlp
    weight, bias = mlp.W_out, mlp.b_out
    expected = post @ weight if bias is None else post @ weight + bias
    tolerance = _TOLERANCE.get(str(out.dtype), 1e-3)
    scale = max(float(out.abs().max()), 1e-6)
    error = float((expected - out).abs().max()) / scale
    if not error <= tolerance:
        raise ModelError(
            f"In layer {layer} 'hook_post @ W_out + b_out' differs from the MLP's output by {error:.2g} of its size "
            f"(at most {tolerance:g} is rounding): neuron activations read here are not what the model uses."
        )


def has_plain_mlp(model: Any) -> bool:
    """Whether ``hook_mlp_out`` is ``hook_post @ W_out + b_out`` by construction, in each layer."""
    from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

    cfg = model.cfg
    architecture = getattr(cfg, "original_architecture", None) or getattr(cfg, "architecture", None)
    return not (
        getattr(cfg, "attn_only", False)
        or (getattr(cfg, "num_experts", None) or 0) > 1
        or getattr(cfg, "use_normalization_before_and_after", False)
        or hasattr(model.blocks[0], "ln2_post")
        or architecture in POST_NORM_ARCHITECTURES
    )


def _device(model: Any) -> torch.device:
    return next(model.parameters()).device
