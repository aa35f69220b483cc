"""The paper's claims about edits, held against evaluations: the new answer comes, and little follows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from kn_lens.criteria.evaluation import EditEvaluation, interval
from kn_lens.criteria.evaluation_findings import count_text, share_text
from kn_lens.experiments.verdicts import MOSTLY, SELDOM, Estimate, Verdict

_FOLLOWS = {
    "symmetry": (
        "The inverse question seldom follows an edit",
        "the inverse question about the new answer gives the subject",
    ),
    "synonymy": (
        "Other words for the same seldom follow an edit",
        "what follows from the new answer in other words is given",
    ),
}


def criteria_verdicts(by_editor: Mapping[str, Sequence[EditEvaluation]]) -> list[Verdict]:
    """Verdicts on ROME's and the neurons' reliability, and on what follows ROME's edits (else the neurons').

    Args:
        by_editor: ``"rome"`` and ``"neurons"``, as far as they were asked for, with their evaluations on facts.
    """
    found = []
    if "rome" in by_editor:
        found.append(_reliability(by_editor["rome"], "rome", "ROME makes the new answer come", MOSTLY, below=False))
    editor = next((name for name in ("rome", "neurons") if by_editor.get(name)), next(iter(by_editor), None))
    if editor is not None:
        found += [_follows(by_editor[editor], editor, criterion) for criterion in _FOLLOWS]
    if "neurons" in by_editor:
        claim = "Editing knowledge neurons seldom makes the new answer come"
        found.append(_reliability(by_editor["neurons"], "neurons", claim, SELDOM, below=True))
    return found


def _reliability(evaluations: Sequence[EditEvaluation], editor: str, claim: str, bar: float, *, below: bool) -> Verdict:
    """Over the edits of all facts."""
    shares = np.concatenate([_shares(one, "reliability") for one in evaluations] or [np.array([])])
    shares = shares[~np.isnan(shares)]
    rule = f"The 95 % interval of the share of edits by {editor} whose prompt gives the new answer lies at or "
    rule += f"{'below' if below else 'above'} {bar:.0%}; it does not hold if the interval lies on the other side."
    if not len(shares):
        return Verdict(experiment="E8", test=3, claim=claim, holds=None, measured="no edit could be judged", rule=rule)
    estimate = _estimate("reliability, share of edits", shares, bar, below=below)
    names = " and ".join(one.data for one in evaluations)
    measured = (
        f"{editor}: the prompt gives the new answer after {_share(estimate)} of {count_text(len(shares), 'edit')}"
    )
    return Verdict(
        experiment="E8",
        test=3,
        claim=claim,
        holds=estimate.holds,
        measured=f"{measured} ({names})",
        rule=rule,
        estimate=estimate,
    )


def _follows(evaluations: Sequence[EditEvaluation], editor: str, criterion: str) -> Verdict:
    """Over the edits that are reliable and scored on a criterion: of others nothing could follow."""
    claim, what = _FOLLOWS[criterion]
    rule = (
        f"Of edits after which the prompt gives the new answer, and of which the unedited model knows the like for its "
        f"own facts: the 95 % interval of the share of questions answered as the edit would have it lies at or below "
        f"{SELDOM:.0%}; it does not hold if the interval lies above."
    )
    asked = [one for one in evaluations if criterion in one.criteria]
    shares = np.concatenate([_shares(one, criterion) for one in asked] or [np.array([])])
    came = np.concatenate([_came(one) for one in asked] or [np.array([], bool)])
    scored = ~np.isnan(shares)
    counted = shares[scored & came]
    if not len(counted):
        if not scored.any():
            why = "the unedited model passes no such probe for its own facts" if asked else "no such question was asked"
        else:
            why = f"after none of {count_text(int(scored.sum()), 'edit')} by {editor} the prompt gives the new answer"
        measured = f"not to be judged: {why}"
        short = "not to be judged"
        return Verdict(experiment="E8", test=3, claim=claim, holds=None, measured=measured, rule=rule, short=short)
    estimate = _estimate(f"{criterion}, share of cases", counted, SELDOM, below=True)
    names = " and ".join(one.data for one in asked)
    return Verdict(
        experiment="E8",
        test=3,
        claim=claim,
        holds=estimate.holds,
        measured=f"{editor}: {what} in {_share(estimate)} of cases ({count_text(len(counted), 'edit')} of "
        f"{int(scored.sum())} after which the prompt gives the new answer, {names})",
        rule=rule,
        estimate=estimate,
        short=f"{estimate} ({editor})",
    )


def _shares(one: EditEvaluation, criterion: str) -> Float[np.ndarray, " edit"]:
    """Of each edit the share of its scored questions that succeed; NaN without any."""
    return one.edits_frame()[criterion].to_numpy(float)


def _came(one: EditEvaluation) -> Bool[np.ndarray, " edit"]:
    """Whether the prompt gives the new answer."""
    return _shares(one, "reliability") > 0.5


def _estimate(quantity: str, shares: Float[np.ndarray, " edit"], bar: float, *, below: bool) -> Estimate:
    low, high = interval(shares)
    return Estimate(quantity=quantity, value=float(shares.mean()), low=low, high=high, bar=bar, below=below)


def _share(estimate: Estimate) -> str:
    return share_text(estimate.value, estimate.low, estimate.high)
