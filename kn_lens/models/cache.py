"""A folder in the cache that is either whole or not there.

A folder is built under a temporary name beside its place and renamed when complete, so that a reader never sees half
of it. A stamp file inside lists size and BLAKE2b of every other file; a folder that does not match its stamp
(interrupted, full disk, edited) is built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

STAMP = "kn_lens_stamp.json"
_STALE_SECONDS = 3600


def cache_folder() -> Path:
    """``$KN_LENS_CACHE``, else ``kn_lens`` in the user's cache folder. Not created here."""
    named = os.environ.get("KN_LENS_CACHE")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("kn_lens", appauthor=False))


def cached_folder(final: Path, build: Callable[[Path], None]) -> Path:
    """Return ``final``, built first if it is missing or damaged.

    Args:
        final: where the folder belongs.
        build: writes the whole content into the empty folder it is given. What it raises is passed on, and
            nothing is left behind.

    Returns:
        ``final``. Several processes may do this at once: who finishes second discards its copy.
    """
    problem = damage(final)
    if problem is None:
        return final
    if final.exists():
        logger.warning("cached copy %s is damaged (%s): building it again", final, problem)
    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(final)
    temporary = _temporary_beside(final)
    temporary.mkdir()
    try:
        build(temporary)
        write_stamp(temporary)
        _install(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def write_stamp(folder: Path) -> None:
    """Record size and hash of every file of ``folder``, last of all, in the stamp file."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "blake2b": file_hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != STAMP
    }
    (folder / STAMP).write_text(json.dumps({"files": files}, indent=1))


def damage(folder: Path) -> str | None:
    """What is wrong with a stamped folder, or None if it is whole. Sizes first, then every byte."""
    try:
        files = json.loads((folder / STAMP).read_text())["files"]
        expected = {folder / name: (entry["size"], entry["blake2b"]) for name, entry in files.items()}
    except FileNotFoundError:
        return "it is incomplete"
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return "its stamp file cannot be read"
    for path, (size, _) in expected.items():
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
    for path, (_, digest) in expected.items():
        if file_hash(path) != digest:
            return f"{path.name} has changed"
    return None


def file_hash(path: Path, algorithm: str = "blake2b") -> str:
    """Hexadecimal digest of a file by one of hashlib's algorithms."""
    running = hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(2**20):
            running.update(block)
    return running.hexdigest()


def _install(temporary: Path, final: Path) -> None:
    problem: OSError | None = None
    for _ in range(3):
        try:
            # Renaming onto a folder that is not empty fails, so a whole copy of another process stays.
            temporary.rename(final)
            return
        except OSError as error:
            problem = error
        if damage(final) is None:  # another process was faster
            return
        aside = _temporary_beside(final)
        with contextlib.suppress(OSError):  # or another process is replacing it right now
            final.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    raise OSError(f"cannot put the cached copy in place at {final}: {problem}")


def _temporary_beside(final: Path) -> Path:
    return final.with_name(f".{final.name}.{uuid.uuid4().hex[:12]}.tmp")


def _remove_stale(final: Path) -> None:
    """Clear what killed processes left; a young folder may belong to a living one."""
    for path in final.parent.glob(f".{final.name}.*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
