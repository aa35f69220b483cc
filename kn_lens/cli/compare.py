"""``kn-lens compare``: knowledge or recall, on two models that know the same facts."""

from __future__ import annotations

from typing import Annotated

import typer

from kn_lens.cli.options import Device, Out, Seed, load
from kn_lens.runs.console import show, written


def compare(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL MODEL", help="Two models, as `kn-lens models` names them.")
    ],
    data: Annotated[str, typer.Option("--data", help="A relation with held-out templates.")] = "P36",
    facts: Annotated[int, typer.Option(min=2, help="How many facts to draw.")] = 40,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
) -> None:
    """Do two models generalize alike? Localization, generality and symmetry of the same facts, side by side."""
    from kn_lens.errors import SettingsError
    from kn_lens.runs.output import check_output, output_folder
    from kn_lens.studies import generality

    if len(models) != 2:
        raise SettingsError(f"{len(models)} models were named; name two")
    if out is not None:
        check_output(out)
    first, second = (load(name, device) for name in models)
    result = generality.run((first, second), data, facts=facts, seed=seed)
    table = result.to_frame()
    show(table, f"{data}: {models[0]} beside {models[1]}, means over facts, difference with 95 % interval")
    for sentence in generality.findings(result):
        typer.echo(f"• {sentence}")
    if out is not None:
        with output_folder(out, {"command": "compare", **result.manifest()}) as folder:
            folder.write_table("measures", table)
            folder.write_table("facts", result.facts_frame())
        written(out)
