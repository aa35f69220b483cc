"""What an experiment of the paper is: a module with a question, a run, and what the run says.

The modules ``e1_localization`` … ``e9_sites`` are such; :data:`EXPERIMENTS` names them, :func:`experiment` gives one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kn_lens.errors import SettingsError, near_matches
from kn_lens.experiments.sizes import Size
from kn_lens.experiments.verdicts import Verdict
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import Dropped
from kn_lens.prompts.relations import Relation
from kn_lens.studies.pieces import Pieces

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from kn_lens.plots.circuits import CircuitPage

Data = Relation | MinimalPairs

EXPERIMENTS = {
    "E1": "e1_localization",
    "E2": "e2_suppression",
    "E3": "e3_layers",
    "E4": "e4_answers",
    "E5": "e5_frequency",
    "E6": "e6_traces",
    "E7": "e7_edits",
    "E8": "e8_criteria",
    "E9": "e9_sites",
}
"""Experiments and their modules."""


class ExperimentResult(Protocol):
    """What a run returns: a frozen dataclass that saves itself, and whose class reads it back.

    Attributes:
        settings: The settings that made it, with the names of the data.
        provenance: Model, hashes, versions.
    """

    @property
    def settings(self) -> dict[str, Any]: ...

    @property
    def provenance(self) -> dict[str, Any]: ...

    def save(self, folder: Path, /) -> Any: ...

    @classmethod
    def load(cls, folder: Path, /) -> Any: ...


class Experiment(Protocol):
    """The module of an experiment.

    Attributes:
        TITLE: Its question.
        PAPER: Where in the paper it is, and on which models.
        ABOUT: What is done, in two or three sentences for a reader of the report.
        Result: The class of its results.
    """

    TITLE: str
    PAPER: str
    ABOUT: str
    Result: type[ExperimentResult]

    def unsuited(self, model: Any) -> str | None:
        """Why the experiment cannot be run on a model, in words that follow "not run:"; None if it can."""
        ...

    def data(self, model: Any, size: Size) -> tuple[str, ...]:
        """Names of the data that a size takes."""
        ...

    def settings(self, model: Any, size: Size, seed: int) -> Any:
        """The settings of a size, a frozen dataclass."""
        ...

    def run(
        self, model: Any, data: Sequence[Data], settings: Any, *, pieces: Pieces | None = None, progress: bool = True
    ) -> Any:
        """Run it.

        Args:
            model: A loaded model; it is left as it was.
            data: Data sets, loaded.
            settings: As :meth:`settings` makes them, or of your own.
            pieces: Where parts that are done are found and kept; by default nowhere.
            progress: Show progress bars.

        Raises:
            KnLensError: If the model or the data cannot be asked, with the reason.
        """
        ...

    def figures(self, result: Any) -> Mapping[str, go.Figure | CircuitPage]:
        """Figures by name, the most telling first."""
        ...

    def tables(self, result: Any) -> Mapping[str, pd.DataFrame]:
        """Tidy tables by name, the most telling first."""
        ...

    def findings(self, result: Any) -> list[str]:
        """Sentences computed from the numbers, with intervals and counts, whichever way they came out."""
        ...

    def verdicts(self, result: Any) -> list[Verdict]:
        """The paper's claims held against the numbers."""
        ...

    def dropped(self, result: Any) -> list[tuple[str, Dropped]]:
        """Prompts that were left out, each with the name of its data."""
        ...


def experiment(name: str) -> Experiment:
    """The module of an experiment.

    Raises:
        SettingsError: If there is none of that name.
    """
    known = name.strip().upper()
    if known not in EXPERIMENTS:
        near = near_matches(name, EXPERIMENTS)
        raise SettingsError(f"no experiment {name!r}.{near} Known: {', '.join(EXPERIMENTS)}")
    return importlib.import_module(f"kn_lens.experiments.{EXPERIMENTS[known]}")  # type: ignore[return-value]


def chosen(names: Iterable[str] | None = None) -> list[str]:
    """Names of experiments in the paper's order, each once; all by default.

    Raises:
        SettingsError: If one is unknown, or none is named.
    """
    if names is None:
        return list(EXPERIMENTS)
    wanted = {name.strip().upper() for name in names if name.strip()}
    for name in sorted(wanted):
        experiment(name)
    if not wanted:
        raise SettingsError(f"no experiment was named; known: {', '.join(EXPERIMENTS)}")
    return [name for name in EXPERIMENTS if name in wanted]
