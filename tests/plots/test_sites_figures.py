"""Figures of the comparison of sites and the map of heads show the numbers that they are given."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.plots.style import BLUE, VERMILLION
from kn_lens.suppression.effect import UnitEffect
from tests.localization.test_curve import made


def test_head_map_is_centered_on_zero() -> None:
    values = torch.tensor([[0.1, -0.4], [0.2, float("nan")], [0.0, 0.3]])
    figure = kn.plots.head_map(values, "Effects", "model", "logit difference").to_dict()
    (heat,) = figure["data"]
    assert heat["z"][0] == pytest.approx([0.1, -0.4])
    assert math.isnan(heat["z"][1][1])
    assert (heat["zmin"], heat["zmax"]) == pytest.approx((-0.4, 0.4))
    assert [color for _, color in heat["colorscale"]] == [VERMILLION, "#FFFFFF", BLUE]
    assert heat["colorbar"]["title"]["text"] == "logit difference"
    assert figure["layout"]["xaxis"]["title"]["text"] == "head (from 0)"
    assert figure["layout"]["yaxis"]["title"]["text"] == "layer (from 0)"
    assert "Effects" in figure["layout"]["title"]["text"]


def test_head_maps_side_by_side_share_a_scale() -> None:
    maps = {"facts": torch.tensor([[0.1, 0.2]]), "pairs": torch.tensor([[-0.5, 0.2]])}
    figure = kn.plots.head_map(maps, "Effects").to_dict()
    assert [trace["zmax"] for trace in figure["data"]] == [0.5, 0.5]
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["facts", "pairs"]
    assert [trace["showscale"] for trace in figure["data"]] == [False, True]
    assert kn.plots.head_map(torch.zeros(2, 2), "Nothing").to_dict()["data"][0]["zmax"] == 1


def test_ablation_curves_in_three_currencies() -> None:
    curve = made([[0, 1, 1], [0, 0, 1]], [[[0, 0], [0, 1], [1, 1]]] * 2, [1, 2, 4])
    neurons = replace(curve, site="mlp")
    figure = kn.plots.ablation_curves([("facts", neurons), ("facts", curve)], "model").to_dict()
    lines = [trace for trace in figure["data"] if trace.get("fill") != "toself"]
    assert len(lines) == 2 * 3 * 2  # sites, currencies, found and random
    top = [trace for trace in lines if trace["name"] == "top heads"]
    assert [list(trace["x"]) for trace in top] == [
        pytest.approx([1, 2, 4]),
        pytest.approx([0.05, 0.1, 0.2]),
        pytest.approx([0.1, 0.2, 0.3]),
    ]
    assert all(list(trace["y"]) == [0, 0.5, 1] for trace in top)
    random = [trace for trace in lines if trace["name"] == "random heads"]
    assert [list(trace["x"]) for trace in random][2] == pytest.approx([0.05, 0.1, 0.15])
    assert all(list(trace["y"]) == [0, 0.5, 1] and trace["line"]["dash"] == "dash" for trace in random)
    assert {trace["line"]["color"] for trace in top} != {
        trace["line"]["color"] for trace in lines if trace["name"] == "top neurons"
    }
    assert sum(trace["showlegend"] for trace in lines) == 4
    axes = [figure["layout"][name]["title"]["text"] for name in ("xaxis", "xaxis2", "xaxis3")]
    assert axes == [
        "units taken away, mean (log scale)",
        "share of the site's units (log scale)",
        "norm taken away / norm of the stream",
    ]


def test_data_sets_have_rows_of_their_own() -> None:
    curve = made([[0, 1, 1]], [[[0], [0], [0]]], [1, 2, 4])  # one prompt: no interval, no band
    figure = kn.plots.ablation_curves([("facts", curve), ("pairs", curve)]).to_dict()
    assert {trace["yaxis"] for trace in figure["data"]} == {"y", "y2", "y3", "y4", "y5", "y6"}
    assert not [trace for trace in figure["data"] if trace.get("fill") == "toself"]
    assert {"facts", "pairs"} <= {note["text"] for note in figure["layout"]["annotations"]}


def effect(site: str, after: list[int], controls: list[list[int]]) -> UnitEffect:
    """An effect on facts that were all answered rightly; 1 where they still are after the edit, and after each draw."""
    right = torch.tensor([[1, own, *draws] for own, draws in zip(after, controls, strict=True)])
    target = right.float()
    nan = torch.full_like(target, float("nan"))
    return UnitEffect(
        target=target,
        foil=nan,
        rival=nan,
        top=torch.where(right == 1, 7, 3),
        target_ids=torch.full((len(right),), 7),
        probe_probabilities=torch.zeros(len(right), 2, 0),
        probes=(),
        units=(((0, 0),),) * len(right),
        site=site,
        factor=0.0,
        prompts=tuple(kn.Prompt(f"Prompt {index} is", target="x") for index in range(len(right))),
        settings={},
        provenance={},
    )


def test_accuracy_taken_beside_random_units() -> None:
    effects = [
        ("facts", effect("mlp", [1, 1, 0, 1], [[1, 1]] * 4)),
        ("facts", effect("head", [0, 0, 0, 1], [[1, 0], [1, 0], [1, 1], [1, 1]])),
    ]
    found, random = kn.plots.accuracy_taken(effects, "model").to_dict()["data"]
    assert list(found["x"]) == ["facts<br>neurons", "facts<br>heads"]
    assert list(found["y"]) == pytest.approx([0.25, 0.75])
    assert list(random["y"]) == pytest.approx([0.0, 0.25])
    assert random["error_y"]["array"][1] == pytest.approx(0.25, abs=0.02)  # the draws take 0 and 0.5
    assert random["error_y"]["arrayminus"][1] == pytest.approx(0.25, abs=0.02)


def test_edits_are_called_by_their_name() -> None:
    plain = effect("head", [1, 0], [[1], [1]])
    assert plain.edit == "suppressed"
    assert replace(plain, factor=2.0).edit == "scaled by 2"
    mean = replace(plain, settings={"ablation": "mean"})
    assert "units set to their mean" in kn.plots.control_distribution(mean).to_dict()["layout"]["title"]["text"]


def test_the_table_says_what_half_of_the_answers_cost() -> None:
    rows = []
    for site, k in (("mlp", 2.0), ("head", math.nan)):
        row = {"data": "facts", "kind": "facts", "site": site, "units of the site": 46080, "groups": 2}
        row |= {"prompts searched": 4, "prompts held out": 3, "answered wrongly": 1, "|KN|": 2.5, "τ": 0.7, "R₁²": 0.5}
        row |= {"stability": 0.5, "Gini": 0.9, "participation": 20.0, "top 1 % share": 0.25, "top 10 share": 0.5}
        row |= {"accuracy before": 1.0, "accuracy after": 0.5, "accuracy after low": 0.2, "accuracy after high": 0.8}
        row |= {"accuracy after, random": 0.9, "accuracy percentile": 2.0, "accuracy p": 0.02}
        row |= {"draws": 100, "distinct draws": 90, "answered rightly": 3}
        row |= {"flipped at most": 0.75, "flipped at most, random": 0.25}
        row |= {f"half: k{of}{end}": 3.0 for of in ("", ", random") for end in ("", " low", " high")}
        for of in ("", ", random"):
            for name, scale in (("units", 1), ("share of units", 1 / 46080), ("norm", 0.1)):
                row |= {
                    f"half: {name}{of}": k * scale,
                    f"half: {name}{of} low": scale,
                    f"half: {name}{of} high": math.inf,
                }
        rows.append(row)
    cells = kn.plots.sites_table(pd.DataFrame(rows)).to_dict()["data"][0]["cells"]["values"]
    names, neurons, heads = (list(column) for column in cells)
    shown = dict(zip(names, zip(neurons, heads, strict=True), strict=True))
    assert shown["half: units"] == ("2 [1, ∞]", "never")
    assert shown["half: % of the site's units"] == ("0.00434 [0.00217, ∞]", "never")
    assert shown["half: norm / norm of the stream"] == ("0.20 [0.10, ∞]", "never")
    assert shown["accuracy without the units found"] == ("50.0% [20%, 80%]",) * 2
    assert shown["prompts: searched / held out"] == ("4 / 3",) * 2
    assert shown["held out, answered rightly / wrongly"] == ("3 / 1",) * 2
    assert shown["half: k"] == ("3 [3, 3]",) * 2
    assert shown["… draws (distinct)"] == ("100 (90)",) * 2
    assert shown["… p"] == ("0.02",) * 2
    rows[0] |= {"accuracy p": math.nan, "R₁²": math.nan}
    cells = kn.plots.sites_table(pd.DataFrame(rows)).to_dict()["data"][0]["cells"]["values"]
    shown = dict(zip(cells[0], cells[1], strict=True))
    assert shown["… p"] == shown["R₁²"] == "–"
