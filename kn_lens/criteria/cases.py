"""Edits to make, and the questions that judge them, from any data set."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from kn_lens.criteria.pair_cases import fact_cases, pair_cases
from kn_lens.criteria.questions import CRITERIA, EditCase, EditCases, Question
from kn_lens.criteria.related import inverse_of, synonyms_of, with_inverse, with_synonyms
from kn_lens.criteria.relation_cases import CaseOptions, RelationCases
from kn_lens.criteria.scores import GATED, ask
from kn_lens.errors import PromptError, SettingsError, near_matches
from kn_lens.models.kind import model_name
from kn_lens.organisms.corpus import corpus_of, load_corpus
from kn_lens.prompts.counter_facts import CounterFact, CounterFacts
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.load import data_hash, load_data
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import Dropped, count_reasons
from kn_lens.prompts.relations import Relation
from kn_lens.prompts.tokens import TokenResolver

__all__ = ["CRITERIA", "EditCase", "EditCases", "EditData", "Question", "applicable_criteria", "edit_cases"]

NOT_KNOWN = "no probe that the unedited model passes"
"""Why a fact is left out where only known ones are asked for."""

EditData = Relation | MinimalPairs | CounterFacts | Sequence[Fact]
"""What edits can be drawn from."""


def edit_cases(
    model: Any,
    data: EditData | str,
    *,
    edits: int | None = None,
    seed: int = 0,
    criteria: Iterable[str] | None = None,
    known: bool = False,
    paraphrases: int = 4,
    neighbors: int = 5,
    inverse_templates: int = 3,
) -> EditCases:
    """Facts to edit, each with the questions of every criterion that the data can be asked.

    Of a relation each drawn fact gets another of its objects, whether or not the model knows it. Its wordings are
    shared out: the first for the edit, the held-out ones and some others for generality, and only the rest are the
    fact's paraphrases, which an editor may look at. Facts that are given are asked in their own paraphrases, so that
    an editor which looks at these (neurons, heads) is asked what it saw. Of minimal pairs the foil is the new answer.

    Args:
        model: A loaded model, unedited.
        data: A relation, minimal pairs (for causal models of the one-prefix form), CounterFact entries, or the name
            that :func:`kn_lens.load_data` knows any of these by; or facts.
        edits: How many, drawn with ``seed``; None (default) takes all.
        seed: Of every draw.
        criteria: Some of :data:`CRITERIA`; ``"symmetry"`` brings ``"symmetry_old"``. By default all that apply.
        known: Only facts of which the unedited model passes a probe of symmetry or synonymy, so that each edit is
            scored on one of them; the others are counted in ``dropped``. Default False.
        paraphrases: Questions of generality for each fact, at most.
        neighbors: Questions of locality for each fact, at most: half of them about the same subject in other bundled
            relations, where there are any, the others about other subjects.
        inverse_templates: Wordings of the inverse and of the synonymous question, at most.

    Raises:
        SettingsError: If the data is none of these, a criterion is unknown or one that this data cannot be asked, or a
            number is negative.
        PromptError: If no fact can be asked of the model, with the reasons.
    """
    counts = {
        "edits": edits,
        "paraphrases": paraphrases,
        "neighbors": neighbors,
        "inverse_templates": inverse_templates,
    }
    for name, value in counts.items():
        if value is not None and value < (1 if name == "edits" else 0):
            raise SettingsError(f"{name} is {value}; give {'at least 1' if name == 'edits' else '0 or more'}")
    data = load_data(data) if isinstance(data, str) else _checked(data)
    chosen = chosen_criteria(data, criteria)
    options = CaseOptions(
        criteria=chosen, seed=seed, paraphrases=paraphrases, neighbors=neighbors, inverse_templates=inverse_templates
    )
    if known and not set(GATED) & set(chosen):
        raise SettingsError(
            f"known=True takes facts that the model passes a probe of {' or '.join(GATED)} of, and {_name(data)} is "
            f"asked none; leave it out, or take one of {', '.join([*with_inverse(), *with_synonyms()])}"
        )
    resolver = TokenResolver(model)
    if isinstance(data, Relation):
        cases, dropped = _of_relation(model, resolver, data, edits, options, known=known)
    elif isinstance(data, MinimalPairs):
        cases, dropped = pair_cases(resolver, data, edits, options)
    else:
        facts = data.entries if isinstance(data, CounterFacts) else data
        cases, dropped = fact_cases(resolver, facts, edits, options)
    if not cases:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in count_reasons(dropped).items())
        raise PromptError(
            f"{model_name(model)} can be asked none of the facts of {_name(data)} ({reasons or 'none given'})"
        )
    return EditCases(
        cases=tuple(cases),
        dropped=tuple(dropped),
        name=_name(data),
        data_hash=_hash(data),
        criteria=chosen,
        settings={"edits": edits, "known": known, **asdict(options)},
    )


def _checked(data: Any) -> EditData:
    """A data set as it is; of facts, or of one fact, a tuple.

    Raises:
        SettingsError: If it is none of these.
    """
    if isinstance(data, (Relation, MinimalPairs, CounterFacts)):
        return data
    facts = tuple(data) if isinstance(data, Iterable) else (data,)
    wrong = next((one for one in facts if not isinstance(one, (Fact, CounterFact))), None)
    if wrong is not None:
        raise SettingsError(
            f"edits cannot be drawn from a {type(wrong).__name__}; give a relation, minimal pairs, CounterFact "
            f"entries, the name of one of these, or facts"
        )
    return facts


def applicable_criteria(data: EditData) -> tuple[str, ...]:
    """The criteria that a data set can be asked."""
    return chosen_criteria(data, None)


def _of_relation(
    model: Any, resolver: TokenResolver, relation: Relation, edits: int | None, options: CaseOptions, *, known: bool
) -> tuple[list[EditCase], list[Dropped]]:
    corpus = corpus_of(model_name(model))
    maker = RelationCases(
        resolver,
        relation,
        options,
        inverse_of(relation),
        synonyms_of(relation),
        None if corpus is None else load_corpus(corpus).truth,
    )
    names = list(relation.facts)
    if edits is not None:
        random.Random(options.seed).shuffle(names)
    cases: list[EditCase] = []
    for name in names:
        if len(cases) == edits:
            break
        case = maker.case(name)
        if case is None:
            continue
        if known and not _passes_a_probe(model, case):
            maker.dropped.append(Dropped(text=case.fact.name, reason=NOT_KNOWN, source=case.fact.source))
        else:
            cases.append(case)
    return cases, maker.dropped


def _passes_a_probe(model: Any, case: EditCase) -> bool:
    gated = [question for question in case.questions if question.criterion in GATED]
    return bool((ask(model, gated, own=True).known == 1).any()) if gated else False


def chosen_criteria(data: EditData, criteria: Iterable[str] | None) -> tuple[str, ...]:
    """The criteria that are asked of a data set, in their order; None takes all that apply.

    Raises:
        SettingsError: If one is unknown, or the data cannot be asked it.
    """
    lacking = _lacking(data)
    if criteria is None:
        return tuple(name for name in CRITERIA if name not in lacking)
    wanted = {criteria} if isinstance(criteria, str) else set(criteria)
    for name in sorted(wanted):
        if name not in CRITERIA:
            near = near_matches(name, CRITERIA)
            raise SettingsError(f"there is no criterion {name!r}; take some of {', '.join(CRITERIA)}.{near}")
        if name in lacking:
            raise SettingsError(lacking[name])
    if not wanted:
        raise SettingsError(f"criteria is empty; take some of {', '.join(CRITERIA)}")
    wanted |= {"symmetry_old"} if "symmetry" in wanted else set()
    return tuple(name for name in CRITERIA if name in wanted)


def _lacking(data: EditData) -> dict[str, str]:
    """The criteria that a data set cannot be asked, and why, with the data that can be."""
    relation, name = data if isinstance(data, Relation) else None, _name(data)
    lacking: dict[str, str] = {}
    if relation is None or inverse_of(relation) is None:
        having = ", ".join(with_inverse())
        lacking["symmetry"] = f"{name} has no inverse relation, which symmetry asks for; these have one: {having}"
        lacking["symmetry_old"] = lacking["symmetry"]
    if relation is None or synonyms_of(relation) is None:
        having = ", ".join(with_synonyms())
        lacking["synonymy"] = f"the objects of {name} have no synonyms, which synonymy asks for; these have: {having}"
    if not isinstance(data, (Relation, MinimalPairs, CounterFacts)):
        right = "give a relation, minimal pairs or CounterFact entries"
        lacking["locality"] = f"facts by themselves have no neighbors, which locality asks for; {right}"
    return lacking


def _name(data: EditData) -> str:
    return data.name if isinstance(data, (Relation, MinimalPairs, CounterFacts)) else "facts"


def _hash(data: EditData) -> str | None:
    if isinstance(data, (Relation, MinimalPairs, CounterFacts)):
        return data_hash(data)
    return hashlib.sha256(repr(tuple(data)).encode()).hexdigest()
