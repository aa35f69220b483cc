"""Figures show the numbers of the results that they are drawn from, and mark what is significant."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.localization.measures import concentration
from kn_lens.suppression.effect import UnitEffect
from kn_lens.suppression.frequency_effect import FrequencyEffect

N = 12


def effect(drop: float, controls: int = 4) -> UnitEffect:
    """An effect that divides the target's probability by ``drop`` and leaves one probe as it was."""
    before = torch.linspace(0.4, 0.6, N)
    target = torch.stack([before, before / drop, *[before] * controls], dim=1)
    steady = torch.full((N,), 0.1)
    probes = torch.stack([torch.stack([before, before / drop], 1), torch.stack([steady, steady], 1)], dim=2)
    top = torch.full((N, 2 + controls), 7)
    top[:, 1] = 3
    return UnitEffect(
        target=target,
        foil=torch.full_like(target, float("nan")),
        rival=torch.full_like(target, float("nan")),
        top=top,
        target_ids=torch.full((N,), 7),
        probe_probabilities=probes,
        probes=("Paris", "the"),
        units=(((1, 2),),) * N,
        site="mlp",
        factor=0.0,
        prompts=tuple(kn.Prompt(f"Prompt {index} is", target="Paris") for index in range(N)),
        settings={},
        provenance={},
    )


def test_probability_change_draws_the_papers_bar() -> None:
    figure = kn.plots.probability_change(effect(drop=4.0), "model").to_dict()
    bars = figure["data"][0]["y"]
    # (after − before) / smaller of both = (0.25 − 1) / 0.25 = −3, drawn at −log10(1 + 3)
    assert bars[0] == pytest.approx(-math.log10(4), abs=1e-5)
    assert bars[1] == pytest.approx(-math.log10(4), abs=1e-5)
    assert bars[2] == 0
    axis = figure["layout"]["yaxis"]
    ticks = dict(zip(axis["ticktext"], axis["tickvals"], strict=True))
    assert ticks["-3"] == pytest.approx(bars[0], abs=1e-5)
    assert ticks["0"] == 0


def test_significant_probes_are_red_and_starred() -> None:
    labels = kn.plots.probability_change(effect(drop=4.0)).to_dict()["layout"]["xaxis"]["ticktext"]
    assert "own target *" in labels[0]
    assert "color:" in labels[0]
    assert labels[2] == "the"


def test_the_marks_follow_the_test_that_is_asked_for() -> None:
    slight = effect(drop=1.05)  # too little for the independent test, plain for the paired one
    frame = slight.to_frame()
    assert frame["independent_p"][0] > 0.05 > frame["paired_p"][0]
    independent = kn.plots.probability_change(slight).to_dict()["layout"]
    paired = kn.plots.probability_change(slight, paired=True).to_dict()["layout"]
    assert independent["xaxis"]["ticktext"][0] == "own target"
    assert "*" in paired["xaxis"]["ticktext"][0]
    assert "paired t-test" in paired["title"]["text"]


def test_control_distribution_shows_before_edit_and_draws() -> None:
    figure = kn.plots.control_distribution(effect(drop=4.0, controls=6)).to_dict()
    draws, before, after = figure["data"]
    assert list(draws["x"]) == [1.0] * 6
    assert list(before["x"]) == [1.0, 1.0]
    assert list(after["x"]) == [0.0, 0.0]
    assert "6 draws" in draws["name"]


def test_layers_are_shares_of_each_data_set() -> None:
    units = {"facts": [(0, 1), (2, 3), (2, 4), (2, 3)], "grammar": [(1, 1)]}
    facts, grammar = kn.plots.layers_of_units(units, n_layers=3).to_dict()["data"]
    assert list(facts["y"]) == [0.25, 0.0, 0.75]
    assert list(grammar["y"]) == [0.0, 1.0, 0.0]
    assert facts["marker"]["color"] != grammar["marker"]["color"]


def test_concentration_curve_ends_at_everything() -> None:
    values = torch.rand(3, 2, 10, generator=torch.Generator().manual_seed(0))
    curve = concentration(values)
    (line,) = kn.plots.concentration_curves({"facts": curve}).to_dict()["data"]
    assert line["y"][-1] == pytest.approx(1.0)
    assert line["y"][0] == pytest.approx(float(curve.shares[:, 0].mean()))
    assert line["x"][-1] == 20


def test_measures_table_holds_every_cell() -> None:
    table = pd.DataFrame({"data": ["P36", "verbs"], "|KN|": [3.5, 2.25], "groups": [6, 5]})
    cells = kn.plots.measures_table(table).to_dict()["data"][0]["cells"]["values"]
    assert [list(column) for column in cells] == [["P36", "verbs"], ["3.5", "2.25"], [6, 5]]


def frequency(counts: list[int], first: list[str]) -> FrequencyEffect:
    n = len(counts)
    return FrequencyEffect(
        first=tuple(first),
        second=tuple(f"noun{index}" for index in range(n)),
        counts=torch.tensor(counts),
        changes=torch.arange(n, dtype=torch.float64)[:, None] / 10,
        prompts=torch.full((n,), 2),
        factor=0.0,
        source="/some/where/corpus.txt",
        settings={"seed": 0, "draws": 50, "confidence": 0.95, "counts": {}, "edit": {}},
        provenance={},
    )


def test_frequency_scatter_shows_every_pair_and_sets_the_unseen_apart() -> None:
    result = frequency([10, 0, 100, 1000, 5, 0], ["this", "this", "these", "these", "these", "this"])
    figure = kn.plots.frequency_scatter(result, "model").to_dict()
    points = {}
    for trace in figure["data"]:
        if trace["mode"] == "markers":
            for x, y, text in zip(trace["x"], trace["y"], trace["hovertext"], strict=True):
                points[round(y * 10)] = (x, trace["marker"]["symbol"], trace["marker"]["color"], text)
    assert sorted(points) == [0, 1, 2, 3, 4, 5]
    assert [points[index][0] for index in (0, 2, 3, 4)] == [10, 100, 1000, 5]
    assert all(points[index][0] < 5 and points[index][1] == "circle-open" for index in (1, 5))
    assert points[0][2] == points[1][2] == points[5][2] != points[2][2] == points[4][2]
    assert "<b>these noun3</b><br>count 1,000<br>change of log p +0.3 nats (2 prompts)" in points[3][3]
    means = {trace["hovertext"]: trace["y"][0] for trace in figure["data"] if trace["mode"] == "lines"}
    assert means == {
        "mean of the 2 unseen pairs: +0.3 nats": pytest.approx(0.3),
        "mean of the 2 rare pairs: +0.2 nats": pytest.approx(0.2),
        "mean of the 2 frequent pairs: +0.25 nats": pytest.approx(0.25),
    }
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert "corpus.txt" in figure["layout"]["xaxis"]["title"]["text"]
    assert "/some/where" not in str(figure["layout"])
    title = figure["layout"]["title"]["text"]
    assert "ρ = −0.20 [" in title  # ranks 2 3 4 1 and 1 2 3 4: 1 − 6 · 12 / 60
    assert "n = 4 pairs seen (2 unseen), 12 prompts" in title
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["count 0"]


def test_frequency_scatter_says_what_a_table_lacks_and_greys_the_eighth_word() -> None:
    result = frequency([-1, 1, 2, 3, 4, 5, 6, 7, 8, 9], list("aabcdefghi"))
    figure = kn.plots.frequency_scatter(result).to_dict()
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["not in the table"]
    shown = [trace for trace in figure["data"] if trace["mode"] == "markers" and trace["showlegend"]]
    assert [trace["name"] for trace in shown] == [f"{w} ({2 if w == 'a' else 1})" for w in "abcdefg"] + [
        "2 other words (2)"
    ]
    assert len({trace["marker"]["color"] for trace in shown}) == 8
    assert any("not in the table" in text for trace in figure["data"] for text in trace["hovertext"])
    everywhere = kn.plots.frequency_scatter(frequency([1, 2, 3, 4], list("abab"))).to_dict()
    assert not everywhere["layout"].get("annotations")
