"""Parts of a report: words, tables and figures as a page carries them."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
import pytest

from kn_lens.experiments.verdicts import Verdict
from kn_lens.report import words
from kn_lens.report.figures import marked, page_figure, plain
from kn_lens.report.tables import page_table
from tests.report.conftest import CLAIMS, ODD


def test_table_is_rounded_for_the_eye() -> None:
    table = page_table(ODD, id="x", name="odd", file="odd.csv")
    assert table.numeric == [False, True, True, False, False]
    assert [row[1] for row in table.shown] == ["0.3", "1e-07", "–", "∞", "-1,235"]
    assert [row[2] for row in table.shown] == ["3", "20", "100", "2", "1"]
    assert [row[0] for row in table.shown][3] == "–"
    assert [row[4] for row in table.shown][:2] == ["yes", "no"]
    assert table.rows[0][1] == 0.1 + 0.2
    long = page_table(pd.DataFrame({"n": range(120)}), id="x", name="n", file="n.csv", most_rows=100)
    assert (len(long.first), len(long.rows), long.total) == (50, 100, 120)


def test_titles_lose_tags_and_keep_tokens() -> None:
    text = "<b>After <s> &amp; &lt;/s&gt;</b><br><span style='color:#555'>seed 0</span>"
    assert plain(text) == ["After <s> & </s>", "seed 0"]
    assert marked("<b>a</b> &lt;s&gt;<br><script>") == "<b>a</b> &lt;s&gt;<br>&lt;script&gt;"


def test_a_table_of_plotly_becomes_a_table() -> None:
    figure = go.Figure(
        go.Table(
            header={"values": ["<b>what</b>", "<b>P36</b><br>heads"]},
            cells={"values": [["τ", "R₁²"], ["0.5", "&lt;s&gt;"]], "align": ["left", "right"]},
        )
    )
    found = page_figure(figure, id="x", name="the name")
    assert found.title == "the name"
    assert found.sheet is not None
    assert found.sheet.heads == ("<b>what</b>", "<b>P36</b><br>heads")
    assert found.sheet.rows == (("τ", "0.5"), ("R₁²", "&lt;s&gt;"))
    assert found.sheet.right == (False, True)


@pytest.mark.parametrize(
    ("held", "mark", "word"),
    [
        ((True, True), "✓", "as the paper says"),
        ((True, False), "◐", "partly as the paper says"),
        ((False, None), "✗", "not as the paper says"),
        ((None,), "?", "cannot be told"),
        ((), "–", "not asked"),
    ],
)
def test_standing_of_a_test(held: tuple[bool | None, ...], mark: str, word: str) -> None:
    verdicts = [Verdict(experiment="E1", test=1, claim=CLAIMS[0], holds=holds, measured="", rule="") for holds in held]
    found = words.standing(verdicts)
    assert (found.mark, found.word) == (mark, word)


def test_words_of_times_and_dates() -> None:
    assert [words.duration(each) for each in (None, 0.2, 59.4, 60, 125, 7800)] == [
        "unknown",
        "under 1 s",
        "59 s",
        "1 min",
        "2 min 5 s",
        "2 h 10 min",
    ]
    assert words.day("2026-01-31T09:05+00:00") == "31 January 2026, 09:05"
    assert words.day("some day") == "some day"


def test_figures_are_fit_for_narrow_screens_and_do_not_warn() -> None:
    figure = go.Figure(go.Scatter(x=[1, 2], y=[0, 1]))
    figure.update_layout(
        width=900, height=400, margin_t=100, yaxis={"matches": "y"}, title_text="<b>T</b><br>one<br>two"
    )
    found = page_figure(figure, id="x", name="n")
    assert found.data is not None
    layout = found.data["layout"]
    assert "width" not in layout
    assert "matches" not in layout["yaxis"]
    assert (found.title, found.lines) == ("T", ("one", "two"))
    assert 100 - layout["margin"]["t"] == 400 - layout["height"]  # the drawing itself keeps its size
    assert found.least_width == 0
    figure.update_yaxes(tickvals=[0], ticktext=["a label of more than twenty-four letters"])
    assert page_figure(figure, id="x", name="n").least_width > 500
