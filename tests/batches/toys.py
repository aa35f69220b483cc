"""Tasks that sleep, die or raise, as a run's folder tells them: what engines are tested with."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

from kn_lens.errors import OutputError, SettingsError


def write_orders(folder: Path, **orders) -> Path:
    """Tell toys what to do: by a task's number as text, ``start`` and ``sleep`` (seconds of every task)."""
    (folder / "orders.json").write_text(json.dumps(orders))
    return folder


def log_of(folder: Path) -> list[dict]:
    """What was begun, a line each: kind, number, pid, divisor, threads."""
    path = folder / "begun.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Toys:
    def __init__(self, folder, load):
        self.folder = Path(folder)
        self.orders = json.loads((self.folder / "orders.json").read_text())
        times = self._begin("start", -1, 1)
        self._obey(self.orders.get("start"), times)

    def do(self, number, divisor):
        times = self._begin("task", number, divisor)
        time.sleep(self.orders.get("sleep", 0))
        self._obey(self.orders.get(str(number)), times)
        return {"task": number, "pid": os.getpid(), "divisor": divisor}

    def _begin(self, kind, number, divisor):
        """Note a beginning; how often it began before."""
        times = sum(one["kind"] == kind and one["number"] == number for one in log_of(self.folder))
        threads = os.environ["OMP_NUM_THREADS"]
        line = {"kind": kind, "number": number, "pid": os.getpid(), "divisor": divisor, "threads": threads}
        with (self.folder / "begun.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return times

    def _obey(self, order, times):
        if order is None:
            return
        what, *how_often = order
        if how_often and times >= how_often[0]:
            return
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "leave":
            sys.exit(7)
        elif what == "disk full":
            raise OutputError("cannot write it: No space left on device")
        elif what == "bug":
            raise Peculiar("a mistake", 7)
        elif what == "settings":
            raise SettingsError("it cannot be so")
        elif what == "say":
            logging.getLogger("kn_lens.toys").warning("said so")


class Peculiar(Exception):
    """An exception that pickle cannot make again."""

    def __init__(self, what, number):
        super().__init__(what)


def make_plan(folder, config, progress):
    if "raise" in config:
        raise SettingsError(config["raise"])
    if "die" in config:
        os.kill(os.getpid(), signal.SIGKILL)
    threads = os.environ["OMP_NUM_THREADS"]
    (Path(folder) / "plan.json").write_text(json.dumps({"pid": os.getpid(), "config": config, "threads": threads}))
