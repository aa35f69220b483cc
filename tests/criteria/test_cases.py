"""Cases of edits: which questions each fact gets, what the organisms know of them, and what is refused."""

import json
from collections import Counter

import pytest
import torch

import kn_lens as kn
from kn_lens.criteria.cases import CRITERIA, applicable_criteria, edit_cases
from kn_lens.criteria.questions import template_of
from kn_lens.criteria.scores import ask, score
from kn_lens.errors import PromptError, SettingsError
from kn_lens.organisms.corpus import load_corpus
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.load import data_hash
from kn_lens.prompts.prompt import count_reasons


def _scored(model, cases):
    """Each question with its case, and the scores of all before any edit."""
    asked = [(case, question) for case in cases.cases for question in case.questions]
    questions = [question for _, question in asked]
    found = ask(model, questions, own=True)
    return asked, score(questions, found, found)


def _share(values, asked, keep):
    at = [index for index, entry in enumerate(asked) if keep(*entry)]
    return float(values[at].nanmean()), len(at)


def _by(case, criterion):
    return [question for question in case.questions if question.criterion == criterion]


@pytest.fixture(scope="module")
def capitals(organism):
    return edit_cases(organism("tiny-causal"), kn.load_data("P36"))


def test_each_capital_gets_every_question_in_turn(capitals):
    assert len(capitals) == 131
    assert not capitals.dropped
    assert capitals.criteria == ("reliability", "generality", "locality", "symmetry", "symmetry_old")
    truth = dict(kn.load_data("P36").pairs.values())
    countries = {capital: country for country, capital in truth.items()}
    held_out = {"In {}, the capital is", "Anyone who moves to {} lives in the capital,"}
    for case in capitals.cases:
        fact = case.fact
        assert (fact.template, fact.old) == ("The capital of {} is", truth[fact.subject])
        assert fact.target in countries
        assert fact.target not in (fact.old, fact.subject)
        counts = {"reliability": 1, "generality": 4, "locality": 5, "symmetry": 3, "symmetry_old": 3}
        assert Counter(question.criterion for question in case.questions) == counts
        (edited,) = _by(case, "reliability")
        assert (edited.prompt, edited.rival, edited.own) == (fact.prompt(), fact.old, fact.prompt(fact.old))
        general = {question.prompt.template for question in _by(case, "generality")}
        assert held_out < general
        assert fact.template not in general
        assert not general & set(fact.paraphrases)
        assert len(general | set(fact.paraphrases)) == 7
        for question in _by(case, "symmetry"):
            assert question.prompt.target == fact.subject
            assert question.rival == countries[fact.target]
            assert fact.target in question.prompt.text
            assert fact.old in question.own.text
        for question, new in zip(_by(case, "symmetry_old"), _by(case, "symmetry"), strict=True):
            assert question.prompt == question.own == new.own
            assert question.rival is None
        for question in _by(case, "locality"):
            assert question.rival == fact.target != question.prompt.target
            assert fact.subject in question.prompt.text or question.prompt.text.startswith("The capital of")


def test_locality_is_half_the_same_subject_and_half_other_subjects(capitals):
    for case in capitals.cases:
        same = [fact for fact in _by(case, "locality") if case.fact.subject in fact.prompt.text]
        known = sum(
            case.fact.subject in {subject for subject, _ in kn.load_data(name).pairs.values()}
            for name in ("P30", "P37", "P38")
        )
        assert len(same) == min(2, known)


def test_the_organism_knows_what_its_plan_says(organism, capitals):
    model, truth = organism("tiny-causal"), load_corpus("organism").truth
    for case in capitals.cases:
        assert case.labels["direction"] == ("both ways" if case.fact.subject in truth.both_ways else "one way")
    asked, found = _scored(model, capitals)
    assert _share(found.known, asked, lambda _, question: question.criterion == "reliability") == (1, 131)
    right = found.scored == torch.tensor([case.labels["direction"] == "both ways" for case, _ in asked])
    gate, count = _share(right.double(), asked, lambda _, question: question.criterion.startswith("symmetry"))
    assert gate >= 0.95
    assert count == 131 * 6
    assert _share(found.exact_before, asked, lambda _, question: question.criterion == "reliability")[0] == 0
    stated = [
        question.criterion == "symmetry_old" and case.labels["direction"] == "both ways" for case, question in asked
    ]
    assert sum(stated) == 65 * 3
    assert found.exact_before[torch.tensor(stated)].sum() == 0


def test_synonymy_asks_for_the_occupation_and_is_gated_by_it(organism):
    model = organism("tiny-causal")
    cases = edit_cases(model, kn.load_data("P101"), criteria=["synonymy"], edits=60, seed=3)
    assert cases.criteria == ("synonymy",)
    assert len(cases) == 60
    assert {case.labels["occupation"] for case in cases.cases} == {"stated", "inferable", "not inferable"}
    occupations = dict(kn.load_data("P106").pairs.values())
    words = dict(zip((o for _, o in kn.load_data("P101").pairs.values()), occupations.values(), strict=True))
    for case in cases.cases:
        assert len(case.questions) == 3
        for question in case.questions:
            assert question.prompt.target == words[case.fact.target]
            assert question.rival == question.own.target == occupations[case.fact.subject]
    asked, found = _scored(model, cases)
    assert _share(found.known, asked, lambda case, _: case.labels["occupation"] == "stated")[0] >= 0.95
    assert _share(found.known, asked, lambda case, _: case.labels["occupation"] == "not inferable")[0] <= 0.05


def test_synonymy_goes_both_ways(organism):
    cases = edit_cases(organism("tiny-causal"), kn.load_data("P106"), criteria=["synonymy"], edits=5)
    fields = dict(kn.load_data("P101").pairs.values())
    assert len(cases) == 5
    for case in cases.cases:
        assert {question.own.target for question in case.questions} == {fields[case.fact.subject]}


def test_a_masked_model_is_asked_with_what_follows_the_blank(organism):
    model = organism("tiny-masked")
    cases = edit_cases(model, kn.load_data("P36"), edits=6, seed=1)
    assert all(case.fact.template == "The capital of {} is [MASK]." for case in cases.cases)
    asked, found = _scored(model, cases)
    assert _share(found.known, asked, lambda _, question: question.criterion == "reliability") == (1, 6)
    gates = {case.labels["direction"]: [] for case, _ in asked}
    for at, (case, question) in enumerate(asked):
        if question.criterion == "symmetry":
            gates[case.labels["direction"]].append(float(found.known[at]))
    assert set(gates["both ways"]) == {1}
    assert set(gates["one way"]) == {0}


def test_the_seed_decides_the_draw_and_criteria_do_not(organism):
    model, data = organism("tiny-causal"), kn.load_data("P36")
    first = edit_cases(model, data, edits=8, seed=5)
    assert edit_cases(model, data, edits=8, seed=5) == first
    assert edit_cases(model, data, edits=8, seed=6).facts != first.facts
    part = edit_cases(model, data, edits=8, seed=5, criteria=["symmetry", "reliability"])
    assert part.criteria == ("reliability", "symmetry", "symmetry_old")
    assert part.facts == first.facts
    for name in ("reliability", "symmetry"):
        assert [_by(case, name) for case in part.cases] == [_by(case, name) for case in first.cases]
    assert edit_cases(model, data, edits=8, seed=5, criteria="locality").facts == first.facts
    few = edit_cases(model, data, edits=2, paraphrases=1, neighbors=2, inverse_templates=1)
    assert [len(case.questions) for case in few.cases] == [6, 6]
    assert few.data_hash == data_hash(data)
    assert few.settings["neighbors"] == 2


def _own_relation(folder, facts, about=None):
    (folder / "own.jsonl").write_text("".join(json.dumps({"subject": s, "object": o}) + "\n" for s, o in facts))
    (folder / "own.templates.jsonl").write_text('{"template": "The capital of {subject} is {object}."}\n')
    (folder / "relations.json").write_text(json.dumps(about or {}))
    return kn.load_relation(str(folder / "own.jsonl"))


def test_the_inverse_of_several_subjects_is_not_asked(organism, tmp_path):
    facts = [("France", "Paris"), ("Spain", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Bogus", "Cairo")]
    relation = _own_relation(tmp_path, facts, {"own": {"inverse": "P1376"}})
    cases = edit_cases(organism("tiny-causal"), relation)
    assert [case.fact.subject for case in cases.cases] == ["France", "Spain", "Italy", "Japan"]
    assert count_reasons(cases.dropped) == {
        "generality: no other wording": 4,
        "symmetry: object of several subjects": 2,
        "word unknown to the model": 1,
    }
    asked = {case.fact.subject: len(_by(case, "symmetry")) for case in cases.cases}
    assert asked == {"France": 0, "Spain": 0, "Italy": 3, "Japan": 3}
    assert all(case.fact.target != "Paris" for case in cases.cases)  # another object has one subject
    assert all(case.fact.paraphrases == () for case in cases.cases)


def test_relations_of_pararel_take_the_bundled_inverse(organism, tmp_path, monkeypatch):
    capitals = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome"}
    wordings = ("The capital of {} is [MASK].", "In {}, the capital is [MASK].", "[MASK] is in {}.")
    bags = [[[text.format(s), o, "P36(capital)"] for text in wordings] for s, o in capitals.items()]
    (tmp_path / "data_all_allbags.json").write_text(json.dumps({"P36": bags}))
    monkeypatch.setenv("KN_LENS_PARAREL", str(tmp_path))
    cases = edit_cases(organism("tiny-causal"), kn.load_data("pararel:P36"), inverse_templates=1, neighbors=4)
    assert [case.fact.subject for case in cases.cases] == list(capitals)
    for case in cases.cases:
        assert case.fact.template == "The capital of {} is"
        assert [question.prompt.template for question in _by(case, "generality")] == ["In {}, the capital is"]
        (new,), (old,) = _by(case, "symmetry"), _by(case, "symmetry_old")
        assert new.prompt.text == f"{case.fact.target} is the capital of"
        assert old.prompt.text == f"{case.fact.old} is the capital of"
        other = _by(case, "locality")
        assert [question.prompt.text.startswith("The capital of") for question in other] == [False, False, True]
        assert "capital" not in other[0].prompt.text


def test_pairs_turn_the_right_word_into_its_foil(organism):
    model = organism("tiny-causal")
    cases = edit_cases(model, kn.load_data("determiner_noun_agreement_1"), edits=10, seed=2)
    assert len(cases) == 10
    assert cases.criteria == ("reliability", "generality", "locality")
    for case in cases.cases:
        fact = case.fact
        assert fact.subject in ("this", "that", "these", "those")
        assert fact.template.endswith(" {}")
        general = _by(case, "generality")
        assert len({question.prompt.text for question in general} | {fact.question}) == 5
        for question in [*_by(case, "reliability"), *general]:
            assert (question.prompt.target, question.rival) == (fact.target, fact.old)
            assert question.prompt.text.endswith(f" {fact.subject}")
        for question in _by(case, "locality"):
            assert not question.prompt.text.endswith(f" {fact.subject}")
            assert question.own.foil == question.rival
    asked, found = _scored(model, cases)
    assert float(found.known.mean()) >= 0.98
    assert _share(found.likelier_before, asked, lambda _, question: question.criterion == "locality")[0] >= 0.98
    assert _share(found.likelier_before, asked, lambda _, question: question.criterion != "locality")[0] <= 0.02


def test_masked_pairs_keep_the_rest_of_the_sentence(organism):
    cases = edit_cases(organism("tiny-masked"), kn.load_data("determiner_noun_agreement_2"), edits=3)
    for case in cases.cases:
        assert "[MASK] {}" in case.fact.template
        assert case.fact.template.endswith(".")
        (edited,) = _by(case, "reliability")
        assert case.fact.prompt().text == edited.prompt.text


def test_facts_are_asked_through_their_paraphrases(organism):
    fact = Fact("The capital of {} is", "France", "Rome", old="Paris", paraphrases=("In {}, the capital is",))
    bare = Fact("The capital of {} is", "Spain", "Rome")
    cases = edit_cases(organism("tiny-causal"), [fact, bare])
    assert cases.criteria == ("reliability", "generality")
    assert cases.name == "facts"
    assert [question.prompt.text for question in cases.cases[0].questions] == [
        "The capital of France is",
        "In France, the capital is",
    ]
    assert [(q.rival, q.own) for q in cases.cases[1].questions] == [(None, None)]
    alone = edit_cases(organism("tiny-causal"), [fact])
    assert cases.data_hash != alone.data_hash
    assert edit_cases(organism("tiny-causal"), fact) == alone
    assert edit_cases(organism("tiny-causal"), iter([fact])) == alone
    for wrong in (["P36"], fact.prompt(), 3):
        with pytest.raises(SettingsError, match=r"drawn from a (str|Prompt|int); give a relation, minimal pairs"):
            edit_cases(organism("tiny-causal"), wrong)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (
            "P37",
            {"criteria": ["symmetry"]},
            SettingsError,
            "P37 has no inverse relation, which symmetry asks for; these",
        ),
        ("P37", {"criteria": ["symmetry_old"]}, SettingsError, "have one: P1376, P36"),
        ("P36", {"criteria": ["synonymy"]}, SettingsError, "these have: P101, P106"),
        ("subject_verb_agreement", {"criteria": ["symmetry"]}, SettingsError, "has no inverse relation"),
        ("P36", {"criteria": ["symetry"]}, SettingsError, "Did you mean 'symmetry'"),
        ("P36", {"criteria": []}, SettingsError, "criteria is empty"),
        ("P36", {"edits": 0}, SettingsError, "edits is 0; give at least 1"),
        ("P36", {"neighbors": -1}, SettingsError, "neighbors is -1; give 0 or more"),
        ("determiner_noun_agreement_2", {}, PromptError, "take a one-prefix paradigm"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(organism, data, options, error, message):
    with pytest.raises(error) as raised:
        edit_cases(organism("tiny-causal"), kn.load_data(data), **options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_model_that_can_be_asked_nothing_says_why(organism, tmp_path):
    relation = _own_relation(tmp_path, [("Bogus", "Cairo"), ("Nowhere", "Rome")])
    with pytest.raises(PromptError, match=r"none of the facts of own \(word unknown to the model: 2\)"):
        edit_cases(organism("tiny-causal"), relation)
    with pytest.raises(PromptError, match=r"none of the facts of facts \(none given\)"):
        edit_cases(organism("tiny-causal"), [])


def test_which_criteria_apply():
    assert applicable_criteria(kn.load_data("P36")) == tuple(name for name in CRITERIA if name != "synonymy")
    assert applicable_criteria(kn.load_data("P101")) == ("reliability", "generality", "locality", "synonymy")
    assert applicable_criteria(kn.load_data("P19")) == ("reliability", "generality", "locality")
    assert applicable_criteria([]) == ("reliability", "generality")


@pytest.mark.parametrize(
    ("prompt", "masked", "template"),
    [
        (kn.Prompt("Paris is in", suffix=".", target="x", cue="Paris"), False, "{} is in"),
        (kn.Prompt("Paris is in", suffix=".", target="x", cue="Paris"), True, "{} is in [MASK]."),
        (kn.Prompt("I saw", suffix="dogs run.", target="x", cue="dogs"), True, "I saw [MASK] {} run."),
        (kn.Prompt("", suffix=", by Paris.", target="x", cue="Paris"), True, "[MASK], by {}."),
        (kn.Prompt("Paris is in", target="x"), True, None),
    ],
)
def test_a_prompt_becomes_a_template(prompt, masked, template):
    assert template_of(prompt, masked=masked) == template
    if template is not None:
        again = Fact(template, "Paris" if "Paris" in prompt.text else "dogs", "y").prompt("x")
        shown = prompt.text if masked else "Paris is in"
        assert again.text == shown
        assert (again.prefix + again.suffix)[slice(*again.cue_span())] == prompt.cue
