"""Disks that are full or cannot be written, and files that are damaged."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kn_lens.batches.storage.store import Store
from tests.faults.bench import SUPPRESS, Bench, NotTried, Row, damaged, gone, records_of, temporary_files

_ROOM = "size=32m"


@contextmanager
def small_disk(bench: Bench, options: str) -> Iterator[Path]:
    """A file system in memory while the block lasts.

    Raises:
        NotTried: Where it may not be mounted.
    """
    point = bench.path("disk")
    point.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", options, "tmpfs", point)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotTried(f"no file system can be mounted here ({getattr(error, 'stderr', '') or error})") from None
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=False)


def _mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True, text=True)


def remount(point: Path, options: str) -> None:
    """Give a file system other options: another size, or ``ro``."""
    _mount("-o", f"remount,{options}", point)


def disk_full(bench: Bench) -> Row:
    """A disk that is full in planning, then among the parts; room is made, and the run goes on."""
    with small_disk(bench, "size=16k") as disk:
        folder = disk / "run"
        said = [bench.run(bench.file(SUPPRESS), folder).refused()]
        assert not (folder / "manifest.json").exists()
        left = len(temporary_files(folder))
        remount(disk, "size=240k")
        session = bench.resume(folder)
        said.append(session.refused())
        before = records_of(folder)
        assert before, "the disk was full before the first piece"
        torn = len(damaged(folder)) + len(session.reader.torn)
        left += len(temporary_files(folder))
        # a worker that was writing as another one met the full disk is killed
        remount(disk, _ROOM)
        bench.resume(folder).end()
        lost = len(gone(before, records_of(folder)))
        equal = bench.same(folder, SUPPRESS)
    for line in said:
        assert "No space left on device" in line, line
        assert "free some space and run `kn-lens resume" in line, line
    note = f"exit code 2, one line: free some space and run kn-lens resume; {left} temporary files left"
    return Row(
        fault="disk full, in planning and among the parts",
        times=2,
        finished=len(before),
        lost=lost,
        torn=torn,
        equal=equal,
        note=note,
    )


def files_limited(bench: Bench) -> Row:
    """Files that may not grow beyond a limit (``ulimit -f``): what a quota does, where nothing can be mounted."""
    folder = bench.copy(SUPPRESS, without=range(0, 24, 2))
    before = records_of(folder)
    session = bench.resume(folder, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)))
    line = session.refused()
    assert "File too large" in line, line
    torn = len(damaged(folder)) + len(session.reader.torn)
    bench.resume(folder).end()
    lost = len(gone(before, records_of(folder)))
    return Row(
        fault="files limited in size (ulimit -f)",
        finished=len(before),
        lost=lost,
        torn=torn,
        equal=bench.same(folder, SUPPRESS),
        note="exit code 2, one line",
    )


def read_only(bench: Bench) -> Row:
    """A folder that cannot be written: it is said so, and what is there can be read."""
    if os.geteuid() == 0:
        with small_disk(bench, _ROOM) as disk:
            folder = bench.copy(SUPPRESS, disk / "run", without=(1, 5))
            return _read_only(bench, folder, lambda writable: remount(disk, "rw" if writable else "ro"))
    folder = bench.copy(SUPPRESS, without=(1, 5))

    def change(writable: bool) -> None:
        for path in (folder, folder / "parts", *folder.iterdir()):
            path.chmod((0o755 if path.is_dir() else 0o644) if writable else (0o555 if path.is_dir() else 0o444))

    return _read_only(bench, folder, change)


def _read_only(bench: Bench, folder: Path, change: Callable[[bool], None]) -> Row:
    before = records_of(folder)
    change(False)
    try:
        line = bench.resume(folder).refused()
        assert "make it writable and run `kn-lens resume" in line, line
        status = bench.start("status", folder, folder=folder).end()
        assert "22 of 24 pieces" in status, status
        out = bench.path("elsewhere")
        bench.start("results", folder, "--out", out, folder=folder).end()
        assert {path.name for path in out.iterdir()} == {"suppress.parquet", "prompts.parquet"}
        line = bench.start("results", folder, folder=folder).refused()
        assert "cannot write" in line, line
    finally:
        change(True)
    bench.resume(folder).end()
    return Row(
        fault="read-only folder",
        finished=len(before),
        lost=len(gone(before, records_of(folder))),
        equal=bench.same(folder, SUPPRESS),
        note="exit code 2, one line; status and results --out work",
    )


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    path.write_bytes(raw)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": _flip,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


def damaged_parts(bench: Bench, config: dict[str, Any] = SUPPRESS) -> Row:
    """Each file of a part, damaged in each way, each in a part of its own: these are computed again, no others."""
    folder = bench.copy(config)
    before = records_of(folder)
    store = Store(folder)
    kinds = [(suffix, how) for suffix in ("parquet", "safetensors", "json") for how in DAMAGES]
    for number, (suffix, how) in enumerate(kinds):
        DAMAGES[how](store.parts / f"part-{number:05d}.{suffix}")
    text = bench.resume(folder).end()
    for number, (suffix, _) in enumerate(kinds):
        assert suffix == "json" or f"part-{number:05d}.{suffix}" in text, text
    after = records_of(folder)
    again = {f"part-{number:05d}.json" for number in range(len(kinds))}
    changed = set(gone(before, after))
    assert again <= changed, f"not computed again: {again - changed}"
    return Row(
        fault="parts damaged: table, result or record with a flipped bit, cut off, empty or missing",
        times=len(kinds),
        finished=len(before) - len(kinds),
        lost=len(changed - again),
        torn=len(damaged(folder)),
        equal=bench.same(folder, config),
        note="the damaged parts are computed again, no others",
    )


def damaged_index(bench: Bench) -> Row:
    """The index, damaged in each way: it is written anew from the records, and nothing is computed."""
    before, lost = {}, 0
    equal = True
    for damage in DAMAGES.values():
        folder = bench.copy(SUPPRESS)
        before = records_of(folder)
        damage(folder / "parts" / "index.jsonl")
        status = bench.start("status", folder, folder=folder).end()
        assert "complete" in status, status
        bench.resume(folder).end()
        lost += len(gone(before, records_of(folder)))
        equal = equal and bench.same(folder, SUPPRESS)
    return Row(
        fault="index with a flipped bit, cut off, empty, missing",
        times=len(DAMAGES),
        finished=len(before) * len(DAMAGES),
        lost=lost,
        equal=equal,
        note="nothing is computed again",
    )


def damaged_manifest(bench: Bench) -> list[Row]:
    """The manifest damaged in each way: planned anew from run.yaml, parts kept; and one of a newer program."""
    before, lost = {}, 0
    equal = True
    for damage in DAMAGES.values():
        folder = bench.copy(SUPPRESS)
        before = records_of(folder)
        damage(folder / "manifest.json")
        bench.start("status", folder, folder=folder).refused()
        bench.resume(folder).end()
        lost += len(gone(before, records_of(folder)))
        equal = equal and bench.same(folder, SUPPRESS)
    folder = bench.copy(SUPPRESS)
    manifest = folder / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_text(json.dumps({**json.loads(whole), "format": 99}))
    there = sorted(path.name for path in folder.rglob("*"))
    for session in (bench.resume(folder), bench.start("status", folder, folder=folder)):
        line = session.refused()
        assert "written by a newer kn_lens (format 99" in line, line
        assert line.endswith("update kn_lens"), line
    assert sorted(path.name for path in folder.rglob("*")) == there
    manifest.write_bytes(whole)
    return [
        Row(
            fault="manifest with a flipped bit, cut off, empty, missing",
            times=len(DAMAGES),
            finished=len(before) * len(DAMAGES),
            lost=lost,
            equal=equal,
            note="planned anew from run.yaml, no part computed again",
        ),
        Row(
            fault="manifest of a newer kn_lens",
            finished=len(before),
            lost=len(gone(before, records_of(folder))),
            equal=bench.same(folder, SUPPRESS),
            note="exit code 2, one line: update kn_lens; nothing is touched",
        ),
    ]


def damaged_prompts(bench: Bench) -> Row:
    """The prompts damaged in each way: results say so, a resume plans them anew and keeps the parts."""
    before, lost = {}, 0
    equal = True
    finished = 0
    for at, damage in enumerate(DAMAGES.values()):
        folder = bench.copy(SUPPRESS, without=() if at else (0, 3))
        before = records_of(folder)
        finished += len(before)
        damage(folder / "prompts.parquet")
        out = bench.path("none")
        line = bench.start("results", folder, "--out", out, folder=folder).refused()
        assert "prompts.parquet" in line, line
        bench.resume(folder).end()
        lost += len(gone(before, records_of(folder)))
        equal = equal and bench.same(folder, SUPPRESS)
        shutil.rmtree(folder)
    return Row(
        fault="prompts.parquet with a flipped bit, cut off, empty, missing",
        times=len(DAMAGES),
        finished=finished,
        lost=lost,
        equal=equal,
        note="planned anew, no finished part computed again",
    )
