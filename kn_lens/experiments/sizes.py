"""How much data the experiments of the paper take: a little, which a laptop does in minutes, or all of it.

E1, E3, E4 and E9 draw the same prompts, so that their units are searched once.
"""

from __future__ import annotations

from typing import Any, Literal

from kn_lens.errors import SettingsError, near_matches
from kn_lens.localization.localize import LocalizeSettings
from kn_lens.models.kind import is_masked, model_name
from kn_lens.organisms.corpus import corpus_of
from kn_lens.prompts.load import bundled_names

Size = Literal["small", "full"]
SIZES: tuple[Size, ...] = ("small", "full")

CONTROLS = 100
"""Draws of random units beside the units found."""


def size_named(name: str) -> Size:
    """The size of a name.

    Raises:
        SettingsError: If it is none of :data:`SIZES`.
    """
    for size in SIZES:
        if size == name:
            return size
    raise SettingsError(f"no size {name!r}.{near_matches(name, SIZES)} Known: {', '.join(SIZES)}")


def quick(model: Any) -> bool:
    """Whether the model is an organism, which takes milliseconds where others take seconds a prompt."""
    return corpus_of(model_name(model)) is not None


def fact_names(size: Size) -> tuple[str, ...]:
    """Bundled relations: capitals and fields of work, or all."""
    return ("P36", "P101") if size == "small" else tuple(name for name in bundled_names() if _is_relation(name))


def agreement_names(model: Any, size: Size) -> tuple[str, ...]:
    """Bundled paradigms of agreement: two, or all. Determiner and noun: a masked model is asked for the former."""
    if size == "full":
        return tuple(name for name in bundled_names() if not _is_relation(name))
    return ("subject_verb_agreement", f"determiner_noun_agreement_{2 if is_masked(model) else 1}")


def localize_data(model: Any, size: Size) -> tuple[str, ...]:
    """What E1, E3 and E4 take: relations, then paradigms of agreement."""
    return fact_names(size) + agreement_names(model, size)


def localize_settings(model: Any, size: Size, seed: int, site: str = "mlp") -> LocalizeSettings:
    """The draw of groups and prompts that all localizations of a reproduction share."""
    groups, prompts = (40, 8) if size == "full" else (20, 8) if quick(model) else (8, 6)
    return LocalizeSettings(site=site, groups=groups, prompts=prompts, seed=seed)


def _is_relation(name: str) -> bool:
    return name[1:].isdecimal()  # P36
