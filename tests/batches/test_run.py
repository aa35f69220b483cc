"""Runs from the first step to the tables: whoever computes them, however often they are stopped, they are the same."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pandas as pd
import pytest
import torch

import kn_lens as kn
from kn_lens.batches.export import write_tables
from kn_lens.batches.methods import METHODS
from kn_lens.batches.methods.tracing import CausalTraceMethod
from kn_lens.batches.plan import make_plan
from kn_lens.batches.task import Tasks
from kn_lens.errors import OutputError, SettingsError

CONFIG = {
    "model": "tiny-causal",
    "data": {"name": "P36", "groups": 10, "prompts": 1},
    "method": "causal_trace",
    "settings": {"stream": ["resid", "attn"], "samples": 3},
    "shard": 4,
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> kn.BatchRun:
    """A run by one worker in one go."""
    return kn.run(CONFIG, tmp_path_factory.mktemp("run") / "one", workers=1, progress=False)


def table_bytes(run: kn.BatchRun, out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in write_tables(run, out, csv=True)}


def test_two_workers_leave_the_same_bytes_as_one(undisturbed, tmp_path):
    other = kn.run(CONFIG, tmp_path / "two", workers=2, progress=False)
    assert table_bytes(other, tmp_path / "b") == table_bytes(undisturbed, tmp_path / "a")
    parts = sorted(path.name for path in undisturbed.store.parts.glob("part-*.safetensors"))
    assert len(parts) == 6  # three blocks, two streams
    for name in parts:
        assert (other.store.parts / name).read_bytes() == (undisturbed.store.parts / name).read_bytes()


def test_two_workers_of_ray_leave_the_same_bytes(undisturbed, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    other = kn.run(CONFIG, tmp_path / "ray", engine="ray", workers=2, progress=False)
    assert table_bytes(other, tmp_path / "b") == table_bytes(undisturbed, tmp_path / "a")
    assert "2 workers (ray)" in (other.folder / "log.txt").read_text()


def test_the_result_is_what_the_function_returns(undisturbed, organism):
    tiny_causal = organism("tiny-causal")
    prompts = kn.load_relation("P36").prompts(tiny_causal, groups=10, per_group=1)
    expected = kn.causal_trace(tiny_causal, prompts, stream="attn", samples=3, progress=False)
    found = undisturbed.result(variant="attn")
    assert found.prompts == expected.prompts
    assert found.dropped == expected.dropped
    assert found.sigma == pytest.approx(expected.sigma, rel=1e-6)
    for metric, values in expected.effects.items():
        torch.testing.assert_close(found.effects[metric], values, rtol=1e-4, atol=3e-5, equal_nan=True)


def test_a_smaller_shard_gives_the_same_numbers_within_rounding(undisturbed, tmp_path):
    other = kn.run({**CONFIG, "shard": 3}, tmp_path / "three", workers=1, progress=False)
    key = ["data", "stream", "prompt", "position", "layer"]
    ours, theirs = (run.frame().sort_values(key, ignore_index=True) for run in (undisturbed, other))
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=3e-5)


def test_what_is_missing_or_damaged_is_made_again_and_nothing_else(tmp_path, undisturbed, caplog):
    folder = tmp_path / "again"
    run = kn.run(CONFIG, folder, workers=1, progress=False)
    before = table_bytes(run, tmp_path / "before")
    (run.store.parts / "part-00001.json").unlink()
    damaged = run.store.parts / "part-00003.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    kept = {path: path.stat().st_mtime_ns for path in run.store.parts.glob("part-0000[0245].*")}
    with caplog.at_level(logging.WARNING):
        again = kn.resume(folder, workers=1, progress=False)
    assert "part-00003.parquet has" in caplog.text
    assert table_bytes(again, tmp_path / "after") == before == table_bytes(undisturbed, tmp_path / "first")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(kept) == 12


def test_other_settings_are_refused_with_what_differs(undisturbed):
    other = {**CONFIG, "settings": {"stream": ["resid", "attn"], "samples": 4}}
    with pytest.raises(OutputError, match=r"settings\.samples \(there 3, here 4\)"):
        kn.run(other, undisturbed.folder, progress=False)


def test_data_that_changed_are_refused(tmp_path):
    data = tmp_path / "prompts.jsonl"
    rows = [{"prefix": "The capital of France is", "target": "Paris", "cue": "France"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {**CONFIG, "data": str(data), "method": "max_activation", "settings": {}}
    kn.run(config, tmp_path / "run", workers=1, progress=False)
    data.write_text(data.read_text().replace("France", "Spain"))
    with pytest.raises(OutputError, match="has changed since the run"):
        kn.run(config, tmp_path / "run", progress=False)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'thesis\.tex', which is no part of a run"):
        kn.run(CONFIG, tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_mapping_needs_a_folder():
    with pytest.raises(SettingsError, match="say where the run is kept"):
        kn.run(CONFIG)


def test_several_variants_must_be_named(undisturbed):
    with pytest.raises(SettingsError, match=r"several streams: say which, variant='resid'"):
        undisturbed.result()
    with pytest.raises(SettingsError, match=r"no stream 'atn'\. Did you mean 'attn'"):
        undisturbed.result(variant="atn")


class _Fragile(CausalTraceMethod):
    """Fails where a prompt is about one country."""

    def compute(self, model, work):
        if any("Spain" in prompt.text for prompt in work.posed.prompts):
            raise RuntimeError("the weights of Spain\nare missing")
        return super().compute(model, work)


def test_a_prompt_that_fails_takes_no_other_with_it(tmp_path, monkeypatch, undisturbed, organism):
    monkeypatch.setitem(METHODS, "causal_trace", _Fragile())
    folder = tmp_path / "fragile"
    folder.mkdir()
    make_plan(folder, CONFIG, progress=False)
    tasks = Tasks(folder, lambda: organism("tiny-causal"))
    records = [tasks.do(number) for number in range(len(tasks.store.tasks()))]
    failed = [one for record in records for one in record.failed]
    assert {one.reason for one in failed} == {"RuntimeError: the weights of Spain are missing"}
    spain = [row["prompt"] for row in undisturbed.prompts().to_dict("records") if "Spain" in row["text"]]
    assert sorted(one.prompt for one in failed) == sorted(spain)
    run = kn.BatchRun(folder)
    status = run.status()
    assert status.complete
    assert [(share.done, share.failed, share.open) for share in status.shares] == [(9, 1, 0), (9, 1, 0)]
    whole = undisturbed.frame()
    rest = whole[~whole["prompt"].isin(spain)].reset_index(drop=True)
    pd.testing.assert_frame_equal(run.frame(), rest, rtol=1e-4, atol=3e-5)
    table = run.prompts()
    assert table.loc[table["state"] == "failed", "prompt"].tolist() == spain
    assert table.loc[table["state"] == "failed", "probability clean"].isna().all()
    assert table.loc[table["state"] == "done", "probability clean"].gt(0).all()
    assert run.failures(1)[0].startswith(f"prompt {spain[0]}, 'The capital of Spain is")


def test_other_weights_are_refused(tmp_path, organism):
    folder = tmp_path / "run"
    folder.mkdir()
    make_plan(folder, CONFIG, progress=False)
    with pytest.raises(kn.ModelError, match="are not those that this run was planned with"):
        Tasks(folder, lambda: organism("tiny-masked")).do(0)


@pytest.fixture
def small(tmp_path) -> kn.BatchRun:
    """A finished run of its own, to be damaged."""
    config = {**CONFIG, "method": "max_activation", "settings": {}}
    return kn.run(config, tmp_path / "small", workers=1, progress=False)


def parts_of(run: kn.BatchRun) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.store.parts.glob("part-*"))}


def test_a_damaged_manifest_lets_no_other_run_take_the_folder(small):
    parts, file = parts_of(small), (small.folder / "run.yaml").read_bytes()
    manifest = small.folder / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-50])
    prompts = (small.folder / "prompts.parquet").read_bytes()
    other = {**CONFIG, "method": "max_activation", "settings": {}, "data": {"name": "P36", "groups": 9, "prompts": 1}}
    with pytest.raises(OutputError, match="holds finished parts of a run with other settings"):
        kn.run(other, small.folder, workers=1, progress=False)
    assert parts_of(small) == parts
    assert (small.folder / "run.yaml").read_bytes() == file
    assert (small.folder / "prompts.parquet").read_bytes() == prompts
    again = kn.resume(small.folder, workers=1, progress=False)
    assert parts_of(again) == parts
    assert json.loads(manifest.read_text())["run"] == json.loads(whole)["run"]
    assert not [path.name for path in small.folder.iterdir() if path.name.startswith(".")]


def test_lost_files_of_prompts_are_planned_anew(small, caplog):
    parts = parts_of(small)
    (small.folder / "dropped.parquet").unlink()
    with caplog.at_level(logging.WARNING):
        again = kn.resume(small.folder, workers=1, progress=False)
    assert "dropped.parquet is missing or damaged; the run is planned anew" in caplog.text
    assert parts_of(again) == parts
    assert len(again.result(variant="mlp").prompts) == 10


def test_a_run_file_edited_in_the_folder_is_told_and_not_followed(small, caplog):
    file = small.folder / "run.yaml"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 9'))
    with caplog.at_level(logging.WARNING):
        kn.resume(small.folder, workers=1, progress=False)
    assert "was changed (seed (there 0, here 9)); the run goes on as it was planned" in caplog.text


def test_another_kind_of_device_is_refused(small, organism):
    manifest = small.store.manifest()
    moved = manifest.model_copy(update={"provenance": {**manifest.provenance, "device": "cuda:0"}})
    small.store.write_manifest(moved)
    with pytest.raises(kn.ModelError, match="planned on the device cuda:0, and this worker computes on cpu"):
        Tasks(small.folder, lambda: organism("tiny-causal")).do(0)


def test_the_last_prompts_look_for_twins_among_those_before():
    from kn_lens.batches.plan import _windows

    assert [len(window) for window in _windows(range(9), 4)] == [4, 5]
    assert [len(window) for window in _windows(range(8), 4)] == [4, 4]
    assert [len(window) for window in _windows(range(3), 4)] == [3]
    assert [len(window) for window in _windows(range(0), 4)] == []


def test_what_was_written_into_the_folder_of_a_run_does_not_keep_it_from_going_on(small):
    (small.folder / "report.html").write_text("a page")
    (small.folder / "notes.txt").write_text("mine")
    parts = parts_of(small)
    assert parts_of(kn.resume(small.folder, workers=1, progress=False)) == parts


def test_a_run_that_cannot_be_planned_leaves_no_folder(tmp_path):
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prefix": "The capital of France is", "target": "Paris", "cue": "Spain"}\n')
    with pytest.raises(kn.DataError, match=r"prompts\.jsonl:1: "):
        kn.run({**CONFIG, "data": str(data)}, tmp_path / "run", workers=1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]
