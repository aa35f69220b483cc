"""One piece of a run: read its prompts, compute, and leave a part; a prompt that fails does not take others with it."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.batches.config import RunConfig
from kn_lens.batches.methods import Work, method_named
from kn_lens.batches.prompt_table import PromptReader, Twin
from kn_lens.batches.source import open_source, placed
from kn_lens.batches.storage.part import LeftOut, PartRecord, Task
from kn_lens.batches.storage.store import Store
from kn_lens.errors import ModelError, NothingLeft, OutputError
from kn_lens.prompts.prompt import Dropped, Prompt

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.results import Result

log = logging.getLogger(__name__)

_LONGEST_ERROR = 300


class Tasks:
    """The pieces of a run, as a worker does them.

    Args:
        folder: The run's.
        load: Gives the model; called when the first piece is done.
    """

    def __init__(self, folder: Path, load: Callable[[], Any]) -> None:
        self.store = Store(folder)
        self.manifest = self.store.manifest()
        self.config = RunConfig.model_validate(self.manifest.config)
        self.method = method_named(self.config.method)
        self._load = load
        base = Path(self.manifest.host["folder"])
        self._data = [entry.model_copy(update={"name": placed(entry.name, base)}) for entry in self.config.data]
        self._prompts = PromptReader(folder, self.manifest.prompts_sha256)

    @cached_property
    def model(self) -> Any:
        """The model, the same as the run was planned with.

        Raises:
            ModelError: If its weights are others, or a method would find other cases than were planned.
        """
        from kn_lens.models.hashing import weights_hash

        model = self._load()
        here, there = weights_hash(model), self.manifest.provenance["weights_hash"]
        if here != there:
            raise ModelError(
                f"the weights of {self.config.model} are not those that this run was planned with (hash {here[:12]}, "
                f"there {there[:12]}); bring the model back, or begin a new run in another folder"
            )
        device, planned = str(next(model.parameters()).device), str(self.manifest.provenance["device"])
        if device.partition(":")[0] != planned.partition(":")[0]:
            raise ModelError(
                f"this run was planned on the device {planned}, and this worker computes on {device}: its pieces would "
                f"not belong together; go on where there is such a device, or begin a new run in another folder"
            )
        for entry, plan in zip(self._data, self.manifest.data, strict=True):
            if plan.kind == "edits" and open_source(entry, self.config.on_bad_row).sha256 != plan.sha256:
                raise ModelError(f"the data {plan.name} are not those that this run was planned with; bring them back")
        return model

    def do(self, number: int, divisor: int = 1) -> PartRecord:
        """Compute a piece and write its part.

        Args:
            number: Of the task.
            divisor: Of the memory budget: above 1 where the piece has killed its worker before.

        Raises:
            OutputError: If the part cannot be written, or the prompts cannot be read.
            ModelError: If the model is another than the run was planned with.
        """
        began = time.monotonic()
        task = self.store.tasks()[number]
        model = self.model
        found = self._prompts.read(task.numbers)
        piece = _Piece(self._work(task, found, divisor), [prompt for prompt, _ in found])
        outcome = self._compute(model, piece)
        outcome.failed.sort(key=lambda one: one[0])
        outcome.dropped.sort(key=lambda one: one[0])

        def named(left_out: Sequence[tuple[int, str]]) -> list[LeftOut]:
            return [LeftOut(prompt=task.first + at, text=found[at][0].text, reason=why) for at, why in left_out]

        return self.store.write_part(
            task,
            outcome.table(task.first),
            outcome.joined(self.method),
            prompts=len(found),
            done=len(found) - len(outcome.dropped) - len(outcome.failed),
            dropped=named(outcome.dropped),
            failed=named(outcome.failed),
            seconds=time.monotonic() - began,
            worker=f"{socket.gethostname()}:{os.getpid()}",
        )

    def _work(self, task: Task, found: Sequence[tuple[Prompt, Twin | None]], divisor: int) -> Work:
        plan = self.manifest.data[task.data]
        batch = swaps = None
        if plan.kind != "edits":
            batch, swaps = _posed(self.model, [prompt for prompt, _ in found], [twin for _, twin in found])
        return Work(
            settings=self.config.settings,
            variant=task.variant,
            seed=self.config.seed,
            memory_budget=self.config.memory_budget / divisor,
            prepared=plan.prepared,
            data=self._data[task.data],
            rows=task.rows,
            batch=batch,
            swaps=swaps,
        )

    def _compute(self, model: Any, piece: _Piece) -> _Outcome:
        """What comes of a piece; one that fails is done again in halves, until the prompt that fails is alone."""
        try:
            result = self.method.compute(model, piece.work)
        except NothingLeft as error:
            return _Outcome(dropped=_reasons(range(len(piece)), piece.prompts, error.dropped, piece.offset))
        except OutputError:
            raise
        except Exception as error:
            if "CUDA error" in str(error):  # of the device, not of a prompt; nothing that follows would be right
                raise ModelError(f"the GPU failed ({' '.join(str(error).split())[:_LONGEST_ERROR]})") from error
            parts = piece.halves(self.method.whole_groups)
            if not parts:
                said = " ".join(str(error).split())[:_LONGEST_ERROR] or type(error).__name__
                reason = said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"
                return _Outcome(failed=[(piece.offset + at, reason) for at in range(len(piece))])
            log.info("a piece of %d prompts failed (%s); it is done again in halves", len(piece), error)
            first, second = (self._compute(model, part) for part in parts)
            return first.and_(second)
        done = set(self.method.done(result, piece.work))
        left = [at for at in range(len(piece)) if at not in done]
        reasons = _reasons(left, piece.prompts, getattr(result, "dropped", ()), piece.offset)
        failed = [one for one in reasons if self.method.is_failure(one[1])]
        return _Outcome(
            results=[result],
            frames=[(piece.offset, self.method.frame(result, piece.work))],
            dropped=[one for one in reasons if one not in failed],
            failed=failed,
        )


@dataclass(frozen=True)
class _Piece:
    """Prompts that are computed together: a task's, or a part of them from ``offset`` on."""

    work: Work
    prompts: Sequence[Prompt]
    offset: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    def halves(self, whole_groups: bool) -> tuple[_Piece, _Piece] | None:
        """Two pieces of it, no group in both if groups are whole; None of one that cannot be parted."""
        cuts = range(1, len(self))
        if whole_groups:
            groups = [prompt.group or prompt.target for prompt in self.prompts]
            cuts = [at for at in cuts if groups[at] != groups[at - 1]]
        if not cuts:
            return None
        cut = min(cuts, key=lambda at: abs(at - len(self) / 2))
        return self._part(0, cut), self._part(cut, len(self))

    def _part(self, start: int, stop: int) -> _Piece:
        work, some = self.work, list(range(start, stop))
        swaps = work.swaps
        if swaps is not None:
            swaps = replace(
                swaps,
                batch=swaps.batch.select(some),
                **{name: tuple(getattr(swaps, name)[at] for at in some) for name in ("ids", "texts", "answers")},
            )
        batch = None if work.batch is None else work.batch.select(some)
        part = replace(work, rows=work.rows[start:stop], batch=batch, swaps=swaps)
        return _Piece(part, self.prompts[start:stop], self.offset + start)


@dataclass
class _Outcome:
    """What comes of a piece: results, tables with their offset within the task, and prompts left out with reasons."""

    results: list[Result] = field(default_factory=list)
    frames: list[tuple[int, pd.DataFrame]] = field(default_factory=list)
    dropped: list[tuple[int, str]] = field(default_factory=list)
    failed: list[tuple[int, str]] = field(default_factory=list)

    def and_(self, other: _Outcome) -> _Outcome:
        return _Outcome(
            self.results + other.results,
            self.frames + other.frames,
            self.dropped + other.dropped,
            self.failed + other.failed,
        )

    def table(self, first: int) -> pd.DataFrame | None:
        """The rows of all, by the numbers that prompts have within the run."""
        import pandas as pd

        if not self.frames:
            return None
        numbered = [frame.assign(prompt=frame["prompt"] + first + offset) for offset, frame in self.frames]
        return numbered[0] if len(numbered) == 1 else pd.concat(numbered, ignore_index=True)

    def joined(self, method: Any) -> Result | None:
        """One result of all."""
        if not self.results:
            return None
        return self.results[0] if len(self.results) == 1 else method.join(self.results)


def _posed(model: Any, prompts: Sequence[Prompt], twins: Sequence[Twin | None]) -> tuple[Any, Any]:
    """Prompts as a batch, with the twins that were found for them in planning."""
    from kn_lens.prompts.batch import PromptBatch
    from kn_lens.tracing.swap import Swapped

    batch = PromptBatch.from_prompts(model, prompts)
    found = [twin for twin in twins if twin is not None]
    if len(found) < len(prompts):
        return batch, None
    return batch, Swapped(
        batch,
        tuple(twin.ids for twin in found),
        tuple(twin.text for twin in found),
        tuple(twin.answer for twin in found),
    )


def _reasons(
    left: Sequence[int], prompts: Sequence[Prompt], dropped: Sequence[Dropped], offset: int
) -> list[tuple[int, str]]:
    """Why each of some prompts was left out, by what the method says of a prompt of that text, in order."""
    said = list(dropped)
    found = []
    for at in left:
        match = next((one for one in said if one.text == prompts[at].text), None)
        if match is not None:
            said.remove(match)
        found.append((offset + at, "left out" if match is None else match.reason))
    return found
