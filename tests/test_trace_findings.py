"""What traces, patches and knockouts are said to show follows from their numbers, and claims no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import kn_lens as kn
from kn_lens.runs.knockout import KnockoutSettings
from kn_lens.runs.knockout import findings as knockout_findings
from kn_lens.runs.knockout import knockout as run_knockout
from kn_lens.runs.patch import PatchSettings
from kn_lens.runs.patch import findings as patch_findings
from kn_lens.runs.patch import patch as run_patch
from kn_lens.studies.traced import Traced, TraceSettings, findings
from kn_lens.studies.traced import trace as run_trace
from kn_lens.tracing.trace import CausalTrace


def test_findings_are_computed_from_the_numbers(organism) -> None:
    model = organism("tiny-causal")
    settings = TraceSettings(streams=("resid", "mlp"), corruption="zero", groups=4)
    found = run_trace(model, kn.load_data("P36"), settings)
    trace = found.traces["mlp"]
    first, resid, mlp = findings(found)
    assert f"by {float(trace.total_effect().mean()):.3g} [" in first
    peak = trace.average().query("`class` != 'before the cue'").nlargest(1, "mean").iloc[0]
    assert f"an MLP output restored lies at the {peak['class']}: {peak['mean']:.3g} [{peak['low']:.3g}" in mlp
    assert f"(layer {peak['layer']}, 4 prompts), {peak['mean'] / float(trace.total_effect().mean()):.0%}" in mlp
    pooled = found.traces["resid"].by_class()
    ahead = (pooled["target position"].mean(0) > pooled["last cue token"].mean(0)).tolist()
    if all(ahead):
        assert "gives more in every layer" in resid
    turned = Traced(
        data="turned",
        kind="facts",
        data_hash=None,
        batch=found.batch,
        traces={"resid": _with_handover(found.traces["resid"], 2)},
    )
    assert findings(turned)[1].endswith("the target position gives more from layer 2 on.")


def _with_handover(trace: CausalTrace, layer: int) -> CausalTrace:
    """The trace, its effects made such that the target position overtakes the cue at ``layer``."""
    effects = trace.effects["logit_difference"].clone()
    for index in range(len(trace)):
        effects[index, trace.cue_positions[index][-1]] = 1.0
        effects[index, trace.target_positions[index], :layer] = 0.5
        effects[index, trace.target_positions[index], layer:] = 2.0
    object.__setattr__(trace, "effects", {**trace.effects, "logit_difference": effects})
    return trace


@pytest.fixture(scope="module")
def swapped(organism) -> Traced:
    return run_trace(organism("tiny-causal"), kn.load_data("P36"), TraceSettings(corruption="swap", groups=4))


def test_shares_are_of_a_total_above_0_only(swapped) -> None:
    one = swapped.first
    share = swapped.peaks().set_index("class")["share"]
    assert share["target position"] == pytest.approx(
        float(one.by_class()["target position"].mean(0).max() / one.total_effect().mean()), abs=1e-5
    )
    for change in (50.0, torch.tensor([-60.0, 60.0, -60.0, 60.0])):  # it helps; or now this and now that
        corrupted = {name: values + change for name, values in one.clean.items()}
        other = replace(swapped, traces={"resid": replace(one, corrupted=corrupted)})
        assert other.peaks()["share"].isna().all()
        said = findings(other)
        assert said[0].endswith("so is not seen to lower it: no effect is given as a share of it.")
        assert "%" not in said[1]


def test_kl_is_not_said_to_be_lost(organism, swapped) -> None:
    one = replace(swapped.first, metric="kl")
    moved = float(one.total_effect().mean())
    said = findings(replace(swapped, traces={"resid": one}))
    assert f"corrupting the cue (swap) moves the distribution by {moved:.3g} [" in said[0]
    assert "] nats (KL from the clean run), mean of 4 prompts" in said[0]
    model = organism("tiny-causal")
    found = run_knockout(model, kn.load_data("P36"), KnockoutSettings(metric="kl", groups=4))
    for sentence, (_, row) in zip(knockout_findings(found), found.peaks().iterrows(), strict=True):
        size = f"{row['mean loss']:.3g} [{row['low']:.3g}, {row['high']:.3g}] nats (KL from the clean run; "
        assert f"moves its distribution by at most {size}" in sentence
        assert "loses" not in sentence
        assert "clean" not in sentence.replace("KL from the clean run", "")
    assert "clean" not in found.peaks()
    still = {name: torch.full_like(values, -1e-6) for name, values in found.trace.effects.items()}
    still = replace(found, trace=replace(found.trace, effects=still))
    assert all("by at most 0 [0, 0] nats" in sentence for sentence in knockout_findings(still))


def test_what_was_chosen_is_said_to_be(organism) -> None:
    """The peak of random signs lies above 0 too: its interval is that of a maximum."""
    data = kn.load_data("P36")
    found = run_knockout(organism("tiny-causal"), data, KnockoutSettings(groups=4, heads=True))
    choice = "the largest of 16 heads, an interval not corrected for that choice; 4 prompts"
    assert all(choice in sentence for sentence in knockout_findings(found))
    patched = run_patch(organism("tiny-causal"), data, PatchSettings(groups=4))
    said = patch_findings(patched)
    total = float(patched.exact.total_effect().mean())
    assert f"by {total:.3g} [" in said[0]
    assert f"of {len(patched.exact.average())} mean effects (head, sufficiency) that of" in said[1]
    assert "chance" not in " ".join(said)
    assert "interval without 0, not corrected for their number." in said[2]


def test_positions_before_the_cue_are_left_out_where_they_cannot_matter(organism, swapped) -> None:
    assert "before the cue" in set(swapped.average("resid")["class"])
    assert "before the cue" not in set(swapped.peaks()["class"])
    settings = TraceSettings(streams=("mlp",), corruption="zero", groups=4, window=1)
    found = run_trace(organism("tiny-masked"), kn.load_data("P36"), settings)
    mean = found.first.by_class()["before the cue"].nanmean(0)
    row = found.peaks().set_index("class").loc["before the cue"]
    assert row["mean"] == pytest.approx(float(mean.max()), abs=1e-5)
    effects = found.first.effects["logit_difference"].clone()
    for index, cue in enumerate(found.first.cue_positions):
        if cue[0]:
            effects[index, : cue[0], 2] = 1000.0
    largest = replace(found.first, effects={**found.first.effects, "logit_difference": effects})
    assert "lies before the cue: 1e+03" in findings(replace(found, traces={"mlp": largest}))[1]


def test_an_estimate_that_says_nothing_is_left_out(organism) -> None:
    settings = PatchSettings(groups=4, metric="kl", direction="necessity")
    found = run_patch(organism("tiny-causal"), kn.load_data("P36"), settings)
    assert found.estimate is None
    last = "there is no estimate from one gradient: the KL divergence has its minimum in the clean run"
    assert last in patch_findings(found)[-1]
    without = run_patch(organism("tiny-causal"), kn.load_data("P36"), replace(settings, attribution=False))
    assert "gradient" not in " ".join(patch_findings(without))
