"""How the cue of a prompt is spoiled: by noise, zeros or a mean in place of its embeddings, or by another cue."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.errors import SettingsError, near_matches
from kn_lens.forward import Hook
from kn_lens.interventions import columns_of
from kn_lens.models.kind import is_masked
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.tokens import ResolvedPrompt
from kn_lens.tracing.answered import only
from kn_lens.tracing.swap import Swapped, Swaps, swap_partners

CorruptionName = Literal["noise", "swap", "zero", "mean"]
"""``noise``: Gaussian noise added to the cue's token embeddings (Meng et al. 2022); ``swap``: the cue replaced by
another of equal token length (Zhang and Nanda 2023); ``zero``, ``mean``: its embeddings set to 0, or to the mean of
all cues' tokens."""


@dataclass(frozen=True)
class Corruption:
    """A way to spoil the cues of a batch.

    Attributes:
        name: See :data:`CorruptionName`.
        batch: The prompts that it can be done to.
        samples: Draws of noise per prompt; 1 for what is not drawn.
        sigma: Standard deviation of the noise; NaN without.
        seed: Of the draws; each prompt has its own, so that its company does not matter.
        mean: The mean embedding of all cue tokens.
        swapped: The twins.
    """

    name: CorruptionName
    batch: PromptBatch
    samples: int
    sigma: float
    seed: int
    mean: Float[Tensor, " d_model"]
    swapped: Swapped | None

    def keep(self, kept: Sequence[int], reason: str) -> Corruption:
        """The same of some of the prompts; the others are dropped for ``reason``."""
        if self.swapped is None:
            return replace(self, batch=only(self.batch, kept, reason))
        swapped = self.swapped.keep(kept, reason)
        return replace(self, batch=swapped.batch, swapped=swapped)

    def tokens(self, chunk: Sequence[int], length: int) -> Int[Tensor, "row position"]:
        """What the corrupted run reads: each prompt of the chunk ``samples`` times."""
        if self.swapped is not None:
            return torch.tensor([self.swapped.ids[index] for index in chunk], device=self.batch.tokens.device)
        return self.batch.tokens[list(chunk), :length].repeat_interleave(self.samples, 0)

    def hooks(self, model: Any, chunk: Sequence[int]) -> list[Hook]:
        """What is done to the embeddings in that run."""
        if self.swapped is not None:
            return []
        entries = [self.batch.resolved[index] for index in chunk]
        places = list(entries[0].cue_positions)  # the same in all prompts of a chunk
        rows = len(entries) * self.samples

        def overwrite(activation: Tensor, hook: Any) -> Tensor:
            changed = activation.clone()
            view = columns_of(changed, rows)
            if self.name == "noise":
                noise = torch.cat([self.noise(entry) for entry in entries])
                view[:, :, places] += noise[:, None].to(view)
            else:
                view[:, :, places] = 0 if self.name == "zero" else self.mean.to(view)
            return changed

        return [(embedding_hook(model), overwrite)]

    def noise(self, entry: ResolvedPrompt) -> Float[Tensor, "sample cue d_model"]:
        """A prompt's draws, in float32 on the CPU: from the seed and the prompt's tokens alone."""
        digest = hashlib.sha256(repr((self.seed, entry.ids)).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return self.sigma * torch.randn(self.samples, len(entry.cue_positions), len(self.mean), generator=generator)


def corruption_of(
    model: Any,
    batch: PromptBatch,
    name: str,
    *,
    samples: int,
    noise: float,
    sigma: float | None,
    mean: Sequence[float] | Tensor | None = None,
    swaps: Swaps | None,
    seed: int,
) -> Corruption:
    """Prepare a corruption for a batch.

    Args:
        model: The model.
        batch: Prompts with cues.
        name: See :data:`CorruptionName`.
        samples: Draws of noise per prompt.
        noise: Standard deviation of the noise, in those of the embeddings of the batch's cue tokens.
        sigma: Standard deviation of the noise, where it is given rather than measured on the batch.
        mean: The mean embedding, likewise.
        swaps: See :func:`kn_lens.tracing.swap.swap_partners`.
        seed: Of the draws.

    Raises:
        SettingsError: For an unknown name, or a setting out of its range or without use.
        PromptError: If a prompt has no cue, or no twin can be found.
    """
    known = get_args(CorruptionName)
    if name not in known:
        raise SettingsError(f"no corruption {name!r}.{near_matches(name, known)} Corruptions: {', '.join(known)}")
    if samples < 1:
        raise SettingsError(f"samples is {samples}; give 1 or more draws of noise")
    for what, value in (("noise", noise), ("sigma", sigma)):
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < float("inf")):
            raise SettingsError(f"{what} is {value!r}; give a number above 0")
    if swaps is not None and name != "swap":
        raise SettingsError(f"swaps is given and the corruption is {name!r}; take corruption='swap'")
    if mean is not None and name != "mean":
        raise SettingsError(f"mean is given and the corruption is {name!r}; take corruption='mean'")
    swapped = swap_partners(model, batch, swaps) if name == "swap" else None
    batch = batch if swapped is None else swapped.batch
    cues = torch.tensor([entry.ids[at] for entry in batch.resolved for at in entry.cue_positions])
    embeddings = embedding_matrix(model)[cues.to(batch.tokens.device)].float()
    spread = noise * float(embeddings.std(correction=0)) if sigma is None else sigma
    return Corruption(
        name=name,  # type: ignore[arg-type]
        batch=batch,
        samples=samples if name == "noise" else 1,
        sigma=spread if name == "noise" else float("nan"),
        seed=seed,
        mean=embeddings.mean(0) if mean is None else _checked_mean(mean, embeddings),
        swapped=swapped,
    )


def _checked_mean(
    mean: Sequence[float] | Tensor, embeddings: Float[Tensor, "cue d_model"]
) -> Float[Tensor, " d_model"]:
    """A mean embedding that was given, as one measured here would be."""
    given = torch.as_tensor(mean).to(embeddings)
    if given.shape != embeddings.shape[1:] or not given.isfinite().all():
        raise SettingsError(f"mean is no embedding of this model; give {embeddings.shape[1]} numbers")
    return given


def embedding_hook(model: Any) -> str:
    """Where the token embeddings are read, before positions are added: named otherwise in masked models."""
    return "embed.hook_embed" if is_masked(model) and "embed.hook_embed" in model.hook_dict else "hook_embed"


def embedding_matrix(model: Any) -> Float[Tensor, "d_vocab d_model"]:
    """The token embeddings, as the model looks them up."""
    embed = model.embed.embed if is_masked(model) and hasattr(model.embed, "embed") else model.embed
    return embed.W_E.detach()
