"""Planning a run: its prompts are drawn, checked against the model and written down, and what all of them must share is
measured once (σ of the noise, the twins), so that afterwards no piece depends on another.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, Any

from kn_lens.batches.checks import check_parts
from kn_lens.batches.config import DataEntry, RunConfig, decisive
from kn_lens.batches.methods import Method, method_named
from kn_lens.batches.prompt_table import DROPPED, PROMPTS, PromptWriter
from kn_lens.batches.source import Source, open_source
from kn_lens.batches.storage.durable import Staged, canonical, stage, sync_folder
from kn_lens.batches.storage.part import FORMAT, DataPlan, Manifest
from kn_lens.batches.storage.store import Store
from kn_lens.errors import NothingLeft, OutputError, PromptError
from kn_lens.progress import progress_bar
from kn_lens.prompts.prompt import Dropped, Prompt

log = logging.getLogger(__name__)

WINDOW = 1024
"""Prompts that are looked at together; a twin is looked for among so many. Independent of the size of a shard, so that
results are, too."""


def make_plan(folder: Path, config: dict[str, Any], progress: bool = True) -> None:
    """Write the prompts and the manifest of a run into its folder.

    Args:
        folder: Where.
        config: A :class:`~kn_lens.batches.config.RunConfig` as JSON.
        progress: Show a progress bar.

    Raises:
        KnLensError: If the model or the data cannot be loaded or do not suit the method, or nothing is left to do.
    """
    from kn_lens.models.load import load_model

    run = RunConfig.model_validate(config)
    method = method_named(run.method)
    sources = [open_source(entry, run.on_bad_row) for entry in run.data]
    model = load_model(run.model, device=run.device, dtype=run.dtype)
    method.check_model(model, run.settings)
    plans: list[DataPlan] = []

    def write(prompts: IO[bytes], dropped: IO[bytes]) -> None:
        with PromptWriter(prompts, dropped) as writer, progress_bar(None, "plan", "prompt", progress) as bar:
            for entry, source in zip(run.data, sources, strict=True):
                first = plans[-1].first + plans[-1].prompts if plans else 0
                plans.append(_plan_data(model, run, method, entry, source, first, writer, bar))

    staged: list[Staged] = []
    try:
        staged.append(
            stage(
                folder / PROMPTS, lambda file: staged.append(stage(folder / DROPPED, lambda other: write(file, other)))
            )
        )
        manifest = _manifest(run, method, model, plans, staged)
        check_parts(folder, manifest.run)
        for file in staged:
            if not file.place():
                raise OutputError(f"cannot write {file.path}: another process tidied up meanwhile; start the run again")
        sync_folder(folder)
    except BaseException:
        for file in staged:
            file.discard()
        raise
    Store(folder).write_manifest(manifest)


def _manifest(
    run: RunConfig, method: Method, model: Any, plans: Sequence[DataPlan], staged: Sequence[Staged]
) -> Manifest:
    from kn_lens.results import provenance

    if not sum(plan.prompts for plan in plans):
        reasons = sum((Counter(plan.dropped) for plan in plans), Counter())
        told = ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())
        raise PromptError(f"no prompt is left to run: {told or 'the data hold none'}")
    described = run.model_dump(mode="json")
    made_with = {**provenance(model), "threads": run.threads}
    hashes = {file.path.name: file.record.sha256 for file in staged}
    return Manifest(
        format=FORMAT,
        run=_fingerprint(run, made_with["weights_hash"], hashes[PROMPTS], plans),
        config=described,
        variants=list(method.variants(run.settings)),
        data=list(plans),
        prompts_sha256=hashes[PROMPTS],
        dropped_sha256=hashes[DROPPED],
        provenance=made_with,
        host={
            "name": socket.gethostname(),
            "system": platform.platform(),
            "machine": platform.machine(),
            "folder": str(Path.cwd()),
        },
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def _fingerprint(run: RunConfig, weights_hash: str, prompts_sha256: str, plans: Sequence[DataPlan]) -> str:
    """One hash of all that decides results: parts of runs that differ in any of it are told apart by it."""
    told = [decisive(run.model_dump(mode="json")), weights_hash, prompts_sha256]
    told += [[plan.sha256, plan.starts, plan.prepared] for plan in plans]
    return hashlib.sha256(canonical(told)).hexdigest()[:16]


def _plan_data(
    model: Any,
    run: RunConfig,
    method: Method,
    entry: DataEntry,
    source: Source,
    first: int,
    writer: PromptWriter,
    bar: Any,
) -> DataPlan:
    reasons: Counter[str] = Counter()
    blocks = _Blocks(run.shard, method.whole_groups)
    prepared: dict[str, Any] = {}
    cases = method.cases(model, entry, run.settings, run.seed)
    if cases is not None:
        dropped = method.cases_left_out(model, entry, run.settings, run.seed)
        reasons.update(one.reason for one in dropped)
        writer.drop(entry.name, dropped)
        writer.write(entry.name, cases)
        for prompt in cases:
            blocks.add(prompt)
        bar.update(len(cases))
    else:
        preparation = method.prepare(model, run.settings)
        for window in _windows(source.prompts(model, method, run.seed, run.settings), WINDOW):
            batch, swapped, dropped = _usable(model, method, run, window)
            writer.drop(entry.name, dropped)
            reasons.update(one.reason for one in dropped)
            if batch is not None:
                if preparation is not None:
                    preparation.add(batch)
                for prompt in batch.prompts:
                    blocks.add(prompt)
                writer.write(entry.name, batch.prompts, swapped)
            bar.update(len(window))
        prepared = {} if preparation is None or not blocks.count else preparation.values()
    canonical(prepared)  # it must be JSON to the last bit: a resumed run reads it back
    return DataPlan(
        name=entry.name,
        kind=source.kind if cases is None else "edits",
        sha256=source.sha256,
        first=first,
        prompts=blocks.count,
        starts=blocks.starts,
        dropped=dict(reasons.most_common()),
        skipped=list(source.skipped),
        prepared=prepared,
    )


def _usable(
    model: Any, method: Method, run: RunConfig, window: Iterable[Prompt | Dropped]
) -> tuple[Any, Any, list[Dropped]]:
    """The prompts of a window that the method can be asked, as a batch, with their twins; and those that it cannot."""
    from kn_lens.prompts.batch import PromptBatch
    from kn_lens.prompts.tokens import TokenResolver, UnusablePrompt
    from kn_lens.tracing.draw import NO_CUE

    resolver = TokenResolver(model)
    kept, dropped = [], []
    for prompt in window:
        if isinstance(prompt, Dropped):
            dropped.append(prompt)
            continue
        try:
            resolved = resolver.resolve(prompt, single_token=method.targets == "single")
        except UnusablePrompt as error:
            dropped.append(Dropped(text=prompt.text, reason=error.reason, source=prompt.source))
            continue
        if method.asks_for_cues(run.settings) and not resolved.cue_positions:
            dropped.append(Dropped(text=prompt.text, reason=NO_CUE, source=prompt.source))
        else:
            kept.append(resolved)
    if not kept:
        return None, None, dropped
    batch = PromptBatch.from_resolved(model, kept)
    if not method.twins(run.settings):
        return batch, None, dropped
    try:
        swapped = method.find_twins(model, batch, run.settings)
    except NothingLeft as error:
        return None, None, [*dropped, *error.dropped]
    return swapped.batch, swapped, [*dropped, *swapped.batch.dropped]


class _Blocks:
    """Where blocks begin: every so many prompts, or at the next group after so many."""

    def __init__(self, shard: int, whole_groups: bool) -> None:
        self.shard, self.whole_groups = shard, whole_groups
        self.count, self.starts = 0, list[int]()
        self._group: str | None = None

    def add(self, prompt: Prompt) -> None:
        group = prompt.group or prompt.target
        full = not self.starts or self.count - self.starts[-1] >= self.shard
        if full and not (self.whole_groups and group == self._group):
            self.starts.append(self.count)
        self._group = group
        self.count += 1


def _windows(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Parts of ``size``; the last is longer, since the few that are left might find no twin among themselves."""
    rest = iter(items)
    window = list(islice(rest, size))
    while following := list(islice(rest, size)):
        if len(following) < size:
            window += following
        else:
            yield window
            window = following
    if window:
        yield window
