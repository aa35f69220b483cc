"""``kn-lens trace``, ``patch`` and ``knockout``: what they print is what they write, and mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import kn_lens as kn
from kn_lens.cli import app
from kn_lens.errors import OutputError, SettingsError
from kn_lens.runs.knockout import KnockoutSettings
from kn_lens.runs.patch import PatchSettings
from kn_lens.studies.traced import TraceSettings
from kn_lens.tracing.draw import cued_prompts
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
