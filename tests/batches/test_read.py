"""A run as it is read: what was left out, what is open, its tables as files, and pieces that change meanwhile."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import kn_lens as kn
from kn_lens.batches import read
from kn_lens.batches.export import write_tables
from kn_lens.batches.left_out import all_left_out
from kn_lens.batches.methods import METHODS
from kn_lens.batches.methods.attribution import MaxActivationMethod
from kn_lens.batches.methods.editing import EvaluateEditsMethod
from kn_lens.batches.methods.tracing import CausalTraceMethod
from kn_lens.batches.plan import make_plan
from kn_lens.batches.prompt_table import PromptReader
from kn_lens.batches.storage.part import LeftOut
from kn_lens.batches.storage.store import Store
from kn_lens.batches.task import Tasks
from kn_lens.criteria.cases import edit_cases
from kn_lens.criteria.evaluation import FAILED
from kn_lens.errors import OutputError, PromptError
from kn_lens.prompts.prompt import Dropped
from kn_lens.runs.batch_report import read_batch_report
from kn_lens.tracing.answered import WRONG

CAPITALS = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Germany": "Berlin"}
TRACE: dict[str, Any] = {
    "model": "tiny-causal",
    "method": "causal_trace",
    "settings": {"samples": 2, "sigma": 0.1},
    "shard": 4,
}


def prompts_file(folder: Path, wrong: tuple[str, ...], without_cue: tuple[str, ...] = ()) -> Path:
    """Capitals, of some countries another one's, of some without a cue."""
    names, rows = list(CAPITALS), []
    for at, country in enumerate(names):
        target = CAPITALS[names[at - 1] if country in wrong else country]
        row = {"prefix": f"The capital of {country} is", "target": target}
        rows.append(row if country in without_cue else {**row, "cue": country})
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def planned(folder: Path, config: dict[str, Any], model: Any, pieces: int | None = None) -> kn.BatchRun:
    """A run in this process, with so many of its pieces done."""
    folder.mkdir(parents=True)
    make_plan(folder, config, progress=False)
    tasks = Tasks(folder, lambda: model)
    for number in range(len(tasks.store.tasks()) if pieces is None else pieces):
        tasks.do(number)
    return kn.BatchRun(folder)


class _FailsTogether(CausalTraceMethod):
    """Fails with more than two prompts at once, and where a prompt is about Germany."""

    def compute(self, model, work):
        texts = [prompt.text for prompt in work.posed.prompts]
        if len(texts) > 2 or any("Germany" in text for text in texts):
            raise RuntimeError("too much")
        return super().compute(model, work)


# What was left out


def test_prompts_of_a_half_of_which_nothing_is_left_are_in_the_result(tmp_path, organism, monkeypatch):
    monkeypatch.setitem(METHODS, "causal_trace", _FailsTogether())
    path = prompts_file(tmp_path, wrong=("France", "Spain"))
    run = planned(tmp_path / "run", {**TRACE, "data": str(path)}, organism("tiny-causal"))
    (record,) = run.store.records().values()
    assert [one.prompt for one in record.dropped] == [0, 1]
    assert [(one.prompt, one.reason) for one in record.failed] == [(3, "RuntimeError: too much")]
    found = run.result()
    assert [prompt.text for prompt in found.prompts] == ["The capital of Italy is"]
    sources = list(run.prompts()["source"][:2])
    assert found.dropped == tuple(
        Dropped(text=f"The capital of {name} is", reason=WRONG, source=source)
        for name, source in zip(("France", "Spain"), sources, strict=True)
    )
    assert all(source.endswith(f"own.jsonl:{line}") for line, source in enumerate(sources, start=1))
    assert [found.provenance[name] for name in ("parts", "open", "failed")] == [1, 0, 1]


def test_of_one_block_what_is_left_out_is_what_the_function_leaves_out(tmp_path, organism):
    model = organism("tiny-causal")
    path = prompts_file(tmp_path, wrong=("France", "Germany"), without_cue=("Spain",))
    run = planned(tmp_path / "run", {**TRACE, "data": str(path)}, model)
    posed = [prompt for prompt, _ in PromptReader(run.folder).read(range(3))]  # without Spain
    kept = kn.PromptBatch.from_prompts(model, posed)
    texts = ["The capital of France is", "The capital of Germany is"]
    expected = kn.causal_trace(model, kept, samples=2, sigma=0.1, progress=False)
    assert [one.text for one in expected.dropped] == texts
    no_cue, *others = run.result().dropped
    assert (no_cue.text, no_cue.reason) == ("The capital of Spain is", "no cue")
    assert tuple(others) == expected.dropped


@pytest.mark.parametrize("alone", [False, True])
def test_edits_that_cannot_be_made_are_each_told_once(tmp_path, organism, monkeypatch, alone):
    """Whether others of their piece can be made, or, with pieces of one edit, none."""
    model = organism("tiny-causal")
    cases = edit_cases(model, kn.load_relation("P36"), edits=4, seed=0, criteria=["reliability"])
    subject = cases.cases[1].fact.subject
    rome = METHODS["evaluate_edits"].compute.__globals__["_study"]

    def fragile(settings, seed):
        study = rome(settings, seed)

        class Study:
            def editor(self, name):
                made = study.editor(name)

                def edit(model, fact):
                    if fact.subject == subject:
                        raise PromptError("it resists")
                    return made(model, fact)

                return edit

        return Study()

    monkeypatch.setitem(METHODS, "evaluate_edits", EvaluateEditsMethod())
    monkeypatch.setattr("kn_lens.batches.methods.editing._study", fragile)
    config = {
        "model": "tiny-causal",
        "data": {"name": "P36", "groups": 4},
        "method": "evaluate_edits",
        "settings": {"editors": "rome-random-direction", "layer": 1, "criteria": ["reliability"]},
        "shard": 1 if alone else 4,
    }
    monkeypatch.setattr(EvaluateEditsMethod, "check_model", lambda *given: None)
    run = planned(tmp_path / "run", config, model)
    found = run.result()
    assert len(found.edits) == 3
    ((text, reason),) = [(one.text, one.reason) for one in found.failed]
    assert subject in text
    assert reason == f"{FAILED}it resists"
    assert found.provenance["failed"] == 1


def test_what_only_a_result_tells_stays_before_the_prompt_that_it_belongs_to():
    def record(at: int, why: str = "x") -> LeftOut:
        return LeftOut(prompt=at, text=f"p{at}", reason=why)

    def told(text: str, why: str = "x") -> Dropped:
        return Dropped(text=text, reason=why, source="s")

    result = [told("question", "q"), told("p3"), told("p1"), told("question", "q"), told("p5", "other")]
    found = all_left_out(
        [record(5), record(3), record(1), record(2)],
        result,
        lambda some: [Dropped(text=one.text, reason=one.reason) for one in some],
    )
    assert [(one.text, one.reason, one.source) for one in found] == [
        ("p1", "x", "s"),
        ("p2", "x", None),
        ("question", "q", "s"),
        ("p3", "x", "s"),
        ("p5", "x", None),
        ("question", "q", "s"),
        ("p5", "other", "s"),
    ]


def test_twice_the_same_prompt_is_told_twice():
    same = [LeftOut(prompt=at, text="p", reason="x") for at in (0, 4)]
    found = all_left_out(
        same, [Dropped(text="p", reason="x")], lambda some: [Dropped(text="p", reason="x", source="2")]
    )
    assert [one.source for one in found] == [None, "2"]


# What is open


def test_a_result_of_an_unfinished_run_says_so(tmp_path, organism, caplog):
    path = prompts_file(tmp_path, wrong=())
    run = planned(tmp_path / "run", {**TRACE, "data": str(path), "shard": 1}, organism("tiny-causal"), pieces=3)
    with caplog.at_level(logging.WARNING):
        found = run.result()
    assert [found.provenance[name] for name in ("parts", "open", "failed")] == [3, 1, 0]
    assert [line.getMessage() for line in caplog.records] == [
        f"{run.folder}: {path}, resid: 1 of 4 prompts are open; the result is of the others"
    ]
    caplog.clear()
    assert read_batch_report(run.folder).done == 3  # whose page says how far it is
    Tasks(run.folder, lambda: organism("tiny-causal")).do(3)
    assert run.result().provenance["open"] == 0
    assert not caplog.records


def test_a_part_that_goes_while_its_run_is_read_is_open(tmp_path, organism, monkeypatch):
    path = prompts_file(tmp_path, wrong=())
    run = planned(tmp_path / "run", {**TRACE, "data": str(path), "shard": 1}, organism("tiny-causal"))
    records = run.store.records()
    run.store.remove_part(1)
    monkeypatch.setattr(run.store, "records", lambda: records)
    assert run.result().provenance["open"] == 1
    assert len(run.prompts()) == 4


# Tables


@pytest.mark.parametrize("rows", [1, 3, 4096])
def test_prompts_are_the_same_however_many_pieces_share_a_table(tmp_path, organism, monkeypatch, rows):
    path = prompts_file(tmp_path, wrong=("Italy",))
    config = {**TRACE, "data": str(path), "shard": 1, "settings": {"samples": 2, "stream": ["resid", "mlp"]}}
    run = planned(tmp_path / "run", config, organism("tiny-causal"), pieces=6)
    monkeypatch.setattr(read, "_ROWS", rows)
    tables = list(run.prompt_tables())
    assert len(tables) == {1: 8, 3: 3, 4096: 1}[rows]
    table = pd.concat(tables, ignore_index=True)
    assert table["prompt"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert table["stream"].tolist() == ["resid", "mlp"] * 4
    assert table["state"].tolist() == ["done"] * 4 + ["left out"] * 2 + ["open"] * 2
    clean = run.result(variant="mlp").clean["probability"].tolist()
    assert table.loc[[1, 3], "probability clean"].tolist() == clean
    assert table.loc[4:, "probability clean"].isna().all()


def test_both_files_have_the_same_rows_and_nothing_else_is_left(tmp_path, organism):
    path = prompts_file(tmp_path, wrong=("Italy",))
    run = planned(tmp_path / "run", {**TRACE, "data": str(path), "shard": 1}, organism("tiny-causal"))
    out = tmp_path / "out"
    found = write_tables(run, out, csv=True)
    assert {path.name for path in found} == {path.name for path in out.iterdir()}
    assert {path.name for path in found} == {
        f"{name}.{end}" for name in ("causal_trace", "prompts") for end in ("csv", "parquet")
    }
    for name in ("causal_trace", "prompts"):
        text, table = pd.read_csv(out / f"{name}.csv"), pd.read_parquet(out / f"{name}.parquet")
        assert list(text.columns) == list(table.columns)
        assert len(text) == len(table) == found[out / f"{name}.csv"] == found[out / f"{name}.parquet"]
        assert text["prompt"].tolist() == table["prompt"].tolist()


def test_a_folder_that_cannot_be_written_is_answered_with_another(tmp_path, organism):
    path = prompts_file(tmp_path, wrong=())
    run = planned(tmp_path / "run", {**TRACE, "data": str(path)}, organism("tiny-causal"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as raised:
        write_tables(run, tmp_path / "file")
    assert str(raised.value) == (
        f"cannot write tables into {tmp_path / 'file'}: File exists; name another folder: --out FOLDER"
    )


def test_a_full_disk_leaves_no_file(tmp_path, organism, monkeypatch):
    path = prompts_file(tmp_path, wrong=())
    run = planned(tmp_path / "run", {**TRACE, "data": str(path)}, organism("tiny-causal"))

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left on device; free some space, or name another folder: --out FO"):
        write_tables(run, tmp_path / "out", csv=True)
    assert not list((tmp_path / "out").iterdir())


def test_advice_quotes_the_folder(tmp_path, organism):
    path = prompts_file(tmp_path, wrong=())
    run = planned(tmp_path / "my run", {**TRACE, "data": str(path)}, organism("tiny-causal"), pieces=0)
    with pytest.raises(OutputError, match=f"`kn-lens status '{tmp_path}/my run'`"):
        run.frame()


def test_tables_and_states_need_each_record_once(tmp_path, organism, monkeypatch):
    path = prompts_file(tmp_path, wrong=())
    config = {**TRACE, "data": str(path), "shard": 1, "method": "max_activation", "settings": {}}
    run = planned(tmp_path / "run", config, organism("tiny-causal"))
    counts: Counter[str] = Counter()
    monkeypatch.setattr(Store, "records", lambda self, own=Store.records: counts.update(["read"]) or own(self))
    from kn_lens.cli.batch import results, status

    status(run.folder)
    assert counts["read"] == 1
    results(run.folder, out=tmp_path / "out", csv=True)
    assert counts["read"] == 2
    assert isinstance(run.method, MaxActivationMethod)
