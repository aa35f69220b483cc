"""Processes that are killed, interrupted and told to end."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from typing import Any

import psutil

from tests.faults.bench import TRACE, Bench, Row, Session, damaged, gone, records_of, temporary_files

_PER_RUN = 10
_PLANNING, _LONGEST_START, _LONGEST_WORK = 4.0, 8.0, 1.0
"""Seconds."""


def kill_coordinator(
    bench: Bench,
    times: int,
    *,
    everyone: bool,
    config: dict[str, Any] = TRACE,
    longest: float = _LONGEST_WORK,
    worker_too: bool = False,
) -> Row:
    """``kill -9`` at random moments: of the whole process group, or of the first process alone.

    A run goes on by ``resume`` until it is finished; then the next one begins. With ``worker_too``, a worker is killed
    as well in the resume that finishes it.
    """
    killed = finished = lost = torn = left = 0
    moments: Counter[str] = Counter()
    equal = True
    while killed < times:
        folder = bench.path("killed")
        file = bench.file(config)
        session = bench.run(file, folder)
        kept: dict[str, bytes] = {}
        for number in range(min(_PER_RUN, times - killed)):
            moment = _moment(bench, session, number, longest)
            before = records_of(folder)
            if session.ended:
                break
            session.kill(everyone)
            after = records_of(folder)
            moments[moment] += 1
            left += bool(temporary_files(folder))
            wrong = damaged(folder)
            killed += 1
            finished += len(after)
            lost += len(gone(before, after)) + len(gone(kept, after))
            torn += len(wrong) + len(session.reader.torn)
            bench.tell(f"  kill {killed}: {moment}, {len(after)} pieces finished")
            kept = after
            begun = (folder / "run.yaml").exists()  # else there is nothing yet to go on with
            workers = bench.random.choice((1, bench.workers))
            session = bench.resume(folder, workers=workers) if begun else bench.run(file, folder, workers=workers)
        if worker_too:
            there = _kill_worker(bench, session, longest)
            assert there is not None, "the run was finished before a worker could be killed"
            lost += len(gone(*there))
        session.end()
        torn += len(session.reader.torn)
        lost += len(gone(kept, records_of(folder)))
        equal = equal and bench.same(folder, config)
    who = "the whole process group" if everyone else "the coordinator alone"
    told = ", ".join(f"{moment} {count}" for moment, count in moments.most_common())
    note = f"{told}; {left} left temporary files"
    return Row(fault=f"kill -9 of {who}", times=killed, finished=finished, lost=lost, torn=torn, equal=equal, note=note)


def _moment(bench: Bench, session: Session, number: int, longest: float) -> str:
    """Wait for a random moment, and say of what kind it is. The first kill of a run lands in planning."""
    kind = "start" if number == 0 else bench.random.choices(("start", "writing", "work"), (2, 4, 4))[0]
    if kind == "start":
        session.for_seconds(bench.random.uniform(0.2, _LONGEST_START if number else _PLANNING))
    elif kind == "writing":
        if session.until_new():
            session.until(lambda: bool(temporary_files(session.folder)))
    elif session.until_new():
        session.for_seconds(bench.random.uniform(0, longest))
    if kind == "start" and not (session.folder / "manifest.json").exists():
        return "in planning"
    return {"start": "while it started", "writing": "while a file was written", "work": "in work"}[kind]


def kill_workers(bench: Bench, times: int, *, config: dict[str, Any] = TRACE) -> Row:
    """``kill -9`` of a worker; the run must finish without help."""
    killed = finished = lost = torn = runs = 0
    equal = True
    while killed < times:
        folder = bench.path("workers")
        session = bench.run(bench.file(config), folder)
        kept: dict[str, bytes] = {}
        runs += 1
        for _ in range(min(_PER_RUN, times - killed)):
            there = _kill_worker(bench, session, _LONGEST_WORK)
            if there is None:
                break
            before, after = there
            killed += 1
            finished += len(after)
            lost += len(gone(before, after)) + len(gone(kept, after))
            bench.tell(f"  worker {killed} killed, {len(after)} pieces finished")
            kept = after
        session.end()
        torn += len(session.reader.torn) + len(damaged(folder))
        lost += len(gone(kept, records_of(folder)))
        equal = equal and bench.same(folder, config)
    return Row(
        fault="kill -9 of a worker",
        times=killed,
        finished=finished,
        lost=lost,
        torn=torn,
        equal=equal,
        note=f"{runs} runs, each finished by itself",
    )


def _kill_worker(bench: Bench, session: Session, longest: float) -> tuple[dict[str, bytes], dict[str, bytes]] | None:
    """Kill a worker soon after the next piece; the records before and after, None if the run has ended."""
    if not session.until_new() or not session.for_seconds(bench.random.uniform(0, longest)):
        return None
    workers = session.workers()
    before = records_of(session.folder)
    if not workers:
        return None
    victim = bench.random.choice(workers)
    try:
        victim.kill()
        victim.wait(10)
    except psutil.NoSuchProcess:  # it was let go just now: the run is at its end
        return None
    return before, records_of(session.folder)


def signals(bench: Bench, *, config: dict[str, Any] = TRACE) -> list[Row]:
    """Ctrl-C once and twice, SIGTERM, SIGHUP, in one run that goes on after each; Ctrl-C goes to the whole group."""
    bench.undisturbed(config)
    folder = bench.path("signals")
    session = bench.run(bench.file(config), folder)
    found: list[tuple[str, int, int, int, str]] = []
    kept: dict[str, bytes] = {}
    for name, number, times, group, code in (
        ("Ctrl-C", signal.SIGINT, 1, True, 130),
        ("Ctrl-C twice", signal.SIGINT, 2, True, 130),
        ("SIGTERM", signal.SIGTERM, 1, False, 130),
        ("SIGHUP (its terminal is closed)", signal.SIGHUP, 1, True, -signal.SIGHUP),
    ):
        assert session.until_new(4), session.text
        family = session.family()
        before = records_of(folder)
        began = time.monotonic()
        for press in range(times):
            if press:
                session.for_seconds(0.1)
            (os.killpg if group else os.kill)(session.process.pid, number)
        text = session.end(code)
        took = time.monotonic() - began
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, f"{len(alive)} processes outlive {name}"
        if code == 130:
            assert f"kn-lens resume {folder}" in text, text
            assert ("at once" in text.splitlines()[-1]) == (times == 2), text
        after = records_of(folder)
        lost = len(gone(before, after)) + len(gone(kept, after))
        torn = len(damaged(folder)) + len(session.reader.torn)
        if name in ("Ctrl-C", "SIGTERM"):
            torn += len(temporary_files(folder))  # pieces in hand come to their end
        note = f"exit code {code}, {took:.1f} s, {len(after) - len(before)} pieces more"
        found.append((name, len(after), lost, torn, note))
        kept = after
        session = bench.resume(folder)
    session.end()
    missing = len(gone(kept, records_of(folder)))
    equal = bench.same(folder, config)
    return [
        Row(fault=name, finished=finished, lost=lost + missing, torn=torn, equal=equal, note=note)
        for name, finished, lost, torn, note in found
    ]
