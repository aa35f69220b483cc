"""The command line: thin commands over the package. Heavy libraries are imported when a command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kn_lens.errors import KnLensError, SettingsError
from kn_lens.runs.console import explain, report_dropped, show, written

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

    show(pd.DataFrame([vars(entry) for entry in available_models()]), "Models")
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
        explain(entry, loaded)
        found.append(run(loaded, entry, settings))
        report_dropped(entry.name, found[-1].scores.dropped)
        show(found[-1].groups_frame().drop(columns="data"), f"{entry.name}: units found, group by group")
    show(comparison(found), "How local? Means over groups and prompts")
    if out is not None:
        save_localization(out, found, settings, loaded.cfg.n_layers)
        written(out)


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
    counts: Annotated[
        str | None,
        typer.Option("--counts", help="Compare with pair counts: organism, english, a .csv, or a text file."),
    ] = None,
    window: Annotated[int | None, typer.Option("--window", help="For a text: count within so many words, 1.")] = None,
    groups: Groups = 0,
    prompts: Prompts = 0,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Switch units off (or up) and compare the answers, beside random units."""
    from kn_lens.editing.frequency_effect import frequency_effect, load_counts_of
    from kn_lens.editing.suppress import suppress as run
    from kn_lens.frequency import check_source
    from kn_lens.prompts.load import data_hash, load_data
    from kn_lens.runs.output import check_output
    from kn_lens.runs.suppress import (
        answers_table,
        frequency_table,
        parse_units,
        read_localization,
        save_suppression,
        units_of,
    )

    if (units is None) == (from_ is None):
        raise SettingsError("say which units: either --units 9:1094,… or --from a folder of kn-lens localize")
    if from_ is not None and (site, positions, groups, prompts) != ("mlp", "target", 0, 0):
        raise SettingsError("--site, --positions, --groups and --prompts are those of the --from run; leave them out")
    if counts is not None:
        check_source(counts, window)
    elif window is not None:
        raise SettingsError("--window is of the pairs counted in a text; name the text by --counts")
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
        explain(entry, loaded)
        asked = entry.prompts(loaded, groups=groups or None, per_group=prompts or None, seed=seed)
        report_dropped(name, asked.dropped)
    pair_counts = None if counts is None else load_counts_of(getattr(asked, "prompts", asked), counts, window)
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
    show(effect.to_frame(), f"{name}: probabilities before and after, units × {factor:g}")
    show(answers_table(effect), "Answers, beside random units of the same layers")
    frequency = {}
    if pair_counts is not None:
        frequency[name] = frequency_effect(effect, pair_counts, seed=seed)
        show(frequency_table(frequency[name]), f"Change of log p(target) against counts from {pair_counts.source}")
        typer.echo(f"• {frequency[name].sentence()}")
    if out is not None:
        all_units, layers = {name: units_of(chosen)}, loaded.cfg.n_layers
        about = {"data": {name: sha256}, "source": str(from_ or "")}
        save_suppression(out, {name: effect}, all_units, layers, frequency=frequency, **about)
        written(out)


@app.command()
def count(
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="A text file in UTF-8, or gzipped.")],
    data: Annotated[str, typer.Option("--data", help="Whose pairs of cue and target: a data set's name or path.")],
    window: Annotated[int, typer.Option("--window", help="Count the second word among so many after the first.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="A .csv to write, for `suppress --counts`.")] = None,
) -> None:
    """Count the cue-target pairs of a data set in a text."""
    from kn_lens.frequency import count_pairs
    from kn_lens.prompts.load import load_data
    from kn_lens.runs.count import check_table, coverage_sentence, pairs_to_count

    if out is not None:
        check_table(out)
    pairs, without = pairs_to_count(load_data(data))
    counts = count_pairs(text, pairs, window=window)
    show(counts.to_frame().query("count > 0").nlargest(10, "count"), "The most frequent pairs")
    typer.echo(coverage_sentence(counts, pairs, without))
    if out is not None:
        counts.write(out)
        typer.echo(f"Written to {out}")


@app.command()
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

    chosen = {slug(name): name for name in models or MODELS}
    for folder in chosen:
        for part in PARTS:
            check_output(out / folder / part, replace=True)
    for folder, name in chosen.items():
        shown = run_demo(_load(name, device, "float32"), out / folder, seed)
        show(shown.table, f"{name}: facts beside agreement")
        for sentence in shown.findings:
            typer.echo(f"• {sentence}")
        typer.echo(f"\nFigures of {name} (open in a browser):")
        for figure in sorted((out / folder).rglob("*.html")):
            typer.echo(f"  {figure}")
        typer.echo("")


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


def _same_model(former: dict[str, Any], model: Any) -> None:
    from kn_lens.models.hashing import weights_hash

    if former["weights_hash"] != weights_hash(model):
        raise SettingsError(
            f"the units were found in {former['model']} with weights {former['weights_hash'][:12]}…, and this model's "
            f"weights are {weights_hash(model)[:12]}…: localize in this model first"
        )
