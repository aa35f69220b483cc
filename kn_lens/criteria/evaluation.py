"""What an editor's edits did, criterion by criterion: tables, intervals, and how far edits behave as knowledge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from kn_lens.criteria.evaluation_findings import edit_findings
from kn_lens.errors import SettingsError, near_matches
from kn_lens.prompts.prompt import Dropped
from kn_lens.results import Result
from kn_lens.statistics import bootstrap_mean, wilson_interval

if TYPE_CHECKING:
    import pandas as pd

STAGES = (
    ("reliable", ("reliability",)),
    ("general", ("generality",)),
    ("symmetric", ("symmetry", "symmetry_old")),
    ("synonymous", ("synonymy",)),
)
"""The cascade: at each stage an edit passes if more than half of its scored questions succeed, of each criterion named.
The first criterion named must have been asked; of the others, those that were."""

UNLABELED = "not labeled"
"""Edits without the label that a table is split by."""

FAILED = "edit failed: "
"""How the reason of an edit that could not be made begins."""

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EditEvaluation(Result):
    """Every question before and after every edit.

    Attributes:
        editor: What made the edits.
        data: Name of the data set.
        criteria: Those that were asked for.
        rows: A dict for each question. ``edit`` (index into ``edits``), ``criterion``, ``text``, ``target``, ``rival``,
            ``known`` (the unedited model passes the same probe for its own fact; None where there is none),
            ``scored`` (False where the criterion is gated and the probe is not known), and, ``_before`` and ``_after``
            the edit: ``log_p`` (of the target, mean over its tokens, nats), ``rival_log_p``, ``exact``, ``likelier``,
            ``top`` (the first token of the answer), ``success`` (as the criterion counts it); ``kl`` in nats
            (locality). NaN where there is no such number.
        edits: A dict for each edit: ``fact``, ``labels``, ``norm``, ``seconds``, ``layer``, ``first_loss``,
            ``last_loss``, and, where they were asked for, ``entropy`` of what is written after the prompt and
            ``perplexity`` on texts, ``_before`` and ``_after``.
        dropped: Facts, questions and edits left out, with reasons.
    """

    editor: str
    data: str
    criteria: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    edits: tuple[dict[str, Any], ...]
    dropped: tuple[Dropped, ...] = ()

    def __len__(self) -> int:
        return len(self.edits)

    @property
    def failed(self) -> tuple[Dropped, ...]:
        """Edits that could not be made."""
        return tuple(entry for entry in self.dropped if entry.reason.startswith(FAILED))

    @property
    def labels(self) -> dict[str, list[str]]:
        """Label → its values, as far as edits have any."""
        found: dict[str, list[str]] = {}
        for edit in self.edits:
            for name, value in edit["labels"].items():
                values = found.setdefault(name, [])
                if value not in values:
                    values.append(value)
        return found

    def questions_frame(self) -> pd.DataFrame:
        """One row per question."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def edits_frame(self) -> pd.DataFrame:
        """One row per edit: its fact and labels, what was recorded, and its share of successes by criterion."""
        import pandas as pd

        found = []
        for index, edit in enumerate(self.edits):
            fact = edit["fact"]
            row = {"edit": index, "subject": fact.subject, "old": fact.old, "target": fact.target}
            row |= {"text": fact.question, "relation": fact.relation, **edit["labels"]}
            row |= {name: value for name, value in edit.items() if name not in ("fact", "labels")}
            for name in self.criteria:
                row[name] = self._share(index, name)
            found.append(row)
        return pd.DataFrame(found)

    def to_frame(self) -> pd.DataFrame:
        """:meth:`summary` over all edits."""
        return self.summary()

    def summary(self, by: str | None = None) -> pd.DataFrame:
        """One row per criterion, of each edit the mean over its scored questions, then the mean over edits.

        Columns: edits and questions scored, ``asked`` (all questions), ``known`` (share of them whose own probe the
        unedited model passes), success and likelier before and after. Intervals are 95 %: Wilson's where every edit
        scores all or nothing (as with one question each) or all score alike, else bootstrap over edits. ``kl``: mean
        over edits.

        Args:
            by: A label (:attr:`labels`) to split by; a row for each of its values and each criterion.

        Raises:
            SettingsError: If no edit has such a label.
        """
        import pandas as pd

        found = []
        for value, members in self._parts(by):
            rows = [row for edit in members for row in self._questions.get(edit, ())]
            head = {} if by is None else {by: value}
            found += [{**head, **_summary_row(rows, criterion)} for criterion in self.criteria]
        return pd.DataFrame(found)

    def cascade(self, by: str | None = None) -> pd.DataFrame:
        """Where edits stop behaving as knowledge: reliable → general → symmetric → synonymous (:data:`STAGES`).

        Columns: ``stage``; ``edits`` that passed all stages before and can be asked; how many ``passed``; their
        ``share`` with Wilson's 95 % interval. A stage that none of them can be asked is passed over.

        Args:
            by: A label to split by.

        Raises:
            SettingsError: If no edit has such a label.
        """
        import pandas as pd

        found = []
        for value, members in self._parts(by):
            alive = list(members)
            for stage, criteria in STAGES:
                verdicts = {edit: self._passes(edit, criteria) for edit in alive}
                asked = [edit for edit, verdict in verdicts.items() if verdict is not None]
                passed = [edit for edit in asked if verdicts[edit]]
                low, high = wilson_interval(len(passed), len(asked))
                row = {"stage": stage, "edits": len(asked), "passed": len(passed)}
                row |= {"share": len(passed) / len(asked) if asked else float("nan"), "low": low, "high": high}
                found.append(row if by is None else {by: value, **row})
                alive = passed if asked else alive
        return pd.DataFrame(found)

    def findings(self) -> list[str]:
        """Sentences computed from the numbers, each with its counts and intervals."""
        return edit_findings(self)

    @cached_property
    def _questions(self) -> dict[int, list[Row]]:
        """The rows of each edit."""
        found: dict[int, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row["edit"], []).append(row)
        return found

    def _share(self, edit: int, criterion: str) -> float:
        """Of successes among an edit's scored questions; NaN without any."""
        return _mean(_by_edit(self._questions.get(edit, ()), criterion, "success_after"))

    def _passes(self, edit: int, criteria: Sequence[str]) -> bool | None:
        """Whether more than half of the scored questions succeed; None where there are none of the first criterion."""
        shares = [self._share(edit, name) for name in criteria]
        if np.isnan(shares[0]):
            return None
        return all(share > 0.5 for share in shares if not np.isnan(share))

    def _parts(self, by: str | None) -> list[tuple[str, list[int]]]:
        """(value of the label, edits that have it)."""
        if by is None:
            return [("", list(range(len(self.edits))))]
        if by not in self.labels:
            known = ", ".join(self.labels) or "none"
            raise SettingsError(f"no edit has a label {by!r}.{near_matches(by, self.labels)} Labels: {known}")
        parts: dict[str, list[int]] = {value: [] for value in [*self.labels[by], UNLABELED]}
        for index, edit in enumerate(self.edits):
            parts[edit["labels"].get(by, UNLABELED)].append(index)
        return [(value, members) for value, members in parts.items() if members]


def interval(values: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """95 % of a mean of shares: bootstrap, but Wilson's where a bootstrap cannot see beyond the values.

    That is where each is 0 or 1, and where several are one and the same share: these are taken as if as many of the
    edits, rounded outwards, had scored all and the others nothing.
    """
    n, total = len(values), float(values.sum())
    if np.isin(values, (0.0, 1.0)).all() or (n > 1 and np.ptp(values) < 1e-12):
        least, most = math.floor(total + 1e-9), math.ceil(total - 1e-9)
        return wilson_interval(least, n)[0], wilson_interval(most, n)[1]
    _, low, high = bootstrap_mean(values[:, None])
    return float(low[0]), float(high[0])


def _summary_row(rows: Sequence[Row], criterion: str) -> dict[str, Any]:
    asked = [row for row in rows if row["criterion"] == criterion]
    known = [row["known"] for row in asked if row["known"] is not None]
    counted = [row for row in asked if row["scored"]]
    found: dict[str, Any] = {
        "criterion": criterion,
        "edits": len({row["edit"] for row in counted}),
        "questions": len(counted),
        "asked": len(asked),
        "known": _mean(known),
    }
    for measure, ends in (("success", ("low", "high")), ("likelier", ("likelier_low", "likelier_high"))):
        before, after = (_by_edit(counted, criterion, f"{measure}_{when}") for when in ("before", "after"))
        found |= {f"{measure}_before": _mean(before), f"{measure}_after": _mean(after)}
        found |= dict(zip(ends, interval(after), strict=True))
    return {**found, "kl": _mean(_by_edit(counted, criterion, "kl"))}


def _by_edit(rows: Iterable[Row], criterion: str, column: str) -> Float[np.ndarray, " edit"]:
    """Each edit's mean over its scored questions, of edits that have any."""
    values: dict[int, list[float]] = {}
    for row in rows:
        value = float(row[column])
        if row["criterion"] == criterion and row["scored"] and not np.isnan(value):
            values.setdefault(row["edit"], []).append(value)
    return np.array([np.mean(each) for each in values.values()])


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
