"""The command line of batches, as a user meets it: from an example to tables."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from kn_lens.batches.storage.lock import RunLock

KN_LENS = str(Path(sys.executable).with_name("kn-lens"))

FILE = """\
model: tiny-causal
data: {name: P36, groups: 6, prompts: 1}
method: causal_trace
settings: {stream: resid, samples: 2}
shard: 2
"""


def kn_lens(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [KN_LENS, *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a run file, and what came of it in ``runs/small``."""
    folder = tmp_path_factory.mktemp("batch")
    (folder / "small.yaml").write_text(FILE)
    ran = kn_lens("run", "small.yaml", "--workers", 1, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert "runs/small: causal_trace on tiny-causal" in ran.stdout
    assert "complete" in ran.stdout
    return folder


def test_results_are_tables_with_a_row_per_state_and_per_prompt(folder):
    told = kn_lens("results", "runs/small", "--csv", cwd=folder)
    assert told.returncode == 0, told.stderr
    states = pd.read_parquet(folder / "runs/small/results/causal_trace.parquet")
    assert list(states.columns[:6]) == ["data", "stream", "prompt", "position", "token", "class"]
    assert f"causal_trace.parquet: {len(states):,} rows" in told.stdout
    assert states["prompt"].nunique() == 6
    assert len(pd.read_csv(folder / "runs/small/results/causal_trace.csv")) == len(states)
    prompts = pd.read_parquet(folder / "runs/small/results/prompts.parquet")
    assert prompts["prompt"].tolist() == list(range(6))
    assert set(prompts["state"]) == {"done"}


def test_status_of_a_finished_run_is_told_without_a_lock(folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs/small").rglob("*")}
    told = kn_lens("status", "runs/small", cwd=folder)
    assert told.returncode == 0
    row = next(line for line in told.stdout.splitlines() if "P36" in line)
    assert row.split() == ["P36", "resid", "6", "6", "0", "0", "0"]
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs/small").rglob("*")} == before


def test_tables_that_cannot_be_written_are_put_elsewhere(folder):
    (folder / "taken").write_text("mine")
    told = kn_lens("results", "runs/small", "--out", "taken", cwd=folder)
    assert told.returncode == 2
    assert told.stderr == "error: cannot write tables into taken: File exists; name another folder: --out FOLDER\n"


def test_status_of_a_run_that_is_being_planned_names_who_plans_it(tmp_path):
    with RunLock(tmp_path / "run"):
        told = kn_lens("status", "run", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    assert re.fullmatch(rf"run: being planned; running on \S+, process {os.getpid()}, since \S+\n", told.stdout)
    after = kn_lens("status", "run", cwd=tmp_path)
    assert after.returncode == 2
    assert "holds no planned run" in after.stderr


def test_a_finished_run_is_not_computed_again(folder):
    told = kn_lens("run", "small.yaml", cwd=folder)
    assert told.returncode == 0, told.stderr
    assert "begins with 0 of 3 pieces" in (folder / "runs/small/log.txt").read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FILE.replace("samples", "smaples"), ["bad.yaml:4: ", "'smaples'", "Did you mean 'samples'"]),
        (FILE.replace("shard: 2", "shard: 0"), ["bad.yaml:5: shard is 0"]),
        (FILE.replace("causal_trace", "casual_trace"), ["bad.yaml:3: ", "Did you mean 'causal_trace'"]),
        (FILE.replace("P36", "P63"), ["bad.yaml:2: ", "'P63'", "'P36'"]),
    ],
)
def test_mistakes_in_a_run_file_are_told_by_line(tmp_path, text, said):
    (tmp_path / "bad.yaml").write_text(text)
    told = kn_lens("run", "bad.yaml", cwd=tmp_path)
    assert told.returncode == 2
    for part in said:
        assert part in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_every_mistake_is_told_in_one_go(tmp_path):
    (tmp_path / "bad.yaml").write_text(
        FILE.replace("shard: 2", "shard: none\nseeds: 1").replace("samples: 2", "window: x")
    )
    told = kn_lens("run", "bad.yaml", cwd=tmp_path)
    assert told.returncode == 2
    assert sum(f"bad.yaml:{line}: " in told.stderr for line in (4, 5, 6)) == 3


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["resume", "."], "holds no planned run"),
        (["status", "."], "holds no planned run"),
        (["results", "nowhere"], "holds no planned run"),
        (["run", "missing.yaml"], "missing.yaml"),
        (["init", "tracin"], "Did you mean 'tracing'"),
        (["resume", ".", "--engine", "spark"], "holds no planned run"),
    ],
)
def test_what_is_not_there_is_one_line_and_exit_code_2(tmp_path, args, said):
    told = kn_lens(*args, cwd=tmp_path)
    assert told.returncode == 2
    assert said in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_engine_is_named(folder):
    told = kn_lens("resume", "runs/small", "--engine", "rya", cwd=folder)
    assert told.returncode == 2
    assert "Did you mean 'ray'" in told.stderr


def test_init_lists_its_examples_and_prints_one(tmp_path):
    listed = kn_lens("init", cwd=tmp_path)
    assert "tracing" in listed.stdout
    printed = kn_lens("init", "tracing", cwd=tmp_path)
    assert "method: causal_trace" in printed.stdout


def test_ctrl_c_ends_after_the_pieces_in_hand_and_resume_goes_on(tmp_path):
    (tmp_path / "long.yaml").write_text(FILE.replace("groups: 6", "groups: 60").replace("samples: 2", "samples: 10"))
    command = [KN_LENS, "run", "long.yaml", "--workers", "1", "--out", "runs/a long one"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    parts = tmp_path / "runs/a long one/parts"
    until = time.monotonic() + 120
    while len(list(parts.glob("part-*.json"))) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "go on with: kn-lens resume 'runs/a long one'" in errors
    done = len(list(parts.glob("part-*.json")))
    assert 2 <= done < 30
    assert f"{done} of 30 pieces" in out
    rest = kn_lens("resume", "runs/a long one", cwd=tmp_path)
    assert rest.returncode == 0, rest.stderr
    assert f"begins with {30 - done} of 30 pieces" in (tmp_path / "runs/a long one/log.txt").read_text()
