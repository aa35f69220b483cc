"""``kn-lens suppress`` and ``kn-lens count``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kn_lens.cli.heads import AblationOption
from kn_lens.cli.options import Device, Dtype, Groups, ModelName, Out, PositionsOption, Prompts, Seed, SiteOption, load
from kn_lens.errors import SettingsError
from kn_lens.runs.console import explain, report_dropped, show, written


def suppress(
    model: ModelName,
    data: Annotated[str, typer.Option("--data", help="Bundled name, blimp:UID, pararel:P36, or a path.")],
    units: Annotated[str | None, typer.Option("--units", help="Units as layer:index, with commas: 9:1094,…")] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="Folder of `kn-lens localize`: its units.")] = None,
    factor: Annotated[float, typer.Option(help="0 suppresses, 2 doubles.")] = 0.0,
    ablation: AblationOption = "zero",
    site: SiteOption = "mlp",
    positions: PositionsOption = "target",
    probe: Annotated[list[str] | None, typer.Option("--probe", help="A word to compare. Repeat for more.")] = None,
    controls: Annotated[int, typer.Option(min=0, help="Draws of random units of the same layers.")] = 100,
    counts: Annotated[
        str | None,
        typer.Option("--counts", help="Compare with pair counts: organism, organism-narrow, english, a .csv, a text."),
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
    from kn_lens.frequency import check_source
    from kn_lens.prompts.load import data_hash, load_prompts
    from kn_lens.runs.output import check_output
    from kn_lens.runs.suppress import (
        answers_table,
        frequency_table,
        parse_units,
        read_localization,
        save_suppression,
        units_of,
    )
    from kn_lens.suppression.frequency_effect import frequency_effect, load_counts_of
    from kn_lens.suppression.replacement import check_ablation
    from kn_lens.suppression.suppress import suppress as run

    if (units is None) == (from_ is None):
        raise SettingsError("say which units: either --units 9:1094,… or --from a folder of kn-lens localize")
    if from_ is not None and (site, positions, groups, prompts) != ("mlp", "target", 0, 0):
        raise SettingsError("--site, --positions, --groups and --prompts are those of the --from run; leave them out")
    if counts is not None:
        check_source(counts, window)
    elif window is not None:
        raise SettingsError("--window is of the pairs counted in a text; name the text by --counts")
    check_ablation(ablation, factor)
    if out is not None:
        check_output(out)
    chosen: Any = parse_units(units) if units is not None else None
    asked: Any = None
    name, sha256 = data, None
    if from_ is not None:
        former = read_localization(from_, data)
        name, sha256, chosen, asked = former.data, former.sha256, former.units, former.held_out
        site, positions = former.settings["site"], former.settings["positions"]
        loaded = load(model, device, dtype)
        _same_model(former.provenance, loaded)
    else:
        entry = load_prompts(data)
        name, sha256 = entry.name, data_hash(entry)
        loaded = load(model, device, dtype)
        explain(entry, loaded)
        asked = entry.prompts(loaded, groups=groups or None, per_group=prompts or None, seed=seed)
        report_dropped(name, asked.dropped)
    pair_counts = None if counts is None else load_counts_of(getattr(asked, "prompts", asked), counts, window)
    effect = run(
        loaded,
        asked,
        chosen,
        factor=factor,
        ablation=ablation,  # type: ignore[arg-type]
        site=site,
        positions=positions,  # type: ignore[arg-type]
        probes=probe,
        controls=controls,
        seed=seed,
    )
    change = f"units × {factor:g}" if ablation == "zero" else f"units {effect.edit}"
    show(effect.to_frame(), f"{name}: probabilities before and after, {change}")
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


def count(
    text: Annotated[Path, typer.Argument(metavar="TEXT", help="A text file in UTF-8, or gzipped.")],
    data: Annotated[str, typer.Option("--data", help="Whose pairs of cue and target: a data set's name or path.")],
    window: Annotated[int, typer.Option("--window", help="Count the second word among so many after the first.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="A .csv to write, for `suppress --counts`.")] = None,
) -> None:
    """Count the cue-target pairs of a data set in a text."""
    from kn_lens.frequency import count_pairs
    from kn_lens.prompts.load import load_prompts
    from kn_lens.runs.count import check_table, coverage_sentence, pairs_to_count

    if out is not None:
        check_table(out)
    pairs, without = pairs_to_count(load_prompts(data))
    counts = count_pairs(text, pairs, window=window)
    show(counts.to_frame().query("count > 0").nlargest(10, "count"), "The most frequent pairs")
    typer.echo(coverage_sentence(counts, pairs, without))
    if out is not None:
        counts.write(out)
        typer.echo(f"Written to {out}")


def _same_model(former: dict[str, Any], model: Any) -> None:
    from kn_lens.models.hashing import weights_hash

    if former["weights_hash"] != weights_hash(model):
        raise SettingsError(
            f"the units were found in {former['model']} with weights {former['weights_hash'][:12]}…, and this model's "
            f"weights are {weights_hash(model)[:12]}…: localize in this model first"
        )
