"""The one place where text becomes token ids.

Strings are tokenised as the model's own tokenizer does by default: a BOS, CLS or SEP only where it
adds one itself. Targets are read off the tokens of the *whole* text, never by tokenising the answer
alone, so that a leading space, or a merge across the blank, cannot go unseen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from kn_lens.errors import PromptError
from kn_lens.models.kind import is_masked, model_name, tokenizer_of
from kn_lens.prompts.prompt import MASK, Prompt

_OPENERS = "([{“‘/"
_QUOTES = "\"'"  # open a quotation behind a space, close one (or mark a possessive) behind a letter
_CLOSERS = ".,;:!?)]}%’”"


class UnusablePrompt(PromptError):
    """A prompt that this tokenizer cannot pose; ``reason`` is short enough to count by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class ResolvedPrompt:
    """A prompt as token ids.

    Attributes:
        ids: The tokens the model reads (for a masked model with its mask in the blank).
        target_position: Index in ``ids`` whose logits answer: the last token, or the mask.
        target_ids: Tokens of the answer. More than one only for a causal model.
        foil_ids: Tokens of the rival, as many as of the target, or None.
        cue_positions: Indices in ``ids`` of the cue's tokens; empty without a cue.
        rival_ids: For a two-prefix pair, the tokens of the other prefix, else None.
        rival_cue_positions: Indices in ``rival_ids`` of what stands there in the cue's place.
    """

    prompt: Prompt
    ids: tuple[int, ...]
    target_position: int
    target_ids: tuple[int, ...]
    foil_ids: tuple[int, ...] | None
    cue_positions: tuple[int, ...]
    rival_ids: tuple[int, ...] | None
    rival_cue_positions: tuple[int, ...] = ()


class TokenResolver:
    """Turns prompts into token ids for one model.

    Args:
        model: A ``HookedTransformer``, ``HookedEncoder`` or ``TransformerBridge`` with a tokenizer.
        prepend_bos: None: as the tokenizer does by itself (default). True or False: force it.
    """

    def __init__(self, model: Any, prepend_bos: bool | None = None) -> None:
        self.tokenizer = tokenizer_of(model)
        self.masked = is_masked(model)
        self.model_name = model_name(model)
        self.context = int(model.cfg.n_ctx)
        self.prepend_bos = prepend_bos
        if self.masked and self.tokenizer.mask_token_id is None:
            raise PromptError(f"the tokenizer of {self.model_name} has no mask token")
        unknown = self.tokenizer.unk_token_id
        # GPT-2's stands for the end of a text, no word. The pad token says nothing: a word-level tokenizer that has
        # none for padding is lent its unknown token when the model is loaded.
        ends = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        self.unknown = None if unknown in ends else unknown

    def resolve(self, prompt: Prompt, *, single_token: bool = False) -> ResolvedPrompt:
        """Token ids of one prompt; with ``single_token``, a target of several tokens is refused.

        Raises:
            UnusablePrompt: If this model cannot be asked it; the reason says why.
        """
        if MASK in prompt.prefix + prompt.suffix:
            raise UnusablePrompt(
                "mask in the text",
                f"{prompt.prefix + prompt.suffix!r} has a {MASK} in its text, and {self.model_name} is a "
                f"{'masked' if self.masked else 'causal'} model: write the blank as the gap between prefix "
                f"and suffix, or use Prompt.from_cloze",
            )
        resolved = self._resolve_masked(prompt) if self.masked else self._resolve_causal(prompt)
        if single_token and len(resolved.target_ids) > 1:
            raise UnusablePrompt(
                "target is several tokens",
                f"target {prompt.target!r} of {prompt.text!r} is {len(resolved.target_ids)} tokens for "
                f"{self.model_name}; one is needed here",
            )
        longest = len(resolved.ids) + len(resolved.target_ids) - 1
        if longest > self.context:
            raise UnusablePrompt(
                "longer than the context",
                f"{prompt.text[:60]!r}… is {longest} tokens long; {self.model_name} reads {self.context}",
            )
        return resolved

    def encode(self, text: str) -> list[int]:
        """Ids of a text, special tokens as the tokenizer adds them (an end mark is taken off)."""
        ids = list(self.tokenizer(text)["input_ids"])
        if not self.masked and ids and ids[-1] == self.tokenizer.eos_token_id and len(ids) > 1:
            ids.pop()
        bos = self.tokenizer.bos_token_id
        if self.prepend_bos is not None and not self.masked and bos is not None:
            has_bos = bool(ids) and ids[0] == bos
            if self.prepend_bos and not has_bos:
                ids.insert(0, bos)
            elif has_bos and not self.prepend_bos:
                ids.pop(0)
        return ids

    def _known_ids(self, text: str) -> list[int]:
        """:meth:`encode`, refusing text that holds a word the tokenizer does not know."""
        ids = self.encode(text)
        if self.unknown is None or self.unknown not in ids:
            return ids
        words: list[str] = []
        if getattr(self.tokenizer, "is_fast", False):  # others cannot tell which characters a token stands for
            encoded = self.tokenizer(text, return_offsets_mapping=True)
            spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            words = [text[low:high].strip() for token, (low, high) in spans if token == self.unknown]
        named = ", ".join(repr(word) for word in dict.fromkeys(words) if word)
        raise UnusablePrompt(
            "word unknown to the model",
            f"{text!r} holds {named or 'a word'}, unknown to {self.model_name}, whose tokenizer has no token for "
            f"it; use words that it knows",
        )

    def single_token(self, word: str) -> int:
        """The id of ``word`` as it stands within a sentence (with its leading space).

        Raises:
            UnusablePrompt: If it is several tokens, or unknown.
        """
        frame = "a" if not self.masked else "a ,"
        head, tail = (frame, "") if not self.masked else ("a", " ,")
        with_word = self.encode(f"{head} {word.strip()}{tail}")
        without = self.encode(f"{head}{tail}")
        count = len(with_word) - len(without)
        position = len(self.encode(head)) - (1 if self.masked else 0)
        known = self.unknown is None or self.unknown not in with_word[position : position + max(count, 0)]
        if count != 1 or not known:
            found = f"{max(count, 0)} tokens for" if known else "unknown to"
            raise UnusablePrompt("word is not one token", f"{word!r} is {found} {self.model_name}, not one token")
        return with_word[position]

    # -- causal ------------------------------------------------------------------------------------

    def _resolve_causal(self, prompt: Prompt) -> ResolvedPrompt:
        if any(character.isalnum() for character in prompt.suffix):
            raise UnusablePrompt(
                "text after the blank",
                f"{prompt.text!r} goes on after the blank, and {self.model_name} is a causal model: it can "
                f"only be asked for the end of a text",
            )
        prefix = prompt.prefix.rstrip()
        context = self._context_ids(prefix)
        target = self._continuation(prompt, prefix, context, prompt.target)
        foil = None
        if prompt.foil is not None:
            foil = self._continuation(prompt, prefix, context, prompt.foil)
            context, target, foil = self._differing(prompt, context, target, foil)
        rival, rival_cue = None, ()
        if prompt.foil_prefix is not None and prompt.form == "two_prefix":
            rival_prefix = prompt.foil_prefix.rstrip()
            rival = self._context_ids(rival_prefix)
            if self._continuation(prompt, rival_prefix, rival, prompt.target) != target:
                raise UnusablePrompt(
                    "the word's tokens differ after the two prefixes",
                    f"{prompt.target!r} is tokenised differently after {prefix!r} and {rival_prefix!r}",
                )
            span = prompt.cue_span() if prompt.cue is not None else None
            if span is not None:
                ends = (span[0], span[1] + len(prompt.foil_prefix) - len(prompt.prefix))
                rival_cue = self._cue_positions(
                    replace(prompt, prefix=prompt.foil_prefix, cue=ends, form="cloze"), rival_prefix
                )
        return ResolvedPrompt(
            prompt=prompt,
            ids=tuple(context),
            target_position=len(context) - 1,
            target_ids=tuple(target),
            foil_ids=None if foil is None else tuple(foil),
            cue_positions=self._cue_positions(prompt, prefix),
            rival_ids=None if rival is None else tuple(rival),
            rival_cue_positions=rival_cue,
        )

    def _context_ids(self, prefix: str) -> list[int]:
        context = self._known_ids(prefix)
        if not context:
            raise UnusablePrompt(
                "nothing before the blank",
                f"the prompt has no token before the blank; a causal model such as {self.model_name} needs one",
            )
        return context

    def _continuation(self, prompt: Prompt, prefix: str, context: list[int], word: str) -> list[int]:
        joined = self._known_ids(prefix + _space_between(prefix, word) + word.strip())
        if joined[: len(context)] != context or len(joined) == len(context):
            raise UnusablePrompt(
                "the answer merges with the prompt",
                f"{word!r} shares a token with the end of {prompt.prefix!r}; the blank cannot be cut there",
            )
        return joined[len(context) :]

    def _differing(
        self, prompt: Prompt, context: list[int], target: list[int], foil: list[int]
    ) -> tuple[list[int], list[int], list[int]]:
        """Move what target and foil share at their start into the context, and drop a shared end."""
        common = 0
        while common < min(len(target), len(foil)) and target[common] == foil[common]:
            common += 1
        context, target, foil = context + target[:common], target[common:], foil[common:]
        while len(target) > 1 and len(foil) > 1 and target[-1] == foil[-1]:
            target, foil = target[:-1], foil[:-1]
        if len(target) != 1 or len(foil) != 1:
            raise UnusablePrompt(
                "target or foil is not one token",
                f"{prompt.target!r} / {prompt.foil!r} after {prompt.prefix!r} differ in {len(target)} / "
                f"{len(foil)} tokens; {self.model_name} can be asked for one token",
            )
        return context, target, foil

    # -- masked ------------------------------------------------------------------------------------

    def _resolve_masked(self, prompt: Prompt) -> ResolvedPrompt:
        head = prompt.prefix.rstrip()
        mask = self.tokenizer.mask_token
        before = head + (" " if head else "")
        text = before + mask + _glue(prompt.suffix)
        ids = self._known_ids(text)
        if ids.count(self.tokenizer.mask_token_id) != 1:
            raise UnusablePrompt("mask in the text", f"{text!r} does not hold exactly one mask token")
        position = ids.index(self.tokenizer.mask_token_id)
        words = {"target": prompt.target} | ({} if prompt.foil is None else {"foil": prompt.foil})
        found: dict[str, int] = {}
        for role, word in words.items():
            filled = self.encode(before + word.strip() + _glue(prompt.suffix))
            answer = filled[position : len(filled) - (len(ids) - position - 1)]
            known = self.unknown is None or self.unknown not in answer
            if len(answer) != 1 or not known:
                raise UnusablePrompt(
                    "target or foil is not one token" if known else "target or foil is unknown",
                    f"{role} {word!r} of {prompt.text!r} is "
                    f"{f'{len(answer)} tokens' if known else 'unknown'} for {self.model_name}; "
                    f"a masked model can be asked for one known token",
                )
            found[role] = answer[0]
        return ResolvedPrompt(
            prompt=prompt,
            ids=tuple(ids),
            target_position=position,
            target_ids=(found["target"],),
            foil_ids=(found["foil"],) if "foil" in found else None,
            cue_positions=self._cue_positions(prompt, text),
            rival_ids=None,
        )

    def _cue_positions(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        """Indices of the cue's tokens in ``text``, which is the prompt as the model reads it."""
        try:
            span = prompt.cue_span()
        except PromptError as error:
            raise UnusablePrompt("cue not found once", str(error)) from None
        if span is None:
            return ()
        start, end = span
        if start >= len(prompt.prefix):  # behind the blank: counted from the end of the text
            if not self.masked:
                problem = f"the cue {prompt.cue!r} of {prompt.text!r} stands behind the blank, where a causal model "
                raise UnusablePrompt("cue behind the blank", f"{problem}does not read")
            moved = len(text) - len(prompt.prefix + prompt.suffix)
            start, end = start + moved, end + moved
        encoded = self.tokenizer(text, return_offsets_mapping=True)
        shift = 0  # of a BOS that was forced on or off
        if self.prepend_bos is not None:
            shift = len(self.encode(text)) - len(encoded["input_ids"])
        positions = tuple(
            index + shift
            for index, (low, high) in enumerate(encoded["offset_mapping"])
            if low < end and high > start and text[max(low, start) : min(high, end)].strip()
        )
        if not positions:
            raise UnusablePrompt("cue not found once", f"no token of {text!r} covers its cue {prompt.cue!r}")
        return positions


def _space_between(prefix: str, word: str) -> str:
    """The space a sentence has between ``prefix`` and ``word``."""
    if not prefix or word[:1] in _CLOSERS:
        return ""
    if prefix[-1] in _OPENERS:
        return ""
    opens_a_quote = prefix[-1] in _QUOTES and (len(prefix) == 1 or prefix[-2].isspace() or prefix[-2] in _OPENERS)
    return "" if opens_a_quote else " "


def _glue(suffix: str) -> str:
    """A suffix as it follows the blank: with a space before a word, none before punctuation."""
    return f" {suffix}" if suffix[:1].isalnum() else suffix
