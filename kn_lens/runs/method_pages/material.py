"""What a section of a batch run's report is made of, and what it shows.

Results are read one at a time and let go before the next: what is kept of one are averages, tables and figures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from kn_lens.batches.read import BatchRun
from kn_lens.batches.storage.part import DataPlan
from kn_lens.errors import OutputError
from kn_lens.prompts.prompt import Dropped

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from kn_lens.prompts.prompt import Prompt

Made = TypeVar("Made")

FEW = 2
"""Prompts that are shown one by one."""

CHOSEN = ", an interval not corrected for that choice"
"""Said of the largest of several means."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a method shows of its results.

    Attributes:
        findings: Sentences computed from the numbers.
        figures, tables: By name, the most telling first.
        brief: Those of the findings that stand for all of them in a summary; by default the first.
        kept: What :attr:`MethodPage.across` needs of it.
    """

    findings: Sequence[str]
    figures: Mapping[str, go.Figure]
    tables: Mapping[str, pd.DataFrame]
    brief: Sequence[str] | None = None
    kept: Any = None

    @property
    def in_short(self) -> Sequence[str]:
        """What a summary says."""
        return self.findings[:1] if self.brief is None else self.brief


NOTHING = Shown(findings=(), figures={}, tables={})
"""Where no result could be read."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """One data set of a run, and variants that are shown together.

    Attributes:
        run: The run.
        plan: The data set.
        label: What figures and sentences call it.
        variants: Those of which prompts are done.
        failed: By variant, prompts that the method failed on.
        problems: Results that could not be read are noted here.
        dropped: What results say was left out is noted here.
    """

    run: BatchRun
    plan: DataPlan
    label: str
    variants: Sequence[str]
    failed: Mapping[str, Sequence[Dropped]]
    problems: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    @property
    def model(self) -> str:
        """The model's name."""
        return self.run.manifest.provenance["model"]

    def called(self, variant: str) -> str:
        """The data set and the variant, where there are several: how sentences begin."""
        return f"{self.label}, {variant}" if len(self.run.variants) > 1 else self.label

    def subtitle(self, variant: str = "") -> str:
        """Model and data, for figures; with the variant where one is named and there are several."""
        return f"{self.model}, {self.called(variant) if variant else self.label}"

    def each(self, show: Callable[[str, Any], Made]) -> list[Made]:
        """What ``show`` makes of each variant's result; one that cannot be read is noted and passed over."""
        made = []
        for variant in self.variants:
            try:
                result = self.run.result(self.plan.name, variant)
            except OutputError as error:
                self.problems.append(f"{self.called(variant)}: {error}")
                continue
            self.dropped.extend(getattr(result, "dropped", ()))
            made.append(show(variant, result))
            del result  # the next one is read before this name is taken again
        return made


def all_together(variants: Sequence[str]) -> list[tuple[str, ...]]:
    """All variants in one section."""
    return [tuple(variants)]


def each_apart(variants: Sequence[str]) -> list[tuple[str, ...]]:
    """A section for each variant."""
    return [(variant,) for variant in variants]


@dataclass(frozen=True, kw_only=True)
class MethodPage:
    """How a method's results are shown.

    Attributes:
        about: What the method does, in a sentence or two.
        show: What is shown of a section.
        groups: Which variants share a section.
        across: What is shown of all data sets together, from what ``show`` kept of each; None for nothing.
    """

    about: str
    show: Callable[[Material], Shown]
    groups: Callable[[Sequence[str]], list[tuple[str, ...]]] = all_together
    across: Callable[[list[Any]], Shown] | None = None


def few_of(prompts: Sequence[Prompt]) -> list[int]:
    """The first prompts of different groups: so many as are shown one by one."""
    first: dict[str, int] = {}
    for at, prompt in enumerate(prompts):
        first.setdefault(prompt.group or prompt.target, at)
        if len(first) == FEW:
            break
    return list(first.values())


def together(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables as one; those without rows left out."""
    import pandas as pd

    kept = [frame for frame in frames if len(frame)]
    return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()
