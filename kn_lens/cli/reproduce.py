"""``kn-lens reproduce`` and ``kn-lens report``: the paper's experiments on a model, and what runs show."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from kn_lens.cli.options import Device, Dtype, ModelName, Seed, load


def reproduce(
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", help="Folder of results and report; a run that is there goes on.")],
    experiments: Annotated[
        str | None, typer.Option(help="With commas, of E1 to E9; by default all that suit the model.")
    ] = None,
    size: Annotated[str, typer.Option(help="small (minutes for a small model) or full (all data).")] = "small",
    redo: Annotated[str | None, typer.Option(help="Experiments to run again, with commas.")] = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """The paper's experiments E1 to E9 on a model, and one report of them. A run that was stopped goes on."""
    from kn_lens.experiments.experiment import chosen
    from kn_lens.experiments.sizes import size_named
    from kn_lens.runs.output import MANIFEST
    from kn_lens.runs.reproduce import reproduce as run
    from kn_lens.runs.reproduction import REPORT, check_reproduction

    wanted = chosen(None if experiments is None else experiments.split(","))
    again = [] if redo is None else chosen(redo.split(","))
    wanted = chosen([*wanted, *again])
    sized = size_named(size)
    check_reproduction(out, {"size": size, "seed": seed, "dtype": dtype})  # the model once it is loaded
    loaded = load(model, device, dtype)
    try:
        failed = run(
            loaded,
            out,
            experiments=wanted,
            size=sized,
            seed=seed,
            redo=again,
            tell=partial(typer.secho, bold=True),
            tell_findings=_findings,
        )
    except KeyboardInterrupt:
        if (out / MANIFEST).is_file():
            _write(out)
            typer.echo(f"\nstopped; what is done is kept in {out}, and the same command goes on", err=True)
        else:
            typer.echo("\nstopped; nothing was written", err=True)
        raise typer.Exit(130) from None
    content = _write(out)
    _verdicts([content])
    typer.echo(f"Report: {out / REPORT}")
    if failed:
        typer.secho(f"{', '.join(failed)} could not be run; the report says why", err=True, fg="red")
        raise typer.Exit(1)


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="A folder of kn-lens run, or some of reproduce.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The page; by default DIR/report.html, of several folders comparison.html."),
    ] = None,
) -> None:
    """The report of a run, also while it is running; of several reproductions a page that compares them."""
    from kn_lens.errors import SettingsError
    from kn_lens.report.comparison import write_comparison
    from kn_lens.report.page import write_report
    from kn_lens.runs.batch_about import is_batch_run
    from kn_lens.runs.reproduction import REPORT, read_reproduction

    for at, folder in enumerate(folders):
        if folder.resolve() in {other.resolve() for other in folders[:at]}:
            raise SettingsError(f"{folder} is named twice; name each folder once")
    batch = next(filter(is_batch_run, folders), None)
    if batch is not None:
        if len(folders) > 1:
            raise SettingsError(f"{batch} was written by kn-lens run, and such runs are not compared; name it alone")
        _report_batch(batch, out or batch / REPORT)
        return
    contents = [read_reproduction(folder) for folder in folders]
    if len(contents) == 1:
        path = write_report(contents[0], out or folders[0] / REPORT)
    else:
        path = write_comparison(contents, out or Path("comparison.html"))
    _verdicts(contents)
    for content in contents:
        for section in content.sections:
            if section.state == "damaged":
                typer.secho(
                    f"{content.model}, {section.name}: {section.reason}; kn-lens reproduce … --redo {section.name} "
                    f"computes it again",
                    err=True,
                    fg="red",
                )
    typer.echo(f"Report: {path}")


def _report_batch(folder: Path, path: Path) -> None:
    """The report of a batch run."""
    from kn_lens.report.batch_page import write_batch_report
    from kn_lens.runs.batch_report import read_batch_report

    content = read_batch_report(folder)
    written = write_batch_report(content, path)
    typer.echo(content.state)
    for line in content.damaged:
        typer.secho(line, err=True, fg="red")
    typer.echo(f"Report: {written}")


def _write(out: Path) -> Any:
    """The report of a reproduction's folder, and what it shows."""
    from kn_lens.report.page import write_report
    from kn_lens.runs.reproduction import REPORT, read_reproduction

    content = read_reproduction(out)
    write_report(content, out / REPORT)
    return content


def _findings(findings: list[str]) -> None:
    for sentence in findings:
        typer.echo(f"• {sentence}")
    typer.echo("")


def _verdicts(contents: list[Any]) -> None:
    """The verdicts as a table: a row per claim, a column per model."""
    import pandas as pd

    from kn_lens.experiments.verdicts import TESTS
    from kn_lens.report.content import labels
    from kn_lens.runs.console import show

    word = {True: "yes", False: "no", None: "cannot be told"}
    for test in TESTS:
        rows: dict[str, dict[str, str]] = {}
        for label, content in zip(labels(contents), contents, strict=True):
            for verdict in content.verdicts:
                if verdict.test == test.number:
                    claim = rows.setdefault(f"{verdict.experiment}: {verdict.claim}", {})
                    claim[label] = f"{word[verdict.holds]}: {verdict.brief}"
        table = [
            {"the paper's claim": claim} | {label: cells.get(label, "not asked") for label in labels(contents)}
            for claim, cells in rows.items()
        ]
        if table:
            show(pd.DataFrame(table), f"{test.number}. {test.question}")
