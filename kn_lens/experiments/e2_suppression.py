"""Experiment E2: the units that plural answers hang on are switched off; which words become more or less probable?

Niu et al. 2024, the suppression figure: the probability of each determiner before and after, with a t-test. If the
units held the number of nouns, answers would turn from plural to singular; if not, probabilities shift and answers
stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens.experiments.number_units import (
    NumberSettings,
    NumberUnits,
    kept_number_units,
    number_data,
    number_settings,
)
from kn_lens.experiments.verdicts import SELDOM, Estimate, Verdict
from kn_lens.plots import probability_change
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import Dropped
from kn_lens.prompts.relations import Relation
from kn_lens.statistics import PairedDifference, paired_difference, wilson_interval
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.shares import around
from kn_lens.suppression.controls import p_among
from kn_lens.suppression.effect import AFTER, BEFORE, OWN_FOIL, OWN_TARGET, UnitEffect

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

TITLE = "Which words change when the units of plural number are switched off?"
PAPER = "Suppression figure (BERT)"
ABOUT = (
    "Neurons are searched on which the plural answers of one determiner-noun paradigm hang (these books, not this "
    "books), and set to 0 in sentences that they were not searched on, of that paradigm and others. The probability of "
    "each word is compared before and after, beside as many random neurons of the same layers."
)

Result = NumberUnits

LEVEL = 0.05
"""Of the tests."""

COMMON = 0.5
"""Share of random draws that shift probabilities as much, from which on the units do nothing of their own."""


def unsuited(model: Any) -> str | None:
    """Every model can be asked."""
    return None


data = number_data
settings = number_settings


def run(
    model: Any,
    data: Sequence[Relation | MinimalPairs],
    settings: NumberSettings | None = None,
    *,
    pieces: Pieces | None = None,
    progress: bool = True,
) -> NumberUnits:
    """Find the units that plural answers hang on, and suppress them: :func:`kept_number_units`, as E5 does too.

    Raises:
        KnLensError: If the model cannot be asked, no unit is found, or a setting is out of its range.
    """
    return kept_number_units(model, data, settings, pieces, progress)


def figures(result: NumberUnits) -> dict[str, go.Figure]:
    """``plural`` and ``singular``: the probability change of each word, where the answer is of that number."""
    return {
        number: probability_change(effect, f"{result.provenance['model']}, {number} answers", paired=True)
        for number, effect in _both(result)
        if len(effect)
    }


def tables(result: NumberUnits) -> dict[str, pd.DataFrame]:
    """``answers`` before and after, ``words`` and their tests, the ``units``, and every one of the ``prompts``."""
    import pandas as pd

    both = [(number, effect) for number, effect in _both(result) if len(effect)]
    words = [effect.to_frame().assign(answers=number) for number, effect in both]
    prompts = [effect.answers_frame().assign(answers=number) for number, effect in both]
    return {
        "answers": pd.DataFrame([{"answers": number, **_row(effect)} for number, effect in both]),
        "words": _first(pd.concat(words, ignore_index=True), "answers"),
        "units": result.found.to_frame(),
        "prompts": _first(pd.concat(prompts, ignore_index=True), "answers"),
    }


def findings(result: NumberUnits) -> list[str]:
    """The units, then what switching them off does to plural and to singular answers."""
    named = ", ".join(f"{layer}:{unit}" for layer, unit in result.found.units)
    count = len(result.found)
    note = f" ({result.found.note})" if result.found.note else ""
    said = [
        f"Plural answers hang on {count} unit{'s' if count != 1 else ''} ({named}; layer:unit), found on "
        f"{len(result.searched)} prompts with τ = {result.found.share:.2f}{note}."
    ]
    return said + [_finding(number, effect) for number, effect in _both(result) if len(effect)]


def verdicts(result: NumberUnits) -> list[Verdict]:
    """Whether probabilities shift, and whether the answers stay; of the plural answers, which hang on the units."""
    effect = result.plural
    flipped, n = int(effect.flipped[:, AFTER].sum()), len(effect)
    low, high = wilson_interval(flipped, n)
    value = flipped / n if n else float("nan")
    share = Estimate(quantity="share of answers flipped", value=value, low=low, high=high, bar=SELDOM, below=True)
    return [
        Verdict(
            experiment="E2",
            test=2,
            claim="Switching the number units off shifts probabilities",
            holds=_shifts(effect),
            measured=_measured(effect),
            short=f"log p {_nats(_row(effect))}" if len(effect) else "",
            rule=(
                f"Holds if the paired t-test of log p(answer) before and after gives p < {LEVEL:g}, and p < {LEVEL:g} "
                f"that random units shift its mean as much; fails if {COMMON:.0%} or more of the random draws do."
            ),
        ),
        Verdict(
            experiment="E2",
            test=2,
            claim="Switching the number units off seldom changes the answer",
            holds=share.holds,
            estimate=share if n else None,
            measured=f"{flipped} of {n} plural answers flip: {value:.1%} [{low:.0%}, {high:.0%}]"
            if n
            else "no plural answers",
            rule=(
                f"Holds if the 95 % interval (Wilson) of the share of plural answers that flip lies at or below "
                f"{SELDOM:.0%}; fails if it lies above."
            ),
        ),
    ]


def dropped(result: NumberUnits) -> list[tuple[str, Dropped]]:
    """Prompts that the model was not asked."""
    return result.dropped


def _both(result: NumberUnits) -> list[tuple[str, UnitEffect]]:
    return [("plural", result.plural), ("singular", result.singular)]


def _first(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The frame with a column moved to its front."""
    return frame.loc[:, [name, *frame.columns.drop(name)]]


def _row(effect: UnitEffect) -> dict[str, Any]:
    """Numbers of one kind of answers."""
    summary, words = effect.summary(), effect.to_frame().set_index("probe")
    change, nan = _log_change(effect), float("nan")
    low, high = wilson_interval(int(effect.flipped[:, AFTER].sum()), len(effect))
    foil = words.loc[OWN_FOIL] if OWN_FOIL in words.index else {"mean_before": nan, "mean_after": nan}
    target = words.loc[OWN_TARGET]
    return {
        "prompts": len(effect),
        "p(good) before": target["mean_before"],
        "p(good) after": target["mean_after"],
        "p(bad) before": foil["mean_before"],
        "p(bad) after": foil["mean_after"],
        "paired p of p(good), adjusted": target["paired_p_adjusted"],
        "change of log p(good)": change.difference,
        "change of log p(good) low": change.low,
        "change of log p(good) high": change.high,
        "change of log p(good), random": summary.get("control_log_probability_change", nan),
        "paired p of log p": change.p,
        "p among random draws": _p_random(effect),
        "accuracy before": summary["accuracy_before"],
        "accuracy after": summary["accuracy_after"],
        "accuracy after, random": summary.get("control_accuracy", nan),
        "flipped": summary["flipped"],
        "flipped low": low,
        "flipped high": high,
        "flipped, random": summary.get("control_flipped", nan),
    }


def _finding(number: str, effect: UnitEffect) -> str:
    row, has_draws = _row(effect), effect.target.shape[1] > 2
    low, high, flipped = row["flipped low"], row["flipped high"], row["flipped"]
    parts = [f"p(good) goes from {row['p(good) before']:.3g} to {row['p(good) after']:.3g}"]
    if row["p(bad) before"] == row["p(bad) before"]:
        parts.append(f"p(bad) from {row['p(bad) before']:.3g} to {row['p(bad) after']:.3g}")
    draws = f"; {_as_large(effect)} draws of random units of the same layers shift it as much" if has_draws else ""
    random = f", against {row['flipped, random']:.1%} with random units" if has_draws else ""
    return (
        f"With them off, over {row['prompts']} {number} answers, {' and '.join(parts)}; log p(good) changes by "
        f"{_nats(row)} ({_test(row)}{draws}); {flipped:.1%} [{low:.0%}, {high:.0%}] of the answers flip{random}."
    )


def _log_change(effect: UnitEffect) -> PairedDifference:
    """Change of log p(target) by the edit, with its t interval and paired t-test.

    Probabilities of nouns span orders of magnitude: the mean of p itself is that of a few frequent ones.
    """
    logs = effect.log_target.numpy()
    return paired_difference(logs[:, AFTER], logs[:, BEFORE])


def _shift(effect: UnitEffect) -> np.ndarray:
    """|change of mean log p(target)| by the edit, then by each random draw."""
    means = effect.log_target.numpy().mean(0)
    return np.abs(means[AFTER:] - means[BEFORE])


def _as_large(effect: UnitEffect) -> str:
    """``"3 of 100"``: random draws that shift the mean as much."""
    own, *draws = _shift(effect)
    return f"{sum(draw >= own for draw in draws)} of {len(draws)}"


def _p_random(effect: UnitEffect) -> float:
    """p that random units shift the mean as much; NaN where too few draws tell."""
    shift = _shift(effect)
    return p_among(float(shift[0]), shift[1:], effect.distinct_draws, low=False)


def _shifts(effect: UnitEffect) -> bool | None:
    if len(effect) < 2:
        return None
    chance = _p_random(effect)
    if _log_change(effect).p < LEVEL and chance < LEVEL:
        return True
    return False if chance >= COMMON else None


def _measured(effect: UnitEffect) -> str:
    if not len(effect):
        return "no plural answers"
    row, has_draws = _row(effect), effect.target.shape[1] > 2
    random = f"{_as_large(effect)} random draws shift it as much" if has_draws else "no random draws"
    return (
        f"log p(answer) changes by {_nats(row)} (p(answer) {row['p(good) before']:.3g} → {row['p(good) after']:.3g}) "
        f"over {len(effect)} plural answers; {_test(row)}; {random}"
    )


def _nats(row: dict[str, Any]) -> str:
    """``"−0.35 [−0.39, −0.31] nats"``."""
    mean, low, high = (row[f"change of log p(good){end}"] for end in ("", " low", " high"))
    return f"{mean:+.2f}{around(low, high, '+.2f')} nats".replace("-", "−")


def _test(row: dict[str, Any]) -> str:
    p = row["paired p of log p"]
    return "too few for a test" if p != p else f"paired t-test p = {p:.2g}"
