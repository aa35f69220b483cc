"""Claims of the paper held against one model: as it says, otherwise, or not to be told from these numbers.

A claim about a share holds where the whole 95 % interval lies on its side of a bar, fails where the whole interval lies
on the other, and cannot be told where the bar lies within: few prompts never make a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isnan

SELDOM = 0.2
"""Seldom: in fewer than one case in five."""

MOSTLY = 0.5
"""Mostly: in more than half of the cases."""


@dataclass(frozen=True)
class Test:
    """One of the paper's three tests of the knowledge neuron thesis.

    Attributes:
        number: 1, 2 or 3.
        question: What it asks.
        paper: What the paper finds.
    """

    number: int
    question: str
    paper: str


THESIS = (
    "The knowledge neuron thesis: a transformer recalls facts from its MLP weights as from a key-value memory, so that "
    "a fact can be found in, and edited through, a few neurons or one matrix."
)

TESTS = (
    Test(1, "Are facts kept more locally than grammar?", "No: agreement localizes just as well."),
    Test(
        2,
        "Does switching off what was found change what the model says?",
        "Seldom: probabilities shift, answers stay, and the shift follows how often words stand together.",
    ),
    Test(
        3,
        "Does an edited fact behave as knowledge?",
        "No: the new answer comes, but neither the inverse question nor other words for the same follow it.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The number that a claim turns on, between −1 and 1: a share, a correlation, a difference of shares.

    Attributes:
        quantity: What it is: ``"share of answers flipped"``.
        value: The estimate.
        low, high: Its 95 % interval.
        bar: The claim holds where the interval lies wholly on its side of this.
        below: That side.
    """

    quantity: str
    value: float
    low: float
    high: float
    bar: float
    below: bool

    @property
    def holds(self) -> bool | None:
        """Whether the claim holds: None where the bar lies within the interval."""
        return (at_most if self.below else at_least)(self.low, self.high, self.bar)

    def __str__(self) -> str:
        """The number with its interval: ``"14 % [0 %, 33 %]"`` of a share, else ``"0.70 [0.59, 0.78]"``."""
        share = "share" in self.quantity
        value, low, high = (
            (f"{100 * number:.0f} %" if share else f"{number:.2f}").replace("-0.00", "0.00").replace("-", "−")
            for number in (self.value, self.low, self.high)
        )
        return value if isnan(self.low) else f"{value} [{low}, {high}]"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One claim of the paper and what one model shows of it.

    Attributes:
        experiment: ``"E1"`` … ``"E9"``: where the evidence is.
        test: Which of :data:`TESTS` it belongs to.
        claim: What the paper says, the same words for every model.
        holds: Whether it holds of this model; None where the numbers cannot tell.
        measured: The numbers, with their interval and the counts behind them.
        rule: What would make it hold, and what would not.
        estimate: The number behind it, where there is one between −1 and 1.
        short: What was measured in a few words, where there is no such number.
        beside: Whether it is told beside the test's question and does not decide it.
    """

    experiment: str
    test: int
    claim: str
    holds: bool | None
    measured: str
    rule: str
    estimate: Estimate | None = None
    short: str = ""
    beside: bool = False

    @property
    def brief(self) -> str:
        """The number behind it with its interval, for a table."""
        return self.short or (self.measured if self.estimate is None else str(self.estimate))

    @property
    def quantity(self) -> str:
        """What that number is, where the claim does not say."""
        return "" if self.estimate is None else self.estimate.quantity


def at_most(low: float, high: float, bar: float) -> bool | None:
    """Whether an interval lies at or below a bar: None where it lies on both sides, or is NaN."""
    return True if high <= bar else False if low > bar else None


def at_least(low: float, high: float, bar: float) -> bool | None:
    """Whether an interval lies at or above a bar: None where it lies on both sides, or is NaN."""
    return True if low >= bar else False if high < bar else None


def overall(verdicts: Iterable[Verdict]) -> str:
    """The verdicts of one test in a few words: ``"as the paper says (2 of 3 claims hold, 1 cannot be told)"``."""
    word, counts = summed_up(verdicts)
    return f"{word} ({counts})" if counts else word


def summed_up(verdicts: Iterable[Verdict]) -> tuple[str, str]:
    """The verdict on one test, and the counts behind it (empty where nothing was asked).

    Claims told beside the question do not count. Where more claims are open than told, the test is open.
    """
    held = [verdict.holds for verdict in verdicts if not verdict.beside]
    yes, no, open_ = held.count(True), held.count(False), held.count(None)
    if not held:
        return "not asked", ""
    if open_ > yes + no:
        word = "cannot be told"
    else:
        word = "partly as the paper says" if yes and no else "as the paper says" if yes else "not as the paper says"
    words = ((yes, "holds", "hold"), (no, "does not", "do not"), (open_, "cannot be told", "cannot be told"))
    parts = [f"{count} {one if count == 1 else more}" for count, one, more in words if count]
    of = f" of {len(held)} claim{'' if len(held) == 1 else 's'} "
    return word, ", ".join(parts).replace(" ", of, 1)
