"""Results come back from a folder exactly as they were. User needs 9 and 14: with the settings that made them."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from typing import Any

import pytest
import torch

import kn_lens as kn
from kn_lens.errors import OutputError
from kn_lens.prompts.prompt import Dropped
from kn_lens.results import Result
from tests.editing.test_layer_choice import believed_facts, wordy_model
from tests.questions import likely_batch

DROPPED = (
    Dropped(text="It was [MASK] …", reason="text after the blank", source="a.jsonl:3"),
    Dropped(text="b", reason="c"),
)


@pytest.fixture(scope="module")
def results(random_model, tmp_path_factory):
    """One of every class, by its name."""
    model = random_model("gpt2")
    wordy = wordy_model(tmp_path_factory.mktemp("wordy"))
    facts = believed_facts(wordy)
    tuned = functools.partial(kn.fine_tune, steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KN_LENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        covariance = kn.covariance_of(wordy, "self", layer=0, tokens=300, progress=False)
    pairs = [
        kn.Prompt("These", foil_prefix="This", target="dogs", form="two_prefix", cue=(0, 5), source="pairs.jsonl:1"),
        kn.Prompt("The boy knows “these”", foil_prefix="The", target="dogs", form="two_prefix", group="these → dogs"),
    ]
    batch = likely_batch(model)
    verbs = [
        kn.Prompt(f"The {cue} near the house", target=target, cue=cue)
        for cue, target in (("boy", "sleeps"), ("boys", "sleep"), ("girl", "sings"), ("girls", "sing"), ("cat", "runs"))
    ]
    counts = kn.PairCounts(
        counts={("boy", "sleeps"): 3, ("boys", "sleep"): 1, ("girl", "sings"): 12, ("girls", "sing"): 4},
        source="a corpus",
        window=None,
        sha256="0",
        tokens=None,
        closed=False,
    )
    scores = dataclasses.replace(kn.integrated_gradients(model, batch, steps=2, progress=False), dropped=DROPPED)
    return {
        "AttributionScores": scores,
        "KnowledgeNeurons": kn.find_knowledge_neurons(scores, count=(1, 3)),
        "UnitEffect": dataclasses.replace(
            kn.suppress(model, pairs, [(0, 1), (2, 3)], controls=2, progress=False), dropped=DROPPED
        ),
        "FrequencyEffect": kn.frequency_effect(
            kn.suppress(model, verbs, [(0, 1), (2, 3)], controls=2, progress=False), counts, draws=20
        ),
        "CausalTrace": kn.causal_trace(model, batch, stream="head", samples=2, progress=False),
        "KnockoutTrace": kn.attention_knockout(model, batch, progress=False),
        "PatchEffects": kn.activation_patching(model, batch, sources=batch, positions="sum", progress=False),
        "DirectLogits": kn.direct_logit_attribution(model, batch, neurons=True, progress=False),
        "Edit": kn.Edit(
            editor="by hand",
            fact=facts[0],
            rows={"blocks.0.mlp.W_out": torch.tensor([1, 4])},
            changes={"blocks.0.mlp.W_out": torch.ones(2, model.cfg.d_model)},
            settings={"why": "to see"},
            provenance={},
        ),
        "RankOneEdit": kn.rome(wordy, facts[0], layer=1, steps=3, prefixes=["The cat sleeps."]),
        "FineTuneEdit": tuned(wordy, facts[1], layer=0),
        "UnitsEdit": kn.neuron_edit(wordy, facts[2], units=[(0, 3), (2, 1)]),
        "LayerChoice": kn.layer_by_tracing(wordy, facts, progress=False),
        "Covariance": covariance,
        "EditEvaluation": dataclasses.replace(
            kn.evaluate_edits(wordy, functools.partial(tuned, layer=0), facts[:2], progress=False), dropped=DROPPED
        ),
        "LayerSweep": kn.sweep_layers(wordy, facts[:2], editor=tuned, layers=[0, 2], progress=False),
        "AblationCurve": kn.ablation_curve(model, batch, scores, controls=2, progress=False),
    }


def same(left, right):
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left.nan_to_num(7e7), right.nan_to_num(7e7))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and left != left:
        return right != right
    return type(left) is type(right) and left == right


KINDS = (
    "AblationCurve",
    "AttributionScores",
    "CausalTrace",
    "Covariance",
    "DirectLogits",
    "Edit",
    "EditEvaluation",
    "FineTuneEdit",
    "FrequencyEffect",
    "KnockoutTrace",
    "KnowledgeNeurons",
    "LayerChoice",
    "LayerSweep",
    "PatchEffects",
    "RankOneEdit",
    "UnitEffect",
    "UnitsEdit",
)


def test_every_class_is_tried(results):
    for name in kn.__all__:
        getattr(kn, name)
    assert set(results) == set(KINDS)
    # What experiments keep for themselves is read by its own class, in their own tests.
    apart = ("kn_lens.studies.", "kn_lens.experiments.")
    own = {name: kind.__module__ for name, kind in Result._kinds.items() if kind.__module__.startswith("kn_lens.")}
    assert {name for name, module in own.items() if not module.startswith(apart)} == set(results)


@pytest.mark.parametrize("name", KINDS)
def test_saved_and_loaded_is_the_same(results, tmp_path, name):
    result = results[name]
    folder = result.save(tmp_path / "new" / "folder")
    for kind in (type(result), Result):
        back: Any = kind.load(folder)
        assert type(back) is type(result)
        for field in dataclasses.fields(result):
            assert same(getattr(result, field.name), getattr(back, field.name)), field.name
        assert back.settings == result.settings
        assert back.to_frame().equals(result.to_frame())


def test_nothing_needs_to_be_imported_first(results, tmp_path):
    """In a fresh process, from ``kn.Result`` alone."""
    for name, result in results.items():
        result.save(tmp_path / name)
        code = f"import kn_lens as kn; print(type(kn.Result.load({str(tmp_path / name)!r})).__name__)"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert ran.stdout.strip() == name, ran.stderr


def test_what_cannot_be_read_is_said_in_one_line(results, tmp_path):
    with pytest.raises(OutputError, match="holds no readable result"):
        kn.Result.load(tmp_path / "nothing")
    scores = results["AttributionScores"]
    folder = scores.save(tmp_path / "scores")
    with pytest.raises(OutputError, match="holds a AttributionScores result, not KnowledgeNeurons"):
        kn.KnowledgeNeurons.load(folder)
    fields = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for changed, problem in (
        (fields | {"more": 1}, "more"),
        ({"kind": fields["kind"], "kn_lens": "0.0"}, "kn_lens 0.0"),
    ):
        (folder / "result.json").write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(OutputError, match=rf"holds no AttributionScores as kn_lens .* writes it, but.*{problem}"):
            kn.Result.load(folder)
    (folder / "result.json").write_text("[]")
    with pytest.raises(OutputError, match="holds no readable result"):
        kn.Result.load(folder)
    (folder / "result.json").write_text("{")
    with pytest.raises(OutputError, match="holds no readable result"):
        kn.AttributionScores.load(folder)
    (folder / "tensors.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(OutputError, match=r"tensors.safetensors is damaged|no readable result"):
        kn.AttributionScores.load(folder)
    (folder / "result.json").write_text(json.dumps({"kind": "Cake"}))
    scores.save(tmp_path / "other")
    (tmp_path / "other" / "result.json").write_text(json.dumps({"kind": "Cake"}))
    with pytest.raises(OutputError, match="holds a foreign result"):
        kn.Result.load(tmp_path / "other")


def test_a_folder_that_cannot_be_written(results, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        results["KnowledgeNeurons"].save(tmp_path / "file" / "below")


def test_scores_of_some_prompts(results):
    scores = results["AttributionScores"]
    part = scores.select([3, 0])
    assert part.prompts == (scores.prompts[3], scores.prompts[0])
    for name in ("values", "probability", "convergence_delta"):
        assert torch.equal(getattr(part, name), getattr(scores, name)[[3, 0]])
    assert part.settings == scores.settings


def test_the_table_of_scores_names_the_top_units(results):
    scores = results["AttributionScores"]
    frame = scores.to_frame(top=5)
    assert len(frame) == 5 * len(scores)
    for index in range(len(scores)):
        rows = frame[frame["prompt"] == index]
        top = scores.values[index].flatten().topk(5)
        assert rows["score"].tolist() == pytest.approx(top.values.tolist())
        for layer, unit, score in zip(rows["layer"], rows["unit"], rows["score"], strict=True):
            assert scores.values[index, layer, unit].item() == score
    assert len(scores.to_frame(top=None)) == scores.values.numel()
