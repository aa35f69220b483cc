"""What a sweep over layers says, in sentences: where edits work, where tracing points to, whether the two agree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kn_lens.criteria.evaluation_findings import count_text, share_text

if TYPE_CHECKING:
    from kn_lens.criteria.sweep import LayerSweep

COMPARED = ("reliability", "generality")
"""Criteria that are compared with the trace: whether an edit works at all."""

OUTPUTS = {"mlp": "MLP", "attn": "attention"}

PLACES = {"subject_last": "the subject's last token", "last": "the prompt's last token"}

_SIGNIFICANT = 0.05

Row = Mapping[str, Any]


def sweep_findings(sweep: LayerSweep) -> list[str]:
    """Sentences on what was edited, on the best layers, on the trace, and on whether it tells the best layers."""
    said = [_made(sweep), *_failures(sweep)]
    said += [_best(sweep, name) for name in (*COMPARED, "locality") if name in sweep.criteria]
    if sweep.trace is None:
        return [*said, f"The facts were not traced: {sweep.not_traced}."] if sweep.not_traced else said
    said.append(_trace(sweep))
    said += [_agreement(sweep, name) for name in COMPARED if name in sweep.criteria]
    return said


def best_layers(sweep: LayerSweep, criterion: str) -> list[Row]:
    """The rows of the layers with the most success after the edit; none where no edit could be made."""
    rows = _rows(sweep, criterion)
    most = max((row["success_after"] for row in rows), default=math.nan)
    return [row for row in rows if row["success_after"] == most]


def _rows(sweep: LayerSweep, criterion: str) -> list[Row]:
    """A criterion's row of each layer at which edits were made."""
    return [row for row in sweep.rows if row["criterion"] == criterion and not math.isnan(row["success_after"])]


def _made(sweep: LayerSweep) -> str:
    facts = max(count["edits"] + count["failed"] for count in sweep.counts)
    made = sum(1 for count in sweep.counts if count["edits"])
    model = sweep.provenance.get("model", "the model")
    said = f"{sweep.editor} edits {count_text(facts, 'fact')} of {sweep.data} in {model}"
    if len(sweep.layers) == 1:
        return f"{said} at {_spans(sweep.layers)}."
    said += f", the same at each of {len(sweep.layers)} layers ({_spans(sweep.layers)})"
    left = len(sweep.layers) - made
    return f"{said}; at {left} of them no edit could be made." if left else f"{said}."


def _failures(sweep: LayerSweep) -> list[str]:
    """Edits that could not be made, layers with the same reason together."""
    by_reason: dict[str, list[Row]] = {}
    for count in sweep.counts:
        if count["failed"]:
            by_reason.setdefault(next(iter(count["reasons"])), []).append(count)
    said = []
    for reason, counts in by_reason.items():
        failed = ", ".join(dict.fromkeys(f"{one['failed']} of {one['failed'] + one['edits']}" for one in counts))
        where = _spans([one["layer"] for one in counts])
        others = max(len(one["reasons"]) for one in counts) - 1
        more = f", and {others} more" if others else ""
        said.append(f"{where[0].upper()}{where[1:]}: {failed} edits could not be made ({reason}{more}).")
    return said


def _best(sweep: LayerSweep, criterion: str) -> str:
    rows, best = _rows(sweep, criterion), best_layers(sweep, criterion)
    name = criterion.capitalize()
    if not best:
        return f"{name}: nothing was asked of an edit at any layer."
    numbers = sorted({row["edits"] for row in best})
    edits = f"{numbers[0]}–{numbers[-1]} edits" if len(numbers) > 1 else count_text(numbers[0], "edit")
    share = share_text(best[0]["success_after"], best[0]["low"], best[0]["high"])
    if len(rows) == 1:
        return f"{name} at layer {rows[0]['layer']}, the only one with edits: {share} ({edits})."
    if len(best) == len(rows):
        return f"{name} is the same at all {count_text(len(rows), 'layer')} with edits: {share} ({edits} at each)."
    low = min(row["success_after"] for row in rows)
    worst = [row["layer"] for row in rows if row["success_after"] == low]
    where = _spans([row["layer"] for row in best])
    return (
        f"{name} is highest at {where}, {share} ({edits}{' at each' if len(best) > 1 else ''}), and lowest at "
        f"{_spans(worst)}, {100 * low:.0f} %."
    )


def _trace(sweep: LayerSweep) -> str:
    top = _traced_best(sweep)
    window = "" if sweep.trace_window == 1 else f", {sweep.trace_window} layers together"
    around = "" if math.isnan(top["low"]) else f" [{top['low']:.3g}, {top['high']:.3g}]"
    metric = str(sweep.trace_metric).replace("_", " ")
    left_out = f", {len(sweep.trace_dropped)} left out" if sweep.trace_dropped else ""
    said = (
        f"Tracing points to layer {top['layer']}: restoring its {OUTPUTS[str(sweep.trace_site)]} output{window} at "
        f"{PLACES[str(sweep.trace_position)]} raises the old answer's {metric} by {top['mean']:.3g}{around} "
        f"({count_text(top['facts'], 'fact')}{left_out})"
    )
    shares = [
        f"{name} {share_text(row['success_after'], row['low'], row['high'])}"
        for name in COMPARED
        for row in _rows(sweep, name)
        if row["layer"] == top["layer"]
    ]
    if not shares:
        return f"{said}; no edit was made there."
    return f"{said}; edits there: {', '.join(shares)}."


def _traced_best(sweep: LayerSweep) -> Row:
    """The row of the layer that tracing points to."""
    table: list[Row] = sweep.trace_frame().to_dict("records")  # type: ignore[assignment]
    return max(table, key=lambda row: row["mean"])


def _agreement(sweep: LayerSweep, criterion: str) -> str:
    best = [row["layer"] for row in best_layers(sweep, criterion)]
    if not best:
        return f"Whether tracing tells where {criterion} is highest cannot be said: no edit was judged."
    found = sweep.correlation(criterion)
    pointed = _traced_best(sweep)["layer"]
    if math.isnan(found.rho):
        return (
            f"Whether tracing tells where {criterion} is highest cannot be said: {criterion} or the trace's effect is "
            f"the same at all {count_text(found.n, 'layer')} with edits."
        )
    among = "is" if pointed in best else "is not"
    told = (
        f"layer {pointed}, where tracing points to, {among} {'one of those' if len(best) > 1 else 'the one'} with the "
        f"highest {criterion}"
    )
    # No bootstrap interval: a handful of layers with many ties gives none worth the name.
    counted = f"Over {count_text(found.n, 'layer')} trace effect and {criterion} go with ρ = {found.rho:.2f}"
    counted += f" (p = {found.p:.2g})"
    if found.p >= _SIGNIFICANT:
        return f"{counted}: no relation is seen (|ρ| of {found.detectable:.2f} would be), and {told}."
    if found.rho < 0:
        return f"{counted}: where tracing finds more, edits do worse, and {told}."
    return f"{counted}: where tracing finds more, edits do better, and {told}."


def _spans(layers: Sequence[int]) -> str:
    """``"layer 3"``, ``"layers 0–2, 5"``."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(texts)}"
