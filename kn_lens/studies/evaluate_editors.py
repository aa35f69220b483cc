"""Editors judged by criteria on data sets: which editors, which facts, and the run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kn_lens.criteria.cases import EditData, chosen_criteria, edit_cases
from kn_lens.criteria.evaluate import evaluate_edits
from kn_lens.criteria.evaluation import EditEvaluation
from kn_lens.criteria.journal import finished_parts
from kn_lens.criteria.sweep import LayerSweep, sweep_layers
from kn_lens.editing.edit import Editor, require_editable
from kn_lens.editing.editors import EDITORS, editor_named
from kn_lens.editing.rome import Layer, require_rome
from kn_lens.errors import ModelError, SettingsError
from kn_lens.models.kind import is_masked, model_name
from kn_lens.studies.evaluated import Evaluated

JournalOf = Callable[[str, str, bool], Path | None]
"""Where the journal of (data, editor) lies, and, where the third is True, the journals of its sweep."""

_OTHER_LAYER = "rome-random-layer"
"""Takes a layer to stay away from it, so that a sweep over layers says nothing of it."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Settings of a run.

    Attributes:
        editors: Names of :data:`~kn_lens.editing.editors.EDITORS`.
        edits: Facts of each data set.
        criteria: None takes those that each data set allows.
        known: Only facts of which the unedited model passes a probe of symmetry or synonymy.
        layer: For the editors that take one; None their own.
        fluency: Also let the model write, before and after.
        sweep: Also make the edits at each layer, with the editors that take one.
        layers: Of the sweep; None all.
        seed: Of every draw, and of the editors.
    """

    editors: tuple[str, ...] = ("rome",)
    edits: int = 20
    criteria: tuple[str, ...] | None = None
    known: bool = False
    layer: Layer = None
    fluency: bool = False
    sweep: bool = False
    layers: tuple[int, ...] | None = None
    seed: int = 0

    def check(self, sets: Sequence[EditData] = ()) -> None:
        """Refuse what can be seen to be wrong before any model is loaded.

        Raises:
            SettingsError: Naming the first such setting.
        """
        for name in self.editors:
            editor_named(name)
        if self.edits < 1:
            raise SettingsError(f"edits is {self.edits}; give at least 1")
        taking = ", ".join(name for name in EDITORS if _takes(name, "layer"))
        if self.layer is not None and not any(_takes(name, "layer") for name in self.editors):
            raise SettingsError(f"{' and '.join(self.editors)} take no layer; these do: {taking}")
        if self.sweep and not self.swept:
            raise SettingsError(
                f"{' and '.join(self.editors)} cannot be swept over layers; these can: {', '.join(_swept(EDITORS))}"
            )
        if self.layers is not None and not self.sweep:
            raise SettingsError("--layers are those of a sweep; add --sweep, or name one layer by --layer")
        for data in sets:
            chosen_criteria(data, self.criteria)

    @property
    def swept(self) -> tuple[str, ...]:
        """The editors that a sweep is made with."""
        return _swept(self.editors)

    def editor(self, name: str, *, layer: bool = True) -> Editor:
        """An editor with those of the settings that it takes."""
        options: dict[str, Any] = {}
        if layer and self.layer is not None and _takes(name, "layer"):
            options["layer"] = self.layer
        if self.seed and _takes(name, "seed"):  # 0 is every editor's own
            options["seed"] = self.seed
        return editor_named(name, **options)


def check_editors(model: Any, settings: EvaluateSettings) -> None:
    """Refuse editors, or layers, that a model cannot take, before any edit is made.

    Raises:
        ModelError: With the reason.
    """
    require_editable(model)
    for name in settings.editors:
        if name.startswith("rome"):
            require_rome(model)
        elif name == "fine-tune" and is_masked(model):
            raise ModelError(f"{model_name(model)} is a masked model; fine-tune takes causal ones")
    if settings.fluency and is_masked(model):
        raise ModelError(f"{model_name(model)} is a masked model, which writes no text; leave --fluency out")
    named = [layer for layer in (settings.layer, *(settings.layers or ())) if isinstance(layer, int)]
    for layer in named:
        if not 0 <= layer < model.cfg.n_layers:
            raise ModelError(f"{model_name(model)} has layers 0–{model.cfg.n_layers - 1}, and no layer {layer}")


def evaluate(
    model: Any,
    data: EditData,
    settings: EvaluateSettings,
    *,
    journals: JournalOf | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Evaluated:
    """Judge each editor on the same facts of one data set.

    Args:
        model: A loaded model; it is left as it was.
        data: What edits are drawn from.
        settings: See :class:`EvaluateSettings`.
        journals: Where what is finished is kept, for a run that broke off; by default nowhere.
        tell: Called with a sentence for each editor whose run is taken up.

    Raises:
        KnLensError: As :func:`kn_lens.evaluate_edits` and :func:`kn_lens.sweep_layers`.
    """
    cases = edit_cases(
        model, data, edits=settings.edits, seed=settings.seed, criteria=settings.criteria, known=settings.known
    )
    evaluations: dict[str, EditEvaluation] = {}
    sweeps: dict[str, LayerSweep] = {}
    for name in settings.editors:
        journal = None if journals is None else journals(cases.name, name, False)
        _tell_resumed(tell, journal, f"{cases.name}, {name}", len(cases))
        evaluations[name] = evaluate_edits(
            model,
            settings.editor(name),
            cases,
            edits=settings.edits,
            seed=settings.seed,
            fluency=settings.fluency,
            journal=journal,
        )
    for name in settings.swept if settings.sweep else ():
        folder = None if journals is None else journals(cases.name, name, True)
        _tell_resumed(tell, folder, f"{cases.name}, sweep of {name}", len(cases) * _layer_count(model, settings))
        sweeps[name] = sweep_layers(
            model,
            cases,
            editor=settings.editor(name, layer=False),
            layers=settings.layers,
            edits=settings.edits,
            seed=settings.seed,
            journal_folder=folder,
        )
    return Evaluated(
        data=cases.name,
        data_hash=cases.data_hash,
        criteria=cases.criteria,
        drawn=len(cases),
        dropped=cases.dropped,
        evaluations=evaluations,
        sweeps=sweeps,
    )


def _layer_count(model: Any, settings: EvaluateSettings) -> int:
    return model.cfg.n_layers if settings.layers is None else len(set(settings.layers))


def _swept(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if _takes(name, "layer") and name != _OTHER_LAYER)


def _takes(name: str, option: str) -> bool:
    """Whether an editor takes an option, by itself or among those that it hands on."""
    parameters = inspect.signature(editor_named(name)).parameters
    return option in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _tell_resumed(tell: Callable[[str], None], journal: Path | None, what: str, total: int) -> None:
    done = 0 if journal is None else finished_parts(journal)
    if done:
        tell(f"{what}: taking up a run that broke off, {done} of {total} edits are done.")
