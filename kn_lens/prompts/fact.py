"""A fact to be written into a model: a question, whom it is about, and the answer that it shall have."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, replace

from kn_lens.errors import PromptError
from kn_lens.prompts.prompt import MASK, Prompt

SLOT = "{}"
"""Where the subject stands in a template."""


@dataclass(frozen=True)
class Fact:
    """A fact (s, r, o → o*) as an edit is asked for it.

    Attributes:
        template: The question with ``{}`` for the subject, up to its blank: ``"The capital of {} is"``. With ``[MASK]``
            for the blank where text follows, for masked models. A text without ``{}`` that holds the subject once is
            taken too.
        subject: ``"Canada"``.
        target: The new answer o*, ``"Rome"``.
        old: The answer o before the edit, ``"Ottawa"``; None where it is not known.
        paraphrases: Other templates that ask for the same.
        relation: Name of the relation it belongs to.
        source: Where it came from, ``"file.jsonl:12"``.

    Raises:
        PromptError: If the subject is missing from the template, a target is empty, or new and old are the same.
    """

    template: str
    subject: str
    target: str
    _: KW_ONLY
    old: str | None = None
    paraphrases: tuple[str, ...] = ()
    relation: str | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if not self.subject.strip():
            raise PromptError(f"the subject of {self.template!r} is empty; give the words that the fact is about")
        object.__setattr__(self, "template", _with_slot(self.template, self.subject))
        object.__setattr__(self, "paraphrases", tuple(_with_slot(text, self.subject) for text in self.paraphrases))
        if not self.target.strip():
            raise PromptError(f"the new answer to {self.question!r} is empty; give the word that it shall have")
        if self.old is not None and not self.old.strip():
            raise PromptError(f"the old answer to {self.question!r} is empty; give it, or leave it out")
        if self.old is not None and self.old.strip() == self.target.strip():
            raise PromptError(
                f"the new answer to {self.question!r} is the old one, {self.target!r}; give another for an edit to make"
            )

    @classmethod
    def from_prompt(cls, prompt: Prompt) -> Fact:
        """The fact that turns a prompt's answer into its foil: of a minimal pair the cue is the subject.

        Raises:
            PromptError: If the prompt has no cue or no foil, or is a two-prefix pair, whose answers are alike.
        """
        span = prompt.cue_span()
        if prompt.foil is None or span is None:
            lacking = (
                "foil, which would be the new answer" if prompt.foil is None else "cue, which would be the subject"
            )
            raise PromptError(f"{prompt.text!r} has no {lacking}; give it one, or write a Fact")
        if prompt.form == "two_prefix":
            raise PromptError(
                f"{prompt.text!r} is a two-prefix pair, which asks for one word after two prefixes: an edit has no "
                f"other answer to give; take a one-prefix paradigm"
            )
        start, end = span
        blank = "" if not prompt.suffix else f" {MASK}" + (" " if prompt.suffix[:1].isalnum() else "")
        text = prompt.prefix + blank + prompt.suffix
        if start >= len(prompt.prefix):
            start, end = start + len(blank), end + len(blank)
        subject = text[start:end]
        return cls(text[:start] + SLOT + text[end:], subject, prompt.foil, old=prompt.target, source=prompt.source)

    @property
    def question(self) -> str:
        """The template with the subject in it."""
        return self.template.replace(SLOT, self.subject)

    @property
    def name(self) -> str:
        """``"Canada: Ottawa → Rome"``."""
        return f"{self.subject}: {self.old or '?'} → {self.target}"

    def prompt(self, target: str | None = None, *, template: str | None = None, before: str = "") -> Prompt:
        """The question as a prompt; its cue is the subject.

        Args:
            target: The answer asked for; by default the new one.
            template: Another template than the fact's own.
            before: Text put before the question, with a space behind it.
        """
        text = self.template if template is None else _with_slot(template, self.subject)
        filled = (f"{before} " if before else "") + text.replace(SLOT, self.subject)
        start = (len(before) + 1 if before else 0) + text.index(SLOT)
        answer = self.target if target is None else target
        shared = {"group": self.name, "source": self.source, "template": text}
        if MASK not in text:
            return Prompt(filled.rstrip(), target=answer, cue=(start, start + len(self.subject)), **shared)
        prompt = Prompt.from_cloze(filled, answer, **shared)
        if filled.index(MASK) < start:  # counted from the end: the blank and the spaces around it are not in the text
            start = len(prompt.prefix + prompt.suffix) - (len(filled) - start)
        return replace(prompt, cue=(start, start + len(self.subject)))


def _with_slot(template: str, subject: str) -> str:
    """A template with one ``{}``, put where the subject stands if there is none."""
    count = template.count(SLOT)
    if count > 1:
        raise PromptError(f"{template!r} holds {{}} {count} times; write it once, where the subject stands")
    if count == 1:
        return template
    found = list(re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", template))
    if len(found) != 1:
        times = "is missing from" if not found else f"occurs {len(found)} times in"
        raise PromptError(f"the subject {subject!r} {times} {template!r}; write {{}} where it stands")
    start, end = found[0].span()
    return template[:start] + SLOT + template[end:]
