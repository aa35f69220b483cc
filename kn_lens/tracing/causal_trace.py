"""Causal tracing (Meng et al. 2022): which states, put back to their clean values, bring the answer back?

Three runs: clean; corrupted, the embeddings of the cue spoiled; corrupted with one state restored. For a metric M,
position p and layer l

    TE = M_clean − M_corrupted        IE(p, l) = M_restored(p, l) − M_corrupted

restoring into the corrupted run tests whether a state suffices (denoising); corrupting it in the clean run, whether it
is necessary (noising): IE(p, l) = M_clean − M_spoiled(p, l).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kn_lens.errors import SettingsError, near_matches
from kn_lens.forward import DEFAULT_MEMORY_BUDGET, CleanRun, bytes_per_row, clean_run, run_in_chunks
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.positions import Positions, alike, positions_of, require_cues
from kn_lens.prompts.prompt import Prompt
from kn_lens.results import provenance
from kn_lens.streams import Stream, stream_of
from kn_lens.tracing.answered import WRONG, rightly_answered
from kn_lens.tracing.corruption import Corruption, corruption_of
from kn_lens.tracing.foils import foil_ids
from kn_lens.tracing.metrics import METRICS, all_metrics, default_metric, effect
from kn_lens.tracing.patched import Cell, patched
from kn_lens.tracing.swap import Swaps
from kn_lens.tracing.trace import CausalTrace
from kn_lens.tracing.windows import check_window, whole_number, window_of

STREAMS = ("resid", "mlp", "attn", "head", "neuron")
Direction = Literal["sufficiency", "necessity"]


def causal_trace(
    model: Any,
    prompts: PromptBatch | Prompt | Iterable[Prompt],
    *,
    stream: str = "resid",
    window: int | None = None,
    corruption: str = "noise",
    samples: int = 10,
    noise: float = 3.0,
    sigma: float | None = None,
    mean: Sequence[float] | Tensor | None = None,
    swaps: Swaps | None = None,
    direction: Direction = "sufficiency",
    severed: str | None = None,
    layers: Sequence[int] | None = None,
    positions: Positions = "all",
    metric: str | None = None,
    seed: int = 0,
    memory_budget: float = DEFAULT_MEMORY_BUDGET,
    progress: bool = True,
) -> CausalTrace:
    """Trace the answer of each prompt through every position and layer.

    Args:
        model: A loaded model; it is left as it was.
        prompts: Prompts with a cue: a fact's subject, the words that decide a pair. Those that the model answers
            wrongly are left out and counted.
        stream: ``"resid"`` (default), ``"mlp"``, ``"attn"``, ``"head"`` or ``"neuron"`` (with ``layers``).
        window: How many layers, centered on each, are restored together: layers l − ⌊w/2⌋ to l + ⌈w/2⌉ − 1, clipped
            at the ends. By default 1, and for ``mlp`` and ``attn`` 10 as in the paper: one MLP adds little to what
            its neighbours add, whereas a residual stream holds all that was added so far. In a model of fewer
            than 21 layers the default is a fifth of its layers (10 of GPT-2 XL's 48 are about that).
        corruption: ``"noise"`` (default), ``"swap"``, ``"zero"`` or ``"mean"``; see
            :data:`kn_lens.tracing.corruption.CorruptionName`.
        samples: Draws of noise, 10 by default; effects are their mean.
        noise: σ of the noise, in standard deviations of the embeddings of the prompts' cue tokens; 3 by default.
        sigma: σ itself, where it is not to be measured on these prompts (say another trace's ``sigma``).
        mean: For ``"mean"``: the mean embedding itself, where it is not to be that of these prompts' cue tokens.
        swaps: For ``"swap"``: the new cue of each prompt, or a mapping from cues; by default another prompt's.
        direction: ``"sufficiency"`` (default) restores clean states in the corrupted run, ``"necessity"`` corrupts
            them in the clean run.
        severed: ``"mlp"`` or ``"attn"``: hold these outputs, at the position and in all layers after the restored
            ones, at their values in the run patched into.
        layers: Trace these only.
        positions: ``"all"`` (default), ``"cue"``, ``"cue_last"`` or ``"target"``.
        metric: The one that tables and figures show by default; all four are computed. By default the logit
            difference, for two-prefix pairs, which have no rival word, the log-probability.
        seed: Of the noise.
        memory_budget: Bytes that the copies of one pass may take; halved when memory runs out.
        progress: Show a progress bar.

    Returns:
        Effects by metric, ``[prompt, position, layer]``, with one more axis for heads or neurons.

    Raises:
        SettingsError: For an unknown stream, corruption, direction or metric, or a setting out of its range.
        PromptError: If a prompt has no cue, the model answers all of them wrongly, or none has a twin to swap with.
    """
    if direction not in get_args(Direction):
        known = get_args(Direction)
        raise SettingsError(
            f"no direction {direction!r}.{near_matches(direction, known)} Directions: {', '.join(known)}"
        )
    where = stream_of(model, stream, STREAMS)
    cut = None if severed is None else stream_of(model, severed, ("mlp", "attn"))
    width = check_window(where, window)
    whole_number("samples", samples)
    chosen = _chosen_layers(where, layers)
    batch = as_batch(model, prompts)
    require_cues(batch)
    metric = default_metric(metric, batch)
    spoiled = corruption_of(
        model, batch, corruption, samples=samples, noise=noise, sigma=sigma, mean=mean, swaps=swaps, seed=seed
    )
    spoiled = spoiled.keep(rightly_answered(model, spoiled.batch), WRONG)
    tracer = _Tracer(model, where, cut, width, chosen, spoiled, direction, positions, memory_budget)
    with progress_bar(len(spoiled.batch), f"causal tracing ({stream})", "prompt", progress) as bar:
        tracer.run(bar)
    batch = spoiled.batch
    return CausalTrace(
        effects=dict(zip(METRICS, tracer.effects.unbind(-1), strict=True)),
        clean=dict(zip(METRICS, tracer.clean.unbind(-1), strict=True)),
        corrupted=dict(zip(METRICS, tracer.corrupted.unbind(-1), strict=True)),
        tokens=tuple(tuple(batch.token_labels(index)) for index in range(len(batch))),
        cue_positions=tuple(entry.cue_positions for entry in batch.resolved),
        target_positions=tuple(entry.target_position for entry in batch.resolved),
        foils=tuple(batch.decode(int(token)) for token in tracer.foils),
        twins=() if spoiled.swapped is None else spoiled.swapped.texts,
        stream=stream,
        window=width,
        corruption=corruption,
        direction=direction,
        severed=severed,
        metric=metric,
        sigma=spoiled.sigma,
        prompts=batch.prompts,
        dropped=batch.dropped,
        settings={
            "stream": stream,
            "window": width,
            "corruption": corruption,
            "samples": spoiled.samples,
            "noise": noise,
            "sigma": spoiled.sigma,
            "direction": direction,
            "severed": severed,
            "layers": None if layers is None else chosen,
            "positions": positions,
            "metric": metric,
            "seed": seed,
            "starts_with_bos": batch.starts_with_bos,
        },
        provenance=provenance(model, batch),
    )


class _Tracer:
    """Traces the prompts of a batch, those of one shape together."""

    def __init__(
        self,
        model: Any,
        stream: Stream,
        severed: Stream | None,
        window: int,
        layers: list[int],
        corruption: Corruption,
        direction: str,
        positions: Positions,
        memory_budget: float,
    ) -> None:
        self.model, self.stream, self.severed, self.corruption = model, stream, severed, corruption
        self.direction, self.positions, self.memory_budget = direction, positions, memory_budget
        self.layers = layers
        units = [None] if stream.n_units is None else range(stream.n_units)
        self.cells = [Cell(window_of(layer, window, stream.n_layers), unit) for layer in layers for unit in units]
        self.patched_layers = sorted({layer for cell in self.cells for layer in cell.layers})
        batch = corruption.batch
        shape = (stream.n_layers,) if stream.n_units is None else (stream.n_layers, stream.n_units)
        self.effects = torch.full((len(batch), max(batch.lengths), *shape, len(METRICS)), float("nan"))
        self.clean = torch.zeros(len(batch), len(METRICS))
        self.corrupted = torch.zeros(len(batch), len(METRICS))
        self.foils = torch.zeros(len(batch), dtype=torch.long)

    @torch.no_grad()
    def run(self, bar: Any) -> None:
        batch = self.corruption.batch
        for indices, cue in alike(batch, "cue"):
            length = len(batch.resolved[indices[0]].ids)
            first = 0 if batch.masked else cue[0]
            rows = self.corruption.samples * len(self.layers)
            need = bytes_per_row(self.model, length - first, length, gradients=False) * rows

            def trace(chunk: Sequence[int], first: int = first) -> None:
                self._chunk(list(chunk), first)
                bar.update(len(chunk))

            run_in_chunks(indices, max(1, int(self.memory_budget / need)), trace, what="prompts")

    def _chunk(self, chunk: list[int], first: int) -> None:
        batch, samples = self.corruption.batch, self.corruption.samples
        entry = batch.resolved[chunk[0]]
        length = len(entry.ids)
        clean = self._run(batch.tokens[chunk, :length], entry.target_position, first)
        hooks = self.corruption.hooks(self.model, chunk)
        corrupted = self._run(self.corruption.tokens(chunk, length), entry.target_position, first, hooks)
        partners = None
        if self.corruption.swapped is not None:
            partners = [self.corruption.swapped.answers[index] for index in chunk]
        foils = foil_ids(batch, chunk, clean.logits, partners)
        by_prompt = all_metrics(batch.target_ids[chunk], foils, clean.logits)

        def measure(logits: Tensor, rows: Tensor) -> Tensor:
            return by_prompt(logits, rows // samples)

        def mean(values: Tensor) -> Tensor:
            return values.unflatten(0, (len(chunk), samples)).mean(1)

        everyone = torch.arange(len(chunk), device=clean.logits.device)
        before = by_prompt(clean.logits, everyone)
        after = mean(measure(corrupted.logits, torch.arange(len(chunk) * samples, device=everyone.device)))
        base, source = corrupted, clean.repeated(samples)
        if self.direction == "necessity":
            base, source = source, corrupted
        baseline = before if self.direction == "necessity" else after
        wanted = set(positions_of(entry, self.positions))
        shape = (len(chunk), len(self.layers), *self.effects.shape[3:])
        for position in sorted(wanted):
            found = torch.zeros(shape)  # before the cue, a causal model's corrupted run is the clean one
            if position >= first:
                values = mean(
                    patched(
                        self.model,
                        self.stream,
                        base,
                        source,
                        self.cells,
                        position,
                        measure,
                        severed=self.severed,
                        memory_budget=self.memory_budget,
                    )
                )
                columns = [
                    effect(name, values[..., at], baseline[:, None, at], self.direction)
                    for at, name in enumerate(METRICS)
                ]
                found = torch.stack(columns, -1).float().cpu().reshape(shape)
            for slot, index in enumerate(chunk):
                self.effects[index, position, self.layers] = found[slot]
        self.clean[chunk], self.corrupted[chunk] = before.float().cpu(), after.float().cpu()
        self.foils[chunk] = foils.cpu()

    def _run(self, tokens: Tensor, target: int, start: int, hooks: Sequence[Any] = ()) -> CleanRun:
        keep = [self.stream.hook(layer) for layer in self.patched_layers]
        if self.severed is not None:
            keep += [self.severed.hook(layer) for layer in range(self.severed.n_layers)]
        names = [name for name in keep if name is not None]
        return clean_run(self.model, tokens, target=target, start=start, keep=names, keep_prefix=True, hooks=hooks)


def _chosen_layers(stream: Stream, layers: Sequence[int] | None) -> list[int]:
    if layers is None:
        if stream.name == "neuron":
            raise SettingsError(
                f"stream='neuron' traces {stream.n_units} neurons a layer; say which layers, as in "
                f"layers=[{stream.n_layers // 2}]"
            )
        return list(range(stream.n_layers))
    chosen = sorted({whole_number("a layer", layer) for layer in layers})
    outside = [layer for layer in chosen if not 0 <= layer < stream.n_layers]
    if outside or not chosen:
        what = f"layer {outside[0]} is not in the model" if outside else "layers is empty"
        raise SettingsError(f"{what}; it has layers 0–{stream.n_layers - 1}")
    return chosen
