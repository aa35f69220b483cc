"""Sweeps over layers: each layer's numbers are those of its own evaluation, and the sentences follow the numbers."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from scipy import stats

import kn_lens as kn
from kn_lens.criteria.cases import edit_cases
from kn_lens.criteria.sweep import LayerSweep, sweep_layers
from kn_lens.errors import ModelError, PromptError, SettingsError
from kn_lens.models.hashing import weights_hash
from kn_lens.results import Result

NAN = float("nan")
ASKED = ("reliability", "locality")


@pytest.fixture(scope="module")
def model(organism):
    return organism("tiny-causal")


@pytest.fixture(scope="module")
def cases(model):
    return edit_cases(model, kn.load_relation("P36"), edits=3, criteria=ASKED)


def sweep(model, data, **options):
    return sweep_layers(model, data, progress=False, **options)


def test_each_layer_has_the_numbers_of_its_own_evaluation_and_of_the_trace(model, cases):
    before = weights_hash(model)
    found = sweep(model, kn.load_relation("P36"), layers=[3, 0], edits=3, criteria=list(ASKED))
    assert weights_hash(model) == before
    assert (found.layers, found.criteria, found.editor, found.data) == ((0, 3), ASKED, "rome", "P36")
    frame = found.to_frame()
    effects = kn.layer_by_tracing(model, cases.facts, position="last", progress=False).effects
    torch.testing.assert_close(found.trace, effects)
    assert found.trace_position == "last"  # where tiny-causal is edited
    for layer in (0, 3):
        alone = kn.evaluate_edits(model, functools.partial(kn.rome, layer=layer), cases, progress=False)
        expected = alone.summary().to_dict("records")
        rows = frame[frame["layer"] == layer]
        for column in ("criterion", "edits", "questions", "success_before", "success_after", "low", "high", "kl"):
            assert rows[column].tolist() == pytest.approx([row[column] for row in expected], nan_ok=True)
        assert rows["trace_effect"].tolist() == pytest.approx([float(effects[:, layer].mean())] * 2)
        assert rows["failed"].tolist() == [0, 0]
    lost = [row["success_after"] for row in frame.to_dict("records") if row["criterion"] == "locality"]
    assert lost[0] < lost[1]  # a large edit at the first layer reaches other questions too


def test_layers_without_an_edit_are_told_with_their_reason(model, cases):
    at_subject = functools.partial(kn.rome, position="subject_last")
    found = sweep(model, cases, editor=at_subject, layers=[2, 3], edits=2, trace=False)
    assert (found.trace, found.not_traced) == (None, None)
    last = found.counts[1]
    assert (last["layer"], last["edits"], last["failed"]) == (3, 0, 2)
    ((reason, count),) = last["reasons"].items()
    assert count == 2
    assert reason.startswith("nothing added to the mlp output of layer 3 at the subject's last token")
    rows = [row for row in found.rows if row["layer"] == 3]
    assert [row["criterion"] for row in rows] == list(ASKED)
    assert all(math.isnan(row["success_after"]) and row["edits"] == 0 for row in rows)
    said = found.findings()
    assert "the same at each of 2 layers (layers 2–3); at 1 of them no edit could be made." in said[0]
    assert said[1] == f"Layer 3: 2 of 2 edits could not be made ({reason})."
    with pytest.raises(ModelError, match="nothing added to the mlp output"):
        sweep(model, cases, editor=at_subject, layers=[3])


def test_single_failures_are_counted_by_their_reasons(model, cases):
    refused = cases.facts[1].subject

    def picky(model, fact, *, layer):
        if fact.subject == refused:
            raise PromptError(f"nothing is known of {fact.name!r}")
        return kn.rome(model, fact, layer=layer)

    found = sweep(model, cases, editor=picky, layers=[1], trace=False)
    assert found.counts == ({"layer": 1, "edits": 2, "failed": 1, "reasons": {"nothing is known of a fact": 1}},)
    assert found.to_frame()["edits"].tolist() == [2, 2]
    assert "Layer 1: 1 of 3 edits could not be made (nothing is known of a fact)." in found.findings()


def test_a_sweep_goes_on_from_its_journals(model, cases, tmp_path):
    calls = []

    def counted(model, fact, *, layer):
        calls.append(layer)
        return kn.rome(model, fact, layer=layer)

    options = {"editor": counted, "edits": 2, "trace": False, "journal_folder": tmp_path}
    sweep(model, cases, layers=[1], **options)
    both = sweep(model, cases, layers=[1, 2], **options)
    again = sweep(model, cases, layers=[1, 2], **options)
    assert calls == [1, 1, 2, 2]
    assert again.to_frame().equals(both.to_frame())


def test_facts_that_cannot_be_traced_are_edited_all_the_same(model, cases):
    facts = [dataclasses.replace(fact, old=None) for fact in cases.facts[:2]]
    found = sweep(model, facts, layers=[1], criteria=["reliability"])
    assert found.rows[0]["success_after"] == 1.0
    assert found.trace is None
    assert found.not_traced is not None
    assert "the answer before the edit is not known" in found.not_traced
    assert found.findings()[-1] == f"The facts were not traced: {found.not_traced}."
    with pytest.raises(SettingsError, match="no trace to compare with"):
        found.correlation("reliability")


def test_what_cannot_be_swept_is_said_before_anything_is_edited(model, cases):
    with pytest.raises(SettingsError, match=r"there is no layer 4; tiny-causal has layers 0–3"):
        sweep(model, cases, layers=[1, 4])
    with pytest.raises(SettingsError, match="layers is empty"):
        sweep(model, cases, layers=[])
    with pytest.raises(SettingsError, match="the editor nowhere takes no layer="):
        sweep(model, cases, editor=nowhere)
    with pytest.raises(SettingsError, match="steps"):
        sweep(model, cases, editor=functools.partial(kn.rome, steps=0))


def nowhere(model, fact):
    return kn.rome(model, fact)


def test_an_editor_that_changes_the_model_is_no_matter_of_the_layer(model, cases):
    weight = model.blocks[1].mlp.W_out
    kept = weight.detach().clone()

    def careless(model, fact, *, layer):
        with torch.no_grad():
            weight[0, 0] += 1
        raise PromptError("no edit")

    try:
        with pytest.raises(ModelError, match="changed the weights of tiny-causal itself"):
            sweep(model, cases, editor=careless, layers=[0, 1])
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def by_hand(success, effects, *, generality=None):
    """A sweep of four facts with these shares of success, NaN where there is no edit, and this mean trace."""
    rows, counts = [], []
    for layer, share in enumerate(success):
        made = not math.isnan(share)
        counts.append(
            {"layer": layer, "edits": 4 * made, "failed": 4 * (not made), "reasons": {} if made else {"nothing": 4}}
        )
        for name, value in (("reliability", share), ("generality", (generality or success)[layer])):
            row = {"layer": layer, "criterion": name, "edits": 4 * made, "success_after": value}
            rows.append({**row, "low": value - 0.1, "high": value + 0.1})
    spread = torch.tensor([-0.1, 0.1, -0.1, 0.1])[:, None]
    return LayerSweep(
        editor="rome",
        data="P36",
        criteria=("reliability", "generality"),
        layers=tuple(range(len(success))),
        rows=tuple(rows),
        counts=tuple(counts),
        trace=torch.tensor(effects)[None] + spread,
        trace_metric="logit_difference",
        trace_window=3,
        trace_site="mlp",
        trace_position="subject_last",
        settings={},
        provenance={"model": "some-model"},
    )


SUCCESS = [0.0, 0.25, 0.5, NAN, 1.0, 0.75, 0.5, 0.25, 0.1]


def test_the_correlation_is_spearmans_over_layers_with_edits():
    effects = [1.0, 3.0, 2.0, 9.0, 4.0, 0.5, 2.5, 6.0, 0.1]
    found = by_hand(SUCCESS, effects).correlation("reliability")
    kept = [at for at in range(9) if at != 3]
    expected = stats.spearmanr(np.array(SUCCESS)[kept], np.array(effects)[kept]).statistic  # type: ignore[attr-defined]
    assert found.rho == pytest.approx(expected)
    assert found.n == 8
    assert math.isnan(by_hand([0.5] * 4, [1.0, 2.0, 3.0, 4.0]).correlation("reliability").rho)
    with pytest.raises(SettingsError, match="no criterion 'locality' in this sweep"):
        by_hand(SUCCESS, effects).correlation("locality")


def test_findings_name_the_best_layers_and_where_tracing_points_to():
    effects = [1.0, 3.0, 2.0, 9.0, 4.0, 0.5, 2.5, 6.0, 0.1]
    said = by_hand(SUCCESS, effects, generality=[0.5, 0.5, 0.0, NAN, *[0.25] * 5]).findings()
    assert said[0] == (
        "rome edits 4 facts of P36 in some-model, the same at each of 9 layers (layers 0–8); at 1 of them no edit "
        "could be made."
    )
    assert "Reliability is highest at layer 4, 100 % [90 %, 110 %] (4 edits), and lowest at layer 0, 0 %." in said
    assert (
        "Generality is highest at layers 0–1, 50 % [40 %, 60 %] (4 edits at each), and lowest at layer 2, 0 %." in said
    )
    (traced,) = [sentence for sentence in said if sentence.startswith("Tracing points to layer 3")]
    assert "its MLP output, 3 layers together at the subject's last token raises the old answer's " in traced
    assert traced.endswith("(4 facts); no edit was made there.")
    assert "no relation is seen" in said[-2]
    assert said[-2].endswith("layer 3, where tracing points to, is not the one with the highest reliability.")


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "where tracing finds more, edits do better, and layer 6"),
        ([6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], "where tracing finds more, edits do worse, and layer 0"),
    ],
)
def test_whether_tracing_tells_where_edits_work(effects, verdict):
    said = by_hand([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], effects).findings()
    assert verdict in said[-1]
    same = by_hand([0.5] * 7, effects).findings()
    assert "Reliability is the same at all 7 layers with edits: 50 % [40 %, 60 %] (4 edits at each)." in same
    assert same[-1].endswith("generality or the trace's effect is the same at all 7 layers with edits.")


def test_a_sweep_is_read_back_as_it_was(tmp_path):
    found = by_hand(SUCCESS, [float(at) for at in range(9)])
    again = Result.load(found.save(tmp_path / "sweep"))
    assert isinstance(again, LayerSweep)
    assert again.to_frame().equals(found.to_frame())
    assert again.findings() == found.findings()


def test_a_single_layer_is_not_compared():
    said = by_hand([0.5], [1.0]).findings()
    assert said[0] == "rome edits 4 facts of P36 in some-model at layer 0."
    assert said[1] == "Reliability at layer 0, the only one with edits: 50 % [40 %, 60 %] (4 edits)."
