"""What an engine is: it plans a run and hands its tasks to workers. What engines share: what comes of a task whose
worker dies.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kn_lens.errors import KnLensError, ModelError, OutputError, SettingsError, near_matches

if TYPE_CHECKING:
    from typing_extensions import Self

    from kn_lens.batches.config import RunConfig
    from kn_lens.batches.storage.part import PartRecord

logger = logging.getLogger(__name__)

TASKS = "kn_lens.batches.task:Tasks"
"""The class that does tasks, by its dotted name: made with ``(folder, load)``, then asked ``do(number, divisor)``; an
attribute ``model`` of it is read before the first task."""
PLANNER = "kn_lens.batches.plan:make_plan"
"""The function that plans a run: called with ``(folder, config, progress)``."""
ATTEMPTS = 3
"""So many workers may die over one task; and so many, one after another, while they start."""
POLL = 0.2
"""Seconds after which an engine looks at ``stop`` again."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a task: the record of its part, or a sentence that says why it could not be done."""

    task: int
    record: PartRecord | None = None
    error: str | None = None


class Engine(Protocol):
    """Where a run is computed; use it as a context manager."""

    name: str
    workers: int

    def plan(self, folder: Path, config: dict[str, Any], progress: bool = True) -> None:
        """Plan a run in a process of its own.

        Args:
            folder: The run's.
            config: Its configuration as JSON.
            progress: Show a progress bar, where one can be seen.

        Raises:
            KnLensError: Whatever planning raises.
        """
        ...

    def outcomes(self, folder: Path, tasks: Sequence[int], stop: Callable[[], bool]) -> Iterator[Outcome]:
        """Hand tasks to workers; what came of them, in the order in which they end.

        Args:
            folder: The run's; the tasks leave their parts there.
            tasks: Numbers of tasks; it is only read, so it may be a range.
            stop: Asked often; once it is true no more is handed out, and the tasks in hand are the last.

        Raises:
            KnLensError: If a worker cannot load its model, or a part cannot be written; workers are ended before.
        """
        ...

    def kill(self) -> None:
        """End all workers at once; ``outcomes`` then ends."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


def engine_named(name: str, config: RunConfig, workers: int | None = None, address: str | None = None) -> Engine:
    """The engine of a name for a run.

    Args:
        name: ``"local"`` or ``"ray"``.
        config: The run's.
        workers: How many; None: as many as there is room for.
        address: Of a running Ray cluster; None: a Ray of this machine's own.

    Raises:
        SettingsError: If there is no such engine, it cannot be reached, or a setting is not for it.
    """
    if name == "ray":
        from kn_lens.batches.engines.ray_engine import RayEngine

        return RayEngine(address, workers, config.threads, config.gpus_per_worker, config.device)
    if name != "local":
        raise SettingsError(f"unknown engine {name!r}: say 'local' or 'ray'.{near_matches(name, ('local', 'ray'))}")
    if address is not None:
        raise SettingsError("an address is a Ray cluster's: say --engine ray with it")
    from kn_lens.batches.engines.local import LocalEngine

    return LocalEngine(workers, config.threads, config.device)


class Queue:
    """Tasks still to be handed out, and those whose worker died. Nothing is kept of tasks that are done.

    Args:
        tasks: Their numbers.
        stop: Once it is true no task is handed out.
        workers: How many there may be at once; one fewer each time that several in a row died while they started.
    """

    def __init__(self, tasks: Sequence[int], stop: Callable[[], bool], workers: int) -> None:
        self.workers = min(workers, len(tasks))
        self._tasks, self._stop = tasks, stop
        self._next = 0
        self._again: deque[int] = deque()
        self._deaths: dict[int, int] = {}
        self._start_deaths = 0

    @property
    def waiting(self) -> int:
        """How many tasks may be handed out now: none once the run is to stop."""
        return 0 if self._stop() else len(self._again) + len(self._tasks) - self._next

    def take(self) -> tuple[int, int]:
        """The next task, and what its memory budget is to be divided by. Only where one is waiting."""
        if self._again:
            number = self._again.popleft()
        else:
            number = self._tasks[self._next]
            self._next += 1
        # The first time again is computed alike, so that the same bytes come of it: most workers die of something else
        # than their task. Only a task that has killed two is likely to be too large.
        return number, 2 if self._deaths.get(number, 0) >= ATTEMPTS - 1 else 1

    def done(self, number: int) -> None:
        """A task came to its end."""
        self._deaths.pop(number, None)

    def died(self, number: int, how: str) -> Outcome | None:
        """A worker died over a task; the outcome, if it is not to be tried again."""
        deaths = self._deaths[number] = self._deaths.get(number, 0) + 1
        if deaths < ATTEMPTS:
            self._again.append(number)
            return None
        self.done(number)
        return Outcome(task=number, error=f"killed its worker {deaths} times, last by {how}")

    def started(self) -> None:
        """A worker is ready."""
        self._start_deaths = 0

    def lost(self, task: int | None, ready: bool, how: str, others: bool) -> Outcome | None:
        """A worker died, which is logged; the outcome of its task, if that is not to be tried again.

        Args:
            task: That it was at; None if it was idle, or not ready yet.
            ready: Whether it was.
            how: It died.
            others: Whether there are other workers.

        Raises:
            ModelError: If it was the only one, for the last time that is tried.
        """
        if task is not None:
            logger.warning("a worker died of %s over piece %d", how, task)
            return self.died(task, how)
        if ready:
            logger.warning("a worker died of %s", how)
            return None
        logger.warning("a worker died of %s while it started", how)
        if self.died_starting(how, others):
            self.workers -= 1
            logger.warning("going on with %d workers", self.workers)
        return None

    def died_starting(self, how: str, others: bool) -> bool:
        """A worker died before it was ready; whether to go on with one worker less.

        Args:
            how: It died.
            others: Whether there are other workers.

        Raises:
            ModelError: If it was the only one, for the last time that is tried.
        """
        self._start_deaths += 1
        if self._start_deaths < ATTEMPTS:
            return False
        self._start_deaths = 0
        if not others:
            raise ModelError(
                f"the worker died {ATTEMPTS} times while it loaded the model, last by {how}; take a smaller model, or "
                "one with fewer bytes a number (dtype: bfloat16)"
            )
        return True


def named_death(exitcode: int | None) -> str:
    """How a process ended, in words: ``"SIGKILL (out of memory?)"``."""
    if exitcode is None or exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


def planning_died(how: str) -> KnLensError:
    """The error of a plan whose process died."""
    return OutputError(f"planning was ended by {how}; nothing was computed yet: start the run again")


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def checked(workers: int | None, threads: int) -> None:
    """Check numbers of workers and threads.

    Raises:
        SettingsError: If one is below 1.
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise SettingsError(f"{name} is {value}: say a whole number of at least 1")
