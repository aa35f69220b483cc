"""Edits that should not work if ROME's choices matter: at a layer drawn at random, and with a key drawn at random."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import torch

from kn_lens.editing.hyperparameters import hyperparameters_of
from kn_lens.editing.rank_one import RankOneEdit
from kn_lens.editing.rome import Layer, chosen_layer, require_rome, rome
from kn_lens.errors import SettingsError
from kn_lens.models.kind import model_name
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Prompt


def rome_at_random_layer(
    model: Any, fact: Fact | Prompt, *, layer: Layer = None, seed: int = 0, **options: Any
) -> RankOneEdit:
    """ROME at another layer than the chosen one, drawn from all others by the seed and the fact.

    Args:
        model: As for :func:`kn_lens.editing.rome.rome`; it is left as it was.
        fact: What it shall say.
        layer: The chosen layer, which is not taken; as for rome.
        seed: Of the draw, and of rome.
        options: The others of rome.

    Raises:
        SettingsError: If the model has one layer only.
        ModelError, PromptError: As rome.
    """
    require_rome(model)
    fact = Fact.from_prompt(fact) if isinstance(fact, Prompt) else fact
    site = options.get("site", "mlp")
    where = options.get("position") or hyperparameters_of(model).position_at(site)
    chosen = chosen_layer(model, fact, layer, site=site, position=where, seed=seed)
    others = [other for other in range(model.cfg.n_layers) if other != chosen]
    if not others:
        raise SettingsError(f"{model_name(model)} has one layer, so that there is no other to edit as a control")
    drawn = others[int(torch.randint(len(others), (1,), generator=_generator(seed, fact, "layer")))]
    edit = rome(model, fact, layer=drawn, seed=seed, **options)
    return replace(edit, editor=f"{edit.editor}, random layer", settings={**edit.settings, "instead of layer": chosen})


def with_random_direction(edit: RankOneEdit, seed: int = 0) -> RankOneEdit:
    """The edit with another key: of a random direction, the same right side v* − kW and the same Frobenius norm.

    The key is as long as it must be for the update to change its output by the right side. ``start`` and the losses
    stay those of the edit.

    Args:
        edit: A rank-one edit.
        seed: Of the draw, together with the fact.
    """
    left = edit.left.double()
    drawn = torch.randn(len(left), generator=_generator(seed, edit.fact, "direction"), dtype=torch.float64)
    unit, size = drawn / drawn.norm(), left.norm()
    return replace(
        edit,
        editor=f"{edit.editor}, random direction",
        key=(unit / size).to(edit.key.dtype),
        left=(unit * size).to(edit.left.dtype),
        settings={**edit.settings, "direction seed": seed},
    )


def rome_random_direction(model: Any, fact: Fact | Prompt, *, seed: int = 0, **options: Any) -> RankOneEdit:
    """ROME's value written to a key of a random direction; see :func:`with_random_direction`.

    Args:
        model: As for :func:`kn_lens.editing.rome.rome`; it is left as it was.
        fact: What it shall say.
        seed: Of the direction, and of rome.
        options: The others of rome.

    Raises:
        ModelError, PromptError, SettingsError: As rome.
    """
    return with_random_direction(rome(model, fact, seed=seed, **options), seed)


def _generator(seed: int, fact: Fact | None, what: str) -> torch.Generator:
    """Draws from the seed and the fact alone, whatever else was drawn before."""
    question = None if fact is None else (fact.question, fact.target)
    digest = hashlib.sha256(repr((seed, question, what)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
