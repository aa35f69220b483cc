"""Verdicts follow the interval, never the mean alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kn_lens.experiments.verdicts import Estimate, Verdict, at_least, at_most, overall


@pytest.mark.parametrize(
    ("low", "high", "most", "least"),
    [
        (0.0, 0.19, True, False),
        (0.0, 0.2, True, None),
        (0.1, 0.3, None, None),
        (0.2, 0.5, None, True),
        (0.21, 0.5, False, True),
        (float("nan"), float("nan"), None, None),
    ],
)
def test_a_bar_within_the_interval_leaves_the_claim_open(low, high, most, least) -> None:
    assert at_most(low, high, 0.2) is most
    assert at_least(low, high, 0.2) is least


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ([], "not asked"),
        ([True], "as the paper says (1 of 1 claim holds)"),
        ([True, True, None], "as the paper says (2 of 3 claims hold, 1 cannot be told)"),
        ([True, False], "partly as the paper says (1 of 2 claims holds, 1 does not)"),
        ([False, None], "not as the paper says (1 of 2 claims does not, 1 cannot be told)"),
        ([True, None, None], "cannot be told (1 of 3 claims holds, 2 cannot be told)"),
        ([None, None], "cannot be told (2 of 2 claims cannot be told)"),
    ],
)
def test_a_test_is_summed_up_by_its_claims(held, said) -> None:
    verdicts = [Verdict(experiment="E1", test=1, claim="c", holds=holds, measured="m", rule="r") for holds in held]
    assert overall(verdicts) == said


def test_what_is_told_beside_the_question_does_not_decide_it() -> None:
    one = Verdict(experiment="E1", test=1, claim="c", holds=None, measured="m", rule="r")
    beside = [replace(one, experiment="E3", holds=True, beside=True)] * 2
    assert overall([one, *beside]) == "cannot be told (1 of 1 claim cannot be told)"
    assert overall(beside) == "not asked"


def test_an_estimate_says_what_it_is() -> None:
    share = Estimate(quantity="share of answers flipped", value=0.139, low=0.0, high=1 / 3, bar=0.2, below=True)
    assert str(share) == "14 % [0 %, 33 %]"
    assert share.holds is None
    rho = Estimate(quantity="Spearman's ρ", value=-0.42, low=float("nan"), high=float("nan"), bar=0, below=False)
    assert str(rho) == "−0.42"
    verdict = Verdict(experiment="E1", test=1, claim="c", holds=None, measured="m", rule="r", estimate=share)
    assert verdict.brief == str(share)
    assert verdict.quantity == "share of answers flipped"
    assert replace(verdict, estimate=None).brief == "m"
    assert replace(verdict, estimate=None, short="s").brief == "s"
