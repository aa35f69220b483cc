"""Findings of the comparison of sites: every sentence is computed from the table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kn_lens.sites import UNIT_NAMES
from kn_lens.studies.localizations import KIND_NAMES

if TYPE_CHECKING:
    import pandas as pd

_CHANCE = 0.05
_CURRENCIES = (
    ("units", "in number"),
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


def headline(table: pd.DataFrame) -> str:
    """All data sets in short: what half of the answers cost at each site, and at which less must be taken away."""
    rows: list[Row] = table.to_dict("records")  # type: ignore[assignment]
    prices, sizes = [], []
    for data in dict.fromkeys(row["data"] for row in rows):
        here = [row for row in rows if row["data"] == data]
        name = f"{KIND_NAMES[here[0]['kind']]} ({data})"
        reached = [row for row in here if not math.isnan(row["half: units"])]
        never = [_name(row, 2) for row in here if row not in reached]
        said = [f"without {' or '.join(map(_price, reached))}"] if reached else []
        said += [f"not without {' or '.join(never)}, as far as the curve goes"] if never else []
        prices.append(f"of {name} {', but '.join(said)}")
        if len(reached) == 2 and reached[0]["half: norm"] != reached[1]["half: norm"]:
            less, more = sorted(reached, key=lambda row: row["half: norm"])
            against = f"{less['half: norm']:.2f} against {more['half: norm']:.2f}"
            sizes.append(f"{name} hang more on {_name(less, 2)} ({against}{_hedge(less, more, 'norm', '; ')})")
    said = f"Half of the answers flip: {'; '.join(prices)}."
    if sizes:
        said += f" By output taken away, over the size of the residual stream, {', '.join(sizes)}."
    return said


def _price(row: Row) -> str:
    units = row["half: units"]
    return f"{_count(units)} {_name(row, units)} ({100 * row['half: share of units']:.2g}% of all)"


def _locality(rows: list[Row]) -> str:
    def clause(row: Row) -> str:
        count, share = row["top 1 % units"], f"{row['top 1 % share']:.0%} of Σ|α|"
        top = f"the top {_name(row, 1)} holds {share}" if count == 1 else f"the top {count} hold {share}"
        measures = ", ".join(f"{name} {_known(row[name])}" for name in ("R₁²", "stability", "Gini"))
        return f"{row['|KN|']:.1f} of {row['units of the site']:,} {_name(row, 2)} per group ({measures}, {top})"

    return f"{rows[0]['data']}: the search finds {', and '.join(clause(row) for row in rows)}."


def _found(row: Row) -> str:
    before, after, random = row["accuracy before"], row["accuracy after"], row["accuracy after, random"]
    many, distinct, p = _name(row, 2), row["distinct draws"], row["accuracy p"]
    if row["|KN|"] == 0:
        return (
            f"{row['data']}: the search finds no {many}, so there are none to take away (accuracy on "
            f"{row['prompts held out']} held-out prompts: {before:.1%})."
        )
    draws = f"{row['draws']} draws, {distinct} of them distinct"
    if after >= before:
        verdict = f"no drop ({draws})"
    elif math.isnan(p):
        verdict = f"whether the drop is beyond chance, too few draws tell ({draws})"
    else:
        verdict = f"the drop is {'' if p < _CHANCE else 'not '}beyond chance (p = {p:.2g}; {draws})"
    return (
        f"{row['data']}: without the {many} found, accuracy on {row['prompts held out']} held-out prompts "
        f"goes from {before:.1%} to {after:.1%} [{row['accuracy after low']:.0%}, {row['accuracy after high']:.0%}]; "
        f"random {many} of the same layers leave {random:.1%}: {verdict}."
    )


def _half(row: Row) -> str:
    def reached(of: str) -> str:
        units, share, k = row[f"half: units{of}"], 100 * row[f"half: share of units{of}"], row[f"half: k{of}"]
        return (
            f"at {_count(units)} {_name(row, units)} {_interval(row, of)} taken on average (k = {k:g}), {share:.3g}% "
            f"of all, a change {row[f'half: norm{of}']:.2f} times as large as the residual stream at the answer"
        )

    many = _name(row, 2)
    few = "fewer than half of the answers flip anywhere on the curve (at most {:.0%})"
    if math.isnan(row["half: units"]):
        found = few.format(row["flipped at most"])
    else:
        found = f"half of the answers flip {reached('')}"
    if math.isnan(row["half: units, random"]):
        random = few.format(row["flipped at most, random"])
    else:
        random = f"half flip {reached(', random')}"
    return (
        f"{row['data']}: as the top {many} (of those with a score above 0) are taken away from the "
        f"{row['answered rightly']} prompts answered rightly ({row['answered wrongly']} answered wrongly take no "
        f"part), {found}; with random {many} of the same layers, {random}."
    )


def _cheaper(first: Row, second: Row) -> str:
    """Which of two sites flips half of the answers at the lower price, in each currency."""
    names = [_name(row, 2) for row in (first, second)]
    halves = [row["half: units"] for row in (first, second)]
    if all(map(math.isnan, halves)):
        return f"{first['data']}: neither the top {names[0]} nor the top {names[1]} flip half of the answers."
    if any(map(math.isnan, halves)):
        name, other = names if math.isnan(halves[1]) else names[::-1]
        return (
            f"{first['data']}: taking {name} away flips half of the answers; {other} do not on their curve"
            f"{_hedge(first, second, 'units')}."
        )
    clauses = []
    for currency, words in _CURRENCIES:
        one, two = (row[f"half: {currency}"] for row in (first, second))
        told = f"{names[0] if one < two else names[1]} cost less" if one != two else "they cost the same"
        clauses.append(f"{words} {told}{_hedge(first, second, currency) if one != two else ''}")
    return f"{first['data']}, half of the answers: {'; '.join(clauses)}."


def _kinds(fact: Row, pair: Row) -> str:
    """Facts beside agreement at one site."""

    def price(row: Row) -> str:
        units = row["half: units"]
        return f"{row['data']} never" if math.isnan(units) else f"{row['data']} at {_count(units)} {_interval(row, '')}"

    one, two = fact["half: units"], pair["half: units"]
    if math.isnan(one) and math.isnan(two):
        verdict = "no difference is seen"
    elif one == two:
        verdict = "at the same price"
    else:
        cheaper = fact if math.isnan(two) or one < two else pair
        verdict = f"{cheaper['data']} hangs on fewer {_name(fact, 2)}{_hedge(fact, pair, 'units')}"
    closer = "more" if fact["R₁²"] > pair["R₁²"] else "no more"
    if math.isnan(fact["R₁²"]) or math.isnan(pair["R₁²"]):
        unknown = " and ".join(row["data"] for row in (fact, pair) if math.isnan(row["R₁²"]))
        direction = f"Which attributions point the same way more is not known: there is no R₁² for {unknown}"
    else:
        direction = (
            f"Attributions point the same way {closer} in {fact['data']} than in {pair['data']} (R₁² "
            f"{_known(fact['R₁²'])} against {_known(pair['R₁²'])})"
        )
    return (
        f"{_name(fact, 2).capitalize()}: half of the answers flip, to {price(fact)}, to {price(pair)}: {verdict}. "
        f"{direction}. At the largest k, {fact['flipped at the largest k']:.0%} of the answers to {fact['data']} flip, "
        f"to another of many words, and {pair['flipped at the largest k']:.0%} of those to {pair['data']}, to the "
        f"other of two."
    )


def _hedge(first: Row, second: Row, currency: str, apart: str = " (") -> str:
    """Nothing where the intervals lie apart; else words in brackets, or behind what sets them ``apart``."""
    low, high = ([row[f"half: {currency} {end}"] for row in (first, second)] for end in ("low", "high"))
    end = ")" if apart == " (" else ""
    if any(map(math.isnan, [*low, *high])):
        return f"{apart}no intervals: too few groups{end}"
    return "" if high[0] < low[1] or high[1] < low[0] else f"{apart}their intervals overlap{end}"


def _interval(row: Row, of: str) -> str:
    low, high = row[f"half: units{of} low"], row[f"half: units{of} high"]
    if math.isnan(low):
        return "(a single group: no interval)"
    return f"[{_count(low)}, {_count(high)} over groups]"


def _count(value: float) -> str:
    """A mean number of units."""
    if math.isinf(value):
        return "beyond the curve"
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.1f}"


def _known(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2f}"


def _name(row: Row, count: float) -> str:
    one, many = UNIT_NAMES[row["site"]]
    return one if count == 1 else many
