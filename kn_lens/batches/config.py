"""What a run is: model, data, method, settings; checked as a whole, every complaint in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator

from kn_lens.batches.methods import MethodSettings, method_named
from kn_lens.batches.wording import Fault, Loc, faults_of, number_faults
from kn_lens.errors import SettingsError

_DEVICE = re.compile(r"cpu|cuda(:\d+)?|mps(:\d+)?")


class RunFileError(SettingsError):
    """Everything that is wrong with a run's description, one line each; ``faults`` has the same by field."""

    def __init__(self, message: str, faults: Iterable[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


class DataEntry(BaseModel):
    """One data set of a run.

    Attributes:
        name: A name that :func:`kn_lens.prompts.load.load_data` takes, or a file of prompts.
        groups: How many groups are drawn with the run's seed; None takes all.
        prompts: How many prompts of each group at most; None takes all.
        templates: Of facts: all templates, those not held out, or the held-out ones.
        augment: Of minimal pairs: put each pair of words into every sentence that can hold it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    groups: int | None = Field(default=None, ge=1)
    prompts: int | None = Field(default=None, ge=1)
    templates: Literal["all", "training", "held_out"] = "all"
    augment: bool = False


def _as_list(value: Any) -> Any:
    """One name, one mapping, or several of them, as a list of entries."""
    if value is None or value == [] or value == ():
        raise ValueError("data is empty; name at least one data set")
    entries = list(value) if isinstance(value, list | tuple) else [value]
    return [{"name": entry} if isinstance(entry, str) else entry for entry in entries]


class RunConfig(BaseModel):
    """One method over many prompts: what a run file says.

    All fields but ``gpus_per_worker`` decide the results and must be the same when a run is resumed.

    Attributes:
        model: A name, folder or ``.gguf`` file that :func:`kn_lens.load_model` takes.
        data: The data sets; one name, one mapping or a list of both.
        method: A public function of the package, ``"causal_trace"``.
        settings: The method's own, by default those of the function.
        seed: Of every draw.
        shard: Prompts of a piece: what is computed, and kept, at once.
        dtype: Of the weights.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``; None takes a GPU if there is one.
        threads: Of each worker. With another number sums may differ in their last digits.
        memory_budget: Bytes that the rows of one pass may take.
        on_bad_row: ``"error"`` stops at data with bad rows; ``"skip"`` leaves them out and lists them.
        gpus_per_worker: What a worker asks a cluster for; None: one, where it has any and ``device`` is not the CPU.

    Raises:
        RunFileError: Everything that is wrong, one line each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    data: Annotated[tuple[DataEntry, ...], BeforeValidator(_as_list)]
    method: str = Field(min_length=1)
    settings: SerializeAsAny[MethodSettings]
    seed: int = Field(default=0, ge=0, lt=2**63)
    shard: int = Field(default=16, ge=1)
    dtype: Literal["float32", "float16", "bfloat16", "float64"] = "float32"
    device: str | None = None
    threads: int = Field(default=1, ge=1)
    memory_budget: float = Field(default=1e9, gt=0)
    on_bad_row: Literal["error", "skip"] = "error"
    gpus_per_worker: float | None = Field(default=None, ge=0)

    def __init__(self, **given: Any) -> None:
        fields, faults = _with_settings(given)
        faults += number_faults(given, type(self))
        try:
            super().__init__(**fields)
        except ValidationError as error:
            faults += faults_of(error, fields, type(self))
        if faults:
            order = [*type(self).model_fields, *given]
            first: dict[Loc, Fault] = {}
            for fault in faults:
                first.setdefault(fault.loc, fault)
            faults = sorted(first.values(), key=lambda fault: order.index(str(fault.loc[0])))
            raise RunFileError("\n".join(fault.text for fault in faults), faults)

    @classmethod
    def of(cls, described: Any) -> RunConfig:
        """From a mapping of the fields, as a run file or a manifest has it.

        Raises:
            RunFileError: Everything that is wrong, one line each.
        """
        if isinstance(described, cls):
            return described
        if not isinstance(described, Mapping):
            raise RunFileError(f"a run is described by a mapping of its fields, not by {type(described).__name__}")
        return cls(**{str(key): value for key, value in described.items()})

    @classmethod
    def model_validate(cls, obj: Any, **_: Any) -> RunConfig:
        """As :meth:`of`: pydantic's own would wrap the error in its words."""
        return cls.of(obj)

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str | None) -> str | None:
        if device is not None and not _DEVICE.fullmatch(device):
            raise ValueError(f"device is {device!r}; write cpu, cuda, cuda:1 …, or leave it out")
        return device

    @field_validator("data")
    @classmethod
    def _each_once(cls, data: tuple[DataEntry, ...]) -> tuple[DataEntry, ...]:
        names = [entry.name for entry in data]
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                raise ValueError(f"data holds {name!r} {names.count(name)} times; a run takes each data set once")
        return data


def _with_settings(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """``given`` with its settings as the method's own model, and what is wrong with method and settings."""
    settings = given.get("settings")
    unread = {**given, "settings": MethodSettings()}  # so that the other fields can be checked none the less
    if not isinstance(given.get("method"), str) or not given["method"]:
        return unread, []
    try:
        method = method_named(given["method"])
    except SettingsError as error:
        return unread, [Fault(("method",), str(error))]
    if isinstance(settings, method.Settings):
        made = settings
    elif settings is None or isinstance(settings, Mapping):
        raw = dict(settings or {})
        faults = number_faults(raw, method.Settings, within=("settings",))
        try:
            made = method.Settings.model_validate(raw)
        except ValidationError as error:
            return unread, faults + faults_of(error, raw, method.Settings, within=("settings",))
        if faults:
            return unread, faults
    else:
        text = f"settings is {settings!r}; give the options of {method.name} by name"
        return unread, [Fault(("settings",), text)]
    try:
        method.check(made)
    except SettingsError as error:
        return {**given, "settings": made}, [Fault(("settings",), str(error))]
    return {**given, "settings": made}, []


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a run's configuration, as JSON, decides its results."""
    return {name: value for name, value in config.items() if name != "gpus_per_worker"}
