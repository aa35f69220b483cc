"""Direct logit attribution: what each head, MLP and neuron writes straight into the answer.

The last residual stream is a sum of what the parts of a model wrote to it. With the final norm's scale s held at its
clean value the logit difference target − foil is linear in that sum: part c contributes

    c · d,    d = (w ⊙ (u_target − u_foil) − mean) / s

where w is the norm's weight, u a column of the unembedding, and the mean (over d_model) is taken off for a LayerNorm,
which centers what it reads. Parts, embeddings and biases add up to the logit difference (nostalgebraist 2020; Wang et
al. 2022). TransformerLens' ``tools.analysis.direct_logit_attribution`` computes the same for heads and layers of models
whose norms are folded into their weights (tested equal), from a cache of all activations at all positions; this one
keeps the target position only, takes norms as they are, prompts of mixed lengths, and single neurons.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.errors import ModelError, PromptError
from kn_lens.forward import DEFAULT_MEMORY_BUDGET, bytes_per_row, run_in_chunks
from kn_lens.models.checks import has_plain_mlp
from kn_lens.models.kind import model_name
from kn_lens.models.stepping import target_logits
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.results import Result, provenance
from kn_lens.tracing.answered import keep_answered
from kn_lens.tracing.foils import foil_ids
from kn_lens.tracing.writes import check_writes_directly

if TYPE_CHECKING:
    import pandas as pd

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True, kw_only=True)
class DirectLogits(Result):
    """Contributions to the logit difference target − foil, in logits.

    Attributes:
        heads: Of each head.
        mlp: Of each MLP layer, its bias included.
        neurons: Of each MLP neuron, if asked for; with ``mlp_bias`` they add up to ``mlp``.
        mlp_bias: Of each MLP's output bias.
        attention_bias: Of each attention layer's output bias, which belongs to no head.
        embedding: Of token and position embeddings.
        final_bias: Of the biases of the final norm and the unembedding.
        total: The logit difference.
        foils: The word that it is taken against.
        prompts: The prompts, in order.
        dropped: Prompts left out, with reasons.
    """

    heads: Float[Tensor, "prompt layer head"]
    mlp: Float[Tensor, "prompt layer"]
    mlp_bias: Float[Tensor, "prompt layer"]
    attention_bias: Float[Tensor, "prompt layer"]
    embedding: Float[Tensor, " prompt"]
    final_bias: Float[Tensor, " prompt"]
    total: Float[Tensor, " prompt"]
    foils: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    neurons: Float[Tensor, "prompt layer neuron"] | None = None
    dropped: tuple[Dropped, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def attention(self) -> Float[Tensor, "prompt layer"]:
        """Of each attention layer: its heads and its bias."""
        return self.heads.sum(-1) + self.attention_bias

    @property
    def rest(self) -> Float[Tensor, " prompt"]:
        """What is no head's and no MLP's: embeddings, attention biases, final biases."""
        return self.embedding + self.attention_bias.sum(-1) + self.final_bias

    @property
    def gap(self) -> Float[Tensor, " prompt"]:
        """The logit difference less all contributions: rounding."""
        return self.total - self.heads.sum((1, 2)) - self.mlp.sum(1) - self.rest

    def to_frame(self, top: int | None = 100) -> pd.DataFrame:
        """One row per prompt and part: component (embedding, head, mlp, neuron, bias), layer, unit, contribution.

        Args:
            top: Neurons shown per prompt, largest absolute contribution first; None shows all.
        """
        import pandas as pd

        rows = []
        for index, prompt in enumerate(self.prompts):
            parts = [("embedding", -1, -1, self.embedding[index]), ("final bias", -1, -1, self.final_bias[index])]
            for layer, heads in enumerate(self.heads[index]):
                parts += [("head", layer, head, value) for head, value in enumerate(heads)]
                parts += [("attention bias", layer, -1, self.attention_bias[index, layer])]
                parts += [("mlp", layer, -1, self.mlp[index, layer])]
            if self.neurons is not None:
                values = self.neurons[index].flatten()
                width = self.neurons.shape[2]
                shown = values.abs().topk(len(values) if top is None else min(top, len(values))).indices
                parts += [("neuron", int(at) // width, int(at) % width, values[at]) for at in shown]
            head = (index, prompt.text, prompt.target, self.foils[index])
            rows += [(*head, *part[:3], float(part[3])) for part in parts]
        columns = ["prompt", "text", "target", "foil", "component", "layer", "unit", "contribution"]
        return pd.DataFrame(rows, columns=columns)


def direct_logit_attribution(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    *,
    neurons: bool = False,
    memory_budget: float = DEFAULT_MEMORY_BUDGET,
    progress: bool = True,
) -> DirectLogits:
    """What each head and MLP (and neuron) writes into the logit difference at the target position.

    The foil is the prompt's own, else the runner-up of its run; two-prefix pairs, which ask for one word after two
    prefixes, have none unless they name it.

    Args:
        model: A loaded model whose layers add to the residual stream as they are; it is left as it was.
        prompts: Prompts, or a batch. Those that the model answers wrongly are left out and counted.
        neurons: Also single MLP neurons.
        memory_budget: Bytes that the prompts of one pass may take; halved when memory runs out.
        progress: Show a progress bar.

    Returns:
        Contributions per prompt; with embeddings and biases they add up to the logit difference.

    Raises:
        ModelError: For a model in which no such sum exists: a masked model's head is not linear, and a norm behind
            the sum rescales what earlier layers wrote.
        PromptError: If the model answers all prompts wrongly, or a two-prefix pair names no foil.
    """
    check_writes_directly(model, "direct logit attribution")
    if (getattr(model.cfg, "output_logits_soft_cap", 0.0) or 0.0) > 0:
        raise ModelError(f"{model_name(model)} caps its logits, which are then no sum of contributions")
    if neurons and not has_plain_mlp(model):
        raise ModelError(f"in {model_name(model)} an MLP's output is no sum over its neurons; take neurons=False")
    batch = as_batch(model, prompts)
    if batch.rivals is not None and bool((batch.foil_ids < 0).any()):
        first = batch.prompts[int((batch.foil_ids < 0).nonzero()[0])]
        raise PromptError(
            f"{first.text!r} is a two-prefix pair without a foil: one word is asked for after two prefixes, and there "
            f"is no rival word to take a logit difference against; give foil=, or take activation_patching"
        )
    batch = keep_answered(model, batch)
    parts: dict[str, list[Tensor]] = {}
    foils: list[int] = []

    @torch.no_grad()
    def run(chunk: Sequence[int]) -> None:
        found, own = _contributions(model, batch, list(chunk), neurons)
        for name, values in found.items():
            parts.setdefault(name, []).append(values.float().cpu())
        foils.extend(own.tolist())
        bar.update(len(chunk))

    with progress_bar(len(batch), "direct logit attribution", "prompt", progress) as bar:
        length = max(batch.lengths)
        size = max(1, int(memory_budget / bytes_per_row(model, length, length, gradients=False)))
        run_in_chunks(range(len(batch)), size, run, what="prompts")
    result = DirectLogits(
        **{name: torch.cat(values) for name, values in parts.items()},
        foils=tuple(batch.decode(token) for token in foils),
        prompts=batch.prompts,
        dropped=batch.dropped,
        settings={"neurons": neurons, "starts_with_bos": batch.starts_with_bos},
        provenance=provenance(model, batch),
    )
    _check_complete(model, result)
    return result


def _contributions(model: Any, batch: PromptBatch, chunk: list[int], neurons: bool) -> tuple[dict[str, Tensor], Tensor]:
    """All parts of some prompts, and their foils."""
    layers = range(model.cfg.n_layers)
    targets = batch.target_positions[chunk]
    rows = torch.arange(len(chunk), device=targets.device)
    store: dict[str, Tensor] = {}

    def record(activation: Tensor, hook: Any) -> None:
        at = targets if activation.shape[1] > 1 else torch.zeros_like(targets)  # the final norm sees the target alone
        store[hook.name] = activation[rows, at]

    has_mlp = not getattr(model.cfg, "attn_only", False)
    names = ["blocks.0.hook_resid_pre"]
    for layer in layers:
        names.append(f"blocks.{layer}.attn.hook_z")
        names += [f"blocks.{layer}.hook_mlp_out"] if has_mlp else []
        names += [f"blocks.{layer}.mlp.hook_post"] if neurons else []
    if "ln_final.hook_scale" in model.hook_dict:
        names.append("ln_final.hook_scale")
    length = max(len(batch.resolved[index].ids) for index in chunk)
    with model.hooks(fwd_hooks=[(name, record) for name in names]):
        logits = target_logits(model, batch.tokens[chunk, :length], targets)
    foils = foil_ids(batch, chunk, logits)
    answers = batch.target_ids[chunk]
    direction, final_bias = _direction(model, answers, foils, store.get("ln_final.hook_scale"))
    nothing = direction.new_zeros(len(chunk))

    def bias(module: Any, name: str) -> Tensor:
        value = getattr(module, name, None)
        return nothing if value is None else direction @ value.to(direction)

    blocks = model.blocks
    heads = [_per_head(store[f"blocks.{layer}.attn.hook_z"], blocks[layer].attn.W_O, direction) for layer in layers]
    mlp = [_along(store[f"blocks.{layer}.hook_mlp_out"], direction) if has_mlp else nothing for layer in layers]
    mlp_bias = [bias(blocks[layer].mlp, "b_out") if has_mlp else nothing for layer in layers]
    found = {
        "heads": torch.stack(heads, 1),
        "mlp": torch.stack(mlp, 1),
        "mlp_bias": torch.stack(mlp_bias, 1),
        "attention_bias": torch.stack([bias(blocks[layer].attn, "b_O") for layer in layers], 1),
        "embedding": _along(store["blocks.0.hook_resid_pre"], direction),
        "final_bias": final_bias,
        "total": (logits[rows, answers] - logits[rows, foils]).to(direction),
    }
    if neurons:
        posts = [store[f"blocks.{layer}.mlp.hook_post"].to(direction) for layer in layers]
        writes = [direction @ blocks[layer].mlp.W_out.to(direction).T for layer in layers]
        found["neurons"] = torch.stack(posts, 1) * torch.stack(writes, 1)
    return found, foils


def _direction(
    model: Any, targets: Tensor, foils: Tensor, scale: Tensor | None
) -> tuple[Float[Tensor, "prompt d_model"], Float[Tensor, " prompt"]]:
    """d of the formula above, and what the biases behind the sum add."""
    wide = torch.promote_types(model.unembed.W_U.dtype, torch.float32)
    difference = (model.unembed.W_U[:, targets] - model.unembed.W_U[:, foils]).T.to(wide)
    bias = (model.unembed.b_U[targets] - model.unembed.b_U[foils]).to(wide)
    norm: Any = getattr(model, "ln_final", None)
    if hasattr(norm, "b"):
        bias = bias + difference @ norm.b.to(wide)
    if hasattr(norm, "w"):
        difference = difference * norm.w.to(wide)
    if norm is not None and "LayerNorm" in type(norm).__name__:
        difference = difference - difference.mean(-1, keepdim=True)
    return difference if scale is None else difference / scale.to(wide), bias


def _along(activation: Float[Tensor, "prompt d_model"], direction: Tensor) -> Float[Tensor, " prompt"]:
    return (activation.to(direction) * direction).sum(-1)


def _per_head(z: Float[Tensor, "prompt head d_head"], out: Tensor, direction: Tensor) -> Float[Tensor, "prompt head"]:
    return torch.einsum("phd,hdm,pm->ph", z.to(direction), out.to(direction), direction)


def _check_complete(model: Any, result: DirectLogits) -> None:
    """A model with something unforeseen between its parts and its logits is refused, not reported wrongly."""
    dtype = next(model.parameters()).dtype
    size = result.heads.abs().sum((1, 2)) + result.mlp.abs().sum(1) + result.rest.abs() + 1
    worst = float((result.gap.abs() / size).max())
    if not worst <= max(_TOLERANCE.get(dtype, 1e-3), 1e-5):
        raise ModelError(
            f"the parts of {model_name(model)} miss its logit difference by {worst:.2g} of their size: something "
            f"between its layers and its logits is not linear, and direct logit attribution does not apply"
        )
