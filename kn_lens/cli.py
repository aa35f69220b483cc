"""The command line: thin commands over the package. Heavy libraries are imported when a command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kn_lens.errors import KnLensError, SettingsError

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    name="kn-lens",
    help="Find, measure and switch off the units that facts and grammar hang on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name from `kn-lens models`, a folder, or a .gguf file.")
]
DataNames = Annotated[
    list[str], typer.Option("--data", help="Bundled name, blimp:UID, pararel:P36, or a path. Repeat for more.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for the manifest, tables, tensors and figures.")]
SiteOption = Annotated[str, typer.Option("--site", help="mlp, mlp_pre or head.")]
PositionsOption = Annotated[str, typer.Option("--positions", help="target, cue_last, cue or all.")]
Groups = Annotated[int, typer.Option("--groups", min=0, help="How many groups to draw; 0 takes all.")]
Prompts = Annotated[int, typer.Option("--prompts", min=0, help="Prompts of each group at most; 0 takes all.")]
Seed = Annotated[int, typer.Option("--seed", help="Of every draw.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 …; by default a GPU if there is one.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, float16, bfloat16 or float64.")]


@app.command()
def models() -> None:
    """List the models that can be named."""
    import pandas as pd

    from kn_lens.models.names import available_models

    _show(pd.DataFrame([vars(entry) for entry in available_models()]), "Models")
    typer.echo("Also: a folder in Hugging Face format, a .gguf file, or any name that TransformerLens knows.")


@app.command()
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
    from kn_lens.prompts.load import load_data
    from kn_lens.runs.localize import LocalizeSettings, comparison, save_localization
    from kn_lens.runs.localize import localize as run
    from kn_lens.runs.output import check_output, slug

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
    sets = [load_data(name) for name in dict.fromkeys(data)]
    slugs = [slug(entry.name) for entry in sets]
    for name in slugs:
        if slugs.count(name) > 1:
            raise SettingsError(f"two data sets would both be written as {name!r}; rename one of the files")
    loaded = _load(model, device, dtype)
    found = []
    for entry in sets:
        _explain(entry, loaded)
        found.append(run(loaded, entry, settings))
        _report_dropped(entry.name, found[-1].scores.dropped)
        _show(found[-1].groups_frame().drop(columns="data"), f"{entry.name}: units found, group by group")
    _show(comparison(found), "How local? Means over groups and prompts")
    if out is not None:
        save_localization(out, found, settings, loaded.cfg.n_layers)
        _written(out)


@app.command()
def suppress(
    model: ModelName,
    data: Annotated[str, typer.Option("--data", help="Bundled name, blimp:UID, pararel:P36, or a path.")],
    units: Annotated[str | None, typer.Option("--units", help="Units as layer:index, with commas: 9:1094,…")] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="Folder of `kn-lens localize`: its units.")] = None,
    factor: Annotated[float, typer.Option(help="0 suppresses, 2 doubles.")] = 0.0,
    site: SiteOption = "mlp",
    positions: PositionsOption = "target",
    probe: Annotated[list[str] | None, typer.Option("--probe", help="A word to compare. Repeat for more.")] = None,
    controls: Annotated[int, typer.Option(min=0, help="Draws of random units of the same layers.")] = 100,
    groups: Groups = 0,
    prompts: Prompts = 0,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Switch units off (or up) and compare the answers, beside random units."""
    from kn_lens.editing.suppress import suppress as run
    from kn_lens.prompts.load import data_hash, load_data
    from kn_lens.runs.output import check_output
    from kn_lens.runs.suppress import answers_table, parse_units, read_localization, save_suppression, units_of

    if (units is None) == (from_ is None):
        raise SettingsError("say which units: either --units 9:1094,… or --from a folder of kn-lens localize")
    if from_ is not None and (site, positions, groups, prompts) != ("mlp", "target", 0, 0):
        raise SettingsError("--site, --positions, --groups and --prompts are those of the --from run; leave them out")
    if out is not None:
        check_output(out)
    chosen: Any = parse_units(units) if units is not None else None
    asked: Any = None
    name, sha256 = data, None
    if from_ is not None:
        former = read_localization(from_, data)
        name, sha256, chosen, asked = former.data, former.sha256, former.units, former.held_out
        site, positions = former.settings["site"], former.settings["positions"]
        loaded = _load(model, device, dtype)
        _same_model(former.provenance, loaded)
    else:
        entry = load_data(data)
        name, sha256 = entry.name, data_hash(entry)
        loaded = _load(model, device, dtype)
        _explain(entry, loaded)
        asked = entry.prompts(loaded, groups=groups or None, per_group=prompts or None, seed=seed)
        _report_dropped(name, asked.dropped)
    effect = run(
        loaded,
        asked,
        chosen,
        factor=factor,
        site=site,
        positions=positions,  # type: ignore[arg-type]
        probes=probe,
        controls=controls,
        seed=seed,
    )
    _show(effect.to_frame(), f"{name}: probabilities before and after, units × {factor:g}")
    _show(answers_table(effect), "Answers, beside random units of the same layers")
    if out is not None:
        all_units = {name: units_of(chosen)}
        save_suppression(
            out, {name: effect}, all_units, loaded.cfg.n_layers, data={name: sha256}, source=str(from_ or "")
        )
        _written(out)


@app.command()
def demo(
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="Which model to show it on.")] = "smollm2-135m",
    out: Annotated[Path, typer.Option("--out", help="Folder for figures and tables; a former demo is replaced.")] = (
        Path("demo-out")
    ),
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Facts beside grammar: localize and suppress both, and compare."""
    from kn_lens.runs.demo import run_demo
    from kn_lens.runs.output import check_output

    for part in ("localize", "suppress"):
        check_output(out / part, replace=True)
    loaded = _load(model, device, "float32")
    tables, findings = run_demo(loaded, out, seed)
    for title, table in tables.items():
        _show(table, title)
    for sentence in findings:
        typer.echo(f"• {sentence}")
    typer.echo("\nFigures (open in a browser):")
    for figure in sorted(out.rglob("*.html")):
        typer.echo(f"  {figure}")


def main() -> None:
    """Entry point: user errors are one line on stderr and exit code 2."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except KnLensError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        sys.exit(2)
    except MemoryError as error:
        typer.secho(f"error: out of memory: {error}; try fewer or shorter prompts", err=True, fg="red")
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("stopped; nothing was written", err=True)
        sys.exit(130)


def _load(name: str, device: str | None, dtype: str) -> Any:
    from kn_lens.models.load import load_model

    return load_model(name, device=device, dtype=dtype)


def _range(text: str) -> tuple[int, int]:
    """``"2-5"`` as (2, 5); a single number is both ends."""
    low, _, high = text.partition("-")
    if not low.isdecimal() or not (high or low).isdecimal():
        raise SettingsError(f"cannot read --count {text!r}; write fewest-most, as 2-5")
    return int(low), int(high or low)


def _explain(data: Any, model: Any) -> None:
    """Tell in which form pairs are put to a causal model, where it is not the plain one."""
    from kn_lens.models.kind import is_masked
    from kn_lens.prompts.minimal_pairs import FORM_MEANING, MinimalPairs

    if isinstance(data, MinimalPairs) and not is_masked(model) and data.form != "one_prefix":
        typer.echo(f"{data.name} is of the form {data.form}: {FORM_MEANING[data.form]}.")


def _same_model(former: dict[str, Any], model: Any) -> None:
    from kn_lens.models.hashing import weights_hash

    if former["weights_hash"] != weights_hash(model):
        raise SettingsError(
            f"the units were found in {former['model']} with weights {former['weights_hash'][:12]}…, and this model's "
            f"weights are {weights_hash(model)[:12]}…: localize in this model first"
        )


def _report_dropped(name: str, dropped: Any) -> None:
    from kn_lens.prompts.prompt import count_reasons

    if dropped:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in count_reasons(dropped).items())
        typer.echo(f"{name}: left out {len(dropped)} prompts: {reasons}")


def _written(out: Path) -> None:
    typer.echo(f"\nWritten to {out}:")
    for path in sorted(out.rglob("*")):
        if path.is_file():
            typer.echo(f"  {path.relative_to(out)}")


def _show(table: pd.DataFrame, title: str) -> None:
    """A table by rich; numbers to three significant digits."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for name in table.columns:
        numeric = table[name].dtype.kind in "if"
        shown.add_column(str(name), justify="right" if numeric else "left", overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*[_cell(value) for value in row])
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.3g}"
    return "–" if value is None else str(value)
