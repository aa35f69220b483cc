"""The vocabulary of states: what is restored or patched, in which hook it is read, and how it is shaped.

Tracing speaks of *streams*: the residual stream after a layer, a layer's MLP or attention output, a single head.
Patching also speaks of a head's parts: queries, keys, values, and the attention pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from kn_lens.errors import ModelError, SettingsError, near_matches
from kn_lens.models.kind import is_masked, model_name
from kn_lens.models.stepping import can_step

StreamName = Literal["resid", "mlp", "attn", "head", "neuron", "q", "k", "v", "pattern"]
"""``resid``: the residual stream after a layer (what the next block reads); ``mlp``, ``attn``: a layer's MLP or
attention output; ``head``: a head's weighted values z; ``neuron``: an MLP neuron after the non-linearity; ``q``, ``k``,
``v``: a head's queries, keys, values (before rotation; grouped keys and values are fewer than heads); ``pattern``: a
head's attention probabilities from one position."""

_HOOKS = {
    "resid": "hook_resid_pre",  # of the next block: the same state in models whose norms stand behind the sum
    "mlp": "hook_mlp_out",
    "attn": "hook_attn_out",
    "head": "attn.hook_z",
    "neuron": "mlp.hook_post",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
}


@dataclass(frozen=True)
class Stream:
    """One kind of state in one model.

    Attributes:
        name: See :data:`StreamName`.
        n_layers: Layers of the model.
        n_units: Heads (of keys and values: groups) or neurons of a layer; None where a layer has one state.
    """

    name: StreamName
    n_layers: int
    n_units: int | None

    def hook(self, layer: int) -> str | None:
        """Where the state after ``layer`` is read; None for the last residual stream, which no block reads."""
        block = self.joins_at(layer)
        return None if block == self.n_layers else f"blocks.{block}.{_HOOKS[self.name]}"

    def joins_at(self, layer: int) -> int:
        """The first block that a copy with this state changed must run through itself."""
        return layer + 1 if self.name == "resid" else layer

    def by_position(self, activation: Tensor, n_prompts: int) -> Tensor:
        """A view ``[prompt, column, position, (unit,) …]`` of rows in prompt-major order; writes go through."""
        view = activation.unflatten(0, (n_prompts, -1))
        return view.transpose(2, 3) if self.name == "pattern" else view


def stream_of(model: Any, name: str, allowed: tuple[str, ...] = get_args(StreamName)) -> Stream:
    """The stream ``name`` of ``model``.

    Raises:
        SettingsError: If there is no such stream, or the model does not expose it.
        ModelError: For a masked TransformerBridge.
    """
    if name not in allowed:
        raise SettingsError(f"no stream {name!r}.{near_matches(name, allowed)} Streams: {', '.join(allowed)}")
    if is_masked(model) and not can_step(model):
        raise ModelError(
            f"{model_name(model)} is a masked model held as {type(model).__name__}, whose embedding and attention "
            f"hooks stand behind a norm; tracing and patching take it as a HookedEncoder, which kn.load_model makes"
        )
    cfg = model.cfg
    units = {
        "head": cfg.n_heads,
        "q": cfg.n_heads,
        "pattern": cfg.n_heads,
        "k": _kv_heads(cfg),
        "v": _kv_heads(cfg),
        "neuron": cfg.d_mlp,
    }
    stream = Stream(name, cfg.n_layers, units.get(name))  # type: ignore[arg-type]
    hook = stream.hook(0)
    if hook is not None and hook not in model.hook_dict:
        exposed = [other for other in allowed if f"blocks.1.{_HOOKS[other]}" in model.hook_dict]
        raise SettingsError(
            f"{model_name(model)} does not expose the stream {name!r} ({hook}); it exposes {', '.join(exposed)}"
        )
    return stream


def _kv_heads(cfg: Any) -> int:
    grouped = getattr(cfg, "n_key_value_heads", None)
    return cfg.n_heads if grouped is None or getattr(cfg, "ungroup_grouped_query_attention", False) else grouped
