"""Reading a run, finished or in progress: how far it is, its tables, its results. Reading never writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.batches.config import RunConfig
from kn_lens.batches.lock import holder_of
from kn_lens.batches.methods import method_named
from kn_lens.batches.methods.method import with_texts
from kn_lens.batches.part import Manifest, PartRecord, Task
from kn_lens.batches.prompt_table import PromptReader, dropped_rows
from kn_lens.batches.status import Share, Status
from kn_lens.batches.store import Store
from kn_lens.errors import OutputError, SettingsError, near_matches
from kn_lens.prompts.prompt import Dropped

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.results import Result

DONE, DROPPED, FAILED, OPEN = "done", "left out", "failed", "open"
"""What has become of a prompt."""


class BatchRun:
    """A run in a folder.

    Args:
        folder: The run's.

    Raises:
        OutputError: If it holds no run, a damaged one, or one of a newer kn_lens.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.store = Store(self.folder)
        self.manifest: Manifest = self.store.manifest()
        self.config = RunConfig.model_validate(self.manifest.config)
        self.method = method_named(self.config.method)

    def __repr__(self) -> str:
        status = self.status()
        return f"BatchRun({str(self.folder)!r}: {self.config.method}, {status.finished} of {status.pieces} pieces)"

    @property
    def data(self) -> list[str]:
        """Names of the data sets."""
        return [plan.name for plan in self.manifest.data]

    @property
    def variants(self) -> list[str]:
        """What the method is repeated over; ``[""]`` where it is not."""
        return list(self.manifest.variants)

    @property
    def variant_name(self) -> str:
        """What a variant is: ``"stream"``, ``"site"``, ``"editor"`` …"""
        return self.method.variant_name

    def status(self) -> Status:
        """How far it is, by what is on disk."""
        records = self.store.records()
        counts = {
            (data, variant): [0, Counter[str](), 0]
            for data in range(len(self.manifest.data))
            for variant in self.variants
        }
        tasks = self.store.tasks()
        for number, record in records.items():
            task = tasks[number]
            entry: Any = counts[task.data, task.variant]
            entry[0] += record.done
            entry[1].update(one.reason for one in record.dropped)
            entry[2] += len(record.failed)
        shares = [
            Share(
                data=self.manifest.data[data].name,
                variant=variant,
                prompts=self.manifest.data[data].prompts,
                done=done,
                dropped=dict(dropped.most_common()),
                failed=failed,
            )
            for (data, variant), (done, dropped, failed) in counts.items()
        ]
        return Status(
            shares=tuple(shares),
            pieces=len(tasks),
            finished=len(records),
            seconds=sum(record.seconds for record in records.values()),
            holder=holder_of(self.folder),
        )

    def failures(self, most: int | None = None) -> list[str]:
        """A line for each prompt that failed, with what it was and why; of many the first ``most``."""
        found = [one for _, record in self._finished() for one in record.failed]
        told = [f"prompt {one.prompt}, {one.text!r}: {one.reason}" for one in found[:most]]
        more = len(found) - len(told)
        return [*told, f"and {more} more"] if more else told

    def tables(self, records: Mapping[int, PartRecord] | None = None) -> Iterator[pd.DataFrame]:
        """The tidy table, a piece at a time in the order of the pieces; ``data`` and the variant are its first columns.

        ``prompt`` is the number of the prompt within the run: :meth:`prompts` has its text.

        Args:
            records: The store's at one moment; by default as they are now.
        """
        for task, record in self._finished(records):
            if record.files:
                table = self.store.table(task.number)
                if table is not None:
                    yield self._named(task, table)

    def frame(self) -> pd.DataFrame:
        """All of :meth:`tables`.

        Raises:
            OutputError: If there is nothing yet.
        """
        import pandas as pd

        found = list(self.tables())
        if not found:
            raise OutputError(f"{self.folder} holds no finished prompt yet: `kn-lens status {self.folder}`")
        return pd.concat(found, ignore_index=True)

    def prompt_tables(self, records: Mapping[int, PartRecord] | None = None) -> Iterator[pd.DataFrame]:
        """A row for each prompt and variant, a piece at a time: text, answer, what became of it, and, where the method
        has such, its numbers (a trace's metrics of both runs).

        Args:
            records: The store's at one moment; by default as they are now.
        """
        import pandas as pd

        reader = PromptReader(self.folder, self.manifest.prompts_sha256)
        records = self.store.records() if records is None else records
        numbers_of_none = self._numbers_of_none(records)
        for task in self.store.tasks():
            numbers = range(task.first, task.first + len(task.rows))
            record = records.get(task.number)
            rows = [
                {"prompt": number, "text": prompt.text, **{name: getattr(prompt, name) for name in _SHOWN}}
                | {"state": OPEN if record is None else DONE, "reason": None}
                for number, (prompt, _) in zip(numbers, reader.read(numbers), strict=True)
            ]
            for state, left_out in () if record is None else ((DROPPED, record.dropped), (FAILED, record.failed)):
                for one in left_out:
                    rows[one.prompt - task.first] |= {"state": state, "reason": one.reason}
            table = self._named(task, pd.DataFrame(rows))
            if numbers_of_none is not None:
                table = self._with_numbers(task, record, table, numbers_of_none)
            yield with_texts(table)

    def prompts(self) -> pd.DataFrame:
        """All of :meth:`prompt_tables`."""
        import pandas as pd

        return pd.concat(list(self.prompt_tables()), ignore_index=True)

    def result(self, data: str | None = None, variant: str | None = None) -> Result:
        """The finished prompts of a data set and variant as one result, as the public function returns it.

        Args:
            data: A name of :attr:`data`; may be left out where there is one.
            variant: One of :attr:`variants`; likewise.

        Raises:
            SettingsError: If there is no such data set or variant, or several and none is named.
            OutputError: If none of its prompts is finished, or a part is damaged.
        """
        at = _chosen("data set", "data", self.data, data)
        name = self.variants[_chosen(self.variant_name or "variant", "variant", self.variants, variant)]
        results: list[Result] = []
        left_out: list[Dropped] = []
        for task, record in self._finished():
            if task.data != at or task.variant != name:
                continue
            part = self.store.result(task.number) if record.done else None
            if part is not None:
                results.append(part)
            elif record.dropped:
                left_out += self._left_out(task, record)
        if not results:
            raise OutputError(f"no prompt of {self.data[at]}{f', {name}' if name else ''} is finished in {self.folder}")
        joined: Any = self.method.join(results)
        planned = [
            Dropped(text=row["text"], reason=row["reason"], source=row["source"])
            for row in dropped_rows(self.folder)
            if row["data"] == self.data[at]
        ]
        return replace(joined, dropped=(*planned, *joined.dropped, *left_out)) if hasattr(joined, "dropped") else joined

    def _left_out(self, task: Task, record: PartRecord) -> list[Dropped]:
        """What a part left out that has no result, which else says so itself."""
        found = PromptReader(self.folder).read(range(task.first, task.first + len(task.rows)))
        return [
            Dropped(text=one.text, reason=one.reason, source=found[one.prompt - task.first][0].source)
            for one in record.dropped
        ]

    def _finished(self, records: Mapping[int, PartRecord] | None = None) -> Iterator[tuple[Task, PartRecord]]:
        records = self.store.records() if records is None else records
        tasks = self.store.tasks()
        for number in sorted(records):
            yield tasks[number], records[number]

    def _named(self, task: Task, table: pd.DataFrame) -> pd.DataFrame:
        named = {"data": self.manifest.data[task.data].name}
        if self.variant_name:
            named[self.variant_name] = task.variant
        rest = table.drop(columns=[name for name in named if name in table.columns])
        for at, (name, value) in enumerate(named.items()):
            rest.insert(at, name, value)
        return rest

    def _numbers_of_none(self, records: Mapping[int, PartRecord]) -> pd.DataFrame | None:
        """The columns of the method's numbers of prompts, without rows: each piece has them, whatever became of it."""
        for number, record in records.items():
            result = self.store.result(number) if record.done else None
            if result is not None:
                numbers = getattr(result, "prompts_frame", None)
                frame = None if numbers is None else numbers().iloc[:0]
                return None if frame is None else frame[[name for name in frame.columns if name not in _KNOWN]]
        return None

    def _with_numbers(
        self, task: Task, record: PartRecord | None, table: pd.DataFrame, numbers_of_none: pd.DataFrame
    ) -> pd.DataFrame:
        result: Any = self.store.result(task.number) if record is not None and record.done else None
        if result is None:
            return table.join(numbers_of_none)
        frame = result.prompts_frame()[list(numbers_of_none.columns)]
        return table.join(frame.set_index(table.index[(table["state"] == DONE).to_numpy()]))


_SHOWN = ("target", "foil", "group", "source")
_KNOWN = ("prompt", "text", *_SHOWN, "state", "reason")


def _chosen(what: str, argument: str, known: list[str], name: str | None) -> int:
    if name is None:
        if len(known) == 1:
            return 0
        raise SettingsError(f"the run has several {what}s: say which, {argument}={known[0]!r}; of {', '.join(known)}")
    if name not in known:
        raise SettingsError(f"the run has no {what} {name!r}.{near_matches(name, known)} It has {', '.join(known)}")
    return known.index(name)
