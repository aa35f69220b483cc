"""The local engine: one process for each worker on this machine, one pipe to each."""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kn_lens.batches.engines import sharing, worker
from kn_lens.batches.engines.engine import (
    PLANNER,
    POLL,
    TASKS,
    Outcome,
    Queue,
    checked,
    cores,
    named_death,
    planning_died,
)
from kn_lens.batches.engines.worker import DONE, FAILED, LOG, READY, Job

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

_GRACE = 5.0
"""Seconds that workers have to leave when nothing is left to do."""


@dataclass(eq=False)
class _Hired:
    """A worker's process: ``ready`` once its model is loaded, then busy with ``task`` or idle; ``ended`` once it has
    ended and all that it said is heard."""

    process: BaseProcess
    pipe: Connection
    place: int
    ready: bool = False
    task: int | None = None
    ended: bool = False


class LocalEngine:
    """Workers on this machine.

    Args:
        workers: How many; default: one for each GPU if the device is a GPU, else cores over threads.
        threads: Of each worker.
        device: The run's; with None or ``"cuda"``, workers are spread over the GPUs, if there are any.
        tasks: Dotted name of the class that does tasks.
        planner: Dotted name of the function that plans.

    Raises:
        SettingsError: If workers or threads are below 1.
    """

    name = "local"

    def __init__(
        self,
        workers: int | None = None,
        threads: int = 1,
        device: str | None = None,
        *,
        tasks: str = TASKS,
        planner: str = PLANNER,
    ) -> None:
        checked(workers, threads)
        self._threads, self._tasks, self._planner = threads, tasks, planner
        gpus = _gpus(threads) if device in (None, "cuda") else 0
        self._devices = [f"cuda:{gpu}" for gpu in range(gpus)] or [device]
        on_gpu = (self._devices[0] or "").startswith("cuda")
        self.workers = workers or (len(self._devices) if on_gpu else max(1, cores() // threads))
        self._shares = not on_gpu
        self._staff: list[_Hired] = []
        self._said: set[str] = set()
        self._killed = False
        # Before multiprocessing at exit asks its children to go, and waits for them: these do not heed that.
        atexit.register(self.kill)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        atexit.unregister(self.kill)

    def kill(self) -> None:
        self._killed = True
        for one in list(self._staff):
            one.process.kill()

    def plan(self, folder: Path, config: dict[str, Any], progress: bool = True) -> None:
        self._ask_child(worker.plan, self._planner, folder, config, progress)

    def outcomes(self, folder: Path, tasks: Sequence[int], stop: Callable[[], bool]) -> Iterator[Outcome]:
        queue = Queue(tasks, stop, self.workers)
        shared = sharing.shared_folder(folder) if self._shares and queue.workers > 1 else None
        ended = False
        try:
            while not self._killed:
                waiting = queue.waiting
                busy = sum(one.task is not None for one in self._staff)
                if not waiting and not busy:
                    break
                while len(self._staff) < min(queue.workers, busy + waiting):
                    self._hire(folder, shared)
                for one in self._staff:
                    if one.ready and one.task is None and queue.waiting:
                        one.task, divisor = queue.take()
                        with contextlib.suppress(OSError):  # it has died: that is found out below
                            one.pipe.send((one.task, divisor))
                for one in self._with_news():
                    for kind, value in _news(one):
                        if kind == DONE:
                            number, one.task = one.task, None
                            assert number is not None
                            queue.done(number)
                            yield Outcome(task=number, record=value)
                        elif kind == READY:
                            one.ready = True
                            queue.started()
                        elif kind == LOG:
                            self._pass_on(one, value)
                        elif kind == FAILED:
                            raise value.again()
                    if one.ended:
                        self._staff.remove(one)
                        one.pipe.close()
                        if self._killed:
                            continue
                        how = named_death(one.process.exitcode)
                        outcome = queue.lost(one.task, one.ready, how, others=bool(self._staff))
                        if outcome is not None:
                            yield outcome
            ended = not self._killed
        finally:
            self._dismiss(_GRACE if ended else 0)
            if shared is not None:
                with contextlib.suppress(OSError):
                    sharing.remove(shared)

    def _hire(self, folder: Path, shared: Path | None) -> None:
        taken = {one.place for one in self._staff}
        place = next(place for place in range(len(taken) + 1) if place not in taken)
        job = Job(
            folder=folder,
            tasks=self._tasks,
            threads=self._threads,
            device=self._devices[place % len(self._devices)],
            shared=shared,
        )
        process, pipe = _start(worker.serve, self._threads, job)
        self._staff.append(_Hired(process, pipe, place))

    def _with_news(self) -> list[_Hired]:
        """Workers that said something or ended; none after a while in which none did."""
        found = connection.wait(
            [one.pipe for one in self._staff] + [one.process.sentinel for one in self._staff], timeout=POLL
        )
        return [one for one in self._staff if one.pipe in found or one.process.sentinel in found]

    def _pass_on(self, one: _Hired, line: tuple[str, int, str]) -> None:
        """Log what a worker logged; what each says of its model, once."""
        name, level, text = line
        if not one.ready:
            if text in self._said:
                return
            self._said.add(text)
        logging.getLogger(name).log(level, "%s", text)

    def _dismiss(self, grace: float) -> None:
        """Let all workers go; those who are still there after a while, or without one, are killed."""
        for one in self._staff:
            if grace and one.ready:
                with contextlib.suppress(OSError):
                    one.pipe.send(None)
            else:
                one.process.kill()
        until = time.monotonic() + grace
        for one in self._staff:
            if grace:
                one.process.join(max(0.0, until - time.monotonic()))
            one.process.kill()
        for one in self._staff:
            one.process.join(_GRACE)
            one.pipe.close()
        self._staff.clear()

    def _ask_child(self, target: Callable[..., None], *args: Any) -> Any:
        """Run a function in a process of its own; what it says at its end."""
        process, pipe = _start(target, self._threads, *args)
        one = _Hired(process, pipe, 0, ready=True)
        self._staff.append(one)
        grace = 0.0
        try:
            while not one.ended:
                for each in self._with_news():
                    for kind, value in _news(each):
                        if kind == DONE:
                            grace = _GRACE
                            return value
                        if kind == FAILED:
                            raise value.again()
                        self._pass_on(each, value)
            raise planning_died(named_death(process.exitcode))
        finally:
            self._dismiss(grace)


def _news(one: _Hired) -> Iterator[tuple[str, Any]]:
    """What a worker has said, and whether it has ended; at the end of its pipe its process is ended too."""
    ended = one.process.exitcode is not None  # looked at first: what it said before its end is then in the pipe
    try:
        while one.pipe.poll():
            yield one.pipe.recv()
    except (EOFError, OSError):
        ended = True
    if ended:
        one.process.join(_GRACE)
        if one.process.exitcode is None:
            one.process.kill()
            one.process.join(_GRACE)
        one.ended = one.process.exitcode is not None


def _start(target: Callable[..., None], threads: int, *args: Any) -> tuple[BaseProcess, Any]:
    """Start a process; it is given the end of a pipe and ``args``."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *args), daemon=True)
    with worker.environment_of(threads), _without_main(), _without_interrupts():
        process.start()
    theirs.close()
    return process, ours


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the program's main module: workers need nothing of it, and in them it would only start the run again."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold back the signals that a child is not to heed: it inherits that, and is protected from its first moment."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, worker.HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _gpus(threads: int) -> int:
    """How many CUDA GPUs torch can use; it is not asked where nothing looks like a GPU."""
    signs = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    if not shutil.which("nvidia-smi") and not any(Path(sign).exists() for sign in signs):
        return 0
    process, pipe = _start(worker.count_gpus, threads)
    try:
        return int(pipe.recv()[1])
    except (EOFError, OSError):
        return 0
    finally:
        process.kill()
        process.join(_GRACE)
        pipe.close()
