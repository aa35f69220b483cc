"""Experiment E9: neurons beside attention heads. Which holds facts, which holds agreement?

Beyond the paper, which calls for it: what was found (E1), taken away (E2, E4) and traced (E6) in neurons is found,
taken away and traced in heads. See :mod:`kn_lens.studies.sites` for how unlike things are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.errors import PromptError, SettingsError
from kn_lens.experiments.sizes import CONTROLS, Size, agreement_names, fact_names, localize_settings, quick
from kn_lens.experiments.verdicts import Verdict
from kn_lens.plots.circuits import CircuitPage, attention_of_heads
from kn_lens.plots.tracing import head_trace
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.positions import Positions
from kn_lens.prompts.prompt import Dropped
from kn_lens.prompts.relations import Relation
from kn_lens.studies.localizations import dropped_sets, left_out_findings
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.saved import read_fields, reading, write_fields, writing
from kn_lens.studies.site_comparison import SiteComparison
from kn_lens.studies.sites import DATA, SITES, compare_sites
from kn_lens.studies.sites_findings import headline
from kn_lens.studies.traced import Traced, TraceSettings, trace
from kn_lens.studies.traced import findings as trace_findings
from kn_lens.suppression.replacement import Ablation
from kn_lens.tracing.draw import asked_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

TITLE = "Neurons or attention heads: which hold facts, which agreement?"
PAPER = "Called for in its discussion; beyond the paper"
ABOUT = (
    "MLP neurons and attention heads are attributed and searched in the same way, on the same prompts, and taken away "
    "from prompts that they were not searched on: those found, then more and more, until half of the answers flip. "
    "Neurons and heads are unlike things, so the price is told in number, as a share of all of them, and as the size "
    "of the output taken away. Each head is also traced, by restoring it alone after the cue was corrupted."
)

_HEAD = "head"
_COLUMNS = (
    "data",
    "kind",
    "site",
    "units of the site",
    "|KN|",
    "R₁²",
    "stability",
    "Gini",
    "accuracy before",
    "accuracy after",
    "accuracy after low",
    "accuracy after high",
    "accuracy after, random",
    "accuracy p",
    "answered rightly",
    "half: units",
    "half: units low",
    "half: units high",
    "half: units, random",
    "half: share of units",
    "half: norm",
    "half: norm low",
    "half: norm high",
    "flipped at most",
)


@dataclass(frozen=True, kw_only=True)
class SitesSettings:
    """Settings of the comparison, see :func:`kn_lens.compare_sites`, and of the traces of heads.

    Attributes:
        traced: Groups of each data set whose heads are traced on one prompt; 0 traces none.
        samples: Draws of noise in the traces.
    """

    sites: tuple[str, ...] = SITES
    groups: int | None = 6
    per_group: int | None = 6
    controls: int = CONTROLS
    positions: Positions = "target"
    ablation: Ablation = "zero"
    traced: int = 10
    samples: int = 10
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Result:
    """Sites beside each other, and heads one by one.

    Attributes:
        comparison: Of sites.
        traces: Of heads, by data set.
        pages: Attention patterns of the heads with the largest effects on one prompt, by data set.
        left_out: Data sets that could not be compared, with the reason.
        untraced: Data sets whose heads could not be traced, with the reason.
        settings: Of the run, with the names of the data.
        provenance: Model, hashes, versions (the prompts' hash is of the first data set).
    """

    comparison: SiteComparison
    traces: tuple[Traced, ...]
    pages: dict[str, CircuitPage]
    left_out: dict[str, str]
    untraced: dict[str, str]
    settings: dict[str, Any]
    provenance: dict[str, Any]

    def save(self, folder: Path) -> Path:
        """Write the comparison and each trace into subfolders, and the rest as JSON.

        Raises:
            OutputError: If it cannot be written.
        """
        with writing(Path(folder)) as out:
            self.comparison.save(out / "comparison")
            for at, entry in enumerate(self.traces):
                entry.save(out / f"trace-{at}")
            plain = {name: getattr(self, name) for name in ("left_out", "untraced", "settings", "provenance")}
            pages = {name: page.to_json() for name, page in self.pages.items()}
            write_fields(out, {**plain, "traces": len(self.traces), "pages": pages})
        return out

    @classmethod
    def load(cls, folder: Path) -> Result:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds no such result, or a damaged one.
        """
        with reading(Path(folder), "comparison of neurons and heads") as source:
            fields = read_fields(source)
            traces = tuple(Traced.load(source / f"trace-{at}") for at in range(fields.pop("traces")))
            pages = {name: CircuitPage.from_json(page) for name, page in fields.pop("pages").items()}
            return cls(comparison=SiteComparison.load(source / "comparison"), traces=traces, pages=pages, **fields)


def unsuited(model: Any) -> str | None:
    """Every model has neurons and heads."""
    return None


def data(model: Any, size: Size) -> tuple[str, ...]:
    """Capitals and subject-verb agreement; in full also fields of work, and determiners and nouns."""
    return DATA if size == "small" else (*fact_names("small"), *agreement_names(model, "small"))


def settings(model: Any, size: Size, seed: int) -> SitesSettings:
    """The draw of E1, E3 and E4, so that neurons are searched once, and few traces where they take long."""
    draw = localize_settings(model, size, seed)
    traced, samples = (20, 10) if quick(model) or size == "full" else (6, 3)
    return SitesSettings(groups=draw.groups, per_group=draw.prompts, traced=traced, samples=samples, seed=seed)


def run(
    model: Any,
    data: Sequence[Relation | MinimalPairs],
    settings: SitesSettings | None = None,
    *,
    pieces: Pieces | None = None,
    progress: bool = True,
) -> Result:
    """Compare sites on each data set, and trace the heads.

    Args:
        model: A loaded model; it is left as it was.
        data: Facts and pairs. What the model answers nothing of rightly is left out, unless all is.
        settings: By default those of :class:`SitesSettings`.
        pieces: Where parts that are done are found and kept; by default nowhere.
        progress: Show progress bars.

    Raises:
        SettingsError: For a setting out of its range, or no data.
        PromptError: If no data set can be compared, with the reason of the first.
    """
    settings = settings or SitesSettings()
    pieces = pieces or Pieces()
    comparison, left_out = _compare(model, data, settings, pieces, progress)
    wanted = TraceSettings(streams=(_HEAD,), groups=settings.traced, samples=settings.samples, seed=settings.seed)
    traces: list[Traced] = []
    pages: dict[str, CircuitPage] = {}
    untraced: dict[str, str] = {}
    for entry in data if settings.traced else ():
        try:
            traced = trace(model, entry, wanted, pieces=pieces, progress=progress)
        except PromptError as error:
            untraced[entry.name] = str(error)
            continue
        assert traced.batch is not None  # it was drawn just now
        prompt = asked_of(traced.batch, traced.first.prompts[:1])
        pages[entry.name] = attention_of_heads(model, prompt, traced.top_units(_HEAD))
        traces.append(replace(traced, batch=None))
    return Result(
        comparison=comparison,
        traces=tuple(traces),
        pages=pages,
        left_out=left_out,
        untraced=untraced,
        settings={"data": [entry.name for entry in data], **asdict(settings), "sites": list(settings.sites)},
        provenance=comparison.provenance,
    )


def figures(result: Result) -> dict[str, go.Figure | CircuitPage]:
    """Those of the comparison but its table, then of each data set the traces of heads and attention patterns."""
    model = result.provenance["model"]
    found: dict[str, go.Figure | CircuitPage] = {
        name: figure for name, figure in result.comparison.figures().items() if name != "table"
    }
    for entry in result.traces:
        found[f"trace-{entry.data}"] = head_trace(entry.first, subtitle=f"{model}, {entry.data}")
        found[f"attention-{entry.data}"] = result.pages[entry.data]
    return found


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """``sites`` in short, ``curves``, ``units`` found, and of the traced heads the ``peaks`` and all ``heads``."""
    import pandas as pd

    found = {
        "sites": result.comparison.to_frame().loc[:, list(_COLUMNS)],
        "curves": result.comparison.curves_frame(),
        "units": result.comparison.units_frame(),
    }
    if result.traces:
        found["peaks"] = pd.concat([entry.peaks() for entry in result.traces], ignore_index=True)
        found["heads"] = pd.concat([entry.average(_HEAD) for entry in result.traces], ignore_index=True)
    return found


def findings(result: Result) -> list[str]:
    """The sites side by side in short, then row by row, then what the traces of heads show."""
    said = [headline(result.comparison.to_frame()), *result.comparison.findings()]
    said += [sentence for entry in result.traces for sentence in trace_findings(entry)]
    said += left_out_findings(result.left_out)
    return said + [f"The heads of {name} were not traced: {why.rstrip('.')}." for name, why in result.untraced.items()]


def verdicts(result: Result) -> list[Verdict]:
    """None: the paper makes no claim."""
    return []


def dropped(result: Result) -> list[tuple[str, Dropped]]:
    """Prompts that were not attributed or not traced, and whole data sets."""
    found = [(entry.data, item) for entry in result.comparison.entries for item in entry.found.scores.dropped]
    found += [(entry.data, item) for entry in result.traces for item in entry.first.dropped]
    return [*dropped_sets(result.left_out), *dict.fromkeys(found)]


def _compare(
    model: Any, data: Sequence[Relation | MinimalPairs], settings: SitesSettings, pieces: Pieces, progress: bool
) -> tuple[SiteComparison, dict[str, str]]:
    """The comparison of all data sets that can be compared, and the reasons of the others."""
    options = {name: value for name, value in asdict(settings).items() if name not in ("traced", "samples")}
    found: list[SiteComparison] = []
    left_out: dict[str, str] = {}
    first: PromptError | None = None
    for entry in data:
        try:
            found.append(compare_sites(model, entry, **options, pieces=pieces, progress=progress))
        except PromptError as error:
            first = first or error
            left_out[entry.name] = str(error).removeprefix(f"{entry.name}, ")
    if not found:
        raise first or SettingsError("no data sets were given; give at least one")
    entries = tuple(entry for comparison in found for entry in comparison.entries)
    names = [name for comparison in found for name in comparison.settings["data"]]
    return replace(found[0], entries=entries, settings={**found[0].settings, "data": names}), left_out
