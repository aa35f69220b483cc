"""One edit by ROME, shown whole: answers, inverse questions and texts before and after it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from kn_lens.criteria.generation import before_after, generate
from kn_lens.criteria.questions import Question, as_template, fill
from kn_lens.criteria.related import inverse_of, templates_of, with_inverse
from kn_lens.criteria.relation_cases import problem_of
from kn_lens.criteria.scores import ask
from kn_lens.editing.hyperparameters import Position
from kn_lens.editing.rome import Layer, require_rome, rome
from kn_lens.editing.rows import EditSite
from kn_lens.errors import DataError, PromptError, SettingsError, near_matches
from kn_lens.models.kind import model_name
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.load import load_relation
from kn_lens.prompts.prompt import MASK, Dropped
from kn_lens.prompts.tokens import TokenResolver
from kn_lens.studies.shown_edit import (
    INVERSE_NEW,
    INVERSE_OLD,
    PARAPHRASE,
    PROMPT,
    ShownEdit,
    answers_frame,
    questions_frame,
    top_answers,
)

_WRITTEN = 30  # tokens
_OWN_WORD = 8  # tokens in which the model's own answer, a word, is looked for
_INVERSE_TEMPLATES = 3
_COVARIANCES = ("identity", "self")


@dataclass(frozen=True, kw_only=True)
class RomeSettings:
    """Settings of an edit; see :func:`kn_lens.rome`. None takes what is known for the model."""

    layer: Layer = None
    site: str = "mlp"
    position: str | None = None
    covariance: str = "identity"
    mixed_key: bool = False
    steps: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    clamp: float | None = None
    kl_factor: float | None = None
    seed: int = 0

    def check(self) -> None:
        """Refuse what can be seen to be wrong before any model is loaded.

        Raises:
            SettingsError: Naming the first such setting.
            DataError: If the covariance is neither a word nor a file.
        """
        for what, value, known in (
            ("site", self.site, get_args(EditSite)),
            ("position", self.position, get_args(Position)),
        ):
            if value is not None and value not in known:
                raise SettingsError(f"no {what} {value!r}.{near_matches(value, known)} Known: {', '.join(known)}")
        for name, value, least in (("steps", self.steps, 2), ("layer", self.layer, 0)):
            if isinstance(value, int) and value < least:
                raise SettingsError(f"{name} is {value}; it must be at least {least}")
        for name, value in (("lr", self.lr), ("clamp", self.clamp)):
            if value is not None and not value > 0:
                raise SettingsError(f"{name} is {value:g}; it must be above 0")
        for name, value in (("weight decay", self.weight_decay), ("KL factor", self.kl_factor)):
            if value is not None and not value >= 0:
                raise SettingsError(f"the {name} is {value:g}; it must be 0 or more")
        if self.covariance not in _COVARIANCES and not Path(self.covariance).expanduser().exists():
            near = near_matches(self.covariance, _COVARIANCES)
            raise DataError(
                f"no covariance {self.covariance!r}.{near} Known: {', '.join(_COVARIANCES)}, a text file, or a saved "
                f"covariance"
            )


def edit_fact(
    model: Any, fact: Fact, settings: RomeSettings, *, inverse: Sequence[str] = (), progress: bool = True
) -> ShownEdit:
    """Make one edit by ROME and ask the model before and after it.

    Args:
        model: A loaded causal model; it is left as it was.
        fact: What it shall say. Without an old answer the word that the model gives is taken.
        settings: Of the edit.
        inverse: Templates of inverse questions, ``"{} is the capital of"``; by default those of the bundled relation
            that the fact's template belongs to, if it has an inverse.
        progress: Show a progress bar.

    Raises:
        ModelError, PromptError, SettingsError: As :func:`kn_lens.rome`.
    """
    require_rome(model)
    TokenResolver(model).resolve(fact.prompt())  # before the model is asked for its own answer
    own_old = fact.old is None
    if own_old:
        fact = replace(fact, old=_own_answer(model, fact))
    templates, origin = (list(inverse), "given") if inverse else _inverse_templates(fact)
    questions, dropped = _questions(model, fact, templates)
    began = time.perf_counter()
    edit = rome(model, fact, **asdict(settings), progress=progress)
    seconds = time.perf_counter() - began
    asked = [question for _, question in questions]
    before, top_before = ask(model, asked), top_answers(model, asked)
    with edit.applied(model):
        after, top_after = ask(model, asked), top_answers(model, asked)
    texts = [fact.question, fact.subject]
    return ShownEdit(
        edit=edit,
        seconds=seconds,
        own_old=own_old,
        questions=questions_frame(questions, before, after),
        answers=answers_frame(asked, {"before": top_before, "after": top_after}),
        written=before_after(model, edit, list(dict.fromkeys(texts)), tokens=_WRITTEN),
        inverse=origin if any(kind in (INVERSE_NEW, INVERSE_OLD) for kind, _ in questions) else None,
        dropped=tuple(dropped),
    )


def inverse_prompts(fact: Fact, templates: Iterable[str]) -> list[tuple[str, Question]]:
    """The inverse questions about the new answer and about the old one, whose answer is the subject.

    Raises:
        PromptError: If a template has no ``{}`` and holds the answer nowhere.
    """
    found = []
    for template in templates:
        for kind, answer in ((INVERSE_NEW, fact.target), (INVERSE_OLD, fact.old)):
            if answer is not None:
                found.append((kind, Question(criterion="symmetry", prompt=fill(template, answer, fact.subject))))
    return found


def _questions(model: Any, fact: Fact, inverse: Sequence[str]) -> tuple[list[tuple[str, Question]], list[Dropped]]:
    """What the model is asked, each with its kind: the prompt first; and what it cannot be asked."""
    resolver = TokenResolver(model)
    prompt = Question(criterion="reliability", prompt=fact.prompt())
    wanted = [(PROMPT, prompt)]
    wanted += [
        (PARAPHRASE, Question(criterion="generality", prompt=fact.prompt(template=template)))
        for template in dict.fromkeys(fact.paraphrases)
        if template != fact.template
    ]
    wanted += sorted(inverse_prompts(fact, inverse), key=lambda entry: entry[0])
    kept, dropped = [], []
    for kind, question in wanted:
        problem = problem_of(resolver, question)
        if problem is None:
            kept.append((kind, question))
        else:
            dropped.append(Dropped(text=question.prompt.text, reason=problem, source=kind))
    return kept, dropped


def _inverse_templates(fact: Fact) -> tuple[list[str], str | None]:
    """Wordings of the inverse of the bundled relation that a template belongs to, and that inverse's name."""
    for name in with_inverse():
        relation = load_relation(name)
        first = next(iter(relation.facts.values()), ())
        own = {as_template(prompt.template, masked=False) for prompt in first if prompt.template is not None}
        inverse = inverse_of(relation)
        if fact.template.strip() in own and inverse is not None:
            texts = [as_template(text, masked=False) for text in templates_of(inverse)]
            return [text for text in texts if MASK not in text][:_INVERSE_TEMPLATES], inverse.name
    return [], None


def _own_answer(model: Any, fact: Fact) -> str | None:
    """The first word that the model writes after the question; None if it writes none."""
    (text,) = generate(model, fact.question, tokens=_OWN_WORD)
    word = re.search(r"\w[\w'’-]*", text[len(fact.question) :])
    if word is None:
        return None
    if word[0] == fact.target.strip():
        raise PromptError(
            f"{model_name(model)} answers {fact.question!r} with {word[0]!r} already; give another new answer"
        )
    return word[0]
