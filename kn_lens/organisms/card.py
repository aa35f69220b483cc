"""What an organism knows, measured on the saved model, and the model card that says so."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from kn_lens.organisms import grammar
from kn_lens.organisms.agreement_plan import pair_kind
from kn_lens.organisms.corpus import Corpus
from kn_lens.organisms.facts_plan import RELATIONS, training_templates
from kn_lens.organisms.minimal_pairs import as_row
from kn_lens.prompts.load import load_minimal_pairs, load_relation
from kn_lens.prompts.minimal_pairs import MinimalPairs, pair_of_row
from kn_lens.scoring import answers
from kn_lens.statistics import wilson_interval

SENTENCES = 400
"""New sentences of each paradigm, half of pairs that the corpus joins and half of pairs that it never does."""

Score = dict[str, Any]
"""``{"right": …, "n": …, "accuracy": …, "low": …, "high": …}``, the interval Wilson's at 95 %; None where n is 0."""

WORDINGS = ("training", "held_out", "left_out")
"""Templates that the text uses; those that no organism was trained on; those that only this text leaves out."""


def measure(model: Any, corpus: Corpus, seed: int = 0) -> dict[str, Any]:
    """Accuracy of a model on what its corpus states and on what it keeps back.

    Args:
        model: An organism, as loaded.
        corpus: The text that it was trained on.
        seed: Of the agreement sentences.

    Returns:
        ``facts`` by relation and kind of template (:data:`WORDINGS`), over facts that the text states;
        ``inverse`` (``both_ways``, ``one_way``) and ``occupation`` (``stated``, ``inferable``, ``not_inferable``)
        by kind of template; ``agreement`` by paradigm: ``seen`` and ``unseen`` pairs in new sentences, and
        ``bundled``, the pairs of ``data/minimal_pairs``.
    """
    truth = corpus.truth
    right = {name: _right(model, corpus.name, name) for name in RELATIONS}
    stated = {"P1376": truth.both_ways, "P106": truth.stated}
    facts = {name: _by_template(found, stated.get(name)) for name, found in right.items()}
    groups = {
        "inverse": ("P1376", {"both_ways": truth.both_ways, "one_way": truth.one_way}),
        "occupation": (
            "P106",
            {"stated": truth.stated, "inferable": truth.inferable, "not_inferable": truth.not_inferable},
        ),
    }
    about = {
        title: {group: _by_template(right[name], members) for group, members in sides.items()}
        for title, (name, sides) in groups.items()
    }
    agreement = {name: _agreement(model, corpus, name, seed) for name in grammar.PARADIGMS}
    return {"facts": facts, **about, "agreement": agreement}


def _right(model: Any, corpus: str, name: str) -> list[tuple[tuple[str, str], str, bool]]:
    """For every prompt of a relation: its fact, its kind of template, and whether the answer is right."""
    relation = load_relation(name)
    trained = set(training_templates(corpus, name))
    batch = relation.prompts(model)
    correct = answers(model, batch).correct.tolist()

    def kind(template: str | None) -> str:
        return "held_out" if template in relation.held_out else "training" if template in trained else "left_out"

    return [
        (relation.pairs[prompt.group or ""], kind(prompt.template), bool(one))
        for prompt, one in zip(batch.prompts, correct, strict=True)
    ]


def _by_template(
    found: Iterable[tuple[tuple[str, str], str, bool]], members: Iterable[str] | None = None
) -> dict[str, Score]:
    """The score in each kind of template, over the facts of which one side is among ``members`` (default: all)."""
    wanted = None if members is None else set(members)
    rows = [(kind, right) for fact, kind, right in found if wanted is None or wanted & set(fact)]
    return {at: score([right for kind, right in rows if kind == at]) for at in WORDINGS}


def _agreement(model: Any, corpus: Corpus, paradigm: str, seed: int) -> dict[str, Score]:
    source = random.Random(f"{seed}:{paradigm}")
    held_out = set(corpus.truth.held_out_pairs[pair_kind(paradigm)])
    pairs = grammar.pairs_of(paradigm)
    found: dict[str, Score] = {}
    for title, members in (
        ("seen", [pair for pair in pairs if pair not in held_out]),
        ("unseen", [pair for pair in pairs if pair in held_out]),
    ):
        made = [_new(corpus, paradigm, members[index % len(members)], source) for index in range(SENTENCES // 2)]
        asked = tuple(pair_of_row(as_row(entry, index), f"grammar:{index}") for index, entry in enumerate(made))
        found[title] = _pairs_right(model, MinimalPairs(name=paradigm, pairs=asked))
    found["bundled"] = _pairs_right(model, load_minimal_pairs(paradigm))
    return found


def _new(corpus: Corpus, paradigm: str, pair: grammar.Pair, source: random.Random) -> grammar.Agreement:
    """A sentence that the text does not hold."""
    drawn = grammar.sentence(paradigm, pair, source)
    while drawn.sentence_good in corpus.sentences_set:
        drawn = grammar.sentence(paradigm, pair, source)
    return drawn


def _pairs_right(model: Any, pairs: MinimalPairs) -> Score:
    return score(answers(model, pairs.prompts(model)).correct.tolist())


def score(right: list[bool]) -> Score:
    """A share with its count and Wilson's interval."""
    if not right:
        return {"right": 0, "n": 0, "accuracy": None, "low": None, "high": None}
    low, high = wilson_interval(sum(right), len(right))
    return {"right": sum(right), "n": len(right), "accuracy": sum(right) / len(right), "low": low, "high": high}
