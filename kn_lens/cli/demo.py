"""``kn-lens demo``: the paper's first questions on one or more models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kn_lens.cli.options import Device, Seed, load
from kn_lens.errors import SettingsError
from kn_lens.runs.console import show


def demo(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Models to show it on; by default two organisms.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for figures and tables; a former demo is replaced.")] = (
        Path("demo-out")
    ),
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Facts beside grammar: localize and suppress both, and compare."""
    from kn_lens.runs.demo import MODELS, PARTS, run_demo
    from kn_lens.runs.output import check_output, slug

    named = list(dict.fromkeys(models or MODELS))
    chosen = {slug(name): name for name in named}
    if len(chosen) < len(named):
        raise SettingsError(f"two of {', '.join(named)} would be written as one folder; rename one of the models")
    for folder in chosen:
        for part in PARTS:
            check_output(out / folder / part, replace=True)
    for folder, name in chosen.items():
        shown = run_demo(load(name, device, "float32"), out / folder, seed)
        show(shown.table, f"{name}: facts beside agreement")
        for sentence in shown.findings:
            typer.echo(f"• {sentence}")
        typer.echo(f"\nFigures of {name} (open in a browser):")
        for figure in sorted((out / folder).rglob("*.html")):
            typer.echo(f"  {figure}")
        typer.echo("")
