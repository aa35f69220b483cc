"""What the pages on batches and clusters show works as it is written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from kn_lens.batches.starters import STARTERS
from kn_lens.cli import app

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("batches", "clusters")}


def block(page: str, kind: str) -> str:
    """The only block of a kind."""
    found = re.findall(rf"```{kind}\n(.*?)```", PAGES[page], flags=re.DOTALL)
    assert len(found) == 1
    return found[0]


def test_prompts_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text(block("batches", "jsonl"), encoding="utf-8")
    (tmp_path / "own.yaml").write_text(block("batches", "yaml"), encoding="utf-8")
    names: dict[str, Any] = {}
    exec(block("batches", "python"), names)
    assert names["done"].folder == Path("runs/own")
    assert names["done"].status().complete
    states, prompts = names["states"], names["prompts"]
    described = re.findall(r"^\| (`data`.*?) \|", PAGES["batches"], flags=re.MULTILINE)
    described += re.findall(
        r"^\| (`(?:prompt|position|layer|probability)`.*?) \|", PAGES["batches"], flags=re.MULTILINE
    )
    assert list(states.columns) == re.findall(r"`(\w+)`", " ".join(described))
    assert states.groupby("stream")["prompt"].nunique().to_dict() == {"resid": 3, "mlp": 3, "attn": 3}
    wrong = prompts[prompts["state"] == "left out"]
    assert set(wrong["text"]) == {"The capital of Italy is"}
    assert set(wrong["reason"]) == {"answered wrongly"}
    assert set(wrong["source"]) == {"prompts.jsonl:4"}
    assert [one.reason for one in names["trace"].dropped] == ["no cue", "answered wrongly"]
    assert {"run.yaml", "manifest.json", "prompts.parquet", "dropped.parquet", "parts", "log.txt", "lock"} == {
        path.name for path in (tmp_path / "runs" / "own").iterdir()
    }
    assert names["trace"].average().to_string() in capsys.readouterr().out


def test_every_example_is_named() -> None:
    listed = re.search(r"The first lists the examples: (.*?)\.", PAGES["batches"], flags=re.DOTALL)
    assert listed is not None
    assert listed[1].replace("\n", " ").split(", ") == list(STARTERS)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_option_is_known(page: str) -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    shown = re.findall(
        r"kn-lens ([a-z]+) ?([^`\"\n]*)", "\n".join(re.findall(r"^    .*$", PAGES[page], flags=re.MULTILINE))
    )
    assert len(shown) >= 4
    for name, rest in shown:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in shlex.split(rest) if word.startswith("--")} <= known, name


def test_the_cloud_file_suits_ray() -> None:
    pytest.importorskip("ray")
    import yaml
    from ray.autoscaler._private.util import fillout_defaults, validate_config

    described = fillout_defaults(yaml.safe_load(block("clusters", "yaml")))
    validate_config(described)
    assert described["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert described["available_node_types"]["gpu"]["max_workers"] == described["max_workers"]
