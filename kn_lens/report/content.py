"""What a report shows of one model: a section per experiment, each with its figures, tables, sentences and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kn_lens.experiments.verdicts import Verdict
from kn_lens.prompts.prompt import Dropped

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from kn_lens.plots.circuits import CircuitPage

State = Literal["done", "unsuited", "failed", "damaged", "not run"]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One experiment on one model.

    Attributes:
        name: ``"E1"`` … ``"E9"``.
        title: Its question.
        about: What is done.
        paper: Where in the paper.
        state: Whether there is a result.
        reason: Why not, one sentence; empty where there is one.
        findings: Sentences computed from the numbers.
        verdicts: Claims held against them.
        figures: By name, the most telling first.
        tables: By name, the most telling first.
        dropped: Prompts left out, each with the name of its data.
        settings: Of the run.
        seconds: That it took.
    """

    name: str
    title: str
    about: str
    paper: str
    state: State
    reason: str = ""
    findings: Sequence[str] = ()
    verdicts: Sequence[Verdict] = ()
    figures: Mapping[str, go.Figure | CircuitPage] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    dropped: Sequence[tuple[str, Dropped]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """All experiments on one model.

    Attributes:
        model: Its name.
        size: ``"small"`` or ``"full"``.
        kind: ``"causal"`` or ``"masked"``.
        shape: What the model is, in words: ``"4 layers, 2,048 neurons, 16 heads"``.
        settings: Of the whole run: seed, number type, date, command.
        provenance: Hashes and versions.
        sections: In the paper's order.
        finished: Whether every experiment asked for has ended; else the report is of a run in progress.
    """

    model: str
    size: str
    kind: str
    shape: str
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    sections: Sequence[Section]
    finished: bool = True

    @property
    def verdicts(self) -> list[Verdict]:
        """Of all sections."""
        return [verdict for section in self.sections for verdict in section.verdicts]


def labels(reports: Sequence[ModelReport]) -> list[str]:
    """Names that tell reports apart: the model's, with what else differs where two are of one model."""
    names = [report.model for report in reports]
    found = []
    for at, report in enumerate(reports):
        more = f", {report.size}, seed {report.settings.get('seed')}" if names.count(names[at]) > 1 else ""
        found.append(names[at] + more)
    return [f"{name} ({at})" if found.count(name) > 1 else name for at, name in enumerate(found, start=1)]
