"""The folder beside a run's own that keeps what is finished of it, so that a run that broke off can be taken up."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kn_lens.criteria.journal import finished_parts
from kn_lens.errors import OutputError

SUFFIX = ".partial"

_SETTINGS = "settings.json"


def unfinished_folder(out: Path) -> Path:
    """``"runs/edits.partial"`` for ``"runs/edits"``."""
    out = out.resolve()
    return out.with_name(out.name + SUFFIX)


def check_unfinished(out: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with an unfinished run of other settings, before any work is done.

    Raises:
        OutputError: If the folder is of another run (what differs is named), or none that was left by one.
    """
    folder = unfinished_folder(out)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        there = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise OutputError(f"{folder} is no unfinished run of kn-lens; remove it, or name another --out") from None
    here = json.loads(json.dumps(dict(settings)))
    differing = [
        f"{name} (there {json.dumps(there.get(name))}, here {json.dumps(here.get(name))})"
        for name in dict.fromkeys([*there, *here])
        if there.get(name) != here.get(name)
    ]
    if differing:
        raise OutputError(
            f"{folder} holds an unfinished run that differs in {', '.join(differing)}; finish it with its own "
            f"settings, remove it, or name another --out"
        )


def check_parts(out: Path, wanted: Iterable[str]) -> None:
    """Refuse to go on where journals are kept that the run has no use for: at its end they would be removed.

    Args:
        out: The run's folder.
        wanted: Names in the unfinished folder, files or folders, that the run goes on with.

    Raises:
        OutputError: Naming the first of the others.
    """
    folder = unfinished_folder(out)
    known = {*wanted, _SETTINGS}
    others = sorted(path.name for path in folder.iterdir() if path.name not in known) if folder.is_dir() else []
    others = [name for name in others if finished_parts(folder / name)]
    if others:
        raise OutputError(
            f"{folder} keeps finished edits that this command does not ask for ({', '.join(others)}); ask for these "
            f"too, remove them, or name another --out"
        )


@contextmanager
def unfinished(out: Path, settings: Mapping[str, Any]) -> Iterator[Path]:
    """A folder for journals while a run lasts: gone when the block ends well, or with no part of the run finished.

    Raises:
        OutputError: As :func:`check_unfinished`, or if it cannot be written.
    """
    check_unfinished(out, settings)
    folder = unfinished_folder(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{_SETTINGS}.new"
        partial.write_text(json.dumps(dict(settings), indent=1), encoding="utf-8")
        os.replace(partial, folder / _SETTINGS)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from None
    try:
        yield folder
    except BaseException:
        if not finished_parts(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
