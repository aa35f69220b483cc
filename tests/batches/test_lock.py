"""One process at a time: the second is told who holds the lock, and no dead one holds it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from kn_lens.batches.storage.lock import RunLock, holder_of
from kn_lens.errors import OutputError
from tests.batches.faults import mounted, remount

HOLD = """
import os, sys, time
from pathlib import Path
from kn_lens.batches.storage.lock import RunLock
with RunLock(Path(sys.argv[1])):
    if sys.argv[2:]:
        child = os.fork()
        if child:
            print(child, flush=True)
        else:
            os.close(1)
            time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """``hold(...)``: a process that holds the lock of ``tmp_path``, and what it printed before."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-c", HOLD, str(tmp_path), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        told = []
        while (line := process.stdout.readline().strip()) != "held":
            assert line
            told.append(line)
        return process, told

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_lock_is_free_before_and_after(tmp_path):
    folder = tmp_path / "new" / "run"
    assert holder_of(folder) is None
    with RunLock(folder):
        assert re.fullmatch(rf".+, process {os.getpid()}, since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d\S+", holder_of(folder))
    assert holder_of(folder) is None
    with RunLock(folder):
        pass


def test_second_lock_in_one_process(tmp_path):
    with RunLock(tmp_path):
        with pytest.raises(OutputError, match=f"process {os.getpid()}"), RunLock(tmp_path):
            pass
        assert holder_of(tmp_path) is not None


def test_second_process_is_told_who_holds_it(tmp_path, hold):
    process, _ = hold()
    with pytest.raises(OutputError) as caught, RunLock(tmp_path):
        pass
    told = str(caught.value)
    assert told.startswith(f"{tmp_path} is being run already (")
    assert f", process {process.pid}, since 20" in told
    assert told.endswith("); wait until that has ended, or stop it first")
    assert f", process {process.pid}, since 20" in holder_of(tmp_path)


def test_free_again_after_its_holder_was_killed(tmp_path, hold):
    process, _ = hold()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert holder_of(tmp_path) is None
    with RunLock(tmp_path):
        assert f", process {os.getpid()}, since" in holder_of(tmp_path)


def test_forked_worker_does_not_hold_it(tmp_path, hold):
    process, told = hold("fork")
    worker = int(told[0])
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        os.kill(worker, 0)  # it lives on
        with RunLock(tmp_path):
            assert f", process {os.getpid()}, since" in holder_of(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)


def test_looking_does_not_keep_a_run_from_starting(tmp_path):
    """`kn-lens status` in a loop, while runs come and go."""
    code = """
import sys
from pathlib import Path
from kn_lens.batches.storage.lock import holder_of
print("looks", flush=True)
while True:
    holder_of(Path(sys.argv[1]))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as looking:
        assert looking.stdout.readline() == "looks\n"
        try:
            for _ in range(200):
                with RunLock(tmp_path):
                    pass
        finally:
            looking.kill()


def test_leaving_does_not_hide_the_error_inside(tmp_path):
    def lose_it():
        with RunLock(tmp_path) as lock:
            os.close(lock._descriptor)  # as if its file system had gone away
            raise KeyError("the real one")

    with pytest.raises(KeyError, match="the real one"):
        lose_it()
    with RunLock(tmp_path):
        pass


def test_read_only_folder(tmp_path):
    with mounted(tmp_path / "small", "size=64k") as folder:
        with RunLock(folder):
            pass
        remount(folder, "ro")
        assert holder_of(folder) is None
        with pytest.raises(OutputError, match=r"cannot write .*/lock: Read-only file system; .* make it writable"):
            RunLock(folder).__enter__()
