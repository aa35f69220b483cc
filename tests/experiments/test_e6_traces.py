"""E6: traces of facts and of agreement, and how alike their maps are."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

import kn_lens as kn
from kn_lens.errors import OutputError, PromptError
from kn_lens.experiments import e6_traces
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.trace_likeness import likeness
from kn_lens.studies.traced import TraceSettings
from kn_lens.tracing.position_classes import CLASSES

SETTINGS = TraceSettings(streams=("resid", "mlp", "attn"), corruption="zero", groups=5)
DATA = ("P36", "subject_verb_agreement_distractor")


@pytest.fixture(scope="module", params=["tiny-causal", "tiny-masked"])
def result(request, organism) -> e6_traces.Result:
    model = organism(request.param)
    return e6_traces.run(model, [kn.load_data(name) for name in DATA], SETTINGS, progress=False)


def _by_hand(result: e6_traces.Result, stream: str) -> tuple[list[float], list[float]]:
    """Mean effects of both kinds, cell by cell, of classes that both have and that are not 0 throughout."""
    first, second = (entry.traces[stream].average().set_index(["class", "layer"])["mean"] for entry in result.found)
    pairs = []
    for kind in CLASSES:
        if kind not in first.index.get_level_values(0) or kind not in second.index.get_level_values(0):
            continue
        if not first[kind].any() and not second[kind].any():
            continue
        pairs += [(first[kind, layer], second[kind, layer]) for layer in first[kind].index]
    return tuple(map(list, zip(*pairs, strict=True)))  # type: ignore[return-value]


def test_r_is_that_of_the_mean_effects(result) -> None:
    assert set(result.alike) == {"mlp", "attn"}
    for stream, one in result.alike.items():
        facts, agreement = _by_hand(result, stream)
        assert one.states == len(facts)
        assert one.r == pytest.approx(np.corrcoef(facts, agreement)[0, 1], abs=1e-6)
        assert one.low <= one.r <= one.high
        assert (one.facts, one.agreement) == tuple(len(entry.first) for entry in result.found)
    row = e6_traces.tables(result)["alike"].set_index("stream").loc["mlp"]
    assert row["r"] == result.alike["mlp"].r
    assert (
        f"r = {result.alike['mlp'].text()} over {result.alike['mlp'].states} states" in e6_traces.findings(result)[-2]
    )


def test_a_map_is_like_itself_and_unlike_its_negative(result) -> None:
    trace = result.found[0].traces["mlp"]
    same = likeness([trace], [trace])
    assert same.r == pytest.approx(1)
    turned = replace(trace, effects={name: -values for name, values in trace.effects.items()})
    assert likeness([trace], [turned]).r == pytest.approx(-1)
    assert likeness([trace], [trace, trace]).r == pytest.approx(1)  # prompts are pooled
    single = likeness([trace.select([0])], [trace])
    assert np.isnan(single.low)
    assert not np.isnan(single.r)
    still = replace(trace, effects={name: values * 0 for name, values in trace.effects.items()})
    assert np.isnan(likeness([trace], [still]).r)


def test_intervals_draw_clusters_of_each_side_anew(result) -> None:
    """By hand: a prompt twice in the data is one cluster, and draws it as often."""
    facts, agreement = (entry.traces["attn"] for entry in result.found)
    drawn = likeness([facts], [agreement], seed=3)
    twice = likeness([facts.select([*range(len(facts))] * 2)], [agreement], seed=3)
    assert (twice.low, twice.high) == pytest.approx((drawn.low, drawn.high), abs=1e-9)
    assert twice.facts == 2 * drawn.facts


def test_verdicts_go_either_way(result) -> None:
    facts, agreement = result.found
    alike = replace(result, found=(facts, replace(agreement, traces=facts.traces)))
    (verdict,) = e6_traces.verdicts(alike)
    assert verdict.holds is True
    assert "MLP outputs: r = 1.00" in verdict.measured
    turned = {
        stream: replace(one, effects={name: -values for name, values in one.effects.items()})
        for stream, one in facts.traces.items()
    }
    opposed = {**facts.traces, "attn": turned["attn"]}  # one stream that differs is enough
    (verdict,) = e6_traces.verdicts(replace(result, found=(facts, replace(agreement, traces=opposed))))
    assert verdict.holds is False
    assert verdict.estimate is not None
    assert verdict.estimate.value == pytest.approx(-1)
    assert "attention outputs -1.00" in verdict.short
    assert verdict.estimate.value == pytest.approx(-1)
    (verdict,) = e6_traces.verdicts(replace(result, found=(facts,)))
    assert verdict.holds is None
    assert verdict.measured.startswith("not measured")


def test_what_is_read_back_says_the_same(result, tmp_path) -> None:
    result.save(tmp_path / "e6")
    again = e6_traces.Result.load(tmp_path / "e6")
    assert e6_traces.findings(again) == e6_traces.findings(result)
    assert e6_traces.verdicts(again) == e6_traces.verdicts(result)
    assert again.settings == result.settings
    assert again.settings["data"] == list(DATA)
    assert e6_traces.dropped(again) == e6_traces.dropped(result)
    for name, table in e6_traces.tables(result).items():
        assert table.equals(e6_traces.tables(again)[name]), name
    figures = e6_traces.figures(result)
    assert next(iter(figures)) == "averages"
    assert len(figures) == 1 + 2 * 3
    for name, figure in e6_traces.figures(again).items():
        assert figure.to_json() == figures[name].to_json()
    (tmp_path / "e6" / "traces-1" / "mlp" / "tensors.safetensors").write_bytes(b"torn")
    with pytest.raises(OutputError, match="traces-1"):
        e6_traces.Result.load(tmp_path / "e6")
    (tmp_path / "e6" / "fields.json").write_text("{}")
    with pytest.raises(OutputError, match="e6 holds no readable traces"):
        e6_traces.Result.load(tmp_path / "e6")


def test_a_run_goes_on_where_it_stopped(organism, tmp_path, caplog) -> None:
    model, data = organism("tiny-causal"), [kn.load_data("P36")]
    settings = replace(SETTINGS, groups=3)
    first = e6_traces.run(model, data, settings, pieces=Pieces(tmp_path), progress=False)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    assert len(made) == 3
    (damaged,) = (path for path in made if path.parent.name.startswith("trace-P36-attn"))
    damaged.write_text("{")
    with caplog.at_level(logging.WARNING):
        again = e6_traces.run(model, data, settings, pieces=Pieces(tmp_path), progress=False)
    assert "trace-P36-attn" in caplog.text
    assert e6_traces.findings(again) == e6_traces.findings(first)
    changed = {path for path, when in made.items() if path.stat().st_mtime_ns != when}
    assert changed == {damaged}
    e6_traces.run(model, data, replace(settings, seed=1), pieces=Pieces(tmp_path), progress=False)
    assert len(list(tmp_path.rglob("result.json"))) == 6


def test_data_that_cannot_be_traced_is_said_and_the_rest_goes_on(organism) -> None:
    model, facts = organism("tiny-causal"), kn.load_data("P36")
    pairs = kn.load_minimal_pairs("subject_verb_agreement")
    blind = replace(pairs, pairs=tuple(replace(pair, cue=None) for pair in pairs.pairs[:20]))
    settings = replace(SETTINGS, streams=("mlp", "attn"), groups=3)
    result = e6_traces.run(model, [facts, blind], settings, progress=False)
    assert set(result.failed) == {"subject_verb_agreement"}
    assert e6_traces.findings(result)[-1].startswith("subject_verb_agreement was not traced: ")
    assert e6_traces.verdicts(result)[0].holds is None
    with pytest.raises(PromptError, match="cue"):
        e6_traces.run(model, [blind], settings, progress=False)


def test_sizes(organism) -> None:
    model = organism("tiny-causal")
    assert e6_traces.data(model, "small") == DATA
    assert set(e6_traces.data(model, "full")) > set(DATA)
    small, full = (e6_traces.settings(model, size, 7) for size in ("small", "full"))
    assert small.seed == 7
    assert small.groups < full.groups
    assert small.streams == ("resid", "mlp", "attn")
