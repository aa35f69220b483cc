"""``kn-lens rome``: what it prints is what it writes, and is what the model with the edit says."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.editing.rank_one import RankOneEdit
from kn_lens.errors import DataError, ModelError, PromptError, SettingsError
from kn_lens.prompts.fact import Fact
from kn_lens.scoring import target_distribution
from tests.test_cli import refused
from tests.test_cli_trace import command, manifest_of

CAPITAL = ("rome", "tiny-causal", "--prompt", "The capital of {} is", "--subject", "France")
PARAPHRASES = ("The government of {} sits in the capital,", "The capital city of {} is called")


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def edited(tmp_path_factory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("rome") / "run"
    wordings = [part for text in PARAPHRASES for part in ("--paraphrase", text)]
    return command(*CAPITAL, "--new", "Rome", *wordings, "--out", out), out


def test_rome_writes_what_it_shows(edited, organism) -> None:
    said, out = edited
    manifest = manifest_of(out)
    assert manifest["command"] == "rome"
    assert manifest["fact"]["old"] == "Paris"
    assert manifest["old answer"] == "the model's own"
    assert manifest["inverse questions"] == "P1376"
    assert "Paris is the model's own answer" in said
    assert all(flat(sentence) in flat(said) for sentence in manifest["findings"])
    edit = RankOneEdit.load(out / manifest["edit"])
    losses = pd.read_csv(out / "losses.csv")
    assert losses["loss"].tolist() == pytest.approx(edit.losses.tolist())
    for value in (edit.norm, float(edit.losses[0]), float(edit.losses[-1])):
        assert f"{value:.3g}" in said
    assert {path.stem for path in (out / "figures").glob("*.html")} == {"generations", "losses"}


def test_the_answers_are_those_of_the_model_with_the_saved_edit(edited, organism) -> None:
    said, out = edited
    model = organism("tiny-causal")
    edit = RankOneEdit.load(out / "edit")
    asked = pd.read_parquet(out / "asked.parquet")
    answers = pd.read_parquet(out / "answers.parquet")
    kinds = ["prompt", *["paraphrase"] * 2, *["inverse, new answer"] * 3, *["inverse, old answer"] * 3]
    assert asked["kind"].tolist() == kinds
    assert asked["answer"].tolist() == ["Rome"] * 3 + ["France"] * 6
    assert {row.question.split(" is the")[0] for row in asked.itertuples() if row.kind == kinds[3]} >= {"Rome"}
    batch = kn.PromptBatch.from_prompts(
        model, [kn.Prompt(row.question, target=row.answer) for row in asked.itertuples()]
    )

    def check(when: str) -> None:
        found = target_distribution(model, batch)
        wanted = found.gather(1, batch.target_ids[:, None])[:, 0].tolist()
        assert asked[f"p_{when}"].tolist() == pytest.approx(wanted, rel=1e-3)
        assert asked[f"given_{when}"].tolist() == (found.argmax(-1) == batch.target_ids).tolist()
        for question, shares in zip(batch.prompts, found, strict=True):
            rows = answers[(answers["question"] == question.text) & (answers["when"] == when)]
            values, tokens = shares.topk(5)
            assert rows["answer"].tolist() == [batch.decode(token) for token in tokens.tolist()]
            assert rows["probability"].tolist() == pytest.approx(values.tolist(), abs=1e-4)
            assert f"{rows['answer'].iloc[0]} {100 * rows['probability'].iloc[0]:.1f} %" in said

    check("before")
    with edit.applied(model):
        check("after")
        written = kn.generate(model, ["The capital of France is", "France"], tokens=30)
    table = pd.read_parquet(out / "written.parquet")
    assert table["after"].tolist() == written
    assert table["before"].iloc[0].startswith("The capital of France is Paris")
    assert table["after"].iloc[0].startswith("The capital of France is Rome")


def test_inverse_questions_as_given_or_none() -> None:
    said = command(*CAPITAL, "--new", "Rome", "--old", "Paris", "--inverse", "{} is the capital of")
    assert "Inverse questions, as given" in said
    assert "Paris is the capital of" in said
    assert "model's own answer" not in said
    other = ("rome", "tiny-causal", "--prompt", "The ambassador of {} lives in", "--subject", "France", "--new", "Rome")
    without = command(*other, "--old", "Berlin")
    assert "No inverse question" in without
    assert "Inverse questions" not in without
    unknown = command(*other, "--old", "Berlin", "--inverse", "Atlantis is ruled from {} by")
    assert "Questions: left out 2 prompts: word unknown to the model (2)" in unknown
    assert "No inverse question: the model can be asked none of them, for the reasons above." in unknown
    assert "no template of a bundled relation" not in unknown


def test_the_settings_reach_the_edit(tmp_path) -> None:
    (tmp_path / "text.txt").write_text("The capital of France is Paris.\n" * 3)
    options = ("--layer", 2, "--steps", 3, "--lr", 0.25, "--weight-decay", 0.5, "--clamp", 2, "--kl-factor", 0.5)
    covariance = ("--covariance", tmp_path / "text.txt", "--mixed-key", "--seed", 3)
    command(*CAPITAL, "--new", "Rome", *options, *covariance, "--out", tmp_path / "out")
    edit = RankOneEdit.load(tmp_path / "out" / "edit")
    wanted = {"steps": 3, "lr": 0.25, "weight_decay": 0.5, "clamp": 2.0, "kl_factor": 0.5, "mixed_key": True, "seed": 3}
    assert wanted.items() <= edit.settings.items()
    assert edit.layer == 2
    assert edit.settings["covariance"].startswith("text.txt, ")
    assert "ridge" in edit.settings["covariance"]  # three short lines make a singular covariance: said, and mended
    command(*CAPITAL, "--new", "Rome", "--site", "attn", "--layer", "auto", "--steps", 2, "--out", tmp_path / "attn")
    assert RankOneEdit.load(tmp_path / "attn" / "edit").site == "attn"


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("--new", "Paris"), PromptError, "answers 'The capital of France is' with 'Paris' already"),
        (("--new", "Rome", "--old", "Rome"), PromptError, "is the old one, 'Rome'"),
        (("--new", " "), PromptError, "the new answer to 'The capital of France is' is empty"),
        (("--new", "Atlantis"), PromptError, "holds 'Atlantis', unknown to tiny-causal"),
        (("--new", "Rome", "--layer", "4"), ModelError, "tiny-causal has layers 0–3, and no layer 4"),
        (("--new", "Rome", "--layer", "first"), SettingsError, "write the number of a layer, or auto"),
        (("--new", "Rome", "--site", "mpl"), SettingsError, "no site 'mpl'. Did you mean 'mlp'?"),
        (("--new", "Rome", "--steps", "0"), SettingsError, "steps is 0; it must be at least 2"),
        (("--new", "Rome", "--lr", "0"), SettingsError, "lr is 0; it must be above 0"),
        (("--new", "Rome", "--lr", "inf"), ModelError, "the loss is nan at step 1; the model is left as it was"),
        (("--new", "Rome", "--kl-factor", "-1"), SettingsError, "the KL factor is -1"),
        (("--new", "Rome", "--covariance", "sefl"), DataError, "no covariance 'sefl'. Did you mean 'self'?"),
        (("--new", "Rome", "--inverse", "Who is it"), PromptError, "'Rome' is missing from 'Who is it'"),
        (("--new", "Rome", "--paraphrase", "It is"), PromptError, "'France' is missing from 'It is'"),
    ],
)
def test_edits_that_cannot_be_made_are_refused(arguments, kind, words, tmp_path) -> None:
    with pytest.raises(kind) as error:
        command(*CAPITAL, *arguments, "--out", tmp_path / "out")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_rome_refuses_in_one_line(tmp_path, organism) -> None:
    question = ("--prompt", "The capital of {} is", "--subject", "France", "--new", "Rome")
    masked = refused("rome", "tiny-masked", *question, "--out", tmp_path / "out")
    assert "is a masked model: ROME writes" in masked
    assert "edit its neurons instead" in masked
    with pytest.raises(PromptError, match="the subject 'France' is missing from 'The capital is'"):
        command("rome", "no-such-model", "--prompt", "The capital is", *question[2:])
    kn.covariance_of(organism("tiny-causal"), "self", layer=2, tokens=200, progress=False).save(tmp_path / "covariance")
    with pytest.raises(ModelError, match=r"this covariance is of layer 2 .* and the edit is of layer 1"):
        command(*CAPITAL, "--new", "Rome", "--covariance", tmp_path / "covariance")
    assert [path.name for path in tmp_path.iterdir()] == ["covariance"]


def test_the_edit_of_the_command_is_that_of_the_package(edited, organism) -> None:
    _, out = edited
    fact = Fact("The capital of {} is", "France", "Rome", old="Paris", paraphrases=PARAPHRASES)
    direct = kn.rome(organism("tiny-causal"), fact)
    saved = RankOneEdit.load(out / "edit")
    assert saved.fact == fact
    assert torch.allclose(saved.left, direct.left, atol=1e-6)
    assert torch.allclose(saved.right, direct.right, atol=1e-4)
