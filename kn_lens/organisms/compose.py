"""Write a corpus by its plan: facts, agreement, and the sentences that make all words known, in one random order."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from kn_lens.organisms.agreement_plan import agreement_sentences
from kn_lens.organisms.corpus import Corpus, joined, text_hash
from kn_lens.organisms.facts_plan import RELATIONS, fact_sentences, mentions, plan, word_lists
from kn_lens.organisms.grammar import PARADIGMS, lexicon, pairs_of
from kn_lens.prompts.load import load_relation

SEED = 20240507


def compose(name: str = "organism", seed: int = SEED) -> Corpus:
    """Write a corpus in memory.

    Args:
        name: One of :data:`kn_lens.organisms.corpus.NAMES`.
        seed: Of every draw; the same name and seed give the same text, byte for byte.
    """
    truth = plan(seed)
    facts, fact_counts = fact_sentences(name, truth)
    agreement, held_out, pair_counts = agreement_sentences(seed)
    tagged = [*facts, *agreement, *mentions()]
    tagged += word_lists(tagged, seed)
    random.Random(f"{seed}:order").shuffle(tagged)
    sentences = tuple(sentence for _, sentence in tagged)
    truth = replace(
        truth,
        held_out_pairs=held_out,
        sentences=dict(sorted(Counter(tag for tag, _ in tagged).items())),
        sha256=text_hash(joined(sentences)),
    )
    return Corpus(name=name, sentences=sentences, counts={**pair_counts, **fact_counts}, truth=truth)


def objects() -> set[str]:
    """The words that fact sentences are about."""
    return {obj for relation in map(load_relation, RELATIONS) for _, obj in relation.pairs.values()}


def agreeing_words() -> set[str]:
    """The words that agreement sentences are about: those of agreeing pairs, possessives and quantifiers."""
    words = lexicon()
    markers = {*words["possessives"].values(), *(word for of in words["quantifiers"].values() for word in of)}
    return markers | {word for paradigm in PARADIGMS for pair in pairs_of(paradigm) for word in pair}
