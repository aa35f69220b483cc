"""One model for several workers: the same numbers, loaded once, and never from a folder that others can write to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kn_lens.batches.engines import sharing
from kn_lens.models.hashing import weights_hash
from kn_lens.models.load import load_model

ROOT = Path(__file__).parents[2]
# Shares a small module; notes that it loads; is killed on the way if it is told so.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import torch
from kn_lens.batches.engines.sharing import load_shared

def load():
    with open(sys.argv[2], "a") as file:
        file.write("loaded\\n")
    time.sleep(0.5)
    if sys.argv[3:]:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.manual_seed(0)
    return torch.nn.Linear(50, 50)

print(load_shared(Path(sys.argv[1]), load).weight.sum().item())
"""


@pytest.fixture
def folder(tmp_path):
    found = sharing.shared_folder(tmp_path)
    assert found is not None
    yield found
    sharing.remove(found)


def test_the_shared_model_is_the_loaded_one_and_edits_stay_with_who_made_them(folder):
    loads = []

    def load():
        loads.append(load_model("tiny-causal", device="cpu"))
        return loads[-1]

    first, second = sharing.load_shared(folder, load), sharing.load_shared(folder, load)
    (loaded,) = loads
    assert first is not loaded
    assert weights_hash(first) == weights_hash(second) == weights_hash(loaded)
    for name, parameter in loaded.named_parameters():
        assert second.get_parameter(name).stride() == parameter.stride()
    assert second.training is False
    tokens = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = loaded(tokens)
        assert torch.equal(second(tokens), expected)
        first.blocks[0].mlp.W_out.mul_(2)
        assert not torch.equal(first(tokens), expected)
        assert torch.equal(second(tokens), expected)
    assert weights_hash(sharing.load_shared(folder, load)) == weights_hash(loaded)
    assert len(loads) == 1


def run(folder, notes, *more):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(notes), *more], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


def test_of_workers_that_start_together_one_loads_and_a_killed_one_is_no_obstacle(folder, tmp_path):
    notes = tmp_path / "notes"
    killed = run(folder, notes, "die")
    assert killed.wait(30) == -signal.SIGKILL
    both = [run(folder, notes), run(folder, notes)]
    said = {process.communicate(timeout=30)[0] for process in both}
    torch.manual_seed(0)
    assert said == {f"{torch.nn.Linear(50, 50).weight.sum().item()}\n"}
    assert notes.read_text() == "loaded\n" * 2


def test_without_room_or_pickle_each_has_its_own(folder, monkeypatch, caplog):
    caplog.set_level("INFO")
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "_ROOM", 2**60)
        model = torch.nn.Linear(2, 2)
        assert sharing.load_shared(folder, lambda: model) is model
    assert "MiB left" in caplog.text
    assert sharing.load_shared(folder, lambda: model) is model  # once is enough to know
    (folder / "not-shared").unlink()
    model.strange = lambda: None
    assert sharing.load_shared(folder, lambda: model) is model
    assert "cannot be written" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["lock", "not-shared"]


def test_a_removed_folder_or_one_open_to_others_is_not_read(folder, tmp_path):
    planted = torch.nn.Linear(3, 3)
    torch.save(planted, folder / "model.pt")
    own = torch.nn.Linear(3, 3)
    assert sharing.load_shared(tmp_path / "nowhere", lambda: own) is own
    folder.chmod(0o777)
    assert sharing.load_shared(folder, lambda: own) is own
    assert sharing.shared_folder(tmp_path) is None
    folder.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert sharing.load_shared(link, lambda: own) is own
    assert torch.equal(sharing.load_shared(folder, lambda: own).weight, planted.weight)
    # What a killed run left is gone with the next start.
    assert sharing.shared_folder(tmp_path) == folder
    assert list(folder.iterdir()) == []
    assert os.stat(folder).st_mode & 0o777 == 0o700
