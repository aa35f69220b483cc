"""Edits of agreement, and of facts that come with their own questions."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

from kn_lens.criteria.questions import EditCase, Question, shown, template_of
from kn_lens.criteria.relation_cases import CaseOptions, problem_of
from kn_lens.errors import PromptError
from kn_lens.prompts.counter_facts import CounterFact
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.groups import augment_pairs
from kn_lens.prompts.minimal_pairs import FORM_MEANING, MinimalPairs, pair_prompt
from kn_lens.prompts.prompt import MASK, Dropped, Prompt
from kn_lens.prompts.tokens import TokenResolver

Cases = tuple[list[EditCase], list[Dropped]]


def pair_cases(resolver: TokenResolver, pairs: MinimalPairs, edits: int | None, options: CaseOptions) -> Cases:
    """Edits that turn a pair's right word into its wrong one; the cue is the subject.

    Generality: the same cue and word in other sentences of the frame class. Locality: pairs of other cues, each
    judged against its own foil.

    Raises:
        PromptError: If the pairs are not asked for one of two next words.
    """
    if not resolver.masked and pairs.form != "one_prefix":
        raise PromptError(
            f"{pairs.name} has the form {pairs.form!r} for {resolver.model_name}, a causal model: "
            f"{FORM_MEANING[pairs.form]}; an edit writes one word after one prefix: take a one-prefix paradigm"
        )
    asked: list[tuple[Prompt, str | None]] = []
    dropped: list[Dropped] = []
    for pair in pairs.pairs:
        prompt = pair_prompt(pair, masked=resolver.masked)
        if isinstance(prompt, Dropped):
            dropped.append(prompt)
        elif prompt.cue is None or (not resolver.masked and prompt.form != "one_prefix"):
            reason = "no cue" if prompt.cue is None else "of another form than most pairs (one_prefix)"
            dropped.append(Dropped(text=prompt.text, reason=reason, source=prompt.source))
        else:
            asked.append((shown(prompt, masked=resolver.masked), pair.frame))
    cases: list[EditCase] = []
    seen: set[str] = set()
    order = list(range(len(asked)))
    if edits is not None:
        random.Random(options.seed).shuffle(order)
    for at in order:
        if len(cases) == edits:
            break
        prompt, frame = asked[at]
        if prompt.text in seen:
            continue
        seen.add(prompt.text)
        template = template_of(prompt, masked=resolver.masked)
        edited = _edit_question("reliability", prompt)
        problem = "cue behind the blank" if template is None else problem_of(resolver, edited)
        if template is None or problem is not None:
            dropped.append(Dropped(text=prompt.text, reason=problem or "", source=prompt.source))
            continue
        rng = random.Random(f"{options.seed}:{at}")
        fact = Fact(
            template,
            _cue(prompt),
            edited.prompt.target,
            old=prompt.target,
            relation=pairs.name,
            source=prompt.source,
        )
        questions = [edited] if "reliability" in options.criteria else []
        if "generality" in options.criteria:
            frames = [other for other in asked if other[1] == frame and other[0].text != prompt.text]
            questions += _elsewhere(resolver, asked[at], frames, options.paraphrases, rng)
        if "locality" in options.criteria:
            others = [other for other, _ in asked if _cue(other) != fact.subject]
            questions += islice(
                filter(
                    lambda question: problem_of(resolver, question) is None,
                    map(_own_question, rng.sample(others, len(others))),
                ),
                options.neighbors,
            )
        cases.append(EditCase(fact=fact, questions=tuple(questions), labels={"relation": pairs.name}))
    return cases, dropped


def fact_cases(
    resolver: TokenResolver, facts: Sequence[Fact | CounterFact], edits: int | None, options: CaseOptions
) -> Cases:
    """Edits of facts that are given with their new answers.

    Generality: a CounterFact entry's rephrasing, a fact's paraphrases. Locality: a CounterFact entry's neighbor.

    Args:
        resolver: Of the model.
        facts: Facts in order, or entries; entries, and facts where fewer are wanted, are drawn.
        edits: How many; None takes all in their order.
        options: How many questions of each kind.
    """
    order = list(range(len(facts)))
    if edits is not None:
        random.Random(options.seed).shuffle(order)
    cases: list[EditCase] = []
    dropped: list[Dropped] = []
    for at in order:
        if len(cases) == edits:
            break
        entry = facts[at]
        fact = entry.fact if isinstance(entry, CounterFact) else entry
        edited = _fact_question("reliability", fact.prompt(), fact)
        problem = problem_of(resolver, edited)
        if problem is not None:
            dropped.append(Dropped(text=fact.question, reason=problem, source=fact.source))
            continue
        others: list[Question] = []
        if isinstance(entry, CounterFact):
            others.append(_fact_question("generality", _text(entry.rephrase, fact.target, fact), fact))
            neighbor = _text(entry.neighbor, entry.neighbor_answer, fact)
            rival = fact.target if entry.neighbor_answer != fact.target else None
            others.append(Question(criterion="locality", prompt=neighbor, rival=rival, own=neighbor))
        else:
            wordings = fact.paraphrases[: options.paraphrases]
            others += [_fact_question("generality", fact.prompt(template=text), fact) for text in wordings]
        questions = [edited] if "reliability" in options.criteria else []
        for question in others:
            if question.criterion not in options.criteria:
                continue
            problem = problem_of(resolver, question)
            if problem is None:
                questions.append(question)
            else:
                reason = f"{question.criterion}: {problem}"
                dropped.append(Dropped(text=question.prompt.text, reason=reason, source=fact.source))
        labels = {"relation": fact.relation} if fact.relation else {}
        cases.append(EditCase(fact=fact, questions=tuple(questions), labels=labels))
    return cases, dropped


def _edit_question(criterion: str, prompt: Prompt) -> Question:
    """A pair's prompt, asked for its foil as the new answer."""
    assert prompt.foil is not None
    new = replace(prompt, target=prompt.foil, foil=None)
    return Question(criterion=criterion, prompt=new, rival=prompt.target, own=prompt)


def _own_question(prompt: Prompt) -> Question:
    """A pair's prompt, asked for its own right word."""
    return Question(criterion="locality", prompt=replace(prompt, foil=None), rival=prompt.foil, own=prompt)


def _elsewhere(
    resolver: TokenResolver,
    giver: tuple[Prompt, str | None],
    frames: list[tuple[Prompt, str | None]],
    count: int,
    rng: random.Random,
) -> Iterable[Question]:
    """A pair's cue and words in some other sentences of its frame class."""
    some = rng.sample(frames, min(len(frames), 4 * count))  # some cannot be asked, some become the same
    moved = next(iter(augment_pairs([giver, *some]).values()))
    others = {prompt.text: prompt for prompt in moved if prompt.text != giver[0].text}
    questions = (_edit_question("generality", prompt) for prompt in others.values())
    return islice((question for question in questions if problem_of(resolver, question) is None), count)


def _fact_question(criterion: str, prompt: Prompt, fact: Fact) -> Question:
    own = None if fact.old is None else replace(prompt, target=fact.old)
    return Question(criterion=criterion, prompt=prompt, rival=fact.old, own=own)


def _text(text: str, target: str, fact: Fact) -> Prompt:
    fields = {"group": fact.name, "source": fact.source}
    return Prompt.from_cloze(text, target, **fields) if MASK in text else Prompt(text, target=target, **fields)


def _cue(prompt: Prompt) -> str:
    start, end = prompt.cue_span() or (0, 0)
    return (prompt.prefix + prompt.suffix)[start:end]
