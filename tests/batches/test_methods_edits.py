"""Edits made block by block are the edits made in one go."""

from __future__ import annotations

import math

import pytest

import kn_lens as kn
from kn_lens.batches.config import DataEntry
from kn_lens.batches.methods import METHODS, Work
from kn_lens.criteria.evaluation import FAILED
from kn_lens.errors import KnLensError
from kn_lens.results import Result
from tests.batches.by_blocks import assert_same_value

METHOD = METHODS["evaluate_edits"]
DATA = DataEntry(name="P36", groups=5)


@pytest.fixture(scope="module")
def model(organism):
    return organism("tiny-causal")


def work_of(settings, variant, rows, seed=0, data=DATA):
    return Work(
        settings=settings,
        variant=variant,
        seed=seed,
        memory_budget=1e9,
        prepared={},
        data=data,
        rows=rows,
        batch=None,
    )


def parts_of(model, settings, variant, seed=0, shard=2):
    prompts = METHOD.cases(model, DATA, settings, seed)
    works = [
        work_of(settings, variant, range(at, min(at + shard, len(prompts))), seed)
        for at in range(0, len(prompts), shard)
    ]
    return [(work, METHOD.compute(model, work)) for work in works]


@pytest.mark.parametrize(
    ("variant", "editor", "options"),
    [
        ("neurons-suppress", "neurons-suppress", {}),
        ("fine-tune@2", "fine-tune", {"layers": [2, 1], "criteria": ["locality", "reliability"]}),
    ],
)
def test_evaluate_edits(model, variant, editor, options):
    from kn_lens.editing.editors import editor_named

    settings = METHOD.Settings(editors=[editor], **options)
    assert variant in METHOD.variants(settings)
    made = editor_named(editor, **({"layer": 2} if "layers" in options else {}))
    public = kn.evaluate_edits(model, made, "P36", edits=5, criteria=options.get("criteria"), progress=False)
    parts = parts_of(model, settings, variant)
    assert len(parts) == 3
    joined = METHOD.join([Result.unpacked(*result.packed(), "a part") for _, result in parts])
    assert joined.editor == public.editor
    assert joined.criteria == public.criteria
    for found, expected in zip(joined.rows, public.rows, strict=True):
        assert {key: found[key] for key in ("edit", "criterion", "text", "target", "rival", "known", "top_after")} == {
            key: expected[key] for key in ("edit", "criterion", "text", "target", "rival", "known", "top_after")
        }
        for key, value in expected.items():
            if isinstance(value, float):
                assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), key
    assert [edit["fact"] for edit in joined.edits] == [edit["fact"] for edit in public.edits]
    assert set(joined.edits[0]) == set(public.edits[0])
    assert_same_value(joined.settings["draw"], public.settings["draw"], "draw")
    assert joined.provenance["parts"] == 3
    assert "prompts_hash" not in joined.provenance
    assert [*METHOD.cases_left_out(model, DATA, settings, 0), *joined.dropped] == list(public.dropped)
    work, last = parts[-1]
    assert METHOD.done(last, work) == [0]
    frame = METHOD.frame(parts[1][1], parts[1][0])
    rows = [row for row in public.rows if row["edit"] in (2, 3)]
    assert frame["prompt"].tolist() == [row["edit"] - 2 for row in rows]
    assert frame["criterion"].tolist() == [row["criterion"] for row in rows]
    assert set(frame["editor"]) == {editor}
    assert set(frame["layer"]) == ({2} if "layers" in options else {-1})
    assert frame["subject"].tolist() == [public.edits[row["edit"]]["fact"].subject for row in rows]
    for row, known in zip(rows, frame["known"], strict=True):
        assert math.isnan(known) if row["known"] is None else known == float(row["known"])
    assert "seconds" not in frame.columns  # which differ from run to run


def test_cases_are_those_of_the_draw(model):
    settings = METHOD.Settings()
    prompts = METHOD.cases(model, DATA, settings, 2)
    drawn = kn.edit_cases(model, "P36", edits=5, seed=2)
    assert [prompt.text for prompt in prompts] == [fact.question for fact in drawn.facts]
    assert [prompt.target for prompt in prompts] == [fact.target for fact in drawn.facts]


def test_edits_that_fail(model, monkeypatch):
    """One that fails among others is left out with its reason; a block of failures is an error."""
    from kn_lens.editing import editors

    drawn = kn.edit_cases(model, "P36", edits=5)
    real = editors.EDITORS["neurons-suppress"][0]

    def failing(model, fact):
        if fact in (drawn.facts[1], drawn.facts[2]):
            raise KnLensError(f"no edit of {fact.subject}")
        return real(model, fact)

    monkeypatch.setitem(editors.EDITORS, "neurons-suppress", (failing, ""))
    settings = METHOD.Settings(editors="neurons-suppress")
    work = work_of(settings, "neurons-suppress", range(0, 4))
    result = METHOD.compute(model, work)
    assert METHOD.done(result, work) == [0, 3]
    assert [one.reason for one in result.dropped] == [f"{FAILED}no edit of {drawn.facts[at].subject}" for at in (1, 2)]
    assert all(METHOD.is_failure(one.reason) for one in result.dropped)
    assert sorted(set(METHOD.frame(result, work)["prompt"])) == [0, 3]
    with pytest.raises(KnLensError, match=f"{FAILED}no edit of {drawn.facts[2].subject}"):
        METHOD.compute(model, work_of(settings, "neurons-suppress", range(2, 3)))


def test_variants():
    settings = METHOD.Settings(editors=["neurons", "rome", "rome-random-layer"], layers=[3, 1, 3])
    assert METHOD.variants(settings) == ("neurons", "rome@3", "rome@1", "rome-random-layer")
    assert METHOD.variants(METHOD.Settings(editors="heads")) == ("heads",)
