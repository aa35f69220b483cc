"""Pieces that several experiments share, or that one is made of: made once, and kept in a folder if there is one.

A run that was stopped finds its finished pieces there and goes on. A piece that cannot be read is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kn_lens._version import __version__
from kn_lens.errors import OutputError

log = logging.getLogger(__name__)


class Saved(Protocol):
    """What can be kept: it saves itself into a folder, and its class reads it back."""

    def save(self, folder: Path, /) -> Any: ...

    @classmethod
    def load(cls, folder: Path, /) -> Any: ...


Kept = TypeVar("Kept", bound=Saved)


class Pieces:
    """Pieces of work on one model.

    Args:
        folder: Where they are kept beyond this process; None keeps them in memory.
        again: Make all anew, once, whatever the folder holds.
    """

    def __init__(self, folder: Path | None = None, *, again: bool = False) -> None:
        self.folder = folder
        self._again, self._anew = again, set[str]()
        self._made: dict[str, Any] = {}

    def keep(self, what: str, about: Mapping[str, Any], kind: type[Kept], make: Callable[[], Kept]) -> Kept:
        """The piece of that name and those settings: as made before, or made now and kept.

        Args:
            what: Its name, for people: ``"localization-P36-mlp"``.
            about: All that it depends on but the model: data, settings, seed.
            kind: Its class, with ``save`` and ``load``.
            make: Makes it.

        Raises:
            OutputError: If the folder cannot be written.
        """
        name = self.name(what, about)
        if self.folder is not None:  # read again when it is needed again: the pieces of a large model fill the memory
            found = self._read(name, kind)
            return self._write(name, make()) if found is None else found
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def path(self, what: str, about: Mapping[str, Any]) -> Path | None:
        """Where a piece that keeps itself, as a journal does, may lie; None without a folder."""
        if self.folder is None:
            return None
        name = self.name(what, about)
        if self._again and name not in self._anew:
            self._anew.add(name)
            (self.folder / name).unlink(missing_ok=True)
        return self.folder / name

    @staticmethod
    def name(what: str, about: Mapping[str, Any]) -> str:
        """A file name that tells pieces of other settings, or of another version, apart."""
        told = json.dumps({**about, "kn_lens": __version__}, sort_keys=True, default=str)
        readable = re.sub(r"[^\w.-]+", "-", what).strip("-")
        return f"{readable}-{hashlib.sha256(told.encode()).hexdigest()[:10]}"

    def _read(self, name: str, kind: type[Kept]) -> Kept | None:
        assert self.folder is not None
        if not (self.folder / name).is_dir() or (self._again and name not in self._anew):
            return None
        try:
            return kind.load(self.folder / name)
        except OutputError as error:
            log.warning("%s; it is made again", error)
            return None

    def _write(self, name: str, piece: Kept) -> Kept:
        assert self.folder is not None
        self._anew.add(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.folder))
            try:
                piece.save(partial)
                shutil.rmtree(self.folder / name, ignore_errors=True)
                partial.rename(self.folder / name)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            raise OutputError(f"cannot write {self.folder / name}: {error.strerror or error}") from None
        return piece
