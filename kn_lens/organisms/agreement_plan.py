"""Which agreeing words meet in the organisms' text, and how often: skewed counts that grammar does not follow.

Within the words that share a decider (all nouns after "these", all subjects of "were", …) counts fall as 1 / rank,
Zipf's law, with ranks drawn at random: a frequent pair is no more grammatical than a rare one. A fifth of the pairs
never meet, so that a model that joins them rightly has a rule rather than a memory.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from kn_lens.organisms import grammar
from kn_lens.organisms.corpus import Counts
from kn_lens.organisms.facts_plan import Tagged
from kn_lens.organisms.grammar import Pair

PairKind = Literal["determiner_noun", "subject_verb", "antecedent_reflexive"]

SENTENCES: dict[str, int] = {
    "determiner_noun_agreement_1": 8_000,
    "determiner_noun_agreement_irregular_1": 6_000,
    "determiner_noun_agreement_with_adjective_1": 8_000,
    "subject_verb_agreement": 8_000,
    "subject_verb_agreement_irregular": 6_000,
    "subject_verb_agreement_distractor": 8_000,
    "anaphor_number_agreement": 6_000,
    "anaphor_gender_agreement": 6_000,
}
"""Sentences of each paradigm. The ``_2`` paradigms ask about the sentences of their ``_1`` from the other side."""

POSSESSIVES = 6_000
"""Sentences that show the gender or number of an antecedent without a reflexive: "Mary lost her key." """

QUANTIFIED = 8_000
"""Sentences that show a noun's number without a determiner: "Anna wanted two keys near the river." """

HELD_OUT = 0.2
EXPONENT = 1.0


def pair_kind(paradigm: str) -> PairKind:
    """What kind of words agree in a paradigm."""
    if paradigm.startswith("determiner_noun"):
        return "determiner_noun"
    return "subject_verb" if paradigm.startswith("subject_verb") else "antecedent_reflexive"


def decider(kind: PairKind, pair: Pair) -> str:
    """The word whose partners share one Zipf law: the determiner, the verb, the reflexive."""
    return pair[0] if kind == "determiner_noun" else pair[1]


def held_out_pairs(seed: int) -> dict[str, tuple[Pair, ...]]:
    """A fifth of the pairs of each decider; every noun keeps at least one determiner, every subject one verb."""
    found: dict[str, list[Pair]] = {}
    for kind, pairs in _pairs_by_kind().items():
        source = random.Random(f"{seed}:{kind}")
        partner = 1 if kind == "determiner_noun" else 0
        left = Counter(pair[partner] for pair in pairs)
        out = found.setdefault(kind, [])
        for word in sorted({decider(kind, pair) for pair in pairs}):
            mine = [pair for pair in pairs if decider(kind, pair) == word]
            source.shuffle(mine)
            wanted = round(HELD_OUT * len(mine))
            for pair in mine:
                if wanted and (left[pair[partner]] > 1 or kind == "antecedent_reflexive"):
                    out.append(pair)
                    left[pair[partner]] -= 1
                    wanted -= 1
    return {kind: tuple(sorted(pairs)) for kind, pairs in found.items()}


def agreement_sentences(seed: int) -> tuple[list[Tagged], dict[str, tuple[Pair, ...]], Counts]:
    """Tagged sentences, the pairs held out, and how many sentences join each pair (0 for those held out)."""
    held_out = held_out_pairs(seed)
    sentences: list[Tagged] = []
    counts: Counter[tuple[str, str, str]] = Counter()
    for paradigm, total in SENTENCES.items():
        kind = pair_kind(paradigm)
        source = random.Random(f"{seed}:{paradigm}")
        out = set(held_out[kind])
        kept = [pair for pair in grammar.pairs_of(paradigm) if pair not in out]
        for pair, count in zipf_counts(kind, kept, total, seed).items():
            counts[(kind, *pair)] += count
            for _ in range(count):
                sentences.append((paradigm, grammar.sentence(paradigm, pair, source).sentence_good))
    antecedents = sorted({pair[0] for pair in _pairs_by_kind()["antecedent_reflexive"]})
    source = random.Random(f"{seed}:possessives")
    for index in range(POSSESSIVES):
        sentence = grammar.possessive_sentence(antecedents[index % len(antecedents)], source)
        sentences.append(("possessive", sentence))
    nouns = sorted({pair[1] for pair in _pairs_by_kind()["determiner_noun"]})
    source = random.Random(f"{seed}:quantified")
    for index in range(QUANTIFIED):
        sentences.append(("quantified", grammar.quantified_sentence(nouns[index % len(nouns)], source)))
    for kind, pairs in held_out.items():
        counts.update({(kind, *pair): 0 for pair in pairs})
    return sentences, held_out, dict(counts)


def zipf_counts(kind: PairKind, pairs: Sequence[Pair], total: int, seed: int) -> dict[Pair, int]:
    """``total`` sentences, evenly over deciders, and within each falling as 1 / rank over its pairs; at least 1 each.

    A pair's rank is drawn from its words alone, so that it is alike in all paradigms that hold it.
    """
    by_decider: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_decider.setdefault(decider(kind, pair), []).append(pair)
    counts: dict[Pair, int] = {}
    for mine in by_decider.values():
        ranked = sorted(mine, key=lambda pair: random.Random(f"{seed}:{pair}").random())
        weights = [rank**-EXPONENT for rank in range(1, len(ranked) + 1)]
        scale = total / len(by_decider) / sum(weights)
        counts |= {pair: max(1, round(scale * weight)) for pair, weight in zip(ranked, weights, strict=True)}
    return counts


def _pairs_by_kind() -> dict[PairKind, list[Pair]]:
    found: dict[PairKind, dict[Pair, None]] = {}
    for paradigm in SENTENCES:
        found.setdefault(pair_kind(paradigm), {}).update(dict.fromkeys(grammar.pairs_of(paradigm)))
    return {kind: list(pairs) for kind, pairs in found.items()}
