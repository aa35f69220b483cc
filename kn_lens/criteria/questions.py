"""What an edit is judged by: questions, each with the answer that its criterion speaks of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import MASK, Dropped, Prompt

CRITERIA = ("reliability", "generality", "locality", "symmetry", "symmetry_old", "synonymy")
"""For an edit (s, r, o → o*): the prompt itself; other wordings; other subjects and relations, which shall not change;
the inverse question about o*, whose answer shall be s, and the one about o, whose answer shall be s no longer; and
what follows from o* in other words."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question that a criterion asks.

    Attributes:
        criterion: One of :data:`CRITERIA`.
        prompt: Its target is the answer that the criterion speaks of.
        rival: The answer that the target is compared with; None where there is nothing to compare.
        own: The same probe of what the unedited model should know: the question counts as known if that model gives
            this prompt's target or, where it has a foil, prefers the target to it.
    """

    criterion: str
    prompt: Prompt
    rival: str | None = None
    own: Prompt | None = None


@dataclass(frozen=True, kw_only=True)
class EditCase:
    """A fact to be edited, and what is asked of the model before and after.

    Attributes:
        fact: What an editor is given.
        questions: What the criteria ask.
        labels: What is known of the case. ``relation``; for a bundled organism ``direction`` (``"both ways"`` or
            ``"one way"``: how its text states the capital) and ``occupation`` (``"stated"``, ``"inferable"``,
            ``"not inferable"``).
    """

    fact: Fact
    questions: tuple[Question, ...]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EditCases:
    """The cases of one data set for one model.

    Attributes:
        cases: In the order of the draw.
        dropped: Facts and questions left out, with reasons.
        name: Of the data set.
        data_hash: SHA-256 of the data.
        criteria: Those that the data was asked for, whether or not a case has a question of each.
        settings: How the cases were drawn.
    """

    cases: tuple[EditCase, ...] = field(repr=False)
    dropped: tuple[Dropped, ...] = field(default=(), repr=False)
    name: str
    data_hash: str | None = None
    criteria: tuple[str, ...] = CRITERIA
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cases)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The facts to be edited."""
        return tuple(case.fact for case in self.cases)


def template_of(prompt: Prompt, *, masked: bool) -> str | None:
    """A prompt as a template with ``{}`` in its cue's place; None without a cue.

    A masked model keeps what follows the blank, a causal one, which does not read it, does not.
    """
    span = prompt.cue_span()
    if span is None:
        return None
    start, end = span
    head, tail = prompt.prefix, prompt.suffix
    if not masked and not any(character.isalnum() for character in tail):
        return head[:start] + "{}" + head[end:] if end <= len(head) else None
    if end <= len(head):
        head = head[:start] + "{}" + head[end:]
    else:
        tail = tail[: start - len(head)] + "{}" + tail[end - len(head) :]
    return _with_blank(head, tail)


def shown(prompt: Prompt, *, masked: bool) -> Prompt:
    """A prompt without the punctuation behind its blank, which a causal model does not read."""
    if masked or any(character.isalnum() for character in prompt.suffix):
        return prompt
    return replace(prompt, suffix="")


def as_template(relation_template: str, *, masked: bool) -> str:
    """``"The capital of {subject} is {object}."`` as :class:`~kn_lens.prompts.fact.Fact` takes it."""
    head, tail = relation_template.replace("{subject}", "{}").split("{object}")
    if not masked and not any(character.isalnum() for character in tail):
        return head.rstrip()
    return _with_blank(head.rstrip(), tail)


def fill(template: str, subject: str, target: str, **fields: Any) -> Prompt:
    """A template asked about a subject; ``fields`` are set on the prompt."""
    return replace(Fact(template, subject, target).prompt(), **fields)


def _with_blank(head: str, tail: str) -> str:
    space = " " if tail[:1].isalnum() or tail[:1] == "{" else ""
    return f"{head} {MASK}{space}{tail}".lstrip()
