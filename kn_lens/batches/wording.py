"""pydantic's complaints in plain words: what a field is, and what it should be."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

from kn_lens.errors import near_matches

Loc = tuple[str | int, ...]

_WANTED = {  # by pydantic's type of error
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
    "literal_error": "{expected}",
}


class Fault(NamedTuple):
    """Which field (keys and indices from the top), and what is wrong with it, as a sentence."""

    loc: Loc
    text: str


def faults_of(error: ValidationError, raw: Mapping[str, Any], model: type[BaseModel], within: Loc = ()) -> list[Fault]:
    """Each field's problem once.

    Args:
        error: What pydantic raised.
        raw: What it was given.
        model: The model that was to be made.
        within: Where ``raw`` stands in the whole description.
    """
    gathered: dict[Loc, list[Mapping[str, Any]]] = {}
    for entry in error.errors(include_url=False):
        loc = _loc_in(raw, entry["loc"], entry["type"] == "missing")
        gathered.setdefault(loc, []).append(entry)
    # of alternatives (a number or a list of numbers) the one that went deeper is what was meant
    meant = [loc for loc in gathered if not any(other[: len(loc)] == loc != other for other in gathered)]
    return [Fault((*within, *loc), _sentence(loc, gathered[loc], raw, model, within)) for loc in meant]


def number_faults(raw: Mapping[str, Any], model: type[BaseModel], within: Loc = ()) -> list[Fault]:
    """What pydantic takes for a number and no field does: true and false, infinite numbers, NaN.

    Args:
        raw: What was given.
        model: What is to be made of it.
        within: Where ``raw`` stands in the whole description.
    """
    known = {name: field.annotation for name, field in model.model_fields.items()}
    return [
        fault
        for name, value in raw.items()
        if name in known
        for fault in _number_faults(value, known[name], (*within, name))
    ]


def _number_faults(value: Any, annotation: Any, loc: Loc) -> list[Fault]:
    if isinstance(value, Mapping):
        models = _models_in(annotation)
        if models:
            return [fault for model in models for fault in number_faults(value, model, loc)]
        return [fault for key, entry in value.items() for fault in _number_faults(entry, annotation, (*loc, key))]
    if isinstance(value, list | tuple):
        return [fault for at, entry in enumerate(value) for fault in _number_faults(entry, annotation, (*loc, at))]
    leaves = _leaves(annotation)
    if isinstance(value, bool) and bool not in leaves and {int, float} & leaves:
        return [Fault(loc, f"{name_of(loc)} is {_shown(value)}; give a {'whole ' * (float not in leaves)}number")]
    if isinstance(value, float) and not math.isfinite(value):
        return [Fault(loc, f"{name_of(loc)} is {value}; give a finite number")]
    return []


def name_of(loc: Sequence[str | int]) -> str:
    """A field as one would write it, ``data[1].groups``; settings go by their own names."""
    text = ""
    for part in loc[1:] if len(loc) > 1 and loc[0] == "settings" else loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _loc_in(raw: Any, loc: Sequence[str | int], missing: bool) -> Loc:
    """The place in ``raw``: without the names of alternatives, which pydantic puts in between."""
    found: list[str | int] = []
    for part in loc[:-1] if missing else loc:
        inside = isinstance(raw, Mapping) and part in raw
        if inside or (isinstance(raw, list | tuple) and isinstance(part, int) and part < len(raw)):
            raw = raw[part]  # pyright: ignore[reportArgumentType, reportCallIssue]
            found.append(part)
    return (*found, loc[-1]) if missing else tuple(found)


def _sentence(
    loc: Loc, entries: Sequence[Mapping[str, Any]], raw: Mapping[str, Any], model: type[BaseModel], within: Loc
) -> str:
    kinds = [entry["type"] for entry in entries]
    whole, last = (*within, *loc), loc[-1] if loc else ""
    inside = f" in {'.'.join(map(str, within))}" if len(whole) == 2 and within else ""
    inside = f" in {name_of(whole[:-1])}" if len(loc) > 1 else inside
    if "missing" in kinds:
        return f"{last!r} is missing{inside}"
    if "extra_forbidden" in kinds:
        known = _fields_at(model, loc[:-1])
        near = near_matches(str(last), known) or (f" Known: {', '.join(known)}" if known else "")
        return f"unknown key {str(last)!r}{inside}.{near}"
    own = [entry["msg"].removeprefix("Value error, ") for entry in entries if entry["type"] == "value_error"]
    if own:
        return f"{name_of(whole)} {own[0]}" if re.match("(is|holds|lacks) ", own[0]) else own[0]
    value = entries[0]["input"]
    wanted = [_wanted(entry) for entry in entries if entry["type"] != "none_required"]
    near = ""
    if isinstance(value, str):
        expected = " ".join(entry.get("ctx", {}).get("expected", "") for entry in entries)
        near = near_matches(value, re.findall(r"'([^']*)'", expected))
    right = " or ".join(dict.fromkeys(wanted))
    if kinds == ["string_type"] and isinstance(value, int | float):
        right += ", in quotes"
    return f"{name_of(whole)} is {_shown(value)}; give {right}{'.' * bool(near)}{near}"


def _wanted(entry: Mapping[str, Any]) -> str:
    text = _WANTED.get(entry["type"])
    return entry["msg"][:1].lower() + entry["msg"][1:] if text is None else text.format(**entry.get("ctx", {}))


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    return reprlib.repr(value)


def _fields_at(model: type[BaseModel], loc: Loc) -> list[str]:
    """The fields that the mapping at ``loc`` may have; empty if any."""
    models = [model]
    for part in loc:
        if isinstance(part, str):
            fields = [one.model_fields[part].annotation for one in models if part in one.model_fields]
            models = [found for field in fields for found in _models_in(field)]
    return [name for one in models for name in one.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models_in(part)]


def _leaves(annotation: Any) -> set[Any]:
    """The types that an annotation is built of."""
    parts = get_args(annotation)
    return {leaf for part in parts for leaf in _leaves(part)} if parts else {annotation}
