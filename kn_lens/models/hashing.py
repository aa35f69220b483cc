"""One hash for all weights of a model, so that a result can name exactly what it was measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch

_KEPT: WeakKeyDictionary[torch.nn.Module, tuple[tuple, str]] = WeakKeyDictionary()


def weights_hash(model: torch.nn.Module) -> str:
    """BLAKE2b over every parameter's name, dtype, shape and numbers.

    Numbers are read in row-major order: the order in which they happen to be stored (see
    `kn_lens.models.layout`) and the device do not matter, any changed bit does.

    Args:
        model: any torch module; buffers (masks, rotary tables) do not count.

    Returns:
        32 hexadecimal digits.
    """
    named = sorted(model.named_parameters(), key=lambda pair: pair[0])
    # Hashing takes as long as a small experiment: a hash is kept with each parameter's place and the exact sum of its
    # bits, which no edit leaves alone by chance; torch's own version counter does not see edits through `.data`.
    probe = tuple((name, parameter.data_ptr(), _bit_sum(parameter)) for name, parameter in named)
    kept = _KEPT.get(model)
    if kept is not None and kept[0] == probe:
        return kept[1]
    found = _hash(named)
    _KEPT[model] = (probe, found)
    return found


def _hash(named: Sequence[tuple[str, torch.Tensor]]) -> str:
    # One digest per parameter, in threads (hashlib and torch release the interpreter lock), then one
    # over the digests: twice as fast on two cores as a single running hash, and as binding.
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(lambda pair: _digest(*pair), named))
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()


def _bit_sum(parameter: torch.Tensor) -> int:
    import torch

    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(parameter.element_size(), torch.uint8)
    return int(parameter.detach().view(width).sum())


def _digest(name: str, parameter: torch.Tensor) -> bytes:
    import torch

    header = f"{name}|{parameter.dtype}|{tuple(parameter.shape)}|"
    running = hashlib.blake2b(header.encode(), digest_size=32)
    # Viewing as bytes first: numpy knows no bfloat16.
    flat = parameter.detach().cpu().contiguous().reshape(-1)
    if flat.numel():
        running.update(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
    return running.digest()
