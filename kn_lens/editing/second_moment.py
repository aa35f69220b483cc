"""The inputs of an edited matrix over a text, or over what a model writes itself, summed up as k kᵀ."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kn_lens.editing.contexts import leading_ids, sample_tokens
from kn_lens.editing.rows import INPUTS, EditSite
from kn_lens.errors import ModelError
from kn_lens.models.kind import model_name, tokenizer_of
from kn_lens.models.stepping import embed, run_block
from kn_lens.progress import progress_bar
from kn_lens.text_blocks import TextBlocks

WINDOW = 128
"""Tokens that are read at once; fewer where the model's context is shorter."""

_ROWS_SAMPLED = 64
_BATCH_TOKENS = 2048  # padding included


@torch.no_grad()
def second_moment(
    model: Any, windows: Iterator[list[int]], wanted: int, layer: int, site: EditSite, progress: bool
) -> tuple[Float[Tensor, "d_in d_in"], int]:
    """The sum of k kᵀ in float64, and how many k there were."""
    name = f"blocks.{layer}.{INPUTS[site]}"
    device = next(model.parameters()).device
    first = leading_ids(model)
    width = key_width(model, site)
    total, seen = torch.zeros(width, width, dtype=torch.float64, device=device), 0
    store: list[Tensor] = []
    with progress_bar(wanted, f"covariance of layer {layer}", "token", progress) as bar:
        for batch in _batches(windows, len(first)):
            tokens = torch.zeros(len(batch), len(first) + max(map(len, batch)), dtype=torch.long)
            counts = torch.zeros(tokens.shape, dtype=torch.bool)
            for row, ids in enumerate(batch):
                tokens[row, : len(first) + len(ids)] = torch.tensor([*first, *ids])
                counts[row, len(first) : len(first) + len(ids)] = True
            # Padding stands on the right, where a causal model does not look.
            resid = embed(model, tokens.to(device))
            store.clear()
            with model.hooks(fwd_hooks=[(name, lambda activation, hook: store.append(activation))]):
                for at in range(layer + 1):
                    resid = run_block(model, at, resid)
            keys = store[0].flatten(2)[counts.to(device)][: wanted - seen].double()
            total.addmm_(keys.T, keys)
            seen += len(keys)
            bar.update(len(keys))
            if seen >= wanted:
                break
    if not bool(total.isfinite().all()):
        raise ModelError(
            f"the inputs of layer {layer} ({site}) of {model_name(model)} hold NaN or ∞; load it with dtype='float32'"
        )
    return total.cpu(), seen


def _batches(windows: Iterator[list[int]], n_first: int) -> Iterator[list[list[int]]]:
    """Windows that fill a batch of about 2048 tokens when padded."""
    batch: list[list[int]] = []
    longest = 0
    for ids in windows:
        longest = max(longest, len(ids) + n_first)
        if batch and longest * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch, longest = [], len(ids) + n_first
        batch.append(ids)
    if batch:
        yield batch


def file_windows(model: Any, path: Path) -> Iterator[list[int]]:
    tokenizer, length = tokenizer_of(model), _window(model)
    for block in TextBlocks(path):
        lines = [line for line in block.splitlines() if line.strip()]
        if not lines:
            continue
        for ids in tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"]:
            yield from (ids[at : at + length] for at in range(0, len(ids), length))


def own_windows(model: Any, seed: int) -> Iterator[list[int]]:
    """Texts that the model samples, without end."""
    length, end = _window(model), tokenizer_of(model).eos_token_id
    for part in count():
        for row in sample_tokens(model, _ROWS_SAMPLED, length, seed=1_000_000 * seed + part).tolist():
            yield _until_end(row, end)


def _until_end(ids: list[int], end: int | None) -> list[int]:
    """A sampled text up to its end mark, or to where the model only repeats one token (as one without such a mark)."""
    if end in ids[1:]:
        ids = ids[: ids.index(end, 1)]
    stop = len(ids)
    while stop > 1 and ids[stop - 1] == ids[stop - 2]:
        stop -= 1
    return ids[:stop]


def _window(model: Any) -> int:
    return min(WINDOW, int(model.cfg.n_ctx)) - len(leading_ids(model))


def key_width(model: Any, site: EditSite) -> int:
    return model.cfg.d_mlp if site == "mlp" else model.cfg.n_heads * model.cfg.d_head
