"""Counts word pairs in a text that comes in blocks of whole lines.

Words are runs of letters and digits, with the apostrophes inside them, case folded; whatever else there is
separates them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from kn_lens.errors import SettingsError

Pair = tuple[str, str]
"""Two words (or phrases) in the order of the text."""

_STOPS = ".!?…\n\r"
_TOKEN = re.compile(rf"\w+(?:'\w+)*|[{_STOPS}]")


class PairCounter:
    """Counts pairs block by block; only the surroundings of their first words are looked at."""

    def __init__(self, pairs: list[Pair], window: int) -> None:
        check_window(window)
        if not pairs:
            raise SettingsError("no pairs to count; give [(first, second), …]")
        self.window, self.words, self.counts = window, 0, dict.fromkeys(pairs, 0)
        # first word of `first` → (words of `first`, first word of `second` → (words of `second`, pair))
        self.sought: dict[str, dict[tuple[str, ...], dict[str, list[tuple[list[str], Pair]]]]] = {}
        for pair in pairs:
            first, second = (_TOKEN.findall(clean(word)) for word in pair)
            if not first or not second or set(first + second) & set(_STOPS):
                raise SettingsError(f"cannot count the pair {pair}: each side must be a word, or words of one sentence")
            seconds = self.sought.setdefault(first[0], {}).setdefault(tuple(first), {})
            seconds.setdefault(second[0], []).append((second, pair))

    def add(self, text: str) -> None:
        """Count the pairs in whole lines."""
        text = clean(text)
        tokens: list[str] = _TOKEN.findall(text)
        self.words += len(tokens) - sum(text.count(stop) for stop in _STOPS)
        sought = self.sought
        for at in [index for index, token in enumerate(tokens) if token in sought]:
            for first, seconds in sought[tokens[at]].items():
                start = at + len(first)
                if len(first) > 1 and tuple(tokens[at:start]) != first:
                    continue
                met: set[Pair] = set()
                for here in range(start, min(start + self.window, len(tokens))):
                    if tokens[here] in _STOPS:
                        break
                    for second, pair in seconds.get(tokens[here], ()):
                        if len(second) == 1 or tokens[here : here + len(second)] == second:
                            met.add(pair)
                for pair in met:
                    self.counts[pair] += 1


def check_window(window: int) -> None:
    """Refuse a window that holds no word.

    Raises:
        SettingsError: If it is below 1.
    """
    if window < 1:
        raise SettingsError(f"window is {window}; give 1 for neighbors, or more words")


def clean(text: str) -> str:
    """Case folded, letters and accents composed, one kind of apostrophe, and no underscore (a letter to ``re``)."""
    text = text.casefold().replace("_", " ")
    return text if text.isascii() else unicodedata.normalize("NFC", text).replace("’", "'")


def folded(words: str) -> str:
    """Words as pairs are named by: case folded, one space between."""
    return " ".join(clean(words).split())


def folded_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """Different pairs, in order of appearance."""
    return list(dict.fromkeys((folded(first), folded(second)) for first, second in pairs))
