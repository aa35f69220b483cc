"""Scaling units: equal to whole passes with hooks, one prompt at a time; the controls; what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import kn_lens as kn
from kn_lens.errors import SettingsError, UnitsError
from kn_lens.sites import site_of
from kn_lens.suppression.controls import with_controls
from tests.helpers import FAMILIES, LAYERS
from tests.oracles import textbook
from tests.questions import POSITIONS, SITES, likely_batch, questions, tokens_of, unit_positions

UNITS = {"mlp": [(0, 3), (1, 50), (1, 7), (2, 90)], "mlp_pre": [(0, 3), (2, 11), (2, 12)], "head": [(0, 1), (2, 3)]}


def textbook_distribution(model, entry, units, site, positions, factor):
    return textbook.distribution_with_units_scaled(
        model,
        tokens_of(entry),
        units,
        factor=factor,
        hook_name=SITES[site],
        positions=unit_positions(entry, positions),
        target_position=entry.target_position,
    )


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_scaled_rows_equal_whole_passes(exact_model, family, site, positions):
    """User needs 15 and 20: every family, site and position; prompts of mixed lengths in one batch."""
    model = exact_model(family)
    batch = likely_batch(model)
    foils = [replace(entry, foil_ids=(7 + index,)) for index, entry in enumerate(batch.resolved)]
    batch = kn.PromptBatch.from_resolved(model, foils)
    for factor in (0.0, 2.0):
        effect = kn.suppress(
            model,
            batch,
            UNITS[site],
            site=site,
            positions=positions,
            factor=factor,
            probes=["these", "dogs"],
            controls=2,
            progress=False,
        )
        probes = [
            kn.PromptBatch.from_prompts(model, [kn.Prompt("The", target=word)]).target_ids[0] for word in effect.probes
        ]
        assert effect.probes == ("these", "dogs")
        moved = 0.0
        for index, entry in enumerate(batch.resolved):
            before = textbook_distribution(model, entry, [], site, positions, factor)
            after = textbook_distribution(model, entry, UNITS[site], site, positions, factor)
            moved = max(moved, float((after - before).abs().max()))
            for column, expected in enumerate((before, after)):
                close: dict[str, Any] = {"rel": 1e-5, "abs": 1e-12}
                assert effect.target[index, column].item() == pytest.approx(
                    expected[entry.target_ids[0]].item(), **close
                )
                assert effect.foil[index, column].item() == pytest.approx(expected[7 + index].item(), **close)
                assert effect.top[index, column] == expected.argmax()
                found = effect.probe_probabilities[index, column].tolist()
                assert found == pytest.approx([expected[probe].item() for probe in probes], **close)
        assert moved > 1e-4
    assert kn.enhance(model, batch, UNITS[site], site=site, positions=positions, controls=0, progress=False).factor == 2


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_control_columns_are_the_drawn_units(exact_model, family):
    """Each control column equals a whole pass with the units that were drawn for it."""
    model = exact_model(family)
    batch = likely_batch(model)
    units = [(0, 3), (2, 9), (2, 1)]
    effect = kn.suppress(model, batch, units, controls=4, seed=11, progress=False)
    assert effect.target.shape == (len(batch), 6)
    site = site_of(model, "mlp")
    for index, entry in enumerate(batch.resolved):
        group = entry.prompt.group or entry.prompt.target
        columns = list(with_controls(units, site, 4, f"11:{group}"))
        assert columns[0] == units
        for column, drawn in enumerate(columns):
            expected = textbook_distribution(model, entry, drawn, "mlp", "target", 0.0)[entry.target_ids[0]].item()
            assert effect.target[index, 1 + column].item() == pytest.approx(expected, rel=1e-5)


def test_controls_are_others_of_the_same_layers(random_model):
    site = site_of(random_model("gpt2"), "mlp")
    units = [(0, 1), (2, 5), (2, 6), (2, 7)]
    columns = list(with_controls(units, site, 200, "0:x"))[1:]
    for drawn in columns:
        assert sorted(layer for layer, _ in drawn) == [0, 2, 2, 2]
        assert len(set(drawn)) == 4
        assert not set(drawn) & set(units)
    assert len({tuple(drawn) for drawn in columns}) > 195
    assert columns == list(with_controls(units, site, 200, "0:x"))[1:]
    assert columns != list(with_controls(units, site, 200, "1:x"))[1:]
    seen = {index for drawn in columns for layer, index in drawn if layer == 2}
    assert len(seen) > 0.9 * site.n_units  # all units have their chance
    assert all(0 <= index < site.n_units for index in seen)


def test_the_seed_decides_the_controls(random_model):
    model = random_model("gpt2")
    batch = likely_batch(model)
    first, again, other = (
        kn.suppress(model, batch, [(1, 2)], controls=5, seed=seed, progress=False) for seed in (1, 1, 2)
    )
    assert torch.equal(first.target, again.target)
    assert torch.equal(first.target[:, :2], other.target[:, :2])
    assert not torch.equal(first.target[:, 2:], other.target[:, 2:])


@pytest.mark.parametrize("family", FAMILIES)
def test_factor_one_changes_nothing(random_model, family):
    """Not even the last bit: a test of no change must not be fed with rounding."""
    model = random_model(family)
    batch = likely_batch(model)
    effect = kn.suppress(model, batch, [(0, 1), (1, 2)], factor=1.0, controls=3, progress=False)
    assert (effect.target == effect.target[:, :1]).all()
    assert not effect.flipped.any()
    assert (effect.to_frame()["paired_p"] == 1).all()


def test_each_group_has_its_own_units(exact_model):
    """A group without units is left alone, to the last bit; in one call as in one call per group."""
    model = exact_model("gpt2")
    groups = ["a", "b", "c"]
    prompts = [
        replace(prompt, group=groups[index % 3], foil="are") for index, prompt in enumerate(questions(model) * 2)
    ]
    units = {"a": [(0, 5)], "b": [(1, 6), (2, 7)], "other": [(0, 0)]}
    together = kn.suppress(model, prompts, units, controls=3, progress=False)
    assert together.units == tuple(tuple(units.get(groups[index % 3], ())) for index in range(len(prompts)))
    for name in groups:
        rows = [index for index in range(len(prompts)) if groups[index % 3] == name]
        if name == "c":
            assert (together.target[rows] == together.target[rows, :1]).all()
            assert (together.probe_probabilities[rows, 0] == together.probe_probabilities[rows, 1]).all()
            continue
        alone = kn.suppress(model, [prompts[row] for row in rows], units[name], controls=3, progress=False)
        torch.testing.assert_close(together.target[rows], alone.target, atol=1e-12, rtol=1e-6)
        torch.testing.assert_close(together.foil[rows], alone.foil, atol=1e-12, rtol=1e-6)
        assert (together.target[rows, 0] != together.target[rows, 1]).all()


def test_two_prefix_pairs_are_compared_with_their_rival(exact_model):
    """p(word | good prefix) against p(word | bad prefix), both with the units scaled."""
    model = exact_model("gpt2")
    prompts = [
        kn.Prompt(good, foil_prefix=bad, target=word, form="two_prefix", cue=good.split(" ")[-1])
        for good, bad, word in [
            ("The boy knows these", "The boy knows this", "dogs"),
            ("The old teacher likes this", "The old teacher likes these", "cat"),
        ]
    ]
    effect = kn.suppress(model, prompts, UNITS["mlp"], controls=2, progress=False)
    for index, prompt in enumerate(prompts):
        for column, units in enumerate(([], UNITS["mlp"])):
            for text, found in ((prompt.prefix, effect.target), (prompt.foil_prefix, effect.rival)):
                tokens = torch.tensor(model.tokenizer(text).input_ids)
                target = model.tokenizer(f" {prompt.target}").input_ids[0]
                expected = textbook.distribution_with_units_scaled(model, tokens, units)[target].item()
                assert found[index, column].item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(effect.correct, effect.target > effect.rival)
    assert effect.foil.isnan().all()
    assert effect.summary()["accuracy_before"] == kn.accuracy(model, prompts)


def test_two_prefix_pairs_do_not_mix_with_others(random_model):
    prompts = [
        kn.Prompt("These", foil_prefix="This", target="dogs", form="two_prefix"),
        kn.Prompt("The dogs", target="run"),
    ]
    with pytest.raises(kn.PromptError, match="cannot share a batch with other prompts"):
        kn.suppress(random_model("gpt2"), prompts, [(0, 0)])


def test_a_small_budget_changes_nothing(exact_model):
    model = exact_model("llama")
    batch = likely_batch(model)
    wide = kn.suppress(model, batch, UNITS["head"], site="head", controls=6, progress=False)
    tight = kn.suppress(model, batch, UNITS["head"], site="head", controls=6, progress=False, memory_budget=1.0)
    torch.testing.assert_close(tight.target, wide.target, atol=1e-12, rtol=1e-6)
    assert torch.equal(tight.top, wide.top)


def test_default_probes_are_the_targets_and_foils(random_model):
    model = random_model("gpt2")
    prompts = [kn.Prompt("The dogs", target="run", foil="runs"), kn.Prompt("These cats", target="run", foil="eat")]
    effect = kn.suppress(model, prompts, [(0, 0)], controls=0, progress=False)
    assert effect.probes[0] == "run"
    assert set(effect.probes) == {"run", "runs", "eat"}
    torch.testing.assert_close(effect.probe_probabilities[..., 0], effect.target, atol=0, rtol=1e-6)


@pytest.mark.parametrize("unit", [(LAYERS, 0), (-1, 0), (0, -1), (1, 10**6)])
@pytest.mark.parametrize("site", ["mlp", "head"])
def test_units_out_of_range_are_refused(random_model, unit, site):
    model = random_model("gpt2")
    last = 3 if site == "head" else model.cfg.d_mlp - 1
    kind = "heads" if site == "head" else "neurons"
    with pytest.raises(UnitsError) as refusal:
        kn.suppress(model, questions(model), [(0, 0), unit], site=site)
    assert f"unit {unit[0]}:{unit[1]} is not in" in str(refusal.value)
    assert f"layers 0–{LAYERS - 1} with {kind} 0–{last}" in str(refusal.value)


def test_other_refusals(random_model):
    model = random_model("gpt2")
    asked = questions(model)
    with pytest.raises(UnitsError, match="no units to scale"):
        kn.suppress(model, asked, [])
    with pytest.raises(UnitsError, match=r"units are given for groups \['x'\] and the prompts have groups \['is'\]"):
        kn.suppress(model, asked, {"x": [(0, 0)]})
    with pytest.raises(SettingsError, match=r"probe 'Parismouth' is [2-9] tokens for .*, not one"):
        kn.suppress(model, asked, [(0, 0)], probes=["these", "Parismouth"])
    with pytest.raises(SettingsError, match="controls is -1"):
        kn.suppress(model, asked, [(0, 0)], controls=-1)
    with pytest.raises(SettingsError, match=r"no site 'heads'\. Did you mean 'head'"):
        kn.suppress(model, asked, [(0, 0)], site="heads")


def test_settings_are_in_the_result(random_model):
    """User need 14."""
    model = random_model("gpt2")
    effect = kn.suppress(
        model, questions(model), [(0, 0)], factor=3.0, controls=2, seed=9, positions="cue", progress=False
    )
    expected = {"factor": 3.0, "controls": 2, "seed": 9, "positions": "cue", "site": "mlp"}
    assert expected.items() <= effect.settings.items()
