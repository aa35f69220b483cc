"""Prompts for the small random models: mixed lengths, cues, and targets that the model finds likely."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

import kn_lens as kn
from kn_lens.models.kind import is_masked
from kn_lens.sites import site_of

SITES = {"mlp": "mlp.hook_post", "mlp_pre": "mlp.hook_pre", "head": "attn.hook_z"}
"""The hook of each site, written out: what the textbook loop is told to read."""

POSITIONS = ("target", "cue_last", "cue", "all")

_TEXTS = [  # prefix, what follows the blank, cue (two tokens in the first ones)
    ("The capital city of old France is", ", and they like it.", "old France"),
    ("The cat that the boys know", " near the old house.", "the boys"),
    ("These dogs", " and sleep.", "These dogs"),
    ("The author of the new book in Rome", ".", "author"),
    ("It was in the city of Cairo and of Tokyo that she", " the river.", "of Cairo"),
    ("The capital city of new Spain is", ", and they like it.", "new Spain"),
]


def questions(model: Any, count: int | None = None) -> list[kn.Prompt]:
    """Prompts of mixed lengths with a cue; a masked model's blank lies in the middle."""
    masked = is_masked(model)
    return [
        kn.Prompt(prefix, suffix=suffix if masked else "", target="is", cue=cue)
        for prefix, suffix, cue in _TEXTS[:count]
    ]


def likely_batch(model: Any, prompts: Iterable[kn.Prompt] | None = None) -> kn.PromptBatch:
    """The prompts, each asked for the token that the model itself finds most probable."""
    batch = kn.PromptBatch.from_prompts(model, questions(model) if prompts is None else prompts)
    resolved = []
    for entry in batch.resolved:
        with torch.no_grad():
            logits = model(torch.tensor([entry.ids]))[0, entry.target_position]
        resolved.append(replace(entry, target_ids=(int(logits.argmax()),)))
    return kn.PromptBatch.from_resolved(model, resolved)


def tokens_of(entry: Any) -> torch.Tensor:
    return torch.tensor(entry.ids)


def unit_positions(entry: Any, positions: str) -> list[int]:
    """The positions that a name stands for, written from the definition."""
    return {
        "target": [entry.target_position],
        "cue_last": list(entry.cue_positions[-1:]),
        "cue": list(entry.cue_positions),
        "all": list(range(len(entry.ids))),
    }[positions]


def state_of(model: Any) -> dict[str, Any]:
    """Everything of a model that a method could leave changed."""
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [parameter.grad is None for parameter in model.parameters()],
        "hooks": {
            name: (len(point.fwd_hooks), len(point.bwd_hooks), len(point._forward_hooks), len(point._backward_hooks))
            for name, point in model.hook_dict.items()
        },
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "training": model.training,
    }


def assert_same_state(model: Any, before: dict[str, Any]) -> None:
    """Bit-identical weights; flags, hooks and instance attributes as they were."""
    after = state_of(model)
    assert after["weights"].keys() == before["weights"].keys()
    for name, tensor in before["weights"].items():
        assert torch.equal(after["weights"][name], tensor), name
    for kind in ("flags", "gradients", "hooks", "attributes", "training"):
        assert after[kind] == before[kind], kind


def hooks_are_as_written(model: Any) -> bool:
    """Whether each site's hook is the one that the tests name."""
    return all(site_of(model, site).hook(1) == f"blocks.1.{hook}" for site, hook in SITES.items())
