"""Edits one after another, each judged by its questions before and after; the model is left as it was."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from kn_lens._version import __version__
from kn_lens.criteria.cases import edit_cases
from kn_lens.criteria.edit_run import EditRun
from kn_lens.criteria.evaluation import EditEvaluation
from kn_lens.criteria.journal import Journal
from kn_lens.criteria.questions import EditCases
from kn_lens.editing.edit import Editor, require_editable
from kn_lens.errors import ModelError, SettingsError, near_matches
from kn_lens.models.kind import is_masked, model_name
from kn_lens.progress import progress_bar
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.prompt import Dropped
from kn_lens.results import provenance


def evaluate_edits(
    model: Any,
    editor: Editor,
    facts: Any,
    *,
    criteria: Sequence[str] | None = None,
    edits: int | None = None,
    seed: int = 0,
    fluency: bool = False,
    perplexity_on: Sequence[str] | None = None,
    journal: str | Path | None = None,
    progress: bool = True,
) -> EditEvaluation:
    """Make each edit by itself, ask what the criteria ask before and after it, and take it back.

    Args:
        model: A HookedTransformer or HookedEncoder; its weights are bit by bit the same afterwards.
        editor: Makes an :class:`~kn_lens.editing.edit.Edit` from (model, fact): ``kn.rome``, a
            ``functools.partial`` of it, or a function of your own.
        facts: A relation, minimal pairs, a CounterFact data set, or the name of one; facts; or cases made of them by
            :func:`~kn_lens.criteria.cases.edit_cases`.
        criteria: Which to ask, of :data:`~kn_lens.criteria.questions.CRITERIA`; by default those that the data allows.
            ``"symmetry"`` brings ``"symmetry_old"``.
        edits: How many facts to draw; by default all. Of cases, the first.
        seed: Of the draws, and of what is written for ``fluency``.
        fluency: Also let the model write 40 tokens after the edited prompt (fewer where its context ends), sampled
            from the 5 likeliest at each step, before and after. Default False.
        perplexity_on: Texts whose perplexity is taken before and after.
        journal: A file in which every finished edit is kept. A run that broke off goes on from there.
        progress: Show a progress bar.

    Raises:
        ModelError: If the model cannot be edited, is masked and shall write, or was changed by the editor itself.
        SettingsError: If a criterion is unknown or the data cannot be asked it, or the editor returns no edit.
        OutputError: If the journal is of another run, or cannot be written.
        KnLensError: The editor's own, if every edit fails. A single failure is counted, and the run goes on.
    """
    require_editable(model)
    if is_masked(model) and (fluency or perplexity_on):
        raise ModelError(
            f"{model_name(model)} is a masked model, which writes no text and gives none a perplexity; leave fluency "
            f"and perplexity_on out"
        )
    cases = _cases(model, facts, criteria, edits, seed)
    texts = [perplexity_on] if isinstance(perplexity_on, str) else list(perplexity_on or ())
    name = editor_name(editor)
    settings = {
        "data": cases.name,
        "data_hash": cases.data_hash,
        "cases": _sha256(cases.cases),
        "criteria": list(cases.criteria),
        "edits": edits,
        "seed": seed,
        "fluency": fluency,
        "perplexity_on": {"texts": len(texts), "sha256": _sha256(texts)} if texts else None,
    }
    made_with = provenance(
        model, PromptBatch.from_prompts(model, [case.fact.prompt() for case in cases.cases], on_unusable="drop")
    )
    run = EditRun(model, editor, name, fluency=fluency, texts=texts, seed=seed)
    header = {"kn_lens": __version__, "editor": name, "weights_hash": made_with["weights_hash"], "settings": settings}
    with Journal(journal, header) if journal is not None else nullcontext() as kept:
        done = {entry["case"]: entry for entry in (kept.entries if kept else ())}
        with progress_bar(len(cases) - len(done), f"edit ({name})", "edit", progress) as bar:
            for entry in run.entries(cases.cases, done):
                if kept and "edit" in entry:
                    kept.append(entry)
                done[entry["case"]] = entry
                bar.update()
    entries = [done[index] for index in sorted(done)]
    if not any("edit" in entry for entry in entries):
        raise run.first_error or ModelError(f"{cases.name} has no fact that {model_name(model)} could be edited for")
    return _evaluation(cases, entries, name, settings, made_with)


def editor_name(editor: Any) -> str:
    """``"rome"``; of a ``functools.partial`` with what it sets, ``"rome (layer=3)"``."""
    if isinstance(editor, functools.partial):
        given = [_shown(value) for value in editor.args]
        given += [f"{name}={_shown(value)}" for name, value in editor.keywords.items()]
        return f"{editor_name(editor.func)} ({', '.join(given)})" if given else editor_name(editor.func)
    name = getattr(editor, "name", None) or getattr(editor, "__name__", None) or type(editor).__name__
    return str(name).strip("<>")


def _shown(value: Any) -> str:
    """A setting in few words: of a tensor or a covariance, its kind."""
    simple = value is None or isinstance(value, (str, int, float, Path, list, tuple))
    return str(value) if simple else getattr(value, "__name__", type(value).__name__)


def _cases(model: Any, facts: Any, criteria: Sequence[str] | None, edits: int | None, seed: int) -> EditCases:
    if not isinstance(facts, EditCases):
        return edit_cases(model, facts, criteria=criteria, edits=edits, seed=seed)
    if edits is not None and edits < 1:
        raise SettingsError(f"edits is {edits}; give 1 or more")
    chosen = facts.criteria
    if criteria is not None:
        wanted = {criteria} if isinstance(criteria, str) else set(criteria)
        if not wanted:
            raise SettingsError(f"criteria is empty; take some of {', '.join(facts.criteria)}")
        unknown = next((name for name in sorted(wanted) if name not in facts.criteria), None)
        if unknown is not None:
            known = ", ".join(facts.criteria)
            near = near_matches(unknown, facts.criteria)
            raise SettingsError(f"{facts.name} has no questions of a criterion {unknown!r}.{near} Criteria: {known}")
        wanted |= {"symmetry_old"} if "symmetry" in wanted else set()
        chosen = tuple(name for name in facts.criteria if name in wanted)
    kept = tuple(
        replace(case, questions=tuple(one for one in case.questions if one.criterion in chosen))
        for case in facts.cases[:edits]
    )
    return replace(facts, cases=kept, criteria=chosen)


def _evaluation(
    cases: EditCases,
    entries: Sequence[dict[str, Any]],
    name: str,
    settings: dict[str, Any],
    made_with: dict[str, Any],
) -> EditEvaluation:
    dropped = [*cases.dropped]
    edits: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for entry in entries:
        dropped += [Dropped(text=text, reason=reason, source=source) for text, reason, source in entry["dropped"]]
        if "edit" in entry:
            case = cases.cases[entry["case"]]
            rows += [{"edit": len(edits), **row} for row in entry["rows"]]
            edits.append({"fact": case.fact, "labels": dict(case.labels), **entry["edit"]})
    return EditEvaluation(
        editor=name,
        data=cases.name,
        criteria=cases.criteria,
        rows=tuple(rows),
        edits=tuple(edits),
        dropped=tuple(dropped),
        settings={**settings, "draw": json.loads(json.dumps(dict(cases.settings), default=str))},
        provenance=made_with,
    )


def _sha256(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
