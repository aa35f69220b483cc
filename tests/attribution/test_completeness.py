"""Completeness (Sundararajan et al. 2017): Σα = P(w̄) − P(0). User need 22: the gap is shown, one step is refused."""

from __future__ import annotations

import pytest
import torch

import kn_lens as kn
from kn_lens.attribution.quadrature import quadrature
from kn_lens.errors import SettingsError
from tests.helpers import FAMILIES
from tests.oracles import textbook
from tests.questions import SITES, likely_batch, questions, tokens_of, unit_positions


def change_from_zero(model, batch, site, positions):
    return torch.stack(
        [
            textbook.change_from_zero(
                model,
                tokens_of(entry),
                entry.target_ids[0],
                hook_name=SITES[site],
                positions=unit_positions(entry, positions),
                target_position=entry.target_position,
            )
            for entry in batch.resolved
        ]
    )


@pytest.mark.parametrize("rule", ["riemann", "gauss_legendre"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_delta_is_the_gap_that_the_oracle_finds(exact_model, family, site, rule):
    """Also for a rule without the point 0, where P(0) must be asked for beside the points."""
    model = exact_model(family)
    batch = likely_batch(model, questions(model, 3))
    scores = kn.integrated_gradients(model, batch, site=site, rule=rule, steps=4, positions="cue", progress=False)
    expected = scores.values.double().sum(-1) - change_from_zero(model, batch, site, "cue")
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(scores.convergence_delta.double(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("rule", ["riemann", "trapezoid", "midpoint", "gauss_legendre"])
@pytest.mark.parametrize("site", SITES)
def test_delta_goes_to_zero_as_steps_grow(exact_model, site, rule):
    """Riemann's error falls as 1/m, the trapezoid's and the midpoint's as 1/m², Gauss-Legendre's faster."""
    model = exact_model("gpt2")
    batch = likely_batch(model, questions(model, 2))
    change = change_from_zero(model, batch, site, "target")
    assert change.abs().max() > 0.05
    worst = {
        steps: float(
            kn.integrated_gradients(model, batch, site=site, rule=rule, steps=steps, progress=False)
            .convergence_delta.abs()
            .max()
        )
        for steps in (10, 40, 160)
    }
    order = {"riemann": 1, "trapezoid": 2, "midpoint": 2, "gauss_legendre": 4}[rule]
    assert worst[160] < max(worst[10] * 16.0**-order * 4, 2e-6)
    assert worst[160] < (0.02 if rule == "riemann" else 2e-3) * float(change.abs().max())


@pytest.mark.parametrize("family", ["llama", "bert", "gpt_neox"])
def test_converged_scores_sum_to_the_change(exact_model, family):
    model = exact_model(family)
    batch = likely_batch(model, questions(model, 2))
    scores = kn.integrated_gradients(model, batch, rule="gauss_legendre", steps=150, progress=False)
    change = change_from_zero(model, batch, "mlp", "target")
    torch.testing.assert_close(scores.values.double().sum(-1), change, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [1, 0, -3])
@pytest.mark.parametrize("rule", ["riemann", "trapezoid", "midpoint", "gauss_legendre"])
def test_fewer_than_two_steps_are_refused(random_model, rule, steps):
    """User need 22: public configurations ship with 1 step, the gradient at one place and not an integral."""
    with pytest.raises(SettingsError, match=f"steps is {steps}; .*at least 2"):
        kn.integrated_gradients(random_model("gpt2"), questions(random_model("gpt2")), steps=steps, rule=rule)


def test_one_step_would_have_been_the_gradient_at_zero(exact_model):
    """What is refused, shown: linspace(0, 1, 1) is the point 0 alone, and its scores miss the integral widely."""
    model = exact_model("gpt2")
    entry = likely_batch(model, questions(model, 1)).resolved[0]
    tokens, target = tokens_of(entry), entry.target_ids[0]
    one = textbook.integrated_gradients(model, tokens, target, steps=1)
    at_zero = textbook.integrated_gradients(model, tokens, target, steps=1, points=[0.0], weights=[1.0])
    assert torch.equal(one, at_zero)
    gap = (one.sum(-1) - textbook.change_from_zero(model, tokens, target)).abs().max()
    converged = kn.integrated_gradients(model, likely_batch(model, questions(model, 1)), steps=40, progress=False)
    assert gap > 5 * converged.convergence_delta.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "mpl"}, "no site 'mpl'. Did you mean 'mlp'"),
        ({"site": "neuron"}, "Sites: mlp, mlp_pre, head"),
        ({"rule": "reimann"}, "no rule 'reimann'. Did you mean 'riemann'"),
        ({"positions": "cue_first"}, "Did you mean 'cue_last'"),
        ({"positions": "last"}, "Positions: target, cue_last, cue, all"),
    ],
)
def test_unknown_settings_name_what_there_is(random_model, options, message):
    model = random_model("gpt2")
    with pytest.raises(SettingsError) as refusal:
        kn.integrated_gradients(model, questions(model), progress=False, **options)
    assert message in str(refusal.value)


def test_positions_of_a_cue_need_a_cue(random_model):
    with pytest.raises(kn.PromptError, match=r"needs a cue, and 'The dogs' has none"):
        kn.integrated_gradients(random_model("gpt2"), kn.Prompt("The dogs", target="run"), positions="cue")


def test_rule_and_steps_are_in_the_result(random_model):
    """User needs 9 and 14: which settings made this?"""
    model = random_model("gpt2")
    scores = kn.integrated_gradients(model, questions(model), steps=3, rule="midpoint", site="head", progress=False)
    assert {"steps": 3, "rule": "midpoint", "site": "head", "positions": "target"}.items() <= scores.settings.items()
    assert scores.provenance["dtype"] == "float32"
    assert len(scores.provenance["weights_hash"]) == 32
    assert len(quadrature("midpoint", 3)[0]) == 3
