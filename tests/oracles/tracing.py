"""The textbook loop of causal tracing: one whole forward pass of clean and noised copies per state.

Meng et al.'s way, written with hooks by hand: 1 + samples copies of the prompt; the cue's embeddings of all but the
first are spoiled; one state of the spoiled copies is overwritten with that of the first copy, in the same pass.
"""

from __future__ import annotations

from typing import Any

import torch

STREAM_HOOKS = {
    "mlp": "hook_mlp_out",
    "attn": "hook_attn_out",
    "head": "attn.hook_z",
    "neuron": "mlp.hook_post",
}


def resid_hook(model: Any, layer: int) -> str:
    """Where the residual stream after a layer is: behind the norm where that stands behind the sum."""
    post_norm = hasattr(model, "mlm_head")
    return f"blocks.{layer}.hook_normalized_resid_post" if post_norm else f"blocks.{layer}.hook_resid_post"


def state_hook(model: Any, stream: str, layer: int) -> str:
    return resid_hook(model, layer) if stream == "resid" else f"blocks.{layer}.{STREAM_HOOKS[stream]}"


def embedding_hook(model: Any) -> str:
    return "embed.hook_embed" if hasattr(model, "mlm_head") else "hook_embed"


def layers_around(layer: int, window: int, n_layers: int) -> list[int]:
    """ROME's own range: ``max(0, l − w // 2)`` to ``min(L, l − (−w // 2))``."""
    return list(range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2))))


@torch.no_grad()
def forward(
    model: Any,
    tokens: torch.Tensor,
    spoil: Any,
    states: list[tuple[str, int, int | None]],
    *,
    swapped: torch.Tensor | None = None,
    samples: int = 10,
    severed: list[tuple[str, int]] | None = None,
) -> torch.Tensor:
    """Logits ``[copy, position, vocab]`` of one clean copy and of spoiled ones with states from the clean one.

    Args:
        model: The model.
        tokens: One prompt.
        spoil: From embeddings ``[samples, position, d_model]`` to spoiled ones; not called for swaps.
        states: (hook name, position, unit) to overwrite.
        swapped: The twin's tokens, for swaps.
        samples: Spoiled copies.
        severed: (hook name, position) to hold at its value in a run without any patch.
    """
    rows = tokens.repeat(1 + samples, 1)
    hooks: list[Any] = []
    if swapped is not None:
        rows[1:] = swapped
    else:

        def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[1:] = spoil(value[1:])
            return value

        hooks.append((embedding_hook(model), corrupt))
    held: dict[str, torch.Tensor] = {}
    if severed:

        def keep(value: torch.Tensor, hook: Any) -> None:
            held[hook.name] = value.clone()

        model.run_with_hooks(rows, fwd_hooks=[*hooks, *((name, keep) for name, _ in severed)])

    def overwrite(position: int, unit: int | None) -> Any:
        def hook(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            place = (position,) if unit is None else (position, unit)
            for row in range(1, 1 + samples):
                value[(row, *place)] = value[(0, *place)]
            return value

        return hook

    for name, position, unit in states:
        hooks.append((name, overwrite(position, unit)))
    for name, position in severed or ():

        def hold(value: torch.Tensor, hook: Any, position: int = position) -> torch.Tensor:
            value = value.clone()
            value[1:, position] = held[hook.name][1:, position]
            return value

        hooks.append((name, hold))
    return model.run_with_hooks(rows, fwd_hooks=hooks)


@torch.no_grad()
def necessity(
    model: Any,
    tokens: torch.Tensor,
    spoil: Any,
    states: list[tuple[str, int, int | None]],
    *,
    swapped: torch.Tensor | None = None,
    samples: int = 10,
    severed: list[tuple[str, int]] | None = None,
) -> torch.Tensor:
    """Logits of clean copies ``[sample, position, vocab]`` with states from the spoiled run."""
    rows = tokens.repeat(samples, 1)
    taken: dict[str, torch.Tensor] = {}

    def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return spoil(value.clone())

    def take(value: torch.Tensor, hook: Any) -> None:
        taken[hook.name] = value.clone()

    spoiling = [] if swapped is not None else [(embedding_hook(model), corrupt)]
    spoiled_rows = rows if swapped is None else swapped.repeat(samples, 1)
    model.run_with_hooks(spoiled_rows, fwd_hooks=[*spoiling, *((name, take) for name, _, _ in states)])
    clean: dict[str, torch.Tensor] = {}

    def keep(value: torch.Tensor, hook: Any) -> None:
        clean[hook.name] = value.clone()

    if severed:
        model.run_with_hooks(rows, fwd_hooks=[(name, keep) for name, _ in severed])

    def put(position: int, unit: int | None) -> Any:
        def hook(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            place = (slice(None), position) if unit is None else (slice(None), position, unit)
            value[place] = taken[hook.name][place]
            return value

        return hook

    hooks = [(name, put(position, unit)) for name, position, unit in states]
    for name, position in severed or ():

        def hold(value: torch.Tensor, hook: Any, position: int = position) -> torch.Tensor:
            value = value.clone()
            value[:, position] = clean[hook.name][:, position]
            return value

        hooks.append((name, hold))
    return model.run_with_hooks(rows, fwd_hooks=hooks)


def metrics(logits: torch.Tensor, clean: torch.Tensor, target: int, foil: int) -> dict[str, torch.Tensor]:
    """All metrics by their definitions, of logits ``[copy, vocab]`` against clean logits ``[vocab]``."""
    log_p, log_clean = logits.log_softmax(-1), clean.log_softmax(-1)
    return {
        "probability": log_p[:, target].exp(),
        "log_probability": log_p[:, target],
        "logit_difference": logits[:, target] - logits[:, foil],
        "kl": (log_clean.exp() * (log_clean - log_p)).sum(-1),
    }


@torch.no_grad()
def causal_trace(
    model: Any,
    tokens: torch.Tensor,
    target_position: int,
    target: int,
    foil: int,
    spoil: Any,
    *,
    stream: str,
    window: int = 1,
    samples: int = 10,
    swapped: torch.Tensor | None = None,
    direction: str = "sufficiency",
    severed: str | None = None,
    units: list[int | None] | None = None,
) -> dict[str, torch.Tensor]:
    """Effects by metric, ``[position, layer, unit]``: mean over samples, less the baseline (KL: sign turned)."""
    n_layers = model.cfg.n_layers
    plain = forward(model, tokens, spoil, [], swapped=swapped, samples=samples)[:, target_position]
    clean = plain[0]
    unpatched = metrics(plain[1:], clean, target, foil)
    baseline = {
        name: (value.mean() if direction == "sufficiency" else metrics(clean[None], clean, target, foil)[name][0])
        for name, value in unpatched.items()
    }
    chosen = units or [None]
    found = {name: torch.zeros(len(tokens), n_layers, len(chosen), dtype=clean.dtype) for name in baseline}
    for position in range(len(tokens)):
        for layer in range(n_layers):
            around = layers_around(layer, window, n_layers)
            cut = None
            if severed is not None:
                later = range(around[-1] + 1, n_layers)
                cut = [(f"blocks.{at}.{STREAM_HOOKS[severed]}", position) for at in later]
            for slot, unit in enumerate(chosen):
                states = [(state_hook(model, stream, at), position, unit) for at in around]
                if direction == "sufficiency":
                    logits = forward(model, tokens, spoil, states, swapped=swapped, samples=samples, severed=cut)[1:]
                else:
                    logits = necessity(model, tokens, spoil, states, swapped=swapped, samples=samples, severed=cut)
                measured = metrics(logits[:, target_position], clean, target, foil)
                for name, value in measured.items():
                    change = value.mean() - baseline[name]
                    toward = 1 if direction == "sufficiency" else -1
                    found[name][position, layer, slot] = change * toward * (-1 if name == "kl" else 1)
    return found
