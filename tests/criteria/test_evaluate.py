"""A run of edits: the numbers against closed forms, the model left bit by bit as it was, and runs that break off."""

from __future__ import annotations

import functools
import json
import math

import pytest
import torch

import kn_lens as kn
from kn_lens.criteria.evaluate import editor_name, evaluate_edits
from kn_lens.criteria.evaluation import FAILED
from kn_lens.criteria.fluency import perplexity
from kn_lens.criteria.questions import EditCase, EditCases, Question
from kn_lens.editing.edit import Edit
from kn_lens.errors import ModelError, OutputError, PromptError, SettingsError
from kn_lens.models.hashing import weights_hash
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Prompt
from kn_lens.scoring import target_distribution

CAPITAL = "The capital of {} is"
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Egypt": "Cairo", "Japan": "Tokyo", "Norway": "Oslo"}
LOUD = 40.0


def bump(model, fact, *, by=LOUD):
    """The new answer's logit, raised everywhere by ``by``."""
    (token,) = kn.PromptBatch.from_prompts(model, [fact.prompt()]).target_ids.tolist()
    change = torch.zeros(1, model.cfg.d_vocab)
    change[0, token] = by
    return Edit(
        editor="bump",
        fact=fact,
        rows={"unembed.b_U": torch.tensor([0])},
        changes={"unembed.b_U": change},
        settings={},
        provenance={},
    )


def case(subject, new, labels=None):
    old, other = CAPITALS[subject], next(name for name in CAPITALS if name not in (subject, _country_of(new)))
    fact = Fact(CAPITAL, subject, new, old=old)
    elsewhere = Fact(CAPITAL, other, CAPITALS[other], old=new)
    inverse = "{} is the capital of"
    questions = (
        Question(criterion="reliability", prompt=fact.prompt(), rival=old, own=fact.prompt(old)),
        Question(criterion="locality", prompt=elsewhere.prompt(), rival=new, own=elsewhere.prompt()),
        Question(
            criterion="symmetry",
            prompt=Prompt(inverse.format(new), target=subject),
            own=Prompt(inverse.format(old), target=subject),
        ),
        Question(
            criterion="symmetry_old",
            prompt=Prompt(inverse.format(old), target=subject),
            own=Prompt(inverse.format(old), target=subject),
        ),
    )
    return EditCase(fact=fact, questions=questions, labels=labels or {})


def _country_of(city):
    return next(country for country, capital in CAPITALS.items() if capital == city)


def cases(*pairs):
    made = tuple(case(subject, new) for subject, new in pairs)
    return EditCases(cases=made, name="by hand", criteria=("reliability", "locality", "symmetry", "symmetry_old"))


FIVE = (("France", "Rome"), ("Italy", "Paris"), ("Spain", "Cairo"), ("Egypt", "Tokyo"), ("Japan", "Madrid"))


def run(model, editor=bump, facts=None, **options):
    return evaluate_edits(model, editor, cases(*FIVE) if facts is None else facts, progress=False, **options)


def comparable(evaluation):
    """All that is told, but how long it took; text, so that NaN equals NaN."""
    edits = [{name: value for name, value in edit.items() if name != "seconds"} for edit in evaluation.edits]
    return repr((evaluation.rows, edits, evaluation.dropped, evaluation.settings, evaluation.editor))


@pytest.fixture
def model(organism):
    """The causal organism; it must be bit by bit the same afterwards."""
    found = organism("tiny-causal")
    before = weights_hash(found)
    yield found
    assert weights_hash(found) == before


def test_success_of_an_edit_whose_effect_is_known(model):
    """A logit raised by 40 everywhere: the new answer to every question, so reliable, not local, not symmetric."""
    found = run(model)
    frame = found.to_frame().set_index("criterion")
    assert frame["success_before"].tolist()[:2] == [0.0, 1.0]
    assert frame["success_after"].to_dict() == {
        "reliability": 1.0,
        "locality": 0.0,
        "symmetry": 0.0,
        "symmetry_old": 1.0,  # the old question gives another word now, as all do
    }
    assert frame["likelier_after"].tolist()[:2] == [1.0, 0.0]
    assert frame["known"].tolist()[:2] == [1.0, 1.0]
    assert frame["edits"].tolist()[:2] == [5, 5]
    for edit in found.edits:
        assert edit["norm"] == pytest.approx(LOUD)
        assert math.isnan(edit["first_loss"])
        assert edit["layer"] is None
    assert [edit["fact"].target for edit in found.edits] == [new for _, new in FIVE]


def test_log_probabilities_and_kl_in_closed_form(model):
    """b added to one logit t: log p'(y) = log p(y) + b·[y = t] − log Z, Z = 1 + p(t)(eᵇ − 1); KL = log Z − p(t)·b."""
    by = 3.0
    editor = functools.partial(bump, by=by)
    found = run(model, editor)
    assert found.editor == "bump (by=3.0)"
    for index, one in enumerate(cases(*FIVE).cases):
        rows = {row["criterion"]: row for row in found.rows if row["edit"] == index}
        for question in one.questions:
            row = rows[question.criterion]
            batch = kn.PromptBatch.from_prompts(model, [question.prompt])
            log_p = target_distribution(model, batch)[0].double().log()
            (target,) = batch.target_ids.tolist()
            (bumped,) = kn.PromptBatch.from_prompts(model, [one.fact.prompt()]).target_ids.tolist()
            log_z = math.log1p(float(log_p[bumped].exp()) * math.expm1(by))
            assert row["log_p_before"] == pytest.approx(float(log_p[target]), abs=1e-4)
            expected = float(log_p[target]) + by * (target == bumped) - log_z
            assert row["log_p_after"] == pytest.approx(expected, abs=1e-4)
            assert row["exact_before"] == (int(log_p.argmax()) == target)
            if question.criterion == "locality":
                assert row["kl"] == pytest.approx(log_z - float(log_p[bumped].exp()) * by, abs=1e-5)
            else:
                assert math.isnan(row["kl"])


def test_the_gate_is_the_unedited_models_own_answer(model):
    found = run(model)
    for index, (subject, _) in enumerate(FIVE):
        own = Prompt(f"{CAPITALS[subject]} is the capital of", target=subject)
        knows = bool(kn.answers(model, own).correct[0])
        (row,) = [row for row in found.rows if row["edit"] == index and row["criterion"] == "symmetry"]
        assert row["known"] is knows
        assert row["scored"] is knows


def test_a_relation_is_evaluated_as_it_is(model):
    """Of bundled facts that the organism knows: every edit reliable and general, none local."""
    found = run(model, facts=kn.load_relation("P36"), edits=4, seed=1)
    again = run(model, facts=kn.load_relation("P36"), edits=4, seed=1)
    assert comparable(found) == comparable(again)
    assert (len(found), found.data) == (4, "P36")
    frame = found.to_frame().set_index("criterion")
    assert frame["success_after"][["reliability", "generality", "locality"]].tolist() == [1.0, 1.0, 0.0]
    assert frame["known"]["reliability"] == 1.0
    assert found.provenance["weights_hash"] == weights_hash(model)
    assert set(found.labels["direction"]) <= {"both ways", "one way"}
    facts = [Fact(CAPITAL, "France", "Rome", old="Paris", paraphrases=("{} has the capital",))]
    plain = run(model, facts=facts).to_frame().set_index("criterion")
    assert plain["asked"]["reliability"] == 1
    assert plain["success_after"]["reliability"] == 1.0


def test_failures_are_counted_and_the_run_goes_on(model):
    def choosy(model, fact):
        if fact.subject == "Spain":
            raise ModelError("the loss is NaN")
        if fact.subject == "Egypt":
            return bump(model, fact, by=0.0)  # changes nothing: cannot be applied
        return bump(model, fact)

    found = run(model, choosy)
    assert [edit["fact"].subject for edit in found.edits] == ["France", "Italy", "Japan"]
    assert {row["edit"] for row in found.rows} == {0, 1, 2}
    first, second = found.failed
    assert (first.text, first.reason) == ("The capital of Spain is", f"{FAILED}the loss is NaN")
    assert "changes no weight" in second.reason
    assert "2 more edits could not be made" in found.findings()[0]


def test_a_model_that_answers_nan_is_a_failure(model):
    """Weights that are numbers still, and logits that are not."""

    def huge(model, fact):
        if fact.subject != "Italy":
            return bump(model, fact)
        rows, width = model.unembed.W_U.shape
        return Edit(
            editor="huge",
            fact=fact,
            rows={"unembed.W_U": torch.arange(rows)},
            changes={"unembed.W_U": torch.full((rows, width), 3e38)},
            settings={},
            provenance={},
        )

    found = run(model, huge, fluency=True)
    assert [entry.reason for entry in found.failed] == [f"{FAILED}the edited model answers NaN"]
    assert len(found) == 4


def test_if_all_fail_the_first_error_is_raised(model):
    def none(model, fact):
        raise ModelError(f"no edit for {fact.subject}")

    with pytest.raises(ModelError, match="no edit for France"):
        run(model, none)


def test_errors_that_are_no_failure_of_an_edit_go_through(model):
    with pytest.raises(SettingsError, match="the editor lambda returned a NoneType"):
        run(model, lambda model, fact: None)
    with pytest.raises(ZeroDivisionError):
        run(model, lambda model, fact: 1 / 0)


def test_an_editor_that_changes_the_model_itself_is_found_out(organism):
    model = organism("tiny-causal")
    kept = model.unembed.b_U.detach().clone()

    def careless(model, fact):
        with torch.no_grad():
            model.unembed.b_U[0] += 1
        return bump(model, fact)

    with pytest.raises(ModelError, match="the editor careless changed the weights of tiny-causal itself"):
        run(model, careless)
    with torch.no_grad():
        model.unembed.b_U.copy_(kept)


def test_what_cannot_be_asked_is_counted(model):
    one = case("France", "Rome")
    odd = Question(criterion="generality", prompt=Prompt("The capital of Qwertz is", target="Rome"))
    given = EditCases(
        cases=(EditCase(fact=one.fact, questions=(*one.questions, odd)), case("Italy", "Paris")),
        name="by hand",
        criteria=("reliability", "generality", "locality", "symmetry", "symmetry_old"),
    )
    found = run(model, facts=given)
    assert [entry.reason for entry in found.dropped] == ["generality: word unknown to the model"]
    assert len(found.rows) == 8
    assert found.to_frame().set_index("criterion")["asked"].tolist() == [2, 0, 2, 2, 2]


def test_criteria_and_edits_choose_from_cases(model):
    found = run(model, criteria=["locality"], edits=2)
    assert len(found) == 2
    assert [row["criterion"] for row in found.rows] == ["locality", "locality"]
    assert set(run(model, criteria="symmetry", edits=1).to_frame()["criterion"]) == {"symmetry", "symmetry_old"}
    with pytest.raises(SettingsError, match="Did you mean 'locality'"):
        run(model, criteria=["localty"])
    with pytest.raises(SettingsError, match="criteria is empty; take some of reliability, locality, symmetry, "):
        run(model, criteria=[])
    with pytest.raises(SettingsError, match="edits is 0"):
        run(model, edits=0)


def test_a_run_that_broke_off_goes_on(model, tmp_path):
    path = tmp_path / "run.jsonl"
    whole = run(model)
    made = []

    def bump_until(stop):
        def editor(model, fact):
            if len(made) == stop:
                raise KeyboardInterrupt
            made.append(fact.subject)
            return bump(model, fact)

        editor.__name__ = "bump"
        return editor

    with pytest.raises(KeyboardInterrupt):
        run(model, bump_until(2), journal=path)
    assert len(path.read_text().splitlines()) == 3
    with pytest.raises(KeyboardInterrupt):
        run(model, bump_until(4), journal=path)
    path.write_bytes(path.read_bytes()[:-10])  # killed while it wrote the fourth
    made.clear()
    found = run(model, bump_until(99), journal=path)
    assert made == ["Egypt", "Japan"]
    assert comparable(found) == comparable(whole)
    assert comparable(run(model, bump_until(0), journal=path)) == comparable(whole)  # nothing is left to do


def test_another_run_does_not_go_on_with_it(model, tmp_path):
    path = tmp_path / "run.jsonl"
    run(model, edits=1, journal=path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="differs in settings"):
        run(model, edits=2, journal=path)
    with pytest.raises(OutputError, match=r"differs in editor \(there \"bump\", here \"bump \(by=2.0\)\"\)"):
        run(model, functools.partial(bump, by=2.0), edits=1, journal=path)
    with bump(model, Fact(CAPITAL, "France", "Rome")).applied(model), pytest.raises(OutputError, match="weights_hash"):
        run(model, edits=1, journal=path)
    assert path.read_bytes() == before
    assert set(json.loads(before.splitlines()[0])["journal"]) == {"kn_lens", "editor", "weights_hash", "settings"}


def test_a_failed_edit_is_tried_again(model, tmp_path):
    path = tmp_path / "run.jsonl"
    works = {"now": False}

    def moody(model, fact):
        if fact.subject == "Italy" and not works["now"]:
            raise ModelError("not today")
        return bump(model, fact)

    assert len(run(model, moody, journal=path)) == 4
    works["now"] = True
    found = run(model, moody, journal=path)
    assert [edit["fact"].subject for edit in found.edits] == [subject for subject, _ in FIVE]


def test_fluency_before_and_after(model):
    texts = ["The capital of France is Paris .", "The capital of Spain is Madrid ."]
    found = run(model, edits=2, fluency=True, perplexity_on=texts)
    for edit, (_, new) in zip(found.edits, FIVE, strict=False):
        assert edit["entropy_after"] == 0.0  # one word again and again
        assert edit["written_after"].endswith(f"{new} {new} {new}")
        assert edit["entropy_before"] > 0
        assert edit["perplexity_before"] == pytest.approx(perplexity(model, texts))
        with bump(model, edit["fact"]).applied(model):
            assert edit["perplexity_after"] == pytest.approx(perplexity(model, texts))
    assert "lower after the edits" in next(said for said in found.findings() if "n-gram entropy" in said)


def test_a_text_too_short_for_a_perplexity_is_refused_before_any_edit(model):
    made = []
    with pytest.raises(PromptError, match="perplexity needs a text of at least two tokens"):
        run(model, lambda model, fact: made.append(fact), perplexity_on=["The"])
    assert not made


def test_masked_models(organism):
    model = organism("tiny-masked")
    before = weights_hash(model)
    fact = Fact("The capital of {} is [MASK].", "France", "Rome", old="Paris")
    questions = (Question(criterion="reliability", prompt=fact.prompt(), rival="Paris", own=fact.prompt("Paris")),)
    given = EditCases(cases=(EditCase(fact=fact, questions=questions),), name="by hand", criteria=("reliability",))
    (row,) = run(model, facts=given).rows
    assert (row["success_before"], row["success_after"]) == (0.0, 1.0)
    assert (row["top_before"], row["top_after"], row["known"]) == ("Paris", "Rome", True)
    with pytest.raises(ModelError, match="masked model, which writes no text"):
        run(model, facts=given, fluency=True)
    assert weights_hash(model) == before


def test_no_fact_that_can_be_asked(model):
    fact = Fact(CAPITAL, "Qwertz", "Rome")
    given = EditCases(cases=(EditCase(fact=fact, questions=()),), name="by hand")
    with pytest.raises(PromptError, match="word unknown to the model"):
        run(model, facts=given)


def test_editors_have_names():
    class Loud:
        def __call__(self, model, fact):
            return bump(model, fact)

    named = Loud()
    named.name = "loud"
    assert editor_name(bump) == "bump"
    assert editor_name(Loud()) == "Loud"
    assert editor_name(named) == "loud"
    assert editor_name(lambda model, fact: None) == "lambda"
    assert editor_name(functools.partial(bump)) == "bump"
    assert editor_name(functools.partial(bump, by=2.0, layers=(1, 2))) == "bump (by=2.0, layers=(1, 2))"
    assert editor_name(functools.partial(bump, key=torch.zeros(1000))) == "bump (key=Tensor)"
