"""Where the data that ships with kn_lens lies."""

from __future__ import annotations

from pathlib import Path


def data_folder() -> Path:
    """Where the bundled data lies: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "data"
    return inside if inside.is_dir() else package.parent / "data"
