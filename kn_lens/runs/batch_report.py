"""A batch run as its report shows it: all that is finished, also while it runs."""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.batches.part import DataPlan, PartRecord, Task
from kn_lens.batches.prompt_table import dropped_rows
from kn_lens.batches.read import BatchRun, Share, Status
from kn_lens.batches.run import RUN_FILE
from kn_lens.batches.store import Store
from kn_lens.errors import OutputError
from kn_lens.prompts.prompt import Dropped
from kn_lens.report.batch_page import TAKEN, BatchReport
from kn_lens.report.content import Section
from kn_lens.report.page import slug
from kn_lens.runs.method_pages import METHOD_PAGES
from kn_lens.runs.method_pages.material import Material, MethodPage, Shown
from kn_lens.runs.output import MANIFEST

if TYPE_CHECKING:
    from kn_lens.results import Result

_LONGEST = 20  # numbers of a list that was prepared; longer ones (a mean embedding) are told by their length


def is_batch_run(folder: Path) -> bool:
    """Whether a folder is that of ``kn-lens run``, by its manifest; without one, by its run file."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (folder / RUN_FILE).is_file()
    return isinstance(content, dict) and {"run", "config"} <= set(content)


def read_batch_report(folder: str | Path) -> BatchReport:
    """What a report shows of a run.

    Raises:
        OutputError: If the folder holds no run, a damaged one, or one of a newer kn_lens.
    """
    run = BatchRun(folder)
    store = run.store = _Snapshot(run.folder)
    status = run.status()
    told = _Told(run)
    sections, problems = _sections(run, status, told)
    counts = status.shares
    return BatchReport(
        folder=str(folder),
        model=run.manifest.provenance["model"],
        method=run.config.method,
        variants=_variants(run),
        data=list(_labels(run).values()),
        prompts=sum(share.prompts for share in counts),
        done=sum(share.done for share in counts),
        dropped=sum(sum(share.dropped.values()) for share in counts),
        failed=status.failed,
        seconds=status.seconds,
        holder=status.holder,
        states=_states(run, counts),
        left_out=_left_out(run, counts),
        skipped=[line for plan in run.manifest.data for line in plan.skipped],
        failures=told.failures(),
        damaged=[*store.damaged, *problems],
        sections=sections,
        settings=run.manifest.config | {"planned": run.manifest.created},
        provenance=run.manifest.provenance
        | {
            "run": run.manifest.run,
            "SHA-256 of the prompts": run.manifest.prompts_sha256,
            "SHA-256 of the data": {plan.name: plan.sha256 for plan in run.manifest.data},
        },
        run_file=_run_file(run.folder),
        command=f"kn-lens resume {shlex.quote(str(folder))}",
    )


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

    def result(self, task: Task | int) -> Result | None:
        """The result of a part; None of one that is damaged, too: the others can still be shown."""
        try:
            return super().result(task)
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
                kept[task.data, task.variant] += [
                    (one.prompt, Dropped(text=one.text, reason=one.reason)) for one in said
                ]

    def left_out_of(self, data: int, variants: Iterable[str]) -> list[Dropped]:
        """Prompts that the method left out, each once though several variants did."""
        found = {(at, one): None for variant in variants for at, one in self.dropped[data, variant]}
        return [one for _, one in found]

    def failures(self) -> Any:
        """A row for each prompt that failed."""
        import pandas as pd

        rows = [
            {"data": self.run.manifest.data[data].name}
            | ({self.run.variant_name: variant} if self.run.variant_name else {})
            | {"prompt": at, "text": one.text, "error": one.reason}
            for (data, variant), failed in sorted(self.failed.items())
            for at, one in failed
        ]
        return pd.DataFrame(rows)


def _sections(run: BatchRun, status: Status, told: _Told) -> tuple[list[Section], list[str]]:
    """A section for each data set and group of variants, those across all data sets first; and what is damaged."""
    page = METHOD_PAGES[run.config.method]
    planned: dict[str, list[Dropped]] = defaultdict(list)
    for row in dropped_rows(run.folder):
        planned[row["data"]].append(Dropped(text=row["text"], reason=row["reason"], source=row["source"]))
    labels, taken, problems = _labels(run), set(TAKEN), list[str]()
    kept: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    sections = []
    for data, plan in enumerate(run.manifest.data):
        for group in page.groups(run.variants):
            shares = [share for share in status.shares if share.data == plan.name and share.variant in group]
            material = Material(
                run=run,
                plan=plan,
                label=labels[plan.name],
                variants=[share.variant for share in shares if share.done],
                failed={variant: [one for _, one in told.failed[data, variant]] for variant in group},
            )
            left_out = [*planned[plan.name], *told.left_out_of(data, group)]
            section, shown = _section(material, page, group, shares, left_out, taken)
            sections.append(section)
            problems += material.problems
            if shown.kept is not None:
                kept[group].append(shown.kept)
    across = [_across(page, group, found, run, taken) for group, found in kept.items() if page.across is not None]
    return [*across, *sections], problems


def _section(
    of: Material,
    page: MethodPage,
    group: Sequence[str],
    shares: Sequence[Share],
    left_out: Sequence[Dropped],
    taken: set[str],
) -> tuple[Section, Shown]:
    shown = page.show(of) if of.variants else Shown(findings=(), figures={}, tables={})
    known = {(one.text, one.reason) for one in left_out}
    more = dict.fromkeys(one for one in of.dropped if (one.text, one.reason) not in known)  # questions, not prompts
    failed = {(one.text, one.reason) for entries in of.failed.values() for one in entries}
    there = bool(shown.findings or shown.figures or shown.tables)
    named = ", ".join(group) if any(group) else ""
    section = Section(
        name=_free(slug("-".join(filter(None, (of.label, *group)))), taken),
        title=of.label,
        about=page.about,
        paper=named,
        state="done" if there else "not run",
        reason="" if there else _why_nothing(shares),
        findings=shown.findings,
        figures=shown.figures,
        tables=shown.tables,
        dropped=[
            (of.label, one) for one in (*left_out, *(one for one in more if (one.text, one.reason) not in failed))
        ],
        settings=_settings(of.run, of.plan),
    )
    return section, shown


def _across(page: MethodPage, group: Sequence[str], kept: list[Any], run: BatchRun, taken: set[str]) -> Section:
    assert page.across is not None
    shown = page.across(kept)
    return Section(
        name=_free(slug("-".join(filter(None, ("all", *group)))), taken),
        title="All data sets",
        about=page.about,
        paper=", ".join(filter(None, group)),
        state="done",
        findings=shown.findings,
        figures=shown.figures,
        tables=shown.tables,
        settings=run.manifest.config["settings"],
    )


def _why_nothing(shares: Sequence[Share]) -> str:
    """Why a section has no result."""
    open_, prompts = sum(share.open for share in shares), sum(share.prompts for share in shares)
    if not prompts:
        return "No prompt of this data set was left in planning."
    reasons = sum((Counter(share.dropped) for share in shares), Counter())
    parts = [f"{reason}: {count}" for reason, count in reasons.most_common()]
    failed = sum(share.failed for share in shares)
    parts += [f"failed: {failed}"] if failed else []
    so_far = f" So far {'; '.join(parts)}." if parts else ""
    if open_:
        return f"No prompt is done yet, {open_:,} of {prompts:,} are open.{so_far}"
    return f"No prompt has a result ({'; '.join(parts)})." if parts else "No result could be read."


def _states(run: BatchRun, shares: Sequence[Share]) -> Any:
    import pandas as pd

    return pd.DataFrame(
        [
            {"data": share.data}
            | ({run.variant_name: share.variant} if run.variant_name else {})
            | {"prompts": share.prompts, "done": share.done, "left out": sum(share.dropped.values())}
            | {"failed": share.failed, "open": share.open}
            for share in shares
        ]
    )


def _left_out(run: BatchRun, shares: Sequence[Share]) -> Any:
    """Reasons for which prompts were left out, in planning and by the method."""
    import pandas as pd

    named = run.variant_name
    rows = [
        {"data": plan.name} | ({named: "all"} if named else {}) | {"when": "in planning", "why": why, "prompts": count}
        for plan in run.manifest.data
        for why, count in plan.dropped.items()
    ]
    rows += [
        {"data": share.data}
        | ({named: share.variant} if named else {})
        | {"when": "by the method", "why": why, "prompts": count}
        for share in shares
        for why, count in share.dropped.items()
    ]
    return pd.DataFrame(rows)


def _settings(run: BatchRun, plan: DataPlan) -> dict[str, Any]:
    """What made a section: the data set as it was drawn, what was measured over it, and the method's settings."""
    entry = next(entry for entry in run.manifest.config["data"] if entry["name"] == plan.name)
    prepared = {
        name: f"{len(value)} numbers" if isinstance(value, list) and len(value) > _LONGEST else value
        for name, value in plan.prepared.items()
    }
    found: dict[str, Any] = {"data": {**entry, "kind": plan.kind, "prompts in all": plan.prompts}}
    if plan.skipped:
        found["data"]["bad rows skipped"] = len(plan.skipped)
    if prepared:
        found["measured over all prompts"] = prepared
    return found | {"settings": run.manifest.config["settings"]}


def _variants(run: BatchRun) -> str:
    """``"3 streams: resid, mlp, attn"``; of a single one ``"stream resid"``."""
    names = [name for name in run.variants if name]
    if not names:
        return ""
    if len(names) == 1:
        return f"{run.variant_name} {names[0]}"
    return f"{len(names)} {run.variant_name}s: {', '.join(names)}"


def _labels(run: BatchRun) -> Mapping[str, str]:
    """What data sets are called: their names, of files the file's, unless two have the same."""
    short = {plan.name: Path(plan.name).name or plan.name for plan in run.manifest.data}
    counts = Counter(short.values())
    return {name: label if counts[label] == 1 else name for name, label in short.items()}


def _run_file(folder: Path) -> str:
    try:
        return (folder / RUN_FILE).read_text(encoding="utf-8").rstrip()
    except (OSError, ValueError):
        return ""


def _free(name: str, taken: set[str]) -> str:
    """A name that no other section has, nor an element of the page."""
    found, at = name, 2
    while found in taken:
        found, at = f"{name}-{at}", at + 1
    taken.add(found)
    return found
