"""Two processes on one folder, prompts that fail, memory that runs out, a clock that jumps."""

from __future__ import annotations

import io
import json
import resource
import shutil
import subprocess
from typing import Any

import psutil

from kn_lens.batches.read import BatchRun
from tests.faults.bench import SUPPRESS, TRACE, Bench, NotTried, Row, damaged, gone, records_of

_FACTS = (
    ("France", "Paris", "Rome"),
    ("Germany", "Berlin", "Berlin and Rome"),  # the new answer begins as the old one: this editor refuses that
    ("Spain", "Madrid", "Cairo"),
    ("Poland", "Warsaw", "Vienna"),
)
_LARGE: dict[str, Any] = {
    **TRACE,
    "data": {"name": "P36", "groups": 6, "prompts": 8},
    "settings": {"stream": "resid", "samples": 200},
    "shard": 12,
    "memory_budget": 4e9,
}
_SPARE = 100 * 2**20
"""Bytes that a worker may take beyond what it has: less than a piece of the run above takes in one pass."""
_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <sys/time.h>
#include <time.h>
/* Every other second of the true clock, the time of day is so many hours off. */
static int (*get)(clockid_t, struct timespec *);
static long off(long s) { static const long hours[] = {0, 5, -7, 30, -30, 1}; return s + 3600 * hours[s / 2 % 6]; }
int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!get) get = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
    int found = get(clock, now);
    if (!found && clock == CLOCK_REALTIME) now->tv_sec = off(now->tv_sec);
    return found;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec told;
    int found = clock_gettime(CLOCK_REALTIME, &told);
    if (!found && now) { now->tv_sec = told.tv_sec; now->tv_usec = told.tv_nsec / 1000; }
    return found;
}
time_t time(time_t *now) {
    struct timespec told;
    clock_gettime(CLOCK_REALTIME, &told);
    if (now) *now = told.tv_sec;
    return told.tv_sec;
}
"""


def two_at_once(bench: Bench) -> Row:
    """A second process on the folder of a run, by run and by resume: it is told of the first, which goes on."""
    bench.undisturbed(TRACE)
    folder = bench.path("two")
    file = bench.file(TRACE)
    first = bench.run(file, folder)
    assert first.until_new(), first.text
    before = records_of(folder)
    for second in (bench.run(file, folder), bench.resume(folder)):
        line = second.refused()
        assert f"process {first.process.pid}," in line, line
        assert "is being run already" in line, line
        assert not first.ended, "the first was finished before the second was started"
    status = bench.start("status", folder, folder=folder).end()
    assert f"process {first.process.pid}," in status, status
    first.end()
    return Row(
        fault="a second process on the folder",
        times=2,
        finished=len(before),
        lost=len(gone(before, records_of(folder))),
        torn=len(first.reader.torn),
        equal=bench.same(folder, TRACE),
        note="exit code 2, one line with host and pid of the first",
    )


def failing_prompt(bench: Bench) -> Row:
    """A fact that an editor refuses, among three that it edits."""
    path = bench.data / "edits.json"
    path.write_text(json.dumps([_edit(*fact) for fact in _FACTS]))
    config: dict[str, Any] = {
        "model": "tiny-causal",
        "data": str(path),
        "method": "evaluate_edits",
        "settings": {"editors": ["neurons", "fine-tune"]},
        "shard": 2,
        "device": "cpu",
    }
    folder, tables = bench.undisturbed(config, code=1)
    before = records_of(folder)
    failed = [one for record in BatchRun(folder).store.records().values() for one in record.failed]
    assert [one.prompt for one in failed] == [1], failed
    assert "begin with the same token" in failed[0].reason, failed
    status = bench.start("status", folder, folder=folder).end()
    assert failed[0].text in status, status
    assert "begin with the same token" in " ".join(status.split()), status
    bench.resume(folder).end(1)
    kept = records_of(folder)
    log = (folder / "log.txt").read_text()
    text = bench.resume(folder, "--retry-failed").end(1)
    assert "1 prompts failed; the others are done" in text, text
    assert "begins with 1 of 4 pieces" in (folder / "log.txt").read_text().removeprefix(log)
    return Row(
        fault="a prompt that makes the method fail",
        finished=len(before),
        lost=len(gone(before, kept)) + len(damaged(folder)),
        equal=bench.tables(folder) == tables,
        note="exit code 1; status names it; 7 of 8 edits done; resume --retry-failed tries its piece again",
    )


def _edit(subject: str, old: str, new: str) -> dict[str, str]:
    return {
        "subject": subject,
        "prompt": f"The capital of {subject} is",
        "target_new": new,
        "ground_truth": old,
        "rephrase_prompt": f"In {subject}, the capital is",
        "locality_prompt": "The capital of Japan is",
        "locality_ground_truth": "Tokyo",
    }


def out_of_memory(bench: Bench) -> Row:
    """Workers that may take little more memory than they have as they begin: rows are halved until they fit."""
    import pandas as pd

    _, tables = bench.undisturbed(_LARGE)
    folder = bench.path("memory")
    session = bench.run(bench.file(_LARGE), folder, workers=1)
    assert session.until_new(), session.text
    (worker,) = session.workers()
    before = records_of(folder)
    worker.rlimit(psutil.RLIMIT_AS, (worker.memory_info().vms + _SPARE, resource.RLIM_INFINITY))
    text = session.end()
    assert "out of memory" in text, text
    found = {name: pd.read_parquet(io.BytesIO(raw)) for name, raw in bench.tables(folder).items()}
    for name, table in found.items():
        pd.testing.assert_frame_equal(table, pd.read_parquet(io.BytesIO(tables[name])), rtol=1e-4, atol=3e-5)
    halved = text.count("out of memory with")
    return Row(
        fault="out of memory (RLIMIT_AS of the worker)",
        finished=len(before),
        lost=len(gone(before, records_of(folder))),
        torn=len(damaged(folder)) + len(session.reader.torn),
        note=f"rows halved {halved} times; all numbers those of the undisturbed run within 3e-5 or 0.01%",
    )


def jumping_clock(bench: Bench) -> Row:
    """A time of day that jumps by hours, forth and back, in every process."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NotTried("there is no C compiler to make such a clock with")
    source, clock = bench.path("clock.c"), bench.path("clock.so")
    source.write_text(_CLOCK)
    made = subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", str(clock), str(source), "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise NotTried(f"such a clock cannot be compiled here ({made.stderr.splitlines()[-1]})")
    folder = bench.path("clock")
    session = bench.run(bench.file(SUPPRESS), folder, env={"LD_PRELOAD": str(clock)})
    session.end()
    hours = {line[:13] for line in (folder / "log.txt").read_text().splitlines()}
    assert len(hours) > 1, f"the clock did not jump: {hours}"
    return Row(
        fault="a clock that jumps by hours, forth and back",
        times=1,
        torn=len(damaged(folder)) + len(session.reader.torn),
        equal=bench.same(folder, SUPPRESS),
        note="the log's times jump, the progress goes on",
    )
