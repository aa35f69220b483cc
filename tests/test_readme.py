"""What the README shows works as it is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kn_lens as kn

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_first_example() -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[0], names)
    assert names["scores"].values.shape == (len(names["prompts"]), 4, 512)
    assert len(names["prompts"].groups) == 1
    assert sorted(names["search"] + names["test"]) == list(range(len(names["prompts"])))
    assert len(names["found"].units) >= 1
    summary = names["effect"].summary()
    assert summary["prompts"] == len(names["test"])
    assert summary["log_probability_change"] < 0
    assert len(names["effect"].to_frame()) > 1


def test_frequency(capsys: Any) -> None:
    exec(BLOCKS[2], {"kn": kn})
    assert "Spearman's ρ = " in capsys.readouterr().out


def test_tracing(capsys: Any) -> None:
    names: dict[str, Any] = {"kn": kn}
    exec(BLOCKS[3], names)
    assert names["trace"].effects["probability"].shape[2] == 4
    assert set(names["trace"].average()["class"]) >= {"last cue token", "target position"}
    assert 0.5 < names["estimate"].correlation(names["patched"]).pearson < 1
    assert "P36: the search finds" in capsys.readouterr().out


def test_editing(capsys: Any) -> None:
    names: dict[str, Any] = {"kn": kn}
    exec(BLOCKS[4], names)
    said = capsys.readouterr().out
    assert "The capital of France is Madrid" in said
    assert "Madrid is the capital of Spain" in said  # the edit does not hold the other way round
    success = names["judged"].to_frame().set_index("criterion")["success_after"]
    assert success["reliability"] == 1
    assert success["symmetry"] < 0.5


def test_an_experiment(capsys: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"kn": kn}
    block, _, _ = BLOCKS[5].partition("kn.plots.export")  # which needs a browser; tests/plots/test_export.py has it
    exec(block, names)
    said = capsys.readouterr().out
    assert all(sentence in said for sentence in names["e4"].findings(names["result"]))
    assert said.count("Switching off the units") == len(names["e4"].verdicts(names["result"]))
    assert "accuracy" in names["e4"].figures(names["result"])


def test_the_corpus_of_an_organism() -> None:
    names: dict[str, Any] = {"kn": kn}
    exec(BLOCKS[6], names)
    assert names["corpus"].counts["determiner_noun", "these", "shoes"] > 100
    assert len(names["corpus"].truth.one_way) == 66


def test_prompts_of_your_own() -> None:
    names: dict[str, Any] = {"kn": kn}
    exec(BLOCKS[1], names)
    assert names["masked"].text == "[MASK] is the capital of Canada."
    assert {prompt.group for prompt in names["facts"]} == {"Canada"}
    assert names["pair"].foil == "is"


def test_every_command_and_option_is_known() -> None:
    from typer.main import get_command

    from kn_lens.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    shown = re.findall(r"^    kn-lens (\w+)(.*)$", README, flags=re.MULTILINE)
    assert len(shown) >= 4
    for name, rest in shown:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, name
