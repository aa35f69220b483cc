"""Patching written out: two runs, one hooked forward pass per state, metrics from their definitions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import kn_lens as kn
from kn_lens.models.kind import is_masked
from tests.questions import likely_batch

METRICS = ("probability", "log_probability", "logit_difference", "kl")

PAIRS = [  # two sentences of as many tokens, and what follows a masked model's blank
    ("The capital city of old France is", "The capital city of new Spain is", ", and they like it."),
    ("The cat that the boys know", "The cat that the girl know", " near the old house."),
    ("These dogs", "These cats", " and sleep."),
    ("He likes the new book in Rome", "He likes the new river in Rome", "."),
]

HOOKS = {
    "head": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "pattern": "attn.hook_pattern",
    "mlp": "hook_mlp_out",
    "attn": "hook_attn_out",
    "neuron": "mlp.hook_post",
}


def pairs(model: Any) -> tuple[kn.PromptBatch, kn.PromptBatch]:
    """The sentences and their twins, each asked for what the model says."""
    batches = []
    for which in (0, 1):
        prompts = [kn.Prompt(pair[which], suffix=pair[2] if is_masked(model) else "", target="is") for pair in PAIRS]
        batches.append(likely_batch(model, prompts))
    return batches[0], batches[1]


def run(model: Any, ids: Iterable[int], hooks: Iterable[Any] = ()) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and all activations of one sentence."""
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        kept[hook.name] = activation.detach().clone()

    with torch.no_grad():
        logits = model.run_with_hooks(
            torch.tensor([list(ids)]), fwd_hooks=[*hooks, *((name, keep) for name in model.hook_dict)]
        )
    return logits[0], kept


def foil_of(clean: Tensor, target: int, twin_target: int) -> int:
    """The twin's answer; the runner-up where it is the same."""
    return twin_target if twin_target != target else int(clean.topk(2).indices[1])


def metrics(logits: Tensor, clean: Tensor, target: int, foil: int) -> dict[str, float]:
    """The four metrics of logits at the target position."""
    before, after = clean.log_softmax(-1), logits.log_softmax(-1)
    return {
        "probability": float(after[target].exp()),
        "log_probability": float(after[target]),
        "logit_difference": float(logits[target] - logits[foil]),
        "kl": float((before.exp() * (before - after)).sum()),
    }


def hook_of(model: Any, component: str, layer: int) -> str:
    """Where a state is read and written; a residual stream as the next layer reads it, or the last as it is left."""
    if component != "resid":
        return f"blocks.{layer}.{HOOKS[component]}"
    if layer + 1 < model.cfg.n_layers:
        return f"blocks.{layer + 1}.hook_resid_pre"
    return f"blocks.{layer}.hook_normalized_resid_post" if is_masked(model) else f"blocks.{layer}.hook_resid_post"


def writing(name: str, component: str, value: Tensor, position: int | None, unit: int | None) -> Any:
    """A hook that writes one state."""
    where: Any = slice(None) if position is None else position

    def hook(activation: Tensor, hook: Any) -> Tensor:
        activation = activation.clone()
        if component == "pattern":
            activation[:, unit, where] = value[:, unit, where]
        elif unit is None:
            activation[:, where] = value[:, where]
        else:
            activation[:, where, unit] = value[:, where, unit]
        return activation

    return name, hook


class Pair:
    """One sentence and its twin, and what patching between them gives."""

    def __init__(self, model: Any, entry: Any, twin: Any, direction: str = "sufficiency") -> None:
        self.model, self.entry, self.direction = model, entry, direction
        clean, clean_states = run(model, entry.ids)
        corrupted, corrupted_states = run(model, twin.ids)
        at = entry.target_position
        self.at, self.clean, self.target = at, clean[at], entry.target_ids[0]
        self.foil = foil_of(self.clean, self.target, twin.target_ids[0])
        self.before = self.metrics(self.clean)
        self.after = self.metrics(corrupted[at])
        sufficient = direction == "sufficiency"
        self.base_ids = twin.ids if sufficient else entry.ids
        self.base_states, self.states = (
            (corrupted_states, clean_states) if sufficient else (clean_states, corrupted_states)
        )

    def metrics(self, logits: Tensor) -> dict[str, float]:
        return metrics(logits, self.clean, self.target, self.foil)

    def effect(self, hooks: Iterable[Any]) -> dict[str, float]:
        """Of a base run with these hooks."""
        return self.effect_of(run(self.model, self.base_ids, hooks)[0][self.at])

    def effect_of(self, logits: Tensor) -> dict[str, float]:
        """Of these logits."""
        found = self.metrics(logits)
        if self.direction == "sufficiency":
            gained = {name: found[name] - self.after[name] for name in METRICS}
        else:
            gained = {name: self.before[name] - found[name] for name in METRICS}
        return gained | {"kl": -gained["kl"]}

    def patched(self, component: str, layer: int, position: int | None, unit: int | None) -> dict[str, float]:
        """The effect of one state."""
        name = hook_of(self.model, component, layer)
        return self.effect([writing(name, component, self.states[name], position, unit)])
