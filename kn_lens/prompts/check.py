"""Every problem in a folder of data, with file and line: ``python -m kn_lens.prompts.check data/``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from kn_lens.errors import DataError
from kn_lens.prompts.check_pairs import check_pairs
from kn_lens.prompts.jsonl import Problem, Problems, Report, read_json, read_jsonl
from kn_lens.prompts.relations import (
    StatedFact,
    Template,
    begins,
    parse_facts,
    parse_templates,
    read_about,
    read_relation,
    rivalry,
    rivals,
    templates_path,
)

FEWEST_TEMPLATES, HELD_OUT = 6, 2
FIELD, OCCUPATION = "P101", "P106"
"""The relations that ``synonyms.json`` connects: each person's occupation is named after the field."""

_WORD = re.compile(r"[A-Za-z]+")


class _Relation(NamedTuple):
    path: Path
    facts: list[StatedFact]
    templates: list[Template]


def check_data(folder: str | Path) -> list[Problem]:
    """All problems of the relations, minimal pairs and synonyms in a folder; none for files that are not there.

    Args:
        folder: Holds ``relations/``, ``minimal_pairs/`` and ``synonyms.json``, or some of them.

    Raises:
        DataError: If it holds none of them.
    """
    return _examine(Path(folder))[0]


def _examine(folder: Path) -> tuple[list[Problem], dict[str, str]]:
    """The problems, and what was counted by relation and paradigm."""
    report = Problems()
    relation_paths = [path for path in sorted((folder / "relations").glob("*.jsonl")) if "." not in path.stem]
    pair_paths = sorted((folder / "minimal_pairs").glob("*.jsonl"))
    synonyms = folder / "synonyms.json"
    if not relation_paths and not pair_paths and not synonyms.is_file():
        raise DataError(f"{folder}: no relations/*.jsonl, minimal_pairs/*.jsonl or synonyms.json to check")
    relations = {path.stem: _check_relation(path, report) for path in relation_paths}
    _check_known_words(relations.values(), report)
    _check_questions(relations.values(), report)
    _check_about(folder / "relations" / "relations.json", relations, report)
    counts = {name: _count(relation) for name, relation in relations.items()}
    for path in pair_paths:
        counts[path.stem] = f"{check_pairs(path, report)} pairs"
    if synonyms.is_file():
        counts["synonyms"] = f"{_check_synonyms(synonyms, relations, report)} pairs of words"
    return report, counts


def _count(relation: _Relation) -> str:
    causal = [template for template in relation.templates if template.causal]
    held_out = sum(template.held_out for template in relation.templates)
    templates = f"{len(causal)} causal and {len(relation.templates) - len(causal)} masked templates"
    return f"{len(relation.facts)} facts, {templates}, {held_out} held out"


# -- relations ----------------------------------------------------------------------------------------------------


def _check_relation(path: Path, report: Problems) -> _Relation:
    before = len(report)
    beside = templates_path(path)
    facts = parse_facts(read_jsonl(path, ("subject", "object"), report), report)
    sound = len(report)
    templates = parse_templates(read_jsonl(beside, ("template",), report) if beside.is_file() else [], report)
    if not beside.is_file():
        report(str(beside), f"no such file; write the templates of {path.name} into it")
    elif len(report) == sound:  # else some are left out, and counts would mislead
        _check_counts(str(beside), templates, report)
    for template, other in rivals(templates):
        report(template.where, rivalry(template, other))
    if len(report) == before:
        try:
            read_relation(path)
        except DataError as error:
            report.of(error)
    for fact in facts:
        if not _WORD.fullmatch(fact.object):
            report(fact.where, f"object {fact.object!r} is not one word of the letters A to Z; respell or remove it")
    for template in templates:
        if template.text.index("{subject}") > template.text.index("{object}"):
            report(template.where, f"{{object}} stands before {{subject}} in {template.text!r}; put the subject first")
    return _Relation(path, facts, templates)


def _check_counts(where: str, templates: list[Template], report: Report) -> None:
    if len(templates) < FEWEST_TEMPLATES:
        report(where, f"{len(templates)} templates; write at least {FEWEST_TEMPLATES}")
    causal = sum(template.causal for template in templates)
    if causal == 0:
        report(where, "no causal template; write some that end in {object}")
    if causal == len(templates):
        report(where, "no masked template; write some in which words follow {object}")
    held_out = sum(template.held_out for template in templates)
    if held_out != HELD_OUT:
        report(where, f'{held_out} templates with "held_out": true; mark exactly {HELD_OUT}')


def _check_known_words(relations: Iterable[_Relation], report: Report) -> None:
    """Held-out templates must test a new wording, not new words."""
    templates = [template for relation in relations for template in relation.templates]
    known = {word for template in templates if not template.held_out for word in _words(template.text)}
    for template in templates:
        new = [word for word in dict.fromkeys(_words(template.text)) if word not in known]
        if template.held_out and new:
            words = ", ".join(map(repr, new))
            report(template.where, f"{words} of a held-out template stands in no training template; use known words")


def _words(template: str) -> list[str]:
    return re.findall(r"'s\b|\w+", re.sub(r"\{\w+\}", " ", template))


def _check_questions(relations: Iterable[_Relation], report: Report) -> None:
    """With subjects filled in, no causal question may begin another, in any relation."""
    relations = list(relations)
    questions = sorted(
        (template.question.replace("{subject}", fact.subject), template.where)
        for relation in relations
        for template in relation.templates
        if template.causal
        for fact in relation.facts
    )
    open_: list[tuple[str, str]] = []  # those that begin the question at hand: sorting puts them right before it
    seen = {frozenset((one.where, other.where)) for entry in relations for one, other in rivals(entry.templates)}
    for text, where in questions:
        while open_ and not text.startswith(open_[-1][0]):
            open_.pop()
        for other, elsewhere in open_:
            pair = frozenset((where, elsewhere))
            if begins(other, text) and pair not in seen:
                seen.add(pair)
                report(where, f"asks {text!r}, which begins with {other!r} of {elsewhere}; reword one")
        open_.append((text, where))


def _check_about(path: Path, relations: dict[str, _Relation], report: Problems) -> None:
    if not path.is_file():
        return
    try:
        about = read_about(path)
    except DataError as error:
        report.of(error)
        return
    for name, relation in relations.items():
        if name not in about:
            report(str(path), f'{name} is missing; write "{name}": {{"name": …, "description": …, "inverse": …}}')
            continue
        where = _key(path, name)
        for label in ("name", "description"):
            if not isinstance(about[name].get(label), str) or not about[name][label].strip():
                report(where, f"{name} has no {label!r}; give it as a text")
        inverse = about[name].get("inverse")
        if inverse is None:
            continue
        if not isinstance(inverse, str) or inverse not in about:
            report(where, f"the inverse of {name} is {inverse!r}, no relation of this file; name one, or write null")
        elif inverse in relations:
            if about[inverse].get("inverse") != name:
                report(_key(path, inverse), f"{inverse} is the inverse of {name}; give it the inverse {name!r} too")
            back = {(fact.object, fact.subject) for fact in relations[inverse].facts}
            for fact in relation.facts:
                if (fact.subject, fact.object) not in back:
                    missing = f"{fact.object} → {fact.subject}"
                    report(fact.where, f"{fact.name!r} lacks its inverse; add {missing!r} to {relations[inverse].path}")


# -- synonyms -----------------------------------------------------------------------------------------------------


def _check_synonyms(path: Path, relations: dict[str, _Relation], report: Problems) -> int:
    try:
        pairs = read_json(path, pairs=True)
    except DataError as error:
        report.of(error)
        return 0
    whole = isinstance(pairs, list) and all(isinstance(pair, tuple) for pair in pairs)
    if not whole or not all(isinstance(word, str) and _WORD.fullmatch(word) for pair in pairs for word in pair):
        report(str(path), 'expected {"physics": "physicist", …}, one word of the letters A to Z each')
        return 0
    for index, side in ((0, "the field"), (1, "the occupation")):
        words = [pair[index] for pair in pairs]
        for word in dict.fromkeys(words):
            if words.count(word) > 1:
                others = ", ".join(repr(pair[1 - index]) for pair in pairs if pair[index] == word)
                where = _key(path, pairs[words.index(word)][0])
                report(where, f"{side} {word!r} is paired with {others}; pair each word once")
    if FIELD in relations and OCCUPATION in relations:
        _check_occupations(dict(pairs), relations, report)
    return len(pairs)


def _check_occupations(synonyms: dict[str, str], relations: dict[str, _Relation], report: Problems) -> None:
    fields, occupations = ({fact.subject: fact for fact in relations[name].facts} for name in (FIELD, OCCUPATION))
    for here, there, other in ((fields, occupations, OCCUPATION), (occupations, fields, FIELD)):
        for person, fact in here.items():
            if person not in there:
                report(fact.where, f"{person!r} is missing in {relations[other].path}; add the same person there")
    for person, fact in fields.items():
        if fact.object not in synonyms:
            report(fact.where, f"the field {fact.object!r} is missing in synonyms.json; add its occupation")
        elif person in occupations and occupations[person].object != synonyms[fact.object]:
            found = occupations[person]
            right = f"by {fact.where} and synonyms.json it is {synonyms[fact.object]!r}"
            report(found.where, f"{person!r} has the occupation {found.object!r}; {right}")


def _key(path: Path, key: str) -> str:
    """``"file:line"`` of a key in a JSON file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if re.search(rf"{re.escape(json.dumps(key))}\s*:", line):
            return f"{path}:{number}"
    return str(path)


# -- command line -------------------------------------------------------------------------------------------------


def main(
    folder: Annotated[
        Path, typer.Argument(help="Folder with relations/, minimal_pairs/, synonyms.json, or some of them.")
    ],
) -> None:
    """Check data files: counts if all is well; else one line per problem, and exit code 2."""
    try:
        problems, counts = _examine(folder)
    except DataError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    for problem in problems:
        typer.echo(str(problem))
    if problems:
        raise typer.Exit(2)
    width = max(map(len, counts))
    for name, count in counts.items():
        typer.echo(f"{name:<{width}}  {count}")


if __name__ == "__main__":
    typer.run(main)
