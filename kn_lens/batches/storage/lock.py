"""One process at a time runs a run: a lock that the system takes back when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from datetime import datetime
from pathlib import Path

from kn_lens.batches.storage.durable import cannot_write
from kn_lens.errors import OutputError

LOCK = "lock"
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_TRIES, _PAUSE = 8, 0.05
_held: set[int] = set()


class RunLock:
    """The lock of a run's folder; use as a context manager.

    Args:
        folder: The run's; made if need be.

    Raises:
        OutputError: On entry, naming the process that holds it; or if the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        path = self.folder / LOCK
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise cannot_write(path, error, self.folder) from None
        try:
            self._take(descriptor, path)
            holder = {
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "since": datetime.now().astimezone().isoformat(timespec="seconds"),
            }
            _write(descriptor, json.dumps(holder).encode(), path)
        except BaseException:
            os.close(descriptor)
            raise
        _held.add(descriptor)
        self._descriptor = descriptor
        return self

    def __exit__(self, *error: object) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor in _held:  # not so in a forked child, whose copy is closed
            _held.discard(descriptor)
            with contextlib.suppress(OSError):  # a holder that is still named does no harm: the lock itself is free
                os.ftruncate(descriptor, 0)
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _take(self, descriptor: int, path: Path) -> None:
        for tries_left in reversed(range(_TRIES)):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise OutputError(
                        f"cannot lock {path}: {error.strerror or error}; run it on a file system that can lock files"
                    ) from None
            told = _holder(path)
            # the one named may have died just now, or a holder not be named yet; and `holder_of` too holds it briefly
            if not tries_left or (told is not None and not _is_gone(told)):
                raise OutputError(
                    f"{self.folder} is being run already ({_named(told)}); wait until that has ended, or stop it first"
                )
            time.sleep(_PAUSE)


def holder_of(folder: Path) -> str | None:
    """``"host, process 123, since …"`` of the process that runs a run now; None if none does. It writes nothing."""
    path = Path(folder) / LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _named(_holder(path)) if error.errno in _TAKEN else None
    finally:
        os.close(descriptor)
    return None


def _write(descriptor: int, text: bytes, path: Path) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)
    except OSError as error:
        raise cannot_write(path, error, path.parent) from None


def _holder(path: Path) -> dict[str, object] | None:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return told if isinstance(told, dict) and {"host", "pid", "since"} <= told.keys() else None


def _named(told: dict[str, object] | None) -> str:
    if told is None:
        return "another process"
    return f"{told['host']}, process {told['pid']}, since {told['since']}"


def _is_gone(told: dict[str, object]) -> bool:
    """Whether a process of this host is no longer there; of others nothing is known."""
    if told["host"] != socket.gethostname() or not isinstance(told["pid"], int):
        return False
    try:
        os.kill(told["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _forget_in_child() -> None:
    """A forked worker must not go on holding the lock of a coordinator that was killed."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
