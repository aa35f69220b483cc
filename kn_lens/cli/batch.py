"""``kn-lens run``, ``resume``, ``status``, ``results`` and ``init``: batches from run files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from kn_lens.batches.read import BatchRun
    from kn_lens.batches.storage.part import PartRecord

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")]
EngineName = Annotated[str, typer.Option("--engine", help="local (processes on this machine) or ray (a cluster).")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Pieces at once; by default one for each core or GPU.")
]
Address = Annotated[
    str | None, typer.Option("--address", help="Of a running Ray cluster, HOST:6379; else Ray is started here.")
]

_SHOWN = 10


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="A run file; `kn-lens init` writes examples.")],
    out: Annotated[Path | None, typer.Option("--out", help="The run's folder; by default runs/FILE.")] = None,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Run a method over many prompts, piece by piece. A run that is there goes on; nothing finished is lost."""
    from kn_lens.batches.run import run as start

    folder = out if out is not None else Path("runs") / file.stem
    _finish(folder, lambda: start(file, folder, engine=engine, workers=workers, address=address))


def resume(
    folder: Folder,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Compute pieces with failed prompts again too.")
    ] = False,
) -> None:
    """Go on with a run that was stopped or killed: damaged parts are computed again, finished ones kept."""
    from kn_lens.batches.run import resume as go_on

    _finish(
        folder,
        lambda: go_on(folder, engine=engine, workers=workers, address=address, retry_failed=retry_failed),
    )


def status(folder: Folder) -> None:
    """How far a run is; also while it is running."""
    from kn_lens.batches.read import BatchRun
    from kn_lens.batches.storage.lock import holder_of
    from kn_lens.batches.storage.store import Store

    planned = Store(folder).exists()
    holder = None if planned else holder_of(folder)
    if holder is not None:
        typer.echo(f"{folder}: being planned; running on {holder}")
        return
    found = BatchRun(folder)
    _tell(found, found.store.records())


def results(
    folder: Folder,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the tables; by default DIR/results.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV beside parquet.")] = False,
) -> None:
    """The tables of a run, as parquet: states (or units, answers, edits), and what became of each prompt."""
    from kn_lens.batches.export import write_tables
    from kn_lens.batches.read import BatchRun

    found = BatchRun(folder)
    records = found.store.records()
    status = found.status(records)
    for path, rows in write_tables(found, out or folder / "results", csv=csv, records=records).items():
        typer.echo(f"{path}: {rows:,} rows")
    if not status.complete:
        typer.echo(
            f"The run is not finished ({status.finished} of {status.pieces} pieces): these are its tables so far"
        )


def init(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Which example; without, they are listed.")] = None,
) -> None:
    """Print a commented run file: kn-lens init tracing > run.yaml"""
    from kn_lens.batches.starters import STARTERS, starter

    if name is None:
        for known, about in STARTERS.items():
            typer.echo(f"{known:<14}{about}")
        return
    typer.echo(starter(name), nl=False)


def _finish(folder: Path, work: Any) -> None:
    """Do it, tell how it ended; exit code 1 if prompts failed or pieces are open, 130 if it was stopped."""
    from kn_lens.batches.read import BatchRun
    from kn_lens.batches.run import Interrupted

    go_on = f"kn-lens resume {shlex.quote(str(folder))}"
    try:
        found = work()
    except Interrupted:
        found = BatchRun(folder)
        _tell(found, found.store.records())
        typer.echo(f"stopped; go on with: {go_on}", err=True)
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        typer.echo(f"\nstopped at once; what is finished is kept. Go on with: {go_on}", err=True)
        raise typer.Exit(130) from None
    status = _tell(found, found.store.records())
    if not status.complete:
        left = status.pieces - status.finished
        typer.secho(f"{left} pieces could not be computed: see {folder / 'log.txt'}", err=True, fg="red")
    if status.failed:
        typer.secho(f"{status.failed} prompts failed; the others are done", err=True, fg="red")
    if status.failed or not status.complete:
        raise typer.Exit(1)


def _tell(found: BatchRun, records: Mapping[int, PartRecord]) -> Any:
    """Show, by its records, how far a run is, and which prompts failed."""
    import pandas as pd

    from kn_lens.runs.console import show

    status = found.status(records)
    rows = []
    for share in status.shares:
        row: dict[str, Any] = {"data": share.data}
        if found.variant_name:
            row[found.variant_name] = share.variant
        row |= {"prompts": share.prompts, "done": share.done, "left out": sum(share.dropped.values())}
        rows.append(row | {"failed": share.failed, "open": share.open})
    config = found.config
    show(pd.DataFrame(rows), f"{found.folder}: {config.method} on {config.model}")
    for share in status.shares:
        where = ", ".join(filter(None, (share.data, share.variant)))
        if share.dropped:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in share.dropped.items())
            typer.echo(f"{where}: left out: {reasons}")
    for plan in found.manifest.data:
        if plan.dropped:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in plan.dropped.items())
            typer.echo(f"{plan.name}: left out in planning: {reasons}")
        if plan.skipped:
            typer.echo(f"{plan.name}: bad rows were skipped:")
            for problem in plan.skipped[:_SHOWN]:
                typer.echo(f"  {problem}")
            if len(plan.skipped) > _SHOWN:
                typer.echo(f"  and {len(plan.skipped) - _SHOWN} more, all in manifest.json")
    for text in found.failures(_SHOWN, records):
        typer.secho(f"  {text}", fg="red")
    state = "complete" if status.complete else f"{status.finished} of {status.pieces} pieces"
    running = f"; running on {status.holder}" if status.holder else ""
    typer.echo(f"{state}, {status.seconds:,.0f} s of work{running}")
    return status
