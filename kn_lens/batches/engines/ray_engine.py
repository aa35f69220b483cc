"""The Ray engine: actors that hold the model, on this machine or a cluster; parts go by a shared file system."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens._version import __version__
from kn_lens.batches.engines.engine import PLANNER, POLL, TASKS, Outcome, Queue, checked, cores, planning_died
from kn_lens.batches.engines.ray_cluster import connect, import_ray
from kn_lens.batches.engines.worker import Failure, Job, Worker, environment_of, named
from kn_lens.errors import OutputError, SettingsError

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_ROOM_PATIENCE = 60
"""Seconds without a worker after which it is said what they wait for."""


@dataclass(eq=False)
class _Hired:
    """A worker's actor: ``ready`` once its model is loaded, then busy with ``task`` or idle."""

    actor: Any
    ready: bool = False
    task: int | None = None


class RayEngine:
    """Workers that Ray places.

    Args:
        address: ``"host:port"`` of a running cluster that this machine belongs to, or ``"auto"`` for the one it belongs
            to; None starts a Ray of this machine's own, or uses the one that this process already has.
        workers: How many; default: as many as the cluster has room for.
        threads: CPUs of each worker.
        gpus_per_worker: GPUs of each worker, also a part of one; None: one, where the cluster has any and the device is
            not the CPU.
        device: The run's.
        tasks: Dotted name of the class that does tasks.
        planner: Dotted name of the function that plans.

    Raises:
        SettingsError: If Ray is not installed, no cluster answers, or it has no room for a worker.
    """

    name = "ray"

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        threads: int = 1,
        gpus_per_worker: float | None = None,
        device: str | None = None,
        *,
        tasks: str = TASKS,
        planner: str = PLANNER,
    ) -> None:
        checked(workers, threads)
        self._threads, self._gpus, self._tasks, self._planner = threads, gpus_per_worker, tasks, planner
        self._staff: list[_Hired] = []
        self._killed = False
        self._ray = import_ray()
        self._ours = not self._ray.is_initialized()
        if self._ours:
            connect(self._ray, address, max(cores(), threads * (workers or 1)))
        if gpus_per_worker is None and device != "cpu" and self._ray.cluster_resources().get("GPU"):
            self._gpus = 1
        try:
            room = self._room()
            if room < 1 and workers is None:
                raise SettingsError(f"no worker fits into the Ray cluster: each asks for {self._asks()}")
        except BaseException:
            self._leave()
            raise
        if workers and workers > room:
            logger.warning("the Ray cluster has room for %d of %d workers now; the others wait", room, workers)
        self.workers = workers or room

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._leave()

    def kill(self) -> None:
        self._killed = True
        for one in list(self._staff):
            with contextlib.suppress(Exception):  # Ray itself may be gone
                self._ray.kill(one.actor)

    def plan(self, folder: Path, config: dict[str, Any], progress: bool = True) -> None:
        planned = self._remote(_plan, max_retries=0).remote(
            str(folder.resolve()), config, self._planner, self._threads, _seen(folder), os.getcwd()
        )
        try:
            failure = self._ray.get(planned)
        except self._ray.exceptions.RayError as error:
            raise planning_died(_how(error)) from None
        except KeyboardInterrupt:
            self._ray.cancel(planned, force=True)
            raise
        if failure is not None:
            raise failure.again()

    def outcomes(self, folder: Path, tasks: Sequence[int], stop: Callable[[], bool]) -> Iterator[Outcome]:
        folder = folder.resolve()
        queue, asked = Queue(tasks, stop, self.workers), dict[Any, _Hired]()
        patience = time.monotonic() + _ROOM_PATIENCE
        try:
            while not self._killed:
                waiting = queue.waiting
                busy = sum(one.task is not None for one in self._staff)
                if not waiting and not busy:
                    break
                while len(self._staff) < min(queue.workers, busy + waiting):
                    one = self._hire()
                    asked[one.actor.start.remote(str(folder), self._tasks, self._threads, _seen(folder))] = one
                for one in self._staff:
                    if one.ready and one.task is None and queue.waiting:
                        one.task, divisor = queue.take()
                        asked[one.actor.do.remote(one.task, divisor)] = one
                if time.monotonic() > patience and not any(one.ready for one in self._staff):
                    patience = float("inf")
                    logger.warning("no worker is ready yet: each waits for %s, or still loads its model", self._asks())
                for answer in self._ray.wait(list(asked), timeout=POLL)[0]:
                    one = asked.pop(answer)
                    try:
                        value = self._ray.get(answer)
                    except self._ray.exceptions.RayError as error:
                        self._staff.remove(one)
                        self._ray.kill(one.actor)  # where it only could not be reached it must not go on writing
                        if self._killed:
                            continue
                        outcome = queue.lost(one.task, one.ready, _how(error), others=bool(self._staff))
                        if outcome is not None:
                            yield outcome
                        continue
                    if isinstance(value, Failure):
                        raise value.again()
                    if one.task is None:
                        one.ready = True
                        queue.started()
                    else:
                        number, one.task = one.task, None
                        queue.done(number)
                        yield Outcome(task=number, record=value)
        finally:
            for one in self._staff:
                with contextlib.suppress(Exception):  # Ray itself may be gone
                    self._ray.kill(one.actor)
            self._staff.clear()

    def _hire(self) -> _Hired:
        one = _Hired(self._remote(_Actor, max_restarts=0, max_task_retries=0).remote())
        self._staff.append(one)
        return one

    def _remote(self, what: Any, **options: Any) -> Any:
        return self._ray.remote(num_cpus=self._threads, num_gpus=self._gpus or 0, **options)(what)

    def _room(self) -> int:
        """How many workers the cluster can hold, others' work aside."""
        has = self._ray.cluster_resources()
        room = int(has.get("CPU", 0) // self._threads)
        return min(room, int(has.get("GPU", 0) / self._gpus)) if self._gpus else room

    def _asks(self) -> str:
        """What a worker needs, and what there is of it."""
        has = self._ray.cluster_resources()
        asks = f"{self._threads} CPU (it has {has.get('CPU', 0):g})"
        return asks + (f" and {self._gpus:g} GPU (it has {has.get('GPU', 0):g})" if self._gpus else "")

    def _leave(self) -> None:
        if self._ours:
            self._ray.shutdown()


class _Actor:
    """A worker in Ray's hands. What it raises is a value, so that only deaths are errors to Ray."""

    def start(self, folder: str, tasks: str, threads: int, seen: tuple[str, str | None]) -> Failure | None:
        try:
            _check_sees(Path(folder), seen)
            # Only now, before torch is imported: an actor is a process of its own, with an environment of its own.
            environment_of(threads).__enter__()
            self._worker = Worker(Job(folder=Path(folder), tasks=tasks, threads=threads))
        except Exception as error:
            return Failure(error)
        return None

    def do(self, number: int, divisor: int) -> Any:
        try:
            return self._worker.do(number, divisor)
        except Exception as error:
            return Failure(error)


def _plan(folder: str, config: dict[str, Any], planner: str, threads: int, seen: Any, cwd: str) -> Failure | None:
    try:
        _check_sees(Path(folder), seen)
        with contextlib.suppress(OSError):  # relative names of files are those of the coordinator, where it is seen
            os.chdir(cwd)
        with environment_of(threads):
            named(planner)(Path(folder), config, False)
    except Exception as error:
        return Failure(error)
    return None


def _seen(folder: Path) -> tuple[str, str | None]:
    """What an actor must find as the coordinator does: this version of kn_lens, and the run's manifest."""
    manifest = folder / _MANIFEST
    return __version__, hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else None


def _check_sees(folder: Path, expected: tuple[str, str | None]) -> None:
    """Check that a worker, perhaps on another machine, sees the same folder and runs the same kn_lens.

    Raises:
        OutputError: If the folder is not there, or another.
        SettingsError: If kn_lens has another version.
    """
    host = socket.gethostname()
    if __version__ != expected[0]:
        raise SettingsError(f"{host} has kn_lens {__version__}, but the run was started with {expected[0]}")
    if not folder.is_dir():
        raise OutputError(
            f"{host} cannot see {folder}: on a cluster the run's folder must lie on a file system that all its "
            "machines share, under the same path"
        )
    if _seen(folder) != expected:
        raise OutputError(
            f"{host} sees another {folder} than {_MANIFEST} here says: is it on a file system of that machine's own?"
        )


def _how(error: Exception) -> str:
    """How an actor ended, in Ray's words."""
    kind = type(error).__name__
    return f"{kind} (out of memory)" if "OutOfMemory" in kind else kind
