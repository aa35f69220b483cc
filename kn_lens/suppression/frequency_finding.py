"""What the numbers of a frequency effect say, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kn_lens.statistics import RankCorrelation

if TYPE_CHECKING:
    from kn_lens.suppression.frequency_effect import FrequencyEffect


NAMES = {"log_probability": "log p(target)", "preference": "log p(target) − log p(rival)"}
"""What each measure is called."""


def finding(result: FrequencyEffect) -> str:
    """Sentences that say what is shown, what is excluded, and what would have been found, as the numbers have it."""
    row = result.summary()
    return " ".join(filter(None, [_overall(result, row), _halves(row), _within(result), _unseen(result, row)]))


def rho_text(found: RankCorrelation) -> str:
    """``"ρ = −0.41 [−0.62, −0.15]"``."""
    return f"ρ = {_signed(found.rho)} [{_signed(found.low)}, {_signed(found.high)}]"


def p_text(result: FrequencyEffect) -> str:
    """``"p = 0.03"`` of the permutation test, or the least that its draws can give."""
    p, least = result.overall.p, 1 / (1 + result.settings["draws"])
    return f"p ≤ {least:.2g}" if p <= least else f"p = {p:.2g}"


def _overall(result: FrequencyEffect, row: dict[str, Any]) -> str:
    found = result.overall
    what = NAMES[result.measure]
    edit = "units are suppressed" if result.factor == 0 else f"units are scaled by {result.factor:g}"
    base = f"over {row['seen']} of {row['pairs']} pairs ({row['prompts']} prompts) with counts from {result.source}"
    if found.rho != found.rho:
        return f"When {edit}, {what} changes alike for all pairs, {base}: nothing to relate to frequency."
    numbers = f"Spearman's {rho_text(found)}, {p_text(result)}, {base}"
    if found.low > 0 or found.high < 0:
        way = "higher" if found.rho > 0 else "lower"
        said = f"The more frequent the pair, the {way} {what}, after − before, when {edit}: {numbers}."
    else:
        said = (
            f"No relation between frequency and the change of {what} is shown when {edit}: {numbers}; the "
            f"interval excludes ρ below {_signed(found.low)} and above {_signed(found.high)}, and |ρ| of "
            f"{found.detectable:.2f} would be found with 80 % power."
        )
    if "percentile_rho" in row:
        said += (
            f" Random units of the same layers give ρ = {_signed(row['control_rho'])} on average; "
            f"{row['percentile_rho']:.0f} % of their draws lie below."
        )
    return said


def _halves(row: dict[str, Any]) -> str:
    said = (
        f"Rare pairs ({row['pairs_rare']}, up to count {row['rare_to_count']:,}) change by "
        f"{_nats(row['change_rare'])} nats, frequent ones ({row['pairs_frequent']}) by {_nats(row['change_frequent'])}"
    )
    difference, low, high = (row[name] for name in ("difference", "difference_low", "difference_high"))
    if low != low:
        return f"{said}; a half of one pair allows no interval."
    numbers = f"difference {_nats(difference)} [{_nats(low)}, {_nats(high)}]"
    power = f"{row['difference_detectable']:.2g} would be found with 80 % power"
    if low > 0 or high < 0:
        return f"{said}: {numbers}, beyond chance ({power})."
    return (
        f"{said}: {numbers}, not told apart from 0; the interval excludes more than {max(abs(low), abs(high)):.2g} "
        f"nats either way, and {power}."
    )


def _within(result: FrequencyEffect) -> str:
    words = list(dict.fromkeys(word for word, seen in zip(result.strata, result.seen, strict=True) if seen))
    found = result.within
    if len(words) < 2 or found.rho != found.rho:
        return ""
    named = ", ".join(words) if len(words) <= 6 else f"{len(words)} words"
    shown = "excludes 0" if found.low > 0 or found.high < 0 else "does not exclude 0"
    return f"Within each word ({named}), {rho_text(found)}, which {shown}."


def _unseen(result: FrequencyEffect, row: dict[str, Any]) -> str:
    if not row["unseen"]:
        return ""
    why = {0: "do not occur", row["unseen"]: "are not in the table, which need not mean that they do not occur"}.get(
        row["unknown"], f"are not seen ({row['unknown']} of them are not in the table)"
    )
    return (
        f"{row['unseen']} pairs {why}; they change by {_nats(row['change_unseen'])} nats, and counted as 0 they "
        f"make it {rho_text(result.with_unseen)}."
    )


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _nats(value: float) -> str:
    return f"{value:+.2g}".replace("-", "−")
