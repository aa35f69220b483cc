"""``kn-lens trace``: causal tracing."""

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
    PositionsOption,
    Seed,
    layers_of,
    load,
    load_sets,
)
from kn_lens.runs.console import explain, report_dropped, show, written


def trace(
    model: ModelName,
    data: DataNames,
    stream: Annotated[
        list[str] | None, typer.Option("--stream", help="resid (default), mlp, attn, head or neuron. Repeat for more.")
    ] = None,
    corruption: Annotated[str, typer.Option(help="noise, swap (another cue), zero or mean.")] = "noise",
    window: Annotated[
        int | None, typer.Option(help="Layers restored together; by default 1, for mlp and attn 10 or fewer.")
    ] = None,
    metric: MetricOption = None,
    samples: Annotated[int, typer.Option(help="Draws of noise.")] = 10,
    noise: Annotated[float, typer.Option(help="σ of the noise, in standard deviations of the cues' embeddings.")] = 3.0,
    sigma: Annotated[
        float | None, typer.Option(help="σ of the noise itself, as another run's manifest has it.")
    ] = None,
    severed: Annotated[str | None, typer.Option(help="mlp or attn: hold them after the restored layers.")] = None,
    direction: DirectionOption = "sufficiency",
    layers: Annotated[str | None, typer.Option(help="Only these layers, as 3,4.")] = None,
    positions: PositionsOption = "all",
    groups: Groups = 10,
    prompts: FewPrompts = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Corrupt the cue, restore one state at a time: where does the answer come back?"""
    from kn_lens.runs.output import check_output
    from kn_lens.runs.trace import save_traces
    from kn_lens.studies.traced import TraceSettings, findings
    from kn_lens.studies.traced import trace as run

    settings = TraceSettings(
        streams=tuple(dict.fromkeys(stream or ["resid"])),
        corruption=corruption,
        window=window,
        metric=metric,
        samples=samples,
        noise=noise,
        sigma=sigma,
        severed=severed,
        direction=direction,
        layers=None if layers is None else layers_of(layers),
        positions=positions,
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
        report_dropped(entry.name, found[-1].first.dropped)
        title = f"{entry.name}: largest mean effects on {found[-1].first.metric}, 95 % intervals"
        show(found[-1].peaks().drop(columns="data"), title)
        sentences += findings(found[-1])
    for sentence in sentences:
        typer.echo(f"• {sentence}")
    if out is not None:
        save_traces(out, loaded, found, settings, sentences)
        written(out)
