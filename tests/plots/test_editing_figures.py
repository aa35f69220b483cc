"""Figures of edits hold the numbers of real runs."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.criteria.cases import edit_cases
from kn_lens.criteria.sweep import sweep_layers
from kn_lens.errors import SettingsError


@pytest.fixture(scope="module")
def model(organism):
    return organism("tiny-causal")


@pytest.fixture(scope="module")
def cases(model):
    return edit_cases(model, kn.load_relation("P36"), edits=4, neighbors=2, paraphrases=2)


@pytest.fixture(scope="module")
def evaluations(model, cases):
    editors = {"ROME": kn.rome, "control": kn.rome_random_direction}
    return {name: kn.evaluate_edits(model, editor, cases, progress=False) for name, editor in editors.items()}


@pytest.fixture(scope="module")
def sweep(model, cases):
    return sweep_layers(model, cases, layers=[0, 2], edits=2, progress=False)


def drawn(figure):
    return figure.to_dict()["data"], figure.to_dict()["layout"]


def bare(text):
    """A label without its markup."""
    return text.split("<br>")[0], text.split(">")[-2].removesuffix("</span")


def test_criteria_are_marked_with_their_intervals(evaluations) -> None:
    data, layout = drawn(kn.plots.edit_criteria(evaluations, "tiny-causal"))
    assert [entry["name"] for entry in data if entry.get("showlegend") is not False] == ["ROME", "control"]
    for at, evaluation in enumerate(evaluations.values()):
        table = evaluation.summary()
        rows = table[table["questions"] > 0]
        after, before = data[2 * at], data[2 * at + 1]
        assert list(after["x"]) == pytest.approx(rows["success_after"].tolist())
        kept = [None if row["criterion"] == "locality" else row["success_before"] for row in rows.to_dict("records")]
        assert list(before["x"]) == kept
        assert before["marker"]["symbol"] == f"{after['marker']['symbol']}-open"
        bars = after["error_x"]
        assert [x + up for x, up in zip(after["x"], bars["array"], strict=True)] == pytest.approx(rows["high"].tolist())
        lows = [x - down for x, down in zip(after["x"], bars["arrayminus"], strict=True)]
        assert lows == pytest.approx(rows["low"].tolist())
        for text, row in zip(after["hovertext"], rows.to_dict("records"), strict=True):
            assert text.endswith(f"{row['edits']} edits, {row['questions']} of {row['asked']} questions scored")
        # each mark lies in the row of its criterion
        assert [table["criterion"].tolist()[round(y)] for y in after["y"]] == rows["criterion"].tolist()
    ticks = dict(bare(text) for text in layout["yaxis"]["ticktext"])
    assert ticks["reliability"] == "4 edits, 4 q."
    assert ticks["generality"] == "4 edits, 8 q."
    assert list(ticks) == ["reliability", "generality", "locality", "symmetry", "symmetry (old)"]
    assert layout["yaxis"]["range"] == [4.5, -0.5]  # the first criterion on top


def test_criteria_that_cannot_be_judged_say_so_and_have_no_mark(evaluations) -> None:
    rows = [
        {**row, "scored": False, "known": False} if row["criterion"] == "symmetry" else row
        for row in evaluations["ROME"].rows
    ]
    data, layout = drawn(kn.plots.edit_criteria(dataclasses.replace(evaluations["ROME"], rows=tuple(rows))))
    asked = sum(row["criterion"] == "symmetry" for row in rows)
    ticks = dict(bare(text) for text in layout["yaxis"]["ticktext"])
    assert ticks["symmetry"] == f"0 of {asked} probes known"
    assert 3 not in [round(y) for y in data[0]["y"]]
    assert layout["showlegend"] is False  # a single editor


def test_the_cascade_counts_the_edits_left(evaluations) -> None:
    data, layout = drawn(kn.plots.edit_cascade(evaluations))
    stages = [text.removeprefix("… ") for text in layout["yaxis"]["ticktext"]]
    assert stages == ["reliable", "general", "symmetric", "synonymous"]
    for at, evaluation in enumerate(evaluations.values()):
        rows = evaluation.cascade().to_dict("records")
        bars, texts = data[2 * at], data[2 * at + 1]
        assert list(bars["x"]) == [None if math.isnan(row["share"]) else row["share"] for row in rows]
        for text, row in zip(texts["text"], rows, strict=True):
            assert text == (f"{row['passed']} of {row['edits']}" if row["edits"] else "none left")
        ends = [(row["high"], row["low"]) for row in rows]
        for x, up, down, (high, low) in zip(
            bars["x"], bars["error_x"]["array"], bars["error_x"]["arrayminus"], ends, strict=True
        ):
            if x is not None:
                assert (x + up, x - down) == pytest.approx((high, low))
    assert data[3]["text"][0] == "0 of 4"  # a random direction writes nothing
    assert data[1]["text"][0] == "4 of 4"


def test_a_stage_that_is_never_asked_is_told_from_one_that_none_reaches(evaluations) -> None:
    rows = tuple(row for row in evaluations["ROME"].rows if not row["criterion"].startswith("symmetry"))
    data, _ = drawn(kn.plots.edit_cascade(dataclasses.replace(evaluations["ROME"], rows=rows)))
    assert list(data[1]["text"])[2:] == ["not asked", "not asked"]


def test_layers_are_lines_with_the_trace_below(sweep) -> None:
    data, layout = drawn(kn.plots.layer_sweep(sweep))
    frame, traced = sweep.to_frame(), sweep.trace_frame()
    lines = {entry["name"].split(" (")[0]: entry for entry in data if entry.get("name")}
    bands = {entry["legendgroup"].split(" (")[0]: entry for entry in data if "fill" in entry}
    assert {"reliability", "generality", "locality", "trace"} <= set(lines)
    for name, line in lines.items():
        if name == "trace":
            continue
        rows = frame[(frame["criterion"] == name) & frame["success_after"].notna()]
        assert list(line["x"]) == rows["layer"].tolist()
        assert list(line["y"]) == pytest.approx(rows["success_after"].tolist())
        if rows["low"].isna().any():  # a single edit has no interval
            assert name not in bands
            continue
        assert list(bands[name]["y"]) == pytest.approx([*rows["high"], *reversed(rows["low"].tolist())])
    assert any(entry["name"] == "reliability (2 edits)" for entry in data if entry.get("name"))
    largest = traced["mean"].max()
    assert list(lines["trace"]["y"]) == pytest.approx((traced["mean"] / largest).tolist())
    assert list(bands["trace"]["y"]) == pytest.approx(
        [*(traced["high"] / largest), *reversed((traced["low"] / largest).tolist())]
    )
    assert f"2 facts, largest effect {largest:.3g} (logit difference)" in layout["title"]["text"]
    assert "restoring MLP outputs at the prompt's last token" in layout["title"]["text"]


def test_layers_without_edits_are_marked_and_no_line_crosses_them(sweep) -> None:
    nan = float("nan")
    first = [row for row in sweep.rows if row["layer"] == 0]
    rows = [
        *first,
        *({**row, "layer": 1, "success_after": nan, "edits": 0} for row in first),
        *sweep.rows[len(first) :],
    ]
    counts = [sweep.counts[0], {"layer": 1, "edits": 0, "failed": 2, "reasons": {"no": 2}}, sweep.counts[1]]
    broken = dataclasses.replace(sweep, layers=(0, 1, 2), rows=tuple(rows), counts=tuple(counts), trace=None)
    data, layout = drawn(kn.plots.layer_sweep(broken))
    parts = [list(entry["x"]) for entry in data if (entry.get("name") or "").startswith("reliability")]
    assert parts == [[0], [2]]
    (mark,) = [entry for entry in data if entry.get("name") == "no edit could be made"]
    assert (list(mark["x"]), list(mark["hovertext"])) == ([1], ["layer 1: 2 edits failed"])
    assert "yaxis2" not in layout  # no trace, no panel
    shown = [entry["name"] for entry in data if entry.get("name") and entry.get("showlegend") is not False]
    assert len(shown) == len(set(shown))


def test_losses_and_their_parts_are_drawn_by_step(model, cases) -> None:
    edit = kn.rome(model, cases.facts[0])
    data, layout = drawn(kn.plots.edit_losses(edit, "tiny-causal"))
    parts = {entry["name"]: torch.tensor(entry["y"], dtype=torch.float64) for entry in data}
    factor = edit.settings["kl_factor"]
    torch.testing.assert_close(parts["loss"], edit.losses)
    torch.testing.assert_close(parts["−log p of the new answer"], edit.nll)
    torch.testing.assert_close(parts[f"KL, × {factor:g}"], factor * edit.kl)
    decay = parts["norm of the change, weighted"]
    assert float(decay[0]) == pytest.approx(0, abs=1e-6)
    change = float(edit.right.double().norm() / edit.start.double().norm() ** 2)
    # the last step is only read, so that the edit's change is that of the last loss
    assert float(decay[-1]) == pytest.approx(edit.settings["weight_decay"] * change, rel=1e-2, abs=1e-6)
    assert f"rome on {edit.fact.name}, layer 1" in layout["title"]["text"]
    tuned = kn.fine_tune(model, cases.facts[0])
    (line,), layout = drawn(kn.plots.edit_losses(tuned))
    torch.testing.assert_close(torch.tensor(line["y"], dtype=torch.float64), tuned.losses)
    assert layout["showlegend"] is False
    with pytest.raises(SettingsError, match="was made without a search"):
        kn.plots.edit_losses(dataclasses.replace(edit, losses=torch.empty(0)))


def test_texts_stand_side_by_side_with_their_differences_in_bold() -> None:
    frame = pd.DataFrame(
        {
            "text": ["The capital of Peru is", "A <b> in"],
            "before": ["The capital of Peru is Lima and", "A <b> in a text"],
            "after": ["The capital of Peru is Oslo and", "A <b> in a text"],
        }
    )
    (table,), layout = drawn(kn.plots.generations(frame, "some model"))
    before, after = table["cells"]["values"]
    assert list(before) == ["The capital of Peru is <b>Lima</b> <b>and</b>", "A &lt;b&gt; in a text"]
    assert list(after) == ["The capital of Peru is <b>Oslo</b> <b>and</b>", "A &lt;b&gt; in a text"]
    assert "1 of 2 texts differ" in layout["title"]["text"]
    with pytest.raises(SettingsError, match="lacks the columns after"):
        kn.plots.generations(frame.drop(columns="after"))
    with pytest.raises(SettingsError, match="is empty"):
        kn.plots.generations(frame[:0])


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(SettingsError, match="no evaluations to draw"):
        kn.plots.edit_criteria({})
    with pytest.raises(SettingsError, match="no evaluations to draw"):
        kn.plots.edit_cascade({})
