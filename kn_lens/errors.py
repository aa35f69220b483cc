"""Errors a user can cause. Each says in one line what is wrong, where, and what would be right.

All are ``ValueError`` subclasses; the command line prints the message and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class KnLensError(ValueError):
    """Base of every error that kn_lens raises on purpose."""


class ModelError(KnLensError):
    """A model that is unknown, damaged, too large, or unfit for what is asked of it."""


class DataError(KnLensError):
    """A data set that is unknown, or a file in it that is broken (file and line are named)."""


class PromptError(KnLensError):
    """A prompt that this model cannot be asked."""


class NothingLeft(PromptError):
    """No prompt is left of those given; ``dropped`` says why each was left out."""

    def __init__(self, message: str, dropped: Iterable[Any] = ()) -> None:
        super().__init__(message)
        self.dropped = tuple(dropped)


class UnitsError(KnLensError):
    """Units (layer, index) or a site that the model does not have."""


class SettingsError(KnLensError):
    """A setting outside its range."""


class OutputError(KnLensError):
    """A folder or file that cannot be written or read back."""


def near_matches(name: str, known: Iterable[str], count: int = 3) -> str:
    """``" Did you mean 'a' or 'b'?"`` for the known names closest to ``name``, or ``""``."""
    folded = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(name.lower(), list(folded), n=count, cutoff=0.55)
    if not close:
        return ""
    return " Did you mean " + " or ".join(repr(folded[entry]) for entry in close) + "?"
