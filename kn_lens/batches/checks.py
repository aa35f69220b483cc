"""Whether a folder may be written: whether it is free, or holds a run of the same settings, data and versions."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kn_lens.batches.config import RunConfig, decisive
from kn_lens.batches.prompt_table import DROPPED, PROMPTS
from kn_lens.batches.source import open_source, placed
from kn_lens.batches.storage.durable import sha256_of
from kn_lens.batches.storage.part import Manifest, read_record
from kn_lens.errors import OutputError

log = logging.getLogger(__name__)

RUN_FILE = "run.yaml"


def check_free(folder: Path) -> None:
    """Refuse a folder that holds no run and something else, before anything is written.

    Raises:
        OutputError: Naming one thing in it.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"cannot write {folder}: it is a file; name another --out")
    known = {RUN_FILE, PROMPTS, DROPPED, "parts", "log.txt", "lock", "results", "report.html"}
    others = sorted(path.name for path in folder.iterdir() if path.name not in known) if folder.is_dir() else []
    others = [name for name in others if not name.startswith(".")]
    if others:
        raise OutputError(f"{folder} holds {others[0]!r}, which is no part of a run; name another --out")


def check_same(folder: Path, manifest: Manifest, config: RunConfig) -> None:
    """Refuse to go on with other settings, data or versions of the data.

    Raises:
        OutputError: Naming what differs.
    """
    differing = differences(manifest, config)
    if differing:
        raise OutputError(
            f"{folder} holds a run that differs in {differing}; go on with its own settings "
            f"(`kn-lens resume {shlex.quote(str(folder))}`), or name another --out"
        )
    for entry, plan in zip(config.data, manifest.data, strict=True):
        path = Path(placed(entry.name, Path(manifest.host["folder"]))).expanduser()
        placed_entry = entry.model_copy(update={"name": str(path)})
        if path.is_file() and open_source(placed_entry, config.on_bad_row).sha256 != plan.sha256:
            raise OutputError(
                f"{entry.name} has changed since the run in {folder} was planned; bring the file back, or name "
                f"another --out"
            )
    made_with = manifest.provenance.get("versions", {})
    for package in ("kn_lens", "torch", "transformer-lens", "transformers", "numpy"):
        try:
            now = version(package)
        except PackageNotFoundError:
            continue
        if made_with.get(package) not in (None, now):
            log.warning(
                "%s was planned with %s %s, and this is %s: pieces made from now on may differ in the last digits",
                folder,
                package,
                made_with[package],
                now,
            )


def check_parts(folder: Path, run: str) -> None:
    """Refuse to plan anew over the finished parts of another run, where its manifest can no longer tell.

    Args:
        folder: The run's.
        run: Fingerprint of the new plan.

    Raises:
        OutputError: If there are such parts, or a newer kn_lens wrote them.
    """
    for path in sorted((folder / "parts").glob("part-*.json")):
        try:
            record = read_record(path.read_bytes(), str(path))
        except OutputError:
            raise
        except (OSError, ValueError):  # damaged: the next one tells
            continue
        if record.run != run:
            raise OutputError(
                f"{folder} holds finished parts of a run with other settings, data, weights or versions of the data, "
                f"and its manifest is damaged or missing; bring those back, or name another --out"
            )
        return


def whole_prompts(folder: Path, manifest: Manifest) -> bool:
    """Whether the files of prompts are those that were planned."""
    for name, expected in ((PROMPTS, manifest.prompts_sha256), (DROPPED, manifest.dropped_sha256)):
        path = folder / name
        if not path.is_file() or sha256_of(path) != expected:
            log.warning("%s is missing or damaged; the run is planned anew, and its finished parts are kept", path)
            return False
    return True


def differences(manifest: Manifest, config: RunConfig) -> str:
    """In what a configuration differs from a run's, in words; empty if in nothing that decides its results."""
    there, here = decisive(manifest.config), decisive(config.model_dump(mode="json"))
    return ", ".join(
        f"{name} (there {json.dumps(was, ensure_ascii=False)}, here {json.dumps(now, ensure_ascii=False)})"
        for name, was, now in _differences("", there, here)
    )


def _differences(prefix: str, there: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in dict.fromkeys([*there, *here]):
            yield from _differences(f"{prefix}.{name}" if prefix else name, there.get(name), here.get(name))
    elif there != here:
        yield prefix, there, here
