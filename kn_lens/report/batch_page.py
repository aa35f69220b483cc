"""The report of a batch run: a single HTML file, whole also of a run in progress.

The look and the parts are those of :mod:`kn_lens.report.page`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.report import words
from kn_lens.report.content import Section
from kn_lens.report.page import PageSection, page_section, render, slug, write_page
from kn_lens.report.tables import page_table

if TYPE_CHECKING:
    import pandas as pd

TAKEN = frozenset({"summary", "failed", "provenance", "main", "theme", "figure-template"})
"""Ids of a page that no section may have."""


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """A run as a report shows it.

    Attributes:
        folder: The run's.
        model, method: Names.
        variants: What the method is repeated over, in words (``"stream: resid, mlp, attn"``); empty if it is not.
        times: How often a prompt is counted, in words (``"once for each of 3 streams"``); empty for once.
        data: Names of the data sets.
        prompts, done, dropped, failed: Counts, a prompt counted once for each variant.
        seconds: That workers spent.
        holder: The process that runs it now, or None.
        states: The same counts by data set and variant.
        left_out: Reasons: data set, variant, when, reason, prompts.
        skipped: Bad rows of the data, a line each.
        failures: A row for each prompt that failed, with the error.
        damaged: Parts and results that could not be read, a line each.
        sections: What was found.
        briefs: Section → the sentences that a summary says of it.
        settings, provenance: Of the run.
        run_file: Its text; empty if it is not there.
        command: That goes on with it.
    """

    folder: str
    model: str
    method: str
    variants: str
    times: str
    data: Sequence[str]
    prompts: int
    done: int
    dropped: int
    failed: int
    seconds: float
    holder: str | None
    states: pd.DataFrame
    left_out: pd.DataFrame
    skipped: Sequence[str]
    failures: pd.DataFrame
    damaged: Sequence[str]
    sections: Sequence[Section]
    briefs: Mapping[str, Sequence[str]]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    run_file: str
    command: str

    @property
    def through(self) -> int:
        """Prompts of which it is known what becomes of them."""
        return self.done + self.dropped + self.failed

    @property
    def finished(self) -> bool:
        """Whether none is left to be computed."""
        return self.through == self.prompts

    @property
    def state(self) -> str:
        """How far the run is, in one sentence."""
        each = f", each counted {self.times}" if self.times else ""
        parts = [f"{self.done:,} done"]
        parts += [f"{count:,} {what}" for count, what in ((self.dropped, "left out"), (self.failed, "failed")) if count]
        if self.finished:
            return f"Finished: of {self.prompts:,} prompts{each}, {', '.join(parts)}."
        return f"So far {self.through:,} of {self.prompts:,} prompts{each}: {', '.join(parts)}."


class BatchSection(PageSection):
    """A section whose own words say why it has no result."""

    @property
    def state(self) -> str:
        """One sentence where there is no result."""
        return "" if self.section.state == "done" else self.section.reason


def write_batch_report(content: BatchReport, path: str | Path) -> Path:
    """Write the report of a run.

    Args:
        content: What it shows.
        path: The file; a former one is replaced when the new one is whole.

    Raises:
        OutputError: If it cannot be written.
    """

    def page(most_rows: int) -> str:
        def table(name: str, frame: pd.DataFrame) -> Any:
            file = f"{slug(f'{content.model}-{name}')}.csv"
            return page_table(frame, id=f"table-{slug(name)}", name=name, file=file, most_rows=most_rows)

        made = [page_section(section, most_rows=most_rows, prefix=content.model) for section in content.sections]
        sections = [BatchSection(one.section, one.figures, one.tables) for one in made]
        return render(
            "batch.html.j2",
            [figure for entry in sections for figure in entry.figures],
            report=content,
            sections=sections,
            told=[(section, said) for section in content.sections for said in content.briefs[section.name]],
            states=table("How far", content.states),
            left_out=table("Left out", content.left_out) if len(content.left_out) else None,
            failures=table("Failed prompts", content.failures) if len(content.failures) else None,
            settings=words.flat(content.settings),
            provenance=words.flat(content.provenance),
        )

    return write_page(page, path)
