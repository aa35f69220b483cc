"""``kn-lens evaluate``: editors judged by what a piece of knowledge should meet."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from kn_lens.cli.options import Device, Dtype, LayerOption, ModelName, Out, Seed, layer_of, layers_of, load, load_sets
from kn_lens.runs.console import explain, report_dropped, show, written


class EvaluateCommand(TyperCommand):
    """The command with the editors in its help, which are looked up when the help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help with a line for each editor."""
        from kn_lens.editing.editors import EDITORS

        width = max(map(len, EDITORS))
        lines = "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in EDITORS.items())
        self.help = f"{self.help}\n\n\b\nEditors:\n{lines}"
        super().format_help(ctx, formatter)


def evaluate(
    model: ModelName,
    data: Annotated[
        list[str],
        typer.Option(
            "--data", help="Bundled name, blimp:UID, pararel:P36, a path, or a CounterFact file. Repeat for more."
        ),
    ],
    editor: Annotated[
        list[str] | None, typer.Option("--editor", help="By default rome; the names are above. Repeat for more.")
    ] = None,
    edits: Annotated[int, typer.Option(help="Facts of each data set to edit, one at a time.")] = 20,
    criteria: Annotated[
        str | None,
        typer.Option(
            help="With commas, of reliability, generality, locality, symmetry, symmetry_old, synonymy; by default "
            "those that the data can be asked."
        ),
    ] = None,
    known: Annotated[
        bool,
        typer.Option("--known", help="Only facts of which the unedited model passes a probe of symmetry or synonymy."),
    ] = False,
    layer: LayerOption = None,
    fluency: Annotated[bool, typer.Option("--fluency", help="Also what the model writes before and after.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="Also the same edits at each layer, beside a trace.")] = False,
    layers: Annotated[str | None, typer.Option(help="Layers of the sweep, as 0,4,8; by default all.")] = None,
    seed: Seed = 0,
    out: Out = None,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Make edits one at a time, and judge each by the criteria. With --out, a run that broke off is taken up again."""
    from kn_lens.criteria.journal import finished_parts
    from kn_lens.runs.evaluate import journal_names, journals_in, save_evaluations
    from kn_lens.runs.output import check_output
    from kn_lens.runs.unfinished import check_parts, check_unfinished, unfinished, unfinished_folder
    from kn_lens.studies.evaluate_editors import EvaluateSettings, check_editors
    from kn_lens.studies.evaluate_editors import evaluate as run
    from kn_lens.studies.evaluated import Evaluated

    settings = EvaluateSettings(
        editors=tuple(dict.fromkeys(editor or ["rome"])),
        edits=edits,
        criteria=None if criteria is None else tuple(name.strip() for name in criteria.split(",") if name.strip()),
        known=known,
        layer=layer_of(layer),
        fluency=fluency,
        sweep=sweep,
        layers=None if layers is None else layers_of(layers),
        seed=seed,
    )
    settings.check()
    # What would make other edits or ask other questions; the journals tell the rest, editor by editor.
    about = {
        "model": model,
        "edits": edits,
        "criteria": settings.criteria,
        "known": known,
        "layer": settings.layer,
        "fluency": fluency,
        "seed": seed,
        "dtype": dtype,
    }
    if out is not None:
        check_output(out)
        check_unfinished(out, about)
    sets = load_sets(data, edits=True)
    settings.check(sets)
    if out is not None:
        check_parts(out, journal_names(sets, settings))
    loaded = load(model, device, dtype)
    check_editors(loaded, settings)
    found: list[Evaluated] = []
    try:
        with nullcontext(None) if out is None else unfinished(out, about) as kept_in:
            journals = None if kept_in is None else journals_in(kept_in)
            for entry in sets:
                explain(entry, loaded)
                found.append(run(loaded, entry, settings, journals=journals, tell=partial(typer.echo, err=True)))
                if found[-1].drawn < edits:
                    typer.echo(f"{entry.name}: {found[-1].drawn} of the {edits} edits asked for can be made.")
                _show(found[-1])
            for one in found:
                for heading, sentences in one.findings().items():
                    typer.secho(f"\n{heading}", bold=True)
                    for sentence in sentences:
                        typer.echo(f"• {sentence}")
            if out is not None:
                save_evaluations(out, found, settings)
    except KeyboardInterrupt:
        kept = 0 if out is None else finished_parts(unfinished_folder(out))
        how = f"{kept} edits are kept in {unfinished_folder(out)}; the same command goes on" if kept and out else None
        typer.echo(f"stopped; {how or 'nothing was written'}", err=True)
        raise typer.Exit(130) from None
    if out is not None:
        written(out)


def _show(found: Any) -> None:
    """The tables of one data set."""
    from kn_lens.criteria.evaluation import FAILED
    from kn_lens.criteria.scores import GATED
    from kn_lens.studies.evaluated import short_cascade, short_summary

    report_dropped(found.data, found.dropped)
    for name, one in found.evaluations.items():
        more = [entry for entry in one.dropped[len(found.dropped) :] if not entry.reason.startswith(FAILED)]
        report_dropped(f"{found.data}, {name}", more)
    show(short_summary(found.summary()), f"{found.data}: success before and after edits, 95 % intervals")
    labels = found.by_label()
    if len(labels):  # they tell what the model was taught, on which the gated criteria turn; the files hold the rest
        labels = labels[labels["criterion"].isin(GATED)]
    for label in labels["label"].unique() if len(labels) else ():
        show(short_summary(labels[labels["label"] == label], by=label), f"{found.data} by {label}")
    show(short_cascade(found.cascade()), f"{found.data}: step by step, of the edits that passed the steps before")
