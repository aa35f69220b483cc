"""Findings of the comparison of sites: every sentence is computed from the table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kn_lens.sites import UNIT_NAMES

if TYPE_CHECKING:
    import pandas as pd

_CHANCE = 5  # percentile among the random draws
_CURRENCIES = (
    ("k", "in number"),
    ("share of units", "as a share of the site's units"),
    ("norm", "in output taken away"),
)

Row = dict[str, Any]


def sites_findings(table: pd.DataFrame) -> list[str]:
    """Sentences on each row (what half of the answers cost, what the units found do) and on the sites side by side."""
    rows: list[Row] = table.to_dict("records")  # type: ignore[assignment]
    said = []
    for data in dict.fromkeys(row["data"] for row in rows):
        here = [row for row in rows if row["data"] == data]
        said += [_locality(here)] if len(here) > 1 else []
        for row in here:
            said += [_found(row), _half(row)]
        said += [_cheaper(first, second) for at, first in enumerate(here) for second in here[at + 1 :]]
    for site in dict.fromkeys(row["site"] for row in rows):
        here = [row for row in rows if row["site"] == site]
        facts = [row for row in here if row["kind"] == "facts"]
        pairs = [row for row in here if row["kind"] != "facts"]
        said += [_kinds(fact, pair) for fact in facts for pair in pairs]
    return said


def _locality(rows: list[Row]) -> str:
    def clause(row: Row) -> str:
        count, share = row["top 1 % units"], f"{row['top 1 % share']:.0%} of Σ|α|"
        top = f"the top {_name(row, 1)} holds {share}" if count == 1 else f"the top {count} hold {share}"
        return (
            f"{row['|KN|']:.1f} of {row['units of the site']:,} {_name(row, 2)} per group (R₁² {row['R₁²']:.2f}, "
            f"stability {row['stability']:.2f}, Gini {row['Gini']:.2f}, {top})"
        )

    return f"{rows[0]['data']}: the search finds {', and '.join(clause(row) for row in rows)}."


def _found(row: Row) -> str:
    before, after, random = row["accuracy before"], row["accuracy after"], row["accuracy after, random"]
    if after >= before:
        verdict = "no drop"
    else:
        verdict = f"the drop is {'' if row['accuracy percentile'] < _CHANCE else 'not '}beyond chance"
    return (
        f"{row['data']}: without the {_name(row, 2)} found, accuracy on {row['prompts held out']} held-out prompts "
        f"goes from {before:.1%} to {after:.1%} [{row['accuracy after low']:.0%}, {row['accuracy after high']:.0%}]; "
        f"random {_name(row, 2)} of the same layers leave {random:.1%}: {verdict}."
    )


def _half(row: Row) -> str:
    def reached(of: str) -> str:
        k, share = row[f"half: k{of}"], 100 * row[f"half: share of units{of}"]
        return (
            f"at {k:g} {_name(row, k)} {_interval(row, 'k', of)}, {share:.3g}% of all, with "
            f"{row[f'half: norm{of}']:.0%} of the residual stream's norm taken away"
        )

    many = _name(row, 2)
    found = "never flip" if math.isnan(row["half: k"]) else f"flip {reached('')}"
    random = "never" if math.isnan(row["half: k, random"]) else reached(", random")
    return (
        f"{row['data']}: as the top {many} (of those with a score above 0) are taken away, half of the answers {found}"
        f"; with random {many} of the same layers {random}."
    )


def _cheaper(first: Row, second: Row) -> str:
    """Which of two sites flips half of the answers at the lower price, in each currency."""
    names = [_name(row, 2) for row in (first, second)]
    halves = [row["half: k"] for row in (first, second)]
    if all(map(math.isnan, halves)):
        return f"{first['data']}: neither the top {names[0]} nor the top {names[1]} flip half of the answers."
    if any(map(math.isnan, halves)):
        name, other = names if math.isnan(halves[1]) else names[::-1]
        return f"{first['data']}: only taking {name} away flips half of the answers; {other} do not on their curve."
    clauses = []
    for currency, words in _CURRENCIES:
        one, two = (row[f"half: {currency}"] for row in (first, second))
        apart = _apart(first, second, currency)
        told = f"{names[0] if one < two else names[1]} cost less" if one != two else "they cost the same"
        clauses.append(f"{words} {told}{'' if apart or one == two else ' (their intervals overlap)'}")
    return f"{first['data']}, half of the answers: {'; '.join(clauses)}."


def _kinds(fact: Row, pair: Row) -> str:
    """Facts beside agreement at one site."""

    def price(row: Row) -> str:
        k = row["half: k"]
        return f"{row['data']} never" if math.isnan(k) else f"{row['data']} at {k:g} {_interval(row, 'k', '')}"

    one, two = fact["half: k"], pair["half: k"]
    if math.isnan(one) and math.isnan(two):
        verdict = "no difference is seen"
    elif one == two:
        verdict = "at the same price"
    else:
        cheaper = fact if math.isnan(two) or one < two else pair
        verdict = f"{cheaper['data']} hangs on fewer {_name(fact, 2)}"
        verdict += "" if _apart(fact, pair, "k") else " (the intervals overlap)"
    closer = "more" if fact["R₁²"] > pair["R₁²"] else "no more"
    return (
        f"{_name(fact, 2).capitalize()}: half of the answers flip, to {price(fact)}, to {price(pair)}: {verdict}. "
        f"Attributions point the same way {closer} in {fact['data']} than in {pair['data']} (R₁² {fact['R₁²']:.2f} "
        f"against {pair['R₁²']:.2f}). A pair's answer is one of two words, and without any information about half of "
        f"them flip; a fact's is one of many."
    )


def _apart(first: Row, second: Row, currency: str) -> bool:
    """Whether the intervals do not meet; unknown intervals do."""
    low, high = ([row[f"half: {currency} {end}"] for row in (first, second)] for end in ("low", "high"))
    return high[0] < low[1] or high[1] < low[0]


def _interval(row: Row, currency: str, of: str) -> str:
    low, high = row[f"half: {currency}{of} low"], row[f"half: {currency}{of} high"]
    if math.isnan(low):
        return "(a single prompt: no interval)"
    return f"[{low:g}, {'beyond the curve' if math.isinf(high) else f'{high:g}'}]"


def _name(row: Row, count: float) -> str:
    one, many = UNIT_NAMES[row["site"]]
    return one if count == 1 else many
