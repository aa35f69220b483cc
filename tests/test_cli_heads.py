"""``kn-lens heads`` and ``suppress --ablation``, each in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from kn_lens.localization.curve import AblationCurve
from kn_lens.studies.site_comparison import SiteComparison
from tests.test_cli import refused, run


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, and what it said."""
    out = tmp_path_factory.mktemp("heads") / "out"
    data = ("--data", "P36", "--data", "subject_verb_agreement")
    draw = ("--groups", 2, "--prompts", 4, "--controls", 5, "--seed", 3)
    done = run("heads", "tiny-causal", *data, *draw, "--ablation", "resample", "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_heads_writes_what_it_shows(compared: tuple[Path, str]) -> None:
    out, said = compared
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["command"] == "heads"
    wanted = {"groups": 2, "per_group": 4, "controls": 5, "seed": 3, "ablation": "resample", "positions": "target"}
    assert wanted.items() <= manifest["settings"].items()
    assert set(manifest["data"]) == {"P36", "subject_verb_agreement"}
    assert len(manifest["provenance"]["weights_hash"]) == 32
    assert manifest["findings"]
    flat = " ".join(said.split())
    assert all(" ".join(sentence.split()) in flat for sentence in manifest["findings"])
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == written - {"manifest.json"}
    names = ["accuracy", "curves", "heads", "layers", "table"]
    assert [figure.stem for figure in sorted((out / "figures").glob("*.html"))] == names
    sites = pd.read_parquet(out / "sites.parquet")
    assert sites["site"].tolist() == ["mlp", "head"] * 2
    curve = AblationCurve.load(out / "P36-head" / "curve")
    table = pd.read_parquet(out / "curves.parquet").query("data == 'P36' and site == 'head'")
    assert table["flipped"].tolist() == pytest.approx(curve.to_frame()["flipped"].tolist())
    assert curve.settings["ablation"] == "resample"
    assert len(pd.read_parquet(out / "units.parquet")) > 0
    assert SiteComparison.load(out).findings() == manifest["findings"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ablation", "men"), "no ablation 'men'. Did you mean 'mean'?"),
        (("--site", "heads"), "no site 'heads'. Did you mean 'head'?"),
        (("--site", "head", "--site", "head"), "the site 'head' is named twice"),
        (("--prompts", 1), "1 prompt of each group cannot be both searched and tested"),
        (("--positions", "cues"), "no positions 'cues'"),
        (("--controls", 0), "controls is 0; give at least 1 draw"),
        (("--groups", 1, "--ablation", "mean"), "which in a single group have the same answer: draw 2 groups or more"),
    ],
)
def test_heads_refuses(arguments: tuple[object, ...], words: str) -> None:
    assert words in refused("heads", "no-such-model", "--data", "P36", *arguments)


def test_heads_refuses_a_full_folder(compared: tuple[Path, str]) -> None:
    assert "is not empty" in refused("heads", "no-such-model", "--data", "P36", "--out", compared[0])


def test_suppress_takes_an_ablation(tmp_path: Path) -> None:
    arguments = ("suppress", "tiny-causal", "--data", "P36", "--units", "0:1,0:3", "--site", "head", "--controls", 3)
    draw = ("--groups", 2, "--prompts", 3)
    done = run(*arguments, *draw, "--ablation", "mean", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "2.0 units set to their mean" in done.stdout
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["ablation"] == "mean"
    said = refused(*arguments, *draw, "--ablation", "mean", "--factor", 2)
    assert "ablation='mean' sets units to a value and has no use for factor=2" in said
    said = refused(*arguments, "--groups", 1, "--prompts", 1, "--ablation", "resample")
    assert "there is a single one" in said
