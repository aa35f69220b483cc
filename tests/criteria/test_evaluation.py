"""Tables, the cascade and the sentences of an evaluation, on tables made by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from kn_lens.criteria.evaluation import STAGES, EditEvaluation, interval
from kn_lens.criteria.questions import CRITERIA
from kn_lens.errors import SettingsError
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Dropped
from kn_lens.results import Result
from kn_lens.statistics import bootstrap_mean, wilson_interval

GATED = ("symmetry", "symmetry_old", "synonymy")


def row(edit, criterion, after, *, before=0.0, known=True, likelier=float("nan"), kl=float("nan")):
    return {
        "edit": edit,
        "criterion": criterion,
        "text": f"question {edit}",
        "target": "Rome",
        "rival": None,
        "known": known,
        "scored": criterion not in GATED or known is True,
        "log_p_before": -3.0,
        "log_p_after": -0.1,
        "rival_log_p_before": float("nan"),
        "rival_log_p_after": float("nan"),
        "exact_before": bool(before),
        "exact_after": bool(after),
        "top_before": "Ottawa",
        "top_after": "Rome",
        "likelier_before": 0.0 if likelier == likelier else float("nan"),
        "likelier_after": likelier,
        "success_before": float(before),
        "success_after": float(after),
        "kl": kl,
    }


def evaluation(rows, n_edits, *, labels=None, dropped=(), criteria=CRITERIA, **more):
    edits = tuple(
        {
            "fact": Fact("The capital of {} is", f"Land{index}", "Rome", old="Ottawa", relation="P36"),
            "labels": {} if labels is None else labels[index],
            "norm": 2.0 + index,
            "seconds": 0.1,
            "layer": 3,
            "first_loss": 4.0,
            "last_loss": 0.5,
            **{name: values[index] for name, values in more.items()},
        }
        for index in range(n_edits)
    )
    return EditEvaluation(
        editor="rome",
        data="P36",
        criteria=tuple(criteria),
        rows=tuple(rows),
        edits=edits,
        dropped=tuple(dropped),
        settings={"seed": 0},
        provenance={"model": "tiny-causal"},
    )


def small():
    """Three edits: shares of generality 1, 1/2 and 0; one inverse question that is not known."""
    return evaluation(
        [
            *(row(edit, "reliability", edit < 2, likelier=1.0) for edit in range(3)),
            row(0, "generality", 1),
            row(0, "generality", 1),
            row(1, "generality", 1),
            row(1, "generality", 0),
            row(2, "generality", 0, before=1),
            row(0, "locality", 1, before=1, known=False, kl=0.2),
            row(0, "locality", 0, before=1, kl=0.4),
            row(1, "locality", 1, before=1, kl=0.1),
            row(0, "symmetry", 0),
            row(1, "symmetry", 1, known=False),
        ],
        3,
        labels=[{"direction": "both ways"}, {"direction": "one way"}, {}],
    )


def of(frame, name, column="criterion"):
    (found,) = frame[frame[column] == name].to_dict("records")
    return found


def test_summary_is_the_mean_over_edits_of_means_over_scored_questions():
    frame = small().to_frame()
    assert frame["criterion"].tolist() == list(CRITERIA)
    reliable = of(frame, "reliability")
    assert (reliable["edits"], reliable["questions"], reliable["asked"], reliable["known"]) == (3, 3, 3, 1.0)
    assert reliable["success_after"] == pytest.approx(2 / 3)
    assert (reliable["low"], reliable["high"]) == wilson_interval(2, 3)
    assert (reliable["likelier_before"], reliable["likelier_after"]) == (0.0, 1.0)
    assert (reliable["likelier_low"], reliable["likelier_high"]) == wilson_interval(3, 3)
    general = of(frame, "generality")
    assert general["success_after"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert general["success_before"] == pytest.approx(1 / 3)
    _, low, high = bootstrap_mean(np.array([[1.0], [0.5], [0.0]]))
    assert (general["low"], general["high"]) == (low[0], high[0])
    assert math.isnan(general["likelier_after"])
    local = of(frame, "locality")
    assert local["success_after"] == pytest.approx((1 / 2 + 1) / 2)
    assert local["known"] == pytest.approx(2 / 3)
    assert local["kl"] == pytest.approx((0.3 + 0.1) / 2)


def test_gated_questions_count_only_where_known():
    frame = small().to_frame()
    symmetric = of(frame, "symmetry")
    assert (symmetric["edits"], symmetric["questions"], symmetric["asked"]) == (1, 1, 2)
    assert symmetric["known"] == 0.5
    assert symmetric["success_after"] == 0.0
    nothing = of(frame, "synonymy")
    assert (nothing["edits"], nothing["questions"], nothing["asked"]) == (0, 0, 0)
    assert all(math.isnan(nothing[name]) for name in ("known", "success_before", "success_after", "low", "high", "kl"))


def test_intervals():
    assert interval(np.ones(50)) == wilson_interval(50, 50)
    assert interval(np.ones(50))[0] < 0.95  # a bootstrap would say [1, 1]
    assert interval(np.array([1.0, 0.0, 1.0])) == wilson_interval(2, 3)
    assert all(map(math.isnan, interval(np.array([]))))
    assert all(map(math.isnan, interval(np.array([0.5]))))
    assert interval(np.full(8, 0.75)) == wilson_interval(6, 8)  # a bootstrap would say [0.75, 0.75]
    assert interval(np.full(5, 0.5)) == (wilson_interval(2, 5)[0], wilson_interval(3, 5)[1])
    assert interval(np.full(3, 2 / 3)) == wilson_interval(2, 3)


def test_summary_by_label():
    frame = small().summary(by="direction")
    assert frame["direction"].unique().tolist() == ["both ways", "one way", "not labeled"]
    both = of(frame[frame["direction"] == "both ways"], "generality")
    assert (both["edits"], both["questions"], both["success_after"]) == (1, 2, 1.0)
    assert of(frame[frame["direction"] == "not labeled"], "reliability")["success_after"] == 0.0
    assert of(frame[frame["direction"] == "one way"], "symmetry")["questions"] == 0
    with pytest.raises(SettingsError, match=r"Did you mean 'direction'\? Labels: direction"):
        small().summary(by="directions")
    with pytest.raises(SettingsError, match="Labels: none"):
        evaluation([row(0, "reliability", 1)], 1).summary(by="direction")


def test_frames():
    found = small()
    edits = found.edits_frame()
    assert edits["subject"].tolist() == ["Land0", "Land1", "Land2"]
    assert edits["direction"].tolist()[:2] == ["both ways", "one way"]
    assert edits["generality"].tolist() == [1.0, 0.5, 0.0]
    assert edits["norm"].tolist() == [2.0, 3.0, 4.0]
    questions = found.questions_frame()
    assert len(questions) == 13
    assert questions[questions["criterion"] == "symmetry"]["scored"].tolist() == [True, False]


def cascaded():
    """Of 6 edits 5 are reliable, 4 of them general, 3 of these can be asked the inverse; one passes, a synonym too."""
    rows = [row(edit, "reliability", edit != 5) for edit in range(6)]
    for edit in range(6):
        rows += [
            row(edit, "generality", edit != 4),
            row(edit, "generality", edit not in (3, 4)),
            row(edit, "generality", 1),
        ]
    rows += [row(0, "symmetry", 1), row(0, "symmetry_old", 1)]
    rows += [row(1, "symmetry", 1), row(1, "symmetry_old", 0)]  # o's question still gives s
    rows += [row(2, "symmetry", 1), row(2, "symmetry", 0), row(2, "symmetry_old", 1)]  # half is not more than half
    rows += [row(3, "symmetry", 1, known=False), row(3, "symmetry_old", 1)]  # cannot be asked
    rows += [row(5, "symmetry", 1)]  # not reliable: does not count
    rows += [row(edit, "synonymy", 1) for edit in range(6)]
    return evaluation(rows, 6, labels=[{"direction": "both ways" if edit < 3 else "one way"} for edit in range(6)])


def test_cascade_narrows_stage_by_stage():
    frame = cascaded().cascade()
    assert frame["stage"].tolist() == [stage for stage, _ in STAGES]
    assert frame["edits"].tolist() == [6, 5, 3, 1]
    assert frame["passed"].tolist() == [5, 4, 1, 1]
    assert frame["share"].tolist() == pytest.approx([5 / 6, 4 / 5, 1 / 3, 1])
    assert [tuple(pair) for pair in frame[["low", "high"]].to_numpy()] == [
        wilson_interval(passed, n) for passed, n in ((5, 6), (4, 5), (1, 3), (1, 1))
    ]


def test_cascade_by_label_and_without_a_stage():
    frame = cascaded().cascade(by="direction")
    assert frame[frame["direction"] == "one way"]["passed"].tolist() == [2, 1, 0, 1]
    assert frame[frame["direction"] == "one way"]["edits"].tolist() == [3, 2, 0, 1]
    rows = [row(edit, name, 1) for edit in range(4) for name in ("reliability", "generality", "synonymy")]
    plain = evaluation(rows, 4).cascade()
    assert plain["edits"].tolist() == [4, 4, 0, 4]
    assert math.isnan(of(plain, "symmetric", "stage")["share"])
    assert of(plain, "synonymous", "stage")["passed"] == 4


def judged(symmetric, n=40):
    """All edits reliable and general, ``symmetric`` of them symmetric."""
    rows = [row(edit, name, 1) for edit in range(n) for name in ("reliability", "generality")]
    rows += [row(edit, "symmetry", edit < symmetric) for edit in range(n)]
    return evaluation(rows, n, criteria=("reliability", "generality", "symmetry"))


@pytest.mark.parametrize(
    ("symmetric", "verdict"),
    [
        (2, "the edits of rome do not behave as knowledge would."),
        (38, "so far as was asked, the edits of rome behave as knowledge would."),
        (20, "whether the edits of rome behave as knowledge would is open, for an interval reaches across one half."),
    ],
)
def test_the_verdict_follows_the_numbers(symmetric, verdict):
    said = judged(symmetric).findings()[-1]
    low, high = wilson_interval(symmetric, 40)
    assert said.endswith(verdict)
    assert f"{symmetric} of 40 hold in the inverse question [{100 * low:.0f} %, {100 * high:.0f} %]" in said


@pytest.mark.parametrize(
    ("asked", "begin"),
    [
        ((), "Of those asked, 0 of 9 hold in the inverse question ["),
        (("reliability",), "Of those that are reliable, 0 of 9 hold in the inverse question ["),
        (("generality",), "Of those that hold in other wordings, 0 of 9 hold in the inverse question ["),
        (
            ("reliability", "generality"),
            "Of those that are reliable and hold in other wordings, 0 of 9 hold in the inverse question [",
        ),
    ],
)
def test_the_verdict_claims_no_stage_that_was_not_asked(asked, begin):
    rows = [row(edit, name, 1) for edit in range(9) for name in asked]
    rows += [row(edit, "symmetry", 0) for edit in range(9)]
    assert evaluation(rows, 9).findings()[-1].startswith(begin)


def test_no_verdict_where_nothing_could_be_asked():
    rows = [row(edit, name, 1) for edit in range(9) for name in ("reliability", "generality")]
    assert (
        evaluation(rows, 9)
        .findings()[-1]
        .endswith("is not seen: neither an inverse question nor other words for the same could be asked of them.")
    )
    rows = [row(edit, "reliability", 0) for edit in range(9)] + [row(edit, "symmetry", 0) for edit in range(9)]
    assert evaluation(rows, 9).findings()[-1].endswith("is not seen: none is reliable.")


def test_sentences_hold_counts_and_intervals():
    dropped = [
        Dropped(text="a", reason="edit failed: target is several tokens"),
        Dropped(text="b", reason="object of several subjects"),
    ]
    found = dataclasses.replace(small(), dropped=tuple(dropped))
    assert found.failed == tuple(dropped[:1])
    said = found.findings()
    assert said[0] == (
        "rome edits 3 facts of P36 in tiny-causal (mean norm of what is added: 3); 1 more edit could not be made "
        "(edit failed: target is several tokens: 1)."
    )
    assert said[1].startswith("Reliability: the edited prompt gives the new answer in 67 % [21 %, 94 %] of cases, ")
    assert "(3 edits, 3 questions, 100 % of them known to the unedited model); it is likelier than its rival" in said[1]
    assert said[1].endswith("in 100 % [44 %, 100 %], before in 0 %.")
    assert "75 %" in said[3]
    assert "(2 edits, 3 questions, 67 % of them known to the unedited model); the" in said[3]
    assert said[3].endswith("the answers' distributions move by 0.2 nats (KL).")
    assert "(1 edit, 1 of 2 questions: those that the unedited model answers rightly for its own facts)" in said[4]
    assert said[5] == "Symmetry, old answer: no question could be asked."
    (split,) = [sentence for sentence in said if sentence.startswith("Symmetry by direction")]
    assert "both ways, 0 % [0 %, 79 %] (1 edit); one way, not judged" in split
    unknown = evaluation([row(0, "symmetry", 1, known=False)], 1, criteria=("symmetry",)).findings()
    assert unknown[1].startswith("Symmetry cannot be judged: the unedited model passes none of 1 probe of this kind")


def test_fluency_is_told_with_its_interval():
    rows = [row(edit, "reliability", 1) for edit in range(4)]
    entropies = {"entropy_before": [4.0, 4.1, 4.2, 4.3], "entropy_after": [3.0, 3.0, 3.3, 3.3]}
    read = {"perplexity_before": [8.0] * 4, "perplexity_after": [9.0, 7.0, 9.0, 7.0]}
    entropy, perplexity = evaluation(rows, 4, **entropies, **read).findings()[-2:]
    assert "goes from 4.15 to 3.15 bits, a change of −1 [" in entropy
    assert entropy.endswith("over 4 edits: lower after the edits.")
    assert perplexity.endswith("over 4 edits: no change is seen.")


def test_nothing_edited_and_one_edit_are_no_errors():
    empty = evaluation([], 0)
    assert empty.to_frame()["edits"].tolist() == [0] * len(CRITERIA)
    assert empty.cascade()["edits"].tolist() == [0] * 4
    assert empty.findings()[0] == "rome edits 0 facts of P36 in tiny-causal."
    one = evaluation([row(0, "generality", 1), row(0, "generality", 0)], 1)
    assert math.isnan(of(one.to_frame(), "generality")["low"])
    assert "50 % of cases" in one.findings()[2]


def test_saved_and_loaded(tmp_path):
    found = dataclasses.replace(cascaded(), dropped=(Dropped(text="a", reason="b"),))
    found.save(tmp_path)
    back = Result.load(tmp_path)
    assert isinstance(back, EditEvaluation)
    assert back.edits == found.edits
    assert back.dropped == found.dropped
    assert back.questions_frame().equals(found.questions_frame())
    assert back.findings() == found.findings()
