"""``kn-lens patch`` and ``kn-lens knockout``: activation patching between twins, and attention cut off."""

from __future__ import annotations

from typing import Annotated

import typer

from kn_lens.cli.options import (
    DataNames,
    Device,
    DirectionOption,
    Dtype,
    FewPrompts,
    Groups,
    MetricOption,
    ModelName,
    Out,
    Seed,
    load,
    load_sets,
)
from kn_lens.runs.console import explain, report_dropped, show, written


def patch(
    model: ModelName,
    data: DataNames,
    component: Annotated[
        str, typer.Option(help="head, q, k, v, pattern, mlp, attn, resid or neuron (slow): what is patched.")
    ] = "head",
    positions: Annotated[str, typer.Option(help="each (one position at a time) or sum (all at once).")] = "each",
    direction: DirectionOption = "sufficiency",
    metric: MetricOption = None,
    attribution: Annotated[
        bool, typer.Option("--attribution/--no-attribution", help="Also the estimate from a gradient.")
    ] = True,
    groups: Groups = 10,
    prompts: FewPrompts = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Patch single states between each sentence and its twin: which of them carry the answer?"""
    from kn_lens.runs.output import check_output
    from kn_lens.runs.patch import PatchSettings, findings, save_patches
    from kn_lens.runs.patch import patch as run

    settings = PatchSettings(
        component=component,
        positions=positions,
        direction=direction,
        metric=metric,
        attribution=attribution,
        groups=groups or None,
        prompts=prompts,
        seed=seed,
    )
    settings.check()
    if out is not None:
        check_output(out)
    sets = load_sets(data)
    loaded = load(model, device, dtype)
    found, sentences = [], []
    for entry in sets:
        explain(entry, loaded)
        found.append(run(loaded, entry, settings))
        report_dropped(entry.name, found[-1].exact.dropped)
        title = f"{entry.name}: largest mean effects on {found[-1].exact.metric}, 95 % intervals"
        show(found[-1].top(), title)
        sentences += findings(found[-1])
    for sentence in sentences:
        typer.echo(f"• {sentence}")
    if out is not None:
        save_patches(out, loaded, found, settings, sentences)
        written(out)


def knockout(
    model: ModelName,
    data: DataNames,
    window: Annotated[
        int | None, typer.Option(help="Layers cut together; by default 9, fewer in a shallow model, 1 with --heads.")
    ] = None,
    heads: Annotated[bool, typer.Option("--heads", help="Cut one head at a time.")] = False,
    metric: MetricOption = None,
    groups: Groups = 10,
    prompts: FewPrompts = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Keep the answer's position from attending to the cue, to itself, to the rest: what does the answer lose?"""
    from kn_lens.runs.knockout import KnockoutSettings, findings, save_knockouts
    from kn_lens.runs.knockout import knockout as run
    from kn_lens.runs.output import check_output

    settings = KnockoutSettings(
        window=window, heads=heads, metric=metric, groups=groups or None, prompts=prompts, seed=seed
    )
    settings.check()
    if out is not None:
        check_output(out)
    sets = load_sets(data)
    loaded = load(model, device, dtype)
    found, sentences = [], []
    for entry in sets:
        explain(entry, loaded)
        found.append(run(loaded, entry, settings))
        report_dropped(entry.name, found[-1].trace.dropped)
        what = found[-1].trace.metric
        title = f"{entry.name}: largest mean {'move, kl' if what == 'kl' else f'loss of {what}'}, 95 % intervals"
        show(found[-1].peaks().drop(columns="data"), title)
        sentences += findings(found[-1])
    for sentence in sentences:
        typer.echo(f"• {sentence}")
    if out is not None:
        save_knockouts(out, loaded, found, settings, sentences)
        written(out)
