"""What the numbers of an evaluation of edits say, in sentences: whichever way they come out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kn_lens.prompts.prompt import count_reasons
from kn_lens.statistics import paired_difference

if TYPE_CHECKING:
    from kn_lens.criteria.evaluation import EditEvaluation

HOLDS = {
    "reliability": "the edited prompt gives the new answer",
    "generality": "its other wordings give the new answer",
    "locality": "unrelated questions keep the answer that they had",
    "symmetry": "the inverse question about the new answer gives the subject",
    "symmetry_old": "the inverse question about the old answer gives the subject no longer",
    "synonymy": "what follows from the new answer in other words is given",
}
"""What it means that a question of each criterion succeeds."""

_NAMES = {"symmetry_old": "symmetry, old answer"}
_FIRST = {"reliable": "are reliable", "general": "hold in other wordings"}
_DEEPER = {"symmetric": "the inverse question", "synonymous": "other words for the same"}
_MOST = 0.5

Row = Mapping[str, Any]


def edit_findings(evaluation: EditEvaluation) -> list[str]:
    """Sentences on what was edited, on each criterion, on labels, on the cascade, and on fluency."""
    rows: list[Row] = evaluation.summary().to_dict("records")  # type: ignore[assignment]
    said = [_made(evaluation), *map(_criterion, rows)]
    said += _by_label(evaluation)
    said += [*_cascade(evaluation), *_fluency(evaluation)]
    return [sentence for sentence in said if sentence]


def share_text(share: float, low: float, high: float) -> str:
    """``"96 % [87 %, 99 %]"``; the interval left out where there is none."""
    around = "" if math.isnan(low) else f" [{_percent(low)}, {_percent(high)}]"
    return f"{_percent(share)}{around}"


def count_text(n: int, what: str) -> str:
    """``"1 edit"``, ``"3 edits"``."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def _made(evaluation: EditEvaluation) -> str:
    n, failed = len(evaluation), evaluation.failed
    norms = [edit["norm"] for edit in evaluation.edits]
    model = evaluation.provenance.get("model", "the model")
    said = f"{evaluation.editor} edits {count_text(n, 'fact')} of {evaluation.data} in {model}"
    said += f" (mean norm of what is added: {np.mean(norms):.3g})" if norms else ""
    if failed:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in list(count_reasons(failed).items())[:3])
        said += f"; {count_text(len(failed), 'more edit')} could not be made ({reasons})"
    return f"{said}."


def _criterion(row: Row) -> str:
    name = str(_NAMES.get(row["criterion"], row["criterion"])).capitalize()
    if not row["asked"]:
        return f"{name}: no question could be asked."
    if not row["questions"]:
        return (
            f"{name} cannot be judged: the unedited model passes none of {count_text(row['asked'], 'probe')} of this "
            f"kind for its own facts, so that a failure after an edit says nothing of the edit."
        )
    counted = f"{count_text(row['edits'], 'edit')}, {count_text(row['questions'], 'question')}"
    if row["questions"] < row["asked"]:
        counted = (
            f"{count_text(row['edits'], 'edit')}, {row['questions']} of {row['asked']} questions: those that the "
            f"unedited model answers rightly for its own facts"
        )
    elif not math.isnan(row["known"]):
        counted += f", {_percent(row['known'])} of them known to the unedited model"
    share = share_text(row["success_after"], row["low"], row["high"])
    said = f"{name}: {HOLDS[row['criterion']]} in {share} of cases"
    if row["criterion"] == "locality":
        kl = "" if math.isnan(row["kl"]) else f"; the answers' distributions move by {row['kl']:.3g} nats (KL)"
        return f"{said} ({counted}){kl}."
    said += f", before the edit in {_percent(row['success_before'])} ({counted})"
    if not math.isnan(row["likelier_after"]):
        likelier = share_text(row["likelier_after"], row["likelier_low"], row["likelier_high"])
        said += f"; it is likelier than its rival in {likelier}, before in {_percent(row['likelier_before'])}"
    return f"{said}."


def _by_label(evaluation: EditEvaluation) -> list[str]:
    """Symmetry and synonymy for each value of labels that tell edits apart."""
    said = []
    for label, values in evaluation.labels.items():
        if len(values) < 2:
            continue
        table = evaluation.summary(by=label)
        for criterion in ("symmetry", "synonymy"):
            records: list[Row] = table.to_dict("records")  # type: ignore[assignment]
            rows = [row for row in records if row["criterion"] == criterion and row["asked"]]
            if len(rows) > 1:
                parts = [_part(row, str(row[label])) for row in rows]
                said.append(f"{criterion.capitalize()} by {label}: {'; '.join(parts)}.")
    return said


def _part(row: Row, value: str) -> str:
    if not row["questions"]:
        return f"{value}, not judged (the unedited model passes none of {count_text(row['asked'], 'probe')})"
    return f"{value}, {share_text(row['success_after'], row['low'], row['high'])} ({count_text(row['edits'], 'edit')})"


def _cascade(evaluation: EditEvaluation) -> list[str]:
    if not len(evaluation):
        return []
    stages: list[Row] = evaluation.cascade().to_dict("records")  # type: ignore[assignment]
    asked = [row for row in stages if row["edits"]]
    steps = [
        f"{row['passed']} of {row['edits']} are {row['stage']} ({share_text(row['share'], row['low'], row['high'])})"
        for row in asked
    ]
    if not steps:
        return []
    said = f"Of {count_text(len(evaluation), 'edit')}, step by step (each of those left that can be asked)"
    return [f"{said}: {', '.join(steps)}.", _verdict(evaluation, asked)]


def _verdict(evaluation: EditEvaluation, stages: list[Row]) -> str:
    """Whether the edits behave as knowledge would: the stages after generality, against one half."""
    who = f"the edits of {evaluation.editor}"
    deeper = [row for row in stages if row["stage"] in _DEEPER]
    if not deeper:
        stopped = stages[-1]
        why = (
            f"none is {stopped['stage']}"
            if not stopped["passed"]
            else "neither an inverse question nor other words for the same could be asked of them"
        )
        return f"Whether {who} behave as knowledge would is not seen: {why}."
    fails = [row for row in deeper if row["high"] < _MOST]
    holds = [row for row in deeper if row["low"] > _MOST]
    clauses = ", and of these ".join(
        f"{row['passed']} of {row['edits']} hold in {_DEEPER[row['stage']]} [{_percent(row['low'])}, "
        f"{_percent(row['high'])}]"
        for row in deeper
    )
    passed = " and ".join(_FIRST[row["stage"]] for row in stages if row["stage"] in _FIRST)
    said = f"Of those {f'that {passed}' if passed else 'asked'}, {clauses}"
    if fails:
        return f"{said}: {who} do not behave as knowledge would."
    if len(holds) == len(deeper):
        return f"{said}: so far as was asked, {who} behave as knowledge would."
    return f"{said}: whether {who} behave as knowledge would is open, for an interval reaches across one half."


def _fluency(evaluation: EditEvaluation) -> list[str]:
    said = []
    for measure, what, unit in (
        ("entropy", "the n-gram entropy of what is written after the edited prompt", " bits"),
        ("perplexity", "the perplexity on the texts given", ""),
    ):
        pairs = [(edit.get(f"{measure}_before"), edit.get(f"{measure}_after")) for edit in evaluation.edits]
        known = [(float(a), float(b)) for a, b in pairs if a is not None and b is not None and not math.isnan(a + b)]
        if not known:
            continue
        before, after = np.array(known).T
        change = paired_difference(after, before)
        around = "" if math.isnan(change.low) else f" [{_signed(change.low)}, {_signed(change.high)}]"
        if math.isnan(change.low):
            verdict = "a single edit allows no interval"
        elif change.low > 0 or change.high < 0:
            verdict = f"{'higher' if change.difference > 0 else 'lower'} after the edits"
        else:
            verdict = "no change is seen"
        said.append(
            f"Fluency: {what} goes from {before.mean():.3g} to {after.mean():.3g}{unit}, a change of "
            f"{_signed(change.difference)}{around} over {count_text(len(known), 'edit')}: {verdict}."
        )
    return said


def _percent(share: float) -> str:
    return "unknown" if math.isnan(share) else f"{100 * share:.0f} %"


def _signed(value: float) -> str:
    return f"{value:+.2g}".replace("-", "−")
