"""The ablation curve: equal to single suppressions; the norm taken away; a planted head; what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

import kn_lens as kn
from kn_lens.attribution.scores import AttributionScores
from kn_lens.errors import PromptError, SettingsError, UnitsError
from kn_lens.localization.ablation import _ladder, ablation_curve
from kn_lens.sites import site_of
from tests.attribution.test_planted import HEAD, LAYER, plant_head, quiet_rest
from tests.attribution.test_planted import prompts as planted_prompts
from tests.helpers import load_random_model
from tests.oracles import textbook
from tests.questions import SITES, assert_same_state, likely_batch, state_of, tokens_of, unit_positions


def grouped(model: Any, foils: bool) -> kn.PromptBatch:
    """Prompts answered rightly, in two groups; with an unlikely foil, or without."""
    batch = likely_batch(model)
    entries = []
    for index, entry in enumerate(batch.resolved):
        foil = ((entry.target_ids[0] + 5) % model.cfg.d_vocab,) if foils else None
        entries.append(replace(entry, prompt=replace(entry.prompt, group="ab"[index % 2]), foil_ids=foil))
    return kn.PromptBatch.from_resolved(model, entries)


def top_units(scores: AttributionScores, group: str, k: int) -> list[tuple[int, int]]:
    """The k units of a group with the largest mean score above 0."""
    mean = scores.values[scores.groups[group]].mean(0)
    pairs = [(float(mean[layer, unit]), layer, unit) for layer in range(len(mean)) for unit in range(mean.shape[1])]
    return [(layer, unit) for value, layer, unit in sorted(pairs, key=lambda pair: -pair[0])[:k] if value > 0]


@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
@pytest.mark.parametrize("site", ["mlp", "head"])
@pytest.mark.parametrize(("family", "positions"), [("gpt2", "cue"), ("llama", "target"), ("bert", "all")])
def test_each_k_is_a_suppression(exact_model: Any, family: str, positions: Any, site: str, ablation: Any) -> None:
    model = exact_model(family)
    batch = grouped(model, foils=positions == "cue")
    scores = kn.integrated_gradients(model, batch, site=site, positions=positions, steps=4, progress=False)
    before = state_of(model)
    curve = ablation_curve(model, batch, scores, ks=[1, 3, 7, 9], controls=2, ablation=ablation, seed=4, progress=False)
    assert_same_state(model, before)
    assert curve.ks == (1, 3, 7, 9)
    assert curve.settings["positions"] == positions
    for at, k in enumerate(curve.ks):
        units = {group: top_units(scores, group, k) for group in "ab"}
        effect = kn.suppress(
            model, batch, units, site=site, positions=positions, ablation=ablation, controls=0, seed=4, progress=False
        )
        assert curve.taken[:, at].tolist() == [len(units[prompt.group or ""]) for prompt in batch.prompts]
        torch.testing.assert_close(curve.target[:, at], effect.target[:, 1], atol=1e-9, rtol=1e-5)
        assert torch.equal(curve.flipped[:, at], effect.flipped[:, 1])
        assert torch.equal(curve.correct[:, at], effect.correct[:, 1])
        assert (effect.target[:, 1] - effect.target[:, 0]).abs().max() > 1e-4
    torch.testing.assert_close(curve.clean_target, effect.target[:, 0], atol=1e-9, rtol=1e-5)


@pytest.mark.parametrize("site", ["mlp", "head"])
@pytest.mark.parametrize("family", ["gpt2", "qwen2", "bert"])
def test_the_norm_is_that_of_the_missing_output(exact_model: Any, family: str, site: str) -> None:
    """Against the outputs themselves: what an MLP or an attention layer writes clean, less what it writes without."""
    model = exact_model(family)
    batch = grouped(model, foils=False)
    scores = kn.integrated_gradients(model, batch, site=site, positions="cue", steps=4, progress=False)
    curve = ablation_curve(model, batch, scores, ks=[1, 4], controls=1, progress=False)
    bert = family == "bert"
    for index, entry in enumerate(batch.resolved):
        tokens = tokens_of(entry)
        clean = textbook.activations(model, tokens, SITES[site])
        stream = textbook.activations(model, tokens, "hook_normalized_resid_post" if bert else "hook_resid_post")[-1]
        assert curve.stream[index].item() == pytest.approx(stream[entry.target_position].norm().item(), rel=1e-5)
        for at, k in enumerate(curve.ks):
            units = top_units(scores, entry.prompt.group or "", k)
            total = 0.0
            for layer in range(model.cfg.n_layers):
                without = clean[layer].clone()
                for position in unit_positions(entry, "cue"):
                    for unit in (unit for own, unit in units if own == layer):
                        without[position, unit] = 0
                block = model.blocks[layer]
                weights = block.mlp.W_out if site == "mlp" else block.attn.W_O.flatten(0, 1)
                start = 1 if site == "mlp" else -2
                lost = (clean[layer] - without).flatten(start) @ weights
                total += float(lost.detach().pow(2).sum())
            assert curve.norm[index, at].item() == pytest.approx(math.sqrt(total), rel=1e-5)
    torch.testing.assert_close(curve.relative_norm, curve.norm / curve.stream[:, None])


def test_the_output_goes_missing_from_the_stream(exact_model: Any) -> None:
    """One unit of the last layer: the stream differs by exactly that norm."""
    model = exact_model("gpt2")
    batch = grouped(model, foils=False)
    values = torch.zeros(len(batch), 3, 4)
    values[:, 2, 1] = 1.0
    scores = replace(kn.max_activation(model, batch, site="head", progress=False), values=values)
    curve = ablation_curve(model, batch, scores, ks=[1], controls=1, progress=False)
    for index, entry in enumerate(batch.resolved):
        streams = []

        def record(activation: torch.Tensor, hook: Any, into: list = streams, at: int = entry.target_position) -> None:
            into.append(activation[0, at].clone())

        def silence(activation: torch.Tensor, hook: Any, at: int = entry.target_position) -> torch.Tensor:
            activation = activation.clone()
            activation[0, at, 1] = 0
            return activation

        for hooks in ([], [("blocks.2.attn.hook_z", silence)]):
            with torch.no_grad():
                model.run_with_hooks(tokens_of(entry)[None], fwd_hooks=[*hooks, ("blocks.2.hook_resid_mid", record)])
        assert curve.norm[index, 0].item() == pytest.approx((streams[0] - streams[1]).norm().item(), rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_planted_head_flips_the_answers_and_others_do_not(tmp_path: Any, family: str) -> None:
    model = load_random_model(family, tmp_path)
    quiet_rest(model)
    plant_head(model, 4.0)
    batch = planted_prompts(model)
    assert kn.answers(model, batch).correct.all()
    scores = kn.integrated_gradients(model, batch.select([0, 1]), site="head", progress=False)
    curve = ablation_curve(model, batch.select([2, 3]), scores, controls=40, progress=False)
    assert curve.ks == (1, 2, 3, 5, 8, 12)
    assert top_units(scores, "house", 1) == [(LAYER, HEAD)]
    assert curve.flipped[:, 0].all()
    is_planted = (curve.control_norm[:, 0] - curve.norm[:, :1]).abs() < 1e-4  # a draw may take the planted head too
    assert torch.equal(curve.control_flipped[:, 0], is_planted)
    assert 0.05 < is_planted.float().mean() < 0.5
    half, control = curve.k_half(), curve.control_k_half()
    assert (half.k.value, half.taken.value) == (1, 1)
    assert math.isnan(half.k.low)  # one group: nothing to resample
    assert half.share.value == pytest.approx(1 / 12)
    assert half.norm.value == pytest.approx(curve.relative_norm[:, 0].mean().item())
    assert control.k.value > 1 or math.isnan(control.k.value)
    frame = curve.to_frame().set_index("k")
    assert frame.loc[1, "flipped"] == 1
    assert frame.loc[1, "distinct_draws"] == 4
    assert math.isnan(frame.loc[1, "percentile_flipped"])
    assert math.isnan(frame.loc[1, "p_flipped"])


def test_a_k_without_new_units_repeats_the_one_before(exact_model: Any) -> None:
    model = exact_model("gpt2")
    batch = grouped(model, foils=False)
    scores = kn.integrated_gradients(model, batch, site="head", steps=4, progress=False)
    values = torch.full_like(scores.values, -1.0)
    values[:, 0, 1], values[:, 2, 3] = 1.0, 0.5
    values[scores.groups["b"], 1, 2] = 0.2
    curve = ablation_curve(model, batch, replace(scores, values=values), controls=3, progress=False)
    in_a = torch.tensor([prompt.group == "a" for prompt in batch.prompts])
    assert curve.taken[in_a].tolist() == [[1, 2, 2, 2, 2, 2]] * int(in_a.sum())
    assert curve.taken[~in_a].tolist() == [[1, 2, 3, 3, 3, 3]] * int((~in_a).sum())
    for field in ("target", "flipped", "norm", "control_target", "control_norm"):
        value = getattr(curve, field)
        assert torch.equal(value[:, 2], value[:, 5])
        assert torch.equal(value[in_a, 1], value[in_a, 2])
    assert (curve.target[~in_a, 1] != curve.target[~in_a, 2]).all()


def test_controls_are_drawn_from_the_same_layers(exact_model: Any) -> None:
    """Two heads of one layer: each draw equals some pair of that layer's heads, and holds the single one before."""
    model = exact_model("gpt2")
    batch = grouped(model, foils=False)
    scores = kn.integrated_gradients(model, batch, site="head", steps=4, progress=False)
    values = torch.zeros_like(scores.values)
    values[:, 1, 0], values[:, 1, 2] = 1.0, 0.5
    curve = ablation_curve(model, batch, replace(scores, values=values), ks=[1, 2], controls=30, progress=False)

    def without(heads: tuple[int, ...]) -> torch.Tensor:
        units = [(1, head) for head in heads]
        return kn.suppress(model, batch, units, site="head", controls=0, progress=False).target[:, 1]

    for at, sets in enumerate((list(combinations(range(4), 1)), list(combinations(range(4), 2)))):
        expected = torch.stack([without(heads) for heads in sets], 1)
        gaps = (expected[:, :, None] - curve.control_target[:, at, None]).abs()
        assert gaps.amin(1).max() < 1e-6
        by_group = {
            prompt.group: len({int(which) for which in gaps[index].argmin(0)})
            for index, prompt in enumerate(curve.prompts)
        }
        assert set(by_group.values()) == {len(sets)}  # all are drawn, those found among them
        assert curve.drawn is not None
        for index in range(len(curve)):
            assert len(set(curve.drawn[index, at].tolist())) == len(sets)
        both = {tuple(column.tolist()) for column in curve.drawn[:, at].T}
        assert curve.distinct_draws[at] == len(both) > len(sets)


def test_two_prefix_pairs_flip_against_their_rival(exact_model: Any) -> None:
    model = exact_model("gpt2")
    asked = [
        kn.Prompt(good, foil_prefix=bad, target=word, form="two_prefix", cue=good.split(" ")[-1], group="g")
        for good, bad in [("The boy knows these", "The boy knows this"), ("She likes those", "She likes that")]
        for word in ("dogs", "cat", "keys", "boy", "girls", "house")
    ]
    scores = kn.integrated_gradients(model, asked, site="head", steps=4, progress=False)
    curve = ablation_curve(model, asked, scores, ks=[2, 6], controls=1, progress=False)
    right = [index for index, good in enumerate(kn.answers(model, asked).correct.tolist()) if good]
    assert curve.answered_wrongly == len(asked) - len(right) > 0
    assert curve.prompts == tuple(asked[index] for index in right)
    for at, k in enumerate(curve.ks):
        effect = kn.suppress(
            model, list(curve.prompts), top_units(scores, "g", k), site="head", controls=0, progress=False
        )
        assert torch.equal(curve.flipped[:, at], effect.flipped[:, 1])
    assert curve.flipped.any()


def test_the_ladder(random_model: Any) -> None:
    heads, neurons = (site_of(random_model("gpt2"), name) for name in ("head", "mlp"))
    assert _ladder(None, heads) == (1, 2, 3, 5, 8, 12)
    assert _ladder(None, neurons) == (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300, neurons.n_units * 3)
    many = replace(neurons, n_units=1536, n_layers=30)
    assert _ladder(None, many)[-3:] == (800, 1200, 2000)
    assert _ladder([5, 1, 99, 5], heads) == (1, 5, 12)
    with pytest.raises(SettingsError, match=r"ks are \[0, 3\]; give numbers of units, each at least 1"):
        _ladder([0, 3], heads)


def test_refusals(random_model: Any) -> None:
    model = random_model("gpt2")
    batch = grouped(model, foils=False)
    scores = kn.max_activation(model, batch, site="head", progress=False)
    with pytest.raises(SettingsError, match="controls is 0; give at least 1 draw"):
        ablation_curve(model, batch, scores, controls=0)
    with pytest.raises(SettingsError, match=r"no ablation 'none'"):
        ablation_curve(model, batch, scores, ablation="none")  # type: ignore[arg-type]
    other = scores.select([index for index, prompt in enumerate(scores.prompts) if prompt.group == "a"])
    with pytest.raises(UnitsError, match=r"scores are given for groups \['a'\] and the prompts have groups \['b'\]"):
        ablation_curve(model, [p for p in batch.prompts if p.group == "b"], other)
    with pytest.raises(UnitsError, match="the scores are of 3 layers with 3 units, and this model has 3 with 4"):
        ablation_curve(model, batch, replace(scores, values=scores.values[..., :3]))
    foreign = replace(scores, provenance={**scores.provenance, "model": "another", "weights_hash": "0" * 32})
    with pytest.raises(
        UnitsError,
        match=r"the scores are of another with other weights, or another number type, than",
    ):
        ablation_curve(model, batch, foreign)
    asked = [kn.Prompt(f"The {word} is", target="dogs", foil="cat", group="g") for word in ("boy", "girl", "city")]
    asked = [
        entry if good == wanted else replace(entry, target="cat", foil="dogs")
        for entry, good, wanted in zip(asked, kn.answers(model, asked).correct.tolist(), (1, 0, 0), strict=True)
    ]
    one_right = kn.max_activation(model, asked, site="head", progress=False)
    with pytest.raises(SettingsError, match=r"and of 3 a single one is left \(2 answered wrongly\): give more prompts"):
        ablation_curve(model, asked, one_right, ablation="mean")
    with pytest.raises(SettingsError, match="take site 'mlp' or 'head'"):
        ablation_curve(model, batch, kn.max_activation(model, batch, site="mlp_pre", progress=False))
    wrong = [replace(prompt, target="Paris") for prompt in batch.prompts[:2]]
    with pytest.raises(PromptError, match="answers none of the 2 prompts rightly"):
        ablation_curve(model, wrong, scores)


def test_groups_that_were_not_searched_are_left_out(random_model: Any) -> None:
    model = random_model("gpt2")
    batch = grouped(model, foils=False)
    scores = kn.max_activation(model, batch, site="head", progress=False)
    of_a = scores.select(scores.groups["a"])
    curve = ablation_curve(model, batch, of_a, ks=[1], controls=1, progress=False)
    assert {prompt.group for prompt in curve.prompts} == {"a"}
    assert [entry.reason for entry in curve.dropped] == ["its group was not searched"] * len(scores.groups["b"])
    frame = curve.to_frame().drop(columns=["flipped_low", "flipped_high", "percentile_flipped", "p_flipped"])
    assert np.isfinite(frame.to_numpy()).all()


def test_without_a_score_above_zero_nothing_is_taken(exact_model: Any) -> None:
    model = exact_model("gpt2")
    batch = grouped(model, foils=False)
    scores = kn.max_activation(model, batch, site="head", progress=False)
    for ablation in ("zero", "mean"):
        curve = ablation_curve(
            model, batch, replace(scores, values=-scores.values.abs()), controls=2, ablation=ablation, progress=False
        )
        assert not curve.taken.any()
        assert not curve.flipped.any()
        assert (curve.norm == 0).all()
        assert (curve.target == curve.clean_target[:, None]).all()
        assert math.isnan(curve.k_half().taken.value)
