"""Edits of a relation's facts, and what each criterion asks about them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from kn_lens.criteria.questions import EditCase, Question, as_template, fill, shown, template_of
from kn_lens.criteria.readings import read_question
from kn_lens.criteria.related import Synonyms, relations_of_same_subjects, templates_of
from kn_lens.organisms.corpus import Truth
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import MASK, Dropped, Prompt
from kn_lens.prompts.relations import Relation
from kn_lens.prompts.tokens import TokenResolver, UnusablePrompt

SEVERAL = "object of several subjects"
"""Why the inverse question is not asked: it has no one answer."""


@dataclass(frozen=True, kw_only=True)
class CaseOptions:
    """How many questions of each kind, and which.

    Attributes:
        criteria: Those asked.
        seed: Of every draw.
        paraphrases: Other wordings of each fact, at most.
        neighbors: Questions of locality of each fact, at most.
        inverse_templates: Wordings of the inverse question and of the synonymous one, at most.
    """

    criteria: tuple[str, ...]
    seed: int = 0
    paraphrases: int = 4
    neighbors: int = 5
    inverse_templates: int = 3


class RelationCases:
    """Makes the cases of one relation, one by one; what is left out gathers in ``dropped``.

    Args:
        resolver: Of the model.
        relation: The facts.
        options: How many questions of each kind.
        inverse: The inverse relation, if there is one.
        synonyms: How another relation says the same, if one does.
        truth: Of the model's training text, if it is known.
    """

    def __init__(
        self,
        resolver: TokenResolver,
        relation: Relation,
        options: CaseOptions,
        inverse: Relation | None,
        synonyms: Synonyms | None,
        truth: Truth | None,
    ) -> None:
        self.resolver, self.relation, self.options = resolver, relation, options
        self.inverse, self.synonyms, self.truth = inverse, synonyms, truth
        self.dropped: list[Dropped] = []
        self._subjects: dict[str, list[str]] = {}
        for subject, answer in relation.pairs.values():
            self._subjects.setdefault(answer, []).append(subject)
        related = [inverse.name if inverse else None, synonyms.relation.name if synonyms else None]
        self._others: dict[str, list[tuple[Prompt, ...]]] = {}
        if "locality" in options.criteria:
            for other in relations_of_same_subjects(relation, [name for name in related if name]):
                for name, (subject, _) in other.pairs.items():
                    trained = tuple(p for p in other.facts[name] if p.template not in other.held_out)
                    self._others.setdefault(subject, []).append(trained)

    def case(self, name: str) -> EditCase | None:
        """The case of one fact; None if the model cannot be asked it."""
        rng = random.Random(f"{self.options.seed}:{name}")
        edited = self._edited(name, rng)
        if edited is None:
            return None
        fact, prompt = edited
        questions: list[Question] = []
        if "reliability" in self.options.criteria:
            questions.append(Question(criterion="reliability", **_asked(fact)))
        general, fact = self._generality(fact, prompt, name, rng)  # also if not asked: an editor sees the same fact
        if "generality" in self.options.criteria:
            questions += general
            if not general and self.options.paraphrases:
                self._drop(fact.name, "generality: no other wording", fact.source)
        if "locality" in self.options.criteria:
            questions += self._locality(fact, prompt, rng)
        if self.inverse is not None and {"symmetry", "symmetry_old"} & set(self.options.criteria):
            questions += self._symmetry(fact, self.inverse)
        if self.synonyms is not None and "synonymy" in self.options.criteria:
            questions += self._synonymy(fact, self.synonyms)
        return EditCase(fact=fact, questions=tuple(questions), labels=self._labels(fact))

    def _edited(self, name: str, rng: random.Random) -> tuple[Fact, Prompt] | None:
        """The fact with a new object, in the first template that both objects can be asked for in."""
        if name not in self.relation.pairs:
            return self._drop(name, "subject unknown")
        subject, old = self.relation.pairs[name]
        objects = [word for word in self._subjects if word.casefold() not in (old.casefold(), subject.casefold())]
        rng.shuffle(objects)
        objects.sort(key=lambda word: not self._fits_all(word))
        reason = "no template that is not held out"
        for prompt in self.relation.facts[name]:
            if prompt.template in self.relation.held_out:
                continue
            template, problem = self._template(prompt)
            if template is None:
                reason = problem
                continue
            for new in objects:
                if self._problem(replace(prompt, target=new)) is None:
                    source = prompt.source
                    return Fact(template, subject, new, old=old, relation=self.relation.name, source=source), prompt
            reason = "no other object that the model can be asked for"
        return self._drop(name, reason, self.relation.facts[name][0].source if self.relation.facts[name] else None)

    def _fits_all(self, word: str) -> bool:
        """Whether an object has one subject and a synonym, where that matters: the criteria can be asked of it.

        Whichever criteria are chosen, so that these do not change the draw.
        """
        one_subject = self.inverse is None or len(self._subjects[word]) == 1
        return one_subject and (self.synonyms is None or word.lower() in self.synonyms.words)

    def _generality(self, fact: Fact, edited: Prompt, name: str, rng: random.Random) -> tuple[list[Question], Fact]:
        """Other wordings, those held out first; the rest is the fact's paraphrases, which an editor may look at."""
        templates = {}
        for prompt in self.relation.facts[name]:
            text = self._template(prompt)[0] if prompt != edited else None
            if text is not None and text != fact.template:
                templates[text] = prompt.template in self.relation.held_out
        trained = [text for text, held_out in templates.items() if not held_out]
        order = [text for text, held_out in templates.items() if held_out] + rng.sample(trained, len(trained))
        asked = [
            question
            for text in order
            if self._usable(question := Question(criterion="generality", **_asked(fact, text)))
        ][: self.options.paraphrases]
        chosen = {question.prompt.template for question in asked}
        rest = tuple(text for text in trained if text not in chosen)
        return asked, replace(fact, paraphrases=rest)

    def _locality(self, fact: Fact, edited: Prompt, rng: random.Random) -> list[Question]:
        """Half the same subject in other relations, half other subjects in this one."""
        count = self.options.neighbors
        others = self._others.get(fact.subject, [])
        elsewhere = (self._first(prompts) for prompts in rng.sample(others, len(others)))
        asked = list(islice(self._unmoved(elsewhere, fact), count // 2))
        names = [name for name, pair in self.relation.pairs.items() if pair[0] != fact.subject]
        here = (self._first(self.relation.facts[name], edited) for name in rng.sample(names, len(names)))
        asked += islice(self._unmoved(here, fact), count - len(asked))
        if not asked and count:
            self._drop(fact.name, "locality: no other fact that the model can be asked", fact.source)
        return asked

    def _unmoved(self, prompts: Iterable[Prompt | None], fact: Fact) -> Iterator[Question]:
        for prompt in prompts:
            if prompt is None or prompt.target == fact.target:  # the new answer is right there
                continue
            question = Question(criterion="locality", prompt=prompt, rival=fact.target, own=prompt)
            if self._usable(question):
                yield question

    def _first(self, prompts: tuple[Prompt, ...], like: Prompt | None = None) -> Prompt | None:
        """A fact's prompt with the template of ``like``, else its first that the model can be asked."""
        for prompt in prompts:
            if like is not None and like.template is not None:
                if prompt.template == like.template:
                    return shown(prompt, masked=self.resolver.masked)
            elif self._problem(prompt) is None:
                return shown(prompt, masked=self.resolver.masked)
        return None

    def _symmetry(self, fact: Fact, inverse: Relation) -> list[Question]:
        """The inverse question about the new object, and about the old one."""
        assert fact.old is not None
        if len(self._subjects[fact.old]) > 1 or len(self._subjects[fact.target]) > 1:
            self._drop(fact.name, f"symmetry: {SEVERAL}", fact.source)
            return []
        whose = self._subjects[fact.target][0]
        fields = {"group": fact.name, "source": fact.source}
        pairs = []
        for template in self._templates(inverse):
            old = fill(template, fact.old, fact.subject, **fields)
            new = fill(template, fact.target, fact.subject, **fields)
            pairs.append(
                (
                    Question(criterion="symmetry", prompt=new, rival=whose, own=old),
                    Question(criterion="symmetry_old", prompt=old, own=old),
                )
            )
        usable = [pair for pair in pairs if all(map(self._usable, pair))][: self.options.inverse_templates]
        asked = [question for pair in usable for question in pair if question.criterion in self.options.criteria]
        if not asked:
            self._drop(fact.name, f"symmetry: {self._why(pairs[0] if pairs else ())}", fact.source)
        return asked

    def _synonymy(self, fact: Fact, synonyms: Synonyms) -> list[Question]:
        """What follows from the new object in the other relation's words."""
        assert fact.old is not None
        new, old = synonyms.words.get(fact.target.lower()), synonyms.words.get(fact.old.lower())
        if new is None or old is None or new == old:
            self._drop(fact.name, "synonymy: object without a synonym", fact.source)
            return []
        fields = {"group": fact.name, "source": fact.source}
        questions = [
            Question(
                criterion="synonymy",
                prompt=fill(template, fact.subject, new, **fields),
                rival=old,
                own=fill(template, fact.subject, old, **fields),
            )
            for template in self._templates(synonyms.relation)
        ]
        asked = list(islice(filter(self._usable, questions), self.options.inverse_templates))
        if not asked:
            self._drop(fact.name, f"synonymy: {self._why(questions[:1])}", fact.source)
        return asked

    def _labels(self, fact: Fact) -> dict[str, str]:
        labels = {"relation": self.relation.name}
        if self.truth is None:
            return labels
        truth = self.truth
        if self.relation.name == "P36":
            values = {"both ways": truth.both_ways, "one way": truth.one_way}
            labels |= _label("direction", values, fact.subject)
        if self.relation.name == "P101":
            values = {"stated": truth.stated, "inferable": truth.inferable, "not inferable": truth.not_inferable}
            labels |= _label("occupation", values, fact.subject)
        return labels

    def _templates(self, relation: Relation) -> list[str]:
        """Templates that the kind of model takes, as facts have them."""
        texts = [as_template(text, masked=self.resolver.masked) for text in templates_of(relation)]
        return texts if self.resolver.masked else [text for text in texts if MASK not in text]

    def _template(self, prompt: Prompt) -> tuple[str | None, str]:
        """A prompt as a template, or None and why the model cannot be asked it."""
        problem = "no cue" if prompt.cue is None else self._problem(prompt)
        if problem is None:
            return template_of(prompt, masked=self.resolver.masked), "cue behind the blank"
        return None, problem

    def _problem(self, prompt: Prompt) -> str | None:
        try:
            self.resolver.resolve(prompt)
        except UnusablePrompt as error:
            return error.reason
        return None

    def _usable(self, question: Question) -> bool:
        return problem_of(self.resolver, question) is None

    def _why(self, questions: Iterable[Question]) -> str:
        reasons = (problem_of(self.resolver, question) for question in questions)
        return next((reason for reason in reasons if reason), "no template that the model can be asked")

    def _drop(self, text: str, reason: str, source: str | None = None) -> None:
        self.dropped.append(Dropped(text=text, reason=reason, source=source))


def problem_of(resolver: TokenResolver, question: Question) -> str | None:
    """Why the model cannot be asked a question, or None."""
    try:
        read_question(resolver, question)
    except UnusablePrompt as error:
        return error.reason
    return None


def _label(name: str, values: dict[str, tuple[str, ...]], subject: str) -> dict[str, str]:
    """The label of a subject, if a list of the plan holds it."""
    value = next((value for value, subjects in values.items() if subject in subjects), None)
    return {} if value is None else {name: value}


def _asked(fact: Fact, template: str | None = None) -> dict:
    """The fields of a question that asks for the new answer against the old."""
    own = None if fact.old is None else fact.prompt(fact.old, template=template)
    return {"prompt": fact.prompt(template=template), "rival": fact.old, "own": own}
