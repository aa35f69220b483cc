"""``kn-lens trace``, ``patch`` and ``knockout``: what they print is what they write, and mistakes are one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import kn_lens as kn
from kn_lens.cli import app
from kn_lens.errors import OutputError, SettingsError
from kn_lens.runs.draw import NO_CUE, asked_of, cued_prompts
from kn_lens.runs.knockout import KnockedOut, KnockoutSettings
from kn_lens.runs.knockout import findings as knockout_findings
from kn_lens.runs.knockout import knockout as run_knockout
from kn_lens.runs.patch import PatchSettings
from kn_lens.runs.patch import findings as patch_findings
from kn_lens.runs.patch import patch as run_patch
from kn_lens.runs.trace import Traced, TraceSettings, findings
from kn_lens.runs.trace import trace as run_trace
from kn_lens.tracing.knockout_trace import KnockoutTrace
from kn_lens.tracing.patch_effects import PatchEffects
from kn_lens.tracing.trace import CausalTrace
from tests.test_cli import refused

FEW = ("--groups", "4")


def command(*arguments: object) -> str:
    """What a command prints, run in this process."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def manifest_of(out: Path) -> dict:
    manifest = json.loads((out / "manifest.json").read_text())
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == written - {"manifest.json"}
    for name in written:
        if name.endswith(".html"):
            head = (out / name).read_text(encoding="utf-8").split("<script")[0]
            assert "http" not in head
    return manifest


@pytest.fixture(scope="module")
def traced(tmp_path_factory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("trace") / "run"
    streams = ("--stream", "resid", "--stream", "head")
    data = ("--data", "P36", "--data", "subject_verb_agreement")
    return command("trace", "tiny-causal", *data, *streams, "--samples", 3, *FEW, "--out", out), out


def test_trace_writes_what_it_shows(traced) -> None:
    said, out = traced
    manifest = manifest_of(out)
    assert manifest["command"] == "trace"
    assert manifest["settings"]["streams"] == ["resid", "head"]
    assert len(manifest["provenance"]["weights_hash"]) == 32
    for name, entry in manifest["data"].items():
        assert len(entry["sha256"]) == 64
        trace = CausalTrace.load(out / entry["traces"]["resid"])
        assert len(trace) == entry["prompts"]
        assert entry["sigma"] == pytest.approx(trace.sigma)
        averages = pd.read_parquet(out / "averages.parquet").query(f"data == '{name}' and stream == 'resid'")
        for metric in ("kl", "logit_difference"):
            mine = averages[averages["metric"] == metric]
            assert mine["mean"].tolist() == pytest.approx(trace.average(metric)["mean"].tolist())
        peaks = pd.read_csv(out / "peaks.csv").query(f"data == '{name}' and stream == 'resid'").set_index("class")
        last = trace.by_class()["target position"].mean(0)
        assert peaks.loc["target position", "mean"] == pytest.approx(float(last.max()), abs=1e-5)
        assert int(peaks.loc["target position", "peak at layer"]) == int(last.argmax())
        assert len(pd.read_parquet(out / "prompts.parquet").query(f"data == '{name}'")) == len(trace)
    for sentence in manifest["findings"]:
        assert sentence in said.replace("\n", " ") or sentence in said
    assert {path.stem for path in (out / "figures").glob("*.html")} == {
        "averages",
        *(f"{kind}-{name}" for kind in ("attention", "heads") for name in manifest["data"]),
        *(f"tokens-{name}-resid" for name in manifest["data"]),
    }


def test_the_page_of_heads_shows_those_with_the_largest_effects(traced) -> None:
    _, out = traced
    trace = CausalTrace.load(out / "trace-P36-head")
    size = np.nanmax(np.stack([np.abs(values.nanmean(0).numpy()) for values in trace.by_class().values()]), 0)
    best = np.argsort(-size.ravel())[:6]
    page = (out / "figures" / "attention-P36.html").read_text(encoding="utf-8")
    named = json.loads(page.partition('"attentionHeadNames": ')[2].partition("]")[0] + "]")
    assert named == [f"{at // size.shape[1]}:{at % size.shape[1]}" for at in best]


def test_findings_are_computed_from_the_numbers(organism) -> None:
    model = organism("tiny-causal")
    settings = TraceSettings(streams=("resid", "mlp"), corruption="zero", groups=4)
    found = run_trace(model, kn.load_data("P36"), settings)
    trace = found.traces["mlp"]
    first, resid, mlp = findings(found)
    assert f"takes {float(trace.total_effect().mean()):.3g} [" in first
    peak = trace.average().query("`class` != 'before the cue'").nlargest(1, "mean").iloc[0]
    assert f"an MLP output restored lies at the {peak['class']}: {peak['mean']:.3g} [{peak['low']:.3g}" in mlp
    assert f"(layer {peak['layer']}, 4 prompts), {peak['mean'] / float(trace.total_effect().mean()):.0%}" in mlp
    pooled = found.traces["resid"].by_class()
    ahead = (pooled["target position"].mean(0) > pooled["last cue token"].mean(0)).tolist()
    if all(ahead):
        assert "gives more in every layer" in resid
    turned = Traced(
        data="turned",
        kind="facts",
        data_hash=None,
        batch=found.batch,
        traces={"resid": _with_handover(found.traces["resid"], 2)},
    )
    assert findings(turned)[1].endswith("the target position gives more from layer 2 on.")


def _with_handover(trace: CausalTrace, layer: int) -> CausalTrace:
    """The trace, its effects made such that the target position overtakes the cue at ``layer``."""
    effects = trace.effects["logit_difference"].clone()
    for index in range(len(trace)):
        effects[index, trace.cue_positions[index][-1]] = 1.0
        effects[index, trace.target_positions[index], :layer] = 0.5
        effects[index, trace.target_positions[index], layer:] = 2.0
    object.__setattr__(trace, "effects", {**trace.effects, "logit_difference": effects})
    return trace


def test_neurons_of_chosen_layers(tmp_path) -> None:
    out = tmp_path / "run"
    arguments = ("--stream", "neuron", "--layers", "2", "--corruption", "mean", "--groups", 1, "--out", out)
    said = command("trace", "tiny-masked", "--data", "P36", *arguments)
    assert "neuron 2:" in said
    assert manifest_of(out)["data"]["P36"]["sigma"] is None
    trace = CausalTrace.load(out / "trace-P36-neuron")
    assert trace.effects["kl"][:, :, [0, 1, 3]].isnan().all()
    page = (out / "figures" / "neurons-P36.html").read_text(encoding="utf-8")
    assert "neuron 2:" in page


def test_patch_writes_exact_effects_beside_their_estimate(tmp_path) -> None:
    out = tmp_path / "run"
    said = command("patch", "tiny-causal", "--data", "subject_verb_agreement", *FEW, "--out", out)
    manifest = manifest_of(out)
    entry = manifest["data"]["subject_verb_agreement"]
    exact, estimate = (PatchEffects.load(out / entry[kind]) for kind in ("effects", "estimate"))
    assert entry["correlation"]["pearson"] == pytest.approx(estimate.correlation(exact).pearson)
    averages = pd.read_parquet(out / "averages.parquet")
    assert averages["mean"].tolist() == pytest.approx(exact.average()["mean"].tolist())
    assert averages["estimate"].tolist() == pytest.approx(estimate.average()["mean"].tolist())
    assert len(exact) == entry["prompts"] == 4  # every one has its twin among the others
    assert f"r = {entry['correlation']['pearson']:.3f}" in said
    names = ("attention", "attribution", "patching")
    assert {path.stem for path in (out / "figures").glob("*.html")} == {f"{n}-subject_verb_agreement" for n in names}


def test_patch_without_estimate_at_all_positions(tmp_path) -> None:
    out = tmp_path / "run"
    arguments = ("--component", "mlp", "--positions", "sum", "--no-attribution", "--direction", "necessity")
    command("patch", "tiny-masked", "--data", "P36", *arguments, *FEW, "--out", out)
    assert manifest_of(out)["data"]["P36"]["estimate"] is None
    assert PatchEffects.load(out / "patching-P36").axes == ("layer",)
    assert [path.stem for path in (out / "figures").glob("*.html")] == ["patching-P36"]


def test_knockout_writes_what_it_shows(tmp_path) -> None:
    out = tmp_path / "run"
    said = command("knockout", "tiny-masked", "--data", "P36", "--window", 2, *FEW, "--out", out)
    manifest = manifest_of(out)
    trace = KnockoutTrace.load(out / "knockout-P36")
    assert manifest["settings"]["window"] == trace.window == 2
    peaks = pd.read_parquet(out / "peaks.parquet").set_index("cut off")
    for at, block in enumerate(trace.blocks):
        losses = trace.effects["logit_difference"][:, at].mean(0)
        assert peaks.loc[block, "mean loss"] == pytest.approx(float(losses.max()), abs=1e-5)
        assert f"loses at most {float(losses.max()):.3g}" in said
    assert [path.stem for path in (out / "figures").glob("*.html")] == ["knockout-P36"]


def test_without_a_folder_only_tables_are_printed(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = command("knockout", "tiny-causal", "--data", "P36", "--heads", *FEW)
    assert "largest mean loss of logit_difference" in said
    assert "Written to" not in said
    assert not list(tmp_path.iterdir())


def test_pairs_are_drawn_with_their_twins(organism) -> None:
    model = organism("tiny-causal")
    data = kn.load_data("determiner_noun_agreement_1")
    batch = cued_prompts(model, data, 6, 1, seed=3, twins=True)
    words = {(prompt.target, prompt.foil) for prompt in batch.prompts}
    assert len(words) == 6
    assert {(foil, target) for target, foil in words} == words
    assert {prompt.target for prompt in batch.prompts} != {
        prompt.target for prompt in cued_prompts(model, data, 6, 1, seed=4, twins=True).prompts
    }
    found = run_patch(model, data, PatchSettings(component="attn", groups=6, attribution=False))
    assert len(found.exact) == 6


def test_prompts_without_a_cue_are_counted(organism, tmp_path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"sentence_good": "The parents were slow.", "sentence_bad": "The parents was slow.", "cue_span": [4, 11]},
        {"sentence_good": "The king was slow.", "sentence_bad": "The king were slow."},
    ]
    path.write_text("".join(json.dumps({**row, "one_prefix_method": True}) + "\n" for row in rows))
    batch = cued_prompts(organism("tiny-causal"), kn.load_data(str(path)), None, None, seed=0)
    assert [prompt.target for prompt in batch.prompts] == ["were"]
    assert [(entry.text, entry.reason) for entry in batch.dropped] == [("The king", NO_CUE)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TraceSettings(streams=("mpl",)), "no stream 'mpl'. Did you mean 'mlp'"),
        (TraceSettings(corruption="nosie"), "no corruption 'nosie'. Did you mean 'noise'"),
        (TraceSettings(direction="both"), "no direction 'both'"),
        (TraceSettings(severed="resid"), "no severed path 'resid'"),
        (TraceSettings(metric="logits"), "no metric 'logits'"),
        (TraceSettings(samples=0), "samples is 0"),
        (TraceSettings(sigma=0), "sigma is 0; it must be above 0"),
        (TraceSettings(sigma=0.1, corruption="swap"), "sigma is that of noise, and the corruption is 'swap'"),
        (TraceSettings(positions="cues"), "no positions 'cues'. Did you mean 'cue'"),
        (TraceSettings(window=0), "window is 0; it must be at least 1 layer"),
        (TraceSettings(streams=("mlp", "head"), window=3), "window is 3; it must be 1 for single heads"),
        (TraceSettings(streams=("neuron",)), "say which layers: --layers 3,4"),
        (PatchSettings(component="z"), "no component 'z'"),
        (PatchSettings(positions="all"), "no positions 'all' to patch"),
        (PatchSettings(direction="both"), "no direction 'both'"),
        (KnockoutSettings(window=0), "window is 0; it must be at least 1 layer"),
        (KnockoutSettings(heads=True, window=9), "single heads are cut in one layer at a time"),
    ],
)
def test_settings_are_refused_before_a_model_is_loaded(settings, message) -> None:
    with pytest.raises(SettingsError) as error:
        settings.check()
    assert message in str(error.value)


def test_mistakes_are_one_line(tmp_path) -> None:
    assert "cannot read --layers 'a,b'; write layers with commas, as 3,4" in refused(
        "trace", "tiny-causal", "--data", "P36", "--layers", "a,b"
    )
    (tmp_path / "full").write_text("")
    for name in ("trace", "patch", "knockout"):
        with pytest.raises(OutputError, match="is a file"):
            command(name, "no-such-model", "--data", "P36", "--out", tmp_path / "full")


@pytest.fixture(scope="module")
def swapped(organism) -> Traced:
    return run_trace(organism("tiny-causal"), kn.load_data("P36"), TraceSettings(corruption="swap", groups=4))


def test_shares_are_of_a_total_above_0_only(swapped) -> None:
    one = swapped.first
    share = swapped.peaks().set_index("class")["share"]
    assert share["target position"] == pytest.approx(
        float(one.by_class()["target position"].mean(0).max() / one.total_effect().mean()), abs=1e-5
    )
    for change in (50.0, torch.tensor([-60.0, 60.0, -60.0, 60.0])):  # it helps; or now this and now that
        corrupted = {name: values + change for name, values in one.clean.items()}
        other = replace(swapped, traces={"resid": replace(one, corrupted=corrupted)})
        assert other.peaks()["share"].isna().all()
        said = findings(other)
        assert said[0].endswith("so is not seen to lower the answer: no effect is given as a share of it.")
        assert "%" not in said[1]


def test_kl_is_not_said_to_be_lost(organism, swapped) -> None:
    one = replace(swapped.first, metric="kl")
    moved = float(one.total_effect().mean())
    said = findings(replace(swapped, traces={"resid": one}))
    assert f"corrupting the cue (swap) moves the distribution by {moved:.3g} [" in said[0]
    assert "] nats (KL from the clean run), mean of 4 prompts" in said[0]
    model = organism("tiny-causal")
    found = run_knockout(model, kn.load_data("P36"), KnockoutSettings(metric="kl", groups=4))
    for sentence, (_, row) in zip(knockout_findings(found), found.peaks().iterrows(), strict=True):
        size = f"{row['mean loss']:.3g} [{row['low']:.3g}, {row['high']:.3g}] nats (KL from the clean run; "
        assert f"moves its distribution by at most {size}" in sentence
        assert "loses" not in sentence
        assert "clean" not in sentence.replace("KL from the clean run", "")
    assert "clean" not in found.peaks()
    still = {name: torch.full_like(values, -1e-6) for name, values in found.trace.effects.items()}
    still = replace(found, trace=replace(found.trace, effects=still))
    assert all("by at most 0 [0, 0] nats" in sentence for sentence in knockout_findings(still))


def test_what_was_chosen_is_said_to_be(organism) -> None:
    """The peak of random signs lies above 0 too: its interval is that of a maximum."""
    data = kn.load_data("P36")
    found = run_knockout(organism("tiny-causal"), data, KnockoutSettings(groups=4, heads=True))
    assert isinstance(found, KnockedOut)
    choice = "the largest of 16 heads, an interval not corrected for that choice; 4 prompts"
    assert all(choice in sentence for sentence in knockout_findings(found))
    patched = run_patch(organism("tiny-causal"), data, PatchSettings(groups=4))
    said = patch_findings(patched)
    total = float(patched.exact.total_effect().mean())
    assert f"the cue of a twin takes {total:.3g} [" in said[0]
    assert f"of {len(patched.exact.average())} mean effects (head, sufficiency) that of" in said[1]
    assert "chance" not in " ".join(said)
    assert "interval without 0, not corrected for their number." in said[2]


def test_positions_before_the_cue_are_left_out_where_they_cannot_matter(organism, swapped) -> None:
    assert "before the cue" in set(swapped.average("resid")["class"])
    assert "before the cue" not in set(swapped.peaks()["class"])
    settings = TraceSettings(streams=("mlp",), corruption="zero", groups=4, window=1)
    found = run_trace(organism("tiny-masked"), kn.load_data("P36"), settings)
    mean = found.first.by_class()["before the cue"].nanmean(0)
    row = found.peaks().set_index("class").loc["before the cue"]
    assert row["mean"] == pytest.approx(float(mean.max()), abs=1e-5)
    effects = found.first.effects["logit_difference"].clone()
    for index, cue in enumerate(found.first.cue_positions):
        if cue[0]:
            effects[index, : cue[0], 2] = 1000.0
    largest = replace(found.first, effects={**found.first.effects, "logit_difference": effects})
    assert "lies before the cue: 1e+03" in findings(replace(found, traces={"mlp": largest}))[1]


def test_an_estimate_that_says_nothing_is_left_out(organism) -> None:
    settings = PatchSettings(groups=4, metric="kl", direction="necessity")
    found = run_patch(organism("tiny-causal"), kn.load_data("P36"), settings)
    assert found.estimate is None
    last = "there is no estimate from one gradient: the KL divergence has its minimum in the clean run"
    assert last in patch_findings(found)[-1]
    without = run_patch(organism("tiny-causal"), kn.load_data("P36"), replace(settings, attribution=False))
    assert "gradient" not in " ".join(patch_findings(without))


def test_two_prefix_pairs_are_shown_by_log_probability(tmp_path) -> None:
    out = tmp_path / "run"
    data = ("--data", "determiner_noun_agreement_2", "--data", "P36")
    said = command("trace", "tiny-causal", *data, "--samples", 2, "--groups", 2, "--out", out)
    metrics = {name: entry["metric"] for name, entry in manifest_of(out)["data"].items()}
    assert metrics == {"determiner_noun_agreement_2": "log_probability", "P36": "logit_difference"}
    assert "determiner_noun_agreement_2: largest mean effects on log_probability" in said
    assert "effect on log p(answer), nats" in (out / "figures" / "averages.html").read_text(encoding="utf-8")
    assert "have no rival word" in refused("trace", "tiny-causal", *data[:2], "--metric", "logit_difference")


def test_noise_of_a_given_size_at_chosen_positions(tmp_path) -> None:
    out = tmp_path / "run"
    options = ("--sigma", 0.5, "--positions", "cue_last", "--samples", 2, *FEW)
    said = command("trace", "tiny-causal", "--data", "P36", *options, "--out", out)
    entry = manifest_of(out)["data"]["P36"]
    assert entry["sigma"] == 0.5
    trace = CausalTrace.load(out / entry["traces"]["resid"])
    for index, cue in enumerate(trace.cue_positions):
        known = ~trace.effects["kl"][index].isnan().all(1)
        assert known.nonzero().flatten().tolist() == [cue[-1]]
    assert "never apart" not in said
    batch = cued_prompts(kn.load_model("tiny-causal"), kn.load_data("P36"), 4, None, 0)
    direct = kn.causal_trace(kn.load_model("tiny-causal"), batch, sigma=0.5, samples=2, progress=False)
    at = trace.cue_positions[0][-1]
    assert torch.allclose(trace.effects["kl"][0, at], direct.effects["kl"][0, at], atol=1e-5)


def test_draws_of_pairs(organism) -> None:
    model = organism("tiny-causal")
    few = kn.load_data("anaphor_number_agreement")
    everything = cued_prompts(model, few, None, None, 0)
    whole = few.prompts(model)
    assert {prompt.text for prompt in everything.prompts} == {prompt.text for prompt in whole.prompts}
    drawn = [tuple(prompt.text for prompt in cued_prompts(model, few, 2, 3, seed).prompts) for seed in range(3)]
    assert len(set(drawn)) == 3
    assert drawn[0] == tuple(prompt.text for prompt in cued_prompts(model, few, 2, 3, 0).prompts)
    assert all(len(set(one)) == 3 * 2 for one in drawn)
    agreement = kn.load_data("subject_verb_agreement")
    for count, expected in ((1, 2), (2, 2), (3, 4)):
        pair = cued_prompts(model, agreement, count, 1, seed=0, twins=True)
        words = [(prompt.target, prompt.foil) for prompt in pair.prompts]
        assert len(words) == expected
        assert {(foil, target) for target, foil in words} == set(words)
    assert len(run_patch(model, agreement, PatchSettings(component="attn", groups=1, attribution=False)).exact) >= 1


def test_prompts_are_found_again_in_their_batch(organism) -> None:
    batch = cued_prompts(organism("tiny-causal"), kn.load_data("P36"), 4, 2, 0)
    some = [batch.prompts[at] for at in (1, 3, 6)]
    assert [entry.ids for entry in asked_of(batch, some).resolved] == [batch.resolved[at].ids for at in (1, 3, 6)]
