"""A run of edits: each is made, applied, asked about and taken back; what comes of it is told as plain numbers."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kn_lens.criteria.evaluation import FAILED
from kn_lens.criteria.fluency import ngram_entropy, perplexity
from kn_lens.criteria.generation import continuations, with_continuation
from kn_lens.criteria.questions import EditCase, Question
from kn_lens.criteria.readings import read_question
from kn_lens.criteria.scores import Answered, ask, score
from kn_lens.editing.edit import Edit, Editor
from kn_lens.errors import KnLensError, ModelError, SettingsError
from kn_lens.models.hashing import weights_hash
from kn_lens.models.kind import model_name
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Dropped
from kn_lens.prompts.tokens import TokenResolver, UnusablePrompt

_CASES_AT_ONCE = 32
"""Cases that are asked before the edits in one go. Locality keeps distributions: 30 MB at a vocabulary of 49,152."""

_WRITTEN = 40
"""Tokens that fluency is judged by."""


@dataclass
class EditRun:
    """The edits of a run, one after another.

    Attributes:
        model: Left as it was after each edit.
        editor: Makes the edits.
        name: What the editor is called.
        fluency: Let the model write after each edited prompt, before and after.
        texts: Texts whose perplexity is taken before and after.
        seed: Of what is written.
        first_error: Of the first edit that could not be made.
    """

    model: Any
    editor: Editor
    name: str
    fluency: bool
    texts: Sequence[str]
    seed: int
    first_error: KnLensError | None = None
    _perplexity: float | None = None

    def entries(self, cases: Sequence[EditCase], done: Container[int]) -> Iterator[dict[str, Any]]:
        """What comes of each case that is not done yet, as JSON can keep it: ``case`` (its index), ``dropped``, and, if
        the edit could be made, ``edit`` and ``rows``.

        Raises:
            ModelError: If the editor changed the model itself.
            PromptError: If no text for the perplexity has two tokens.
            SettingsError: If it returned something else than an edit.
        """
        untouched = weights_hash(self.model)
        for at in range(0, len(cases), _CASES_AT_ONCE):
            # Always in the same blocks, so that a run that is taken up again gets the same numbers to the last bit.
            block = cases[at : at + _CASES_AT_ONCE]
            if all(index in done for index in range(at, at + len(block))):
                continue
            if self.texts and self._perplexity is None:
                self._perplexity = perplexity(self.model, self.texts)  # of the unedited model: once for all edits
            asked, before = self._ask_all(block)
            start = 0
            for index, (case, (questions, dropped)) in enumerate(zip(block, asked, strict=True), start=at):
                answers = before.select(range(start, start + len(questions)))
                start += len(questions)
                if index in done:
                    continue
                entry = {"case": index, "dropped": [[one.text, one.reason, one.source] for one in dropped]}
                try:
                    entry |= self._edit(case.fact, questions, answers)
                except _NoEdit as error:
                    raise SettingsError(str(error)) from None
                except KnLensError as error:
                    self.first_error = self.first_error or error
                    reason = f"{FAILED}{getattr(error, 'reason', None) or error}"
                    entry["dropped"].append([case.fact.question, reason, case.fact.source])
                if weights_hash(self.model) != untouched:
                    raise ModelError(
                        f"the editor {self.name} changed the weights of {model_name(self.model)} itself; an editor "
                        f"returns an edit and leaves the model as it was: mend it, and load the model anew"
                    )
                yield entry

    def _ask_all(
        self, block: Sequence[EditCase]
    ) -> tuple[list[tuple[Sequence[Question], Sequence[Dropped]]], Answered]:
        """The questions of each case that the model can be asked, those that it cannot, and the answers."""
        asked: list[tuple[Sequence[Question], Sequence[Dropped]]] = [(case.questions, ()) for case in block]
        try:
            return asked, ask(self.model, [one for case in block for one in case.questions], own=True)
        except UnusablePrompt:
            asked = [_askable(self.model, case.questions) for case in block]
            return asked, ask(self.model, [one for questions, _ in asked for one in questions], own=True)

    def _edit(self, fact: Fact, questions: Sequence[Question], before: Answered) -> dict[str, Any]:
        """The edit of one case and the rows of its questions.

        Raises:
            KnLensError: The editor's, or that the edit cannot be applied or makes the model answer NaN.
        """
        began = time.perf_counter()
        edit: Any = self.editor(self.model, fact)
        seconds = time.perf_counter() - began
        if not isinstance(edit, Edit):
            raise _NoEdit(f"the editor {self.name} returned a {type(edit).__name__} for {fact.name!r}; return an Edit")
        written_before = self._written(fact)
        with edit.applied(self.model):
            after = ask(self.model, questions)
            if after.target.isnan().any():
                raise ModelError("the edited model answers NaN")
            written_after = self._written(fact)
            read_after = perplexity(self.model, self.texts) if self.texts else None
        losses = getattr(edit, "losses", None)
        ends = (float(losses[0]), float(losses[-1])) if losses is not None and len(losses) else (float("nan"),) * 2
        record = {
            "norm": edit.norm,
            "seconds": seconds,
            "layer": getattr(edit, "layer", None),
            "first_loss": ends[0],
            "last_loss": ends[1],
        }
        record |= {f"{key}_before": value for key, value in written_before.items()}
        record |= {f"{key}_after": value for key, value in written_after.items()}
        if self.texts:
            record |= {"perplexity_before": self._perplexity, "perplexity_after": read_after}
        return {"edit": record, "rows": _rows(questions, before, after)}

    def _written(self, fact: Fact) -> dict[str, Any]:
        """What the model as it is now writes after the edited prompt, and its entropy; nothing if not asked for."""
        if not self.fluency:
            return {}
        text = fact.prompt().prefix
        (row,) = continuations(self.model, [text], tokens=_WRITTEN, seed=self.seed, greedy=False)
        ids = row.tolist()
        return {"written": with_continuation(self.model, text, ids), "entropy": ngram_entropy([ids])}


class _NoEdit(KnLensError):
    """An editor that returns something else: a mistake in the editor, no failure of an edit."""


def _askable(model: Any, questions: Sequence[Question]) -> tuple[list[Question], list[Dropped]]:
    resolver = TokenResolver(model)
    kept: list[Question] = []
    dropped: list[Dropped] = []
    for question in questions:
        try:
            read_question(resolver, question)
            kept.append(question)
        except UnusablePrompt as error:
            reason = f"{question.criterion}: {error.reason}"
            dropped.append(Dropped(text=question.prompt.text, reason=reason, source=question.prompt.source))
    return kept, dropped


def _rows(questions: Sequence[Question], before: Answered, after: Answered) -> list[dict[str, Any]]:
    """A dict for each question, of numbers that JSON keeps to the last bit."""
    if not questions:
        return []
    scored = score(questions, before, after)
    found = []
    for at, question in enumerate(questions):
        known = float(scored.known[at])
        row: dict[str, Any] = {
            "criterion": question.criterion,
            "text": question.prompt.text,
            "target": question.prompt.target,
            "rival": question.rival,
            "known": None if known != known else bool(known),
            "scored": bool(scored.scored[at]),
        }
        for when, answered, exact, likelier in (
            ("before", before, scored.exact_before, scored.likelier_before),
            ("after", after, scored.exact_after, scored.likelier_after),
        ):
            row |= {
                f"log_p_{when}": float(answered.target[at]),
                f"rival_log_p_{when}": float(answered.rival[at]),
                f"exact_{when}": bool(answered.exact[at]),
                f"top_{when}": answered.top_words[at],
                f"likelier_{when}": float(likelier[at]),
                f"success_{when}": float(exact[at]),
            }
        found.append({**row, "kl": float(scored.kl[at])})
    return found
