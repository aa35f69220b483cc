"""Words and numbers of a report as its readers see them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kn_lens.experiments.verdicts import Verdict, summed_up
from kn_lens.report.content import ModelReport, Section

MARKS = {True: ("✓", "holds", "yes"), False: ("✗", "does not hold", "no"), None: ("?", "cannot be told", "open")}
"""Sign, words and CSS class of a verdict: the words alone say it, without sign or color."""

_STANDINGS = {
    "as the paper says": ("✓", "yes"),
    "partly as the paper says": ("◐", "partly"),
    "not as the paper says": ("✗", "no"),
    "cannot be told": ("?", "open"),
    "not asked": ("–", "open"),
}
_MOST_TEXTS = 50


@dataclass(frozen=True)
class Standing:
    """The verdict on one test: a sign, words, the counts behind them, a CSS class."""

    mark: str
    word: str
    counts: str
    style: str


def standing(verdicts: Sequence[Verdict]) -> Standing:
    """The verdict on a test as a page shows it."""
    word, counts = summed_up(verdicts)
    mark, style = _STANDINGS[word]
    return Standing(mark, word, counts, style)


def state_words(section: Section) -> str:
    """One sentence on an experiment that has no result; empty where it has one."""
    reason = section.reason.strip().rstrip(".")
    said = {
        "unsuited": "Not run on this model",
        "failed": "It could not be run",
        "damaged": "Its saved result is damaged",
        "not run": "Not run yet",
    }
    if section.state not in said:
        return ""
    words = said[section.state]
    if reason and not (section.state == "not run" and reason == "not run yet"):
        words += f": {reason}"
    redo = f" “kn-lens reproduce … --redo {section.name}” computes it again." if section.state == "damaged" else ""
    return f"{words}.{redo}"


def number(value: Any) -> str:
    """A cell of a table: numbers to three significant digits, ``–`` where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if math.isnan(value):
            return "–"
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        return f"{value:,.0f}" if abs(value) >= 1000 or value == 0 else f"{value:.3g}"
    return str(value)


def duration(seconds: float | None) -> str:
    """``"48 s"``, ``"3 min 5 s"``, ``"2 h 10 min"``; ``"unknown"`` for None."""
    if seconds is None:
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole else "under 1 s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def day(text: Any) -> str:
    """``"24 November 2026, 15:29"`` for a date of ISO 8601; what is none stays as it is."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return f"{moment.day} {moment:%B %Y, %H:%M}"


def flat(mapping: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Settings as lines, nested ones as ``outer · inner``."""
    lines: list[tuple[str, str]] = []
    for name, value in mapping.items():
        path = f"{above} · {name}" if above else str(name)
        if isinstance(value, Mapping):
            lines += flat(value, path) if value else [(path, "none")]
        elif isinstance(value, (list, tuple)):
            lines.append((path, ", ".join(map(_setting, value)) or "none"))
        else:
            lines.append((path, _setting(value)))
    return lines


def _setting(value: Any) -> str:
    """In full: settings are read to run the same again."""
    return "none" if value is None else "yes" if value is True else "no" if value is False else str(value)


@dataclass(frozen=True)
class Reason:
    """Prompts left out for one reason.

    Attributes:
        reason: Why.
        count: How many.
        data: How many of each data set, in words.
        texts: The first of them, each with its data set.
    """

    reason: str
    count: int
    data: str
    texts: tuple[str, ...]


def reasons(section: Section) -> list[Reason]:
    """Prompts left out, by reason, most frequent first."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for data, entry in section.dropped:
        groups.setdefault(entry.reason, []).append((data, entry.text))
    found = []
    for reason, entries in sorted(groups.items(), key=lambda item: -len(item[1])):
        names = [data for data, _ in entries]
        counts = ", ".join(f"{name}: {names.count(name)}" for name in dict.fromkeys(names))
        texts = tuple(f"{data}: {text}" for data, text in entries[:_MOST_TEXTS])
        found.append(Reason(reason, len(entries), counts, texts))
    return found


def left_out(report: ModelReport) -> int:
    """Prompts left out by any experiment, each counted once."""
    return len({(data, entry.text) for section in report.sections for data, entry in section.dropped})


def took(report: ModelReport) -> str:
    """How long all experiments took together."""
    known = [section.seconds for section in report.sections if section.seconds is not None]
    return duration(sum(known)) if known else "unknown"
