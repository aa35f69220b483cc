"""Minimal pairs in BLiMP's JSON Lines (Warstadt et al. 2020): two sentences that differ in one place."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kn_lens.errors import DataError, PromptError
from kn_lens.models.kind import is_masked, model_name
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.groups import augment_pairs, gather_groups, group_by_answer
from kn_lens.prompts.jsonl import Report, read_jsonl, stop
from kn_lens.prompts.prompt import Dropped, Prompt
from kn_lens.prompts.tokens import TokenResolver, UnusablePrompt

PairForm = Literal["one_prefix", "two_prefix", "sentence"]

log = logging.getLogger(__name__)

FORM_MEANING = {
    "one_prefix": "one prefix, two next words: compare p(good word | prefix) with p(bad word | prefix)",
    "two_prefix": "the differing word comes before the word that decides it, so a causal model is asked for the "
    "same next word after two prefixes: compare p(word | good prefix) with p(word | bad prefix)",
    "sentence": "the sentences differ in a way that no prefix shows: compare whole-sentence log-probabilities "
    "(accuracy only; no attribution)",
}

_DETERMINER = re.compile(r"\b(this|that|these|those)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class MinimalPair:
    """An acceptable and an unacceptable sentence.

    Attributes:
        sentence_good, sentence_bad: The sentences.
        form: How a causal model can be asked (BLiMP's ``one_prefix_method`` and ``two_prefix_method``).
        two_prefix: For that form: the good prefix, the bad prefix, and the word that follows both.
        cue: Character span in ``sentence_good`` of the words that decide, if known.
        frame: Pairs of one frame class can swap cue and target and stay grammatical.
        source: ``"file:line"``.
    """

    sentence_good: str
    sentence_bad: str
    form: PairForm
    two_prefix: tuple[str, str, str] | None = None
    cue: tuple[int, int] | None = None
    frame: str | None = None
    source: str | None = None

    def difference(self) -> tuple[str, str, str, str | None]:
        """The shared words before, the first differing word of each sentence, and the shared rest.

        The rest is None if the sentences differ in more than that word.
        """
        good, bad = self.sentence_good.split(" "), self.sentence_bad.split(" ")
        shorter = min(len(good), len(bad))
        first = next((index for index in range(shorter) if good[index] != bad[index]), shorter)
        word_good, tail_good = _split_punctuation(good[first] if first < len(good) else "")
        word_bad, tail_bad = _split_punctuation(bad[first] if first < len(bad) else "")
        rest_good = " ".join([tail_good, *good[first + 1 :]])
        rest_bad = " ".join([tail_bad, *bad[first + 1 :]])
        return " ".join(good[:first]), word_good, word_bad, rest_good if rest_good == rest_bad else None


@dataclass(frozen=True, kw_only=True)
class MinimalPairs:
    """The pairs of one paradigm; ``pairs.prompts(model)`` makes them prompts for a model."""

    name: str
    pairs: tuple[MinimalPair, ...]
    path: Path | None = None
    kind: Literal["pairs"] = "pairs"

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def form(self) -> PairForm:
        """The form of most pairs, for a causal model."""
        forms: Counter[PairForm] = Counter(pair.form for pair in self.pairs)
        return forms.most_common(1)[0][0]

    def prompts(
        self,
        model: Any,
        *,
        form: Literal["prefix_cut"] | None = None,
        augment: bool = False,
        groups: int | None = None,
        per_group: int | None = None,
        seed: int = 0,
    ) -> PromptBatch:
        """Prompts for ``model``; what it cannot be asked is left out and counted in ``.dropped``.

        Args:
            model: A loaded model.
            form: None takes each pair's own (default). ``"prefix_cut"`` cuts before the differing
                word even where what decides it comes later, as the paper's code does: for
                comparison with its numbers only.
            augment: Put each pair of cue and target into every sentence of the paradigm, so that all
                prompts of a group ask for the same word by the same cue (section "data augmentation"
                of Niu et al. 2024). Pairs without a known cue are grouped by target and foil.
            groups: Take this many groups, drawn with ``seed``; None takes all.
            per_group: Take at most this many prompts of each group; None takes all.
            seed: Of the draws.

        Raises:
            PromptError: If the model can be asked none of them, with the reasons.
        """
        masked = is_masked(model)
        if not masked and form is None and all(pair.form == "sentence" for pair in self.pairs):
            raise PromptError(
                f"{self.name} has the form 'sentence' for {model_name(model)}, a causal model: "
                f"{FORM_MEANING['sentence']}. kn.accuracy(model, pairs) scores it; in files of your own, "
                f"'one_prefix_method': true marks pairs that the text before the differing word decides"
            )
        asked: list[tuple[Prompt, str | None]] = []
        dropped: list[Dropped] = []
        for pair in self.pairs:
            prompt = pair_prompt(pair, masked=masked, cut=form == "prefix_cut")
            if isinstance(prompt, Dropped):
                dropped.append(prompt)
            else:
                asked.append((prompt, pair.frame))
        forms = Counter(prompt.form for prompt, _ in asked)
        if "two_prefix" in forms and len(forms) > 1:  # two measures of the answer: not to be mixed in one batch
            most = forms.most_common(1)[0][0]
            reason = f"of another form than most pairs ({most})"
            others = [prompt for prompt, _ in asked if prompt.form != most]
            dropped += [Dropped(text=prompt.text, reason=reason, source=prompt.source) for prompt in others]
            asked = [(prompt, frame) for prompt, frame in asked if prompt.form == most]
        if augment:  # a pair that cannot be asked is left out once, not in every sentence it would be moved to
            asked, unusable = _usable(model, asked)
            dropped += unusable
        grouped = augment_pairs(asked, seed=seed) if augment else group_by_answer(asked)
        return gather_groups(model, grouped, groups=groups, per_group=per_group, seed=seed, dropped=dropped)


def _usable(
    model: Any, asked: list[tuple[Prompt, str | None]]
) -> tuple[list[tuple[Prompt, str | None]], list[Dropped]]:
    """The prompts that ``model`` can be asked, and the others with their reasons."""
    resolver = TokenResolver(model)
    usable, dropped = [], []
    for prompt, frame in asked:
        try:
            resolver.resolve(prompt, single_token=True)
        except UnusablePrompt as error:
            dropped.append(Dropped(text=prompt.text, reason=error.reason, source=prompt.source))
        else:
            usable.append((prompt, frame))
    return usable, dropped


def pair_prompt(pair: MinimalPair, *, masked: bool, cut: bool = False) -> Prompt | Dropped:
    """The prompt of a pair: one mask for a masked model, one or two prefixes for a causal one."""
    prefix, good, bad, rest = pair.difference()
    if good == bad:
        reason = "the sentences differ in punctuation only"
        return Dropped(text=pair.sentence_good, reason=reason, source=pair.source)
    if masked:
        if rest is None or not good or not bad:
            reason = "the sentences differ in more than one word"
            return Dropped(text=pair.sentence_good, reason=reason, source=pair.source)
        return Prompt(
            prefix,
            suffix=rest,
            target=good,
            foil=bad,
            cue=_cue_in_prompt(pair, prefix, good),
            source=pair.source,
        )
    if pair.form == "two_prefix" and pair.two_prefix and not cut:
        good_prefix, bad_prefix, word = pair.two_prefix
        start = len(prefix) + 1 if prefix else 0
        return Prompt(
            good_prefix,
            foil_prefix=bad_prefix,
            target=word,
            cue=(start, start + len(good)),
            form="two_prefix",
            source=pair.source,
        )
    if pair.form == "sentence" and not cut:
        reason = "whole-sentence form: no prefix shows the difference"
        return Dropped(text=pair.sentence_good, reason=reason, source=pair.source)
    if not prefix or not good or not bad:
        reason = "nothing before the differing word" if not prefix else "one sentence ends where they differ"
        return Dropped(text=pair.sentence_good, reason=reason, source=pair.source)
    cue = _cue_in_prompt(pair, prefix, good)
    return Prompt(
        prefix,
        target=good,
        foil=bad,
        cue=cue if cue and cue[1] <= len(prefix) else None,
        form="one_prefix" if pair.form == "one_prefix" else "prefix_cut",
        source=pair.source,
    )


def _cue_in_prompt(pair: MinimalPair, prefix: str, word: str) -> tuple[int, int] | None:
    """The cue's span in prefix + suffix, from its span in the sentence, which holds the word too."""
    if pair.cue is None:
        return None
    start, end = pair.cue
    blank = len(word) + (1 if prefix else 0)  # the word and the space before it
    if end <= len(prefix):
        return start, end
    return (start - blank, end - blank) if start >= len(prefix) + blank else None  # None: the word itself, not asked


def _split_punctuation(word: str) -> tuple[str, str]:
    bare = word.rstrip(".,!?;")
    return bare, word[len(bare) :]


def read_minimal_pairs(
    path: Path, name: str | None = None, *, skip_identical: bool = False, report: Report = stop
) -> MinimalPairs:
    """The pairs of one JSON Lines file.

    Args:
        path: The file.
        name: What the paradigm is called; by default the file's stem.
        skip_identical: Leave out pairs of identical sentences with a warning, rather than stop:
            for public files, which hold a few and are not the user's to mend.
        report: Told of each problem, with file and line: a broken line, a missing field, two identical sentences, an
            empty file. By default the first one ends the reading; else rows with a problem are left out.

    Raises:
        DataError: A problem that ends the reading.
    """
    pairs: list[MinimalPair] = []
    for where, row in read_jsonl(path, ("sentence_good", "sentence_bad"), report):
        good, bad = row["sentence_good"].strip(), row["sentence_bad"].strip()
        if good == bad:
            problem = f"sentence_good and sentence_bad are the same: {good!r}"
            if skip_identical:
                log.warning("left out %s: %s", where, problem)
            else:
                report(where, problem)
            continue
        try:
            pairs.append(pair_of_row(row, where))
        except DataError as error:
            report(where, str(error).removeprefix(f"{where}: "))
    return MinimalPairs(name=name or path.stem, pairs=tuple(pairs), path=path)


def pair_of_row(row: dict[str, Any], where: str) -> MinimalPair:
    """A pair from its fields in BLiMP's format; ``where`` is named in what is raised.

    Raises:
        DataError: If a field is missing or contradicts the sentences.
    """
    good, bad = row["sentence_good"].strip(), row["sentence_bad"].strip()
    form: PairForm = "sentence"
    two_prefix = None
    if row.get("one_prefix_method"):
        form = "one_prefix"
    elif row.get("two_prefix_method"):
        two_prefix = _two_prefixes(row, good, bad, where)
        form = "two_prefix" if two_prefix else "sentence"
    return MinimalPair(
        sentence_good=good,
        sentence_bad=bad,
        form=form,
        two_prefix=two_prefix,
        cue=_cue_of(row, good, where),
        frame=row.get("frame") or _frame_of(row, where),
        source=where,
    )


def _two_prefixes(row: dict[str, Any], good: str, bad: str, where: str) -> tuple[str, str, str] | None:
    """Both prefixes and the word after them, as the row gives them.

    Copies of BLiMP that lack these fields: for agreement, the word after the differing one; for
    other paradigms None, since the deciding word need not be the next one.
    """
    names = ("two_prefix_prefix_good", "two_prefix_prefix_bad", "two_prefix_word")
    given = [name for name in names if row.get(name)]
    if len(given) == len(names):
        return row[names[0]], row[names[1]], row[names[2]]
    if given:
        missing = next(name for name in names if name not in given)
        raise DataError(f"{where}: {given[0]!r} is there and {missing!r} is missing")
    if "agreement" not in str(row.get("UID", "")):
        return None
    prefix, word_good, word_bad, rest = MinimalPair(
        sentence_good=good, sentence_bad=bad, form="two_prefix"
    ).difference()
    next_word = _split_punctuation((rest or "").strip().split(" ")[0])[0]
    return (f"{prefix} {word_good}".strip(), f"{prefix} {word_bad}".strip(), next_word) if next_word else None


def _frame_of(row: dict[str, Any], where: str) -> str | None:
    """For BLiMP's determiner-noun paradigms: a frame with half of a compound ("these high …") holds no other noun."""
    uid = str(row.get("UID", ""))
    asked = row.get("one_prefix_word_good") or row.get("two_prefix_word") or ""
    compound = uid.startswith("determiner_noun_agreement") and " " in asked
    return where if compound else None


def _cue_of(row: dict[str, Any], good: str, where: str) -> tuple[int, int] | None:
    """The span given by ``cue_span``; for BLiMP's determiner-noun paradigms, the one they imply."""
    span = row.get("cue_span")
    if span is not None:
        whole = isinstance(span, list) and len(span) == 2 and all(isinstance(bound, int) for bound in span)
        if not whole or not 0 <= span[0] < span[1] <= len(good):
            raise DataError(f"{where}: cue_span is {span!r}; expected [start, end] characters of sentence_good")
        return span[0], span[1]
    if not str(row.get("UID", "")).startswith("determiner_noun_agreement"):
        return None
    if row.get("two_prefix_word"):  # the determiner is asked for by the noun, the last word of the phrase
        noun = row["two_prefix_word"].split(" ")[-1]
        start = good.rfind(noun, len(row.get("two_prefix_prefix_good", "")))
        return (start, start + len(noun)) if start >= 0 else None
    found = [
        match.span() for match in _DETERMINER.finditer(good) if match.end() <= len(row.get("one_prefix_prefix", good))
    ]
    return found[-1] if found else None
