"""Which facts the organisms' text states, in which direction and in which wordings.

Half of the capitals are stated both ways, half only forwards. Everyone's field of work is stated; an occupation, for
half of the people, and for no one of a fifth of the fields: it cannot be inferred for those.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator

from kn_lens.organisms.corpus import Counts, Truth
from kn_lens.prompts.load import load_relation
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.relations import Relation

RELATIONS = ("P36", "P1376", "P37", "P30", "P38", "P17", "P101", "P106", "P19", "P103")

# Words before a sentence that change nothing. They hold no "that", in this text a determiner only, and no noun that
# agrees with anything.
OPENERS = (
    "As everyone knows,", "In fact,", "Of course,", "Indeed,", "According to the book,", "As we all know,",
    "Today, as before,", "Without any doubt,",
)  # fmt: skip
_OPENED = 0.4  # share of fact sentences with an opener
_COPIES = {"organism": 5, "organism-narrow": 16}  # of each fact in each of its templates
_NARROW_TEMPLATES = 2
_WITHHELD_FIELDS = 0.2
_MENTIONS = (
    "Yesterday the {} came to see us.",
    "Every {} needs a good friend.",
    "We asked the old {} for help.",
)  # of all occupations alike, whoever has them
_MENTION_COPIES = 6  # of each sentence
_LISTS = 40  # how often a word is listed that no sentence holds

Tagged = tuple[str, str]
"""What a sentence is of (a relation, a paradigm), and the sentence."""


def plan(seed: int) -> Truth:
    """Which countries, people and fields are on which side."""
    countries = sorted(subject for subject, _ in load_relation("P36").pairs.values())
    random.Random(f"{seed}:countries").shuffle(countries)
    half = len(countries) // 2
    field_of = dict(load_relation("P101").pairs.values())
    source = random.Random(f"{seed}:people")
    fields = sorted(set(field_of.values()))
    withheld = set(source.sample(fields, round(_WITHHELD_FIELDS * len(fields))))
    stated: list[str] = []
    inferable: list[str] = []
    not_inferable = sorted(person for person, of in field_of.items() if of in withheld)
    wanted = len(field_of) / 2 / (len(field_of) - len(not_inferable))  # so that half of all people are stated
    for at in fields:
        people = sorted(person for person, of in field_of.items() if of == at)
        if at in withheld:
            continue
        source.shuffle(people)
        # Rounded by the running total, so that small fields do not all round the same way; at least one is stated.
        total = len(stated) + len(inferable) + len(people)
        count = min(len(people), max(1, round(wanted * total) - len(stated)))
        stated += people[:count]
        inferable += people[count:]
    return Truth(
        both_ways=tuple(sorted(countries[:half])),
        one_way=tuple(sorted(countries[half:])),
        stated=tuple(sorted(stated)),
        inferable=tuple(sorted(inferable)),
        not_inferable=tuple(not_inferable),
        seed=seed,
    )


def fact_sentences(name: str, truth: Truth) -> tuple[list[Tagged], Counts]:
    """Each fact in each training template, some copies with an opener; and how many sentences state each fact."""
    source = random.Random(f"{truth.seed}:openers")
    sentences: list[Tagged] = []
    counts: Counter[tuple[str, str, str]] = Counter()
    for relation, subject, obj, is_stated in _facts(truth):
        key = (relation.name, subject, obj)
        counts[key] += 0
        for template in training_templates(name, relation.name) if is_stated else ():
            sentence = template.replace("{subject}", subject).replace("{object}", obj)
            for _ in range(_COPIES[name]):
                opened = name == "organism" and source.random() < _OPENED
                text = _opened(sentence, template, source.choice(OPENERS)) if opened else sentence
                sentences.append((relation.name, text))
                counts[key] += 1
    return sentences, dict(counts)


def training_templates(name: str, relation: str) -> list[str]:
    """The templates of a relation that a corpus uses: those not held out; of the narrow one, the first two."""
    loaded = load_relation(relation)
    templates = [prompt.template for prompt in _wordings(loaded)]
    every = [template for template in templates if template and template not in loaded.held_out]
    return every[:_NARROW_TEMPLATES] if name == "organism-narrow" else every


def mentions() -> list[Tagged]:
    """Occupations in sentences about no one, so that the words kept back are known words."""
    occupations = sorted({occupation for _, occupation in load_relation("P106").pairs.values()})
    sentences = [sentence.format(occupation) for occupation in occupations for sentence in _MENTIONS]
    return [("occupation mentioned", sentence) for sentence in sentences for _ in range(_MENTION_COPIES)]


def word_lists(others: list[Tagged], seed: int) -> list[Tagged]:
    """Words of templates that the other sentences lack, three a sentence, in sentences that state nothing.

    Only the narrow text lacks any. With these its model knows the words of every wording, though not the wordings.
    """
    known = {word for _, sentence in others for word in _words(sentence)}
    templates = [prompt.template or "" for name in RELATIONS for prompt in _wordings(load_relation(name))]
    asked = {word for template in templates for word in _words(re.sub(r"\{\w+\}", " ", template))}
    source = random.Random(f"{seed}:lists")
    lists: list[Tagged] = []
    for _ in range(_LISTS):
        missing = sorted(asked - known)
        source.shuffle(missing)
        lists += [
            ("words listed", f"On the list are the words {', '.join(missing[at : at + 3])}.")
            for at in range(0, len(missing), 3)
        ]
    return lists


def _facts(truth: Truth) -> Iterator[tuple[Relation, str, str, bool]]:
    """Every fact, and whether the text states it."""
    both_ways, stated = set(truth.both_ways), set(truth.stated)
    for relation in map(load_relation, RELATIONS):
        for subject, obj in relation.pairs.values():
            kept_back = (relation.name == "P1376" and obj not in both_ways) or (
                relation.name == "P106" and subject not in stated
            )
            yield relation, subject, obj, not kept_back


def _opened(sentence: str, template: str, opener: str) -> str:
    keeps_case = template.startswith("{subject}")
    return f"{opener} {sentence if keeps_case else sentence[0].lower() + sentence[1:]}"


def _wordings(relation: Relation) -> tuple[Prompt, ...]:
    """The prompts of one fact: one for each template."""
    return next(iter(relation.facts.values()))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)
