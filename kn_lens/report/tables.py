"""Tables of a report: rounded for the eye, whole for the CSV file that the page makes of them."""

from __future__ import annotations

import json
import math
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kn_lens.report.words import number

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 50
"""Rows shown before "show all" is asked."""

MOST_ROWS = 5000
"""Rows that a page carries of one table."""


@dataclass(frozen=True)
class PageTable:
    """One table as a page carries it.

    Attributes:
        id: Of the HTML element, unique on the page.
        name: Of the table.
        file: Name of the CSV file.
        columns: Names.
        numeric: Whether a column holds numbers.
        rows: Cells in full precision, None where there is nothing.
        shown: The same as text, rounded.
        total: Rows of the whole table; more than ``rows`` where it is too long for the page.
    """

    id: str
    name: str
    file: str
    columns: list[str]
    numeric: list[bool]
    rows: list[list[Any]]
    shown: list[list[str]]
    total: int

    @property
    def first(self) -> list[list[str]]:
        """The rows that the page shows at first."""
        return self.shown[:SHOWN]

    @property
    def data(self) -> dict[str, Any]:
        """What the page's script needs: cells, and their texts where these differ from them."""
        texts = {
            str(at): [row[at] for row in self.shown]
            for at in range(len(self.columns))
            if any(str(full[at]) != row[at] for full, row in zip(self.rows, self.shown, strict=True))
        }
        return {
            "file": self.file,
            "columns": self.columns,
            "numeric": self.numeric,
            "first": SHOWN,
            "rows": self.rows,
            "texts": texts,
        }


def page_table(frame: pd.DataFrame, *, id: str, name: str, file: str, most_rows: int = MOST_ROWS) -> PageTable:
    """A table for a page.

    Args:
        frame: The table; its index is not shown.
        id: Of the HTML element.
        name: Of the table.
        file: Name of the CSV file.
        most_rows: Rows to carry at most.
    """
    kept = frame.head(most_rows)
    columns = [[_cell(value) for value in kept.iloc[:, at].tolist()] for at in range(kept.shape[1])]
    numeric = [_is_numeric(column) for column in columns]
    texts = [[_text(value) for value in column] for column in columns]
    return PageTable(
        id=id,
        name=name,
        file=file,
        columns=[str(column) for column in frame.columns],
        numeric=numeric,
        rows=[list(row) for row in zip(*columns, strict=True)],
        shown=[list(row) for row in zip(*texts, strict=True)],
        total=len(frame),
    )


def _cell(value: Any) -> Any:
    """As JSON can hold it, without loss: what is no number becomes the text that a CSV file has for it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        real = float(value)
        return None if math.isnan(real) else real if math.isfinite(real) else ("inf" if real > 0 else "-inf")
    if isinstance(value, (list, tuple)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return None if str(value) in ("NaT", "<NA>") else str(value)


def _is_numeric(column: list[Any]) -> bool:
    known = [value for value in column if value not in (None, "inf", "-inf")]
    return bool(known) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known)


def _text(value: Any) -> str:
    return number(float(value) if value in ("inf", "-inf") else value)
