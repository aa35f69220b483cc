"""What faults are tried on: runs of the real command line, in processes of their own, beside undisturbed ones."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from kn_lens.batches.export import write_tables
from kn_lens.batches.read import BatchRun
from kn_lens.batches.storage.store import Store
from kn_lens.errors import OutputError

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-c", "from kn_lens.cli import main; main()")
_POLL = 0.02
_BAR = re.compile(r"^.*(?:%\|.*\]|prompt/s\]|prompt \[.*\])|\x1b\[A")
_LONGEST = 300.0

TRACE: dict[str, Any] = {
    "model": "tiny-causal",
    "data": {"name": "P36", "groups": 12, "prompts": 10},
    "method": "causal_trace",
    "settings": {"stream": ["resid", "mlp"], "samples": 2},
    "shard": 1,
    "device": "cpu",
}
"""Many small pieces: kills land within them."""
SUPPRESS: dict[str, Any] = {
    "model": "tiny-causal",
    "data": {"name": "P36", "groups": 12, "prompts": 10},
    "method": "suppress",
    "settings": {"units": ["1:5", "1:7"], "controls": 3},
    "shard": 4,
    "device": "cpu",
}
"""Quickly done."""


class NotTried(Exception):
    """A fault that cannot be made on this machine, and why."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a fault came to.

    Attributes:
        fault: What was done.
        times: How often.
        finished: Pieces that were finished before, over all times; None where it does not apply.
        lost: How many of them were gone or changed after.
        torn: Parts, manifests or tables that a reader saw half-written.
        equal: Whether the tables are those of the undisturbed run, byte by byte; None where there are none.
        note: What else there is to say.
    """

    fault: str
    times: int = 1
    finished: int | None = None
    lost: int = 0
    torn: int = 0
    equal: bool | None = None
    note: str = ""

    @property
    def good(self) -> bool:
        """Whether nothing was lost."""
        return not self.lost and not self.torn and self.equal is not False


class Session:
    """One command, started in a process group of its own."""

    def __init__(
        self,
        folder: Path,
        output: Path,
        arguments: Iterable[object],
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        self.folder, self.output = folder, output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
                preexec_fn=lambda: _fresh(before),
            )
        self.reader = Reader(folder)

    @property
    def text(self) -> str:
        """What it has said, without progress bars."""
        said = self.output.read_bytes().decode(errors="replace").replace("\r", "\n").splitlines()
        lines = [_BAR.sub("", line).strip() for line in said]
        return "\n".join(line for line in lines if line)

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def family(self) -> list[psutil.Process]:
        """Its children and theirs."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """Its workers, in the order in which they were started."""
        found = []
        for one in self.family():
            try:
                if any("spawn_main" in word for word in one.cmdline()):
                    found.append(one)
            except psutil.Error:
                continue
        return sorted(found, key=lambda one: one.pid)

    def until(self, reached: Callable[[], bool], longest: float = _LONGEST) -> bool:
        """Read the run as it goes on, until something is so; False if the command ended before."""
        stop = time.monotonic() + longest
        while not reached():
            if self.ended:
                return False
            self.reader.look()
            assert time.monotonic() < stop, f"nothing happened for {longest:.0f} s:\n{self.text[-2000:]}"
            time.sleep(_POLL)
        return True

    def for_seconds(self, seconds: float) -> bool:
        """Go on reading for so long; False if the command ended before."""
        stop = time.monotonic() + seconds
        return self.until(lambda: time.monotonic() >= stop)

    def until_new(self, count: int = 1) -> bool:
        """Until so many pieces are finished that were not."""
        there = len(records_of(self.folder))
        return self.until(lambda: len(records_of(self.folder)) >= there + count)

    def end(self, code: int = 0) -> str:
        """Wait for its end, with this exit code; what it said."""
        self.until(lambda: False)
        assert self.process.returncode == code, f"exit code {self.process.returncode}, not {code}:\n{self.text[-3000:]}"
        assert "Traceback" not in self.text, self.text[-3000:]
        return self.text

    def refused(self) -> str:
        """Wait for exit code 2 and one line that says why; that line."""
        lines = [line for line in self.end(2).splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.text[-3000:]
        return lines[0]

    def kill(self, everyone: bool = True) -> None:
        """``kill -9``: the whole process group, or its first process alone; back when all of it is gone."""
        family = self.family()
        if everyone:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, f"{len(alive)} processes outlive the one that started them"


def _fresh(also: Callable[[], None] | None) -> None:
    """In a new process: heed the signals that whoever started the campaign may have had it ignore (nohup does)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if also is not None:
        also()


class Reader:
    """Looks at a run while it goes on, as any other program may: counts what is half-written, which must not be."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: set[int] = set()
        self.torn: list[str] = []
        self._next = 0.0

    def look(self) -> None:
        """Read the manifest, the index, and each part that is new."""
        if time.monotonic() < self._next or not (self.folder / "manifest.json").exists():
            return
        try:
            store = Store(self.folder)
            for number in store.records().keys() - self.seen:
                problem = store.problem(number)
                if problem is not None:
                    self.torn.append(problem)
                store.table(number)
                self.seen.add(number)
        except OutputError as error:
            self.torn.append(str(error))
        self._next = time.monotonic() + 0.1


class Bench:
    """A folder for runs, and the undisturbed ones that they are held against.

    Args:
        folder: Empty.
        seed: Of the moments.
        tell: Told of each step.
        workers: Of each run.
    """

    def __init__(
        self, folder: Path, seed: int, tell: Callable[[str], None] = lambda text: None, workers: int = 2
    ) -> None:
        self.workers = workers
        self.folder, self.random, self.tell = folder, random.Random(seed), tell
        self._made: dict[str, tuple[Path, dict[str, bytes]]] = {}
        self._count = 0

    @cached_property
    def data(self) -> Path:
        """A place for files of prompts."""
        folder = self.folder / "data"
        folder.mkdir()
        return folder

    def path(self, name: str) -> Path:
        """A new path."""
        self._count += 1
        return self.folder / f"{self._count:03d}-{name}"

    def file(self, config: Mapping[str, Any]) -> Path:
        """A run file."""
        path = self.path("run.yaml")
        path.write_text(json.dumps(config, indent=1))  # JSON is YAML
        return path

    def start(self, command: str, *arguments: object, folder: Path, **how: Any) -> Session:
        """Start a command that works on a run's folder."""
        return Session(folder, self.path(f"{command}.txt"), (command, *arguments), **how)

    def run(self, file: Path, folder: Path, workers: int | None = None, **how: Any) -> Session:
        """``kn-lens run``."""
        return self.start("run", file, "--out", folder, "--workers", workers or self.workers, folder=folder, **how)

    def resume(self, folder: Path, *arguments: object, workers: int | None = None, **how: Any) -> Session:
        """``kn-lens resume``."""
        return self.start("resume", folder, "--workers", workers or self.workers, *arguments, folder=folder, **how)

    def tables(self, folder: Path) -> dict[str, bytes]:
        """The files that ``kn-lens results`` writes."""
        return {path.name: path.read_bytes() for path in write_tables(BatchRun(folder), self.path("results"))}

    def undisturbed(self, config: Mapping[str, Any], code: int = 0) -> tuple[Path, dict[str, bytes]]:
        """The folder of a run that nothing happened to, and its tables; made when it is first asked for."""
        key = json.dumps(config, sort_keys=True)
        if key not in self._made:
            folder = self.path("undisturbed")
            self.run(self.file(config), folder).end(code)
            self._made[key] = folder, self.tables(folder)
        return self._made[key]

    def copy(self, config: Mapping[str, Any], to: Path | None = None, without: Iterable[int] = ()) -> Path:
        """A copy of an undisturbed run, some of its pieces not yet computed."""
        source, _ = self.undisturbed(config)
        folder = self.path("copy") if to is None else to
        shutil.copytree(source, folder)
        for number in without:
            Store(folder).remove_part(number)
        return folder

    def same(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether the tables of a run are those of the undisturbed one."""
        return self.tables(folder) == self.undisturbed(config)[1]


def records_of(folder: Path) -> dict[str, bytes]:
    """The records of a run's parts, as they are on the disk."""
    found = {}
    for path in (folder / "parts").glob("part-*.json"):
        try:
            found[path.name] = path.read_bytes()
        except FileNotFoundError:
            continue
    return found


def temporary_files(folder: Path) -> list[Path]:
    """Files that are being written, or were when their process died."""
    return [*folder.glob(".*-x??????"), *folder.glob("parts/.*-x??????")]


def damaged(folder: Path) -> list[str]:
    """What is wrong with the parts that have a record."""
    if not (folder / "manifest.json").exists():
        return []
    store = Store(folder)
    return [problem for name in records_of(folder) if (problem := store.problem(int(name[5:-5]))) is not None]


def gone(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    """Records that are not as they were."""
    return [name for name, raw in before.items() if after.get(name) != raw]
