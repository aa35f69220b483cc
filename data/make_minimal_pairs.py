"""Write minimal_pairs/subject_verb_agreement.jsonl: ``python data/make_minimal_pairs.py``.

Every sentence is an opener, a subject noun, perhaps a phrase, the verb that must agree with the noun, and a
rest. Openers, phrases and rests go with a subject of either number and with every verb of their class, so
within one class any noun may be moved, together with its verb, into any other sentence. No two sentences of a
class share opener and phrase.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

SEED = 20240502
TARGET = Path(__file__).resolve().parent / "minimal_pairs" / "subject_verb_agreement.jsonl"

# Singular; the plural adds -s. Words for people only, so that every rest suits every noun.
NOUNS = [
    "farmer", "teacher", "doctor", "student", "singer", "writer", "lawyer", "soldier", "friend", "king",
    "queen", "girl", "boy", "guest", "driver", "player", "actor", "artist", "worker", "nurse", "guard",
    "judge", "pilot", "prince", "priest", "poet", "officer", "engineer", "scientist", "manager",
    "customer", "visitor", "leader", "author", "brother", "sister", "cousin", "client", "owner",
    "parent", "mother", "father", "editor", "director", "professor", "captain", "musician", "citizen",
    "hunter", "member",
]  # fmt: skip

# Class of sentence: verbs (singular, plural, pairs of each number) and rests.
CLASSES: dict[str, tuple[list[tuple[str, str, int]], list[str]]] = {
    "be": (
        [("is", "are", 10), ("was", "were", 10)],
        [
            "tired", "ready", "happy", "busy", "hungry", "very kind", "quite famous", "in the garden",
            "not at home", "late again",
        ],
    ),
    "have": (
        [("has", "have", 10)],
        [
            "a small house", "two dogs", "no money", "a good plan", "many questions", "enough time",
            "a red car", "a long way to go", "little patience", "an old map",
        ],
    ),
    "act": (
        [
            ("works", "work", 4), ("sings", "sing", 4), ("runs", "run", 4), ("walks", "walk", 4),
            ("waits", "wait", 4),
        ],
        [
            "every day", "in the morning", "in the rain", "after dinner", "all night", "for hours",
            "without a break", "on Sunday", "before sunrise", "in the park",
        ],
    ),
}  # fmt: skip

# Before a bare noun: each is used once in a class.
OPENERS = [
    "The", "My", "Our", "Their", "Your", "His", "Her", "Perhaps the", "Today the", "This morning the",
    "After lunch the", "As usual, the", "In this story, the", "I know that the", "We heard that the",
    "She said that the", "It seems that the", "People say that the", "He was told that the",
    "I wonder whether the",
]  # fmt: skip

# With a phrase between noun and verb. Some name a thing in the singular, some no thing at all.
SHORT_OPENERS = ["The", "Today the", "I know that the", "She said that the"]
PHRASES = [
    "near the gate", "over there", "in the kitchen", "outside", "behind the desk", "upstairs",
    "from the village", "with the hat", "downstairs", "on the train", "at the window", "out there",
    "by the river", "across the street", "next to the door", "down below",
]  # fmt: skip


def contexts(count: int, random_source: random.Random) -> list[tuple[str, str]]:
    """``count`` pairs of opener and phrase, all different; the phrase is empty in the first half."""
    half = count // 2
    plain = [(opener, "") for opener in random_source.sample(OPENERS, half)]
    phrased = [(opener, phrase) for opener in SHORT_OPENERS for phrase in PHRASES]
    return plain + random_source.sample(phrased, count - half)


def pair(number: str, frame: str, opener: str, noun: str, phrase: str, verbs: tuple[str, str], rest: str) -> dict:
    """One pair in BLiMP's fields, with ours at the end."""
    cue = noun if number == "singular" else noun + "s"
    good, bad = verbs if number == "singular" else verbs[::-1]
    prefix = " ".join(part for part in (opener, cue, phrase) if part)
    start = len(opener) + 1
    return {
        "sentence_good": f"{prefix} {good} {rest}.",
        "sentence_bad": f"{prefix} {bad} {rest}.",
        "one_prefix_prefix": prefix,
        "one_prefix_word_good": good,
        "one_prefix_word_bad": bad,
        "field": "morphology",
        "linguistics_term": "subject_verb_agreement",
        "UID": "subject_verb_agreement",
        "simple_LM_method": True,
        "one_prefix_method": True,
        "two_prefix_method": False,
        "lexically_identical": False,
        "pairID": "",
        "cue": cue,
        "cue_span": [start, start + len(cue)],
        "frame": frame,
        "number": number,
    }


def make_pairs() -> list[dict]:
    """All pairs, in an order that mixes classes and numbers."""
    random_source = random.Random(SEED)
    nouns = {number: random_source.sample(NOUNS, len(NOUNS)) for number in ("singular", "plural")}
    pairs: list[dict] = []
    for frame, (verbs, rests) in CLASSES.items():
        slots = [
            (number, (singular, plural))
            for singular, plural, count in verbs
            for number in ("singular", "plural")
            for _ in range(count)
        ]
        # Number and phrase alternate, so that each verb form has as many plain sentences as phrased ones.
        chosen = contexts(len(slots), random_source)
        half = len(slots) // 2
        for index, (number, forms) in enumerate(slots):
            opener, phrase = chosen[index // 2 + half * (index % 2)]
            rest = rests[(index // 2 + index) % len(rests)]
            pairs.append(pair(number, frame, opener, nouns[number].pop(), phrase, forms, rest))
    random_source.shuffle(pairs)
    for index, entry in enumerate(pairs):
        entry["pairID"] = str(index)
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the bundled minimal pairs of subject-verb agreement.")
    parser.add_argument("--out", type=Path, default=TARGET, help=f"file to write (default: {TARGET.name} in data/)")
    out: Path = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(entry) + "\n" for entry in make_pairs())
    out.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
