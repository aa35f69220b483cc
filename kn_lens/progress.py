"""One kind of progress bar, with an estimate of what is left, for everything that takes long."""

from __future__ import annotations

from tqdm.auto import tqdm


def progress_bar(total: int | None, what: str, unit: str, enabled: bool = True, initial: int = 0) -> tqdm:
    """A bar over ``total`` units, ``initial`` of them done before, gone when done. Use as a context manager."""
    return tqdm(
        total=total, desc=what, unit=unit, disable=not enabled, leave=False, dynamic_ncols=True, initial=initial
    )
