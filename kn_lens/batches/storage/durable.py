"""Files that are there whole or not at all: written under a temporary name, synced to the disk, renamed, their
folder synced.

A process that dies, at whatever moment, leaves either the old file or the new one, and at worst a temporary file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shlex
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict

from kn_lens.errors import OutputError

_TEMPORARY = re.compile(r"\..+\.[^/]+-\d+-x[0-9a-f]{6}")
_WHAT_HELPS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "allow larger files (ulimit -f, or another file system)",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
"""What a file system says that cannot sync folders: nothing more can be done there."""


class FileRecord(BaseModel):
    """A file's SHA-256 and its size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Staged:
    """A file that is on the disk in full, still under its temporary name."""

    temporary: Path
    path: Path
    record: FileRecord
    run: Path

    def place(self) -> bool:
        """Give it its name (the folder is not yet synced); False if another process tidied it up in the meantime.

        Raises:
            OutputError: If it cannot be renamed.
        """
        try:
            os.replace(self.temporary, self.path)
        except FileNotFoundError:
            return False
        except OSError as error:
            self.discard()
            raise cannot_write(self.path, error, self.run) from None
        return True

    def discard(self) -> None:
        """Remove it, if it is still there under its temporary name."""
        with contextlib.suppress(OSError):
            self.temporary.unlink()


def stage(path: Path, write: Callable[[BinaryIO], object], run: Path | None = None) -> Staged:
    """Write a file under a temporary name beside ``path`` and sync it to the disk.

    Args:
        path: The name that it is to have.
        write: Writes it into the open file, from its beginning to its end; it cannot seek.
        run: The run's folder, for errors (default: the file's own).

    Raises:
        OutputError: If it cannot be written; nothing of it is left then. What ``write`` raises itself passes as it is.
    """
    run = path.parent if run is None else run
    temporary = path.with_name(temporary_name(path.name))
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise cannot_write(path, error, run) from None
    raw = _HashedFile(descriptor, path, run)
    file = io.BufferedWriter(raw)
    try:
        write(file)
        file.flush()
        raw.sync()
        file.close()
    except BaseException:
        raw.abandon()
        file.close()
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return Staged(temporary, path, raw.record, run)


def write_durably(path: Path, write: Callable[[BinaryIO], object], run: Path | None = None) -> FileRecord:
    """Write a file so that it is there whole or, whatever happens, not at all; arguments as of :func:`stage`.

    Raises:
        OutputError: If it cannot be written, or another process tidied it up while it was written.
    """
    staged = stage(path, write, run)
    if not staged.place():
        raise OutputError(f"cannot write {path}: another process tidied up meanwhile; let one at a time write it")
    sync_folder(path.parent, staged.run)
    return staged.record


def sync_folder(folder: Path, run: Path | None = None) -> None:
    """Sync the names in a folder to the disk, so that files that were renamed or removed stay so.

    Raises:
        OutputError: If the disk refuses.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise cannot_write(folder, error, run or folder) from None


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: keys sorted, no spaces, UTF-8.

    Raises:
        ValueError: If it holds NaN or an infinity.
        TypeError: If it holds what JSON has no word for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        OutputError: If it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from None
    return digest.hexdigest()


def temporary_name(name: str) -> str:
    """A name for a file that is to be ``name``: hidden, with this host and process, never given twice."""
    host = re.sub(r"[^\w.]", "_", socket.gethostname()) or "host"
    return f".{name}.{host}-{os.getpid()}-x{secrets.token_hex(3)}"


def is_temporary(name: str) -> bool:
    """Whether a file name is one that :func:`temporary_name` gave."""
    return _TEMPORARY.fullmatch(name) is not None


def cannot_write(path: Path, error: OSError, run: Path) -> OutputError:
    """The error of a file in a run's folder that cannot be written: why, and what helps."""
    resume = f"`kn-lens resume {shlex.quote(str(run))}`"
    helps = _WHAT_HELPS.get(error.errno or 0)
    then = f"{helps} and run {resume}" if helps else f"run {resume} once it can be written"
    return OutputError(f"cannot write {path}: {error.strerror or error}; what is finished is kept: {then}")


class _HashedFile(io.RawIOBase):
    """A file open for writing that hashes what goes through it and says in one line what the system refuses.

    Errors are translated here, not around the caller's block, so that an ``OSError`` of something else is not taken for
    this file's.
    """

    def __init__(self, descriptor: int, path: Path, run: Path) -> None:
        self._descriptor, self._path, self._run = descriptor, path, run
        self._digest, self._bytes = hashlib.sha256(), 0
        self._abandoned = False

    @property
    def record(self) -> FileRecord:
        return FileRecord(sha256=self._digest.hexdigest(), bytes=self._bytes)

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        if self._abandoned:  # what the buffer still holds when it is closed after an error
            return len(view)
        try:
            count = os.write(self._descriptor, view)
        except OSError as error:
            raise cannot_write(self._path, error, self._run) from None
        self._digest.update(view[:count])
        self._bytes += count
        return count

    def sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:  # here full disks and quotas of network file systems show
            raise cannot_write(self._path, error, self._run) from None

    def abandon(self) -> None:
        self._abandoned = True

    def close(self) -> None:
        if self.closed:
            return
        try:
            os.close(self._descriptor)
        except OSError as error:
            if not self._abandoned:
                raise cannot_write(self._path, error, self._run) from None
        finally:
            super().close()
