"""``kn-lens models`` and ``kn-lens localize``."""

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
    SiteOption,
    load,
    load_sets,
)
from kn_lens.errors import SettingsError
from kn_lens.runs.console import explain, report_dropped, show, written


def models() -> None:
    """List the models that can be named."""
    import pandas as pd

    from kn_lens.models.names import available_models

    show(pd.DataFrame([vars(entry) for entry in available_models()]), "Models")
    typer.echo("Also: a folder in Hugging Face format, a .gguf file, or any name that TransformerLens knows.")


def localize(
    model: ModelName,
    data: DataNames,
    site: SiteOption = "mlp",
    steps: Annotated[int, typer.Option(help="Points on the path of integration, at least 2.")] = 20,
    rule: Annotated[
        str, typer.Option(help="riemann (the paper's), adaptive (converged), trapezoid, midpoint or gauss_legendre.")
    ] = "riemann",
    positions: PositionsOption = "target",
    threshold: Annotated[float, typer.Option(help="t: a unit counts in a prompt if its score > t · max.")] = 0.2,
    share: Annotated[float, typer.Option(help="p at which the refining starts.")] = 0.7,
    count: Annotated[str, typer.Option(help="Fewest and most units wanted of a group, as 2-5.")] = "2-5",
    groups: Groups = 5,
    prompts: Prompts = 6,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Find the units that answers hang on, and measure how local they are."""
    from kn_lens.runs.localize import LocalizeSettings, comparison, save_localization
    from kn_lens.runs.localize import localize as run
    from kn_lens.runs.output import check_output

    settings = LocalizeSettings(
        site=site,
        steps=steps,
        rule=rule,
        positions=positions,
        threshold=threshold,
        share=share,
        count=_range(count),
        groups=groups or None,
        prompts=prompts or None,
        seed=seed,
    )
    settings.check()
    if out is not None:
        check_output(out)
    sets = load_sets(data)
    loaded = load(model, device, dtype)
    found = []
    for entry in sets:
        explain(entry, loaded)
        found.append(run(loaded, entry, settings))
        report_dropped(entry.name, found[-1].scores.dropped)
        show(found[-1].groups_frame().drop(columns="data"), f"{entry.name}: units found, group by group")
    show(comparison(found), "How local? Means over groups and prompts")
    if out is not None:
        save_localization(out, found, settings, loaded.cfg.n_layers)
        written(out)


def _range(text: str) -> tuple[int, int]:
    """``"2-5"`` as (2, 5); a single number is both ends."""
    low, _, high = text.partition("-")
    if not low.isdecimal() or not (high or low).isdecimal():
        raise SettingsError(f"cannot read --count {text!r}; write fewest-most, as 2-5")
    return int(low), int(high or low)
