"""How far a run is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kn_lens.batches.storage.part import Manifest, PartRecord, Task


@dataclass(frozen=True, kw_only=True)
class Share:
    """How far the run is with one data set and variant.

    Attributes:
        data, variant: Names.
        prompts: All of them.
        done: Those that the method answered for.
        dropped: Those that it left out, by reason.
        failed: Those at which it failed.
    """

    data: str
    variant: str
    prompts: int
    done: int
    dropped: dict[str, int]
    failed: int

    @property
    def open(self) -> int:
        """Prompts that are still to be computed."""
        return self.prompts - self.done - sum(self.dropped.values()) - self.failed


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a run is.

    Attributes:
        shares: By data set and variant.
        pieces, finished: How many pieces there are, and are finished.
        seconds: That workers spent on the finished ones.
        holder: The process that runs it now (``"host, process 123, since …"``), or None.
    """

    shares: tuple[Share, ...]
    pieces: int
    finished: int
    seconds: float
    holder: str | None

    @property
    def complete(self) -> bool:
        """Whether every piece is finished."""
        return self.finished == self.pieces

    @property
    def failed(self) -> int:
        """Prompts at which the method failed."""
        return sum(share.failed for share in self.shares)


def status_of(
    manifest: Manifest, tasks: Sequence[Task], records: Mapping[int, PartRecord], holder: str | None
) -> Status:
    """How far a run is by its records; ``holder`` is the process that runs it."""
    done: Counter[tuple[int, str]] = Counter()
    failed: Counter[tuple[int, str]] = Counter()
    dropped = {(data, variant): Counter[str]() for data in range(len(manifest.data)) for variant in manifest.variants}
    for number, record in records.items():
        task = tasks[number]
        key = task.data, task.variant
        done[key] += record.done
        failed[key] += len(record.failed)
        dropped[key].update(one.reason for one in record.dropped)
    shares = [
        Share(
            data=manifest.data[key[0]].name,
            variant=key[1],
            prompts=manifest.data[key[0]].prompts,
            done=done[key],
            dropped=dict(reasons.most_common()),
            failed=failed[key],
        )
        for key, reasons in dropped.items()
    ]
    return Status(
        shares=tuple(shares),
        pieces=len(tasks),
        finished=len(records),
        seconds=sum(record.seconds for record in records.values()),
        holder=holder,
    )
