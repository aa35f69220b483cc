"""Files in CounterFact's format: what is asked of their entries, and how broken ones are named."""

import json

import pytest

import kn_lens as kn
from kn_lens.criteria.cases import edit_cases
from kn_lens.criteria.scores import ask
from kn_lens.errors import DataError
from kn_lens.prompts.counter_facts import CounterFacts
from kn_lens.prompts.load import data_hash, load_prompts
from kn_lens.prompts.prompt import count_reasons

ENTRIES = [
    {
        "case_id": 7,
        "subject": "France",
        "prompt": "The capital of France is",
        "target_new": "Rome",
        "ground_truth": "Paris",
        "rephrase_prompt": "In France, the capital is",
        "locality_prompt": "The capital of Japan is",
        "locality_ground_truth": "Tokyo",
    },
    {
        "case_id": 8,
        "subject": "Spain",
        "prompt": "The capital of Spain is",
        "target_new": "Cairo",
        "ground_truth": "Madrid",
        "rephrase_prompt": "In the Xyzzy of Spain, the capital is",
        "locality_prompt": "The capital of Egypt is",
        "locality_ground_truth": "Cairo",
    },
]


def _entries_file(folder, entries):
    path = folder / "edits.json"
    path.write_text(json.dumps(entries))
    return path


def test_counterfact_entries_are_asked_as_they_stand(organism, tmp_path):
    model, path = organism("tiny-causal"), _entries_file(tmp_path, ENTRIES)
    data = kn.load_data(str(path))
    assert isinstance(data, CounterFacts)
    assert len(data) == 2
    assert data.entries[0].case_id == "7"
    cases = edit_cases(model, data)
    assert [fact.name for fact in cases.facts] == ["France: Paris → Rome", "Spain: Madrid → Cairo"]
    assert cases.facts[0].template == "The capital of {} is"
    assert count_reasons(cases.dropped) == {"generality: word unknown to the model": 1}
    france, spain = cases.cases
    assert [(q.criterion, q.prompt.text, q.prompt.target, q.rival) for q in france.questions] == [
        ("reliability", "The capital of France is", "Rome", "Paris"),
        ("generality", "In France, the capital is", "Rome", "Paris"),
        ("locality", "The capital of Japan is", "Tokyo", "Rome"),
    ]
    assert spain.questions[-1].rival is None  # the new answer is right there
    known = ask(model, [question for case in cases.cases for question in case.questions], own=True).known
    assert known.tolist() == [1] * 5
    assert cases.data_hash == data_hash(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_new": None}, "edits.json[1]: field 'target_new' is None, not a text"),
        ({"ground_truth": "Rome", "target_new": "Rome"}, "the new answer to 'The capital of Spain is' is the old one"),
        ({"subject": "Peru"}, "edits.json[1]: the subject 'Peru' is missing from 'The capital of Spain is'"),
        ({"locality_prompt": " "}, "edits.json[1]: field 'locality_prompt' is ' ', not a text"),
    ],
)
def test_broken_entries_are_named_by_number(tmp_path, change, message):
    path = _entries_file(tmp_path, [ENTRIES[0], {**ENTRIES[1], **change}])
    with pytest.raises(DataError) as error:
        kn.load_data(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named(tmp_path):
    entry = {name: value for name, value in ENTRIES[1].items() if name != "rephrase_prompt"}
    with pytest.raises(DataError, match=r"\[1\]: field 'rephrase_prompt' is missing"):
        kn.load_data(str(_entries_file(tmp_path, [ENTRIES[0], entry])))
    with pytest.raises(DataError, match=r"\[1\]: expected an object"):
        kn.load_data(str(_entries_file(tmp_path, [ENTRIES[0], 3])))


def test_edits_are_refused_where_prompts_are_wanted(tmp_path):
    path = str(_entries_file(tmp_path, ENTRIES))
    for load in (load_prompts, kn.load_relation, kn.load_minimal_pairs):
        with pytest.raises(DataError, match=r"holds edits \(CounterFact\), which can only be evaluated"):
            load(path)
