"""Running a batch: plan it if it is new, hand its pieces to an engine, and keep what comes back.

What is on disk is what is done: a run that was stopped, or that lost its machine, goes on with the pieces that are
missing, and comes to the same tables.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from kn_lens._version import __version__
from kn_lens.batches.checks import RUN_FILE, check_free, check_same, differences, whole_prompts
from kn_lens.batches.config import RunConfig
from kn_lens.batches.engines.engine import Engine, engine_named
from kn_lens.batches.read import BatchRun
from kn_lens.batches.run_file import read_run_file
from kn_lens.batches.storage.durable import write_durably
from kn_lens.batches.storage.lock import RunLock
from kn_lens.batches.storage.part import Manifest, PartRecord
from kn_lens.batches.storage.store import DamagedManifest, Store
from kn_lens.errors import KnLensError, OutputError, SettingsError
from kn_lens.progress import progress_bar

log = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """The run was stopped by the user; what is finished is kept."""


OpenEngine = Callable[[RunConfig], Engine]


def run(
    config: RunConfig | Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    progress: bool = True,
) -> BatchRun:
    """Run a method over data sets, piece by piece; a run that is there goes on.

    Args:
        config: A run file (YAML), or what stands in one, as a mapping.
        out: The run's folder; by default ``runs/NAME`` for a run file ``NAME.yaml``. A mapping needs one.
        engine: ``"local"`` (default): processes on this machine; ``"ray"``: a cluster.
        workers: Pieces at once; by default one for each core.
        address: Of a running Ray cluster; by default Ray is started on this machine.
        progress: Show progress bars.

    Returns:
        The run: its status, tables and results.

    Raises:
        SettingsError: If the configuration is wrong; all of it is told at once.
        OutputError: If the folder is of another run, in use, or cannot be written.
        KnLensError: If the model or the data cannot be loaded, or do not suit the method.
    """
    asked, text = _config_of(config)
    folder = Path(out) if out is not None else _default_folder(config)
    open_engine = partial(engine_named, engine, workers=workers, address=address)
    return _run(folder, asked, text, open_engine, retry_failed=False, progress=progress)


def resume(
    folder: str | os.PathLike[str],
    *,
    engine: str = "local",
    workers: int | None = None,
    address: str | None = None,
    retry_failed: bool = False,
    progress: bool = True,
) -> BatchRun:
    """Go on with a run: damaged parts are computed again, finished ones are kept.

    Args:
        folder: The run's.
        engine: As in :func:`run`, also where it was begun on another one.
        workers: As in :func:`run`.
        address: As in :func:`run`.
        retry_failed: Compute pieces with failed prompts again too.
        progress: Show progress bars.

    Raises:
        OutputError: If the folder holds no run, is in use, or cannot be written.
        KnLensError: As :func:`run`.
    """
    folder = Path(folder)
    store = Store(folder)
    there = (folder / RUN_FILE).is_file()
    if there and not store.exists():  # it was stopped while it was planned
        asked = read_run_file(folder / RUN_FILE)
    else:
        try:
            asked = RunConfig.model_validate(store.manifest().config)
        except DamagedManifest as error:
            if not there:
                raise
            log.warning("%s; the run is planned anew from %s, and its finished parts are kept", error, RUN_FILE)
            asked = read_run_file(folder / RUN_FILE)
        else:
            _tell_edited(folder, store.manifest())
    open_engine = partial(engine_named, engine, workers=workers, address=address)
    return _run(folder, asked, None, open_engine, retry_failed=retry_failed, progress=progress)


def _tell_edited(folder: Path, planned: Manifest) -> None:
    """Say that the run file in a run's folder was changed after planning: a run goes on as it was planned."""
    try:
        differing = differences(planned, read_run_file(folder / RUN_FILE))
    except (KnLensError, OSError):  # it may be gone, or be read from another folder than its data lie in
        return
    if differing:
        log.warning("%s was changed (%s); the run goes on as it was planned", folder / RUN_FILE, differing)


def _config_of(config: Any) -> tuple[RunConfig, str]:
    if isinstance(config, RunConfig):
        return config, json.dumps(config.model_dump(mode="json"), indent=1, ensure_ascii=False)
    if isinstance(config, Mapping):
        asked = RunConfig.model_validate(config)
        return asked, json.dumps(asked.model_dump(mode="json"), indent=1, ensure_ascii=False)
    path = Path(config)
    asked = read_run_file(path)
    return asked, path.read_text(encoding="utf-8")


def _default_folder(config: Any) -> Path:
    if isinstance(config, (str, os.PathLike)):
        return Path("runs") / Path(config).stem
    raise SettingsError("say where the run is kept: kn.run(config, out='runs/traces')")


def _run(
    folder: Path, config: RunConfig, text: str | None, open_engine: OpenEngine, *, retry_failed: bool, progress: bool
) -> BatchRun:
    store = Store(folder)
    new = not folder.exists()
    if not store.exists():
        check_free(folder)  # before a lock is laid into a folder that is not ours
    try:
        _hold_and_run(store, config, text, open_engine, retry_failed=retry_failed, progress=progress)
    except KnLensError as error:
        if new and not store.exists() and not isinstance(error, OutputError):  # nothing that `resume` could take up
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return BatchRun(folder)


def _hold_and_run(
    store: Store, config: RunConfig, text: str | None, open_engine: OpenEngine, *, retry_failed: bool, progress: bool
) -> None:
    folder = store.folder
    with RunLock(folder):
        planned = _planned(store)
        if planned is not None:
            check_same(folder, planned, config)
        with open_engine(config) as engine, _stopping(engine) as stopping:
            if planned is None or not whole_prompts(folder, planned):
                _plan(store, engine, config, text, progress)
                store = Store(folder)
            store.sweep()
            todo = _todo(store, retry_failed=retry_failed, progress=progress)
            _work(store, engine, todo, stopping, progress)
    if stopping.asked:
        raise Interrupted


def _plan(store: Store, engine: Engine, config: RunConfig, text: str | None, progress: bool) -> None:
    """Plan a run, or plan it anew where its manifest or prompts are damaged: parts of another run are not touched."""

    def keep_file() -> None:
        if text is not None:
            raw = text.encode()
            write_durably(store.folder / RUN_FILE, lambda file: file.write(raw))

    fresh = not store.parts.exists()
    if fresh:  # there before the plan, so that `resume` can take up a run that was stopped in planning
        keep_file()
    store.log(f"planned by kn_lens {__version__}")
    engine.plan(store.folder, config.model_dump(mode="json"), progress)
    if not fresh:
        keep_file()


def _planned(store: Store) -> Manifest | None:
    """The manifest, if there is a whole one."""
    try:
        return store.manifest() if store.exists() else None
    except DamagedManifest:
        return None


def _todo(store: Store, *, retry_failed: bool, progress: bool) -> Sequence[int]:
    """Numbers of the pieces to compute: those that are missing, damaged, or, if asked for, hold failed prompts."""
    records = store.rebuild_index()
    again: set[int] = set()
    damaged = False
    with progress_bar(len(records), "check finished parts", "part", progress and bool(records)) as bar:
        for number, record in records.items():
            problem = store.problem(number, record)
            bar.update()
            if problem is not None:
                log.warning("%s; it is computed again", problem)
                store.log(f"{problem}; it is computed again")
                store.remove_part(number)
                damaged = True
                again.add(number)
            elif retry_failed and record.failed:  # what it has is kept until there is something else
                again.add(number)
    if damaged:
        store.rebuild_index()
    return [number for number in range(len(store.tasks())) if number not in records or number in again]


def _work(store: Store, engine: Engine, todo: Sequence[int], stopping: _Stopping, progress: bool) -> None:
    tasks = store.tasks()
    stopping.waits = True
    store.log(f"begins with {len(todo)} of {len(tasks)} pieces, {engine.workers} workers ({engine.name})")
    total = sum(len(task.rows) for task in tasks)
    left = sum(len(tasks[number].rows) for number in todo)
    failed = lost = 0
    with progress_bar(total, store.manifest().config["method"], "prompt", progress, initial=total - left) as bar:
        for outcome in engine.outcomes(store.folder, todo, lambda: stopping.asked):
            if outcome.record is None:
                lost += 1
                store.log(f"piece {outcome.task} could not be computed: {outcome.error}")
                log.error("piece %d could not be computed: %s", outcome.task, outcome.error)
                continue
            store.append_index(outcome.record)
            failed += _tell_failed(store, outcome.record)
            bar.update(outcome.record.prompts)
            if failed or lost:
                bar.set_postfix_str(f"{failed} failed" + (f", {lost} pieces lost" if lost else ""))
    store.log("stopped by the user" if stopping.asked else "ended")


def _tell_failed(store: Store, record: PartRecord) -> int:
    for one in record.failed:
        store.log(f"prompt {one.prompt} failed: {one.text!r}: {one.reason}")
    return len(record.failed)


class _Stopping:
    """Whether the user, or the system, has asked the run to stop; and whether pieces are in hand to wait for."""

    asked = False
    waits = False


@contextmanager
def _stopping(engine: Engine) -> Iterator[_Stopping]:
    """Ctrl-C (or SIGTERM, which schedulers send) ends the run after the pieces in hand; a second one at once."""
    state = _Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if state.asked or not state.waits:
            engine.kill()
            raise KeyboardInterrupt
        state.asked = True
        log.warning("stopping after the pieces in hand; once more stops at once")

    former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield state
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
