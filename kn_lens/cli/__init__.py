"""The command line: thin commands over the package. Heavy libraries are imported when a command runs."""

from __future__ import annotations

import sys

import typer

from kn_lens.cli.batch import init, results, resume, run, status
from kn_lens.cli.compare import compare
from kn_lens.cli.evaluate import EvaluateCommand, evaluate
from kn_lens.cli.heads import heads
from kn_lens.cli.localize import localize, models
from kn_lens.cli.patch import knockout, patch
from kn_lens.cli.reproduce import report, reproduce
from kn_lens.cli.rome import rome
from kn_lens.cli.suppress import count, suppress
from kn_lens.cli.trace import trace
from kn_lens.errors import KnLensError

app = typer.Typer(
    name="kn-lens",
    help="Find, measure and edit the units that facts and grammar hang on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (models, localize, suppress, heads, trace, patch, knockout, rome):
    app.command()(command)
app.command(cls=EvaluateCommand)(evaluate)
for command in (count, compare, reproduce, init, run, resume, status, results, report):
    app.command()(command)


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
