"""The organisms' tokenizer: one token a word, the same vocabulary for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kn_lens.organisms.facts_plan import RELATIONS
from kn_lens.prompts.load import load_relation

PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, START, END, MASK)


def vocabulary(sentences: Iterable[str]) -> list[str]:
    """Special tokens, then every word of a text and every subject and object of the bundled facts, sorted."""
    from tokenizers import pre_tokenizers

    split = _splitter(pre_tokenizers)
    facts = [name for relation in map(load_relation, RELATIONS) for pair in relation.pairs.values() for name in pair]
    words = {word for sentence in {*sentences, *facts} for word, _ in split.pre_tokenize_str(sentence)}
    return [*SPECIAL, *sorted(words)]


def word_tokenizer(words: list[str], *, masked: bool) -> Any:
    """A ``PreTrainedTokenizerFast`` over ``words``: at spaces, punctuation and 's apart.

    A masked model's adds [CLS] and [SEP]; a causal one's adds nothing.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = _splitter(pre_tokenizers)
    names = {"unk_token": UNKNOWN, "pad_token": PAD}
    if masked:
        ends = [(token, words.index(token)) for token in (START, END)]
        tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
            single=f"{START} $A {END}", pair=f"{START} $A {END} $B:1 {END}:1", special_tokens=ends
        )
        names |= {"cls_token": START, "sep_token": END, "mask_token": MASK}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _splitter(pre_tokenizers: Any) -> Any:
    from tokenizers import Regex

    return pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"'s\b|[.,;:?!]"), "isolated")]
    )
