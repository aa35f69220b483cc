"""Silence for code of others while a model is loaded.

TransformerLens and transformers print, warn of deprecations and draw progress bars of their own on every load.
None of it is about what the user did; what does concern them, kn_lens says itself in one log line.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Hold back prints, warnings, progress bars and log lines of TransformerLens and transformers.

    Everything is put back on leaving, also after an exception. Not for use around code that logs for kn_lens.

    Args:
        bars: let progress bars through: wanted for a download.
    """
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as hf_logging

    root = logging.getLogger()
    # TransformerLens logs on the root logger itself, and `logging.warning` there installs a handler for
    # good if it finds none. A stand-in handler keeps the user's logging set-up as it was.
    stand_in = logging.NullHandler()
    verbosity, hub_verbosity = hf_logging.get_verbosity(), hub_logging.get_verbosity()
    hide_bars = not bars and hf_logging.is_progress_bar_enabled()
    root.addHandler(stand_in)
    root.addFilter(_reject)
    hf_logging.set_verbosity(logging.CRITICAL)
    hub_logging.set_verbosity(logging.CRITICAL)
    if hide_bars:
        hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if hide_bars:
            hf_logging.enable_progress_bar()
        root.removeFilter(_reject)
        root.removeHandler(stand_in)


def _reject(record: logging.LogRecord) -> bool:
    # A logger's filter sees only what is logged on that very logger, so other libraries' lines still pass.
    return record.levelno >= logging.CRITICAL
