"""The report and the comparison as HTML: whole, safe, and with every number of their content."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from kn_lens.errors import OutputError
from kn_lens.experiments.verdicts import TESTS, THESIS
from kn_lens.report import page as page_module
from kn_lens.report import words
from kn_lens.report.comparison import claims, differences, write_comparison
from kn_lens.report.content import Section
from kn_lens.report.figures import plain
from kn_lens.report.page import LARGEST, embedded, write_report
from tests.report.conftest import Pages
from tests.report.parsed import Parsed


@pytest.fixture(scope="module")
def report(pages: Pages) -> Parsed:
    return Parsed(pages.report)


@pytest.fixture(scope="module")
def comparison(pages: Pages) -> Parsed:
    return Parsed(pages.comparison)


@pytest.mark.parametrize("which", ["report", "comparison"])
def test_one_file_of_bounded_size_that_asks_for_nothing(which: str, pages: Pages, request: Any) -> None:
    parsed: Parsed = request.getfixturevalue(which)
    assert getattr(pages, which).stat().st_size <= LARGEST
    bundles = [script for script in parsed.bare_scripts if len(script) > 200_000]
    assert len(bundles) == 2  # Plotly's and circuitsvis', each once
    assert sum("plotly.js v" in script[:200] for script in bundles) == 1
    assert sum('"use strict";var CircuitsVis' in script for script in bundles) == 1
    asked = [found[name] for _, found in parsed.elements for name in ("src", "href", "data", "action") if name in found]
    assert all(address.startswith(("#", "data:")) for address in asked)
    style = re.search(r"<style>(.*?)</style>", getattr(pages, which).read_text(encoding="utf-8"), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


@pytest.mark.parametrize("which", ["report", "comparison"])
def test_ids_are_unique_and_links_lead_somewhere(which: str, request: Any) -> None:
    parsed: Parsed = request.getfixturevalue(which)
    ids = parsed.ids()
    assert len(ids) == len(set(ids))
    for _, found in parsed.elements:
        if found.get("href", "").startswith("#"):
            assert found["href"][1:] in ids
        for name in ("aria-labelledby", "aria-controls", "data-figure", "data-circuits", "data-table"):
            if name in found:
                assert found[name] in ids


@pytest.mark.parametrize("which", ["report", "comparison"])
def test_headings_do_not_skip_a_level(which: str, request: Any) -> None:
    levels = [int(tag[1]) for tag, _ in request.getfixturevalue(which).elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_summary_says_thesis_tests_verdicts(report: Parsed, pages: Pages) -> None:
    content = pages.contents[0]
    summary = report.shown("summary")
    assert THESIS in summary
    for test in TESTS:
        card = report.shown(f"test-{test.number}")
        held = [verdict for verdict in content.verdicts if verdict.test == test.number]
        assert test.question in card
        assert test.paper in card
        assert f"{content.model}: {words.standing(held).word}" in card
        for verdict in held:
            mark, word, _ = words.MARKS[verdict.holds]
            assert f"{mark} {word} Evidence: {verdict.experiment} {verdict.claim} {verdict.brief}" in card
    assert content.sections[-1].findings[0] in summary
    assert "not asked" in report.shown("test-3")


def test_every_state_is_said_with_its_reason(report: Parsed) -> None:
    assert "This run is in progress, or was stopped: 5 of 6 experiments are done." in report.shown("main")
    for name, said in {
        "E2": "It could not be run: P36: <no> prompt can be asked.",
        "E3": "Its saved result is damaged: E3/result is missing. “kn-lens reproduce … --redo E3” computes it again.",
        "E7": "Not run on this model: ROME is for causal models.",
        "E8": "Not run yet.",
    }.items():
        assert said in report.shown(name)
        assert f"{name} takes no part. {said}" in report.shown("summary")


def test_findings_figures_tables_settings_are_in_place(report: Parsed, pages: Pages) -> None:
    for section in pages.contents[0].sections:
        shown = report.shown(section.name)
        assert section.title in shown
        for sentence in section.findings:
            assert " ".join(sentence.split()) in shown
        for name in section.figures:
            assert f"{section.name}-{name}" in report.ids()
        for name in section.tables:
            assert f"{section.name}-table-{name}" in report.ids()
        for verdict in section.verdicts:
            assert f"{verdict.claim} {verdict.measured} {verdict.rule}" in shown
    assert "took 1 min 1 s" in report.shown("E1")
    assert "nested · steps" in report.shown("E1")
    assert pages.contents[0].provenance["weights_hash"] in report.shown("provenance")
    assert "kn-lens x '<tiny-causal>'" in report.shown("provenance")


def test_tokens_cannot_break_out(report: Parsed, pages: Pages) -> None:
    assert "A token <s> ends in </script> & stays." in report.shown("E1")
    assert "P36: The <s> of 0 & </script> is" in report.shown("E1")
    assert all(found.get("onclick") is None for _, found in report.elements)
    assert not [tag for tag, _ in report.elements if tag == "s"]
    assert json.loads(report.scripts["E1-table-odd-data"])["rows"][2][0] == "</script><script>alert(1)</script>"
    assert "alert(1)" not in "".join(report.bare_scripts)
    assert json.loads(embedded({"a": "</script>&<!--"})) == {"a": "</script>&<!--"}
    assert "<" not in embedded("</script><!--")


def test_dropped_prompts_by_reason(report: Parsed) -> None:
    shown = report.shown("E1")
    assert "60: too many tokens P36: 60" in shown
    assert "1: no answer P101: 1" in shown
    assert "and 10 more" in shown
    assert "61 prompts left out" in " ".join(report.text[""].split())


def test_table_data_equal_the_frame(report: Parsed, pages: Pages) -> None:
    for section in pages.contents[0].sections:
        for name, frame in section.tables.items():
            data = json.loads(report.scripts[f"{section.name}-table-{name}-data"])
            assert data["columns"] == [str(column) for column in frame.columns]
            assert len(data["rows"]) == len(frame)
            for at, column in enumerate(frame.columns):
                cells = [row[at] for row in data["rows"]]
                if data["numeric"][at]:
                    numbers = [math.nan if cell is None else float(cell) for cell in cells]
                    np.testing.assert_array_equal(numbers, frame[column].to_numpy(float))
                else:
                    assert [str(cell) for cell in cells] == [
                        json.dumps(value) if isinstance(value, list) else str(None if value != value else value)
                        for value in frame[column]
                    ]


def test_figure_data_are_those_of_the_figure(report: Parsed, pages: Pages) -> None:
    figure = pages.contents[0].sections[-1].figures["accuracy"]
    assert isinstance(figure, go.Figure)
    data = json.loads(report.scripts["E9-accuracy-data"])
    assert data["data"] == json.loads(figure.to_json() or "")["data"]
    assert "title" not in data["layout"]
    assert "template" not in data["layout"]
    template = json.loads(report.scripts["figure-template"])
    assert template == json.loads(figure.to_json() or "")["layout"]["template"]
    title = figure.to_dict()["layout"]["title"]["text"]
    shown = report.shown("E9-accuracy")
    for line in plain(title):
        assert line in shown
    labels = [found["aria-label"] for _, found in report.elements if found.get("data-figure") == "E9-accuracy-data"]
    assert labels[0].startswith(plain(title)[0])


def test_comparison_holds_each_models_verdict(comparison: Parsed, pages: Pages) -> None:
    shown = comparison.shown("summary")
    for test in TESTS:
        for row in claims(pages.contents, test.number):
            assert row.claim in shown
            for content, cell in zip(pages.contents, row.cells, strict=True):
                assert cell in content.verdicts
                assert cell is not None
                assert f"{words.MARKS[cell.holds][1]} {cell.brief}" in shown
    for at, content in enumerate(pages.contents, start=1):
        assert content.sections[-1].findings[0] in comparison.shown(f"E9-panel-{at}")
        assert f"E9-tab-{at}" in comparison.ids()


def test_merged_table_has_a_model_column(comparison: Parsed, pages: Pages) -> None:
    data = json.loads(comparison.scripts["E9-table-sites-all-data"])
    assert data["columns"][0] == "model"
    assert [row[0] for row in data["rows"]] == [
        content.model for content in pages.contents for _ in range(len(content.sections[-1].tables["sites"]))
    ]
    at = data["columns"].index("|KN|")
    assert [row[at] for row in data["rows"]] == [
        value for content in pages.contents for value in content.sections[-1].tables["sites"]["|KN|"]
    ]


def test_a_claim_that_one_model_was_not_asked(pages: Pages, tmp_path: Path) -> None:
    first, second = pages.contents
    bare = replace(
        second, size="full", settings={"seed": 3, "dtype": "float32"}, sections=second.sections[1:2], finished=True
    )
    rows = claims([first, bare], 2)
    assert [row.cells[1] for row in rows] == [None, None]
    assert differences([first, bare]) == ["size (small, full)", "seed (0, 3)"]
    parsed = Parsed(write_comparison([first, bare], tmp_path / "c.html"))
    assert "These runs differ in more than the model: size (small, full); seed (0, 3)." in parsed.shown("main")
    assert "Not asked of this model." in parsed.shown("E9-panel-2")
    assert "The run of tiny-causal is in progress, or was stopped." in parsed.shown("main")
    assert "The run of tiny-masked is in progress, or was stopped." not in parsed.shown("main")


def test_two_runs_of_one_model_are_told_apart(pages: Pages, tmp_path: Path) -> None:
    first = replace(pages.contents[0], sections=pages.contents[0].sections[1:2])
    parsed = Parsed(write_comparison([first, replace(first, settings={"seed": 1})], tmp_path / "c.html"))
    assert parsed.shown("E2-tab-1") == "tiny-causal, small, seed 0"
    assert parsed.shown("E2-tab-2") == "tiny-causal, small, seed 1"


def test_without_circuits_their_script_stays_away(pages: Pages, tmp_path: Path) -> None:
    content = replace(pages.contents[0], sections=pages.contents[0].sections[-1:], finished=True)
    parsed = Parsed(write_report(content, tmp_path / "deep" / "report.html"))
    assert len([script for script in parsed.bare_scripts if len(script) > 200_000]) == 1
    assert "in progress" not in parsed.shown("main")


def test_a_page_that_is_too_large_gets_shorter_tables(
    pages: Pages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = replace(pages.contents[0], sections=[_section(pd.DataFrame({"n": range(4000)}))])
    whole = write_report(content, tmp_path / "a.html").stat().st_size
    monkeypatch.setattr(page_module, "LARGEST", whole - 1)
    parsed = Parsed(write_report(content, tmp_path / "b.html"))
    assert len(json.loads(parsed.scripts["E5-table-n-data"])["rows"]) == 500
    assert "This page carries the first 500 of 4000 rows" in parsed.shown("E5")


def test_a_former_page_stays_until_the_new_one_is_whole(pages: Pages, tmp_path: Path) -> None:
    content = replace(pages.contents[0], sections=[_section(pd.DataFrame({"n": [1]}))])
    path = write_report(content, tmp_path / "report.html")
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        write_report(replace(content, sections=[None]), path)  # type: ignore[list-item]
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(OutputError, match="cannot write"):
        write_report(content, path / "below" / "report.html")


def _section(frame: pd.DataFrame) -> Section:
    return Section(name="E5", title="T?", about="A.", paper="P.", state="done", tables={"n": frame})


def test_many_findings_are_folded_and_none_is_lost(pages: Pages, tmp_path: Path) -> None:
    said = [f"Finding number {at}." for at in range(12)]
    section = replace(_section(pd.DataFrame({"n": [1]})), findings=said)
    parsed = Parsed(write_report(replace(pages.contents[0], sections=[section]), tmp_path / "r.html"))
    shown = parsed.shown("E5")
    assert [shown.count(sentence) for sentence in said] == [1] * 12
    assert shown.index(said[5]) < shown.index("6 more findings") < shown.index(said[6])
