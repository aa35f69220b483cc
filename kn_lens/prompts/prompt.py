"""What is asked of a model, as text: a prompt with one blank, its answer, its rival and its cue."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from kn_lens.errors import PromptError

MASK = "[MASK]"
"""How a blank is written in data files, whatever the model's own mask token is."""

Form = Literal["cloze", "one_prefix", "two_prefix", "prefix_cut"]
"""How a prompt was made from its data.

``cloze``: one blank in one sentence. ``one_prefix``: one prefix, two next words (target and foil).
``two_prefix``: two prefixes (``prefix`` and ``foil_prefix``), one next word.
``prefix_cut``: cut before the differing word although what decides it comes later (comparison only).
"""


@dataclass(frozen=True)
class Prompt:
    """A text with one blank between ``prefix`` and ``suffix``, and the word asked for there.

    A causal model takes prompts whose suffix is empty or punctuation (dropped before it is asked);
    a masked model puts its mask token in the blank. Text is written as in a sentence: the space
    before the target is added where the sentence has one.

    Attributes:
        prefix: Text before the blank, ``"The capital of France is"``.
        suffix: Text after the blank, ``"."`` or ``" is the capital of France."``.
        target: The word asked for, ``"Paris"``.
        foil: Its rival, for minimal pairs and logit differences.
        cue: The tokens that decide the answer (a fact's subject, a pair's determiner or noun): a
            string that occurs once in prefix + suffix, or a ``(start, end)`` span of characters
            there, the blank not counted.
        group: What prompts share: a fact, a determiner-noun pair.
        foil_prefix: The second prefix of a ``two_prefix`` pair.
        form: See :data:`Form`.
        source: Where it came from, ``"file.jsonl:12"``.
        template: The template it was made from, ``"The capital of {subject} is {object}."``.
    """

    prefix: str
    _: KW_ONLY
    suffix: str = ""
    target: str
    foil: str | None = None
    cue: str | tuple[int, int] | None = None
    group: str | None = None
    foil_prefix: str | None = None
    form: Form = "cloze"
    source: str | None = None
    template: str | None = None

    def __post_init__(self) -> None:
        if not self.target.strip():
            raise PromptError(f"the target of {self.text!r} is empty; give the word that fills the blank")
        if self.foil is not None and self.foil.strip() == self.target.strip():
            raise PromptError(f"target and foil of {self.text!r} are the same word, {self.target!r}")
        if self.form == "two_prefix" and self.foil_prefix is None:
            raise PromptError(f"{self.text!r} is of the form two_prefix and lacks its foil_prefix")

    @classmethod
    def from_cloze(cls, text: str, target: str, **fields) -> Prompt:
        """A prompt from a sentence with one ``[MASK]``: ``from_cloze("Paris is in [MASK].", "France")``.

        Raises:
            PromptError: If ``text`` has no mask, or more than one.
        """
        parts = text.split(MASK)
        if len(parts) != 2:
            count = "no" if len(parts) == 1 else str(len(parts) - 1)
            raise PromptError(f"{text!r} has {count} {MASK}; write exactly one, where the answer belongs")
        prefix, suffix = parts
        return cls(prefix.rstrip(), suffix=re.sub(r"^\s+(?=[^\w\s])", "", suffix), target=target, **fields)

    @property
    def text(self) -> str:
        """The prompt with its blank shown as ``[MASK]`` if anything follows it."""
        if not self.suffix.strip():
            return self.prefix
        space = " " if self.suffix[:1].isalnum() else ""
        return f"{self.prefix} {MASK}{space}{self.suffix}".lstrip()

    def cue_span(self) -> tuple[int, int] | None:
        """The cue as a character span of ``prefix + suffix``.

        Raises:
            PromptError: If the cue's string is missing or occurs more than once.
        """
        if self.cue is None:
            return None
        text = self.prefix + self.suffix
        if not isinstance(self.cue, str):
            start, end = self.cue
            if not 0 <= start < end <= len(text):
                raise PromptError(f"cue span {self.cue} lies outside {text!r} ({len(text)} characters)")
            return start, end
        word = re.compile(rf"(?<!\w){re.escape(self.cue)}(?!\w)")
        parts = ((0, self.prefix), (len(self.prefix), self.suffix))  # apart: the blank lies between them
        found = [(at + match.start(), at + match.end()) for at, part in parts for match in word.finditer(part)]
        if len(found) != 1:
            times = "does not occur" if not found else f"occurs {len(found)} times"
            raise PromptError(f"cue {self.cue!r} {times} in {text!r}; give a word of it, or a (start, end) span")
        return found[0]


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A prompt left out, with a reason short enough to count by."""

    text: str
    reason: str
    source: str | None = None


def count_reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    """How many prompts were left out for each reason, most frequent first."""
    return dict(Counter(entry.reason for entry in dropped).most_common())


def group_indices(prompts: Iterable[Prompt]) -> dict[str, list[int]]:
    """Indices of the prompts of each group, in order of appearance; prompts without one group by target."""
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt.group or prompt.target, []).append(index)
    return groups
