"""Shared fixtures."""

from __future__ import annotations

import pytest

from kn_lens.errors import ModelError


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M on the CPU, loaded once; tests must leave it as they found it. Skipped where it cannot be had."""
    from kn_lens.models.load import load_model

    try:
        return load_model("smollm2-135m", device="cpu")
    except ModelError as error:
        if "Cannot fetch" in str(error):
            pytest.skip(str(error))
        raise
