"""The commands as a user meets them: a real process, a small real model, files, and one line for each mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from kn_lens.attribution.scores import AttributionScores
from kn_lens.frequency import read_counts
from kn_lens.suppression.effect import UnitEffect
from kn_lens.suppression.frequency_effect import FrequencyEffect, frequency_effect
from tests.helpers import save_random_model

PAIRS = [
    ("The boy near the house sleeps.", "The boy near the house sleep.", "boy"),
    ("The boys near the house sleep.", "The boys near the house sleeps.", "boys"),
    ("The girl near the river sings.", "The girl near the river sing.", "girl"),
    ("The girls near the river sing.", "The girls near the river sings.", "girls"),
]
TEMPLATES = ["The capital of {subject} is {object}.", "In {subject} the largest city is {object}."]
FACTS = [("France", "Paris"), ("Germany", "Berlin"), ("Spain", "Madrid"), ("Italy", "Rome")]


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """One ``kn-lens`` command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "kn_lens", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        check=False,
    )


def refused(*arguments: object, **environment: str) -> str:
    """The one line that a command refuses with."""
    done = run(*arguments, **environment)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a causal and a masked model, pairs and facts."""
    place = tmp_path_factory.mktemp("cli")
    save_random_model(place / "causal", "llama")
    save_random_model(place / "masked", "bert")
    rows = []
    for good, bad, cue in PAIRS:
        start = good.index(cue)
        fields = {"one_prefix_method": True, "two_prefix_method": False, "cue_span": [start, start + len(cue)]}
        rows.append({"sentence_good": good, "sentence_bad": bad, "UID": "verbs", **fields})
    (place / "verbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = [{"subject": subject, "object": object_} for subject, object_ in FACTS]
    (place / "cities.jsonl").write_text("".join(json.dumps(row) + "\n" for row in facts))
    templates = "".join(json.dumps({"template": template}) + "\n" for template in TEMPLATES)
    (place / "cities.templates.jsonl").write_text(templates)
    return place


@pytest.fixture(scope="module")
def localized(place: Path) -> Path:
    """The folder of a localize run over facts and pairs."""
    out = place / "found"
    arguments = ["--data", place / "cities.jsonl", "--data", place / "verbs.jsonl", "--groups", 3, "--prompts", 4]
    done = run("localize", place / "causal", *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "How local?" in done.stdout
    return out


def test_help_is_there_without_torch() -> None:
    code = "import sys; sys.argv = ['kn-lens', '--help']\nimport kn_lens.cli, typer.testing\n"
    code += "print(typer.testing.CliRunner().invoke(kn_lens.cli.app, ['--help']).output, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "localize" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_models_lists_the_names() -> None:
    assert "smollm2-135m" in run("models").stdout


def test_localize_writes_what_it_shows(localized: Path) -> None:
    manifest = json.loads((localized / "manifest.json").read_text())
    assert manifest["command"] == "localize"
    assert manifest["settings"]["threshold"] == 0.2
    assert len(manifest["provenance"]["weights_hash"]) == 32
    assert set(manifest["data"]) == {"cities", "verbs"}
    assert all(len(entry["sha256"]) == 64 for entry in manifest["data"].values())
    written = {str(path.relative_to(localized)) for path in localized.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == written - {"manifest.json"}
    groups = pd.read_parquet(localized / "groups.parquet")
    units = pd.read_parquet(localized / "units.parquet")
    assert groups["|KN|"].sum() == len(units)
    assert set(groups["data"]) == {"cities", "verbs"}
    scores = AttributionScores.load(localized / "scores-cities")
    assert scores.values.shape[0] == len(scores.prompts) == 6  # three facts in two templates
    entry = manifest["data"]["cities"]
    assert sorted(entry["selection"] + entry["test"]) == list(range(6))
    assert not [path for path in localized.parent.iterdir() if path.name.startswith(".")]


def test_figures_open_without_a_network(localized: Path) -> None:
    figures = sorted((localized / "figures").glob("*.html"))
    assert [figure.stem for figure in figures] == ["concentration", "layers", "measures"]
    for figure in figures:
        page = figure.read_text()
        assert "Plotly.newPlot" in page
        assert "cdn" not in page.split("<script")[1][:200]
        assert 'src="http' not in page


def test_suppress_from_a_localization_uses_held_out_prompts(place: Path, localized: Path) -> None:
    out = place / "switched-off"
    arguments = ["--data", place / "cities.jsonl", "--from", localized, "--controls", 5, "--out", out]
    done = run("suppress", place / "causal", *arguments)
    assert done.returncode == 0, done.stderr
    effect = UnitEffect.load(out / "effect-cities")
    manifest = json.loads((localized / "manifest.json").read_text())["data"]["cities"]
    scores = AttributionScores.load(localized / "scores-cities")
    assert [prompt.text for prompt in effect.prompts] == [scores.prompts[index].text for index in manifest["test"]]
    assert effect.target.shape == (len(manifest["test"]), 2 + 5)
    expected = [[tuple(unit) for unit in manifest["units"][prompt.group or ""]] for prompt in effect.prompts]
    assert [list(units) for units in effect.units] == expected
    assert {path.stem for path in (out / "figures").glob("*.html")} == {
        "controls-cities",
        "layers",
        "probability-change-cities",
    }


def test_suppress_takes_units_by_hand_on_a_masked_model(place: Path) -> None:
    out = place / "by-hand"
    arguments = ["--data", place / "verbs.jsonl", "--units", "0:3, 1:5", "--controls", 4, "--probe", "sings"]
    done = run("suppress", place / "masked", *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv(out / "probes-verbs.csv")
    assert "sings" in frame["probe"].tolist()
    assert set(UnitEffect.load(out / "effect-verbs").units) == {((0, 3), (1, 5))}


def test_mistakes_are_one_line(place: Path, localized: Path) -> None:
    model, verbs = place / "causal", place / "verbs.jsonl"
    assert "Did you mean 'smollm2-135m'" in refused("localize", "smolm2-135m", "--data", verbs)
    assert "Did you mean 'anaphor_gender_agreement'" in refused("localize", model, "--data", "anaphor_gender_agrement")
    assert "steps is 1" in refused("localize", model, "--data", verbs, "--steps", 1)
    assert "no site 'mpl'. Did you mean 'mlp'" in refused("localize", model, "--data", verbs, "--site", "mpl")
    assert "threshold is 1.5" in refused("localize", model, "--data", verbs, "--threshold", 1.5)
    assert "write fewest-most" in refused("localize", model, "--data", verbs, "--count", "few")
    assert "is not empty" in refused("localize", model, "--data", verbs, "--out", place)
    assert "is a file" in refused("localize", model, "--data", verbs, "--out", verbs)
    assert "say which units" in refused("suppress", model, "--data", verbs)
    assert "cannot read unit '9-3'" in refused("suppress", model, "--data", verbs, "--units", "9-3")
    assert "unit 9:3 is not in" in refused("suppress", model, "--data", verbs, "--units", "9:3")
    assert "holds no units for 'P36'" in refused("suppress", model, "--data", "P36", "--from", localized)
    both = refused("suppress", model, "--data", "cities", "--from", localized, "--site", "head")
    assert "leave them out" in both
    (place / "again").mkdir()
    (place / "again" / "verbs.jsonl").write_bytes(verbs.read_bytes())
    twice = refused("localize", model, "--data", verbs, "--data", place / "again" / "verbs.jsonl")
    assert "would both be written as 'verbs'" in twice
    assert "is a folder" in refused("localize", model, "--data", place / "again")
    assert "no data named" in refused("localize", model, "--data", "x" * 300)
    assert "holds no manifest.json" in refused("suppress", model, "--data", verbs, "--from", place)
    other = refused("suppress", place / "masked", "--data", verbs, "--from", localized)
    assert "localize in this model first" in other


def test_broken_data_is_named_by_file_and_line(place: Path) -> None:
    broken = place / "broken.jsonl"
    broken.write_text('{"sentence_good": "A dog runs.", "sentence_bad": "A dog run."}\n{"sentence_good": \n')
    assert f"{broken}:2: not JSON" in refused("localize", place / "causal", "--data", broken)
    broken.write_text('{"sentence_good": "A dog runs."}\n')
    assert f"{broken}:1: field 'sentence_bad' is missing" in refused("localize", place / "causal", "--data", broken)
    broken.write_text("")
    assert f"{broken}: the file is empty" in refused("localize", place / "causal", "--data", broken)


def test_an_empty_folder_is_filled(place: Path) -> None:
    (place / "empty").mkdir()
    arguments = ["--data", place / "verbs.jsonl", "--units", "0:3", "--controls", 2, "--out", place / "empty"]
    assert run("suppress", place / "causal", *arguments).returncode == 0
    assert (place / "empty" / "manifest.json").is_file()
    assert "is not empty" in refused("suppress", place / "causal", *arguments)


def test_a_failed_run_leaves_nothing_behind(place: Path) -> None:
    out = place / "never"
    assert "unit 9:3" in refused(
        "suppress", place / "causal", "--data", place / "verbs.jsonl", "--units", "9:3", "--out", out
    )
    assert not out.exists()
    assert not [path for path in place.iterdir() if path.name.startswith(".never")]


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/1").exists(), reason="needs a folder that root cannot write")
def test_an_output_that_cannot_be_written(place: Path) -> None:
    assert "cannot write" in refused(
        "localize", place / "causal", "--data", place / "verbs.jsonl", "--out", "/proc/kn-lens-out"
    )


def test_two_prefix_pairs_say_what_they_are(place: Path) -> None:
    row = {
        "sentence_good": "The girl likes this house.",
        "sentence_bad": "The girl likes these house.",
        "two_prefix_method": True,
        "two_prefix_prefix_good": "The girl likes this",
        "two_prefix_prefix_bad": "The girl likes these",
        "two_prefix_word": "house",
        "UID": "determiner_noun_agreement_2",
    }
    path = place / "determiners.jsonl"
    path.write_text(json.dumps(row) + "\n")
    done = run("localize", place / "causal", "--data", path)
    assert done.returncode == 0, done.stderr
    assert "of the form two_prefix" in done.stdout
    assert "p(word | good prefix) with p(word | bad prefix)" in " ".join(done.stdout.split())


CORPUS = """The boy sleeps. The boys sleep and the boys sleep. The girl, she sings; the girl sings
The boys sleep. The girls often sing.
"""


def test_count_writes_the_pairs_of_a_data_set(place: Path) -> None:
    (place / "corpus.txt").write_text(CORPUS)
    out = place / "counts.csv"
    done = run("count", place / "corpus.txt", "--data", place / "verbs.jsonl", "--window", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    counts = {("boy", "sleeps"): 1, ("boys", "sleep"): 3, ("girl", "sings"): 2, ("girls", "sing"): 1}
    assert dict(read_counts(out).counts) == counts
    said = " ".join(done.stdout.split())
    assert "24 words; 4 of 4 pairs occur, 7 times in all, within 2 words." in said
    near = run("count", place / "corpus.txt", "--data", place / "verbs.jsonl")
    assert "3 of 4 pairs occur, 5 times in all, within 1 word. Not seen: girls sing." in " ".join(near.stdout.split())
    arguments = ["count", place / "corpus.txt", "--data", place / "verbs.jsonl"]
    assert "is there already" in refused(*arguments, "--out", out)
    assert "there is no folder" in refused(*arguments, "--out", place / "none" / "counts.csv")
    assert "window is 0" in refused(*arguments, "--window", 0)
    (place / "corpus.bin").write_bytes(b"one\n\0")
    assert "corpus.bin:2: a zero byte" in refused("count", place / "corpus.bin", "--data", place / "verbs.jsonl")


def test_suppress_relates_its_effect_to_frequency(place: Path) -> None:
    (place / "corpus.txt").write_text(CORPUS)
    out = place / "frequency"
    arguments = ["suppress", place / "causal", "--data", place / "verbs.jsonl", "--units", "0:3,1:5", "--controls", 3]
    done = run(*arguments, "--counts", place / "corpus.txt", "--window", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    result = FrequencyEffect.load(out / "frequency-effect-verbs")
    counts = dict(zip(zip(result.first, result.second, strict=True), result.counts.tolist(), strict=True))
    assert counts == {("boy", "sleeps"): 1, ("boys", "sleep"): 3, ("girl", "sings"): 2, ("girls", "sing"): 1}
    effect = UnitEffect.load(out / "effect-verbs")
    change = (effect.target[:, 1].double().log() - effect.target[:, 0].double().log()).tolist()
    by_pair = dict(zip([str(prompt.target) for prompt in effect.prompts], change, strict=True))
    assert result.change.tolist() == pytest.approx([by_pair[word] for word in result.second])
    manifest = json.loads((out / "manifest.json").read_text())["frequency"]["verbs"]
    assert manifest["finding"] == result.sentence()
    assert manifest["counts"]["window"] == 2
    assert len(manifest["counts"]["sha256"]) == 64
    assert " ".join(result.sentence().split()) in " ".join(done.stdout.split())
    assert pd.read_csv(out / "frequency-verbs.csv")["count"].tolist() == result.counts.tolist()
    assert "Effect of the edit against the frequency" in (out / "figures" / "frequency-verbs.html").read_text()
    again = frequency_effect(effect, read_counts_of(place), seed=0)
    assert again.summary()["rho"] == result.summary()["rho"]


def read_counts_of(place: Path):
    path = place / "table.csv"
    path.write_text("first,second,count\nboy,sleeps,1\nboys,sleep,3\ngirl,sings,2\ngirls,sing,1\n")
    return read_counts(path)


def test_counts_that_do_not_do_are_refused_before_the_edit(place: Path) -> None:
    (place / "corpus.txt").write_text(CORPUS)
    arguments = ["suppress", place / "causal", "--data", place / "verbs.jsonl", "--units", "0:3"]
    assert "Did you mean 'english'?" in refused(*arguments, "--counts", "englisch")
    assert "name the text by --counts" in refused(*arguments, "--window", 2)
    assert "leave the window out" in refused(*arguments, "--counts", "english", "--window", 2)
    few = refused(*arguments, "--counts", place / "corpus.txt")
    assert "holds 3 of the 4 pairs of cue and target, not 'girls sing'; 4 are needed" in few
    (place / "bad.csv").write_text("first,second,count\nboy,sleeps,many\n")
    assert "bad.csv:2: count is 'many'" in refused(*arguments, "--counts", place / "bad.csv")
