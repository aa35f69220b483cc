"""Mean and resample ablation: equal to whole passes with hooks written by hand, one prompt at a time."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.errors import SettingsError
from kn_lens.sites import site_of
from kn_lens.suppression.controls import nested_controls, with_controls
from kn_lens.suppression.edited_columns import EditedColumns, UnitColumns
from kn_lens.suppression.replacement import draw_donors
from tests.oracles import textbook
from tests.questions import SITES, assert_same_state, likely_batch, state_of, tokens_of, unit_positions

UNITS = {"mlp": [(0, 3), (1, 50), (1, 7), (2, 90)], "head": [(0, 1), (1, 0), (2, 3)]}
FAMILIES = ["gpt2", "llama", "qwen2", "bert"]


def grouped_batch(model: Any) -> kn.PromptBatch:
    """Prompts of mixed lengths in two groups."""
    batch = likely_batch(model)
    entries = [
        replace(entry, prompt=replace(entry.prompt, group="ab"[index % 2]))
        for index, entry in enumerate(batch.resolved)
    ]
    return kn.PromptBatch.from_resolved(model, entries)


def clean_values(model: Any, batch: kn.PromptBatch, site: str, positions: str) -> list[list[torch.Tensor]]:
    """``[prompt][layer]``: the units' values at the chosen positions, each prompt by itself and unpadded."""
    found = []
    for entry in batch.resolved:
        layers = textbook.activations(model, tokens_of(entry), SITES[site])
        found.append([values[unit_positions(entry, positions)] for values in layers])
    return found


def distribution_with_units_set(
    model: Any, entry: Any, units: list[tuple[int, int]], site: str, positions: str, value_at: Any
) -> torch.Tensor:
    """One prompt, one pass: unit ``index`` of ``layer`` is set to ``value_at(layer, index, slot)``."""

    def put(layer: int) -> Any:
        def hook(activation: torch.Tensor, hook: Any) -> torch.Tensor:
            changed = activation.clone()
            for slot, position in enumerate(unit_positions(entry, positions)):
                for at, index in units:
                    if at == layer:
                        changed[0, position, index] = value_at(layer, index, slot)
            return changed

        return hook

    hooks = [(f"blocks.{layer}.{SITES[site]}", put(layer)) for layer in {layer for layer, _ in units}]
    with torch.no_grad():
        logits = model.run_with_hooks(tokens_of(entry)[None], fwd_hooks=hooks)
    return torch.softmax(logits[0, entry.target_position], dim=-1)


@pytest.mark.parametrize("positions", ["target", "cue", "all"])
@pytest.mark.parametrize("site", ["mlp", "head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_mean_ablation_sets_units_to_their_mean(exact_model: Any, family: str, site: str, positions: Any) -> None:
    """The mean is over all chosen positions of all prompts; a head's is a vector."""
    model = exact_model(family)
    batch = grouped_batch(model)
    before = state_of(model)
    effect = kn.suppress(
        model, batch, UNITS[site], site=site, positions=positions, ablation="mean", controls=1, progress=False
    )
    assert_same_state(model, before)
    assert effect.settings["ablation"] == "mean"
    values = clean_values(model, batch, site, positions)
    means = [torch.cat([prompt[layer] for prompt in values]).mean(0) for layer in range(model.cfg.n_layers)]
    moved = 0.0
    for index, entry in enumerate(batch.resolved):
        found = distribution_with_units_set(model, entry, UNITS[site], site, positions, lambda la, un, _: means[la][un])
        expected = found[entry.target_ids[0]].item()
        assert effect.target[index, 1].item() == pytest.approx(expected, rel=1e-5)
        assert effect.top[index, 1] == found.argmax()
        moved = max(moved, abs(expected - effect.target[index, 0].item()))
    assert moved > 1e-4


@pytest.mark.parametrize("positions", ["cue_last", "all"])
@pytest.mark.parametrize("site", ["mlp", "head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_resample_ablation_takes_values_of_another_prompt(
    exact_model: Any, family: str, site: str, positions: Any
) -> None:
    """One donor per prompt, of the other group; the same draw for the units found and for the controls."""
    model = exact_model(family)
    batch = grouped_batch(model)
    effect = kn.suppress(
        model,
        batch,
        UNITS[site],
        site=site,
        positions=positions,
        ablation="resample",
        controls=2,
        seed=5,
        progress=False,
    )
    values = clean_values(model, batch, site, positions)
    donors = draw_donors(batch, 5)
    columns = list(with_controls(UNITS[site], site_of(model, site), 2, "5:a"))
    for index, entry in enumerate(batch.resolved):
        donor = donors[index]
        assert batch.prompts[donor].group != batch.prompts[index].group
        generator = random.Random(f"5:position:{index}")
        slots = [generator.choice(range(len(values[donor][0]))) for _ in unit_positions(entry, positions)]
        for column, units in enumerate(columns if entry.prompt.group == "a" else columns[:1]):
            found = distribution_with_units_set(
                model, entry, units, site, positions, lambda la, un, s, d=donor, p=slots: values[d][la][p[s]][un]
            )
            assert effect.target[index, 1 + column].item() == pytest.approx(found[entry.target_ids[0]].item(), rel=1e-5)


def test_the_seed_draws_the_donors(random_model: Any) -> None:
    model = random_model("gpt2")
    batch = grouped_batch(model)
    drawn = {tuple(draw_donors(batch, seed)) for seed in range(20)}
    assert len(drawn) > 10
    alone = batch.select([0, 2, 4])  # one group: another prompt of it
    for seed in range(10):
        donors = draw_donors(alone, seed)
        assert all(donor != index and donor in range(3) for index, donor in enumerate(donors))


@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_rivals_take_the_values_of_the_batch(exact_model: Any, ablation: Any) -> None:
    """Both prefixes of a pair are set to one and the same value."""
    model = exact_model("llama")
    prompts = [
        kn.Prompt(good, foil_prefix=bad, target=word, form="two_prefix", cue=good.split(" ")[-1])
        for good, bad, word in [
            ("The boy knows these", "The boy knows this", "dogs"),
            ("The old teacher likes this", "The old teacher likes these", "cat"),
            ("She likes those", "She likes that", "keys"),
        ]
    ]
    batch = kn.PromptBatch.from_prompts(model, prompts)
    effect = kn.suppress(
        model, batch, UNITS["head"], site="head", ablation=ablation, controls=0, seed=3, progress=False
    )
    values = clean_values(model, batch, "head", "target")
    donors = draw_donors(batch, 3)
    assert batch.rivals is not None
    for index, entry in enumerate(batch.rivals.resolved):

        def value(layer: int, unit: int, _: int, index: int = index) -> torch.Tensor:
            if ablation == "mean":
                return torch.stack([prompt[layer][0, unit] for prompt in values]).mean(0)
            return values[donors[index]][layer][0, unit]

        found = distribution_with_units_set(model, entry, UNITS["head"], "head", "target", value)
        assert effect.rival[index, 1].item() == pytest.approx(found[entry.target_ids[0]].item(), rel=1e-5)


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_small_budget_changes_nothing(exact_model: Any, family: str, ablation: Any) -> None:
    """Columns of one prompt in several passes, donors one at a time."""
    model = exact_model(family)
    batch = grouped_batch(model)
    units = {"a": [(0, 1), (2, 3)], "b": [(2, 0)]}
    wide, tight = (
        kn.suppress(
            model, batch, units, site="head", ablation=ablation, controls=6, progress=False, memory_budget=budget
        )
        for budget in (1e9, 1.0)
    )
    torch.testing.assert_close(tight.target, wide.target, atol=1e-12, rtol=1e-6)
    assert torch.equal(tight.top, wide.top)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_columns_join_at_their_own_layers(exact_model: Any, family: str) -> None:
    """Columns of all lowest layers, mixed, some empty, different from prompt to prompt."""
    model = exact_model(family)
    batch = grouped_batch(model)
    site = site_of(model, "mlp")
    columns = {
        "a": [[(2, 1)], [], [(0, 4), (2, 5)], [(1, 3)], []],
        "b": [[(1, 1)], [(2, 2)], [(2, 5)], [], []],
    }
    made = {name: UnitColumns.of_units(units, site) for name, units in columns.items()}
    assert made["a"].first.tolist() == [2, 3, 0, 1, 3]
    groups = [prompt.group or "" for prompt in batch.prompts]
    run = EditedColumns(
        model,
        site,
        batch,
        [made[name] for name in groups],
        factor=0.0,
        positions="target",
        ablation="zero",
        seed=0,
        probe_ids=torch.tensor([], dtype=torch.long),
        memory_budget=1e9,
    )

    class Bar:
        def update(self, count: int) -> None: ...

    found = run(Bar()).answers
    for index, entry in enumerate(batch.resolved):
        for column, units in enumerate([[], *columns[groups[index]]]):
            expected = textbook.distribution_with_units_scaled(
                model, tokens_of(entry), units, positions=[entry.target_position], target_position=entry.target_position
            )[entry.target_ids[0]]
            assert found[index, column, 0].item() == pytest.approx(expected.item(), rel=1e-5)
            if not units:
                assert found[index, column, 0] == found[index, 0, 0]


def test_controls_are_as_many_where_other_neurons_run_out(random_model: Any) -> None:
    """All but one of a layer's neurons: the control is that one and all but one of the others."""
    site = site_of(random_model("gpt2"), "mlp")
    units = [(1, index) for index in range(site.n_units - 1)]
    for drawn in list(with_controls(units, site, 20, "0"))[1:]:
        assert len(set(drawn)) == site.n_units - 1
        assert (1, site.n_units - 1) in drawn


def test_heads_are_drawn_from_all_of_the_layer(random_model: Any) -> None:
    """Two of four heads: each of the six pairs, the one found too, is drawn as often as any other."""
    site = site_of(random_model("gpt2"), "head")
    draws = list(with_controls([(1, 0), (1, 2)], site, 3000, "0"))[1:]
    counts = Counter(frozenset(drawn) for drawn in draws)
    assert set(counts) == {frozenset({(1, a), (1, b)}) for a, b in itertools.combinations(range(4), 2)}
    assert all(abs(count - 500) < 90 for count in counts.values())  # 4 standard deviations
    nested = nested_controls([np.array([5]), np.array([4, 6])], site, 3000, "0")
    pairs = Counter(tuple(sorted(drawn.tolist())) for drawn in nested[1])
    assert set(pairs) == set(itertools.combinations(range(4, 8), 2))
    assert all(abs(count - 500) < 90 for count in pairs.values())
    assert all(single[0] in pair for single, pair in zip(*nested, strict=True))


def test_an_effect_counts_its_distinct_draws(random_model: Any) -> None:
    """Pairs of four heads, 60 draws of each of two groups: no more than 6 of each group, up to 36 together."""
    model = random_model("gpt2")
    batch = grouped_batch(model)
    effect = kn.suppress(model, batch, [(1, 0), (1, 2)], site="head", controls=60, progress=False)
    site = site_of(model, "head")
    drawn = {
        group: [frozenset(units) for units in with_controls([(1, 0), (1, 2)], site, 60, f"0:{group}")][1:]
        for group in "ab"
    }
    assert effect.distinct_draws == len(set(zip(drawn["a"], drawn["b"], strict=True)))
    assert effect.where(lambda prompt: prompt.group == "a").distinct_draws == len(set(drawn["a"])) == 6
    assert np.isnan(effect.where(lambda prompt: prompt.group == "a").summary()["percentile_accuracy"])
    neurons = kn.suppress(model, batch, [(1, 0), (1, 2)], controls=30, progress=False)
    assert neurons.distinct_draws == 30


@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_one_group_alone_is_warned_of(random_model: Any, ablation: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model("gpt2")
    batch = grouped_batch(model)
    kn.suppress(model, batch, [(1, 0)], ablation=ablation, controls=0, progress=False)
    assert not caplog.messages
    kn.suppress(model, batch.select([0, 2]), [(1, 0)], ablation=ablation, controls=0, progress=False)
    assert [f"ablation='{ablation}': all 2 prompts are of the group 'a'" in message for message in caplog.messages] == [
        True
    ]


def test_nested_controls_are_matched_by_layer(random_model: Any) -> None:
    site = site_of(random_model("gpt2"), "mlp")
    wide = site.n_units
    sets = [np.array([5]), np.array([5, wide + 1]), np.arange(3 * wide)]
    drawn = nested_controls(sets, site, 50, seed="1")
    for draws in drawn[0], drawn[1]:
        assert len(draws) == 50
        assert all(5 not in draw and wide + 1 not in draw for draw in draws)
    assert all((draw // wide).tolist() == [0, 1] for draw in drawn[1])
    assert all(first[0] == second[0] for first, second in zip(drawn[0], drawn[1], strict=True) if second[0] != 5)
    assert len({int(draw[0]) for draw in drawn[0]}) > 20
    assert all(sorted(draw.tolist()) == list(range(3 * wide)) for draw in drawn[2])  # all units: nothing else is left


def test_refusals(random_model: Any) -> None:
    model = random_model("gpt2")
    batch = likely_batch(model)
    with pytest.raises(
        SettingsError, match=r"no ablation 'means'\. Did you mean 'mean'\? Ablations: zero, mean, resam"
    ):
        kn.suppress(model, batch, [(0, 0)], ablation="means")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"ablation='mean' sets units to a value and has no use for factor=2"):
        kn.suppress(model, batch, [(0, 0)], ablation="mean", factor=2.0)
    with pytest.raises(SettingsError, match=r"ablation='resample' takes values from the other prompts, and there is a"):
        kn.suppress(model, batch.select([0]), [(0, 0)], ablation="resample")
    assert kn.suppress(model, batch, [(0, 0)], controls=0, progress=False).settings["ablation"] == "zero"
