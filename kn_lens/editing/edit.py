"""An edit as a value: what it adds to which weights; applied, taken back bit by bit, saved, read again.

Edits are sums: applied to one matrix they commute up to rounding, and each is taken back on its own, whatever was
applied after it. The weights that an edit overwrote are kept until it is reverted, so that every bit comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kn_lens.errors import ModelError
from kn_lens.models.kind import model_name
from kn_lens.models.stepping import can_step
from kn_lens.prompts.fact import Fact
from kn_lens.results import Result

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Editor = Callable[[Any, Fact], "Edit"]
"""Anything that makes an edit from a model and a fact, and leaves the model as it was."""


@dataclass(frozen=True, kw_only=True)
class Edit(Result):
    """What is added to some rows of some weights.

    A weight of more than two axes counts as a matrix of rows of its last axis (``W_O``: head · d_head rows), a vector
    as one row.

    Attributes:
        editor: What made it: ``"rome"``, ``"neurons, value"`` …
        fact: What it shall make the model say; None for edits without such a goal.
        rows: Parameter name → which of its rows change.
        changes: Parameter name → what is added to them, ``[row, width]``.
    """

    editor: str
    fact: Fact | None
    rows: dict[str, Int[Tensor, " row"]]
    changes: dict[str, Float[Tensor, "row width"]]

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the weights that change."""
        return tuple(self.changes)

    @property
    def norm(self) -> float:
        """Frobenius norm of all that is added."""
        norms = [change.double().norm() for change in self.changes.values()]
        return float(torch.stack(norms).norm()) if norms else 0.0

    def add_to(self, name: str, weight: Tensor) -> None:
        """Add the change of one parameter to ``weight`` in place."""
        change = self.changes[name].to(weight)
        rows = self.rows[name].to(weight.device)
        places = torch.unravel_index(rows, weight.shape[:-1]) if weight.ndim > 1 else (slice(None),)
        weight[tuple(places)] += change if weight.ndim > 1 else change[0]

    def shape_problem(self, name: str, weight: Tensor) -> str | None:
        """Why this edit does not fit ``weight``, or None."""
        width, n_rows = weight.shape[-1], weight[..., 0].numel()
        change, rows = self.changes[name], self.rows[name].tolist()
        if len(change) != len(rows) or len(set(rows)) != len(rows):
            return (
                f"it names {len(set(rows))} different rows in {len(rows)} places and has {len(change)} changes for them"
            )
        last = max(rows, default=0)
        if change.shape[-1] == width and last < n_rows and min(rows, default=0) >= 0:
            return None
        return f"it changes row {last} of width {change.shape[-1]}, and there are {n_rows} rows of width {width}"

    def apply(self, model: Any) -> None:
        """Add the edit to the model's weights; what they were is kept for :meth:`revert`.

        Raises:
            ModelError: If it is applied already, was made for another model, or would change nothing or write NaN;
                the model is left as it was.
        """
        stack = _applied_to(model)
        if any(entry.edit is self for entry in stack):
            raise ModelError(
                f"this edit ({self.describe()}) is applied to {model_name(model)} already; revert it first"
            )
        weights = self._weights(model)
        stack.append(_apply(self, weights))

    def revert(self, model: Any) -> None:
        """Take the edit back: the weights are bit by bit what they would be without it.

        Raises:
            ModelError: If it is not applied.
        """
        stack = _applied_to(model)
        index = next((at for at, entry in enumerate(stack) if entry.edit is self), None)
        if index is None:
            raise ModelError(f"this edit ({self.describe()}) is not applied to {model_name(model)}; apply it first")
        later = stack[index + 1 :]
        weights = {name: weight for entry in stack[index:] for name, weight in entry.edit._weights(model).items()}
        _warn_of_foreign_changes(stack, weights, model)
        for entry in reversed(stack[index:]):
            entry.restore(weights)
        del stack[index:]
        for entry in later:  # one by one: should one fail, those before it can still be taken back
            stack.append(_apply(entry.edit, entry.edit._weights(model)))

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """The model with this edit; afterwards, also after an error, its weights are bit by bit as before."""
        self.apply(model)
        try:
            yield model
        finally:
            self.revert(model)

    def describe(self) -> str:
        """``"rome on Canada: Ottawa → Rome"``."""
        return self.editor + (f" on {self.fact.name}" if self.fact else "")

    def to_frame(self) -> pd.DataFrame:
        """One row per parameter: rows changed, norm of what is added."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "editor": self.editor,
                    "fact": self.fact.name if self.fact else None,
                    "parameter": name,
                    "rows": len(change),
                    "norm": float(change.double().norm()),
                }
                for name, change in self.changes.items()
            ]
        )

    def _weights(self, model: Any) -> dict[str, Tensor]:
        """The weights that change.

        Raises:
            ModelError: If the model does not have them in the edit's shapes.
        """
        require_editable(model)
        if not self.parameters:
            raise ModelError(f"this edit ({self.describe()}) is empty: it names no weight to change")
        known = dict(model.named_parameters())
        made_on, here = self.provenance.get("model"), model_name(model)
        for name in self.parameters:
            problem = "it has no such weight" if name not in known else self.shape_problem(name, known[name])
            if problem:
                raise ModelError(
                    f"this edit ({self.describe()}) changes {name} of {made_on} and does not fit {here}: {problem}"
                )
        if made_on is not None and made_on != here:
            raise ModelError(f"this edit ({self.describe()}) was made for {made_on}, and the model is {here}")
        return {name: known[name] for name in self.parameters}


@contextmanager
def edits_applied(model: Any, edits: Sequence[Edit]) -> Iterator[Any]:
    """The model with several edits at once; afterwards its weights are bit by bit as before."""
    with ExitStack() as stack:
        for edit in edits:
            stack.enter_context(edit.applied(model))
        yield model


@contextmanager
def unedited(model: Any) -> Iterator[Any]:
    """The model without the edits that are applied to it, which come back bit by bit afterwards."""
    known, now = dict(model.named_parameters()), {}
    with torch.no_grad():
        try:
            for entry in _applied_to(model):
                for name, weight in entry.before.items():
                    if name not in now:  # the lowest entry holds what no edit has touched
                        now[name] = known[name].detach().clone()
                        known[name].copy_(weight)
            yield model
        finally:
            for name, weight in now.items():
                known[name].copy_(weight)


def require_editable(model: Any) -> None:
    """Refuse a model whose weights are not held as TransformerLens' own.

    Raises:
        ModelError: For a TransformerBridge.
    """
    if not can_step(model):
        raise ModelError(
            f"{model_name(model)} is held as {type(model).__name__}, whose weights are those of another library; edits "
            f"take a HookedTransformer or HookedEncoder on one device, which kn.load_model makes where it can"
        )


def require_weight(model: Any, name: str) -> None:
    """Refuse a model that lacks a weight which others of its kind have.

    Raises:
        ModelError: For a W_out of a mixture of experts, or of a model of attention only.
    """
    if name not in dict(model.named_parameters()):
        raise ModelError(
            f"{model_name(model)} has no weight {name}; this edit takes models with one MLP and one attention in each "
            f"layer, no mixture of experts"
        )


@dataclass
class _Applied:
    """An edit on a model, and the weights before and after it."""

    edit: Edit
    before: Mapping[str, Tensor]
    after: Mapping[str, int]

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.before.items():
                weights[name].copy_(weight)


_APPLIED: WeakKeyDictionary[Any, list[_Applied]] = WeakKeyDictionary()


def _applied_to(model: Any) -> list[_Applied]:
    return _APPLIED.setdefault(model, [])


@torch.no_grad()
def _apply(edit: Edit, weights: Mapping[str, Tensor]) -> _Applied:
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    entry = _Applied(edit, before, {})
    try:
        for name, weight in weights.items():
            edit.add_to(name, weight)
        if not all(bool(weight.isfinite().all()) for weight in weights.values()):
            raise ModelError(f"this edit ({edit.describe()}) would write NaN or ∞; the model is left as it was")
        if all(torch.equal(weight, before[name]) for name, weight in weights.items()):
            raise ModelError(
                f"this edit ({edit.describe()}, norm {edit.norm:.2g}) changes no weight of {', '.join(weights)}; "
                f"it is empty, or too small for {next(iter(weights.values())).dtype}"
            )
    except BaseException:
        entry.restore(weights)
        raise
    entry.after = {name: _bits(weight) for name, weight in weights.items()}
    return entry


def _warn_of_foreign_changes(stack: Sequence[_Applied], weights: Mapping[str, Tensor], model: Any) -> None:
    expected = {name: bits for entry in stack for name, bits in entry.after.items()}
    changed = [name for name, weight in weights.items() if _bits(weight) != expected[name]]
    if changed:
        log.warning(
            "%s of %s was changed by something else while an edit was applied; reverting undoes that too",
            ", ".join(changed),
            model_name(model),
        )


def _bits(weight: Tensor) -> int:
    """The sum of the bit patterns; a change that leaves it alone would have to be made for that."""
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return int(weight.detach().view(width).sum())
