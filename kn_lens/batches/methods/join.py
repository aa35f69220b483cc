"""Parts of one result as one: fields that go by prompts are put together, the others must be the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from kn_lens.errors import OutputError

if TYPE_CHECKING:
    from torch import Tensor

    from kn_lens.results import Result

Joined = TypeVar("Joined", bound="Result")


@dataclass(frozen=True)
class ByPrompt:
    """How a kind of result is joined.

    Attributes:
        fields: Whose first axis is the prompts: tensors, dicts of tensors, tuples. Further axes are padded with NaN.
        merged: Field, or key of the settings, → how the values of all parts become one.
        ignored: Keys of the settings that may differ; the first part's are kept.
    """

    fields: frozenset[str] = frozenset()
    merged: Mapping[str, Callable[[list[Any]], Any]] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()


def join_results(results: Sequence[Joined], how: ByPrompt) -> Joined:
    """One result of several, in order.

    Raises:
        OutputError: If there are none, or they were made with different settings.
    """
    if not results:
        raise OutputError("there are no parts to join")
    first = results[0]
    values: dict[str, Any] = {}
    for entry in fields(first):
        given = [getattr(result, entry.name) for result in results]
        if entry.name == "settings":
            values["settings"] = _settings(given, how)
        elif entry.name == "provenance":
            known = {name: value for name, value in given[0].items() if name not in ("prompts_hash", "parts")}
            values["provenance"] = {**known, "parts": sum(each.get("parts", 1) for each in given)}
        elif entry.name == "dropped":
            values["dropped"] = tuple(one for each in given for one in each)
        elif entry.name in how.merged:
            values[entry.name] = how.merged[entry.name](given)
        elif entry.name in how.fields:
            values[entry.name] = _put_together(entry.name, given)
        else:
            values[entry.name] = _same(f"their {entry.name}", given)
    return replace(first, **values)


def _settings(given: Sequence[Mapping[str, Any]], how: ByPrompt) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for each in given for name in each):
        values = [each.get(name) for each in given]
        if name in how.merged:
            found[name] = how.merged[name](values)
        elif name in how.ignored:
            found[name] = values[0]
        else:
            found[name] = _same(f"the setting {name!r}", values)
    return found


def _put_together(name: str, given: list[Any]) -> Any:
    import torch

    if all(value is None for value in given):
        return None
    if all(isinstance(value, torch.Tensor) for value in given):
        return _rows(given)
    if all(isinstance(value, dict) for value in given):
        _same(f"the keys of {name}", [list(value) for value in given])
        return {key: _rows([value[key] for value in given]) for key in given[0]}
    if all(isinstance(value, tuple) for value in given):
        return tuple(one for value in given for one in value)
    raise OutputError(f"parts cannot be joined: some have {name} and others do not")


def _rows(given: list[Tensor]) -> Tensor:
    """Tensors one after another; prompts may be shorter in some, whose other axes are padded with NaN on the right."""
    import torch

    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in given), strict=True)]
    if all(list(value.shape[1:]) == shape for value in given):
        return torch.cat(given)
    found = torch.full((sum(len(value) for value in given), *shape), float("nan"), dtype=given[0].dtype)
    at = 0
    for value in given:
        found[(slice(at, at + len(value)), *(slice(size) for size in value.shape[1:]))] = value
        at += len(value)
    return found


def _same(what: str, values: list[Any]) -> Any:
    def told(value: Any) -> str:  # NaN is equal to itself here, a tuple to the list that a file keeps it as
        return json.dumps(value, sort_keys=True, default=str)

    first = told(values[0])
    for value in values[1:]:
        if told(value) != first:
            raise OutputError(
                f"parts of different runs cannot be joined: {what} differ, {_short(first)} and {_short(told(value))}"
            )
    return values[0]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"
