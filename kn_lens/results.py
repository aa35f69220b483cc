"""Results: frozen dataclasses that know how they were made and can be saved and read back."""

from __future__ import annotations

import dataclasses
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from kn_lens._version import __version__
from kn_lens.errors import OutputError
from kn_lens.models.kind import model_name
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Dropped, Prompt

if TYPE_CHECKING:
    from kn_lens.prompts.batch import PromptBatch

Self = TypeVar("Self", bound="Result")

_TENSORS = "tensors.safetensors"
_FIELDS = "result.json"
_OF = "."
"""Between a field and the key of a tensor in it: ``effects.kl``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What every result holds.

    Attributes:
        settings: The arguments that made it.
        provenance: Model, hashes of its weights and of the prompts, versions, device and number type.
    """

    settings: dict[str, Any]
    provenance: dict[str, Any]

    _kinds: ClassVar[dict[str, type[Result]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Result._kinds[cls.__name__] = cls

    def packed(self) -> tuple[dict[str, Tensor], str]:
        """The result's tensors by name, alone or in a dict, and the rest as JSON."""
        tensors: dict[str, Tensor] = {}
        fields: dict[str, Any] = {"kind": type(self).__name__, "kn_lens": __version__}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                tensors[field.name] = value.detach().cpu().contiguous()
            elif _is_tensors(value):
                tensors |= {
                    f"{field.name}{_OF}{name}": each.detach().cpu().contiguous() for name, each in value.items()
                }
                fields[field.name] = {"__tensors__": list(value)}  # in their order, which the tensors' file loses
            else:
                fields[field.name] = _to_json(value)
        return tensors, json.dumps(fields, indent=1, ensure_ascii=False)

    @classmethod
    def unpacked(cls: type[Self], tensors: dict[str, Tensor], text: str, where: str | Path) -> Self:
        """A result from what :meth:`packed` gave.

        Args:
            tensors: By name.
            text: The rest as JSON.
            where: Where both were read, for errors.

        Raises:
            OutputError: If they are no result, or one of another kind.
        """
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise OutputError(f"{where} holds no readable result ({error})") from None
        if not isinstance(fields, dict):
            raise OutputError(f"{where} holds no readable result ({_FIELDS} is no object)")
        kind = _kind(fields.pop("kind", ""))
        written = fields.pop("kn_lens", None)
        if kind is None or not issubclass(kind, cls):
            raise OutputError(f"{where} holds a {kind.__name__ if kind else 'foreign'} result, not {cls.__name__}")
        values: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if _OF not in name}
        try:
            for name, value in fields.items():
                keys = value.get("__tensors__") if isinstance(value, dict) else None
                values[name] = (
                    _from_json(value) if keys is None else {key: tensors[f"{name}{_OF}{key}"] for key in keys}
                )
            return kind(**values)  # type: ignore[return-value]
        except (KeyError, TypeError) as error:
            raise OutputError(
                f"{where} holds no {kind.__name__} as kn_lens {__version__} writes it, but one of kn_lens {written}, "
                f"or a part of one ({error}); make it again"
            ) from None

    def save(self, folder: str | Path) -> Path:
        """Write tensors as safetensors and the rest as JSON into ``folder`` (made if needed).

        Raises:
            OutputError: If it cannot be written.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        tensors, text = self.packed()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, folder / _TENSORS)
            (folder / _FIELDS).write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from None
        return folder

    @classmethod
    def load(cls: type[Self], folder: str | Path) -> Self:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds no result, or one of another kind.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        try:
            text = (folder / _FIELDS).read_text(encoding="utf-8")
            tensors = load_file(folder / _TENSORS)
        except (OSError, ValueError) as error:
            raise OutputError(f"{folder} holds no readable result ({error})") from None
        except Exception as error:  # safetensors has an exception of its own, not a ValueError
            raise OutputError(f"{folder / _TENSORS} is damaged ({error})") from None
        return cls.unpacked(tensors, text, folder)


def _is_tensors(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, Tensor) for each in value.values())


def _kind(name: str) -> type[Result] | None:
    """The result class of a name; its module may not be imported yet in this process."""
    import kn_lens

    if name not in Result._kinds and name in kn_lens.__all__:
        getattr(kn_lens, name)
    return Result._kinds.get(name)


def provenance(model: Any, batch: PromptBatch | None = None) -> dict[str, Any]:
    """Model, weights hash, hash of the prompts (if there are any), versions, device and number type."""
    from kn_lens.models.hashing import weights_hash

    parameter = next(model.parameters())
    versions = {"kn_lens": __version__, "python": platform.python_version()}
    for package in ("torch", "transformer-lens", "transformers", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "model": model_name(model),
        "weights_hash": weights_hash(model),
        **({} if batch is None else {"prompts_hash": batch.fingerprint()}),
        "model_class": type(model).__name__,
        "device": str(parameter.device),
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


_MARKED = {"Prompt": Prompt, "Dropped": Dropped, "Fact": Fact}


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple(_MARKED.values())):
        fields = {name: item for name, item in dataclasses.asdict(value).items() if item is not None}
        return {"__kind__": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return {"__tuple__": [_to_json(item) for item in value]}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _to_json(item) for name, item in value.items()}
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if "__tuple__" in value:
            return tuple(_from_json(item) for item in value["__tuple__"])
        if "__kind__" in value:
            fields = {name: _from_json(item) for name, item in value.items() if name != "__kind__"}
            fields = {name: tuple(item) if isinstance(item, list) else item for name, item in fields.items()}
            return _MARKED[value["__kind__"]](**fields)
        return {name: _from_json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return value
