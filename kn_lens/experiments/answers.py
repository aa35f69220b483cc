"""What E4 returns: answers before and after units are switched off, by data set, and all measures of them in a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kn_lens.statistics import bootstrap_mean
from kn_lens.studies.saved import read_fields, reading, write_fields, writing
from kn_lens.studies.shares import grouped_share
from kn_lens.suppression.controls import distinct_draws, p_among, percentile_of
from kn_lens.suppression.effect import AFTER, BEFORE, CONTROLS, UnitEffect

CHANGE = "change of log p"

BEYOND = 5
"""Percentile among the random draws below which a value is beyond chance."""

_PLAIN = ("kinds", "without_units", "left_out", "settings", "provenance")


@dataclass(frozen=True, kw_only=True)
class SwitchedOff:
    """Answers without the units found.

    Attributes:
        effects: By data set; ``dropped`` of each is what was left out when units were searched.
        kinds: ``"facts"`` or ``"pairs"``, by data set.
        without_units: How many groups have no units, by data set.
        left_out: Why other data sets have no effect, by name.
        settings: Of the localizations, number of draws, names of the data.
        provenance: Model, hashes, versions (the prompts' hash is of the first data set).
    """

    effects: dict[str, UnitEffect]
    kinds: dict[str, str]
    without_units: dict[str, int]
    left_out: dict[str, str]
    settings: dict[str, Any]
    provenance: dict[str, Any]

    def of_kind(self, kind: str) -> dict[str, UnitEffect]:
        """The effects on ``"facts"`` or on ``"pairs"``."""
        return {name: effect for name, effect in self.effects.items() if self.kinds[name] == kind}

    def save(self, folder: Path) -> Path:
        """Write each effect into a subfolder, and the rest as JSON.

        Raises:
            OutputError: If it cannot be written.
        """
        fields = {name: getattr(self, name) for name in _PLAIN}
        with writing(Path(folder)) as out:
            for at, effect in enumerate(self.effects.values()):
                effect.save(out / str(at))
            write_fields(out, {"effects": list(self.effects), **fields})
        return out

    @classmethod
    def load(cls, folder: Path) -> SwitchedOff:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds none, or a damaged one.
        """
        with reading(Path(folder), "answers") as source:
            fields = read_fields(source)
            effects = {name: UnitEffect.load(source / str(at)) for at, name in enumerate(fields["effects"])}
            return cls(effects=effects, **{name: fields[name] for name in _PLAIN})


def answer_row(effects: Mapping[str, UnitEffect]) -> dict[str, Any]:
    """All measures of the effects on one or several data sets, as if on one.

    Accuracy, flips (of all answers and of right ones) and the change of log p(target), each with a 95 % interval over
    groups of prompts, beside the mean of the random draws. ``percentile`` is the percent of the draws below, ``p`` the
    one-sided p among the draws; both are NaN with fewer than 20 distinct draws.

    Args:
        effects: By data set, all with as many draws.
    """
    found = list(effects.values())
    groups = [(name, p.group or p.target) for name, effect in effects.items() for p in effect.prompts]
    correct = torch.cat([effect.correct for effect in found]).numpy()
    flipped = torch.cat([effect.flipped for effect in found]).numpy()
    target = torch.cat([effect.log_target for effect in found])
    change = (target - target[:, :1]).numpy()
    drawn = [effect.drawn for effect in found if effect.drawn is not None]
    distinct = distinct_draws(torch.cat(drawn)) if drawn else change[:, CONTROLS].shape[1]
    right = correct[:, BEFORE]
    scaled = [len(own) for effect in found for own in effect.units]
    units = dict(zip(groups, scaled, strict=True))
    row: dict[str, Any] = {"prompts": len(groups), "groups": len(units), "units": float(np.mean([*units.values()]))}
    for when, column in (("before", BEFORE), ("after", AFTER)):
        share = grouped_share(correct[:, column], groups)
        row |= _interval(f"accuracy {when}", share.share, share.low, share.high)
    row |= _random("accuracy", correct, distinct, low=True)
    share = grouped_share(flipped[:, AFTER], groups)
    row |= _interval("flipped", share.share, share.low, share.high) | _random("flipped", flipped, distinct, low=False)
    kept = [group for group, was in zip(groups, right, strict=True) if was]
    share = grouped_share(flipped[right, AFTER], kept)
    row |= _interval("right flipped", share.share, share.low, share.high) | {"right before": share.n}
    beyond = change[:, AFTER] - change[:, CONTROLS].mean(1)
    mean, low, high = bootstrap_mean(np.stack([change[:, AFTER], beyond], 1), clusters=groups)
    row |= _interval(CHANGE, mean[0], low[0], high[0]) | _random(CHANGE, change, distinct, low=True)
    row |= _interval(f"{CHANGE} beyond random", mean[1], low[1], high[1])
    return row | {"draws": change[:, CONTROLS].shape[1], "distinct draws": distinct}


def _interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: float(value), f"{name} low": float(low), f"{name} high": float(high)}


def _random(name: str, values: np.ndarray, distinct: int, *, low: bool) -> dict[str, float]:
    """The mean of the draws, and where the edit lies among them."""
    means = values.astype(float).mean(0)
    value, draws = float(means[AFTER]), means[CONTROLS]
    return {
        f"{name} random": float(draws.mean()),
        f"{name} percentile": percentile_of(value, draws, distinct),
        f"{name} p": p_among(value, draws, distinct, low=low),
    }
