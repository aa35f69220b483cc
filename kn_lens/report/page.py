"""The report of one model: a single HTML file that opens without a network.

The page carries its style, its script, Plotly's script and, where attention or activations are shown, circuitsvis'
script, each once. Figures and tables are data on the page: a figure is drawn when it comes into sight.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from kn_lens._version import __version__
from kn_lens.errors import OutputError
from kn_lens.experiments.verdicts import TESTS, THESIS
from kn_lens.plots.circuits import circuits_script
from kn_lens.report import words
from kn_lens.report.content import ModelReport, Section
from kn_lens.report.figures import PageFigure, page_figure, shared_template
from kn_lens.report.glance import glance
from kn_lens.report.tables import MOST_ROWS, SHOWN, PageTable, page_table

log = logging.getLogger(__name__)

LARGEST = 15_000_000
"""Bytes of a page at most, as far as shorter tables can make it so."""

EXPERIMENTS_OF_THE_PAPER = tuple(f"E{number}" for number in range(1, 9))

_FOLDER = Path(__file__).parent
_FEW, _FIRST = 9, 6  # findings: so many are shown at once, of more so many
_FEWER_ROWS = (MOST_ROWS, 500, SHOWN)


@dataclass(frozen=True)
class PageSection:
    """An experiment with its figures and tables as a page carries them."""

    section: Section
    figures: Sequence[PageFigure]
    tables: Sequence[PageTable]

    @property
    def state(self) -> str:
        """One sentence where there is no result."""
        return words.state_words(self.section)

    @property
    def first(self) -> Sequence[str]:
        """Findings shown at once: all, or the first of many."""
        return self.section.findings[: _FIRST if len(self.section.findings) > _FEW else None]

    @property
    def rest(self) -> Sequence[str]:
        """Findings folded up."""
        return self.section.findings[len(self.first) :]

    @property
    def reasons(self) -> list[words.Reason]:
        """Prompts left out."""
        return words.reasons(self.section)

    @property
    def settings(self) -> list[tuple[str, str]]:
        """As lines."""
        return words.flat(self.section.settings)


def write_report(content: ModelReport, path: str | Path) -> Path:
    """Write the report of one model.

    Args:
        content: What it shows.
        path: The file; a former one is replaced when the new one is whole.

    Raises:
        OutputError: If it cannot be written.
    """
    figure = glance([content], f"{content.model}, size {content.size}")
    overview = None if figure is None else page_figure(figure, id="glance", name="glance")

    def page(most_rows: int) -> str:
        sections = [page_section(section, most_rows=most_rows, prefix=content.model) for section in content.sections]
        drawn = [*([overview] if overview else []), *(figure for entry in sections for figure in entry.figures)]
        return render(
            "report.html.j2",
            drawn,
            report=content,
            sections=sections,
            overview=overview,
            done=sum(section.state != "not run" for section in content.sections),
            missing=[entry for entry in sections if entry.state],
            beyond=[entry for entry in sections if entry.section.name not in EXPERIMENTS_OF_THE_PAPER],
            provenance=words.flat({**content.settings, **content.provenance}),
        )

    return write_page(page, path)


def page_section(section: Section, *, most_rows: int = MOST_ROWS, prefix: str = "", suffix: str = "") -> PageSection:
    """An experiment for a page.

    Args:
        section: The experiment.
        most_rows: Rows of a table at most.
        prefix: Begins the names of CSV files.
        suffix: Ends the ids of figures and tables, where the experiment is on the page several times.
    """
    taken: set[str] = set()
    figures = [
        page_figure(figure, id=_unique(f"{section.name}-{slug(name)}{suffix}", taken), name=name)
        for name, figure in section.figures.items()
    ]
    tables = [
        page_table(
            frame,
            id=_unique(f"{section.name}-table-{slug(name)}{suffix}", taken),
            name=name,
            file=f"{slug('-'.join(filter(None, (prefix, section.name, name))))}.csv",
            most_rows=most_rows,
        )
        for name, frame in section.tables.items()
    ]
    return PageSection(section, figures, tables)


def render(template: str, figures: Iterable[PageFigure], **values: Any) -> str:
    """Fill a template; the scripts that its figures need come with it."""
    circuits = any(figure.parts for figure in figures)
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            version=__version__,
            tests=TESTS,
            thesis=THESIS,
            words=words,
            template_of_figures=shared_template(),
            css=_asset("report.css"),
            script=_asset("report.js"),
            plotly=_plotly(),
            circuitsvis=Markup(circuits_script()) if circuits else "",
        )
    )


def write_page(page: Any, path: str | Path) -> Path:
    """Write a page under another name and rename it when it is whole.

    Args:
        page: Called with the most rows that a table may have, gives the page; with fewer where it becomes too large.
        path: The file.

    Raises:
        OutputError: If it cannot be written.
    """
    path = Path(path)
    content = b""
    for rows in _FEWER_ROWS:
        content = page(rows).encode()
        if len(content) <= LARGEST:
            break
        log.warning("%s has %.1f MB with %d rows of a table at most", path, len(content) / 1e6, rows)
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except OSError as error:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def slug(name: str) -> str:
    """A name as part of an id or of a file's name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "x"


def embedded(value: Any) -> Markup:
    """JSON within a ``<script>``, which no text in it can end."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _unique(name: str, taken: set[str]) -> str:
    found, at = name, 2
    while found in taken:
        found, at = f"{name}-{at}", at + 1
    taken.add(found)
    return found


def _finite(value: Any) -> Any:
    """JSON has no NaN; circuitsvis takes null for it."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"embedded": lambda value: embedded(_finite(value)), "slug": slug}
    return environment


@cache
def _asset(name: str) -> Markup:
    return Markup((_FOLDER / "assets" / name).read_text(encoding="utf-8"))


@cache
def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs().replace("</script", "<\\/script"))
