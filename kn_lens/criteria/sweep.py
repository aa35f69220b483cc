"""The same edits at one layer after another, beside what causal tracing says of those layers (Hase et al. 2023)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from kn_lens.criteria.cases import edit_cases
from kn_lens.criteria.evaluate import editor_name, evaluate_edits
from kn_lens.criteria.evaluation import FAILED, EditEvaluation
from kn_lens.criteria.questions import EditCases
from kn_lens.criteria.sweep_findings import sweep_findings
from kn_lens.editing.edit import Editor, require_editable
from kn_lens.editing.hyperparameters import Position, hyperparameters_of
from kn_lens.editing.layer_choice import layer_by_tracing
from kn_lens.editing.rome import rome
from kn_lens.editing.rows import EditSite
from kn_lens.errors import KnLensError, OutputError, PromptError, SettingsError
from kn_lens.models.hashing import weights_hash
from kn_lens.models.kind import model_name
from kn_lens.progress import progress_bar
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Dropped, count_reasons
from kn_lens.results import Result
from kn_lens.statistics import RankCorrelation, bootstrap_mean, rank_correlation

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class LayerSweep(Result):
    """What the same edits did at each layer, and the causal trace of their facts.

    Attributes:
        editor: What made the edits.
        data: Name of the data set.
        criteria: Those that were asked for.
        layers: At which edits were made, ascending.
        rows: A dict for each layer and criterion: ``layer``, and the columns of
            :meth:`~kn_lens.criteria.evaluation.EditEvaluation.summary`. NaN where no edit could be made.
        counts: A dict for each layer: ``layer``, ``edits`` made, ``failed``, and ``reasons`` (reason → how often; where
            all failed, the first edit's stands for all).
        trace: Indirect effect of restoring the outputs around each layer of the model where the edit acts; None if it
            was not traced.
        trace_site: Which outputs: ``"mlp"`` or ``"attn"``.
        trace_metric: What the effects are measured in.
        trace_window: How many layers were restored together.
        trace_position: ``"subject_last"`` or ``"last"``.
        trace_dropped: Facts that could not be traced.
        not_traced: Why there is no trace though it was asked for.
    """

    editor: str
    data: str
    criteria: tuple[str, ...]
    layers: tuple[int, ...]
    rows: tuple[dict[str, Any], ...]
    counts: tuple[dict[str, Any], ...]
    trace: Float[Tensor, "fact layer"] | None = None
    trace_metric: str | None = None
    trace_window: int | None = None
    trace_site: str | None = None
    trace_position: str | None = None
    trace_dropped: tuple[Dropped, ...] = ()
    not_traced: str | None = None

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and criterion: the summary's columns, ``failed`` edits, mean ``trace_effect``."""
        import pandas as pd

        failed = {count["layer"]: count["failed"] for count in self.counts}
        effects = [float("nan")] * (1 + self.layers[-1]) if self.trace is None else self.trace.mean(0).tolist()
        return pd.DataFrame(
            [{**row, "failed": failed[row["layer"]], "trace_effect": effects[row["layer"]]} for row in self.rows]
        )

    def trace_frame(self) -> pd.DataFrame:
        """One row per layer of the model: ``mean`` effect over facts with its 95 % interval; empty without a trace."""
        import pandas as pd

        if self.trace is None:
            return pd.DataFrame(columns=["layer", "mean", "low", "high", "facts"])
        mean, low, high = bootstrap_mean(self.trace.double().numpy())
        columns = {"layer": range(len(mean)), "mean": mean, "low": low, "high": high, "facts": len(self.trace)}
        return pd.DataFrame(columns)

    def correlation(self, criterion: str) -> RankCorrelation:
        """Spearman's ρ, over layers with edits, of the mean trace effect with a criterion's success.

        ρ is NaN where one of them is the same at all layers. Layers next to each other are alike, so that the interval
        and p take them for more evidence than they are.

        Raises:
            SettingsError: If there is no trace, or the criterion was not asked for.
        """
        if self.trace is None:
            raise SettingsError(f"this sweep has no trace to compare with ({self.not_traced or 'trace=False'})")
        if criterion not in self.criteria:
            raise SettingsError(f"no criterion {criterion!r} in this sweep; it has {', '.join(self.criteria)}")
        effects = self.trace.double().mean(0).numpy()
        found = [row for row in self.rows if row["criterion"] == criterion and row["success_after"] >= 0]
        success = np.array([row["success_after"] for row in found], float)
        return rank_correlation(effects[[row["layer"] for row in found]], success)

    def findings(self) -> list[str]:
        """Sentences computed from the numbers: the best layers, where the trace points to, whether they agree."""
        return sweep_findings(self)


def sweep_layers(
    model: Any,
    data: Any,
    *,
    editor: Editor = rome,
    layers: Sequence[int] | None = None,
    edits: int | None = 10,
    seed: int = 0,
    criteria: Sequence[str] | None = None,
    journal_folder: str | Path | None = None,
    progress: bool = True,
    trace: bool = True,
) -> LayerSweep:
    """Make and judge the same edits at each layer, and trace the same facts: does the trace tell where edits work?

    A layer at which no edit can be made (as behind the last one that the answer reads) is told with its reason, and the
    sweep goes on.

    Args:
        model: A model that can be edited; its weights are bit by bit the same afterwards.
        data: A relation, minimal pairs, a CounterFact data set, facts, or cases made of them.
        editor: Takes ``layer=``; :func:`kn_lens.editing.rome.rome` by default.
        layers: Which; by default all.
        edits: How many facts to draw, the same for all layers; None takes all. Of cases, the first.
        seed: Of the draws and of the noise of the trace.
        criteria: Which to ask; by default those that the data allows.
        journal_folder: A folder with a journal for each layer, from which a run that broke off goes on.
        progress: Show progress bars.
        trace: Trace the facts too: the indirect effect of each layer's MLP output where the edit acts.

    Raises:
        SettingsError: If the model has no such layer, the editor takes no ``layer``, or as
            :func:`~kn_lens.criteria.evaluate.evaluate_edits`.
        ModelError: If the model cannot be edited, or was changed by the editor itself.
        OutputError: If a journal is of another run, or cannot be written.
        KnLensError: The editor's own, if no edit can be made at any layer.
    """
    require_editable(model)
    chosen = _layers(model, layers)
    _require_layer(editor)
    layered: Any = editor  # of a call by name the type Editor says nothing
    cases = data if isinstance(data, EditCases) else edit_cases(model, data, edits=edits, seed=seed, criteria=criteria)
    facts = cases.facts[:edits]
    untouched = weights_hash(model)
    rows: list[dict[str, Any]] = []
    counts: list[dict[str, Any]] = []
    asked: tuple[str, ...] = cases.criteria
    made_with: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    first_error: KnLensError | None = None
    with progress_bar(len(chosen), f"layers ({editor_name(editor)})", "layer", progress) as bar:
        for layer in chosen:
            journal = None if journal_folder is None else Path(journal_folder) / f"layer-{layer:03d}.jsonl"
            try:
                found = evaluate_edits(
                    model,
                    functools.partial(layered, layer=layer),
                    cases,
                    criteria=criteria,
                    edits=edits,
                    seed=seed,
                    journal=journal,
                    progress=progress,
                )
            except (OutputError, SettingsError):
                raise
            except KnLensError as error:
                if weights_hash(model) != untouched:  # the editor did it: no matter of the layer
                    raise
                first_error = first_error or error
                reason = _without_names(getattr(error, "reason", None) or str(error), facts)
                counts.append({"layer": layer, "edits": 0, "failed": len(facts), "reasons": {reason: len(facts)}})
            else:
                asked, made_with, settings = found.criteria, found.provenance, found.settings
                table: list[dict[str, Any]] = found.summary().to_dict("records")  # type: ignore[assignment]
                rows += [{"layer": layer, **row} for row in table]
                reasons = count_reasons(
                    Dropped(text="", reason=_without_names(one.reason.removeprefix(FAILED), facts))
                    for one in found.failed
                )
                counts.append({"layer": layer, "edits": len(found), "failed": len(found.failed), "reasons": reasons})
            bar.update()
    if not rows and first_error is not None:
        raise first_error
    made = {row["layer"] for row in rows}
    none = EditEvaluation(editor="", data="", criteria=asked, rows=(), edits=(), settings={}, provenance={}).summary()
    nothing: list[dict[str, Any]] = none.to_dict("records")  # type: ignore[assignment]
    rows += [{"layer": layer, **row} for layer in chosen if layer not in made for row in nothing]
    order = {name: at for at, name in enumerate(asked)}
    rows.sort(key=lambda row: (row["layer"], order[row["criterion"]]))
    return LayerSweep(
        editor=editor_name(editor),
        data=cases.name,
        criteria=asked,
        layers=chosen,
        rows=tuple(rows),
        counts=tuple(counts),
        **(_traced(model, editor, facts, seed, progress) if trace else {}),
        settings={**settings, "layers": list(chosen), "trace": trace},
        provenance=made_with,
    )


def _traced(model: Any, editor: Editor, facts: Sequence[Fact], seed: int, progress: bool) -> dict[str, Any]:
    """The fields of a sweep that tell of the trace; without any fact that can be traced, why."""
    position = _position(model, editor)
    try:
        choice = layer_by_tracing(model, facts, site=_site(editor), position=position, seed=seed, progress=progress)
    except PromptError as error:
        why = str(error).partition("; give ")[0]  # without the advice to give a layer
        return {"trace_site": _site(editor), "trace_position": position, "not_traced": why}
    return {
        "trace": choice.effects,
        "trace_metric": choice.metric,
        "trace_window": choice.window,
        "trace_site": _site(editor),
        "trace_position": position,
        "trace_dropped": choice.dropped,
    }


def _position(model: Any, editor: Editor) -> Position:
    """Where the editor acts: as it is told, else attention at the prompt's last token, an MLP where the model says."""
    told = editor.keywords if isinstance(editor, functools.partial) else {}
    if told.get("position") is not None:
        return told["position"]
    return hyperparameters_of(model).position_at(_site(editor))


def _site(editor: Editor) -> EditSite:
    return editor.keywords.get("site", "mlp") if isinstance(editor, functools.partial) else "mlp"


def _layers(model: Any, layers: Sequence[int] | None) -> tuple[int, ...]:
    n_layers = int(model.cfg.n_layers)
    if layers is None:
        return tuple(range(n_layers))
    chosen = tuple(sorted(set(layers)))
    wrong = next((layer for layer in chosen if not 0 <= layer < n_layers), None)
    if wrong is not None or not chosen:
        what = "layers is empty" if wrong is None else f"there is no layer {wrong}"
        raise SettingsError(f"{what}; {model_name(model)} has layers 0–{n_layers - 1}")
    return chosen


def _require_layer(editor: Editor) -> None:
    try:
        inspect.signature(editor).bind(None, None, layer=0)
    except TypeError:
        raise SettingsError(
            f"the editor {editor_name(editor)} takes no layer=, so that it cannot be swept over layers; take kn.rome "
            f"or kn.fine_tune"
        ) from None
    except ValueError:  # a callable without a signature: it will say so itself
        return


def _without_names(reason: str, facts: Sequence[Fact]) -> str:
    """A reason without the fact that it names, so that like reasons are counted together."""
    for fact in facts:
        reason = reason.replace(f" on {fact.name}", "").replace(f"{fact.name!r}", "a fact")
        reason = reason.replace(f"{fact.name}: ", "")
    return reason
