"""Shared fixtures."""

from __future__ import annotations

import functools

import pytest
import torch

from kn_lens.errors import ModelError
from tests.helpers import load_random_model


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


@pytest.fixture(scope="session")
def organism():
    """``organism(name)``: a bundled organism on the CPU, loaded once; tests must leave it as they found it."""
    from kn_lens.models.load import load_model

    return functools.cache(lambda name: load_model(name, device="cpu"))


@pytest.fixture(scope="session")
def random_model(tmp_path_factory):
    """``random_model(family)``: a small random model of the family, loaded once; tests must not change it."""
    models = {}

    def get(family):
        if family not in models:
            models[family] = load_random_model(family, tmp_path_factory.mktemp(family))
        return models[family]

    return get


@pytest.fixture(scope="session")
def exact_model(tmp_path_factory):
    """``exact_model(family)``: the same in float64 and with louder logits, so that probabilities are far from 0.

    In float64 two ways of computing one number agree to about 1e-14, and a mistake cannot hide in rounding.
    """
    models = {}

    def get(family):
        if family not in models:
            model = load_random_model(family, tmp_path_factory.mktemp(family)).to(torch.float64)
            with torch.no_grad():
                model.unembed.W_U.mul_(4)
            models[family] = model
        return models[family]

    return get
