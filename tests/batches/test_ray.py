"""The Ray engine on a real Ray of this machine, with tasks that misbehave."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter

import pytest

from kn_lens.errors import ModelError, OutputError, SettingsError
from tests.batches.toys import log_of, write_orders

pytest.importorskip("ray", reason="ray is not installed (pip install 'kn-lens[ray]')")

from kn_lens.batches.engines.ray_engine import RayEngine, _Actor, _check_sees, _seen

TOYS = "tests.batches.toys:Toys"
PLAN = "tests.batches.toys:make_plan"


def never():
    return False


@pytest.fixture(scope="module")
def engine():
    with RayEngine(workers=2, threads=1, tasks=TOYS, planner=PLAN) as opened:
        yield opened


def test_tasks_of_a_killed_worker_are_done_again_and_one_that_always_kills_is_told(engine, tmp_path):
    write_orders(tmp_path, sleep=0.05, **{"7": ["die"], "11": ["die", 2]})
    found, killed = [], []
    for one in engine.outcomes(tmp_path, range(30), never):
        found.append(one)
        if not killed and one.record and one.task not in (7, 11):
            killed.append(one.record["pid"])
            os.kill(killed[0], signal.SIGKILL)  # whatever it is doing by now
    assert sorted(one.task for one in found) == list(range(30))
    (lost,) = [one for one in found if one.record is None]
    assert lost.task == 7
    assert lost.error == "killed its worker 3 times, last by ActorDiedError"
    begun = [one for one in log_of(tmp_path) if one["kind"] == "task"]
    assert [one["divisor"] for one in begun if one["number"] == 11] == [1, 1, 2]
    assert {one["threads"] for one in begun} == {"1"}
    assert len({one["pid"] for one in begun}) >= 2
    # 7 and 11 began three times; of the rest only what the killed worker had in hand began twice.
    again = Counter(one["number"] for one in begun)
    assert again[7] == again[11] == 3
    assert sum(again.values()) - 30 - 4 <= 1


def test_what_a_task_raises_ends_the_run_and_stop_ends_it_with_what_is_in_hand(engine, tmp_path):
    write_orders(tmp_path, sleep=0.05, **{"6": ["disk full"]})
    found = []
    for one in engine.outcomes(tmp_path, range(10**9), lambda: len(found) >= 3):
        found.append(one.task)
    assert 3 <= len(found) <= 4
    assert sorted(found) == sorted(one["number"] for one in log_of(tmp_path) if one["kind"] == "task")
    with pytest.raises(OutputError, match=r"^cannot write it: No space left on device$"):
        list(engine.outcomes(tmp_path, range(4, 10**6), never))


def test_workers_that_cannot_start_are_told_once(engine, tmp_path):
    write_orders(tmp_path, start=["settings"])
    with pytest.raises(SettingsError, match=r"^it cannot be so$"):
        list(engine.outcomes(tmp_path, range(9), never))
    write_orders(tmp_path, start=["die"])
    with pytest.raises(ModelError, match=r"^the worker died 3 times while it loaded the model"):
        list(engine.outcomes(tmp_path, [3], never))


def test_plans_in_a_process_of_its_own(engine, tmp_path):
    engine.plan(tmp_path, {"model": "m"})
    assert f'"pid": {os.getpid()}' not in (tmp_path / "plan.json").read_text()
    with pytest.raises(SettingsError, match=r"^not so$"):
        engine.plan(tmp_path, {"raise": "not so"})
    with pytest.raises(OutputError, match=r"^planning was ended by"):
        engine.plan(tmp_path, {"die": True})


def test_a_machine_that_does_not_see_the_runs_folder_says_so(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    seen = _seen(tmp_path)
    _check_sees(tmp_path, seen)
    with pytest.raises(OutputError, match=f"{socket.gethostname()} cannot see .*nowhere: on a cluster"):
        _check_sees(tmp_path / "nowhere", seen)
    (tmp_path / "manifest.json").write_text("{ }")
    failure = _Actor().start(str(tmp_path), TOYS, 1, seen)
    assert failure is not None
    with pytest.raises(OutputError, match="sees another"):
        raise failure.again()
    with pytest.raises(SettingsError, match=r"but the run was started with 0\.0$"):
        _check_sees(tmp_path, ("0.0", None))


def test_an_address_without_a_cluster_is_told_within_seconds(monkeypatch):
    import ray

    # A Ray that this process has already would be used.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(
        SettingsError, match=rf"^no Ray cluster answers at 127\.0\.0\.1:{port} \(Connection refused\); "
    ):
        RayEngine(f"127.0.0.1:{port}")
    with pytest.raises(SettingsError, match=r"is host:port or auto, not 'ray://head:10001'; start one with"):
        RayEngine("ray://head:10001")
    assert time.monotonic() - began < 5


def test_a_worker_that_fits_nowhere_is_told(engine):
    with pytest.raises(SettingsError, match=r"each asks for 1 CPU \(it has \d+\) and 0\.5 GPU \(it has 0\)$"):
        RayEngine(gpus_per_worker=0.5)
