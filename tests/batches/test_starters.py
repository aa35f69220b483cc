"""Starters: each is a run file, and the defaults that it states are those that there are."""

from __future__ import annotations

import re

import pytest

from kn_lens.batches.config import DataEntry, RunConfig
from kn_lens.batches.methods import METHODS
from kn_lens.batches.run_file import read_run_file
from kn_lens.batches.starters import STARTERS, starter
from kn_lens.errors import SettingsError


def read(folder, text: str) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return read_run_file(path)


def uncommented(text: str) -> str:
    """All settings that stand in comments, as settings; the comments above the model are prose."""
    head, body = text.split("\nmodel:")
    return f"{head}\nmodel:" + re.sub(r"^( *)# (\w+:(?: |$))", r"\1\2", body, flags=re.MULTILINE)


@pytest.mark.parametrize("name", STARTERS)
def test_defaults_in_comments_are_the_defaults(tmp_path, name):
    config = read(tmp_path, starter(name))
    assert read(tmp_path, uncommented(starter(name))) == config


@pytest.mark.parametrize("name", STARTERS)
def test_every_setting_is_named(tmp_path, name):
    text = starter(name)
    config = read(tmp_path, text)
    said = set(re.findall(r"^ *(?:# |- )?(\w+):", text.split("\nmodel:")[1], re.MULTILINE))
    known = {*RunConfig.model_fields, *METHODS[config.method].Settings.model_fields} - {"model"}
    known |= {"name", "groups"} if name == "editing" else set(DataEntry.model_fields)
    assert said == known


def test_each_says_what_it_is_for_in_its_first_line():
    assert list(STARTERS) == [
        "tracing",
        "knockout",
        "patching",
        "attribution",
        "search",
        "suppression",
        "ablation",
        "editing",
    ]
    for name, about in STARTERS.items():
        assert starter(name).startswith(f"# {name}: {about}\n")
        assert f"kn-lens run {name}.yaml" in starter(name)
        assert all(len(line) <= 132 for line in starter(name).splitlines())


def test_an_unknown_name_is_refused_with_near_ones():
    with pytest.raises(
        SettingsError, match=r"^no example 'traceing'. Did you mean 'tracing' or 'patching'\? Examples: "
    ):
        starter("traceing")
