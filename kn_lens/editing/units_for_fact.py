"""The units that a fact's old answer hangs on, and what all edits of units share.

Units are searched as for any group of prompts (Dai et al. 2022): integrated gradients of the old answer over the
fact's template and paraphrases, then the coarse and the refined step of :mod:`kn_lens.localization.search`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from kn_lens.attribution.integrated_gradients import integrated_gradients
from kn_lens.editing.edit import Edit, require_editable
from kn_lens.errors import PromptError, SettingsError, UnitsError, near_matches
from kn_lens.localization.search import KnowledgeNeurons, find_knowledge_neurons
from kn_lens.models.hashing import weights_hash
from kn_lens.models.kind import model_name
from kn_lens.prompts.batch import PromptBatch, as_batch
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.prompt import Prompt
from kn_lens.prompts.tokens import TokenResolver, UnusablePrompt
from kn_lens.results import provenance
from kn_lens.scoring import target_distribution
from kn_lens.sites import Unit, site_of

_FOUND: WeakKeyDictionary[Any, dict[tuple, KnowledgeNeurons]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class UnitsEdit(Edit):
    """An edit of some units' outgoing weights.

    Attributes:
        units: ``(layer, index)``.
        site: ``"mlp"``, ``"mlp_pre"`` or ``"head"``.
        method: What was done to them.
        share: τ, at which the search for them ended; None where they were given.
        note: How the search ended if not by reaching the wanted number of units, else ``""``.
    """

    units: tuple[Unit, ...]
    site: str
    method: str
    share: float | None
    note: str


@dataclass(frozen=True)
class UnitSearch:
    """Settings of a search for units; defaults are the published ones.

    See :func:`kn_lens.integrated_gradients` and :func:`kn_lens.find_knowledge_neurons`.
    """

    steps: int = 20
    rule: str = "riemann"
    threshold: float = 0.2
    share: float = 0.7
    count: tuple[int, int] = (2, 5)


@dataclass(frozen=True, kw_only=True)
class FactUnits:
    """The units of an edit, and the prompts and the old answer that they were found with.

    Attributes:
        units: ``(layer, index)``.
        share: τ of the search; None where the units were given.
        note: Of the search.
        batch: The fact's prompts, asked for the old answer.
        old: The old answer: the fact's, or what the model itself says.
    """

    units: tuple[Unit, ...]
    share: float | None
    note: str
    batch: PromptBatch
    old: str

    @property
    def by_layer(self) -> dict[int, list[int]]:
        """Layer, ascending → the indices of its units."""
        found: dict[int, list[int]] = {layer: [] for layer in sorted({layer for layer, _ in self.units})}
        for layer, index in self.units:
            found[layer].append(index)
        return found

    def edit(
        self,
        model: Any,
        fact: Fact,
        *,
        what: str,
        method: str,
        site: str,
        rows: dict[str, Tensor],
        changes: dict[str, Tensor],
        settings: dict[str, Any],
    ) -> UnitsEdit:
        """The edit that adds ``changes`` to ``rows``; ``what`` are the units in words."""
        return UnitsEdit(
            editor=f"{what}, {method}",
            fact=fact,
            rows=rows,
            changes={name: change.detach().cpu() for name, change in changes.items()},
            units=self.units,
            site=site,
            method=method,
            share=self.share,
            note=self.note,
            settings={"method": method, "site": site, "old": self.old, "n_prompts": len(self.batch), **settings},
            provenance=provenance(model, self.batch),
        )


def units_for_fact(
    model: Any,
    fact: Fact,
    site: str,
    *,
    units: Sequence[Unit] | None = None,
    prompts: PromptBatch | Prompt | Iterable[Prompt] | None = None,
    search: UnitSearch | None = None,
) -> FactUnits:
    """The knowledge neurons (or heads) of a fact, or those given, checked.

    One search serves all edits of the same fact while the model's weights stay as they are.

    Args:
        model: A loaded model.
        fact: The fact. Where its old answer is not known, the model's own top answer to it (one token) is taken.
        site: Where units live.
        units: Take these instead of searching.
        prompts: Ask these for the old answer instead of the fact's template and paraphrases.
        search: Settings of the search.

    Raises:
        ModelError: If the model's weights cannot be edited.
        PromptError: If the model can be asked none of the prompts, or gives the new answer already where the old one
            is not known.
        UnitsError: If a given unit is not in the model, or no unit is found.
        SettingsError: For a setting of the search out of its range.
    """
    require_editable(model)
    where = site_of(model, site)
    batch = _old_prompts(model, fact) if prompts is None else as_batch(model, prompts)
    old = fact.old or batch.prompts[0].target
    if units is not None:
        given = tuple(dict.fromkeys((int(layer), int(index)) for layer, index in units))
        if not given:
            raise UnitsError("no units to edit; give [(layer, index), …], or leave them out to search for them")
        where.check(list(given), model)
        return FactUnits(units=given, share=None, note="", batch=batch, old=old)
    wanted = search or UnitSearch()
    kept = _FOUND.setdefault(model, {})
    key = (weights_hash(model), site, batch.fingerprint(), wanted)
    if key not in kept:
        kept[key] = _search(model, batch, fact.name, site, wanted)
    found = kept[key]
    if not found.units:
        raise UnitsError(
            f"no units of {model_name(model)} were found for {fact.name!r} ({found.note or 'no score is above 0'}); "
            f"give units, or other prompts"
        )
    return FactUnits(units=found.units, share=found.share, note=found.note, batch=batch, old=old)


def _search(model: Any, batch: PromptBatch, name: str, site: str, wanted: UnitSearch) -> KnowledgeNeurons:
    """The knowledge neurons; where the search ends between too many and none, those at the next lower p.

    An edit needs units, whereas a count of them may be 0.
    """
    scores = integrated_gradients(
        model, batch, site=site, steps=wanted.steps, rule=wanted.rule, positions="target", progress=False
    )
    options: dict[str, Any] = {"threshold": wanted.threshold, "share": wanted.share, "group": name}
    found = find_knowledge_neurons(scores, count=wanted.count, **options)
    if found.units:
        return found
    some = find_knowledge_neurons(scores, count=(1, scores.values[0].numel()), **options)
    taken = f"an edit needs some: {len(some.units)} at {round(100 * some.share)} % are taken"
    return replace(some, in_range=False, note=f"{found.note}; {taken}" if some.units else found.note)


def check_method(method: str, known: Sequence[str]) -> None:
    """Refuse a method that an editor does not have.

    Raises:
        SettingsError: With those that it has.
    """
    if method not in known:
        raise SettingsError(f"no method {method!r}.{near_matches(method, known)} Methods: {', '.join(known)}")


def search_settings(search: UnitSearch | None, units: Sequence[Unit] | None) -> dict[str, Any]:
    """What an edit keeps of its search; nothing where units were given."""
    if units is not None:
        return {"search": None}
    fields = asdict(search or UnitSearch())
    return {"search": {**fields, "count": list(fields["count"])}}


def first_tokens(model: Any, fact: Fact, found: FactUnits) -> tuple[int, int]:
    """The first tokens of the old and of the new answer, as they stand after the fact's question.

    Raises:
        PromptError: If the question cannot be asked, or both answers begin with the same token.
    """
    resolver = TokenResolver(model)
    problem: UnusablePrompt | None = None
    for template in _templates(fact):
        try:
            new = resolver.resolve(fact.prompt(template=template)).target_ids[0]
            # The model's own answer is a token that need not come back from its text.
            old = int(found.batch.target_ids[0])
            if fact.old is not None:
                old = resolver.resolve(fact.prompt(fact.old, template=template)).target_ids[0]
        except UnusablePrompt as error:
            problem = problem or error
            continue
        if old == new:
            raise PromptError(
                f"{found.old!r} and {fact.target!r} begin with the same token for {model_name(model)}, and this edit "
                f"works on first tokens; take answers that differ from the start"
            )
        return old, new
    assert problem is not None
    raise problem


def _templates(fact: Fact) -> tuple[str, ...]:
    return tuple(dict.fromkeys((fact.template, *fact.paraphrases)))


def _old_prompts(model: Any, fact: Fact) -> PromptBatch:
    """The fact's prompts that the model can be asked, with the old answer as their target."""
    prompts = [fact.prompt(fact.old or fact.target, template=template) for template in _templates(fact)]
    batch = PromptBatch.from_prompts(model, prompts, on_unusable="drop")
    if fact.old is not None:
        return batch
    top = int(target_distribution(model, batch.select([0]))[0].argmax())
    text = batch.decode(top)
    if top == int(batch.target_ids[0]):
        raise PromptError(
            f"{model_name(model)} answers {batch.prompts[0].text!r} with {text!r} already, the new answer or its "
            f"start, and no old answer is given; give the fact the old answer that its units shall be found by"
        )
    own = [replace(entry, target_ids=(top,), prompt=replace(entry.prompt, target=text)) for entry in batch.resolved]
    return PromptBatch.from_resolved(model, own, batch.dropped)
