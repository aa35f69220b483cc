"""Many intervened copies of a prompt in one pass, each begun where it first differs from the clean run.

Rows are laid out as *columns*: every prompt of a chunk has the same number of copies, and a copy joins
the batch at the first layer at which it differs. A pass therefore computes, at each layer, only the rows
that differ by then; positions before ``start`` are computed once per prompt (:mod:`kn_lens.models.shared_prefix`).
Models that cannot be stepped run all rows whole: same numbers, more time.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.models.shared_prefix import can_share_prefix, prefix_hooks, shared_prefix
from kn_lens.models.stepping import can_step, readout, run_block, target_logits

log = logging.getLogger(__name__)

DEFAULT_MEMORY_BUDGET = 1.0e9
"""Bytes that the rows of one pass may take, beside the model."""

_LOGIT_ROWS = 128  # rows whose logits are held at once: 25 MB at a vocabulary of 49,152

Hook = tuple[str, Callable[..., Tensor]]
Measure = Callable[[Tensor, Tensor], Tensor]
"""(logits ``[row, vocab]``, prompt of each row ``[row]``) → one number per row, or several."""

Chunk = TypeVar("Chunk")


@dataclass(frozen=True, kw_only=True)
class CleanRun:
    """One pass of prompts of one length, and what intervened copies reuse of it.

    Attributes:
        tokens: The prompts, none padded.
        target: The position whose logits answer, the same in all.
        start: The first position that copies compute themselves; 0 if nothing is shared.
        activations: What was asked to be kept, from ``start`` on.
        resid: What enters each block, from ``start`` on; empty for models that cannot be stepped.
        prefix: Keys and values of all positions, if copies may begin behind the first.
        logits: At the target.
        hooks: Interventions that this run itself was made with (a corrupted run's).
    """

    tokens: Int[Tensor, "prompt position"]
    target: int
    start: int
    activations: Mapping[str, Float[Tensor, "prompt span ..."]]
    resid: Sequence[Float[Tensor, "prompt span d_model"]]
    prefix: Mapping[str, Tensor]
    logits: Float[Tensor, "prompt d_vocab"]
    hooks: Sequence[Hook] = ()

    def begin_at(self, start: int) -> CleanRun:
        """The same run, whose copies compute the positions from ``start`` on (where its prefix was kept)."""
        skip = start - self.start
        if skip <= 0 or not self.prefix:
            return self
        return replace(
            self,
            start=start,
            activations={name: _from_position(name, value, skip) for name, value in self.activations.items()},
            resid=[value[:, skip:] for value in self.resid],
        )

    def repeated(self, count: int) -> CleanRun:
        """Each prompt ``count`` times in a row."""
        return replace(
            self,
            tokens=self.tokens.repeat_interleave(count, 0),
            activations={name: value.repeat_interleave(count, 0) for name, value in self.activations.items()},
            resid=[value.repeat_interleave(count, 0) for value in self.resid],
            prefix={name: value.repeat_interleave(count, 0) for name, value in self.prefix.items()},
            logits=self.logits.repeat_interleave(count, 0),
        )


@torch.no_grad()
def clean_run(
    model: Any,
    tokens: Int[Tensor, "prompt position"],
    *,
    target: int,
    start: int = 0,
    keep: Sequence[str] = (),
    keep_prefix: bool = False,
    hooks: Sequence[Hook] = (),
) -> CleanRun:
    """Run prompts of one length and keep the activations named in ``keep``.

    ``start`` is honoured where the model can share a prefix; elsewhere the run is kept whole. With ``keep_prefix``
    copies may begin later than at ``start``: see :meth:`CleanRun.begin_at`. ``hooks`` intervene in the run itself.
    """
    steps = can_step(model)
    shares = steps and can_share_prefix(model)
    start = start if shares else 0
    resid_names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.cfg.n_layers)] if steps else []
    prefix_names = prefix_hooks(model) if start or (keep_prefix and shares) else []
    store: dict[str, Tensor] = {}

    def record(name: str) -> Callable[..., None]:  # under the name asked for: a TransformerBridge has aliases
        def hook(activation: Tensor, hook: Any) -> None:
            store[name] = activation.detach()

        return hook

    names = dict.fromkeys([*keep, *resid_names, *prefix_names])
    with model.hooks(fwd_hooks=[*hooks, *((name, record(name)) for name in names)]):
        logits = target_logits(model, tokens, torch.full((len(tokens),), target, device=tokens.device))
    return CleanRun(
        tokens=tokens,
        target=target,
        start=start,
        activations={name: _from_position(name, store[name], start) for name in keep},
        resid=[store[name][:, start:] for name in resid_names],
        prefix={name: store[name] for name in prefix_names},
        logits=logits,
        hooks=hooks,
    )


def _from_position(name: str, activation: Tensor, start: int) -> Tensor:
    """An activation without its first positions; a pattern's are its queries."""
    return activation[:, :, start:] if name.endswith(("hook_pattern", "hook_attn_scores")) else activation[:, start:]


class Columns:
    """Intervened copies of the prompts of a clean run, after the last block.

    Args:
        model: The model.
        clean: The clean run of its prompts.
        joins: ``joins[l]`` copies of every prompt join at layer ``l``; columns are numbered in
            the order of joining.
        hooks: Interventions. A hook sees rows in prompt-major order, ``[prompt · column, span, …]``,
            with at least the columns joined by then; see :func:`kn_lens.interventions.columns_of`.
    """

    def __init__(self, model: Any, clean: CleanRun, joins: Sequence[int], hooks: Sequence[Hook]) -> None:
        self.model, self.clean = model, clean
        self.n_prompts, self.n_columns = len(clean.tokens), sum(joins)
        own = () if can_step(model) else clean.hooks  # stepped copies begin from what the run's own hooks left
        with model.hooks(fwd_hooks=[*own, *hooks]):
            self._final, self._is_logits = self._run(joins)

    def _run(self, joins: Sequence[int]) -> tuple[Tensor, bool]:
        clean, model = self.clean, self.model
        if not can_step(model):
            rows = clean.tokens.repeat_interleave(self.n_columns, dim=0)
            targets = torch.full((len(rows),), clean.target, device=rows.device)
            return target_logits(model, rows, targets), True
        resid: Tensor | None = None
        with ExitStack() as stack:
            past = [None] * len(joins)
            if clean.start:
                past = stack.enter_context(shared_prefix(model, clean.prefix, clean.start))
            for layer, count in enumerate(joins):
                if count:
                    fresh = clean.resid[layer][:, None].expand(-1, count, -1, -1)
                    # A copy in either case: hooks may write to it.
                    resid = fresh.clone() if resid is None else torch.cat([resid, fresh], dim=1)
                if resid is not None:
                    rows = run_block(model, layer, resid.flatten(0, 1), past=past[layer])
                    resid = rows.unflatten(0, (self.n_prompts, -1))
        assert resid is not None
        return resid[:, :, clean.target - clean.start].flatten(0, 1), False

    def _logits(self, final: Tensor) -> Tensor:
        return final if self._is_logits else readout(self.model, final[:, None])[:, 0]

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        owners = torch.arange(self.n_prompts, device=self._final.device).repeat_interleave(self.n_columns)
        for first in range(0, len(owners), _LOGIT_ROWS):
            rows = slice(first, first + _LOGIT_ROWS)
            yield rows, owners[rows]

    @torch.no_grad()
    def measure(self, measure: Measure) -> Float[Tensor, "prompt column ..."]:
        """``measure`` of each copy's logits at the target."""
        found = [measure(self._logits(self._final[rows]), owners) for rows, owners in self._chunks()]
        return torch.cat(found).unflatten(0, (self.n_prompts, self.n_columns))

    def gradients(
        self, measure: Measure, leaves: Sequence[Tensor]
    ) -> tuple[Float[Tensor, "prompt column"], tuple[Tensor, ...]]:
        """``measure`` of each copy, and the gradient of its sum with respect to ``leaves``."""
        values, upstream = [], torch.empty_like(self._final)
        for rows, owners in self._chunks():
            final = self._final[rows].detach().requires_grad_()
            value = measure(self._logits(final), owners)
            upstream[rows] = torch.autograd.grad(value.sum(), final)[0]
            values.append(value.detach())
        gradients = torch.autograd.grad(self._final, list(leaves), upstream)
        return torch.cat(values).unflatten(0, (self.n_prompts, self.n_columns)), gradients


@contextmanager
def frozen_weights(model: Any) -> Iterator[None]:
    """No gradients for weights within the context; each parameter's flag comes back as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def bytes_per_row(model: Any, span: int, length: int, *, gradients: bool) -> float:
    """An estimate of what one row takes in one pass: over all layers with gradients, else in one layer."""
    cfg = model.cfg
    numbers = span * (14 * cfg.d_model + 9 * cfg.d_mlp + 5 * cfg.n_heads * length)
    return 4.0 * numbers * ((cfg.n_layers + 1) / 2 if gradients else 1.0)


def run_in_chunks(items: Sequence[Chunk], size: int, run: Callable[[Sequence[Chunk]], None], what: str = "rows") -> int:
    """Call ``run`` on runs of at most ``size`` items; halve the size when memory runs out, and go on.

    Returns:
        The size that fitted in the end.

    Raises:
        MemoryError: If a single item does not fit.
    """
    done = 0
    while done < len(items):
        chunk = items[done : done + max(1, size)]
        try:
            run(chunk)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if len(chunk) == 1:
                raise MemoryError(f"one of the {what} does not fit into memory: {error}") from error
            size = len(chunk) // 2
            log.warning("out of memory with %d %s at once; going on with %d", len(chunk), what, size)
        else:
            done += len(chunk)
            continue
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return size


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
