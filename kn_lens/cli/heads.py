"""``kn-lens heads``: attention heads beside neurons."""

from __future__ import annotations

from typing import Annotated

import typer

from kn_lens.cli.options import (
    DataNames,
    Device,
    Dtype,
    Groups,
    ModelName,
    Out,
    PositionsOption,
    Prompts,
    Seed,
    load,
    load_sets,
)
from kn_lens.runs.console import explain, report_dropped, show, written

AblationOption = Annotated[
    str,
    typer.Option("--ablation", help="What units are set to: zero, mean (over the prompts) or resample (another's)."),
]


def heads(
    model: ModelName,
    data: DataNames,
    site: Annotated[
        list[str] | None, typer.Option("--site", help="mlp or head; by default both. Repeat for more.")
    ] = None,
    positions: PositionsOption = "target",
    ablation: AblationOption = "zero",
    controls: Annotated[int, typer.Option(help="Draws of random units of the same layers.")] = 100,
    groups: Groups = 6,
    prompts: Prompts = 6,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Neurons or heads? How local each is, and how much must go before the answers flip."""
    from kn_lens.runs.heads import save_comparison, short_table
    from kn_lens.runs.output import check_output
    from kn_lens.studies.sites import SITES, check_comparison, compare_sites

    options = {
        "groups": groups or None,
        "per_group": prompts or None,
        "controls": controls,
        "positions": positions,
        "ablation": ablation,
    }
    sites = tuple(site or SITES)
    sets = load_sets(data)
    check_comparison([entry.name for entry in sets], sites, **options)  # type: ignore[arg-type]
    if out is not None:
        check_output(out)
    loaded = load(model, device, dtype)
    for entry in sets:
        explain(entry, loaded)
    found = compare_sites(loaded, sets, sites, seed=seed, **options)  # type: ignore[arg-type]
    for name, dropped in {entry.data: entry.found.scores.dropped for entry in found.entries}.items():
        report_dropped(name, dropped)
    show(short_table(found), "Neurons beside heads (half: where half of the answers flip)")
    for sentence in found.findings():
        typer.echo(f"• {sentence}")
    if out is not None:
        save_comparison(out, found)
        written(out)
