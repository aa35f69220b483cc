"""Facts: bundled relations, ParaRel, known facts, and files with mistakes."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

import kn_lens as kn
from kn_lens.bundled import data_folder
from kn_lens.errors import DataError, SettingsError
from kn_lens.prompts.load import PARAREL_FOLDER, bundled_names, data_hash
from kn_lens.prompts.relations import begins, read_relation

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the public data sets are not at {SHARED}")


def write_relation(folder, facts, templates):
    for name, rows in (("R.jsonl", facts), ("R.templates.jsonl", templates)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "R.jsonl"


FACTS = [{"subject": "France", "object": "Paris"}, {"subject": "Spain", "object": "Madrid"}]
TEMPLATES = [
    {"template": "The capital of {subject} is {object}."},
    {"template": "{object} is the capital of {subject}."},
    {"template": "{subject}, {object} and the river"},
]


def test_templates_become_prompts_with_the_subject_as_cue(tmp_path, random_model):
    relation = kn.load_relation(str(write_relation(tmp_path, FACTS, TEMPLATES)))
    assert list(relation.facts) == ["France → Paris", "Spain → Madrid"]
    for fact, prompts in relation.facts.items():
        subject, target = fact.split(" → ")
        assert len(prompts) == 3
        for prompt, template in zip(prompts, TEMPLATES, strict=True):
            filled = template["template"].replace("{subject}", subject).replace("{object}", target)
            space = " " if prompt.prefix else ""
            assert prompt.prefix + space + target + prompt.suffix == filled
            start, end = prompt.cue_span() or (0, 0)
            assert (prompt.prefix + prompt.suffix)[start:end] == subject
            assert prompt.group == fact
    causal = relation.prompts(random_model("gpt2"))
    assert [prompt.prefix for prompt in causal.prompts] == ["The capital of France is", "The capital of Spain is"]
    assert [entry.reason for entry in causal.dropped] == ["text after the blank"] * 4
    masked = relation.prompts(random_model("bert"))
    assert len(masked) == 6
    for entry in masked.resolved:
        cue = [masked.decode(entry.ids[at]) for at in entry.cue_positions]
        assert cue == [entry.prompt.group.split(" → ")[0]]  # type: ignore[union-attr]


def test_draws_of_groups_are_seeded_and_bounded(random_model):
    model = random_model("gpt2")
    relation = kn.load_relation("P36")
    first = relation.prompts(model, groups=3, per_group=2, seed=5, targets="any")
    again = relation.prompts(model, groups=3, per_group=2, seed=5, targets="any")
    other = relation.prompts(model, groups=3, per_group=2, seed=6, targets="any")
    assert first.prompts == again.prompts
    assert set(first.groups) != set(other.groups)
    assert [len(indices) for indices in first.groups.values()] == [2, 2, 2]


@pytest.mark.parametrize(
    ("facts", "templates", "message"),
    [
        (FACTS, [{"template": "The capital is {object}."}], "R.templates.jsonl:1: template 'The capital is {object}.'"),
        (FACTS, [TEMPLATES[0], {"template": "{subject} {subject} {object}"}], "R.templates.jsonl:2: template"),
        (FACTS, [{"template": "nothing"}], "holds no slot; write exactly one {subject} and one {object}"),
        (FACTS, [{"text": "x"}], "R.templates.jsonl:1: field 'template' is missing"),
        ([*FACTS, FACTS[0]], TEMPLATES, "R.jsonl:3: the fact 'France → Paris' is stated twice"),
        ([{"subject": "France"}], TEMPLATES, "R.jsonl:1: field 'object' is missing"),
        ([], TEMPLATES, "R.jsonl: the file is empty"),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path, facts, templates, message):
    with pytest.raises(DataError) as refusal:
        kn.load_relation(str(write_relation(tmp_path, facts, templates)))
    assert message in str(refusal.value)


ASKED = "The capital of {subject} is {object}."
ONE_OF_EACH = "; write exactly one {subject} and one {object}"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"template": "It is {object}."}, "template 'It is {object}.' holds no {subject}" + ONE_OF_EACH),
        ({"template": "{subject} is."}, "template '{subject} is.' holds no {object}" + ONE_OF_EACH),
        ({"template": "{object} {subject} {object}"}, "holds {object} 2 times" + ONE_OF_EACH),
        (
            {"template": "{subject} of {subject} of {subject} is {object}."},
            "holds {subject} 3 times" + ONE_OF_EACH,
        ),
        (
            {"template": "{name} is {object}."},
            "template '{name} is {object}.' holds the unknown slot {name} and no {subject}" + ONE_OF_EACH,
        ),
        ({"template": "{subject} {} is {object}."}, "holds the unknown slot {}" + ONE_OF_EACH),
        ({"template": "{Subject} is {object}."}, "holds the unknown slot {Subject} and no {subject}" + ONE_OF_EACH),
        ({"template": "{{subject}} is {object}."}, "holds a brace that belongs to no slot" + ONE_OF_EACH),
        (
            {"template": "{subject} has {object} today.", "form": "causal"},
            'form is "causal", and words follow {object}; write "masked"',
        ),
        (
            {"template": "{subject} has {object}!", "form": "masked"},
            'form is "masked", and only punctuation follows {object}; write "causal"',
        ),
        (
            {"template": "{subject} has {object}.", "form": "casual"},
            'form is \'casual\'; write "causal" or "masked" (here "causal": only punctuation follows {object})',
        ),
        ({"template": "{subject} has {object}.", "held_out": "yes"}, "held_out is 'yes'; write true or false"),
        ({"template": "{subject} has {object}.", "held_out": 1}, "held_out is 1; write true or false"),
        ({"template": f" {ASKED}"}, f"template '{ASKED}' stands in line 1 already; remove one"),
    ],
)
def test_mistakes_in_templates(tmp_path, row, problem):
    path = write_relation(tmp_path, FACTS, [{"template": ASKED, "form": "causal"}, row])
    with pytest.raises(DataError) as refusal:
        read_relation(path)
    assert str(refusal.value).startswith(f"{tmp_path / 'R.templates.jsonl'}:2: ")
    assert problem in str(refusal.value)
    assert "\n" not in str(refusal.value)


REWORD = (
    "compete: where one asks for the object, the other may go on; reword one so that neither text up to {object} "
    "begins the other"
)


@pytest.mark.parametrize(
    ("template", "asks"),
    [
        ("The capital of {subject} is the city of {object}.", "The capital of {subject} is the city of"),
        ("The capital of {subject} {object}.", "The capital of {subject}"),
        ("The capital of {subject} is {object}!", "The capital of {subject} is"),
        ("The capital of {subject}, {object}.", None),
        ("The capital of {subject}: {object}.", None),
        ("The capital of {subject} isn {object}.", None),  # another word
        ("The capital of {subject} is {object} by law.", None),  # a masked model reads on
    ],
)
def test_templates_that_compete_are_kept_with_a_warning(tmp_path, caplog, template, asks):
    """Sets made by others have such: "X works in", "X works in the field of"."""
    rows = [{"template": ASKED}, {"template": "{subject}, {object} and the river"}, {"template": template}]
    relation = read_relation(write_relation(tmp_path, FACTS, rows))
    for prompts in relation.facts.values():
        assert [prompt.template for prompt in prompts] == [row["template"] for row in rows]
    where = tmp_path / "R.templates.jsonl"
    told = [f"{where}:3: {asks!r} and 'The capital of {{subject}} is' (line 1) {REWORD}"] if asks else []
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", line) for line in told
    ]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (("Spain", "Madrid"), "the fact 'Spain → Madrid' is stated twice, first in line 2; remove one"),
        (
            ("Spain", "Toledo"),
            "'Spain' has the object 'Toledo' here and 'Madrid' in line 2; a subject has one object: keep the right "
            "line and remove the other",
        ),
        (("Rome", "Rome"), "subject and object are both 'Rome'; a question must not hold its answer"),
        (("rome", "Rome"), "subject and object are both 'Rome'"),
    ],
)
def test_facts_that_contradict(tmp_path, row, problem):
    path = write_relation(tmp_path, [*FACTS, {"subject": row[0], "object": row[1]}], TEMPLATES)
    with pytest.raises(DataError) as refusal:
        read_relation(path)
    assert str(refusal.value).startswith(f"{path}:3: {problem}")


def test_relations_json_that_is_broken(tmp_path):
    path = write_relation(tmp_path, FACTS, TEMPLATES)
    (tmp_path / "relations.json").write_text('{"R":\n 3')
    with pytest.raises(DataError, match=r"relations.json:2: not JSON"):
        read_relation(path)
    (tmp_path / "relations.json").write_text('{"R": 3}')
    with pytest.raises(DataError, match=r'relations.json: expected \{"P36": \{"name"'):
        read_relation(path)
    (tmp_path / "relations.json").write_text('{"R": {"name": "capital", "inverse": "S"}}')
    assert (read_relation(path).label, read_relation(path).inverse) == ("capital", "S")


def test_a_text_begins_with_whole_words():
    assert begins("It is", "It is the")
    assert begins("It is", "It is, the")
    assert begins("It is", "It is")
    assert not begins("It is", "It isn")
    assert not begins("It is the", "It is")


# -- held-out templates -------------------------------------------------------------------------------------------

SPLIT = [
    {"template": "The capital of {subject} is {object}.", "form": "causal"},
    {"template": "The city of {subject} is {object}.", "form": "causal", "held_out": False},
    {"template": "In {subject} they know {object}.", "form": "causal", "held_out": True},
    {"template": "They like {subject} and {object} and France.", "form": "masked", "held_out": True},
    {"template": "In {subject}, {object} is big.", "form": "masked"},
]


@pytest.mark.parametrize(
    ("family", "training", "held_out"),
    [("gpt2", [0, 1], [2]), ("bert", [0, 1, 4], [2, 3])],
)
def test_held_out_templates_are_set_apart(tmp_path, random_model, family, training, held_out):
    model = random_model(family)
    relation = kn.load_relation(str(write_relation(tmp_path, FACTS, SPLIT)))
    texts = [row["template"] for row in SPLIT]
    assert relation.held_out == {texts[2], texts[3]}
    expected = {"training": training, "held_out": held_out, "all": sorted(training + held_out)}
    for choice, indices in expected.items():
        batch = relation.prompts(model, templates=choice)
        asked = [(prompt.group, prompt.template) for prompt in batch.prompts]
        assert asked == [(fact, texts[index]) for fact in ("France → Paris", "Spain → Madrid") for index in indices]
    assert relation.prompts(model).prompts == relation.prompts(model, templates="all").prompts
    one = relation.prompts(model, templates="held_out", groups=1, per_group=1, seed=3)
    assert [prompt.template for prompt in one.prompts] == [texts[2]]


def test_a_choice_of_templates_that_is_not_there(tmp_path, random_model):
    model = random_model("gpt2")
    relation = kn.load_relation(str(write_relation(tmp_path, FACTS, SPLIT[:2])))
    assert len(relation.prompts(model, templates="training")) == 4
    with pytest.raises(DataError, match=r'^R has no held-out templates: .*"held_out": true; templates="all" takes all'):
        relation.prompts(model, templates="held_out")
    with pytest.raises(SettingsError, match=r"templates is 'heldout'; write one of 'all', .*Did you mean 'held_out'\?"):
        relation.prompts(model, templates="heldout")  # type: ignore[arg-type]
    relation = kn.load_relation(str(write_relation(tmp_path, FACTS, SPLIT[2:4])))
    with pytest.raises(DataError, match=r"^R has no training templates"):
        relation.prompts(model, templates="training")


def test_subjects_and_objects_of_facts(tmp_path, monkeypatch):
    relation = kn.load_relation(str(write_relation(tmp_path, FACTS, SPLIT)))
    expected = {"France → Paris": ("France", "Paris"), "Spain → Madrid": ("Spain", "Madrid")}
    assert relation.pairs == expected
    fewer = dataclasses.replace(relation, facts={"Spain → Madrid": relation.facts["Spain → Madrid"]})
    assert fewer.pairs == {"Spain → Madrid": ("Spain", "Madrid")}
    assert kn.Relation(name="R", facts=relation.facts).pairs == expected  # from the cues
    known = [
        {"subject": "Mother Tongue", "attribute": "French", "prompt": "The Mother Tongue of her is"},
        {"subject": "Rome", "attribute": "Italy", "prompt": "Rome is Rome, and it is in"},  # no cue: no subject
    ]
    (tmp_path / "known.json").write_text(json.dumps(known))
    facts = kn.load_relation(str(tmp_path / "known.json"))
    assert facts.pairs == {"Mother Tongue → French": ("Mother Tongue", "French")}
    assert len(facts) == 2
    bags = [
        [[f"The capital of {s} is [MASK].", o, "P36(capital)"], [f"[MASK] is in {s}.", o, "P36(capital)"]]
        for s, o in expected.values()
    ]
    (tmp_path / "data_all_allbags.json").write_text(json.dumps({"P36": bags}))
    monkeypatch.setenv(PARAREL_FOLDER, str(tmp_path))
    assert kn.load_relation("pararel:P36").pairs == expected
    assert kn.load_relation("pararel:P36").held_out == frozenset()


def test_templates_are_saved_with_results(tmp_path, random_model):
    relation = kn.load_relation(str(write_relation(tmp_path, FACTS, SPLIT)))
    scores = kn.gradient_times_activation(random_model("gpt2"), relation.prompts(random_model("gpt2")), progress=False)
    back = kn.AttributionScores.load(scores.save(tmp_path / "saved"))
    assert back.prompts == scores.prompts
    assert [prompt.template for prompt in back.prompts] == [SPLIT[index]["template"] for index in (0, 1, 2)] * 2
    assert kn.Prompt("It is", target="big").template is None


def test_a_relation_without_templates(tmp_path):
    path = write_relation(tmp_path, FACTS, TEMPLATES)
    (tmp_path / "R.templates.jsonl").unlink()
    with pytest.raises(DataError, match=r"no file .*R.templates.jsonl"):
        read_relation(path)


@pytest.mark.parametrize(
    ("name", "near"),
    [("P35", "'P36'"), ("p36", "'P36'"), ("subject_verb_agrement", "'subject_verb_agreement'")],
)
def test_unknown_names_bring_near_matches(name, near):
    with pytest.raises(DataError, match=f"no data named '{name}'.*Did you mean .*{near}.*Bundled: "):
        kn.load_data(name)


def test_facts_are_not_pairs():
    with pytest.raises(DataError, match="holds facts, not minimal pairs; use load_relation"):
        kn.load_minimal_pairs("P36")
    with pytest.raises(DataError, match="holds minimal pairs, not facts; use load_minimal_pairs"):
        kn.load_relation("subject_verb_agreement")


# -- what is bundled ----------------------------------------------------------------------------------------------


def test_bundled_relations():
    folder = data_folder() / "relations"
    about = json.loads((folder / "relations.json").read_text(encoding="utf-8"))
    assert {"P36", "P37"} <= set(about)
    for name, entry in about.items():
        relation = kn.load_relation(name)
        assert len(relation) >= 40
        assert relation.label == entry["name"]
        assert relation.inverse == entry["inverse"]
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert list(relation.pairs.values()) == [(row["subject"], row["object"]) for row in rows]
        assert len({subject for subject, _ in relation.pairs.values()}) == len(relation)  # a subject once
        assert len(relation.held_out) == 2
        for fact, prompts in relation.facts.items():
            subject, target = relation.pairs[fact]
            assert fact == f"{subject} → {target}"
            assert len(prompts) >= 6
            assert len({(prompt.prefix, prompt.suffix) for prompt in prompts}) == len(prompts)
            for prompt in prompts:
                span = prompt.cue_span()
                assert span is not None
                assert (prompt.prefix + prompt.suffix)[slice(*span)] == subject
                assert prompt.target not in re.findall(
                    r"\w+", prompt.prefix + prompt.suffix
                )  # the answer is not in the question


def test_bundled_pairs():
    names = [name for name in bundled_names() if (data_folder() / "minimal_pairs" / f"{name}.jsonl").is_file()]
    assert "subject_verb_agreement" in names
    for name in names:
        data = kn.load_minimal_pairs(name)
        rows = [json.loads(line) for line in data.path.read_text(encoding="utf-8").splitlines()]  # type: ignore[union-attr]
        assert len(data) == len(rows) >= 100
        assert len({row["sentence_good"] for row in rows}) == len(rows)
        for pair, row in zip(data.pairs, rows, strict=True):
            prefix, good, bad, rest = pair.difference()
            assert good != bad
            assert rest is not None
            assert f"{prefix} {good}{rest}".strip() == pair.sentence_good
            assert f"{prefix} {bad}{rest}".strip() == pair.sentence_bad
            assert pair.cue is not None
            assert pair.sentence_good[slice(*pair.cue)] == row["cue"]
            if row.get("one_prefix_method"):
                assert (prefix, good, bad) == (
                    row["one_prefix_prefix"],
                    row["one_prefix_word_good"],
                    row["one_prefix_word_bad"],
                )


def test_bundled_prompts_resolve(random_model):
    """In byte-level pieces at least: the masked tokenizer of the tests knows too few words."""
    model = random_model("llama")
    for name in bundled_names():
        data = kn.load_data(name)
        prompts = (
            [prompt for facts in data.facts.values() for prompt in facts]
            if isinstance(data, kn.Relation)
            else [kn.Prompt(pair.difference()[0], target=pair.difference()[1]) for pair in data.pairs]
        )
        batch = kn.PromptBatch.from_prompts(model, prompts, on_unusable="drop")
        assert {entry.reason for entry in batch.dropped} <= {"text after the blank"}
        assert len(batch) >= 0.5 * len(prompts)
        for entry in batch.resolved:
            assert model.tokenizer.decode(entry.target_ids).strip() == entry.prompt.target
        assert data_hash(data) == data_hash(kn.load_data(name))


# -- public data --------------------------------------------------------------------------------------------------


@needs_shared
def test_pararel_bags(monkeypatch, random_model):
    """User need 2: how many templates a causal model cannot be asked is counted, not hidden."""
    monkeypatch.setenv(PARAREL_FOLDER, str(SHARED / "pararel"))
    relation = kn.load_relation("pararel:P36")
    raw = json.loads((SHARED / "pararel" / "data_all_allbags.json").read_text(encoding="utf-8"))["P36"]
    assert len(relation) == len(raw)
    assert relation.label == "capital"
    prompts = [prompt for facts in relation.facts.values() for prompt in facts]
    assert len(prompts) == sum(len(bag) for bag in raw)
    with_cue = [prompt for prompt in prompts if prompt.cue is not None]
    assert len(with_cue) > 0.95 * len(prompts)
    for prompt in with_cue:
        span = prompt.cue_span()
        assert span is not None
        assert (prompt.prefix + prompt.suffix)[slice(*span)] in str(prompt.group)
    causal = relation.prompts(random_model("gpt2"), targets="any")
    dropped = [entry.reason for entry in causal.dropped]
    assert len(causal) + len(dropped) == len(prompts)
    assert dropped.count("text after the blank") > 100
    with pytest.raises(DataError, match="holds no relation 'P9999'; it has P101, "):
        kn.load_relation("pararel:P9999")


def test_pararel_without_its_folder(monkeypatch):
    monkeypatch.delenv(PARAREL_FOLDER, raising=False)
    with pytest.raises(DataError, match=rf"needs the folder of ParaRel's data_all_allbags.json .* in {PARAREL_FOLDER}"):
        kn.load_relation("pararel:P36")


@needs_shared
def test_known_facts(random_model):
    relation = kn.load_relation(str(SHARED / "counterfact" / "known_facts.json"))
    rows = json.loads((SHARED / "counterfact" / "known_facts.json").read_text(encoding="utf-8"))
    assert len(relation) == len(rows)
    for row, (prompt,) in zip(rows, relation.facts.values(), strict=True):
        assert (prompt.prefix, prompt.target) == (row["prompt"], row["attribute"])
        assert prompt.cue in (None, row["subject"])
    batch = relation.prompts(random_model("gpt2"), targets="any")
    assert len(batch) + len(batch.dropped) == len(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "facts.json:1: not JSON"),
        ("[]", "expected a list of facts"),
        ("{}", "expected a list of facts"),
        ('[{"subject": "a", "prompt": "a is"}]', r"facts.json\[0\]: field 'attribute' is missing"),
        ("[3]", r"facts.json\[0\]: field 'subject' is missing"),
    ],
)
def test_broken_known_facts(tmp_path, text, message):
    path = tmp_path / "facts.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        kn.load_data(str(path))


def test_lines_that_are_neither_pairs_nor_facts_are_said_to_be_so(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "The capital of France is", "target": "Paris"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"mine.jsonl:1 has the fields 'prompt', 'target': neither a minimal pair"):
        kn.load_data(str(path))
