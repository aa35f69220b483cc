"""What a method is to a batch: its settings, what it needs of the prompts, and how pieces of it are made and joined.

One rule holds for all: the numbers of a prompt do not depend on which prompts are in its block, beyond rounding. What
must be measured over all prompts (σ of the noise, the probes) is measured in planning and handed over as ``prepared``;
what takes values from the other prompts of a batch is refused.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict

from kn_lens.batches.methods.join import ByPrompt, join_results
from kn_lens.errors import SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.batches.config import DataEntry
    from kn_lens.prompts.batch import PromptBatch
    from kn_lens.prompts.prompt import Dropped, Prompt
    from kn_lens.results import Result
    from kn_lens.tracing.swap import Swapped

Found = TypeVar("Found")


class MethodSettings(BaseModel):
    """The options of a method's public function: same names, same defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _several(value: Any) -> Any:
    """One name as a list of one; each name once."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return names
    if not names:
        raise ValueError("is empty; name at least one")
    return tuple(dict.fromkeys(names))


ONE_OR_SEVERAL = BeforeValidator(_several)
"""Marks options over which a run is repeated: a name or a list of names, kept as a tuple."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One piece of work: a block of prompts, for one variant of the method.

    Attributes:
        settings: The method's.
        variant: What the method is repeated over; ``""`` where it is not.
        seed: Of every draw.
        memory_budget: Bytes that the rows of one pass may take.
        prepared: What was measured over all prompts of the data set.
        data: The data set.
        rows: Numbers of these prompts within their data set.
        batch: The prompts for this model; None for methods with cases of their own.
        swaps: Their twins, where the method asked for them.
    """

    settings: Any
    variant: str
    seed: int
    memory_budget: float
    prepared: Mapping[str, Any]
    data: DataEntry
    rows: range
    batch: PromptBatch | None
    swaps: Swapped | None = None

    @property
    def posed(self) -> PromptBatch:
        """The prompts, of a method that has prompts."""
        assert self.batch is not None
        return self.batch


class Preparation(Protocol):
    """Measures something over all prompts of a data set."""

    def add(self, batch: PromptBatch) -> None:
        """Take in a block of them."""
        ...

    def values(self) -> dict[str, Any]:
        """What was found, as JSON holds it."""
        ...


class Method(ABC):
    """One method of the package, as batches run it.

    Attributes:
        name: That of the public function.
        Settings: The model of its options.
        whole_groups: Whether a block never parts a group.
        variant_name: What a variant is, ``"stream"``; empty where the method is not repeated.
        needs_cues: Whether prompts without a cue are left out; see also :meth:`asks_for_cues`.
        targets: Whether targets of several tokens are left out.
        joined: How the fields of its result are joined.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[MethodSettings]]
    whole_groups: ClassVar[bool] = False
    needs_cues: ClassVar[bool] = False
    variant_name: ClassVar[str] = ""
    targets: ClassVar[Literal["single", "any"]] = "single"
    joined: ClassVar[ByPrompt] = ByPrompt()

    def check(self, settings: Any) -> None:  # noqa: B027 - nothing to refuse, by default
        """Refuse settings that can be seen to be wrong without a model.

        Raises:
            SettingsError: Naming the first.
        """

    def check_model(self, model: Any, settings: Any) -> None:  # noqa: B027
        """Refuse what this model cannot do.

        Raises:
            KnLensError: With the reason.
        """

    def asks_for_cues(self, settings: Any) -> bool:
        """Whether, with these settings, prompts without a cue are left out."""
        return self.needs_cues

    def variants(self, settings: Any) -> tuple[str, ...]:
        """What the method is repeated over: by default the names that the settings give for it."""
        return getattr(settings, self.variant_name) if self.variant_name else ("",)

    def twins(self, settings: Any) -> bool:
        """Whether each prompt needs a twin."""
        return False

    def find_twins(self, model: Any, batch: PromptBatch, settings: Any) -> Swapped:
        """The twins of prompts, as the settings say.

        Raises:
            PromptError: As :func:`kn_lens.tracing.swap.swap_partners`.
        """
        from kn_lens.tracing.swap import swap_partners

        return swap_partners(model, batch, getattr(settings, "swaps", None))

    def prepare(self, model: Any, settings: Any) -> Preparation | None:
        """What is to be measured over all prompts; None if nothing is."""
        return None

    def cases(self, model: Any, data: DataEntry, settings: Any, seed: int) -> list[Prompt] | None:
        """One prompt a case, of a method whose pieces are no prompts; else None."""
        return None

    def cases_left_out(self, model: Any, data: DataEntry, settings: Any, seed: int) -> list[Dropped]:
        """What was left out in making :meth:`cases`."""
        return []

    def is_failure(self, reason: str) -> bool:
        """Whether a prompt left out for this reason is one that failed."""
        return False

    @abstractmethod
    def compute(self, model: Any, work: Work) -> Result:
        """The result of one piece.

        Raises:
            NothingLeft: If none of its prompts remains.
            KnLensError: As the public function.
        """

    @abstractmethod
    def frame(self, result: Any, work: Work) -> pd.DataFrame:
        """The result as a tidy table; its column ``prompt`` counts within the block."""

    def done(self, result: Any, work: Work) -> list[int]:
        """Which of the block's prompts the result holds, in its order."""
        return in_order(result.prompts, work.posed.prompts)

    def join(self, results: Sequence[Any]) -> Any:
        """Several parts of one data set and variant, in order, as the function would have returned over all prompts.

        Their provenance is that of the first, with the number of ``parts`` in place of the prompts' hash.

        Raises:
            OutputError: If they were made with different settings.
        """
        return join_results(results, self.joined)


def in_order(some: Sequence[Found], every: Sequence[Found]) -> list[int]:
    """Where each of ``some`` stands in ``every``, which has them in the same order; the first of equals left.

    Raises:
        ValueError: If one is not there.
    """
    found: list[int] = []
    for one in some:
        start = found[-1] + 1 if found else 0
        at = next((at for at in range(start, len(every)) if every[at] == one), None)
        if at is None:
            raise ValueError(f"{one!r} is not among the prompts of the block, or not in their order")
        found.append(at)
    return found


def by_block(frame: pd.DataFrame, done: Sequence[int]) -> pd.DataFrame:
    """A result's table with its column ``prompt`` counting within the block instead of within the result."""
    import numpy as np

    places = np.asarray(done, dtype=np.int64)[frame["prompt"].to_numpy(dtype=np.int64)]
    return with_texts(frame.assign(prompt=places))


def with_texts(frame: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts are of pandas' own type: a column that is empty in one block is a text there too."""
    return frame.astype({name: "string" for name, kind in frame.dtypes.items() if kind == object})  # noqa: E721


def check_layers(model: Any, what: str, layers: Sequence[int]) -> None:
    """Refuse layers that a model does not have.

    Raises:
        SettingsError: Naming the first.
    """
    for layer in layers:
        if not 0 <= layer < model.cfg.n_layers:
            raise SettingsError(f"{what}: layer {layer} is not in the model; it has layers 0–{model.cfg.n_layers - 1}")
