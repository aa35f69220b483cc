"""Facts: a relation's subjects and objects, put into its templates."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kn_lens.errors import DataError, SettingsError, near_matches
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.groups import gather_groups
from kn_lens.prompts.jsonl import Report, line_of, read_json, read_jsonl, stop
from kn_lens.prompts.prompt import Prompt

log = logging.getLogger(__name__)

Rows = Iterable[tuple[str, dict[str, Any]]]
TemplateChoice = Literal["all", "training", "held_out"]

_SLOT = re.compile(r"\{([^{}]*)\}")
_SLOTS = ("subject", "object")
_CHOICES = ("all", "training", "held_out")


@dataclass(frozen=True, kw_only=True)
class Relation:
    """The facts of one relation, each with its paraphrased prompts.

    Attributes:
        name: ``"P36"``.
        facts: Prompts by fact, ``"France → Paris"``.
        pairs: Subject and object by fact, ``("France", "Paris")``; where no subject is given, it is the cue of
            the prompts. Facts whose subject is unknown are absent.
        held_out: Templates set apart for tests of generality.
        label: ``"capital"``.
        inverse: Name of the inverse relation, or None.
        path: Where it was read.
    """

    name: str
    facts: dict[str, tuple[Prompt, ...]] = field(repr=False)
    pairs: dict[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    held_out: frozenset[str] = frozenset()
    label: str = ""
    inverse: str | None = None
    path: Path | None = None
    kind: Literal["facts"] = "facts"

    def __post_init__(self) -> None:
        found = {fact: self.pairs.get(fact) or _pair_of(prompts) for fact, prompts in self.facts.items()}
        object.__setattr__(self, "pairs", {fact: pair for fact, pair in found.items() if pair is not None})

    def __len__(self) -> int:
        return len(self.facts)

    def prompts(
        self,
        model: Any,
        *,
        templates: TemplateChoice = "all",
        groups: int | None = None,
        per_group: int | None = None,
        seed: int = 0,
        targets: Literal["single", "any"] = "single",
    ) -> PromptBatch:
        """Prompts for ``model``, grouped by fact; what it cannot be asked is counted in ``.dropped``.

        Args:
            model: A loaded model. A causal one takes the templates that end in the object.
            templates: ``"all"`` (default), only the ``"held_out"`` ones, or ``"training"``, the others.
            groups: How many facts, drawn with ``seed``; None takes all.
            per_group: How many templates of each; None takes all.
            seed: Of the draw.
            targets: ``"single"`` leaves out objects of several tokens, ``"any"`` keeps them.

        Raises:
            DataError: If the relation has no templates of the kind asked for.
            PromptError: If the model can be asked none of them, with the reasons.
            SettingsError: If ``templates`` is none of the three words.
        """
        facts = self._facts_through(templates)
        return gather_groups(model, facts, groups=groups, per_group=per_group, seed=seed, targets=targets)

    def _facts_through(self, templates: str) -> dict[str, tuple[Prompt, ...]]:
        if templates not in _CHOICES:
            near = near_matches(templates, _CHOICES)
            raise SettingsError(f"templates is {templates!r}; write one of {', '.join(map(repr, _CHOICES))}.{near}")
        if templates == "all":
            return self.facts
        wanted = templates == "held_out"
        chosen = {
            fact: tuple(prompt for prompt in prompts if (prompt.template in self.held_out) == wanted)
            for fact, prompts in self.facts.items()
        }
        if not any(chosen.values()):
            have, value = ("held-out", "true") if wanted else ("training", "false")
            raise DataError(
                f"{self.name} has no {have} templates: its templates file marks them with "
                f'"held_out": {value}; templates="all" takes all'
            )
        return chosen


class Template(NamedTuple):
    """A template, and where it stands.

    ``causal`` is true where only punctuation follows ``{object}``.
    """

    text: str
    held_out: bool
    causal: bool
    where: str

    @property
    def question(self) -> str:
        """The text up to the object, which is what a causal model is shown."""
        return self.text.split("{object}")[0].rstrip()


class StatedFact(NamedTuple):
    """A subject and its object, and where they stand."""

    subject: str
    object: str
    where: str

    @property
    def name(self) -> str:
        return f"{self.subject} → {self.object}"


def read_relation(path: Path, name: str | None = None, report: Report = stop) -> Relation:
    """A relation from ``P36.jsonl`` (subject, object) and ``P36.templates.jsonl`` beside it.

    Templates that compete (:func:`rivals`) are warned of and kept: sets made by others have such.

    Args:
        path: The facts.
        name: What the relation is called; by default the file's stem.
        report: Told of each problem, with file and line: a broken line, a missing field, or what
            :func:`parse_templates` and :func:`parse_facts` find. By default the first one ends the reading; else rows
            with a problem are left out.

    Raises:
        DataError: A problem that ends the reading.
    """
    name = name or path.stem
    templates = parse_templates(read_jsonl(templates_path(path), ("template",), report), report)
    for template, other in rivals(templates):
        log.warning("%s: %s", template.where, rivalry(template, other))
    facts = parse_facts(read_jsonl(path, _SLOTS, report), report)
    about = read_about(path.with_name("relations.json")).get(name, {})
    return Relation(
        name=name,
        facts={fact.name: tuple(_fill(template.text, fact) for template in templates) for fact in facts},
        pairs={fact.name: (fact.subject, fact.object) for fact in facts},
        held_out=frozenset(template.text for template in templates if template.held_out),
        label=about.get("name", name),
        inverse=about.get("inverse"),
        path=path,
    )


def templates_path(path: Path) -> Path:
    """Where the templates of the facts in ``path`` stand."""
    return path.with_name(f"{path.stem}.templates.jsonl")


def parse_templates(rows: Rows, report: Report = stop) -> list[Template]:
    """Templates from rows ``{"template", "form", "held_out"}``; those with a problem are reported and left out.

    Problems: slots other than one ``{subject}`` and one ``{object}``; a ``form`` that is neither ``"causal"``
    nor ``"masked"``, or not what the template is; a ``held_out`` that is no boolean; and a template that stands
    there already.
    """
    templates: dict[str, Template] = {}
    for where, row in rows:
        text, held_out = row["template"].strip(), row.get("held_out", False)
        problems = _slot_problems(text)
        causal = not any(character.isalnum() for character in text.split("{object}")[-1])
        if not problems:
            problems += _form_problems(row.get("form"), causal)
        if not isinstance(held_out, bool):
            problems.append(f"held_out is {held_out!r}; write true or false")
        if not problems and text in templates:
            problems.append(f"template {text!r} stands in line {line_of(templates[text].where)} already; remove one")
        for problem in problems:
            report(where, problem)
        if not problems:
            templates[text] = Template(text, held_out is True, causal, where)
    return list(templates.values())


def _slot_problems(text: str) -> list[str]:
    right = "write exactly one {subject} and one {object}"
    slots = _SLOT.findall(text)
    unknown = [slot for slot in slots if slot not in _SLOTS]
    wrong = [f"the unknown slot {{{slot}}}" for slot in unknown]
    if not unknown and re.search(r"[{}]", _SLOT.sub("", text)):
        wrong.append("a brace that belongs to no slot")
    if not slots and not wrong:
        wrong.append("no slot")
    else:
        counts = {slot: slots.count(slot) for slot in _SLOTS}
        wrong += [f"no {{{slot}}}" for slot, count in counts.items() if count == 0]
        wrong += [f"{{{slot}}} {count} times" for slot, count in counts.items() if count > 1]
    return [f"template {text!r} holds {' and '.join(wrong)}; {right}"] if wrong else []


def _form_problems(form: Any, causal: bool) -> list[str]:
    right = "causal" if causal else "masked"
    if form is None or form == right:
        return []
    meaning = "only punctuation follows {object}" if causal else "words follow {object}"
    if form in ("causal", "masked"):
        return [f'form is "{form}", and {meaning}; write "{right}"']
    return [f'form is {form!r}; write "causal" or "masked" (here "{right}": {meaning})']


def rivals(templates: list[Template]) -> list[tuple[Template, Template]]:
    """Pairs of causal templates, the later one first, of which one asks for the object where the other may go on."""
    causal = [template for template in templates if template.causal]
    return [
        (later, earlier)
        for index, later in enumerate(causal)
        for earlier in causal[:index]
        if begins(later.question, earlier.question) or begins(earlier.question, later.question)
    ]


def rivalry(later: Template, earlier: Template) -> str:
    """What is wrong with two :func:`rivals`, and what would be right."""
    return (
        f"{later.question!r} and {earlier.question!r} (line {line_of(earlier.where)}) compete: where one asks for the "
        f"object, the other may go on; reword one so that neither text up to {{object}} begins the other"
    )


def begins(start: str, text: str) -> bool:
    """Whether ``text`` begins with ``start``, and a word of it ends there."""
    return text.startswith(start) and not re.match(r"\w", text[len(start) :])


def parse_facts(rows: Rows, report: Report = stop) -> list[StatedFact]:
    """Facts from rows ``{"subject", "object"}``; those with a problem are reported and left out.

    Problems: a fact stated twice, a subject with two objects, an object that is its subject.
    """
    facts: dict[str, StatedFact] = {}
    for where, row in rows:
        fact = StatedFact(row["subject"].strip(), row["object"].strip(), where)
        earlier = facts.get(fact.subject)
        if fact.subject.casefold() == fact.object.casefold():
            report(where, f"subject and object are both {fact.object!r}; a question must not hold its answer")
        elif earlier is None:
            facts[fact.subject] = fact
        elif earlier.object == fact.object:
            line = line_of(earlier.where)
            report(where, f"the fact {fact.name!r} is stated twice, first in line {line}; remove one")
        else:
            report(
                where,
                f"{fact.subject!r} has the object {fact.object!r} here and {earlier.object!r} in line "
                f"{line_of(earlier.where)}; a subject has one object: keep the right line and remove the other",
            )
    return list(facts.values())


def read_about(path: Path) -> dict[str, dict[str, Any]]:
    """``relations.json``: name, description and inverse of each relation; empty if there is no such file.

    Raises:
        DataError: If it is no object of objects.
    """
    about = read_json(path) if path.is_file() else {}
    if not isinstance(about, dict) or not all(isinstance(entry, dict) for entry in about.values()):
        raise DataError(f'{path}: expected {{"P36": {{"name": …, "description": …, "inverse": …}}, …}}')
    return about


def _fill(template: str, fact: StatedFact) -> Prompt:
    """A template with its subject filled in and its object left blank; the cue is the subject."""
    before, after = template.split("{object}")
    blank = len(before.rstrip())  # where the text goes on behind the object
    start = before.index("{subject}") if "{subject}" in before else blank + after.index("{subject}")
    return Prompt(
        before.replace("{subject}", fact.subject).rstrip(),
        suffix=after.replace("{subject}", fact.subject),
        target=fact.object,
        cue=(start, start + len(fact.subject)),
        group=fact.name,
        source=fact.where,
        template=template,
    )


def _pair_of(prompts: tuple[Prompt, ...]) -> tuple[str, str] | None:
    """Subject and object as the first prompt with a cue has them."""
    for prompt in prompts:
        if prompt.cue is not None:
            cue = prompt.cue if isinstance(prompt.cue, str) else (prompt.prefix + prompt.suffix)[slice(*prompt.cue)]
            return cue, prompt.target
    return None
