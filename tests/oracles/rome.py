"""ROME as a textbook would write it: one prompt after another, each through the whole model with a hook.

Meng et al.'s steps with nothing saved: no shared prefix, no batch, tokens counted by hand. The prompts are the plain
one and the same behind each prefix; the value is searched by Adam; the update has C = 1 or a given C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

INPUT = {"mlp": "mlp.hook_post", "attn": "attn.hook_z"}
OUTPUT = {"mlp": "hook_mlp_out", "attn": "hook_attn_out"}


@dataclass
class Text:
    """Token ids of a prompt, where the edit acts in it, and the ids of the answer."""

    ids: list[int]
    position: int
    answer: list[int]


def tokenize(model: Any, template: str, subject: str, position: str, target: str = "", before: str = "") -> Text:
    """The prompt alone, with its answer, and up to its subject's end."""

    def encode(text: str) -> list[int]:
        return list(model.tokenizer(text)["input_ids"])

    head = (f"{before} " if before else "") + template[: template.index("{}")] + subject
    text = head + template[template.index("{}") + 2 :]
    ids = encode(text)
    whole = encode(f"{text} {target}") if target else ids
    assert whole[: len(ids)] == ids
    assert ids[: len(encode(head))] == encode(head)
    place = len(encode(head)) - 1 if position == "subject_last" else len(ids) - 1
    return Text(ids, place, whole[len(ids) :])


def matrix_and_bias(model: Any, layer: int, site: str) -> tuple[torch.Tensor, torch.Tensor]:
    block = model.blocks[layer]
    if site == "mlp":
        return block.mlp.W_out.detach(), block.mlp.b_out.detach()
    return block.attn.W_O.detach().flatten(0, 1), block.attn.b_O.detach()


@torch.no_grad()
def key_and_output(model: Any, text: Text, layer: int, site: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What the matrix reads at the edited position, and what it gives there, in the plain model."""
    names = [f"blocks.{layer}.{INPUT[site]}", f"blocks.{layer}.{OUTPUT[site]}"]
    _, cache = model.run_with_cache(torch.tensor([text.ids]), names_filter=names)
    return cache[names[0]][0, text.position].flatten(), cache[names[1]][0, text.position]


def logits_with(model: Any, ids: list[int], hook_name: str, position: int, delta: torch.Tensor) -> torch.Tensor:
    """``[position, vocab]`` of a whole forward pass with δ added at one position."""

    def add(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[0, position] = value[0, position] + delta
        return value

    return model.run_with_hooks(torch.tensor([ids]), fwd_hooks=[(hook_name, add)])[0]


@dataclass
class Textbook:
    """What the textbook finds."""

    losses: list[float]
    nll: list[float]
    kl: list[float]
    delta: torch.Tensor
    key: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    value: torch.Tensor

    @property
    def update(self) -> torch.Tensor:
        return torch.outer(self.left, self.right)


def rome(
    model: Any,
    template: str,
    subject: str,
    target: str,
    *,
    layer: int,
    prefixes: tuple[str, ...],
    steps: int,
    lr: float,
    weight_decay: float,
    clamp: float,
    kl_factor: float,
    site: str = "mlp",
    position: str = "subject_last",
    covariance: torch.Tensor | None = None,
    mixed_key: bool = False,
    essence: str | None = "{} is a",
) -> Textbook:
    """The search for v* and the update; the model is not changed."""
    texts = [tokenize(model, template, subject, position, target, before) for before in ("", *prefixes)]
    kept = None if essence is None else tokenize(model, essence, subject, position)
    seen = [key_and_output(model, text, layer, site) for text in texts]
    key = torch.stack([each[0] for each in seen]).mean(0)
    start = seen[0][1] if mixed_key else torch.stack([each[1] for each in seen]).mean(0)
    hook_name = f"blocks.{layer}.{OUTPUT[site]}"

    delta = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=lr)
    found = Textbook([], [], [], delta, key, key, delta, start)
    before = None
    for step in range(steps):
        nll = torch.zeros((), dtype=start.dtype)
        for text in texts:
            logits = logits_with(model, text.ids + text.answer[:-1], hook_name, text.position, delta)
            answering = logits[-len(text.answer) :]
            nll = nll + torch.nn.functional.cross_entropy(answering, torch.tensor(text.answer)) / len(texts)
        kl = torch.zeros((), dtype=start.dtype)
        if kept is not None:
            now = logits_with(model, kept.ids, hook_name, kept.position, delta)[-1].log_softmax(-1)
            before = now.detach() if before is None else before
            kl = torch.nn.functional.kl_div(before, now, log_target=True, reduction="sum")  # KL(now ‖ before)
        loss = nll + kl_factor * kl + weight_decay * delta.norm() / start.norm() ** 2
        found.losses.append(float(loss.detach()))
        found.nll.append(float(nll.detach()))
        found.kl.append(float(kl.detach()))
        if step == steps - 1 or found.losses[-1] < 0.05:
            break
        (delta.grad,) = torch.autograd.grad(loss, delta)
        optimizer.step()
        with torch.no_grad():
            if delta.norm() > clamp * start.norm():
                delta *= clamp * start.norm() / delta.norm()

    weight, bias = matrix_and_bias(model, layer, site)
    found.delta = delta.detach()
    found.value = start + found.delta
    solved = key if covariance is None else torch.linalg.solve(covariance.to(key), key)
    answered = seen[0][0] if mixed_key else key
    found.left = solved / (answered @ solved)
    found.right = found.value - (answered @ weight + bias)
    return found
