"""Windows of layers: states of neighbouring layers patched, or cut, together."""

from __future__ import annotations

import logging
import operator
from typing import Any

from kn_lens.errors import SettingsError
from kn_lens.streams import Stream

log = logging.getLogger(__name__)

PAPER_WINDOW = 10
_SHALLOW = 20  # layers; up to here the paper's window would cover half of the model or more


def window_of(layer: int, width: int, n_layers: int) -> range:
    """The ``width`` layers around ``layer``, clipped at the ends; an even window has one more before than after."""
    return range(max(0, layer - width // 2), min(n_layers, layer - width // 2 + width))


def default_window(stream: Stream) -> int:
    """1; for MLP and attention outputs the paper's 10, or a fifth of the layers of a shallow model."""
    if stream.name not in ("mlp", "attn"):
        return 1
    return PAPER_WINDOW if stream.n_layers > _SHALLOW else max(1, round(stream.n_layers / 5))


def whole_number(what: str, value: Any) -> int:
    """``value`` as an int.

    Raises:
        SettingsError: If it is none.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise SettingsError(f"{what} is {value!r}; give a whole number") from None


def check_window(stream: Stream, window: int | None) -> int:
    """The window to use; one larger than the model is clipped, and the log says so.

    Raises:
        SettingsError: If it is below 1, or above 1 for single units.
    """
    width = default_window(stream) if window is None else whole_number("window", window)
    if width < 1:
        raise SettingsError(f"window is {width}; it must be at least 1 layer")
    if stream.n_units is not None and width > 1:
        raise SettingsError(
            f"window is {width} for stream {stream.name!r}: the units of two layers have nothing in common but a "
            f"number; take window=1"
        )
    if width > stream.n_layers:
        log.warning("window %d is clipped to the %d layers of the model", width, stream.n_layers)
        width = stream.n_layers
    return width
