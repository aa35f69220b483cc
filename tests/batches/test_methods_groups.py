"""Methods that look at whole groups, or at units given for them: block by block as over all groups."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError

import kn_lens as kn
from kn_lens.batches.methods import METHODS
from kn_lens.batches.methods.localization import SEARCHED
from kn_lens.batches.methods.suppression import NO_UNITS
from kn_lens.errors import NothingLeft, UnitsError
from kn_lens.localization.localize import LocalizeSettings, localization_of
from kn_lens.studies.localized import Localized
from kn_lens.tracing.answered import WRONG
from tests.batches.by_blocks import ByBlocks, assert_same_result, exact_organism, with_wrong

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def model():
    """In float64, so that what differs between blocks is no rounding."""
    return exact_organism("tiny-causal")


@pytest.fixture(scope="module")
def facts(model):
    """Four groups of 4, 4, 1 and 4 prompts; one prompt of the first is answered wrongly, and all of the last."""
    batch = kn.load_relation("P36").prompts(model, groups=4, per_group=4)
    return with_wrong(batch.select([*range(9), *range(12, 16)]), model, 1, 9, 10, 11, 12)


@pytest.mark.parametrize("options", [{"steps": 3}, {"steps": 3, "site": "head", "count": [1, 3], "threshold": 0.4}])
def test_knowledge_neurons(model, facts, options):
    chosen = LocalizeSettings(**{**options, "count": tuple(options.get("count", (2, 5)))}, seed=4)
    scores = kn.integrated_gradients(model, facts, site=chosen.site, steps=3, **QUIET)
    public = Localized.of(localization_of(model, facts, scores, chosen, data="data", kind="facts"))
    found = ByBlocks(model, "knowledge_neurons", facts, seed=4, **options)
    assert len(found.parts) == 3  # the group of one prompt shares a block
    added = {"threshold", "share", "count", "seed"}
    assert_same_result(found.joined, public, parts=3, settings_apart=added)
    assert found.joined.settings["seed"] == 4
    assert found.done == list(range(13))
    frame = found.frame
    firsts = {row["group"]: facts.groups[row["group"]][0] for row in public.rows}
    expected = [
        (firsts[row["group"]], row["group"], *unit, float(row["τ"]))
        for row in public.rows
        for unit in row["units"] or [(-1, -1)]
    ]
    rows = list(zip(*(frame[name] for name in ("prompt", "group", "layer", "unit", "share")), strict=True))
    assert rows == expected
    measured = {row["group"]: row["R₁²"] for row in public.rows}
    for group, similarity in zip(frame["group"], frame["similarity"], strict=True):
        assert similarity == pytest.approx(measured[group], rel=1e-5, nan_ok=True)


def test_knowledge_neurons_equal_localize(model):
    """The whole way from the data's name, as the command line goes."""
    from kn_lens.localization.localize import group_prompts, localize

    data = kn.load_relation("P103")
    chosen = LocalizeSettings(steps=2, groups=3, prompts=4)
    public = Localized.of(localize(model, data, chosen, progress=False))
    found = ByBlocks(model, "knowledge_neurons", group_prompts(model, data, chosen), steps=2, shard=5, data="P103")
    assert_same_result(found.joined, public, parts=2, settings_apart={"threshold", "share", "count", "seed"})


@pytest.mark.parametrize("options", [{}, {"site": "head", "ks": [1, 3, 9], "positions": "all"}])
def test_ablation_curve(model, facts, options):
    options = {"steps": 3, "controls": 4, **options}
    first, second = kn.split_half(facts, 7)
    scored = {key: options[key] for key in ("site", "steps", "positions") if key in options}
    scores = kn.integrated_gradients(model, facts.select(first), **scored, **QUIET)
    curve = {key: options[key] for key in ("ks", "controls") if key in options}
    public = kn.ablation_curve(model, facts.select(second), scores, seed=7, **curve, **QUIET)
    found = ByBlocks(model, "ablation_curve", facts, seed=7, **options)
    assert found.joined.settings["searched"] == len(first) - 3  # the last block has no curve
    assert_same_result(found.joined, public, parts=2, apart={"answered_wrongly"}, settings_apart={"searched"})
    assert found.joined.answered_wrongly == public.answered_wrongly - 2
    assert [facts.prompts[at] for at in found.done] == list(public.prompts)
    _, error = found.parts[2]
    assert isinstance(error, NothingLeft)
    assert [one.reason for one in error.dropped] == [WRONG] * 2 + [SEARCHED] * 3
    assert len(found.left_out) == 13 - len(found.done)
    frame, ks = found.frame, len(public.ks)
    assert frame["prompt"].tolist() == [at for at in found.done for _ in range(ks)]
    assert frame["k"].tolist() == list(public.ks) * len(public)
    for name, values in (
        ("taken", public.taken),
        ("flipped", public.flipped),
        ("target", public.target),
        ("norm", public.relative_norm),
        ("control_flipped", public.control_flipped.double().mean(-1)),
        ("control_norm", public.control_relative_norm.double().mean(-1)),
    ):
        np.testing.assert_allclose(frame[name].to_numpy(float), values.double().flatten(), rtol=1e-5, atol=1e-6)


def test_groups_of_one_prompt_leave_nothing_to_test(model, facts):
    found = ByBlocks(model, "ablation_curve", facts.select([0, 4, 8]), steps=2)
    assert found.joined is None
    assert [reason for _, reason in found.left_out] == [SEARCHED] * 3


UNITS = [(1, 3), (2, 40), (3, 7)]


@pytest.mark.parametrize(
    "options",
    [{}, {"factor": 2.0, "positions": "all", "probes": ["Madrid"]}, {"site": "head", "controls": 0}],
)
def test_suppress(model, facts, options):
    units = [(1, 2), (3, 0)] if options.get("site") == "head" else UNITS
    options = {"controls": 5, **options}
    public = kn.suppress(model, facts, units, seed=3, **options, **QUIET)
    texts = [f"{layer}:{unit}" for layer, unit in units]
    found = ByBlocks(model, "suppress", facts, seed=3, units=texts, **options)
    assert_same_result(found.joined, public, parts=5)
    assert found.done == list(range(13))
    frame, expected = found.frame, public.answers_frame()
    for name in expected.columns:
        if expected[name].dtype.kind == "f":
            np.testing.assert_allclose(frame[name], expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert frame[name].astype(object).where(frame[name].notna(), None).tolist() == expected[name].tolist()
    if options["controls"]:
        flipped = public.flipped[:, 2:].double().mean(1)
        np.testing.assert_allclose(frame["control_flipped"], flipped, rtol=1e-6)


def test_units_by_group(model, facts):
    """Prompts of other groups are left out, in whatever block they are."""
    names = list(facts.groups)
    units = {names[0]: ["1:3"], names[3]: [[2, 40], "3:7"]}
    kept = [*range(4), *range(9, 13)]
    public = kn.suppress(model, facts.select(kept), {names[0]: [(1, 3)], names[3]: UNITS[1:]}, controls=3, **QUIET)
    found = ByBlocks(model, "suppress", facts, units=units, controls=3)
    assert found.done == kept
    assert_same_result(found.joined, public, parts=4)
    assert [reason for _, reason in found.left_out] == [NO_UNITS] * 5
    with pytest.raises(UnitsError, match="units are given for groups"):
        ByBlocks(model, "suppress", facts.select([4, 5]), units=units)


def test_enhance_is_a_factor(model, facts):
    public = kn.enhance(model, facts, UNITS, controls=2, **QUIET)
    found = ByBlocks(model, "suppress", facts, units=["1:3", "2:40", "3:7"], factor=2.0, controls=2)
    assert_same_result(found.joined, public, parts=5)


def test_probes_of_pairs(model):
    """Targets and foils are counted over all prompts, and ties broken in the order of the whole."""
    batch = kn.load_minimal_pairs("subject_verb_agreement").prompts(model, groups=5, per_group=2)
    public = kn.suppress(model, batch, UNITS, controls=0, **QUIET)
    for shard in (1, 4):
        found = ByBlocks(model, "suppress", batch, units=["1:3", "2:40", "3:7"], controls=0, shard=shard)
        assert found.joined.probes == public.probes
        assert_same_result(found.joined, public, parts=math.ceil(len(batch) / shard))


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([312], "YAML reads 5:12 without quotes as a number"),
        (["5-12"], "write a unit as 'layer:index'"),
        ([], "holds no units"),
        ({"a": []}, "holds no units"),
        (7, "give a list of units"),
        ([[1, 2, 3]], "holds .1, 2, 3."),
    ],
)
def test_units_that_are_none(units, message):
    with pytest.raises(ValidationError, match=message):
        METHODS["suppress"].Settings(units=units)


def test_units_are_kept_as_texts():
    settings = METHODS["suppress"].Settings(units=["1:2", " 3 : 04 ", (5, 6), "1:2"])
    assert settings.units == ("1:2", "3:4", "5:6")
    assert METHODS["suppress"].Settings(units={"a": "1:2", "b": []}).units == {"a": ("1:2",), "b": ()}
