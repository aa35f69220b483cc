"""What a command says: tables by rich, what was left out, what was written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import pandas as pd


def explain(data: Any, model: Any) -> None:
    """Tell in which form pairs are put to a causal model, where it is not the plain one."""
    from kn_lens.models.kind import is_masked
    from kn_lens.prompts.minimal_pairs import FORM_MEANING, MinimalPairs

    if isinstance(data, MinimalPairs) and not is_masked(model) and data.form != "one_prefix":
        typer.echo(f"{data.name} is of the form {data.form}: {FORM_MEANING[data.form]}.")


def report_dropped(name: str, dropped: Any) -> None:
    """Tell how many prompts were left out, and why."""
    from kn_lens.prompts.prompt import count_reasons

    if dropped:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in count_reasons(dropped).items())
        typer.echo(f"{name}: left out {len(dropped)} prompts: {reasons}")


def written(out: Path) -> None:
    """List the files of a run's folder."""
    typer.echo(f"\nWritten to {out}:")
    for path in sorted(out.rglob("*")):
        if path.is_file():
            typer.echo(f"  {path.relative_to(out)}")


def show(table: pd.DataFrame, title: str) -> None:
    """A table by rich; numbers to three significant digits."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for name in table.columns:
        numeric = table[name].dtype.kind in "iuf"
        shown.add_column(str(name), justify="right" if numeric else "left", overflow="fold")
    for row in table.itertuples(index=False):
        shown.add_row(*[_cell(value) for value in row])
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.3g}"
    return "–" if value is None else str(value)
