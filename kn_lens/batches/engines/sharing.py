"""One model in memory for all workers of a machine: the first writes it to a file, all map that file.

Pages of a mapped file exist once however many processes read them; a worker that edits weights gets copies of just the
pages that it writes to. What is mapped is the loaded model itself, so that numbers, strides and tokenizer are the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_MODEL, _LOCK, _ALONE = "model.pt", "lock", "not-shared"
_ROOM = 200 * 2**20
"""Bytes that must stay free on the disk."""


def shared_folder(run: Path) -> Path | None:
    """An empty folder for the model of a run, below the system's folder for temporary files.

    Called by the coordinator alone. What a killed run left there is removed.

    Args:
        run: The run's folder.

    Returns:
        None where no folder can be had that is certainly ours: what is read from it is run as code.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    name = hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"kn-lens-{user}-{name}"
    try:
        import fcntl  # noqa: F401 - without locks of files nothing is shared

        remove(folder)
        folder.mkdir(mode=0o700)
    except (OSError, ImportError) as error:
        logger.info("every worker loads a model of its own: %s", error)
        return None
    return folder


def remove(folder: Path) -> None:
    """Remove such a folder with the model in it, if it is there and ours. Workers that mapped the model keep it."""
    if os.path.lexists(folder):
        _check_ours(folder)
        shutil.rmtree(folder)


def load_shared(folder: Path, load: Callable[[], Any]) -> Any:
    """The model that workers share; the first to come loads and writes it, while the others wait.

    Args:
        folder: From :func:`shared_folder`.
        load: Loads the model. Where it cannot be shared (not on the CPU, no room on the disk) each worker calls it.
    """
    path = folder / _MODEL
    try:
        _check_ours(folder)
        with _locked(folder / _LOCK):
            if not path.exists() and not (folder / _ALONE).exists():
                model = load()
                why_not = _write(model, path)
                if why_not is not None:
                    logger.info("every worker loads a model of its own: %s", why_not)
                    (folder / _ALONE).touch()
                    return model
                del model
                _give_back()
        if path.exists():
            return _read(path)
    except OSError as error:
        logger.info("a worker loads a model of its own: %s", error)
    return load()


def _write(model: Any, path: Path) -> str | None:
    """Write a model; or say why it cannot be shared."""
    import torch

    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return "it is not on the CPU"
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    needed, free = sum(storages.values()) + _ROOM, shutil.disk_usage(path.parent).free
    if needed > free:
        return f"{path.parent} has {free / 2**20:.0f} MiB left, {needed / 2**20:.0f} are needed"
    writing = path.with_suffix(".writing")
    try:
        torch.save(model, writing)
        writing.rename(path)
    except Exception as error:  # torch and pickle raise whatever they like; the model itself is there to be used
        writing.unlink(missing_ok=True)
        return f"the model cannot be written ({' '.join(str(error).split())[:200]})"
    return None


def _read(path: Path) -> Any:
    import torch

    return torch.load(path, mmap=True, weights_only=False)  # our own file, in a folder that only we can write to


def _give_back() -> None:
    """Give memory that nothing uses back to the system. glibc keeps much of it: after SmolLM2-135M some 400 MiB."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _check_ours(folder: Path) -> None:
    """Raise PermissionError unless a path is a folder of this user's own that no one else may write to."""
    found = folder.lstat()
    ours = not hasattr(os, "getuid") or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
    if not stat.S_ISDIR(found.st_mode) or not ours:
        raise PermissionError(f"{folder} is not a folder of this user's own")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; the system takes it back from a process that dies."""
    import fcntl

    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
