"""The local engine with tasks that do nothing but misbehave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from kn_lens.batches.engines.engine import Queue, cores, engine_named
from kn_lens.batches.engines.local import LocalEngine
from kn_lens.batches.engines.sharing import shared_folder
from kn_lens.batches.engines.worker import Failure
from kn_lens.errors import DataError, ModelError, NothingLeft, OutputError, SettingsError
from tests.batches.toys import log_of, write_orders

ROOT = Path(__file__).parents[2]
TOYS = "tests.batches.toys:Toys"
PLAN = "tests.batches.toys:make_plan"
# A coordinator of its own: script, folder, number of tasks. It has no guard of its main module, as many scripts.
SCRIPT = """
import signal, sys
from pathlib import Path
from kn_lens.batches.engines.local import LocalEngine

asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append("INT"))
signal.signal(signal.SIGTERM, lambda *_: asked.append("TERM"))
with LocalEngine(2, 1, "cpu", tasks="tests.batches.toys:Toys") as engine:
    found = sorted(one.task for one in engine.outcomes(Path(sys.argv[1]), range(int(sys.argv[2])), lambda: False))
print(found, sorted(asked), "torch" in sys.modules)
"""


def never():
    return False


def engine(workers=2, threads=1):
    return LocalEngine(workers, threads, "cpu", tasks=TOYS, planner=PLAN)


def outcomes(folder, tasks, workers=2, stop=never):
    with engine(workers) as opened:
        return list(opened.outcomes(folder, tasks, stop))


def coordinator(folder, tasks):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(tasks)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def eventually(what, seconds=5.0):
    until = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return found


def gone(pids):
    return all(not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in pids)


def test_every_task_is_done_once_by_two_processes_with_their_threads(tmp_path):
    before = dict(os.environ)
    write_orders(tmp_path, sleep=0.02)
    with engine(threads=3) as opened:
        found = list(opened.outcomes(tmp_path, range(5, 45), never))
    assert sorted(one.task for one in found) == list(range(5, 45))
    assert all(one.record["task"] == one.task and one.error is None for one in found)
    begun = log_of(tmp_path)
    assert Counter(one["number"] for one in begun if one["kind"] == "task") == Counter(range(5, 45))
    pids = {one["pid"] for one in begun}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {one["threads"] for one in begun} == {"3"}
    assert dict(os.environ) == before
    assert gone(pids)


def test_no_more_workers_than_tasks_and_none_for_none(tmp_path):
    write_orders(tmp_path)
    assert outcomes(tmp_path, [], workers=3) == []
    assert log_of(tmp_path) == []
    assert [one.task for one in outcomes(tmp_path, [9], workers=3)] == [9]
    assert len({one["pid"] for one in log_of(tmp_path)}) == 1


def test_workers_by_default_fill_the_cores_and_nonsense_is_refused():
    assert LocalEngine(device="cpu").workers == cores()
    assert LocalEngine(threads=10_000, device="cpu").workers == 1
    assert LocalEngine(device="cuda:1").workers == 1
    with pytest.raises(SettingsError, match=r"^workers is 0: say a whole number of at least 1$"):
        LocalEngine(0)
    with pytest.raises(SettingsError, match="threads is -1"):
        LocalEngine(threads=-1)
    with pytest.raises(SettingsError, match=r"unknown engine 'rey': say 'local' or 'ray'\. Did you mean 'ray'\?"):
        engine_named("rey", None)
    with pytest.raises(SettingsError, match="--engine ray"):
        engine_named("local", None, address="10.0.0.1:6379")


def test_a_killed_workers_task_is_done_again_alike_and_the_third_time_with_half_the_memory(tmp_path, caplog):
    write_orders(tmp_path, **{"1": ["die", 1], "3": ["die", 2]})
    found = {one.task: one for one in outcomes(tmp_path, range(6))}
    assert sorted(found) == list(range(6))
    assert all(one.error is None for one in found.values())
    begun = [(one["number"], one["divisor"]) for one in log_of(tmp_path) if one["kind"] == "task"]
    assert sorted(begun) == [(0, 1), (1, 1), (1, 1), (2, 1), (3, 1), (3, 1), (3, 2), (4, 1), (5, 1)]
    assert "a worker died of SIGKILL (out of memory?) over piece 1" in caplog.messages


def test_a_task_that_always_kills_is_told_and_the_rest_is_done(tmp_path):
    write_orders(tmp_path, **{"0": ["die"], "2": ["leave"]})
    found = {one.task: one for one in outcomes(tmp_path, range(5))}
    assert found[0].error == "killed its worker 3 times, last by SIGKILL (out of memory?)"
    assert found[2].error == "killed its worker 3 times, last by exit code 7"
    assert [number for number in sorted(found) if found[number].record] == [1, 3, 4]


def test_what_a_task_raises_ends_the_run_and_its_workers(tmp_path):
    write_orders(tmp_path, sleep=0.05, **{"3": ["disk full"]})
    with pytest.raises(OutputError, match=r"^cannot write it: No space left on device$"):
        outcomes(tmp_path, range(1000))
    assert gone(one["pid"] for one in log_of(tmp_path))
    assert len(log_of(tmp_path)) < 10


def test_a_mistake_in_a_task_comes_with_the_place_where_it_happened(tmp_path):
    write_orders(tmp_path, **{"0": ["bug"]})
    with pytest.raises(RuntimeError, match=r"^Peculiar: a mistake$") as caught:
        outcomes(tmp_path, range(3))
    assert "toys.py" in str(caught.value.__cause__)


def test_errors_travel_as_themselves():
    kept = Failure(NothingLeft("none is left", ["one", "two"])).again()
    assert (type(kept), str(kept), kept.dropped) == (NothingLeft, "none is left", ("one", "two"))

    class Local(DataError):
        """One that cannot be imported where it arrives."""

    told = Failure(Local("file.yaml:3: no")).again()
    assert (type(told), str(told)) == (DataError, "file.yaml:3: no")


def test_stop_hands_out_no_more_and_waits_for_what_is_in_hand(tmp_path):
    write_orders(tmp_path, sleep=0.05)
    found = []
    with engine() as opened:
        for one in opened.outcomes(tmp_path, range(10**9), lambda: len(found) >= 5):
            found.append(one.task)
    begun = [one["number"] for one in log_of(tmp_path) if one["kind"] == "task"]
    assert 5 <= len(found) <= 6
    assert sorted(found) == sorted(begun)


def test_kill_ends_everything_at_once(tmp_path):
    write_orders(tmp_path, sleep=30)
    with engine() as opened:
        killed = []

        def stop():
            if not killed and sum(one["kind"] == "task" for one in log_of(tmp_path)) == 2:
                killed.append(time.monotonic())
                opened.kill()
            return False

        assert list(opened.outcomes(tmp_path, range(9), stop)) == []
    assert time.monotonic() - killed[0] < 3
    assert gone(one["pid"] for one in log_of(tmp_path))


def test_leaving_the_loop_ends_the_workers(tmp_path):
    write_orders(tmp_path, sleep=0.01)
    with engine() as opened:
        for _ in opened.outcomes(tmp_path, range(10**6), never):
            break
    assert eventually(lambda: gone(one["pid"] for one in log_of(tmp_path)))


def test_a_worker_that_cannot_start_is_told_once(tmp_path):
    write_orders(tmp_path, start=["settings"])
    with pytest.raises(SettingsError, match=r"^it cannot be so$"):
        outcomes(tmp_path, range(9))
    assert len(log_of(tmp_path)) <= 2


def test_a_worker_killed_while_it_starts_is_replaced(tmp_path):
    write_orders(tmp_path, start=["die", 2])
    assert sorted(one.task for one in outcomes(tmp_path, range(4))) == [0, 1, 2, 3]


def test_with_too_many_workers_killed_at_the_start_it_goes_on_with_fewer(tmp_path, caplog):
    write_orders(tmp_path, start=["die", 4], sleep=0.01)
    assert sorted(one.task for one in outcomes(tmp_path, range(4))) == [0, 1, 2, 3]
    assert "going on with 1 workers" in caplog.messages


def test_workers_that_are_always_killed_at_the_start_end_the_run(tmp_path):
    write_orders(tmp_path, start=["die"])
    with pytest.raises(ModelError, match=r"^the worker died 3 times while it loaded the model, last by SIGKILL"):
        outcomes(tmp_path, range(4))
    assert len(log_of(tmp_path)) <= 8


def test_a_task_comes_back_at_once_and_after_two_deaths_with_less_memory():
    queue = Queue([4, 5], never, 1)
    assert queue.take() == (4, 1)
    assert queue.died(4, "a") is None
    assert queue.take() == (4, 1)
    assert queue.died(4, "b") is None
    assert queue.take() == (4, 2)
    queue.done(4)
    assert (queue.take(), queue.waiting) == ((5, 1), 0)


def test_what_workers_log_is_logged_here(tmp_path, caplog):
    write_orders(tmp_path, start=["say"], **{"1": ["say"], "2": ["say"]})
    outcomes(tmp_path, range(3))
    # Of a start once, however many workers there are; of tasks each time.
    assert [one.getMessage() for one in caplog.records if one.name == "kn_lens.toys"] == ["said so"] * 3


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no groups of processes")
def test_ctrl_c_and_sigterm_reach_the_coordinator_alone(tmp_path):
    write_orders(tmp_path, sleep=0.1)
    process = coordinator(tmp_path, 12)
    assert eventually(lambda: len(log_of(tmp_path)) >= 4, 20)
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGTERM)
    said, errors = process.communicate(timeout=30)
    assert said == f"{list(range(12))} ['INT', 'TERM'] False\n", errors
    assert len({one["pid"] for one in log_of(tmp_path)}) == 2


def test_workers_do_not_outlive_a_coordinator_that_was_killed(tmp_path):
    write_orders(tmp_path, sleep=60)
    process = coordinator(tmp_path, 12)
    assert eventually(lambda: sum(one["kind"] == "task" for one in log_of(tmp_path)) == 2, 20)
    pids = [one["pid"] for one in log_of(tmp_path)]
    assert not gone(pids)
    process.kill()
    process.wait()
    assert eventually(lambda: gone(pids))
    found = shared_folder(tmp_path)  # and nothing is left of them that would be in a new run's way
    assert found is not None
    assert list(found.iterdir()) == []
    found.rmdir()


def test_plans_in_a_process_of_its_own(tmp_path):
    with engine() as opened:
        opened.plan(tmp_path, {"model": "m"}, progress=False)
        with pytest.raises(SettingsError, match=r"^not so$"):
            opened.plan(tmp_path, {"raise": "not so"}, progress=False)
        with pytest.raises(OutputError, match=r"^planning was ended by SIGKILL \(out of memory\?\)"):
            opened.plan(tmp_path, {"die": True}, progress=False)
        write_orders(tmp_path)
        assert [one.task for one in opened.outcomes(tmp_path, [0], never)] == [0]
    plan = (tmp_path / "plan.json").read_text()
    assert '"config": {"model": "m"}, "threads": "1"' in plan
    assert f'"pid": {os.getpid()}' not in plan


class Late(LocalEngine):
    """Looks for news at the worst moment: the child speaks and ends right after the first look."""

    looks = 0

    def _with_news(self):
        self.looks += 1
        if self.looks == 1:
            self._staff[0].process.join()
            return []
        return super()._with_news()


def test_what_a_child_said_before_its_end_is_heard(tmp_path):
    with Late(1, 1, "cpu", planner=PLAN) as opened:
        opened.plan(tmp_path, {"model": "m"}, progress=False)
    assert '"model": "m"' in (tmp_path / "plan.json").read_text()
    with Late(1, 1, "cpu", planner=PLAN) as opened, pytest.raises(OutputError, match=r"^planning was ended by SIGKILL"):
        opened.plan(tmp_path, {"die": True}, progress=False)
