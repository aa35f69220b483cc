"""Edits judged by their criteria, in batches: a case is an edit, made and taken back by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

from pydantic import Field

from kn_lens.batches.methods.join import ByPrompt
from kn_lens.batches.methods.method import ONE_OR_SEVERAL, Method, MethodSettings, Work, in_order, with_texts
from kn_lens.batches.methods.tracing import Layers
from kn_lens.errors import KnLensError, ModelError, PromptError, SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.batches.config import DataEntry
    from kn_lens.criteria.evaluation import EditEvaluation
    from kn_lens.criteria.questions import EditCases
    from kn_lens.prompts.prompt import Dropped, Prompt
    from kn_lens.studies.evaluate_editors import EvaluateSettings

EditorName = Literal[
    "rome",
    "rome-attention",
    "rome-mixed-key",
    "rome-random-layer",
    "rome-random-direction",
    "neurons",
    "neurons-suppress",
    "neurons-enhance",
    "heads",
    "heads-suppress",
    "fine-tune",
]
Criterion = Literal["reliability", "generality", "locality", "symmetry", "symmetry_old", "synonymy"]

SWEPT = ("rome", "rome-attention", "rome-mixed-key", "rome-random-direction", "fine-tune")
"""Editors that are made anew at each of several layers."""
TAKING_LAYER = (*SWEPT, "rome-random-layer")
"""Editors that take a layer; the last one to stay away from it."""

_AT = "@"
_CASE = "case"
"""Under which an edit of a part says which case of the data set it is; joined results do not have it."""


class EvaluateEditsSettings(MethodSettings):
    """Options of :func:`kn_lens.evaluate_edits` and of how its cases are drawn; how many says the data entry's
    ``groups``.

    ``editors`` takes several names; ``layers`` makes the edits at each of several layers, with the editors that take
    one, ``layer`` at one.
    """

    editors: Annotated[tuple[EditorName, ...], ONE_OR_SEVERAL] = ("rome",)
    layer: Annotated[int, Field(ge=0)] | Literal["auto"] | None = None
    layers: Layers | None = None
    criteria: Annotated[tuple[Criterion, ...] | None, ONE_OR_SEVERAL] = None
    known: bool = False
    fluency: bool = False
    perplexity_on: tuple[str, ...] | None = None


class EvaluateEditsMethod(Method):
    """:func:`kn_lens.evaluate_edits`, editor by editor and layer by layer: variants are ``"rome"`` or ``"rome@3"``."""

    name = "evaluate_edits"
    variant_name = "editor"
    Settings = EvaluateEditsSettings
    joined: ClassVar[ByPrompt] = ByPrompt(ignored=frozenset(["cases"]))

    def __init__(self) -> None:
        self._cases: WeakKeyDictionary[Any, dict[Any, EditCases]] = WeakKeyDictionary()

    def check(self, settings: EvaluateEditsSettings) -> None:
        """See :meth:`Method.check`."""
        if settings.layer is not None and settings.layers is not None:
            raise SettingsError("layer and layers both say where edits are made; give one of them")
        editors = " and ".join(settings.editors)
        if settings.layer is not None and not set(settings.editors) & set(TAKING_LAYER):
            raise SettingsError(f"{editors} take no layer; these do: {', '.join(TAKING_LAYER)}")
        if settings.layers is not None and not set(settings.editors) & set(SWEPT):
            raise SettingsError(f"{editors} cannot be made at several layers; these can: {', '.join(SWEPT)}")

    def check_model(self, model: Any, settings: EvaluateEditsSettings) -> None:
        """See :meth:`Method.check_model`."""
        from kn_lens.models.kind import is_masked, model_name
        from kn_lens.studies.evaluate_editors import check_editors

        check_editors(model, _study(settings, 0))
        if settings.perplexity_on and is_masked(model):
            raise ModelError(f"{model_name(model)} is a masked model, which gives no text a perplexity")

    def variants(self, settings: EvaluateEditsSettings) -> tuple[str, ...]:
        """Editors, those that are swept at each of the layers."""
        found: list[str] = []
        for name in settings.editors:
            layers = settings.layers if name in SWEPT else None
            found += [name] if layers is None else [f"{name}{_AT}{layer}" for layer in dict.fromkeys(layers)]
        return tuple(found)

    def cases(self, model: Any, data: DataEntry, settings: EvaluateEditsSettings, seed: int) -> list[Prompt]:
        """The edited question of each case, asked for its new answer."""
        return [case.fact.prompt() for case in self._drawn(model, data, settings, seed).cases]

    def cases_left_out(self, model: Any, data: DataEntry, settings: Any, seed: int) -> list[Dropped]:
        """Facts and questions left out of the draw."""
        return list(self._drawn(model, data, settings, seed).dropped)

    def is_failure(self, reason: str) -> bool:
        """Edits that could not be made."""
        from kn_lens.criteria.evaluation import FAILED

        return reason.startswith(FAILED)

    def compute(self, model: Any, work: Work) -> EditEvaluation:
        """See :meth:`Method.compute`.

        Raises:
            PromptError: If no edit of the block can be made, with the reason of the first.
        """
        from kn_lens.criteria.evaluate import evaluate_edits
        from kn_lens.criteria.evaluation import FAILED

        drawn = self._drawn(model, work.data, work.settings, work.seed)
        cases = drawn.cases[work.rows.start : work.rows.stop]
        name, _, layer = work.variant.partition(_AT)
        study = _study(work.settings, work.seed)
        editor = replace(study, layer=int(layer)).editor(name) if layer else study.editor(name)
        try:
            found = evaluate_edits(
                model,
                editor,
                replace(drawn, cases=cases, dropped=()),  # what the draw left out belongs to no block
                seed=work.seed,
                fluency=work.settings.fluency,
                perplexity_on=work.settings.perplexity_on,
                progress=False,
            )
        except KnLensError as error:
            raise PromptError(f"{FAILED}{getattr(error, 'reason', None) or error}") from error
        places = in_order([edit["fact"] for edit in found.edits], [case.fact for case in cases])
        edits = [{**edit, _CASE: work.rows[at]} for edit, at in zip(found.edits, places, strict=True)]
        return replace(found, edits=tuple(edits))

    def frame(self, result: EditEvaluation, work: Work) -> pd.DataFrame:
        """One row per question, with its edit's subject, answers, layer and norm."""
        import pandas as pd

        name, _, _ = work.variant.partition(_AT)
        rows = []
        for row in result.rows:
            edit = result.edits[row["edit"]]
            fact = edit["fact"]
            head = {"prompt": edit[_CASE] - work.rows.start, "editor": name, "layer": _layer(edit["layer"])}
            head |= {"subject": fact.subject, "old": fact.old, "new": fact.target, "relation": fact.relation}
            told = {key: value for key, value in row.items() if key != "edit"}
            known = {True: 1.0, False: 0.0, None: float("nan")}[told["known"]]  # one type whatever a block holds
            rows.append({**head, "norm": edit["norm"], **told, "known": known})
        return with_texts(pd.DataFrame(rows)) if rows else pd.DataFrame({"prompt": pd.Series(dtype="int64")})

    def done(self, result: EditEvaluation, work: Work) -> list[int]:
        """The cases whose edit was made."""
        return [edit[_CASE] - work.rows.start for edit in result.edits]

    def join(self, results: Sequence[EditEvaluation]) -> EditEvaluation:
        """See :meth:`Method.join`; edits are counted through."""
        rows: list[dict[str, Any]] = []
        edits: list[dict[str, Any]] = []
        for result in results:
            rows += [{**row, "edit": row["edit"] + len(edits)} for row in result.rows]
            edits += [{key: value for key, value in edit.items() if key != _CASE} for edit in result.edits]
        joined = super().join([replace(result, rows=(), edits=()) for result in results])
        settings = {key: value for key, value in joined.settings.items() if key != "cases"}  # a hash of one part's
        return replace(joined, rows=tuple(rows), edits=tuple(edits), settings=settings)

    def _drawn(self, model: Any, data: DataEntry, settings: EvaluateEditsSettings, seed: int) -> EditCases:
        """The cases of a data set, drawn once for a model: the same in planning and in every worker."""
        from kn_lens.criteria.cases import edit_cases

        kept = self._cases.setdefault(model, {})
        key = (data, settings.criteria, settings.known, seed)
        if key not in kept:
            kept[key] = edit_cases(
                model,
                _loaded(data.name),
                edits=data.groups,
                seed=seed,
                criteria=settings.criteria,
                known=settings.known,
            )
        return kept[key]


def _loaded(name: str) -> Any:
    """The data without their bad rows: whether these are an error was asked when the run was planned."""
    from kn_lens.prompts.load import load_data

    return load_data(name, report=lambda where, what: None)


def _study(settings: EvaluateEditsSettings, seed: int) -> EvaluateSettings:
    """The same for the study of editors, which knows how each is made."""
    from kn_lens.studies.evaluate_editors import EvaluateSettings

    return EvaluateSettings(
        editors=settings.editors,
        criteria=settings.criteria,
        known=settings.known,
        layer=settings.layer,
        fluency=settings.fluency,
        layers=settings.layers,
        seed=seed,
    )


def _layer(layer: Any) -> int:
    """The layer of an edit; −1 of one that has none, or several."""
    return layer if isinstance(layer, int) else -1
