"""Experiment E5: does what switching the number units off does follow how often two words stand together?

Niu et al. 2024, the frequency figure. If the units held knowledge of grammar, rare and frequent pairs of determiner and
noun would change alike; if they hold co-occurrence, the change goes with the pair's count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens.errors import DataError
from kn_lens.experiments.number_units import (
    COUNTS_MISSING,
    NumberSettings,
    NumberUnits,
    counts_source,
    kept_number_units,
    number_data,
    number_settings,
)
from kn_lens.experiments.verdicts import Verdict
from kn_lens.plots import frequency_scatter
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import Dropped
from kn_lens.prompts.relations import Relation
from kn_lens.statistics import spearman_rows
from kn_lens.studies.pieces import Pieces
from kn_lens.suppression.controls import p_among
from kn_lens.suppression.frequency_effect import FrequencyEffect
from kn_lens.suppression.frequency_finding import NAMES, p_text, rho_text

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

TITLE = "Does the effect follow how often two words stand together?"
PAPER = "Frequency figure (BERT)"
ABOUT = (
    "The units of plural number (E2) are switched off. How much the log-probability of each plural answer changes is "
    "set against how often its determiner and noun stand next to each other: in the text that the model was trained on "
    "where that is known, else in English at large. A second measure takes the rival word's change out."
)

Result = NumberUnits

LEVEL = 0.05
"""p among random draws."""

WEAK = 0.3
"""Spearman's |ρ| that must be detectable before its absence counts."""


def unsuited(model: Any) -> str | None:
    """Counts must be known."""
    return None if counts_source(model) else COUNTS_MISSING


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
    """Find the units that plural answers hang on, and suppress them: :func:`kept_number_units`, as E2 does too.

    Raises:
        DataError: If the pairs have no counts, or too few.
        KnLensError: If the model cannot be asked, no unit is found, or a setting is out of its range.
    """
    result = kept_number_units(model, data, settings, pieces, progress)
    if result.frequency is None:
        raise DataError(f"there is nothing to set against frequency: {result.uncounted}")
    return result


def figures(result: NumberUnits) -> dict[str, go.Figure]:
    """The change of each pair against its count: ``frequency`` of log p(target), ``preference`` of the preference."""
    subtitle = f"{result.provenance['model']}, plural answers"
    return {name: frequency_scatter(effect, subtitle) for name, effect in _both(result).items()}


def tables(result: NumberUnits) -> dict[str, pd.DataFrame]:
    """``correlations`` of both measures with the count, and the ``pairs``."""
    import pandas as pd

    rows = [{"measure": NAMES[effect.measure], **_row(result, effect)} for effect in _both(result).values()]
    pairs: Any = None
    for effect in _both(result).values():
        frame = effect.to_frame()
        pairs = frame if pairs is None else pairs.assign(**{frame.columns[-1]: frame.iloc[:, -1]})
    return {"correlations": pd.DataFrame(rows), "pairs": pairs}


def findings(result: NumberUnits) -> list[str]:
    """What was asked, then each measure against frequency."""
    count, plural = len(result.found), result.plural
    said = [
        f"The run is that of E2: the {count} unit{'s' if count != 1 else ''} that plural answers hang on, switched off "
        f"in {len(plural)} sentences with a plural answer."
    ]
    return said + [effect.sentence() for effect in _both(result).values()]


def verdicts(result: NumberUnits) -> list[Verdict]:
    """Whether the change of log p(target) follows the count."""
    return [
        Verdict(
            experiment="E5",
            test=2,
            claim="The shift goes with how often the two words stand together, either way",
            holds=_follows(result),
            measured=_measured(result),
            short=_short(result),
            rule=(
                f"Holds if the 95 % interval of Spearman's ρ, of the change of log p(answer) and the pair's count, "
                f"excludes 0, and p < {LEVEL:g} that random units give as large a |ρ|; fails if the interval includes "
                f"0 where |ρ| of {WEAK:g} would be found with 80 % power."
            ),
        )
    ]


def dropped(result: NumberUnits) -> list[tuple[str, Dropped]]:
    """Prompts that the model was not asked."""
    return result.dropped


def _both(result: NumberUnits) -> dict[str, FrequencyEffect]:
    both = {"frequency": result.frequency, "preference": result.preference}
    return {name: effect for name, effect in both.items() if effect is not None}


def _row(result: NumberUnits, effect: FrequencyEffect) -> dict[str, Any]:
    """Numbers of one measure."""
    summary = effect.summary()
    row = {"pairs": summary["pairs"], "pairs seen": summary["seen"], "prompts": summary["prompts"]}
    for shown, name in (("ρ", "rho"), ("ρ within words", "rho_within"), ("ρ with unseen pairs", "rho_with_unseen")):
        row |= {shown: summary[name], **{f"{shown} {end}": summary[f"{name}_{end}"] for end in ("low", "high")}}
    return row | {
        "p": summary["rho_p"],
        "p among random draws": _p_random(result, effect),
        "|ρ| detectable": summary["rho_detectable"],
        "change, rare": summary["change_rare"],
        "change, frequent": summary["change_frequent"],
        "change, unseen": summary["change_unseen"],
        "rare − frequent": summary["difference"],
        "rare − frequent low": summary["difference_low"],
        "rare − frequent high": summary["difference_high"],
        "counts": effect.source,
    }


def _random_rhos(effect: FrequencyEffect) -> np.ndarray:
    """ρ of each random draw, those without one left out."""
    rhos = spearman_rows(effect.counts.numpy()[effect.seen], effect.changes[effect.seen, 1:].numpy().T)
    return rhos[~np.isnan(rhos)]


def _p_random(result: NumberUnits, effect: FrequencyEffect) -> float:
    """p that random units give as large a |ρ|; NaN where too few draws tell, or there is no ρ."""
    rho, draws = effect.overall.rho, np.abs(_random_rhos(effect))
    if rho != rho:
        return float("nan")
    return p_among(abs(rho), draws, min(result.plural.distinct_draws, len(draws)), low=False)


def _follows(result: NumberUnits) -> bool | None:
    effect = result.frequency
    if effect is None or effect.overall.low != effect.overall.low:
        return None
    found = effect.overall
    if found.low > 0 or found.high < 0:
        return True if _p_random(result, effect) < LEVEL else None
    return False if found.detectable <= WEAK else None


def _short(result: NumberUnits) -> str:
    effect = result.frequency
    return "not measured" if effect is None else rho_text(effect.overall)


def _measured(result: NumberUnits) -> str:
    effect = result.frequency
    if effect is None:
        return f"not measured: {result.uncounted}"
    found, draws = effect.overall, _random_rhos(effect)
    seen = f"{found.n} of {len(effect)} pairs, counts from {effect.source}"
    if found.rho != found.rho:
        return f"all pairs change alike; {seen}"
    said = f"{rho_text(found)}, {p_text(effect)}, over {seen}; |ρ| of {found.detectable:.2f} detectable"
    if not len(draws):
        return f"{said}; no random draws"
    larger = int((np.abs(draws) >= abs(found.rho) - 1e-9).sum())
    return f"{said}; {larger} of {len(draws)} random draws have as large a |ρ|"
