"""Will the model fit? Asked before loading, because the kernel's answer is to kill the process."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.errors import ModelError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# Peak while loading over the finished model's size. Measured on SmolLM2-135M in float32: 2.3 (Hugging Face's
# weights, mapped from the file, and the folded ones exist side by side for a moment).
TRANSIT = 2.5
# Fixed cost of a forward pass and of what torch keeps for itself.
HEADROOM = 200 * 2**20


def require_memory(parameters: int, dtype: torch.dtype, device: torch.device, name: str) -> None:
    """Raise ModelError if a model will not fit.

    Args:
        parameters: number of weights of the finished model (an untied unembedding counts).
        dtype: in which they are held.
        device: where the model will live. Loading always passes through the main memory.
        name: for the message.
    """
    size = parameters * dtype.itemsize
    _require(math.ceil(size * TRANSIT) + HEADROOM, free_memory(), name, "while it is loaded", dtype)
    if device.type == "cuda":
        _require(math.ceil(size * 1.05) + HEADROOM, free_gpu_memory(device), name, f"on {device}", dtype)


def _require(needed: int, free: int, name: str, where: str, dtype: torch.dtype) -> None:
    if needed <= free:
        return
    short = str(dtype).removeprefix("torch.")
    advice = "" if dtype.itemsize <= 2 else " or dtype='bfloat16'"
    raise ModelError(
        f"Model {name!r} in {short} needs about {needed / 2**30:.1f} GiB {where}, but only {free / 2**30:.1f} GiB "
        f"are free. Close other programs, or use a smaller model{advice}."
    )


def free_memory() -> int:
    """Bytes of main memory that this process may still take, container limits included."""
    import psutil

    free = psutil.virtual_memory().available
    for directory in _cgroups():
        left = _cgroup_free(directory)
        if left is not None:
            free = min(free, left)
    return free


def free_gpu_memory(device: torch.device) -> int:
    """Bytes free on a CUDA device, torch's own unused cache included."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + cached


def count_parameters(config: Any, masked: bool) -> int | None:
    """Weights of the finished model for a Hugging Face config, without allocating any; None if unknown.

    A tied unembedding is counted twice: TransformerLens holds the embedding and the unembedding apart.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = auto.from_config(config)
    except Exception as error:  # whatever is wrong with the config, loading will say so better
        logger.debug("cannot count the parameters beforehand: %s", error)
        return None
    count = sum(parameter.numel() for parameter in model.parameters())
    if getattr(config, "tie_word_embeddings", False):
        count += model.get_input_embeddings().weight.numel()
    return count


def _cgroups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Directories of the control groups (versions 1 and 2) whose limits may hold for this process."""
    found = [root, root / "memory"]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            base = root / controllers
            # The limit of any ancestor counts too.
            steps = [part for part in path.split("/") if part and part != ".."]
            found += [base.joinpath(*steps[: depth + 1]) for depth in range(len(steps))]
    return found


def _cgroup_free(directory: Path) -> int | None:
    for limit_file, usage_file in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:
            limit = (directory / limit_file).read_text().strip()
            used = int((directory / usage_file).read_text())
            stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit == "max" or int(limit) >= 2**60:  # version 1 says "no limit" with a huge number
            return None
        # Files kept in memory count as used but are given up when needed.
        reclaimable = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
        return max(0, int(limit) - used + reclaimable)
    return None
