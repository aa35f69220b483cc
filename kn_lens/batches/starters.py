"""Run files to begin with: ``kn-lens init tracing > tracing.yaml`` runs as it is and says what else may stand there."""

from __future__ import annotations

from pathlib import Path

from kn_lens.errors import SettingsError, near_matches

_FOLDER = Path(__file__).parent / "starters"
_RUN = "_run"  # what all of them end with

_NAMES = ("tracing", "knockout", "patching", "attribution", "search", "suppression", "ablation", "editing")


def _about(name: str) -> str:
    """What the first line says, behind the name."""
    with (_FOLDER / f"{name}.yaml").open(encoding="utf-8") as file:
        return file.readline().partition(": ")[2].strip()


STARTERS: dict[str, str] = {name: _about(name) for name in _NAMES}
"""What each is for, by name."""


def starter(name: str) -> str:
    """The text of a commented run file.

    Args:
        name: One of :data:`STARTERS`.

    Raises:
        SettingsError: If there is none of that name; near matches are named.
    """
    if name not in STARTERS:
        raise SettingsError(f"no example {name!r}.{near_matches(name, STARTERS)} Examples: {', '.join(STARTERS)}")
    return "".join((_FOLDER / f"{part}.yaml").read_text(encoding="utf-8") for part in (name, _RUN))
