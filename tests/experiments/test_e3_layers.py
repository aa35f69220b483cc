"""E3: units are counted by layer, and groups, not units, are what is certain or not."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kn_lens.experiments import e1_localization as e1
from kn_lens.experiments import e3_layers as e3
from kn_lens.localization.localize import LocalizeSettings
from kn_lens.prompts.load import load_prompts
from kn_lens.studies.localized import Localized, LocalizedSets
from kn_lens.studies.pieces import Pieces

SETTINGS = LocalizeSettings(groups=3, prompts=4, steps=4)


@pytest.fixture(scope="module")
def result(organism: Any, tmp_path_factory: pytest.TempPathFactory) -> LocalizedSets:
    """Of a masked model, by way of the pieces of E1."""
    model, pieces = organism("tiny-masked"), Pieces(tmp_path_factory.mktemp("pieces"))
    sets = [load_prompts("P101"), load_prompts("determiner_noun_agreement_2")]
    e1.run(model, sets, SETTINGS, pieces=pieces, progress=False)
    before = {path: path.stat().st_mtime_ns for path in pieces.folder.rglob("*")}  # type: ignore[union-attr]
    made = e3.run(model, sets, SETTINGS, pieces=Pieces(pieces.folder), progress=False)
    assert {path: path.stat().st_mtime_ns for path in pieces.folder.rglob("*")} == before  # type: ignore[union-attr]
    return made


def layers(name: str, kind: str, groups: list[list[int]], n_layers: int = 4) -> Localized:
    """A set whose groups have units in these layers."""
    rows = [
        {"group": f"g{at}", "units": [[layer, unit] for unit, layer in enumerate(own)], "frequency": [1.0] * len(own)}
        for at, own in enumerate(groups)
    ]
    return Localized(
        **{"data": name, "data_kind": kind, "rows": rows, "prompts": 4, "searched": 2, "accuracy": 1.0, "gap": 0.0},
        **{"n_layers": n_layers, "ks": (1,), "n_units": 8, "settings": {}, "provenance": {}},
        shares=torch.ones(1, 1),
        gini=torch.ones(1),
        participation_ratio=torch.ones(1),
    )


def made(facts: list[list[int]], agreement: list[list[int]]) -> LocalizedSets:
    return LocalizedSets(
        sets=(layers("f", "facts", facts), layers("a", "pairs", agreement)),
        left_out={},
        settings={"site": "mlp", "rule": "riemann", "steps": 20, "count": [2, 5]},
        provenance={"model": "m"},
    )


def test_tables_count_the_units_that_were_found(result: LocalizedSets) -> None:
    units = e3.tables(result)["units"]
    counted = Counter(zip(units["data"], units["layer"], strict=True))
    for row in e3.tables(result)["counts"].to_dict("records"):
        assert row["units"] == counted[row["data"], row["layer"]]
    facts = units[units["kind"] == "facts"]
    row = e3.tables(result)["layers"].set_index("data").loc["all facts"]
    assert row["units"] == len(facts)
    assert row["median layer"] == facts["layer"].median()
    assert row["upper half"] == pytest.approx((facts["layer"] >= 2).mean())
    bars = e3.figures(result)["layers"].to_dict()["data"][0]
    assert list(bars["customdata"]) == [int((facts["layer"] == layer).sum()) for layer in range(4)]


def test_saved_and_read_back_it_says_the_same(result: LocalizedSets, tmp_path: Any) -> None:
    back = e3.Result.load(result.save(tmp_path / "r"))
    assert e3.findings(back) == e3.findings(result)
    assert e3.verdicts(back) == e3.verdicts(result)
    for name, table in e3.tables(result).items():
        assert e3.tables(back)[name].equals(table), name
    for name, figure in e3.figures(result).items():
        assert e3.figures(back)[name].to_json() == figure.to_json(), name


@pytest.mark.parametrize(
    ("groups", "holds"),
    [
        ([[3, 2, 3]] * 8, True),
        ([[0, 1, 0]] * 8, False),
        ([[3] * 5, [0] * 5] * 4, None),
        ([[3, 3, 3]], None),
        ([[]], None),
    ],
)
def test_units_lie_mostly_in_the_upper_layers_or_not(groups: list[list[int]], holds: bool | None) -> None:
    facts, agreement = e3.verdicts(made(groups, [[3, 2]] * 8))
    assert facts.holds is holds
    assert agreement.holds is True


def test_the_middle_layer_is_not_in_the_upper_half() -> None:
    share = e3.upper_share([layers("f", "facts", [[0, 1, 2, 3, 4]] * 2, n_layers=5)])
    assert (share.successes, share.n, share.groups) == (4, 10, 2)


def test_distance_is_wassersteins() -> None:
    from scipy.stats import wasserstein_distance

    facts, agreement = [[0, 0, 1], [3], [2, 2]], [[3, 3], [1, 2, 3]]
    distance, _ = e3.layer_distance(made(facts, agreement))
    expected = wasserstein_distance(sum(facts, []), sum(agreement, []))  # noqa: RUF017
    assert distance == pytest.approx(expected)
    assert e3.overlap(made(facts, agreement)) == pytest.approx(1 / 6 + 1 / 5 + 1 / 6)  # layers 1, 2, 3; none at 0


def test_p_is_that_of_all_ways_to_shuffle_groups() -> None:
    """Three groups against three: 20 ways, of which the draws are a sample."""
    facts, agreement = [[0, 0], [0, 1], [1, 2]], [[3, 3], [2, 3, 3], [0]]
    result = made(facts, agreement)
    observed, p = e3.layer_distance(result)
    groups = facts + agreement
    ways = [
        made([groups[at] for at in own], [groups[at] for at in range(6) if at not in own])
        for own in combinations(range(6), 3)
    ]
    exact = np.mean([e3.layer_distance(way)[0] >= observed - 1e-12 for way in ways])
    assert p == pytest.approx(exact, abs=0.04)


def test_findings_tell_like_from_unlike() -> None:
    alike, apart = ([[3, 2]] * 8, [[3, 2]] * 8), ([[0, 1]] * 8, [[3, 3]] * 8)
    assert "no more than chance" in e3.findings(made(*alike))[2]
    assert "they lie apart" in e3.findings(made(*apart))[2]
    assert "mostly not in the upper half" in e3.findings(made(*apart))[0]
    assert e3.findings(made([[]], [[1]]))[0] == "No units were found for facts, in 1 group."


def test_a_model_of_one_layer_is_unsuited(organism: Any) -> None:
    assert e3.unsuited(organism("tiny-causal")) is None
    assert e1.unsuited(organism("tiny-causal")) is None
    shallow = SimpleNamespace(cfg=SimpleNamespace(n_layers=1))
    assert "single layer" in str(e3.unsuited(shallow))
