"""How often words stand together: counts of ordered pairs in a text, in a table, or in English at large."""

from __future__ import annotations

import csv
import importlib.metadata
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kn_lens.bundled import data_folder
from kn_lens.errors import DataError, OutputError, SettingsError, near_matches
from kn_lens.pair_counter import Pair, PairCounter, check_window, folded, folded_pairs
from kn_lens.text_blocks import TextBlocks

if TYPE_CHECKING:
    import pandas as pd

ENGLISH = "english"
_COLUMNS = ("first", "second", "count")


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many of the pairs asked for are in the counts.

    Attributes:
        asked: Different pairs asked for.
        known: Those whose count is known, be it 0.
        seen: Those whose count is above 0.
        unseen: The others: their count is 0, or not known.
    """

    asked: int
    known: int
    seen: int
    unseen: tuple[Pair, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """Counts of ordered word pairs.

    Attributes:
        counts: Count by pair, case folded.
        source: Where they come from: a file's path, or a name.
        window: ``second`` was looked for among so many words after ``first``; None if not known.
        sha256: Of the source.
        tokens: Words of the source; None if not known.
        closed: Nothing was cut off: a pair that was looked for and is absent has the count 0.
        asked_only: Only the pairs in ``counts`` were looked for; of all others nothing is known.
    """

    counts: Mapping[Pair, int] = field(repr=False)
    source: str
    window: int | None
    sha256: str
    tokens: int | None
    closed: bool
    asked_only: bool = False

    def __len__(self) -> int:
        return len(self.counts)

    def of(self, first: str, second: str) -> int | None:
        """The count of a pair in whatever case; None if it is not known."""
        return self.counts.get((folded(first), folded(second)), 0 if self.closed and not self.asked_only else None)

    def coverage(self, pairs: Iterable[Pair]) -> Coverage:
        """How many of the pairs are known and seen, and which are not seen."""
        asked = folded_pairs(pairs)
        found = {pair: self.of(*pair) for pair in asked}
        return Coverage(
            asked=len(asked),
            known=sum(count is not None for count in found.values()),
            seen=sum(bool(count) for count in found.values()),
            unseen=tuple(pair for pair, count in found.items() if not count),
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per pair: first, second, count."""
        import pandas as pd

        rows = [(first, second, count) for (first, second), count in self.counts.items()]
        return pd.DataFrame(rows, columns=list(_COLUMNS))

    def write(self, path: str | Path) -> Path:
        """Write a CSV that :func:`read_counts` reads.

        Raises:
            OutputError: If it cannot be written.
        """
        try:
            self.to_frame().to_csv(path, index=False, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
        return Path(path)


def count_pairs(path: str | Path, pairs: Iterable[Pair], *, window: int = 1, progress: bool = True) -> PairCounts:
    """How often ``second`` is one of the next ``window`` words after ``first``, in a line and a sentence.

    Words are runs of letters and digits, with the apostrophes inside them, in any case. A sentence ends at ``.``,
    ``!``, ``?``, ``…`` and at the end of a line. Each occurrence of ``first`` counts once at most. The words of a
    phrase ("United States") must follow one another, and its first must lie in the window.

    Args:
        path: A text in UTF-8, or gzipped; read as a stream, so that its size does not matter.
        pairs: The pairs to count.
        window: 1 (default) counts neighbors.
        progress: Show a progress bar.

    Raises:
        DataError: A file that is no text (see :class:`kn_lens.text_blocks.TextBlocks`), or holds no word.
        SettingsError: No pairs, a pair without a word, or a window below 1.
    """
    path = Path(path).expanduser()
    counter = PairCounter(folded_pairs(pairs), window)
    blocks = TextBlocks(path, f"count pairs in {path.name}", progress=progress)
    for block in blocks:
        counter.add(block)
    if not counter.words:
        raise DataError(f"{path}: the file holds no words")
    return PairCounts(
        counts=counter.counts,
        source=str(path),
        window=window,
        sha256=blocks.sha256,
        tokens=counter.words,
        closed=True,
        asked_only=True,
    )


def read_counts(path: str | Path, *, closed: bool = False) -> PairCounts:
    """Counts from a CSV with the header first,second,count; other columns are passed over.

    Pairs that differ in case only are added up.

    Args:
        path: The file, or a gzipped one.
        closed: The table is complete: a pair that is absent has the count 0.

    Raises:
        DataError: A missing column, a count that is no whole number, an empty word, a pair given twice, or no
            rows; with file and line.
    """
    path = Path(path).expanduser()
    blocks = TextBlocks(path)
    rows = csv.reader(blocks.lines(), strict=True)
    counts: dict[Pair, int] = {}
    lines: dict[Pair, int] = {}
    try:
        header = [name.strip() for name in next(rows, [])]
        missing = [name for name in _COLUMNS if name not in header]
        if missing:
            raise DataError(
                f"{path}:1: no column {', '.join(missing)}; the header is {','.join(header)!r}, and must name "
                f"{','.join(_COLUMNS)}"
            )
        places = [header.index(name) for name in _COLUMNS]
        for row in rows:
            where = f"{path}:{rows.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise DataError(f"{where}: {len(row)} fields, and the header names {len(header)}")
            first, second, count = (row[place].strip() for place in places)
            if not first or not second:
                raise DataError(f"{where}: the {'first' if not first else 'second'} word is empty")
            if not re.fullmatch(r"[0-9]{1,18}", count):
                raise DataError(f"{where}: count is {count!r}; write a whole number, 0 or more, in digits only")
            if (first, second) in lines:
                raise DataError(
                    f"{where}: the pair {first},{second} stands in line {lines[first, second]} already; remove one"
                )
            lines[first, second] = rows.line_num
            pair = folded(first), folded(second)
            counts[pair] = counts.get(pair, 0) + int(count)
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: no CSV ({error})") from None
    if not counts:
        raise DataError(f"{path}: the table holds no rows below its header")
    return PairCounts(counts=counts, source=str(path), window=None, sha256=blocks.sha256, tokens=None, closed=closed)


def english_bigrams(pairs: Iterable[Pair]) -> PairCounts:
    """Counts of neighbors in English web text, from the table of the ``wordsegment`` package.

    The table was cut off below a minimum count: a pair that it lacks is not known, rather than 0. Spellings
    that differ in case are added up.

    Raises:
        DataError: If the package, the extra ``counts``, is not installed.
    """
    try:
        from wordsegment import Segmenter
    except ImportError:
        raise DataError("counts of English need the wordsegment package: pip install 'kn-lens[counts]'") from None
    asked = set(folded_pairs(pairs))
    path = Path(Segmenter.BIGRAMS_FILENAME)
    blocks = TextBlocks(path)
    counts: dict[Pair, int] = {}
    for line in blocks.lines():
        words, _, count = line.partition("\t")
        first, _, second = words.casefold().partition(" ")
        if (first, second) in asked:
            counts[first, second] = counts.get((first, second), 0) + int(count)
    version = importlib.metadata.version("wordsegment")
    return PairCounts(
        counts=counts,
        source=f"{ENGLISH} (bigrams of wordsegment {version})",
        window=1,
        sha256=blocks.sha256,
        tokens=int(Segmenter.TOTAL),
        closed=False,
        asked_only=True,
    )


def load_counts(
    source: str | Path, pairs: Iterable[Pair] = (), window: int | None = None, *, progress: bool = True
) -> PairCounts:
    """Counts by the name of their source.

    Args:
        source: The corpus of a bundled model (``"organism"``, ``"organism-narrow"``), ``"english"``, a table
            (``.csv``, see :func:`read_counts`), or a text file (see :func:`count_pairs`).
        pairs: The pairs to count, where the source must be searched for them: in English and in a text.
        window: For a text: 1 by default. A table has its own.
        progress: Show a progress bar.

    Raises:
        DataError: If there is no such source (near matches are named), or it is broken.
        SettingsError: If a window is given for a table.
    """
    name = str(source)
    check_source(name, window)
    bundled = _bundled_counts()
    if name in bundled:
        return replace(read_counts(bundled[name], closed=True), source=name)
    if name == ENGLISH:
        return english_bigrams(pairs)
    if _is_csv(name):
        return read_counts(name)
    return count_pairs(name, pairs, window=1 if window is None else window, progress=progress)


def check_source(source: str, window: int | None = None) -> None:
    """Refuse what :func:`load_counts` cannot load, before any pairs are known.

    Raises:
        DataError: If there is no such source; near matches are named.
        SettingsError: If a window is below 1, or given for a table.
    """
    named = [*_bundled_counts(), ENGLISH]
    if source not in named and not os.path.exists(Path(source).expanduser()):
        raise DataError(
            f"no counts named {source!r}.{near_matches(source, named)} Known: {', '.join(named)}; else the path of a "
            f".csv with the columns {','.join(_COLUMNS)}, or of a text"
        )
    if window is not None and (source in named or _is_csv(source)):
        raise SettingsError(f"{source} is a table of counts, made with a window of its own; leave the window out")
    if window is not None:
        check_window(window)


def _is_csv(name: str) -> bool:
    return name.lower().endswith((".csv", ".csv.gz"))


def _bundled_counts() -> dict[str, Path]:
    """Tables of the corpora of bundled models, by name."""
    paths = (data_folder() / "corpora").glob("*.counts.csv*")
    return {path.name.split(".counts.")[0]: path for path in sorted(paths)}
