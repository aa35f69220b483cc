"""Figures of traces, knockouts and patches hold the numbers of real runs, and say how they were made."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from kn_lens.errors import SettingsError
from kn_lens.plots.layers import token_labels
from kn_lens.plots.style import DIVERGING, SEQUENTIAL
from kn_lens.tracing.activation_patching import activation_patching
from kn_lens.tracing.attention_knockout import attention_knockout
from kn_lens.tracing.attribution_patching import attribution_patching
from kn_lens.tracing.causal_trace import causal_trace
from kn_lens.tracing.draw import cued_prompts


def ask(model, name, groups=5):
    return kn.load_data(name).prompts(model, groups=groups, per_group=1)


@pytest.fixture(scope="module")
def facts(organism):
    model = organism("tiny-causal")
    return causal_trace(model, ask(model, "P36"), samples=3, progress=False)


@pytest.fixture(scope="module")
def pairs(organism):
    model = organism("tiny-masked")
    batch = cued_prompts(model, kn.load_data("subject_verb_agreement"), 4, 1, seed=0, twins=True)
    return causal_trace(model, batch, corruption="swap", progress=False)


def drawn(figure):
    return figure.to_dict()["data"], figure.to_dict()["layout"]


def numbers(z):
    return torch.tensor([[float("nan") if value is None else value for value in row] for row in z])


def test_one_prompt_is_drawn_token_by_token(facts) -> None:
    (cells,), layout = drawn(kn.plots.causal_trace(facts, 1, subtitle="tiny-causal, P36"))
    labels, prompt = layout["yaxis"]["ticktext"], facts.prompts[1]
    torch.testing.assert_close(numbers(cells["z"]), facts.effects["logit_difference"][1, : len(labels)])
    (cue,) = facts.cue_positions[1]
    assert labels[cue] == f"{facts.tokens[1][cue]}*"
    assert labels[-1] == f"<b>▸ {facts.tokens[1][-1]}</b>"
    assert layout["yaxis"]["autorange"] == "reversed"  # the first token on top
    assert layout["xaxis"]["title"]["text"] == "layer (from 0)"
    assert cells["colorbar"]["title"]["text"] == "effect on logit difference, logits"
    title = layout["title"]["text"]
    clean, corrupted = (float(run["logit_difference"][1]) for run in (facts.clean, facts.corrupted))
    assert f"clean {clean:.3g} → corrupted {corrupted:.3g} logits" in title
    assert f"stream resid, window 1 layer, sufficiency, corruption: noise, 3.0σ = {facts.sigma:.2g}, 3 samples" in title
    assert f"{prompt.text} → <b>{prompt.target}</b>" in title
    assert "tiny-causal, P36" in title


def test_another_metric_is_drawn_in_its_own_unit(facts) -> None:
    (cells,), layout = drawn(kn.plots.causal_trace(facts, 0, metric="kl"))
    torch.testing.assert_close(numbers(cells["z"]), facts.effects["kl"][0, : len(facts.tokens[0])])
    assert cells["colorbar"]["title"]["text"] == "effect on KL from the clean run, nats"
    assert "clean 0 →" in layout["title"]["text"]


def test_colors_are_white_at_zero(facts) -> None:
    effects = facts.effects["logit_difference"]
    above = replace(facts, effects={**facts.effects, "logit_difference": effects.abs()})
    below = replace(facts, effects={**facts.effects, "logit_difference": -effects.abs()})
    (cells,), _ = drawn(kn.plots.causal_trace(above, 0))
    reach = float(effects[0].nan_to_num().abs().max())
    assert (cells["zmin"], cells["zmax"]) == (0.0, pytest.approx(reach))
    assert [list(stop) for stop in cells["colorscale"]] == SEQUENTIAL
    (cells,), _ = drawn(kn.plots.causal_trace(below, 0))
    assert (cells["zmin"], cells["zmax"]) == (pytest.approx(-reach), pytest.approx(reach))
    assert [list(stop) for stop in cells["colorscale"]] == DIVERGING


def test_many_prompts_are_drawn_as_their_mean_by_class(pairs) -> None:
    (cells,), layout = drawn(kn.plots.causal_trace(pairs))
    frame = pairs.average()
    shown = numbers(cells["z"])
    for row in frame.to_dict("records"):
        at = layout["yaxis"]["ticktext"].index(row["class"])
        assert float(shown[at, row["layer"]]) == pytest.approx(row["mean"], abs=1e-6)
        assert f"mean of {row['prompts']} prompts" in cells["text"][at][row["layer"]]
    assert len(frame) == shown.numel()
    assert f"by {float(pairs.total_effect().mean()):.3g} [" in layout["title"]["text"]
    assert "corruption: swap" in layout["title"]["text"]


def test_averages_are_lines_with_bands_on_one_scale(facts, pairs) -> None:
    data, layout = drawn(kn.plots.trace_averages({"facts": facts, "agreement": pairs}))
    assert layout["yaxis2"]["matches"] == "y"
    assert [note["text"] for note in layout["annotations"]] == [
        "facts (5 prompts)",
        f"agreement ({len(pairs)} prompts)",
    ]
    for axis, trace in (("x", facts), ("x2", pairs)):
        frame = trace.average()
        lines = {entry["name"]: entry for entry in data if entry.get("xaxis") == axis and entry.get("name")}
        bands = {entry["legendgroup"]: entry for entry in data if entry.get("xaxis") == axis and "fill" in entry}
        moved = frame.groupby("class")["mean"].any()
        assert set(lines) == set(moved[moved].index)  # before a causal prompt's cue nothing can matter
        spread = frame.groupby("class")["low"].count()
        assert set(bands) == {name for name in lines if spread[name]}  # one prompt has no interval
        assert bands
        for name, line in lines.items():
            rows = frame[frame["class"] == name]
            assert list(line["y"]) == pytest.approx(rows["mean"].tolist())
            if name in bands:
                assert list(bands[name]["y"]) == pytest.approx([*rows["high"], *reversed(rows["low"].tolist())])
    assert "before the cue" not in {entry.get("name") for entry in data if entry.get("xaxis") == "x"}
    note = f"window 1 layer, sufficiency, corruption: noise, 3.0σ = {facts.sigma:.2g}, 3 samples"
    assert note not in layout["title"]["text"]  # the two differ
    settings = f"window, in layers: resid 1; {note.partition(', ')[2]}; sufficiency, corruption: swap"
    assert settings in layout["title"]["text"]
    names = [entry["name"] for entry in data if entry["showlegend"]]
    assert len(names) == len(set(names))


def test_heads_are_drawn_as_maps_of_cue_and_target(organism) -> None:
    model = organism("tiny-causal")
    trace = causal_trace(model, ask(model, "P36"), stream="head", samples=2, progress=False)
    data, layout = drawn(kn.plots.head_trace(trace))
    names = [note["text"] for note in layout["annotations"]]
    assert names == ["last cue token", "target position"]
    for cells, name in zip(data, names, strict=True):
        torch.testing.assert_close(numbers(cells["z"]), trace.by_class()[name].nanmean(0))
    with pytest.raises(SettingsError, match=r"draw it with plots\.head_trace"):
        kn.plots.causal_trace(trace, 0)
    with pytest.raises(SettingsError, match=r"'facts' is of single heads; draw it with plots\.head_trace"):
        kn.plots.trace_averages({"facts": trace})


def test_knockout_is_a_curve_for_each_block(organism) -> None:
    model = organism("tiny-masked")
    trace = attention_knockout(model, ask(model, "P36"), progress=False)
    data, layout = drawn(kn.plots.knockout(trace))
    frame = trace.average()
    lines = [entry for entry in data if entry.get("name")]
    blocks = ["cue → target position", "everything else → target position", "target position → itself"]
    assert [line["name"] for line in lines] == [f"{block} ({len(trace)} prompts)" for block in blocks]
    for line, block in zip(lines, trace.blocks, strict=True):
        assert list(line["y"]) == pytest.approx(frame[frame["block"] == block]["mean"].tolist())
    assert layout["yaxis"]["title"]["text"] == "loss of logit difference, logits"
    heads = attention_knockout(model, ask(model, "P36"), heads=True, progress=False)
    for cells, values in zip(
        drawn(kn.plots.knockout(heads))[0], heads.effects["logit_difference"].mean(0), strict=True
    ):
        torch.testing.assert_close(numbers(cells["z"]), values)


@pytest.fixture(scope="module")
def patched(organism):
    """Exact effects by component and positions, of facts in the causal organism."""
    model = organism("tiny-causal")
    batch = ask(model, "P36")
    wanted = (("head", "each"), ("v", "sum"), ("mlp", "each"), ("attn", "sum"))
    return {
        (component, where): activation_patching(model, batch, component=component, positions=where, progress=False)
        for component, where in wanted
    }


def test_patched_heads_are_maps(patched) -> None:
    each, at_once = patched["head", "each"], patched["v", "sum"]
    data, layout = drawn(kn.plots.patching(each, subtitle="tiny-causal, P36"))
    assert [note["text"] for note in layout["annotations"]] == ["last cue token", "target position"]
    for cells, name in zip(data, ("last cue token", "target position"), strict=True):
        torch.testing.assert_close(numbers(cells["z"]), each.by_class()[name].nanmean(0))
    (cells,), layout = drawn(kn.plots.patching(at_once))
    torch.testing.assert_close(numbers(cells["z"]), at_once.effects["logit_difference"].mean(0))
    assert "component v, all positions at once, sufficiency" in layout["title"]["text"]
    (cells,), _ = drawn(kn.plots.patching(at_once, 2, metric="kl"))
    torch.testing.assert_close(numbers(cells["z"]), at_once.effects["kl"][2])


def test_patched_outputs_are_drawn_by_token_by_class_and_by_layer(patched) -> None:
    each, at_once = patched["mlp", "each"], patched["attn", "sum"]
    (cells,), layout = drawn(kn.plots.patching(each, 1))
    torch.testing.assert_close(numbers(cells["z"]), each.effects["logit_difference"][1, : len(each.tokens[1])])
    assert layout["yaxis"]["ticktext"][each.cue_positions[1][0]].endswith("*")
    assert f"twin: {each.twins[1]}" in layout["title"]["text"]
    (cells,), layout = drawn(kn.plots.patching(each))
    rows = layout["yaxis"]["ticktext"]
    expected = torch.stack([each.by_class()[name].nanmean(0) for name in rows])
    torch.testing.assert_close(numbers(cells["z"]), expected)
    band, line = drawn(kn.plots.patching(at_once))[0]
    frame = at_once.average()
    assert list(line["y"]) == pytest.approx(frame["mean"].tolist())
    assert list(band["y"]) == pytest.approx([*frame["high"], *reversed(frame["low"].tolist())])


def test_estimates_stand_beside_exact_effects(organism, patched) -> None:
    model, exact = organism("tiny-causal"), patched["mlp", "each"]
    estimate = attribution_patching(model, ask(model, "P36"), component="mlp", progress=False)
    data, layout = drawn(kn.plots.attribution_against_exact(estimate, exact))
    known = ~exact.effects["logit_difference"].isnan()
    assert list(data[1]["x"]) == pytest.approx(exact.effects["logit_difference"][known].tolist())
    assert list(data[1]["y"]) == pytest.approx(estimate.effects["logit_difference"][known].tolist())
    found = estimate.correlation(exact)
    said = f"Pearson's r = {found.pearson:.3f}, Spearman's ρ = {found.spearman:.3f}, {found.states} states"
    assert said in layout["title"]["text"]
    assert data[0]["x"] == data[0]["y"]
    with pytest.raises(SettingsError, match="differ in their component"):
        kn.plots.attribution_against_exact(estimate, patched["head", "each"])


def test_what_cannot_be_drawn_is_said(facts, patched) -> None:
    with pytest.raises(SettingsError, match="prompt 7 is not in the result, which has prompts 0–4"):
        kn.plots.patching(patched["mlp", "each"], 7)
    with pytest.raises(SettingsError, match="no figure of single neurons"):
        kn.plots.patching(replace(patched["head", "each"], component="neuron"))
    with pytest.raises(SettingsError, match="prompt 9 is not in the trace, which has prompts 0–4"):
        kn.plots.causal_trace(facts, 9)
    with pytest.raises(SettingsError, match="no metric 'logits'"):
        kn.plots.causal_trace(facts, 0, metric="logits")
    with pytest.raises(SettingsError, match="no metric 'logits'"):
        kn.plots.trace_averages(facts, metric="logits")
    with pytest.raises(SettingsError, match="this trace is of the stream 'resid'"):
        kn.plots.head_trace(facts)


def test_tokens_are_not_read_as_markup() -> None:
    assert token_labels(("<s>", "a&b", "is"), (1,), 2) == ["&lt;s&gt;", "a&amp;b*", "<b>▸ is</b>"]


def test_of_many_states_a_random_draw_holds_the_extremes(patched) -> None:
    exact = patched["head", "each"]
    generator = torch.Generator().manual_seed(0)
    count = len(exact.tokens[0])
    effects = torch.randn(2400 // count, count, 5, 10, generator=generator)
    effects[3, 2, 1, 9], effects[7, 4, 4, 0] = 50.0, -60.0
    estimated = effects.clone()
    estimated[1, 1, 1, 1], estimated[2, 2, 2, 2] = 70.0, -80.0
    many = replace(exact.select([0] * len(effects)), effects={"logit_difference": effects})
    estimate = replace(many, effects={"logit_difference": estimated}, method="attribution_patching")
    data, layout = drawn(kn.plots.attribution_against_exact(estimate, many))
    x, y = list(data[1]["x"]), list(data[1]["y"])
    assert len(x) == 4000
    assert (max(x), min(x), max(y), min(y)) == (50.0, -60.0, 70.0, -80.0)
    assert f"of all {effects.numel()}, 4000 drawn at random" in layout["title"]["text"]
    for unit in range(10):  # one of every few in their order would be of a few heads
        assert 300 < sum(text.endswith(f"unit {unit}") for text in data[1]["hovertext"]) < 500
    again = drawn(kn.plots.attribution_against_exact(estimate, many))[0]
    assert list(again[1]["x"]) == x


def test_a_kl_moves_and_a_loss_is_taken(facts) -> None:
    kl = drawn(kn.plots.causal_trace(facts, metric="kl"))[1]["title"]["text"]
    size = f"{float(facts.total_effect('kl').mean()):.3g} ["
    assert f"corrupting the cue moves the distribution by {size}" in kl
    assert "lowers" not in kl
    unchanged = replace(facts, corrupted={**facts.corrupted, "kl": facts.clean["kl"] - 1e-6})
    assert (
        "moves the distribution by 0 [0, 0] nats"
        in drawn(kn.plots.causal_trace(unchanged, metric="kl"))[1]["title"]["text"]
    )
    helped = replace(facts, corrupted={name: values + 50 for name, values in facts.clean.items()})
    title = drawn(kn.plots.causal_trace(helped))[1]["title"]["text"]
    assert "lowers the logit difference by -50 [-50, -50] logits" in title
    assert "not seen to lower it" in title


def test_a_knockout_by_kl_is_no_loss(organism) -> None:
    model = organism("tiny-masked")
    trace = attention_knockout(model, ask(model, "P36"), metric="kl", progress=False)
    layout = drawn(kn.plots.knockout(trace))[1]
    assert layout["yaxis"]["title"]["text"] == "KL from the clean run, nats"
    assert "how far the answer moves" in layout["title"]["text"]


def test_traces_of_both_directions_are_named_so(organism, facts) -> None:
    model = organism("tiny-causal")
    other = causal_trace(model, ask(model, "P36"), samples=3, direction="necessity", metric="kl", progress=False)
    data, layout = drawn(kn.plots.trace_averages({"a": facts, "b": other}))
    assert layout["title"]["text"].startswith("<b>Restoring or corrupting a state: ")
    # by the one metric that means the same in both
    assert layout["yaxis"]["title"]["text"] == "effect on log p(answer), nats"
    line = next(entry for entry in data if entry.get("xaxis") == "x2" and entry.get("name") == "target position")
    frame = other.average("log_probability")
    assert list(line["y"]) == pytest.approx(frame[frame["class"] == "target position"]["mean"].tolist())


def test_prompts_that_share_cue_and_answer_are_counted(facts) -> None:
    title = drawn(kn.plots.causal_trace(facts.select([0, 0, 1])))[1]["title"]["text"]
    assert "mean of 3 prompts of 2 facts or pairs" in title
