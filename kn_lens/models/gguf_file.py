"""Models from ``.gguf`` files, read (and dequantized) by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.errors import ModelError
from kn_lens.models.quiet import quiet

if TYPE_CHECKING:
    import torch

_MAGIC = b"GGUF"


def check_gguf(path: Path) -> int:
    """Refuse what is not a whole GGUF file.

    Returns:
        The number of weights in it.

    Raises:
        ModelError: naming the file, if it is missing, of another format, or shorter than its own table says.
    """
    from gguf import GGUFReader

    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    with path.open("rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise ModelError(f"{path} is not a GGUF file: it begins with {magic!r} instead of {_MAGIC!r}.")
    try:
        tensors = GGUFReader(path).tensors
    except Exception as error:  # the reader maps the file and fails in as many ways as a file can be short
        raise ModelError(
            f"{path} is truncated or damaged: its table of contents does not fit its {path.stat().st_size} bytes "
            f"({_first_line(error)}). Fetch it again."
        ) from error
    if not tensors:
        raise ModelError(f"{path} holds no weights: it is a vocabulary file or incomplete.")
    return sum(int(tensor.n_elements) for tensor in tensors)


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """The transformers model and tokenizer in a GGUF file.

    Args:
        path: a file that has passed `check_gguf`.
        dtype: to dequantize into.

    Returns:
        A causal model without any trace of the quantization (it can be saved), and its tokenizer.

    Raises:
        ModelError: if it is of an architecture that transformers does not read from GGUF.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, name = str(path.parent), path.name
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
            model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=dtype)
    except Exception as error:
        raise ModelError(f"transformers cannot read {path}: {_first_line(error)}") from error
    return _without_quantization(model, dtype), tokenizer


def convert_gguf(path: Path) -> Callable[[Path], None]:
    """Read a GGUF file known to be whole; the function returned writes it as a Hugging Face folder (float32)."""
    import torch

    model, tokenizer = load_gguf(path, torch.float32)

    def save(folder: Path) -> None:
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    return save


def _without_quantization(model: Any, dtype: torch.dtype) -> Any:
    """The same weights in a model built afresh: one read from GGUF refuses to be saved."""
    import copy

    import torch

    config = copy.deepcopy(model.config)
    config.__dict__.pop("quantization_config", None)
    config._name_or_path = ""  # else the path of the GGUF file is saved with the model
    config.architectures = [type(model).__name__]
    state = model.state_dict()
    with quiet(), torch.device("meta"):
        fresh = type(model)(config)
    fresh.load_state_dict(state, assign=True)
    fresh.tie_weights()
    # Tables that are computed and not stored (rotary frequencies) have no numbers on the meta device.
    for name, buffer in model.named_buffers():
        parent, _, leaf = name.rpartition(".")
        fresh.get_submodule(parent)._buffers[leaf] = buffer
    return fresh.to(dtype).eval()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
