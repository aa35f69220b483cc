"""Facts: bundled relations, ParaRel, known facts, and files with mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import kn_lens as kn
from kn_lens.errors import DataError
from kn_lens.prompts.load import PARAREL_FOLDER, bundled_names, data_folder, data_hash
from kn_lens.prompts.relations import read_relation

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
    about = json.loads((data_folder() / "relations" / "relations.json").read_text(encoding="utf-8"))
    for name in ("P36", "P37"):
        relation = kn.load_relation(name)
        assert len(relation) >= 40
        assert relation.label == about[name]["name"]
        assert len({fact.split(" → ")[0] for fact in relation.facts}) == len(relation)  # a subject once
        for prompts in relation.facts.values():
            assert len(prompts) >= 4
            assert len({(prompt.prefix, prompt.suffix) for prompt in prompts}) == len(prompts)
            for prompt in prompts:
                span = prompt.cue_span()
                assert span is not None
                assert (prompt.prefix + prompt.suffix)[slice(*span)] == prompt.group.split(" → ")[0]  # type: ignore[union-attr]
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
