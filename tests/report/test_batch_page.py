"""The report of batch runs: every method's page against the run's own results; runs in progress, failed, damaged."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import kn_lens as kn
from kn_lens.batches.methods import METHODS
from kn_lens.batches.methods.editing import EvaluateEditsMethod
from kn_lens.batches.methods.tracing import CausalTraceMethod
from kn_lens.batches.plan import make_plan
from kn_lens.batches.task import Tasks
from kn_lens.cli import app
from kn_lens.criteria.evaluation import FAILED
from kn_lens.errors import PromptError
from kn_lens.plots.editing import edit_criteria
from kn_lens.plots.tracing import trace_averages
from kn_lens.report.batch_page import BatchReport, write_batch_report
from kn_lens.report.content import Section
from kn_lens.runs.batch_about import is_batch_run
from kn_lens.runs.batch_report import read_batch_report
from kn_lens.runs.method_pages import METHOD_PAGES
from kn_lens.studies.traced import Traced, findings
from tests.report.parsed import Parsed
from tests.report.test_browser import CHROMIUM, DESKTOP, PHONE, Tab, sync_api

P36 = {"name": "P36", "groups": 6, "prompts": 2}
AGREEMENT = {"name": "subject_verb_agreement", "groups": 4, "prompts": 2}
TRACE = {
    "model": "tiny-causal",
    "data": [P36 | {"prompts": 1}, AGREEMENT | {"prompts": 1}],
    "method": "causal_trace",
    "settings": {"stream": ["resid", "attn", "head"], "samples": 2},
    "shard": 3,
}


def computed(folder: Path, config: dict[str, Any], model: Any, pieces: int | None = None) -> kn.BatchRun:
    """A run in this process, with so many of its pieces done."""
    folder.mkdir(parents=True)
    make_plan(folder, {"model": "tiny-causal", "shard": 6, **config}, progress=False)
    tasks = Tasks(folder, lambda: model)
    for number in range(len(tasks.store.tasks()) if pieces is None else pieces):
        tasks.do(number)
    return kn.BatchRun(folder)


@pytest.fixture(scope="module")
def run_of(organism: Any, tmp_path_factory: Any) -> Any:
    """``run_of(method, data, **settings)``: a finished run."""

    def make(method: str, *data: dict[str, Any], **settings: Any) -> kn.BatchRun:
        folder = tmp_path_factory.mktemp("runs") / method
        return computed(folder, {"data": list(data), "method": method, "settings": settings}, organism("tiny-causal"))

    return make


@pytest.fixture(scope="module")
def traced(organism: Any, tmp_path_factory: Any) -> kn.BatchRun:
    return computed(tmp_path_factory.mktemp("runs") / "trace", TRACE, organism("tiny-causal"))


def section(report: BatchReport, name: str) -> Section:
    return next(one for one in report.sections if one.name == name)


def parsed(report: BatchReport, folder: Path) -> Parsed:
    return Parsed(write_batch_report(report, folder / "report.html"))


def test_every_method_has_a_page() -> None:
    assert set(METHOD_PAGES) == set(METHODS)


def test_traces_show_what_their_results_say(traced: kn.BatchRun) -> None:
    report = read_batch_report(traced.folder)
    assert [one.name for one in report.sections] == [
        "P36-resid-attn",
        "P36-head",
        "subject_verb_agreement-resid-attn",
        "subject_verb_agreement-head",
    ]
    assert report.state == "Finished: of 30 prompts, each counted once for each of 3 streams, 30 done."
    traces: Any = {stream: traced.result("P36", stream) for stream in ("resid", "attn")}
    whole = Traced(data="P36", kind="facts", traces=traces, data_hash=None)
    shown = section(report, "P36-resid-attn")
    assert list(shown.findings) == findings(whole)
    assert report.briefs[shown.name] == findings(whole)[1:]
    assert shown.tables["peaks"].equals(whole.peaks())
    assert shown.tables["averages"].equals(whole.averages)
    assert shown.tables["prompts"].equals(traces["resid"].prompts_frame())
    expected: Any = trace_averages(traces, subtitle="tiny-causal, P36")
    assert shown.figures["averages"].to_json() == expected.to_json()  # type: ignore[union-attr]
    assert [name for name in shown.figures if "tokens" in name] == [
        "tokens-resid-1",
        "tokens-resid-2",
        "tokens-attn-1",
        "tokens-attn-2",
    ]
    sigma = traced.manifest.data[0].prepared["sigma"]
    assert shown.settings["measured over all prompts"] == {"sigma": sigma}
    assert list(section(report, "P36-head").figures) == ["heads"]


def test_one_result_is_in_memory_at_a_time(traced: kn.BatchRun, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[Any] = []
    read = kn.BatchRun.result

    def watched(self: kn.BatchRun, data: str | None = None, variant: str | None = None) -> Any:
        gc.collect()
        assert [one() for one in alive] == [None] * len(alive)
        result = read(self, data, variant)
        alive.append(weakref.ref(result))
        return result

    monkeypatch.setattr(kn.BatchRun, "result", watched)
    read_batch_report(traced.folder)
    assert len(alive) == 6


def test_page_is_whole(traced: kn.BatchRun, tmp_path: Path) -> None:
    report = read_batch_report(traced.folder)
    page = parsed(report, tmp_path)
    ids = page.ids()
    assert len(ids) == len(set(ids))
    for _, found in page.elements:
        if found.get("href", "").startswith("#"):
            assert found["href"][1:] in ids
        for name in ("aria-labelledby", "data-figure", "data-table"):
            assert name not in found or found[name] in ids
    assert report.state in page.shown("summary")
    for one in report.sections:
        shown = page.shown(one.name)
        assert all(" ".join(sentence.split()) in shown for sentence in one.findings)
        assert all(f"{one.name}-{name}" in ids for name in one.figures)
        for name, frame in one.tables.items():
            kept = json.loads(page.scripts[f"{one.name}-table-{name}-data"])
            assert len(kept["rows"]) == len(frame)
            assert kept["columns"] == [str(column) for column in frame.columns]
    states = json.loads(page.scripts["table-How-far-data"])
    assert states["rows"][0] == ["P36", "resid", 6, 6, 0, 0, 0]
    provenance = page.shown("provenance")
    for hash_ in (traced.manifest.run, traced.manifest.prompts_sha256, traced.manifest.provenance["weights_hash"]):
        assert hash_ in provenance
    assert "settings · samples2" in provenance
    assert page.shown("failed") == "Failed prompts None."


def test_run_in_progress_shows_what_is_there(organism: Any, tmp_path: Path) -> None:
    run = computed(tmp_path / "half", TRACE, organism("tiny-causal"), pieces=2)  # resid and attn of the first block
    report = read_batch_report(run.folder)
    assert (report.finished, report.through, report.prompts) == (False, 6, 30)
    assert section(report, "P36-resid-attn").tables["prompts"].shape[0] == 3
    assert section(report, "P36-head").reason == "No prompt is done yet, 6 of 6 are open."
    page = parsed(report, tmp_path)
    banner = "So far 6 of 30 prompts, each counted once for each of 3 streams: 6 done. It was not running when this"
    assert banner in page.shown("main")
    assert f"kn-lens resume {run.folder}" in page.shown("main")
    assert "No prompt is done yet, 4 of 4 are open." in page.shown("subject_verb_agreement-head")
    nothing = computed(tmp_path / "nothing", TRACE, organism("tiny-causal"), pieces=0)
    assert "So far 0 of 30 prompts" in parsed(read_batch_report(nothing.folder), tmp_path).shown("main")


def test_failed_prompts_are_told_with_their_errors(
    organism: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = CausalTraceMethod.compute
    bad: list[str] = []  # the second prompt of the run

    def fragile(self: Any, model: Any, work: Any) -> Any:
        texts = [prompt.text for prompt in work.posed.prompts]
        bad.extend(texts[1:2] if not bad else ())
        if work.variant == "resid" and bad[0] in texts:
            raise RuntimeError("no </script> & weights")
        return compute(self, model, work)

    monkeypatch.setattr(CausalTraceMethod, "compute", fragile)
    run = computed(tmp_path / "fragile", TRACE | {"data": P36 | {"prompts": 1}}, organism("tiny-causal"))
    report = read_batch_report(run.folder)
    rows: Any = report.failures.to_dict("records")
    error = "RuntimeError: no </script> & weights"
    assert rows == [{"data": "P36", "stream": "resid", "prompt": 1, "text": bad[0], "error": error}]
    assert section(report, "P36-resid-attn").tables["peaks"].groupby("stream")["prompts"].max().to_dict() == {
        "attn": 6,
        "resid": 5,
    }
    page = parsed(report, tmp_path)
    assert json.loads(page.scripts["table-Failed-prompts-data"])["rows"] == [list(row.values()) for row in rows]
    assert error in page.shown("failed")
    assert "1 failed" in page.shown("summary")


def test_damaged_part_does_not_hide_the_others(traced: kn.BatchRun, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(traced.folder, folder)
    path = folder / "parts" / "part-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    report = read_batch_report(folder)
    assert len(report.damaged) == 1
    assert report.damaged[0].startswith(f"{path} is damaged")
    shown = section(report, "P36-resid-attn")
    counts = shown.tables["peaks"].groupby("stream")["prompts"].max()
    assert counts.to_dict() == {"attn": 6, "resid": 3}
    assert str(path) in parsed(report, tmp_path).shown("main")


def test_knockout(run_of: Any) -> None:
    run = run_of("attention_knockout", P36)
    trace = run.result()
    shown = section(read_batch_report(run.folder), "P36")
    assert set(shown.tables) == {"peaks", "averages"}
    best = trace.average().groupby("block")["mean"].max()
    assert shown.tables["peaks"].set_index("cut off")["mean loss"].to_dict() == pytest.approx(best.to_dict())
    assert f"{best['cue']:.3g} [" in shown.findings[0]


@pytest.mark.parametrize(
    ("method", "settings", "figures", "first"),
    [
        ("activation_patching", {"component": "mlp"}, ["patching", "tokens-1", "tokens-2"], "the cue of a twin"),
        ("attribution_patching", {"component": "neuron", "positions": "sum"}, [], "effects are estimates"),
        ("path_patching", {}, ["patching"], "effects are those along the path to logits only"),
    ],
)
def test_patching(run_of: Any, method: str, settings: Any, figures: list[str], first: str) -> None:
    run = run_of(method, AGREEMENT, **settings)
    report, effects = read_batch_report(run.folder), run.result()
    (shown,) = report.sections
    assert list(shown.figures) == figures
    assert f": {first}" in shown.findings[0]
    top = shown.tables["largest"].iloc[0]
    frame = effects.average()
    assert top["mean"] == pytest.approx(frame.loc[frame["mean"].abs().idxmax(), "mean"])
    assert len(shown.tables["averages"]) == len(frame)
    (brief,) = report.briefs[shown.name]
    assert f"of {len(frame)} mean effects" in brief


def test_direct_logits(run_of: Any) -> None:
    run = run_of("direct_logit_attribution", P36, neurons=True)
    logits = run.result()
    shown = section(read_batch_report(run.folder), "P36")
    parts = shown.tables["parts"].set_index("part")["mean"]
    assert parts["logit difference"] == pytest.approx(float(logits.total.double().mean()))
    assert parts.drop("logit difference").sum() == pytest.approx(parts["logit difference"], abs=1e-4)
    layers = shown.tables["layers"]
    mlp = layers[layers["part"] == "MLP"]["mean"].to_numpy()
    assert mlp == pytest.approx(logits.mlp.double().mean(0).numpy())
    head = shown.tables["heads"].iloc[0]
    mean = logits.heads.double().mean(0)
    assert head["mean"] == pytest.approx(float(mean.flatten()[mean.abs().argmax()]))
    neuron: Any = shown.tables["neurons"].iloc[0]
    neurons = logits.neurons.double().mean(0)
    assert float(neurons[int(neuron["layer"]), int(neuron["unit"])]) == pytest.approx(neuron["mean"])
    assert abs(neuron["mean"]) == pytest.approx(float(neurons.abs().max()))


def test_scores(run_of: Any) -> None:
    run = run_of("integrated_gradients", P36, site=["mlp", "head"])
    report = read_batch_report(run.folder)
    for site in ("mlp", "head"):
        scores, shown = run.result(variant=site), section(report, f"P36-{site}")
        mean = scores.values.double().mean(0)
        units = shown.tables["units"]
        best: Any = units.iloc[0]
        assert float(mean[int(best["layer"]), int(best["unit"])]) == pytest.approx(best["mean"])
        assert abs(best["mean"]) == pytest.approx(float(mean.abs().max()))
        size = scores.values.double().abs().sum(2)
        expected = (size / size.sum(1, keepdim=True)).mean(0).numpy()
        assert shown.tables["layers"]["share of Σ|score|"].to_numpy() == pytest.approx(expected)
        rank = scores.values.flatten(1).double().abs().sort(dim=1, descending=True).values
        ten = (rank[:, :10].sum(1) / rank.sum(1)).mean()
        assert f"hold {float(ten):.0%} of Σ|score|" in shown.findings[1]
    assert list(section(report, "P36-head").figures) == ["heads", "layers", "concentration"]


def test_knowledge_neurons_of_all_data_sets_are_compared(run_of: Any) -> None:
    run = run_of("knowledge_neurons", P36 | {"prompts": 4}, AGREEMENT | {"prompts": 4})
    report = read_batch_report(run.folder)
    assert [one.name for one in report.sections] == ["All-data-sets-mlp", "P36-mlp", "subject_verb_agreement-mlp"]
    across, facts = report.sections[0], report.sections[1]
    found = {name: run.result(name) for name in ("P36", "subject_verb_agreement")}
    similarity = {name: np.nanmean([row["R₁²"] for row in one.rows]) for name, one in found.items()}
    measures = across.tables["measures"].set_index("data")["R₁²"]
    assert measures.to_dict() == pytest.approx(similarity)
    said = f"R₁²: {similarity['P36']:.2f} for facts (6 groups) against {similarity['subject_verb_agreement']:.2f}"
    assert across.findings[0].startswith(said)
    assert len(facts.tables["units"]) == len(found["P36"].units)
    assert len(facts.findings) == 1
    alone = read_batch_report(run_of("knowledge_neurons", P36 | {"prompts": 4}).folder)
    assert list(alone.sections[0].findings) == []
    assert set(alone.sections[0].tables) == {"measures"}


def test_suppression(run_of: Any) -> None:
    run = run_of("suppress", P36, units=["0:12", "0:24"], controls=5)
    summary = run.result().summary()
    shown = section(read_batch_report(run.folder), "P36")
    assert list(shown.figures) == ["probabilities", "controls"]
    assert f"log p(target) changes by {summary['log_probability_change']:+.3g}".replace("-", "−") in shown.findings[0]
    assert f"accuracy goes from {summary['accuracy_before']:.1%}" in shown.findings[0]
    assert f"accuracy is {summary['control_accuracy']:.1%}" in shown.findings[0]
    assert len(shown.tables["prompts"]) == summary["prompts"]


def test_ablation_curves_and_prompts_left_out(run_of: Any, tmp_path: Path) -> None:
    run = run_of("ablation_curve", P36, site=["mlp", "head"], ks=[1, 10, 100], controls=3)
    report = read_batch_report(run.folder)
    shown = section(report, "P36-mlp-head")
    for site in ("mlp", "head"):
        curve = run.result(variant=site)
        row = shown.tables["half"].set_index(["site", "taken away"]).loc[(site, "top units")]
        assert row["k"] == pytest.approx(curve.k_half().k.value, nan_ok=True)
        kept = shown.tables["curve"]
        assert kept[kept["site"] == site]["flipped"].to_numpy() == pytest.approx(curve.flipped.double().mean(0).numpy())
    dropped = run.result(variant="mlp").dropped
    assert len(shown.dropped) == len(dropped)  # once, though both sites left them out
    assert f"{2 * len(dropped)} left out" in report.state
    (reason,) = {item.reason for item in dropped}
    assert f"{len(dropped)}: {reason} P36: {len(dropped)}" in parsed(report, tmp_path).shown("P36-mlp-head")


def test_edits_side_by_side_and_layer_by_layer(organism: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = EvaluateEditsMethod.compute

    def fragile(self: Any, model: Any, work: Any) -> Any:
        if work.variant == "rome@2":
            raise PromptError(f"{FAILED}nothing can be edited here")
        return compute(self, model, work)

    monkeypatch.setattr(EvaluateEditsMethod, "compute", fragile)
    criteria = ["reliability", "generality"]
    config = {"data": {"name": "P36", "groups": 2}, "method": "evaluate_edits"}
    settings = {"editors": ["rome", "rome-random-layer"], "layers": [0, 1, 2], "criteria": criteria}
    run = computed(tmp_path / "edits", config | {"settings": settings}, organism("tiny-causal"))
    report = read_batch_report(run.folder)
    (shown,) = report.sections
    assert list(shown.figures) == ["criteria", "cascade", "layers-rome"]
    alone = run.result(variant="rome-random-layer")
    expected = edit_criteria({"rome-random-layer": alone}, "tiny-causal, P36, rome-random-layer")
    assert shown.figures["criteria"].to_json() == expected.to_json()  # type: ignore[union-attr]
    said = "P36, rome: rome edits 2 facts of P36 in tiny-causal, the same at each of 3 layers (layers 0–2); at 1 of"
    assert any(sentence.startswith(said) for sentence in shown.findings)
    assert any("2 of 2 edits could not be made (nothing can be edited here)" in one for one in shown.findings)
    summary = shown.tables["summary"]
    for layer in (0, 1):
        own = run.result(variant=f"rome@{layer}").summary().set_index("criterion")["success_after"]
        there = summary[summary["editor"] == f"rome@{layer}"].set_index("criterion")["success_after"]
        assert there.to_dict() == own.to_dict()
    assert len(report.failures) == 2
    assert set(report.failures["editor"]) == {"rome@2"}


def test_command_writes_beside_the_run_and_refuses_to_compare(traced: kn.BatchRun, tmp_path: Path) -> None:
    assert is_batch_run(traced.folder)
    before = {path: path.read_bytes() for path in traced.folder.rglob("*") if path.is_file()}
    told = CliRunner().invoke(app, ["report", str(traced.folder)], catch_exceptions=False)
    assert told.exit_code == 0
    assert "30 done." in told.output
    page = traced.folder / "report.html"
    assert "causal_trace on tiny-causal" in page.read_text(encoding="utf-8")
    page.unlink()
    assert {path: path.read_bytes() for path in traced.folder.rglob("*") if path.is_file()} == before
    with pytest.raises(kn.SettingsError, match="such runs are not compared"):
        CliRunner().invoke(app, ["report", str(traced.folder), str(tmp_path)], catch_exceptions=False)
    (tmp_path / "manifest.json").write_text('{"command": "reproduce"}')
    assert not is_batch_run(tmp_path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "light"), (DESKTOP, "dark")])
def test_page_opens_draws_and_fits(
    traced: kn.BatchRun, tmp_path: Path, browser: Any, size: dict[str, int], scheme: str
) -> None:
    path = write_batch_report(read_batch_report(traced.folder), tmp_path / "report.html")
    context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
    try:
        tab = Tab(context)
        page = tab.open(path)
        tab.draw_all()
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert page.locator("#P36-resid-attn-averages .js-plotly-plot, #P36-resid-attn-averages svg").count()
        tab.check()
    finally:
        context.close()
