"""``kn-lens evaluate``: what it prints is what it writes, and a killed run is taken up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.criteria.evaluation import EditEvaluation
from kn_lens.criteria.questions import CRITERIA
from kn_lens.criteria.sweep import LayerSweep
from kn_lens.editing.editors import EDITORS
from kn_lens.errors import DataError, ModelError, OutputError, PromptError, SettingsError
from kn_lens.runs.unfinished import check_unfinished, unfinished, unfinished_folder
from tests.test_cli import refused, run
from tests.test_cli_editing import flat
from tests.test_cli_trace import command, manifest_of

TABLES = ("cascade", "dropped", "edits", "questions", "summary")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("evaluate") / "run"
    editors = ("--editor", "rome", "--editor", "neurons")
    return command(
        "evaluate", "tiny-causal", *editors, "--data", "P36", "--data", "P101", "--edits", 4, "--out", out
    ), out


def test_evaluate_writes_what_it_shows(evaluated) -> None:
    said, out = evaluated
    manifest = manifest_of(out)
    assert manifest["command"] == "evaluate"
    assert manifest["settings"]["editors"] == ["rome", "neurons"]
    summary = pd.read_parquet(out / "summary.parquet")
    for name, entry in manifest["data"].items():
        assert len(entry["sha256"]) == 64
        assert entry["edits"] == {"rome": 4, "neurons": 4}
        for editor, folder in entry["evaluations"].items():
            one = EditEvaluation.load(out / folder)
            mine = summary[(summary["data"] == name) & (summary["editor"] == editor)].drop(columns=["data", "editor"])
            pd.testing.assert_frame_equal(mine.reset_index(drop=True), one.summary(), check_dtype=False)
            assert manifest["findings"][f"{name}, {editor}"] == one.findings()
            for row in one.summary().itertuples():
                questions = f"{row.questions}" if row.questions == row.asked else f"{row.questions} of {row.asked}"
                shown = [line.split() for line in said.splitlines() if f" {editor} " in line]
                wanted = [*row.criterion.replace("_", ", ").split(), editor, str(row.edits), *questions.split()]
                assert any(line[: len(wanted)] == wanted for line in shown)
    sentences = [sentence for said_of in manifest["findings"].values() for sentence in said_of]
    assert all(f"• {flat(sentence)}" in flat(said) for sentence in sentences)
    assert all((out / f"{name}.parquet").is_file() for name in TABLES)
    labels = pd.read_parquet(out / "by-label.parquet")
    assert set(labels["label"]) == {"direction", "occupation"}
    assert "P36 by direction" in said
    assert "P101 by occupation" in said
    names = {f"{kind}-{data}" for kind in ("criteria", "cascade") for data in manifest["data"]}
    assert {path.stem for path in (out / "figures").glob("*.html")} == names
    assert not unfinished_folder(out).exists()


def test_evaluate_is_the_function_of_the_package(evaluated, organism) -> None:
    _, out = evaluated
    direct = kn.evaluate_edits(organism("tiny-causal"), kn.rome, kn.load_data("P36"), edits=4, progress=False)
    saved = EditEvaluation.load(out / "evaluation-P36-rome")
    pd.testing.assert_frame_equal(saved.summary(), direct.summary())
    assert saved.cascade().equals(direct.cascade())


def test_a_run_that_was_killed_is_taken_up(tmp_path) -> None:
    options = ("evaluate", "tiny-causal", "--data", "P36", "--edits", 12, "--criteria", "reliability,locality")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command(*options, "--out", whole)
    journal = unfinished_folder(broken) / "P36-rome.jsonl"
    started = subprocess.Popen(
        [sys.executable, "-m", "kn_lens", *map(str, options), "--out", str(broken)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    waited = time.monotonic() + 240
    while not journal.is_file() or journal.read_bytes().count(b"\n") < 3:
        assert started.poll() is None
        assert time.monotonic() < waited
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    done = journal.read_bytes().count(b"\n") - 1
    assert 2 <= done < 12
    assert not broken.exists()
    with pytest.raises(OutputError, match=r"differs in edits \(there 12, here 5\)"):
        command(*[5 if option == 12 else option for option in options], "--out", broken)
    with pytest.raises(OutputError, match=r"keeps finished edits .* does not ask for \(P36-rome\.jsonl\)"):
        command(*options, "--editor", "heads", "--out", broken)
    resumed = run(*options, "--out", broken)
    assert resumed.returncode == 0, resumed.stderr
    assert f"P36, rome: taking up a run that broke off, {done} of 12 edits are done." in resumed.stderr
    assert not unfinished_folder(broken).exists()
    for name in TABLES:
        tables = [pd.read_parquet(folder / f"{name}.parquet") for folder in (whole, broken)]
        first, second = (table.drop(columns="seconds", errors="ignore") for table in tables)
        pd.testing.assert_frame_equal(first, second, check_exact=False, rtol=1e-4)


def break_off(out: Path, journal: str, error: BaseException) -> None:
    with unfinished(out, {"edits": 2}) as folder:
        (folder / "a.jsonl").write_text(journal)
        raise error


def test_an_unfinished_run_is_kept_only_where_some_of_it_is_done(tmp_path) -> None:
    out = tmp_path / "run"
    with pytest.raises(PromptError):
        break_off(out, '{"journal": {}}\n', PromptError("no edit can be made"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        break_off(out, '{"journal": {}}\n{"case": 0}\n', KeyboardInterrupt())
    check_unfinished(out, {"edits": 2})
    with pytest.raises(OutputError, match=r"differs in edits \(there 2, here 3\)"):
        check_unfinished(out, {"edits": 3})
    (unfinished_folder(out) / "settings.json").unlink()
    with pytest.raises(OutputError, match="is no unfinished run"):
        check_unfinished(out, {"edits": 2})


def test_a_sweep_has_the_edits_of_each_layer(tmp_path, organism) -> None:
    out = tmp_path / "run"
    options = ("--edits", 2, "--sweep", "--layers", "2,1", "--criteria", "reliability", "--layer", 2, "--seed", 1)
    said = command("evaluate", "tiny-causal", "--editor", "rome", "--data", "P36", *options, "--out", out)
    manifest = manifest_of(out)
    sweep = LayerSweep.load(out / manifest["data"]["P36"]["sweeps"]["rome"])
    assert sweep.layers == (1, 2)
    table = pd.read_parquet(out / "sweeps.parquet")
    assert table["success_after"].tolist() == pytest.approx(sweep.to_frame()["success_after"].tolist())
    alone = EditEvaluation.load(out / "evaluation-P36-rome")
    assert {edit["layer"] for edit in alone.edits} == {2}
    at_two = table.loc[(table["layer"] == 2) & (table["criterion"] == "reliability"), "success_after"].item()
    assert alone.summary()["success_after"].item() == at_two
    assert "P36, rome, layers" in said
    assert "sweep-P36-rome" in {path.stem for path in (out / "figures").glob("*.html")}


def test_counter_facts_can_be_evaluated(tmp_path) -> None:
    entry = {
        "case_id": 1,
        "subject": "France",
        "prompt": "The capital of France is",
        "target_new": "Rome",
        "ground_truth": "Paris",
        "rephrase_prompt": "The capital city of France is called",
        "locality_prompt": "The capital of Spain is",
        "locality_ground_truth": "Madrid",
    }
    (tmp_path / "edits.json").write_text(json.dumps([entry]))
    out = tmp_path / "run"
    command("evaluate", "tiny-causal", "--data", tmp_path / "edits.json", "--fluency", "--out", out)
    questions = pd.read_parquet(out / "questions.parquet")
    assert questions["criterion"].tolist() == ["reliability", "generality", "locality"]
    edits = pd.read_parquet(out / "edits.parquet")
    assert {"entropy_before", "entropy_after"} <= set(edits.columns)
    (tmp_path / "edits.json").write_text(json.dumps([{**entry, "target_new": ""}]))
    with pytest.raises(DataError, match=r"edits.json\[0\]: field 'target_new' is '', not a text"):
        command("evaluate", "no-such-model", "--data", tmp_path / "edits.json")


def test_neurons_of_a_masked_model_are_edited(tmp_path) -> None:
    out = tmp_path / "run"
    command("evaluate", "tiny-masked", "--editor", "neurons-suppress", "--data", "P36", "--edits", 2, "--out", out)
    one = EditEvaluation.load(out / "evaluation-P36-neurons-suppress")
    assert one.editor == "neuron_edit (method=suppress)"
    assert len(one) == 2
    assert torch.tensor([edit["norm"] for edit in one.edits]).gt(0).all()


@pytest.mark.parametrize(
    ("model", "arguments", "kind", "words"),
    [
        ("none", ("--editor", "rom"), SettingsError, "no editor 'rom'. Did you mean 'rome'? Editors: rome, "),
        ("none", ("--criteria", "symetry"), SettingsError, "no criterion 'symetry'"),
        ("none", ("--criteria", ","), SettingsError, "criteria is empty"),
        ("none", ("--criteria", "synonymy"), SettingsError, "the objects of P36 have no synonyms"),
        ("none", ("--edits", "0"), SettingsError, "edits is 0; give at least 1"),
        ("none", ("--layers", "1"), SettingsError, "--layers are those of a sweep; add --sweep"),
        ("none", ("--sweep", "--layers", "a"), SettingsError, "cannot read --layers 'a'"),
        ("none", ("--editor", "heads", "--layer", "1"), SettingsError, "heads take no layer; these do: rome, "),
        ("none", ("--editor", "heads", "--sweep"), SettingsError, "heads cannot be swept over layers"),
        ("none", ("--data", "P37", "--criteria", "symmetry"), SettingsError, "P37 has no inverse relation"),
        ("none", ("--data", "P3"), DataError, "no data named 'P3'"),
        ("tiny-causal", ("--layer", "4"), ModelError, "tiny-causal has layers 0–3, and no layer 4"),
        ("tiny-causal", ("--sweep", "--layers", "1,4"), ModelError, "tiny-causal has layers 0–3, and no layer 4"),
        ("tiny-masked", ("--editor", "neurons", "--fluency"), ModelError, "leave --fluency out"),
        ("tiny-masked", ("--editor", "neurons", "--editor", "fine-tune"), ModelError, "fine-tune takes causal ones"),
    ],
)
def test_evaluations_that_cannot_be_made_are_refused(model, arguments, kind, words, tmp_path) -> None:
    with pytest.raises(kind) as error:
        command("evaluate", model, "--data", "P36", *arguments, "--out", tmp_path / "out")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_editor_that_cannot_take_the_model_is_one_line(tmp_path) -> None:
    arguments = ("evaluate", "tiny-masked", "--editor", "neurons", "--editor", "rome", "--data", "P36")
    assert "is a masked model: ROME writes" in refused(*arguments, "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_help_lists_the_editors_and_criteria() -> None:
    said = flat(command("evaluate", "--help").replace("│", " "))
    for name, (_, what) in EDITORS.items():
        assert f"{name} {what}" in said
    assert all(name in said for name in CRITERIA)
