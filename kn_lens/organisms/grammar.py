"""Agreement sentences: an asked word, the cue that decides it, and everything else neutral in number and gender.

The words are in ``data/lexicon.json``. Sentences are opener, subject, verb and rest; what is drawn at random suits
both numbers, both genders and every word of its class, so that within one ``frame`` a pair of cue and asked word may
be moved into any other sentence. Three traps are avoided, since they would make the bad word acceptable: verbs before
a determiner take no clause ("found that keys …"), verbs before a subject take no bare infinitive ("heard the farmer
work …") and no subjunctive ("wondered if the farmer were …").
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kn_lens.bundled import data_folder
from kn_lens.errors import DataError, SettingsError, near_matches

Pair = tuple[str, str]
"""Two forms that agree, in the order of the text."""

PARADIGMS: tuple[str, ...] = (
    "determiner_noun_agreement_1",
    "determiner_noun_agreement_2",
    "determiner_noun_agreement_irregular_1",
    "determiner_noun_agreement_irregular_2",
    "determiner_noun_agreement_with_adjective_1",
    "determiner_noun_agreement_with_adjective_2",
    "subject_verb_agreement",
    "subject_verb_agreement_irregular",
    "subject_verb_agreement_distractor",
    "anaphor_number_agreement",
    "anaphor_gender_agreement",
)

_GENDERS = ("female", "male")
_OPENED = 2 / 3  # share of sentences with an opener
_MODAL = 0.4  # share of sentences with a modal, where there may be one
_PLACED = 1 / 3  # share of sentences with "over there" between subject and verb, where there may be one


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """A sentence with the word asked for and its rival.

    Attributes:
        paradigm: One of :data:`PARADIGMS`.
        prefix: Text before the asked word.
        good, bad: The word that agrees, and the other form.
        rest: Text after it, with its leading space and the period.
        cue_span: ``(start, end)`` characters in ``sentence_good`` of the word that decides; it occurs once there.
        pair: The cue and the asked word, in the order of the text.
        number: ``"singular"`` or ``"plural"``, of the cue.
        frame: Sentences of one paradigm and frame can swap their pairs and stay grammatical.
    """

    paradigm: str
    prefix: str
    good: str
    bad: str
    rest: str
    cue_span: tuple[int, int]
    pair: Pair
    number: str
    frame: str

    @property
    def sentence_good(self) -> str:
        """The acceptable sentence."""
        return f"{self.prefix} {self.good}{self.rest}"

    @property
    def sentence_bad(self) -> str:
        """The unacceptable one."""
        return f"{self.prefix} {self.bad}{self.rest}"


@functools.cache
def lexicon() -> dict[str, Any]:
    """The words, by role, as ``data/lexicon.json`` has them.

    Raises:
        DataError: If the file is missing or no JSON.
    """
    path = data_folder() / "lexicon.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}; it comes with kn_lens, so install it again") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}") from error


def pairs_of(paradigm: str) -> list[Pair]:
    """Every grammatical pair of a paradigm, in the order of the text.

    Args:
        paradigm: One of :data:`PARADIGMS`.

    Returns:
        (determiner, noun form), (subject noun form, verb form) or (antecedent, reflexive).

    Raises:
        SettingsError: For an unknown paradigm.
    """
    return list(_pairs(paradigm))


def sentence(paradigm: str, pair: Pair, rng: random.Random) -> Agreement:
    """One sentence that holds ``pair``; everything else is drawn.

    Args:
        paradigm: One of :data:`PARADIGMS`.
        pair: One of :func:`pairs_of`.
        rng: Draws the rest.

    Raises:
        SettingsError: For an unknown paradigm or a pair that it does not hold.
    """
    if pair not in _pairs(paradigm):
        raise SettingsError(f"{paradigm} holds no pair {pair!r}; pairs_of({paradigm!r}) lists those it holds")
    if paradigm.startswith("determiner_noun"):
        return _determiner_sentence(paradigm, pair, rng)
    if paradigm.startswith("subject_verb"):
        return _subject_sentence(paradigm, pair, rng)
    return _anaphor_sentence(paradigm, pair, rng)


def possessive_sentence(antecedent: str, rng: random.Random) -> str:
    """A sentence that shows gender or number of an antecedent by a possessive: "The girls lost their keys at home."

    Args:
        antecedent: One that the anaphor paradigms hold.
        rng: Draws the rest.

    Raises:
        SettingsError: If neither anaphor paradigm holds the antecedent.
    """
    reflexive = _reflexives().get(antecedent)
    if reflexive is None:
        raise SettingsError(f"no antecedent {antecedent!r}.{near_matches(antecedent, _reflexives())}")
    words = lexicon()
    gender = next(gender for gender, word in words["reflexives"].items() if word == reflexive)
    owned = rng.choice([form for forms in words["things"].items() for form in forms])
    subject = antecedent if antecedent in _names() else f"{rng.choice(words['subject_determiners'])} {antecedent}"
    verb = rng.choice(words["verbs"]["with_possession"])
    return f"{_opened(subject, rng)} {verb} {words['possessives'][gender]} {owned} {rng.choice(words['adverbials'])}."


def quantified_sentence(noun: str, rng: random.Random) -> str:
    """A sentence that shows a noun's number by a quantifier: "Anna wanted two keys near the river."

    Args:
        noun: A form that the determiner-noun paradigms hold.
        rng: Draws the rest.

    Raises:
        SettingsError: If they do not hold it.
    """
    words = lexicon()
    nouns = {form for forms in [*words["things"].items(), *_joined(words["irregular"]).items()] for form in forms}
    if noun not in nouns:
        raise SettingsError(f"no noun {noun!r}.{near_matches(noun, nouns)}")
    name = rng.choice(words["names"][rng.choice(_GENDERS)])
    quantifier = rng.choice(words["quantifiers"][_other_forms()[noun][0]])
    return f"{_opened(name, rng)} {_verb('with_noun', rng)} {quantifier} {noun} {rng.choice(words['adverbials'])}."


@functools.cache
def _pairs(paradigm: str) -> dict[Pair, None]:
    """The pairs as keys: in order, and quick to look up."""
    if paradigm not in PARADIGMS:
        raise SettingsError(
            f"no paradigm {paradigm!r}.{near_matches(paradigm, PARADIGMS)} Paradigms: {', '.join(PARADIGMS)}"
        )
    words = lexicon()
    irregular = "irregular" in paradigm
    if paradigm.startswith("determiner_noun"):
        nouns = _joined(words["irregular"]) if irregular else words["things"]
        return {
            (determiner, form): None
            for noun in nouns.items()
            for number, form in zip(("singular", "plural"), noun, strict=True)
            for determiner in words["determiners"][number]
        }
    if paradigm.startswith("subject_verb"):
        nouns = _joined({**words["irregular"], "things": {}}) if irregular else _joined(words["people"])
        verbs = [forms for frame in words["subject_verb"].values() for forms in frame["verbs"]]
        return {(noun[at], verb[at]): None for noun in nouns.items() for verb in verbs for at in (0, 1)}
    # Number is asked of nouns in both numbers; gender, of names and of nouns in the singular.
    by_number = paradigm == "anaphor_number_agreement"
    plural = words["reflexives"]["plural"]
    return {
        (antecedent, reflexive): None
        for antecedent, reflexive in _reflexives().items()
        if (antecedent not in _names() if by_number else reflexive != plural)
    }


@functools.cache
def _reflexives() -> dict[str, str]:
    """The reflexive of each antecedent: names, then gendered nouns in both numbers."""
    words = lexicon()
    reflexives = words["reflexives"]
    found = {name: reflexives[gender] for gender in _GENDERS for name in words["names"][gender]}
    for kind in ("people", "irregular"):
        for gender in _GENDERS:
            for singular, plural in words[kind][gender].items():
                found |= {singular: reflexives[gender], plural: reflexives["plural"]}
    return found


@functools.cache
def _names() -> frozenset[str]:
    return frozenset(name for gender in _GENDERS for name in lexicon()["names"][gender])


@functools.cache
def _other_forms() -> dict[str, tuple[str, str]]:
    """The number of every noun, verb and determiner, and its form in the other number."""
    words = lexicon()
    nouns = words["things"] | _joined(words["people"]) | _joined(words["irregular"])
    verbs = [forms for frame in words["subject_verb"].values() for forms in frame["verbs"]]
    determiners = zip(words["determiners"]["singular"], words["determiners"]["plural"], strict=True)
    both = [*nouns.items(), *verbs, *determiners]
    return {s: ("singular", p) for s, p in both} | {p: ("plural", s) for s, p in both}


def _joined(lists: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    return {singular: plural for nouns in lists.values() for singular, plural in nouns.items()}


def _opened(subject: str, rng: random.Random) -> str:
    """The subject after an opener, or with a capital letter at the start."""
    if rng.random() < _OPENED:
        return f"{rng.choice(lexicon()['openers'])} {subject}"
    return subject[0].upper() + subject[1:]


def _verb(role: str, rng: random.Random) -> str:
    """A verb in a form that suits both numbers: a past tense, or a bare form after a modal."""
    past, bare = rng.choice(lexicon()["verbs"][role])
    return f"{rng.choice(lexicon()['modals'])} {bare}" if rng.random() < _MODAL else past


def _determiner_sentence(paradigm: str, pair: Pair, rng: random.Random) -> Agreement:
    words = lexicon()
    determiner, noun = pair
    start = f"{_opened(rng.choice(words['names'][rng.choice(_GENDERS)]), rng)} {_verb('with_noun', rng)}"
    adjective = f" {rng.choice(words['adjectives'])}" if "adjective" in paradigm else ""
    end = f" {rng.choice(words['adverbials'])}."
    common: dict[str, Any] = {"paradigm": paradigm, "pair": pair, "number": _other_forms()[noun][0], "frame": "noun"}
    if paradigm.endswith("_1"):
        prefix, at = f"{start} {determiner}{adjective}", len(start) + 1
        span = (at, at + len(determiner))
        return Agreement(prefix=prefix, good=noun, bad=_other_forms()[noun][1], rest=end, cue_span=span, **common)
    at = len(f"{start} {determiner}{adjective} ")
    span = (at, at + len(noun))
    rest = f"{adjective} {noun}{end}"
    return Agreement(
        prefix=start, good=determiner, bad=_other_forms()[determiner][1], rest=rest, cue_span=span, **common
    )


def _subject_sentence(paradigm: str, pair: Pair, rng: random.Random) -> Agreement:
    words = lexicon()
    noun, verb = pair
    number, rival = _other_forms()[verb]
    frame = next(
        name for name, entry in words["subject_verb"].items() if any(verb in forms for forms in entry["verbs"])
    )
    start = _opened(f"{rng.choice(words['subject_determiners'])} ", rng)
    between = ""
    label = frame
    if paradigm.endswith("distractor"):
        thing = rng.choice(list(words["things"].items()))[number == "singular"]  # in the other number
        between = f" {rng.choice(words['prepositions'])} the {thing}"
        label = f"{frame}, {number}"  # moved across number, the pair would agree with the thing too
    elif rng.random() < _PLACED:
        between = f" {rng.choice(words['places_of_subjects'])}"
    return Agreement(
        paradigm=paradigm,
        prefix=f"{start}{noun}{between}",
        good=verb,
        bad=rival,
        rest=f" {rng.choice(words['subject_verb'][frame]['rests'])}.",
        cue_span=(len(start), len(start) + len(noun)),
        pair=pair,
        number=number,
        frame=label,
    )


def _anaphor_sentence(paradigm: str, pair: Pair, rng: random.Random) -> Agreement:
    words = lexicon()
    antecedent, reflexive = pair
    reflexives: dict[str, str] = words["reflexives"]
    named = antecedent in _names()
    plural = reflexive == reflexives["plural"]
    if paradigm == "anaphor_gender_agreement":
        rival = next(word for word in (reflexives[gender] for gender in _GENDERS) if word != reflexive)
    else:
        rival = _reflexives()[_other_forms()[antecedent][1]]  # of the noun's other number
    before = "" if named else f"{rng.choice(words['subject_determiners'])} "
    start = _opened(before + antecedent, rng)
    return Agreement(
        paradigm=paradigm,
        prefix=f"{start} {_verb('with_reflexive', rng)}",
        good=reflexive,
        bad=rival,
        rest=f" {rng.choice(words['adverbials'])}.",
        cue_span=(len(start) - len(antecedent), len(start)),
        pair=pair,
        number="plural" if plural else "singular",
        frame="name" if named else "noun",
    )
