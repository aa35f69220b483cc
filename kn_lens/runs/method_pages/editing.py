"""What is shown of edits judged by their criteria: editors side by side, and the same edits layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from kn_lens.criteria.evaluation import FAILED, EditEvaluation
from kn_lens.criteria.sweep import LayerSweep
from kn_lens.plots.editing import edit_cascade, edit_criteria
from kn_lens.plots.layer_sweep import layer_sweep
from kn_lens.prompts.prompt import count_reasons
from kn_lens.runs.method_pages.material import Material, MethodPage, Shown, together
from kn_lens.studies.evaluated import Evaluated

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_AT = "@"  # between an editor and a layer
_FIRST = "Reliability"  # of sentences on a sweep, the one for its summary


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """What is kept of one evaluation: without its questions, which would stay in memory."""

    variant: str
    evaluation: EditEvaluation
    summary: pd.DataFrame
    cascade: pd.DataFrame
    by_label: pd.DataFrame
    edits: pd.DataFrame
    findings: list[str]
    brief: list[str]
    made: int
    failed: dict[str, int]

    @property
    def editor(self) -> str:
        return self.variant.partition(_AT)[0]

    @property
    def layer(self) -> int | None:
        """Where the edits of a sweep were made."""
        layer = self.variant.partition(_AT)[2]
        return int(layer) if layer else None

    def drawn(self) -> Any:
        """What figures ask of an evaluation."""
        return SimpleNamespace(summary=lambda: self.summary, cascade=lambda: self.cascade)


def show_edits(of: Material) -> Shown:
    """Success by criterion, the cascade, and success by layer where edits were made at several."""
    judged = of.each(partial(_judged, of))
    alone = [one for one in judged if one.layer is None]
    swept: dict[str, list[_Judged]] = {}
    for one in judged:
        if one.layer is not None:
            swept.setdefault(one.editor, []).append(one)
    figures: dict[str, go.Figure] = {}
    said: list[str] = []
    brief: list[str] = []
    if alone:
        drawn = {one.variant: one.drawn() for one in alone}
        subtitle = of.subtitle() + (f", {alone[0].variant}" if len(alone) == 1 else "")
        figures |= {"criteria": edit_criteria(drawn, subtitle), "cascade": edit_cascade(drawn, subtitle)}
        said += [f"{of.called(one.variant)}: {sentence}" for one in alone for sentence in one.findings]
        brief += [f"{of.called(one.variant)}: {sentence}" for one in alone for sentence in one.brief]
    for editor, layers in swept.items():
        sweep = _sweep(of, editor, layers)
        figures[f"layers-{editor}"] = layer_sweep(sweep, of.subtitle())
        told = [f"{of.label}, {editor}: {sentence}" for sentence in sweep.findings()]
        said += told
        brief += [sentence for sentence in told if f": {_FIRST} " in sentence]
    names = ("summary", "cascade", "by_label", "edits")
    tables = {name.replace("_", " "): together([getattr(one, name) for one in judged]) for name in names}
    tables = {name: table for name, table in tables.items() if len(table)}
    return Shown(findings=said, figures=figures, tables=tables, brief=brief or None)


def _judged(of: Material, variant: str, evaluation: EditEvaluation) -> _Judged:
    # Pieces of which no edit could be made have no result: their edits are told by the run.
    told = set(evaluation.dropped)
    more = [one for one in of.failed.get(variant, ()) if one.reason.startswith(FAILED) and one not in told]
    whole = replace(evaluation, data=of.label, dropped=(*evaluation.dropped, *more))
    found = Evaluated(
        data=of.label,
        data_hash=of.plan.sha256,
        criteria=whole.criteria,
        drawn=len(whole) + len(whole.failed),
        dropped=whole.dropped,
        evaluations={variant: whole},
    )
    said = whole.findings()
    edits = whole.edits_frame()
    edits.insert(0, "editor", variant)
    return _Judged(
        variant=variant,
        evaluation=replace(whole, rows=(), edits=()),
        summary=found.summary().drop(columns="data"),
        cascade=found.cascade().drop(columns="data"),
        by_label=found.by_label().drop(columns="data", errors="ignore"),
        edits=edits,
        findings=said,
        brief=[sentence for sentence in said if sentence.startswith("Of ")][:1],  # the cascade
        made=len(whole),
        failed=count_reasons(replace(one, reason=one.reason.removeprefix(FAILED)) for one in whole.failed),
    )


def _sweep(of: Material, editor: str, found: Sequence[_Judged]) -> LayerSweep:
    """The layers at which edits are made so far as one sweep, without a trace; layers at which all failed too."""
    by_layer = {one.layer: one for one in found if one.layer is not None}
    first = found[0].evaluation
    counts = {layer: {"edits": one.made, "failed": one.failed} for layer, one in by_layer.items()}
    for variant, failed in of.failed.items():
        name, _, layer = variant.partition(_AT)
        if name == editor and layer and failed and int(layer) not in counts:
            reasons = count_reasons(replace(one, reason=one.reason.removeprefix(FAILED)) for one in failed)
            counts[int(layer)] = {"edits": 0, "failed": reasons}
    nothing = replace(first, rows=(), edits=()).summary()
    rows: list[dict[str, Any]] = []
    for layer in sorted(counts):
        table = by_layer[layer].summary.drop(columns="editor") if layer in by_layer else nothing
        rows += [{"layer": layer, **row} for row in table.to_dict("records")]  # type: ignore[dict-item]
    return LayerSweep(
        editor=editor,
        data=of.label,
        criteria=first.criteria,
        layers=tuple(sorted(counts)),
        rows=tuple(rows),
        counts=tuple(
            {"layer": layer, "edits": made["edits"], "failed": sum(made["failed"].values()), "reasons": made["failed"]}
            for layer, made in sorted(counts.items())
        ),
        settings=first.settings,
        provenance=first.provenance,
    )


PAGES = {
    "evaluate_edits": MethodPage(
        about="Facts get another answer, one at a time. After each edit the model is asked the prompt itself "
        "(reliability), other wordings (generality), unrelated questions (locality), the inverse question (symmetry) "
        "and the same in other words (synonymy).",
        show=show_edits,
    ),
}
"""By method."""
