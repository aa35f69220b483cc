"""What runs in the process of a worker, whatever engine started it."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from kn_lens.batches.engines import sharing
from kn_lens.errors import KnLensError

if TYPE_CHECKING:
    from kn_lens.batches.storage.part import PartRecord

READY, DONE, FAILED, LOG = "ready", "done", "failed", "log"
"""What a worker on this machine says of itself; each comes with a value."""
HELD_BACK = (signal.SIGINT, signal.SIGTERM)
"""Signals that workers do not heed."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker must know.

    Attributes:
        folder: The run's.
        tasks: Dotted name of the class that does tasks, as :data:`kn_lens.batches.engines.engine.TASKS`.
        threads: Of this worker.
        device: Where its model is to live; None: where the run's configuration says.
        shared: Folder of the model that workers share; None: each has its own.
    """

    folder: Path
    tasks: str
    threads: int = 1
    device: str | None = None
    shared: Path | None = None


class Worker:
    """Does tasks of a run one after another, with one model."""

    def __init__(self, job: Job) -> None:
        self._tasks = named(job.tasks)(job.folder, lambda: load(job))
        getattr(self._tasks, "model", None)  # a worker that cannot hold the model dies here, not over a task

    def do(self, number: int, divisor: int) -> PartRecord:
        """Do a task with its memory budget divided by ``divisor``."""
        return self._tasks.do(number, divisor)


def load(job: Job) -> Any:
    """The model of a run, for this worker.

    Raises:
        KnLensError: As :func:`kn_lens.load_model`.
    """
    import torch

    from kn_lens.batches.source import placed
    from kn_lens.batches.storage.store import Store
    from kn_lens.models.load import load_model

    torch.set_num_threads(job.threads)  # a process that Ray has used before may have read its environment
    manifest = Store(job.folder).manifest()
    config = manifest.config
    name = placed(config["model"], Path(manifest.host["folder"]))
    device = job.device or config["device"]

    def fresh() -> Any:
        return load_model(name, device=device, dtype=config["dtype"])

    return fresh() if job.shared is None else sharing.load_shared(job.shared, fresh)


def named(dotted: str) -> Any:
    """What ``"package.module:name"`` names."""
    module, name = dotted.split(":")
    return getattr(importlib.import_module(module), name)


@contextlib.contextmanager
def environment_of(threads: int) -> Iterator[None]:
    """The environment in which numeric libraries take so many threads, as long as this context lasts."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class Failure:
    """An exception on its way to another process, where it is raised again."""

    def __init__(self, error: Exception) -> None:
        self._trace = "".join(traceback.format_exception(error))
        try:
            self._pickled = pickle.dumps(error)
            pickle.loads(self._pickled)
        except Exception:  # one that cannot travel: its kind if it is ours, its words in any case
            ours = [kind for kind in type(error).__mro__ if kind.__module__ == KnLensError.__module__]
            told = ours[0](str(error)) if ours else RuntimeError(f"{type(error).__name__}: {error}")
            self._pickled = pickle.dumps(told)

    def again(self) -> Exception:
        """The exception; one that is no KnLensError has the other process' traceback as its cause."""
        error = pickle.loads(self._pickled)
        if not isinstance(error, KnLensError):
            error.__cause__ = RuntimeError(f"in a worker:\n{self._trace}")
        return error


def serve(pipe: Connection, job: Job) -> None:
    """Do what comes through a pipe, until it says None or closes: a worker of the local engine."""
    lock = _settle(pipe, job.shared)

    def say(kind: str, value: Any = None) -> None:
        with lock:
            pipe.send((kind, value))

    try:
        worker = Worker(job)
        say(READY)
        while (asked := pipe.recv()) is not None:
            say(DONE, worker.do(*asked))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            say(FAILED, Failure(error))


def plan(pipe: Connection, planner: str, folder: Path, config: dict[str, Any], progress: bool) -> None:
    """Plan a run in a process that the local engine started."""
    lock = _settle(pipe)
    try:
        named(planner)(folder, config, progress)
        said: tuple[str, Any] = (DONE, None)
    except Exception as error:
        said = (FAILED, Failure(error))
    with lock, contextlib.suppress(OSError):
        pipe.send(said)


def count_gpus(pipe: Connection) -> None:
    """Say how many CUDA GPUs torch finds; in a process of its own, since importing torch takes long."""
    _settle(pipe)
    import torch

    pipe.send((DONE, torch.cuda.device_count()))


def _settle(pipe: Connection, shared: Path | None = None) -> threading.Lock:
    """Make this process a good child of the one that started it; the lock is for writing into the pipe."""
    # A terminal sends Ctrl-C to every process, a scheduler SIGTERM; the coordinator decides what comes of them.
    for number in HELD_BACK:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
    threading.Thread(target=_end_with_parent, args=(shared,), daemon=True).start()
    # Its own lock is a semaphore of the system, which a killed process leaves behind.
    tqdm.set_lock(threading.RLock())
    lock = threading.Lock()
    logger = logging.getLogger("kn_lens")
    logger.addHandler(_ToParent(pipe, lock))
    logger.propagate = False
    logger.setLevel(logging.INFO)
    return lock


def _end_with_parent(shared: Path | None) -> None:
    """Wait for the parent's end, however it comes, and end this process on the spot."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        if shared is not None:
            with contextlib.suppress(OSError):
                sharing.remove(shared)
        os._exit(1)  # parts are written such that a half-written one is not seen


class _ToParent(logging.Handler):
    """Sends log lines to the coordinator, which knows who is to see them."""

    def __init__(self, pipe: Connection, lock: threading.Lock) -> None:
        super().__init__()
        self._pipe, self._sending = pipe, lock

    def emit(self, record: logging.LogRecord) -> None:
        with self._sending, contextlib.suppress(OSError):
            self._pipe.send((LOG, (record.name, record.levelno, record.getMessage())))
