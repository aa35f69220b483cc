"""Reading a run, finished or in progress: how far it is, its tables, its results. Reading never writes."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.batches.config import RunConfig
from kn_lens.batches.left_out import all_left_out
from kn_lens.batches.methods import method_named
from kn_lens.batches.methods.method import with_texts
from kn_lens.batches.prompt_table import PromptReader, dropped_rows
from kn_lens.batches.status import Status, status_of
from kn_lens.batches.storage.lock import holder_of
from kn_lens.batches.storage.part import LeftOut, Manifest, PartRecord, Task
from kn_lens.batches.storage.store import Store
from kn_lens.errors import OutputError, SettingsError, near_matches
from kn_lens.prompts.prompt import Dropped, Prompt

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.results import Result

log = logging.getLogger(__name__)

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

    def status(self, records: Mapping[int, PartRecord] | None = None) -> Status:
        """How far it is, by what is on disk.

        Args:
            records: The store's at one moment; by default as they are now.
        """
        records = self.store.records() if records is None else records
        return status_of(self.manifest, self.store.tasks(), records, holder_of(self.folder))

    def failures(self, most: int | None = None, records: Mapping[int, PartRecord] | None = None) -> list[str]:
        """A line for each prompt that failed, with what it was and why; of many the first ``most``."""
        found = [one for _, record in self._finished(records) for one in record.failed]
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
                whole = self.store.whole_table(task.number)
                if whole is not None and whole[1] is not None:
                    yield self._named(task, whole[1])

    def frame(self) -> pd.DataFrame:
        """All of :meth:`tables`.

        Raises:
            OutputError: If there is nothing yet.
        """
        import pandas as pd

        found = list(self.tables())
        if not found:
            status = f"`kn-lens status {shlex.quote(str(self.folder))}`"
            raise OutputError(f"{self.folder} holds no finished prompt yet: {status}")
        return pd.concat(found, ignore_index=True)

    def prompt_tables(self, records: Mapping[int, PartRecord] | None = None) -> Iterator[pd.DataFrame]:
        """A row for each prompt and variant, some pieces at a time: text, answer, what became of it, and, where the
        method has such, its numbers (a trace's metrics of both runs).

        Args:
            records: The store's at one moment; by default as they are now.
        """
        reader = PromptReader(self.folder, self.manifest.prompts_sha256)
        records = self.store.records() if records is None else records
        numbers_of_none = self._numbers_of_none(records)
        rows: list[dict[str, Any]] = []
        measured: list[pd.DataFrame] = []
        block, prompts = range(0), []
        for task in self.store.tasks():
            if task.numbers != block:  # the variants of a block follow each other
                block = task.numbers
                prompts = [prompt for prompt, _ in reader.read(block)]
            record, result = self._whole(task, records.get(task.number), read=numbers_of_none is not None)
            first = len(rows)
            rows += self._rows(task, prompts, record)
            if result is not None and numbers_of_none is not None:
                done = [at for at in range(first, len(rows)) if rows[at]["state"] == DONE]
                frame = result.prompts_frame()[list(numbers_of_none.columns)]
                measured.append(frame.set_axis(done, axis="index"))
            if len(rows) >= _ROWS:
                yield _prompts_table(rows, measured, numbers_of_none)
                rows, measured = [], []
        if rows:
            yield _prompts_table(rows, measured, numbers_of_none)

    def prompts(self) -> pd.DataFrame:
        """All of :meth:`prompt_tables`."""
        import pandas as pd

        return pd.concat(list(self.prompt_tables()), ignore_index=True)

    def result(self, data: str | None = None, variant: str | None = None) -> Result:
        """The finished prompts of a data set and variant as one result, as the public function returns it.

        Args:
            data: A name of :attr:`data`; may be left out where there is one.
            variant: One of :attr:`variants`; likewise.

        Its provenance says of how many ``parts`` it is, and how many prompts are ``open`` and ``failed``: of these it
        holds nothing, and a warning tells so. What was left out in planning comes first in its ``dropped``.

        Raises:
            SettingsError: If there is no such data set or variant, or several and none is named.
            OutputError: If none of its prompts is finished, or a part is damaged.
        """
        at = _chosen("data set", "data", self.data, data)
        name = self.variants[_chosen(self.variant_name or "variant", "variant", self.variants, variant)]
        results: list[Result] = []
        left_out: list[Dropped] = []
        prompts, failed = self.manifest.data[at].prompts, 0
        still_open = prompts
        for task, record in self._finished():
            if task.data != at or task.variant != name:
                continue
            record, part = self._whole(task, record)
            if record is None or (part is None and record.done):  # computed again just now, or damaged
                continue
            still_open -= record.prompts
            failed += len(record.failed)
            said = [*record.dropped, *(one for one in record.failed if self.method.is_failure(one.reason))]
            left_out += all_left_out(said, getattr(part, "dropped", ()), partial(self.without_result, task))
            if part is not None:
                results.append(part)
        if not results:
            raise OutputError(f"no prompt of {self.data[at]}{f', {name}' if name else ''} is finished in {self.folder}")
        if still_open or failed:
            self._warn(", ".join(filter(None, (self.data[at], name))), prompts, still_open, failed)
        joined: Any = self.method.join(results)
        counts = {"parts": len(results), "open": still_open, "failed": failed}
        joined = replace(joined, provenance={**joined.provenance, **counts})
        if not hasattr(joined, "dropped"):
            return joined
        planned = [
            Dropped(text=row["text"], reason=row["reason"], source=row["source"])
            for row in dropped_rows(self.folder)
            if row["data"] == self.data[at]
        ]
        return replace(joined, dropped=(*planned, *left_out))

    def without_result(self, task: Task, said: Sequence[LeftOut]) -> list[Dropped]:
        """What a record says of prompts, with their sources.

        Raises:
            OutputError: If the prompts cannot be read.
        """
        found = self._prompts.rows(task.numbers) if said else []
        return [
            Dropped(text=one.text, reason=one.reason, source=found[one.prompt - task.first]["source"]) for one in said
        ]

    def _warn(self, what: str, prompts: int, still_open: int, failed: int) -> None:
        """Tell that a result is not of all prompts."""
        told = [f"{still_open} of {prompts} prompts are open"] if still_open else []
        told += [f"{failed}{'' if still_open else f' of {prompts} prompts'} failed"] if failed else []
        log.warning("%s: %s: %s; the result is of the others", self.folder, what, ", ".join(told))

    @cached_property
    def _prompts(self) -> PromptReader:
        return PromptReader(self.folder)

    def _whole(self, task: Task, record: PartRecord | None, *, read: bool = True) -> tuple[PartRecord | None, Any]:
        """The record of a piece and its result, which belong together; the one given if no result is to be read."""
        if record is None or not record.done or not read:
            return record, None
        return self.store.whole(task.number) or (None, None)

    def _finished(self, records: Mapping[int, PartRecord] | None = None) -> Iterator[tuple[Task, PartRecord]]:
        records = self.store.records() if records is None else records
        tasks = self.store.tasks()
        for number in sorted(records):
            yield tasks[number], records[number]

    def _head(self, task: Task) -> dict[str, str]:
        """The first columns of every table: the data set and, where the method is repeated, the variant."""
        variant = {self.variant_name: task.variant} if self.variant_name else {}
        return {"data": self.manifest.data[task.data].name, **variant}

    def _named(self, task: Task, table: pd.DataFrame) -> pd.DataFrame:
        named = self._head(task)
        rest = table.drop(columns=[name for name in named if name in table.columns])
        for at, (name, value) in enumerate(named.items()):
            rest.insert(at, name, value)
        return rest

    def _rows(self, task: Task, prompts: Sequence[Prompt], record: PartRecord | None) -> list[dict[str, Any]]:
        """A row for each prompt of a piece."""
        head = self._head(task)
        rows = [
            {**head, "prompt": number, "text": prompt.text, **{name: getattr(prompt, name) for name in _SHOWN}}
            | {"state": OPEN if record is None else DONE, "reason": None}
            for number, prompt in zip(task.numbers, prompts, strict=True)
        ]
        for state, left_out in () if record is None else ((DROPPED, record.dropped), (FAILED, record.failed)):
            for one in left_out:
                rows[one.prompt - task.first] |= {"state": state, "reason": one.reason}
        return rows

    def _numbers_of_none(self, records: Mapping[int, PartRecord]) -> pd.DataFrame | None:
        """The columns of the method's numbers of prompts, without rows: each piece has them, whatever became of it."""
        tasks = self.store.tasks()
        for number, record in records.items():
            _, result = self._whole(tasks[number], record)
            if result is not None:
                numbers = getattr(result, "prompts_frame", None)
                frame = None if numbers is None else numbers().iloc[:0]
                return None if frame is None else frame[[name for name in frame.columns if name not in _KNOWN]]
        return None


_SHOWN = ("target", "foil", "group", "source")
_KNOWN = ("prompt", "text", *_SHOWN, "state", "reason")
_ROWS = 4096
"""Of a table of prompts, at least: small pieces share one."""


def _prompts_table(
    rows: list[dict[str, Any]], measured: list[pd.DataFrame], numbers_of_none: pd.DataFrame | None
) -> pd.DataFrame:
    """A table of prompts; ``measured`` are the numbers of those that are done, by their rows."""
    import pandas as pd

    table = pd.DataFrame(rows)
    if numbers_of_none is not None:
        table = table.join(pd.concat(measured) if measured else numbers_of_none)
    return with_texts(table)


def _chosen(what: str, argument: str, known: list[str], name: str | None) -> int:
    if name is None:
        if len(known) == 1:
            return 0
        raise SettingsError(f"the run has several {what}s: say which, {argument}={known[0]!r}; of {', '.join(known)}")
    if name not in known:
        raise SettingsError(f"the run has no {what} {name!r}.{near_matches(name, known)} It has {', '.join(known)}")
    return known.index(name)
