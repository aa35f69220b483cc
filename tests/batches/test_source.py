"""Sources: the prompts of data sets and of files of prompts, and what becomes of bad rows."""

from __future__ import annotations

import json
import random

import pytest

from kn_lens.batches.config import DataEntry
from kn_lens.batches.methods import METHODS
from kn_lens.batches.source import LISTED, open_source
from kn_lens.errors import DataError, PromptError, SettingsError
from kn_lens.models.load import load_model
from kn_lens.prompts.load import data_hash, load_minimal_pairs, load_relation
from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.tracing.draw import cued_prompts

TRACE, SCORES, SEARCH = (METHODS[name] for name in ("causal_trace", "max_activation", "knowledge_neurons"))


@pytest.fixture(scope="module")
def model():
    return load_model("tiny-causal")


def opened(name, on_bad_row="error", **entry):
    return open_source(DataEntry(name=str(name), **entry), on_bad_row)


def asked(source, model, method=TRACE, seed=0, settings=None):
    items = list(source.prompts(model, method, seed, settings))
    return [item for item in items if isinstance(item, Prompt)], [item for item in items if isinstance(item, Dropped)]


def write(path, *rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def capital(country, city, **fields):
    return {"prefix": f"The capital of {country} is", "target": city, "cue": country, **fields}


def test_facts_come_as_a_relation_gives_them(model):
    source = opened("P36", groups=3, prompts=2, templates="held_out")
    relation = load_relation("P36")
    batch = relation.prompts(model, groups=3, per_group=2, templates="held_out", seed=5)
    prompts, dropped = asked(source, model, seed=5)
    assert prompts == list(batch.prompts)
    assert dropped == list(batch.dropped)
    assert (source.name, source.kind, source.sha256, source.skipped) == ("P36", "facts", data_hash(relation), ())


def test_pairs_come_as_the_draws_of_methods_give_them(model):
    pairs = load_minimal_pairs("subject_verb_agreement")
    source = opened("subject_verb_agreement", groups=4, prompts=3)
    assert source.kind == "pairs"
    plain, dropped = asked(source, model, SCORES, seed=2)
    batch = pairs.prompts(model, groups=4, per_group=3, seed=2)
    assert (plain, dropped) == (list(batch.prompts), list(batch.dropped))
    for corruption in ("noise", "swap"):
        settings = TRACE.Settings(corruption=corruption)
        cued, _ = asked(source, model, TRACE, 2, settings)
        assert cued == list(cued_prompts(model, pairs, 4, 3, 2, twins=corruption == "swap").prompts)
    moved, _ = asked(opened("subject_verb_agreement", groups=2, prompts=3, augment=True), model, seed=1)
    assert moved == list(pairs.prompts(model, groups=2, per_group=3, augment=True, seed=1).prompts)


def test_a_model_that_can_be_asked_nothing_is_told_of_which_data(model, tmp_path):
    write(tmp_path / "far.templates.jsonl", {"template": "Qwxz {subject} zxq {object}."})
    source = opened(write(tmp_path / "far.jsonl", {"subject": "Vkrt", "object": "Paris"}))
    with pytest.raises(PromptError, match=r"far.jsonl: tiny-causal can be asked none of the 1 prompts"):
        asked(source, model)


def test_a_file_of_prompts_comes_in_its_order(model, tmp_path):
    rows = [capital("France", "Paris", group="f"), capital("Italy", "Rome"), capital("Spain", "Madrid", group="f")]
    source = opened(write(tmp_path / "mine.jsonl", *rows))
    prompts, dropped = asked(source, model)
    assert [(prompt.target, prompt.group) for prompt in prompts] == [("Paris", "f"), ("Rome", None), ("Madrid", "f")]
    assert dropped == []
    assert [str(prompt.source) for prompt in prompts] == [f"{tmp_path / 'mine.jsonl'}:{line}" for line in (1, 2, 3)]
    assert (source.kind, len(source.sha256 or "")) == ("prompts", 64)
    assert next(iter(source.prompts(model, TRACE, 0))) == prompts[0]


def test_groups_and_prompts_of_a_file_are_drawn_with_the_seed(model, tmp_path):
    cities = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}
    rows = [
        capital(country, city, group=country) if turn != 1 else capital("Qwxzland", city, group=country)
        for country, city in cities.items()
        for turn in range(4)
    ]
    path = write(tmp_path / "mine.jsonl", *rows)
    names = list(cities)
    random.Random(7).shuffle(names)
    prompts, dropped = asked(opened(path, groups=2, prompts=2), model, seed=7)
    chosen = [name for name in cities if name in names[:2]]  # in the file's order
    assert [prompt.group for prompt in prompts] == [name for name in chosen for _ in range(2)]
    assert {prompt.cue for prompt in prompts} == set(chosen)  # the second of each cannot be asked, and does not count
    assert [entry.reason for entry in dropped] == ["word unknown to the model"] * 2
    everything, _ = asked(opened(path, groups=9), model)
    assert len(everything) == 16


def test_methods_of_whole_groups_need_them_together(model, tmp_path):
    rows = [capital("France", "Paris", group="f"), capital("Italy", "Rome"), capital("Spain", "Madrid", group="f")]
    source = opened(write(tmp_path / "mine.jsonl", *rows))
    with pytest.raises(DataError) as refusal:
        asked(source, model, SEARCH)
    assert str(refusal.value).startswith(f"{tmp_path / 'mine.jsonl'}:3: the group 'f' comes back after others; ")
    together = opened(write(tmp_path / "mine.jsonl", rows[1], rows[0], rows[2]))
    assert len(asked(together, model, SEARCH)[0]) == 3


@pytest.mark.parametrize("kind", ["prompts", "facts", "pairs", "known facts"])
def test_all_bad_rows_are_named_or_left_out(model, tmp_path, kind):
    path = tmp_path / ("mine.json" if kind == "known facts" else "mine.jsonl")
    if kind == "prompts":
        write(path, "{", capital("France", "Paris"), {"prefix": "It", "target": 3}, capital("Italy", "Rome"))
        bad, sound = [1, 3], {"Paris", "Rome"}
    elif kind == "facts":
        write(
            tmp_path / "mine.templates.jsonl", {"template": "The capital of {subject} is {object}."}, {"template": "x"}
        )
        facts = [("France", "Paris"), ("Italy", "Italy"), ("France", "Rome"), ("Spain", "Madrid")]
        write(path, *({"subject": subject, "object": object_} for subject, object_ in facts))
        bad, sound = ["mine.templates.jsonl:2", 2, 3], {"Paris", "Madrid"}
    elif kind == "pairs":
        good, same = "The boy runs today.", {"one_prefix_method": True}
        write(
            path,
            "[]",
            {"sentence_good": good, "sentence_bad": "The boy run today.", **same},
            {"sentence_good": good, "sentence_bad": good},
            {"sentence_good": good, "sentence_bad": "The boy run today.", **same, "cue_span": [9, 3]},
        )
        bad, sound = [1, 3, 4], {"runs"}
    else:
        rows = [{"subject": "France", "attribute": "Paris", "prompt": "The capital of France is"}, {"subject": "x"}, 3]
        path.write_text(json.dumps(rows))
        bad, sound = ["mine.json[1]", "mine.json[1]", "mine.json[2]", "mine.json[2]", "mine.json[2]"], {"Paris"}
    with pytest.raises(DataError) as refusal:
        opened(path)
    lines = str(refusal.value).splitlines()
    places = [f"{tmp_path / f'mine.jsonl:{place}' if isinstance(place, int) else tmp_path / place}: " for place in bad]
    assert [line[: len(place)] for line, place in zip(lines, places, strict=True)] == places
    source = opened(path, "skip")
    assert list(source.skipped) == lines
    assert {prompt.target for prompt in asked(source, model, SCORES)[0]} == sound


def test_of_many_bad_rows_twenty_are_shown_and_a_thousand_listed(tmp_path):
    path = write(tmp_path / "mine.jsonl", capital("France", "Paris"), *["{"] * 37)
    with pytest.raises(DataError) as refusal:
        opened(path)
    lines = str(refusal.value).splitlines()
    assert len(lines) == 21
    assert (lines[19].partition(": ")[0], lines[20]) == (f"{path}:21", "and 17 more")
    write(path, capital("France", "Paris"), *["{"] * (LISTED + 3))
    assert opened(path, "skip").skipped[-1] == "and 3 more"


def test_data_without_a_sound_row_is_refused_either_way(tmp_path):
    path = write(tmp_path / "mine.jsonl", "{", "[]")
    for on_bad_row in ("error", "skip"):
        with pytest.raises(DataError, match=r"mine.jsonl:1: not JSON"):
            opened(path, on_bad_row)
    path.write_text("")
    with pytest.raises(DataError, match=r"the file is empty"):
        opened(path, "skip")
    write(tmp_path / "mine.templates.jsonl", {"template": "x"})
    write(path, {"subject": "France", "object": "Paris"})
    with pytest.raises(
        DataError, match=r"^.*mine.jsonl: no row is sound\n.*templates.jsonl:1: template 'x' holds no slot"
    ):
        opened(path, "skip")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"name": "P63"}, r"^no data named 'P63'. Did you mean"),
        ({"name": "P36", "augment": True}, r"^P36 holds facts and augment is true; only minimal pairs"),
        (
            {"name": "subject_verb_agreement", "templates": "held_out"},
            r"^subject_verb_agreement holds minimal pairs and templates is 'held_out'; only facts",
        ),
    ],
)
def test_entries_that_do_not_suit_the_data(entry, problem):
    with pytest.raises((DataError, SettingsError), match=problem):
        open_source(DataEntry(**entry))


def test_edits_hold_no_prompts(model, tmp_path):
    texts = ("subject", "prompt", "target_new", "ground_truth", "rephrase_prompt", "locality_prompt")
    edit = dict(zip(texts, ("France", "The capital of France is", "Rome", "Paris", "France has", "It is"), strict=True))
    path = tmp_path / "edits.json"
    path.write_text(json.dumps([{**edit, "locality_ground_truth": "so"}]))
    source = opened(path)
    assert source.kind == "edits"
    with pytest.raises(
        DataError, match=r"edits.json holds edits \(CounterFact\), which only the method evaluate_edits"
    ):
        asked(source, model)
