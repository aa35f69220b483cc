"""A batch run as its report shows it: all that is finished, also while it runs."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.batches.prompt_table import dropped_rows
from kn_lens.batches.read import BatchRun
from kn_lens.batches.status import Share
from kn_lens.batches.storage.part import LeftOut, PartRecord, Task
from kn_lens.batches.storage.store import Store
from kn_lens.errors import OutputError
from kn_lens.prompts.prompt import Dropped
from kn_lens.report.batch_page import TAKEN, BatchReport
from kn_lens.report.content import Section
from kn_lens.report.page import slug
from kn_lens.runs.batch_about import (
    labels_of,
    left_out_table,
    run_file_of,
    settings_of,
    states_table,
    variants_in_words,
    why_nothing,
)
from kn_lens.runs.method_pages import METHOD_PAGES
from kn_lens.runs.method_pages.material import NOTHING, Material, Shown

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.results import Result

Group = tuple[str, ...]


def read_batch_report(folder: str | Path) -> BatchReport:
    """What a report shows of a run.

    Raises:
        OutputError: If the folder holds no run, a damaged one, or one of a newer kn_lens.
    """
    run = _Run(folder)
    store = run.store = _Snapshot(run.folder)
    status, told = run.status(), _Told(run)
    sections = _Sections(run, status.shares, told)
    sections.make()
    counts, manifest = status.shares, run.manifest
    variants, times = variants_in_words(run)
    hashes = {
        "run": manifest.run,
        "SHA-256 of the prompts": manifest.prompts_sha256,
        "SHA-256 of the data": {plan.name: plan.sha256 for plan in manifest.data},
    }
    data = {
        entry["name"]: {name: value for name, value in entry.items() if name != "name"}
        for entry in manifest.config["data"]
    }
    return BatchReport(
        folder=str(folder),
        model=manifest.provenance["model"],
        method=run.config.method,
        variants=variants,
        times=times,
        data=list(labels_of(run).values()),
        prompts=sum(share.prompts for share in counts),
        done=sum(share.done for share in counts),
        dropped=sum(sum(share.dropped.values()) for share in counts),
        failed=status.failed,
        seconds=status.seconds,
        holder=status.holder,
        states=states_table(run, counts),
        left_out=left_out_table(run, counts),
        skipped=[line for plan in manifest.data for line in plan.skipped],
        failures=told.failures(),
        damaged=[*store.damaged, *sections.problems],
        sections=sections.made,
        briefs=sections.briefs,
        settings=manifest.config | {"data": data, "planned": manifest.created},
        provenance=manifest.provenance | hashes,
        run_file=run_file_of(run),
        command=f"kn-lens resume {shlex.quote(str(folder))}",
    )


class _Run(BatchRun):
    """A run whose results are not warned about: the page says itself how far it is."""

    def _warn(self, what: str, prompts: int, still_open: int, failed: int) -> None:
        pass


class _Snapshot(Store):
    """A store as it was at one moment: a run goes on while its report is made. Damaged results are noted."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._records: dict[int, PartRecord] | None = None
        self.damaged: list[str] = []

    def records(self) -> dict[int, PartRecord]:
        """The records that there were when they were first asked for."""
        if self._records is None:
            self._records = super().records()
        return self._records

    def whole(self, number: int) -> tuple[PartRecord, Result | None] | None:
        """A part's record and result; None of one that is damaged, too: the others can still be shown."""
        try:
            return super().whole(number)
        except OutputError as error:
            self.damaged.append(str(error))
            return None


class _Told:
    """What the records of a run say of prompts without a result, by data set and variant."""

    def __init__(self, run: BatchRun) -> None:
        self.run = run
        self.dropped: dict[tuple[int, str], list[tuple[int, Dropped]]] = defaultdict(list)
        self.failed: dict[tuple[int, str], list[tuple[int, Dropped]]] = defaultdict(list)
        tasks = run.store.tasks()
        for number, record in sorted(run.store.records().items()):
            task = tasks[number]
            for kept, said in ((self.dropped, record.dropped), (self.failed, record.failed)):
                if said:
                    left_out = zip((one.prompt for one in said), self._named(task, said), strict=True)
                    kept[task.data, task.variant] += left_out

    def _named(self, task: Task, said: Sequence[LeftOut]) -> list[Dropped]:
        """Prompts with their sources, as results name them; without, if the prompts cannot be read."""
        try:
            return self.run.without_result(task, said)
        except OutputError:
            return [Dropped(text=one.text, reason=one.reason) for one in said]

    def left_out_of(self, data: int, variants: Iterable[str]) -> list[Dropped]:
        """Prompts that the method left out, each once though several variants did."""
        found = {(at, one): None for variant in variants for at, one in self.dropped[data, variant]}
        return [one for _, one in found]

    def failures(self) -> pd.DataFrame:
        """A row for each prompt that failed."""
        import pandas as pd

        named = self.run.variant_name
        rows = [
            {"data": self.run.manifest.data[data].name}
            | ({named: variant} if named else {})
            | {"prompt": at, "text": one.text, "error": one.reason}
            for (data, variant), failed in sorted(self.failed.items())
            for at, one in failed
        ]
        return pd.DataFrame(rows)


class _Sections:
    """The sections of a page: one for each data set and group of variants, before them those of all data sets.

    Attributes:
        made: The sections.
        briefs: Section → what a summary says of it.
        problems: What could not be read.
    """

    def __init__(self, run: BatchRun, shares: Sequence[Share], told: _Told) -> None:
        self.run, self.shares, self.told = run, shares, told
        self.page = METHOD_PAGES[run.config.method]
        self.made: list[Section] = []
        self.briefs: dict[str, Sequence[str]] = {}
        self.problems: list[str] = []
        self._taken = set(TAKEN)
        self._labels = labels_of(run)
        self._kept: dict[Group, list[Any]] = defaultdict(list)
        self._planned: dict[str, list[Dropped]] = defaultdict(list)
        for row in dropped_rows(run.folder):
            left_out = Dropped(text=row["text"], reason=row["reason"], source=row["source"])
            self._planned[row["data"]].append(left_out)

    def make(self) -> None:
        """Make all, one after another: each reads its results, one at a time."""
        for data in range(len(self.run.manifest.data)):
            for group in self.page.groups(self.run.variants):
                self.made.append(self._of_data(data, group))
        self.made = [*(self._of_all(group, kept) for group, kept in self._kept.items()), *self.made]

    def _of_data(self, data: int, group: Group) -> Section:
        plan = self.run.manifest.data[data]
        shares = [share for share in self.shares if share.data == plan.name and share.variant in group]
        of = Material(
            run=self.run,
            plan=plan,
            label=self._labels[plan.name],
            variants=[share.variant for share in shares if share.done],
            failed={variant: [one for _, one in self.told.failed[data, variant]] for variant in group},
        )
        shown = self.page.show(of) if of.variants else NOTHING
        self.problems += of.problems
        if shown.kept is not None:
            self._kept[group].append(shown.kept)
        left_out = [*self._planned[plan.name], *self.told.left_out_of(data, group)]
        known = {(one.text, one.reason) for one in (*left_out, *(one for some in of.failed.values() for one in some))}
        # Results know of what is no prompt of the run too: questions about an edit.
        left_out += dict.fromkeys(one for one in of.dropped if (one.text, one.reason) not in known)
        return self._section(
            of.label,
            group,
            shown,
            why="" if shown.findings else why_nothing(shares),
            dropped=[(of.label, one) for one in left_out],
            settings=settings_of(self.run, plan),
        )

    def _of_all(self, group: Group, kept: list[Any]) -> Section:
        assert self.page.across is not None
        settings = self.run.manifest.config["settings"]
        return self._section("All data sets", group, self.page.across(kept), settings=settings)

    def _section(
        self,
        title: str,
        group: Group,
        shown: Shown,
        *,
        why: str = "",
        dropped: Sequence[tuple[str, Dropped]] = (),
        settings: dict[str, Any],
    ) -> Section:
        found = name = slug("-".join(filter(None, (title, *group))))
        at = 2
        while found in self._taken:
            found, at = f"{name}-{at}", at + 1
        self._taken.add(found)
        self.briefs[found] = shown.in_short
        return Section(
            name=found,
            title=title,
            about=self.page.about,
            paper=", ".join(filter(None, group)),
            state="not run" if why else "done",
            reason=why,
            findings=shown.findings,
            figures=shown.figures,
            tables=shown.tables,
            dropped=dropped,
            settings=settings,
        )
