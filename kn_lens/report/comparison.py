"""The comparison of several models: their verdicts side by side, and each experiment with a switch of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kn_lens.experiments.verdicts import TESTS, Verdict
from kn_lens.report import words
from kn_lens.report.content import ModelReport, Section, labels
from kn_lens.report.figures import page_figure
from kn_lens.report.glance import glance
from kn_lens.report.page import PageSection, page_section, render, slug, write_page
from kn_lens.report.tables import MOST_ROWS, PageTable, page_table


@dataclass(frozen=True)
class Row:
    """One claim, and each model's verdict on it; None where a model was not asked."""

    experiment: str
    claim: str
    quantity: str
    beside: bool
    rule: str
    cells: Sequence[Verdict | None]


@dataclass(frozen=True)
class Group:
    """An experiment on all models: None for a model whose report lacks it."""

    section: Section
    panels: Sequence[PageSection | None]
    table: PageTable | None


def write_comparison(contents: Sequence[ModelReport], path: str | Path) -> Path:
    """Write the page that compares models.

    Args:
        contents: The models, in the order of the columns; two of one model are told apart by size and seed.
        path: The file; a former one is replaced when the new one is whole.

    Raises:
        OutputError: If it cannot be written.
    """
    names = labels(contents)
    figure = glance(contents)
    overview = None if figure is None else page_figure(figure, id="glance", name="glance")

    def page(most_rows: int) -> str:
        groups = grouped(contents, names, most_rows)
        drawn = [
            *([overview] if overview else []),
            *(figure for group in groups for panel in group.panels if panel for figure in panel.figures),
        ]
        return render(
            "comparison.html.j2",
            drawn,
            models=list(zip(names, contents, strict=True)),
            groups=groups,
            overview=overview,
            rows={test.number: claims(contents, test.number) for test in TESTS},
            standings={
                test.number: [
                    words.standing([entry for entry in content.verdicts if entry.test == test.number])
                    for content in contents
                ]
                for test in TESTS
            },
            differing=differences(contents),
        )

    return write_page(page, path)


def claims(contents: Sequence[ModelReport], test: int) -> list[Row]:
    """The claims of one test in the paper's order, with each model's verdict."""
    found: dict[tuple[str, str], list[Verdict | None]] = {}
    for at, content in enumerate(contents):
        for verdict in content.verdicts:
            if verdict.test == test:
                cells = found.setdefault((verdict.experiment, verdict.claim), [None] * len(contents))
                cells[at] = verdict
    rows = []
    for (experiment, claim), cells in sorted(found.items(), key=lambda item: item[0][0]):
        told = [verdict for verdict in cells if verdict is not None]
        quantity = next((verdict.quantity for verdict in told if verdict.quantity), "")
        rows.append(Row(experiment, claim, quantity, told[0].beside, told[0].rule, cells))
    return rows


def grouped(contents: Sequence[ModelReport], names: Sequence[str], most_rows: int = MOST_ROWS) -> list[Group]:
    """Experiments in the paper's order, each with the models' results and their first tables as one."""
    order = sorted({section.name for content in contents for section in content.sections}, key=_place)
    groups = []
    for name in order:
        found = [next((section for section in content.sections if section.name == name), None) for content in contents]
        panels = [
            None
            if section is None
            else page_section(section, most_rows=most_rows, prefix=label, suffix=f"-{slug(label)}-{at}")
            for at, (section, label) in enumerate(zip(found, names, strict=True), start=1)
        ]
        table = merged(name, [(label, section) for label, section in zip(names, found, strict=True) if section])
        groups.append(Group(next(section for section in found if section is not None), panels, table))
    return groups


def merged(experiment: str, sections: Sequence[tuple[str, Section]]) -> PageTable | None:
    """The first table of an experiment, all models in one; a column says which row is whose."""
    import pandas as pd

    first = next((next(iter(section.tables)) for _, section in sections if section.tables), None)
    if first is None:
        return None
    frames = []
    for label, section in sections:
        if first in section.tables:
            frame = section.tables[first].copy()
            frame.insert(0, "of model" if "model" in frame.columns else "model", label)
            frames.append(frame)
    return page_table(
        pd.concat(frames, ignore_index=True),
        id=f"{experiment}-table-{slug(first)}-all",
        name=f"{first}, all models",
        file=f"{slug(f'{experiment}-{first}')}-all-models.csv",
    )


def differences(contents: Sequence[ModelReport]) -> list[str]:
    """What besides the model differs between the runs: sizes, seeds, number types."""
    asked = {
        "size": [content.size for content in contents],
        "seed": [str(content.settings.get("seed")) for content in contents],
        "number type": [str(content.settings.get("dtype")) for content in contents],
    }
    return [f"{name} ({', '.join(values)})" for name, values in asked.items() if len(set(values)) > 1]


def _place(name: str) -> tuple[int, str]:
    digits = name.lstrip("E")
    return (int(digits) if digits.isdecimal() else 99, name)
