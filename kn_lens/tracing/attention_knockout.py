"""Attention knockout (Geva et al. 2023): which positions does the answer's position read, and in which layers?

The attention scores from the chosen source positions to the target position are set to −∞ before the softmax, in a
window of layers around each layer l; for a metric M

    effect(l) = M_clean − M_knocked-out(l)        (for KL the other way round)

so that it is positive where the answer hangs on what is read there. The paper cuts subject → last, non-subject → last
and last → last over 9 layers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kn_lens.errors import SettingsError, near_matches
from kn_lens.forward import DEFAULT_MEMORY_BUDGET, CleanRun, Columns, Hook, bytes_per_row, clean_run, run_in_chunks
from kn_lens.interventions import columns_of
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.positions import alike, require_cues
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.tokens import ResolvedPrompt
from kn_lens.results import provenance
from kn_lens.streams import stream_of
from kn_lens.tracing.answered import keep_answered
from kn_lens.tracing.foils import foil_ids
from kn_lens.tracing.knockout_trace import KnockoutTrace
from kn_lens.tracing.metrics import METRICS, all_metrics, check_metric, default_metric, effect
from kn_lens.tracing.windows import whole_number, window_of

log = logging.getLogger(__name__)

Block = Literal["cue", "other", "target"]
"""What the target position is kept from reading: ``cue``: the cue; ``target``: itself; ``other``: all else."""
BLOCKS: tuple[Block, ...] = get_args(Block)

PAPER_WINDOW = 9
_SHALLOW = 20  # layers; up to here the paper's window would cover about half of the model or more


def attention_knockout(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    *,
    window: int | None = None,
    blocks: Sequence[Block] = BLOCKS,
    heads: bool = False,
    metric: str | None = None,
    memory_budget: float = DEFAULT_MEMORY_BUDGET,
    progress: bool = True,
) -> KnockoutTrace:
    """Cut the attention from a block of positions to the target position, layer by layer.

    A head whose every source is cut attends to nothing: its pattern is 0 (as TransformerLens has it), and it writes
    no more than the layer's bias.

    Args:
        model: A loaded model; it is left as it was.
        prompts: Prompts with a cue. Those that the model answers wrongly are left out and counted.
        window: How many layers, centered on each, are cut together: l − ⌊w/2⌋ to l + ⌈w/2⌉ − 1, clipped at the ends.
            By default 9 as in the paper, or a fifth of the layers of a model of at most 20; 1 with ``heads``.
        blocks: ``"cue"`` → target, ``"other"`` (neither cue nor target) → target, ``"target"`` → itself; all three
            by default. Where the target position belongs to the cue, it is ``"target"``.
        heads: Cut one head at a time instead of all heads of a layer.
        metric: The one that tables and figures show by default; all four are computed. By default the logit
            difference, and log p of two-prefix pairs.
        memory_budget: Bytes that the copies of one pass may take; halved when memory runs out.
        progress: Show a progress bar.

    Returns:
        Effects by metric, ``[prompt, block, layer]``, with one more axis for heads.

    Raises:
        SettingsError: For an unknown block or metric, the logit difference of two-prefix pairs, or a window that is
            below 1, or above 1 with ``heads``.
        ModelError: For a masked TransformerBridge.
        PromptError: If a prompt has no cue, or the model answers all of them wrongly.
    """
    check_metric(metric)
    stream_of(model, "pattern")  # refuses models whose attention hooks are not what is cut
    chosen = _check_blocks(blocks)
    n_layers = model.cfg.n_layers
    width = _check_window(window, n_layers, heads)
    batch = as_batch(model, prompts)
    shown = default_metric(metric, batch)
    require_cues(batch)
    batch = keep_answered(model, batch)
    cuts = [
        _Cut(block, layer, window_of(layer, width, n_layers), head)
        for block in range(len(chosen))
        for layer in range(n_layers)
        for head in (range(model.cfg.n_heads) if heads else [None])
    ]
    cuts.sort(key=lambda cut: cut.layers.start)  # columns are numbered in the order of joining
    shape = (len(batch), len(chosen), n_layers, *([model.cfg.n_heads] if heads else []))
    effects = torch.full((*shape, len(METRICS)), float("nan"))
    clean = torch.zeros(len(batch), len(METRICS))
    foils = torch.zeros(len(batch), dtype=torch.long)

    @torch.no_grad()
    def run(chunk: Sequence[int]) -> None:
        indices = list(chunk)
        entry = batch.resolved[indices[0]]
        start = 0 if batch.masked else entry.target_position
        base = clean_run(model, batch.tokens[indices, : len(entry.ids)], target=entry.target_position, start=start)
        own = foil_ids(batch, indices, base.logits)
        measure = all_metrics(batch.target_ids[indices], own, base.logits)
        before = measure(base.logits, torch.arange(len(indices), device=own.device))
        sources = torch.stack([_sources(batch.resolved[index], chosen) for index in indices]).to(own.device)
        after = _knocked_out(model, base, cuts, sources, measure, memory_budget)
        for column, cut in enumerate(cuts):
            has_block = sources[:, cut.block].any(-1)[:, None]
            lost = [effect(name, after[:, column, at], before[:, at], "necessity") for at, name in enumerate(METRICS)]
            values = torch.where(has_block, torch.stack(lost, -1), float("nan"))
            effects[(indices, *cut.place)] = values.float().cpu()
        clean[indices] = before.float().cpu()
        foils[indices] = own.cpu()
        bar.update(len(indices))

    with progress_bar(len(batch), "attention knockout", "prompt", progress) as bar:
        for indices, _ in alike(batch, "target"):
            length = len(batch.resolved[indices[0]].ids)
            span = length if batch.masked else 1
            need = bytes_per_row(model, span, length, gradients=False) * len(cuts)
            run_in_chunks(indices, max(1, int(memory_budget / need)), run, what="prompts")
    return KnockoutTrace(
        effects=dict(zip(METRICS, effects.unbind(-1), strict=True)),
        clean=dict(zip(METRICS, clean.unbind(-1), strict=True)),
        blocks=chosen,
        window=width,
        foils=tuple(batch.decode(int(token)) for token in foils),
        metric=shown,
        prompts=batch.prompts,
        dropped=batch.dropped,
        settings={
            "window": width,
            "window_asked": window,
            "blocks": list(chosen),
            "heads": heads,
            "metric": shown,
            "starts_with_bos": batch.starts_with_bos,
        },
        provenance=provenance(model, batch),
    )


@dataclass(frozen=True)
class _Cut:
    """One copy: the block cut off (by index), the layer named, the layers cut, and the head, or None for all."""

    block: int
    layer: int
    layers: range
    head: int | None

    @property
    def place(self) -> tuple[int, ...]:
        """Where its effect is written, behind the prompt."""
        return (self.block, self.layer) if self.head is None else (self.block, self.layer, self.head)


def _sources(entry: ResolvedPrompt, blocks: Sequence[str]) -> Bool[Tensor, "block position"]:
    """The positions of each block of a prompt; every position is in one of the three."""
    target = torch.zeros(len(entry.ids), dtype=torch.bool)
    cue = target.clone()
    target[entry.target_position] = True
    cue[list(entry.cue_positions)] = True
    masks = {"cue": cue & ~target, "other": ~cue & ~target, "target": target}
    return torch.stack([masks[block] for block in blocks])


def _knocked_out(
    model: Any,
    base: CleanRun,
    cuts: Sequence[_Cut],
    sources: Bool[Tensor, "prompt block position"],
    measure: Callable[[Tensor, Tensor], Tensor],
    memory_budget: float,
) -> Float[Tensor, "prompt cut metric"]:
    """Measure copies of ``base``, one per cut."""
    rows, length = base.tokens.shape
    found: list[Tensor] = []

    def run(chunk: Sequence[_Cut]) -> None:
        joins = [0] * model.cfg.n_layers
        for cut in chunk:
            joins[cut.layers.start] += 1
        layers = sorted({layer for cut in chunk for layer in cut.layers})
        hooks = [_cutting(layer, chunk, sources, base.target - base.start, model.cfg.n_heads) for layer in layers]
        found.append(Columns(model, base, joins, hooks).measure(measure))

    need = bytes_per_row(model, length - base.start, length, gradients=False) * rows
    run_in_chunks(cuts, max(1, int(memory_budget / need)), run, what="cuts")
    return torch.cat(found, 1)


def _cutting(
    layer: int, cuts: Sequence[_Cut], sources: Bool[Tensor, "prompt block position"], query: int, n_heads: int
) -> Hook:
    """A hook on the scores of ``layer``: −∞ from its sources to ``query``, for cuts whose window holds the layer."""
    acts = torch.zeros(len(cuts), n_heads, dtype=torch.bool, device=sources.device)
    for column, cut in enumerate(cuts):
        if layer in cut.layers:
            acts[column, slice(None) if cut.head is None else cut.head] = True
    cut_off = sources[:, [cut.block for cut in cuts]][:, :, None] & acts[None, :, :, None]  # prompt, cut, head, key

    def hook(scores: Tensor, hook: Any) -> Tensor:
        changed = scores.clone()
        view = columns_of(changed, len(sources))  # prompt, the cuts joined by now, head, query, key
        view[:, :, :, query] = view[:, :, :, query].masked_fill(cut_off[:, : view.shape[1]], float("-inf"))
        return changed

    return f"blocks.{layer}.attn.hook_attn_scores", hook


def _check_blocks(blocks: Sequence[str]) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys([blocks] if isinstance(blocks, str) else blocks))
    for block in chosen:
        if block not in BLOCKS:
            raise SettingsError(f"no block {block!r}.{near_matches(block, BLOCKS)} Blocks: {', '.join(BLOCKS)}")
    if not chosen:
        raise SettingsError(f"no blocks to cut; give some of {', '.join(BLOCKS)}")
    return chosen


def _check_window(window: int | None, n_layers: int, heads: bool) -> int:
    if window is None:
        return 1 if heads else PAPER_WINDOW if n_layers > _SHALLOW else max(1, round(n_layers / 5))
    window = whole_number("window", window)
    if window < 1:
        raise SettingsError(f"window is {window}; it must be at least 1 layer")
    if heads and window > 1:
        raise SettingsError(
            f"window is {window} with heads=True: the heads of two layers have nothing in common but a number; "
            f"take window=1"
        )
    if window > n_layers:
        log.warning("window %d is clipped to the %d layers of the model", window, n_layers)
    return min(window, n_layers)
