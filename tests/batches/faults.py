"""Faults for the tests of the store: small file systems of their own, processes of their own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(point: Path, options: str) -> Iterator[Path]:
    """A small file system in memory while the block lasts. The test is skipped where it may not be mounted."""
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot mount a tmpfs here ({error})")
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here ({done.stderr.strip()})")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=False)


def remount(point: Path, options: str) -> None:
    """Change how a file system is mounted: ``ro`` or ``rw``."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(point)], check=True)


def child(code: str, *arguments: object, **options) -> str:
    """Run Python code in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
