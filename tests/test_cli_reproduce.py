"""``kn-lens reproduce`` and ``kn-lens report``: what is shown is what is written, and nothing that is done is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from kn_lens.experiments.experiment import EXPERIMENTS, chosen, experiment
from kn_lens.localization.localize import Localization
from kn_lens.runs.reproduction import read_reproduction, section_of, state_of
from tests.test_cli import refused, run
from tests.test_cli_editing import flat
from tests.test_cli_trace import command

FEW = ("--experiments", "E1,E3")


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory) -> tuple[str, Path]:
    """E1 and E3 of tiny-causal."""
    out = tmp_path_factory.mktemp("reproduce") / "tiny-causal"
    return command("reproduce", "tiny-causal", *FEW, "--out", out), out


@pytest.fixture
def copy(reproduced, tmp_path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(reproduced[1], tmp_path / "copy"))


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def test_reproduce_says_and_writes_the_same(reproduced) -> None:
    said, out = reproduced
    for name in ("E1", "E3"):
        manifest = manifest_of(out / name)
        assert manifest["state"] == "done"
        assert manifest["provenance"]["model"] == "tiny-causal"
        assert manifest["findings"]
        module = experiment(name)
        result = module.Result.load(out / name / "result")
        assert manifest["findings"] == module.findings(result)
        assert [verdict["claim"] for verdict in manifest["verdicts"]] == [v.claim for v in module.verdicts(result)]
        for sentence in manifest["findings"]:
            assert flat(sentence) in flat(said)
        for table, frame in module.tables(result).items():
            assert len(pd.read_csv(out / name / f"{table}.csv")) == len(frame)
    page = (out / "report.html").read_text()
    assert manifest_of(out)["provenance"]["weights_hash"] in page
    assert f"Report: {out / 'report.html'}" in said


@pytest.mark.parametrize("model", ["tiny-causal", "tiny-masked"])
def test_the_whole_paper_on_an_organism(model, tmp_path) -> None:
    """What ``make demo`` runs."""
    out = tmp_path / model
    said = command("reproduce", model, "--out", out)
    content = read_reproduction(out)
    states = {section.name: section.state for section in content.sections}
    without = {"E7"} if model == "tiny-masked" else set()
    assert states == {name: "unsuited" if name in without else "done" for name in EXPERIMENTS}
    assert content.finished
    for section in content.sections:
        for sentence in section.findings:
            assert flat(sentence) in flat(said), section.name
        assert section.state == "unsuited" or (section.figures and section.tables), section.name
    assert {verdict.test for verdict in content.verdicts} == {1, 2, 3}
    for verdict in content.verdicts:
        assert verdict.experiment in states
    page = (out / "report.html").stat().st_size
    assert page < 15e6


def test_experiments_share_their_pieces(reproduced) -> None:
    _, out = reproduced
    pieces = sorted(path.name for path in (out / "pieces").iterdir() if path.name.startswith("localization-"))
    searched = {entry.data for entry in experiment("E1").Result.load(out / "E1" / "result").sets}
    assert {Localization.load(out / "pieces" / piece).data for piece in pieces} == searched
    assert len(pieces) == len(searched)  # E3 made none of its own


def test_what_is_done_is_not_done_again(copy) -> None:
    before = {path: path.stat().st_mtime_ns for name in ("E1", "E3") for path in (copy / name).rglob("*")}
    said = command("reproduce", "tiny-causal", *FEW, "--out", copy)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "E1 (" not in said
    command("reproduce", "tiny-causal", *FEW, "--redo", "E3", "--out", copy)
    after = {path: path.stat().st_mtime_ns for path in (copy / "E1").rglob("*")}
    assert after == {path: stamp for path, stamp in before.items() if path in after}
    assert (copy / "E3" / "manifest.json").stat().st_mtime_ns > before[copy / "E3" / "manifest.json"]
    assert read_reproduction(copy).sections[1].findings == manifest_of(copy / "E3")["findings"]


def test_other_settings_or_another_model_are_refused_with_the_difference(reproduced) -> None:
    _, out = reproduced
    assert "size (there small, here full)" in refused("reproduce", "tiny-causal", "--size", "full", "--out", out)
    assert "seed (there 0, here 1)" in refused("reproduce", "tiny-causal", "--seed", 1, "--out", out)
    said = refused("reproduce", "tiny-masked", "--out", out)
    assert "model (there tiny-causal, here tiny-masked)" in said
    assert "weights_hash (there" in said


def test_a_damaged_result_is_named_and_computed_again_on_request(copy) -> None:
    damaged = next((copy / "E1" / "result").rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-8])
    said = refused("reproduce", "tiny-causal", *FEW, "--out", copy)
    assert f"{damaged} is not as it was written; add --redo E1" in said
    shown = run("report", copy)
    assert shown.returncode == 0
    assert str(damaged) in flat(shown.stderr)
    assert "is not as it was written" in (copy / "report.html").read_text()
    again = command("reproduce", "tiny-causal", *FEW, "--redo", "E1", "--out", copy)
    assert state_of(copy, "E1") == ("done", "")
    assert "E1 (1 of 1)" in again


def test_a_missing_file_and_a_broken_manifest_are_damage(copy) -> None:
    (copy / "E1" / "measures.csv").unlink()
    assert state_of(copy, "E1") == ("damaged", f"{copy / 'E1' / 'measures.csv'} is missing")
    (copy / "E3" / "manifest.json").write_text("{")
    assert state_of(copy, "E3")[0] == "damaged"
    (copy / "manifest.json").write_text("{")
    assert "cannot be read" in refused("report", copy)


def test_rome_is_not_run_on_a_masked_model_and_that_is_said(tmp_path) -> None:
    out = tmp_path / "masked"
    said = command("reproduce", "tiny-masked", "--experiments", "E7", "--out", out)
    assert "Not run: " in said
    (section,) = read_reproduction(out).sections
    assert section.state == "unsuited"
    assert section.reason == manifest_of(out / "E7")["reason"]
    assert section.reason in flat((out / "report.html").read_text())


def test_a_stopped_run_keeps_what_is_done_and_goes_on(tmp_path) -> None:
    out = tmp_path / "stopped"
    line = [
        sys.executable,
        "-m",
        "kn_lens",
        "reproduce",
        "tiny-causal",
        "--experiments",
        "E1,E3,E4,E8",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    end = time.monotonic() + 120
    while not (out / "E3" / "manifest.json").is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert f"what is done is kept in {out}, and the same command goes on" in flat(errors)
    content = read_reproduction(out)
    assert not content.finished
    states = {section.name: section.state for section in content.sections}
    assert states["E1"] == states["E3"] == "done"
    assert states["E8"] == "not run"
    assert "in progress" in (out / "report.html").read_text()
    stamp = (out / "E1" / "manifest.json").stat().st_mtime_ns
    command("reproduce", "tiny-causal", "--experiments", "E1,E3,E4", "--out", out)
    assert (out / "E1" / "manifest.json").stat().st_mtime_ns == stamp
    assert state_of(out, "E4")[0] == "done"


def test_several_runs_are_compared_on_one_page(reproduced, tmp_path) -> None:
    _, causal = reproduced
    masked = tmp_path / "masked"
    command("reproduce", "tiny-masked", "--experiments", "E1", "--out", masked)
    page = tmp_path / "both.html"
    said = command("report", causal, masked, "--out", page)
    assert f"Report: {page}" in said
    text = page.read_text()
    claim = experiment("E1").verdicts(experiment("E1").Result.load(masked / "E1" / "result"))[0]
    assert claim.brief in flat(said)
    assert "tiny-causal" in text
    assert "tiny-masked" in text


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path) -> None:
    out = tmp_path / "out"
    assert "no experiment 'E10'" in refused("reproduce", "tiny-causal", "--experiments", "E1,E10", "--out", out)
    assert "no size 'smal'. Did you mean 'small'?" in refused(
        "reproduce", "tiny-causal", "--size", "smal", "--out", out
    )
    assert "no experiment was named" in refused("reproduce", "tiny-causal", "--experiments", ",", "--out", out)
    assert not out.exists()
    out.mkdir()
    (out / "letter.txt").write_text("dear")
    assert "is not empty" in refused("reproduce", "tiny-causal", "--out", out)
    assert [path.name for path in out.iterdir()] == ["letter.txt"]
    assert "holds no manifest.json" in refused("report", out)
    (out / "manifest.json").write_text('{"command": "trace"}')
    assert "was written by kn-lens trace, not by kn-lens reproduce" in refused("reproduce", "tiny-causal", "--out", out)
    assert "is named twice" in refused("report", out, out)


def test_experiments_are_chosen_in_the_papers_order() -> None:
    assert chosen(["e4", " E1 ", "E4"]) == ["E1", "E4"]
    assert chosen() == list(EXPERIMENTS) == [f"E{number}" for number in range(1, 10)]
    for name in EXPERIMENTS:
        module = experiment(name)
        assert module.TITLE.endswith("?"), name
        assert module.PAPER
        assert module.ABOUT


def test_a_section_of_a_result_is_what_the_report_shows(reproduced) -> None:
    _, out = reproduced
    module = experiment("E1")
    section = section_of("E1", module, module.Result.load(out / "E1" / "result"))
    shown = read_reproduction(out).sections[0]
    assert section.findings == shown.findings
    assert section.verdicts == shown.verdicts
    assert list(section.figures) == list(shown.figures)
