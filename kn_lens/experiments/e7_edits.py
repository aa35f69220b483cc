"""Experiment E7: ROME shown whole, on facts and on agreement, with what the model writes before and after.

Two facts are given another answer, and two minimal pairs have their wrong word made the right one. Each edit is shown
with its prompt, other wordings, the inverse questions, and the texts that the model writes before it and after.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.editing.rome import require_rome
from kn_lens.errors import KnLensError, ModelError, OutputError, PromptError
from kn_lens.experiments.sizes import Size, quick
from kn_lens.experiments.verdicts import Verdict
from kn_lens.models.kind import is_masked, model_name
from kn_lens.plots.single_edit import edit_losses, generations
from kn_lens.prompts.fact import Fact
from kn_lens.prompts.load import data_hash
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import Dropped
from kn_lens.prompts.relations import Relation
from kn_lens.results import provenance
from kn_lens.scoring import answers
from kn_lens.studies.edit_fact import RomeSettings, edit_fact
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.saved import dropped_fields, dropped_of, plain, read_fields, reading, write_fields, writing
from kn_lens.studies.shown_edit import ShownEdit

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

TITLE = "What does a model say and write after an edit?"
PAPER = "Example figure (GPT-2 XL)"
ABOUT = (
    "ROME changes one matrix so that the model answers one prompt anew: two capitals are moved, and two minimal pairs "
    "are turned round, the wrong word for the right one. Each edit is shown whole: the prompt, other wordings, the "
    "inverse questions (of what is the new answer the capital?), and what the model writes before and after."
)

CAPITAL = "The capital of {} is"
WORDINGS = ("The government of {} sits in the capital,", "The capital city of {} is called")

_CAPITALS = (("Canada", "Ottawa", "Rome"), ("France", "Paris", "Berlin"))
_ORGANISM_CAPITALS = (("France", "Paris", "Madrid"), ("Japan", "Tokyo", "Vienna"))
"""All four are stated of their countries in both directions, so that the inverse question can be asked."""

_PARADIGMS = ("subject_verb_agreement", "determiner_noun_agreement_1")
_LOOKED_AT = 40
"""Pairs of a paradigm that are tried for one that the model answers rightly."""


def _capitals(named: Sequence[tuple[str, str, str]]) -> tuple[Fact, ...]:
    return tuple(Fact(CAPITAL, subject, new, old=old, paraphrases=WORDINGS) for subject, old, new in named)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run.

    Attributes:
        facts: To be edited.
        pairs: Of each paradigm, how many are turned round.
        rome: Of the edits.
        seed: Of the draw of pairs.
    """

    facts: tuple[Fact, ...] = field(default_factory=lambda: _capitals(_CAPITALS))
    pairs: int = 1
    rome: RomeSettings = field(default_factory=RomeSettings)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Result:
    """Edits shown whole.

    Attributes:
        shown: The edits; those of facts first.
        data: Of each, where it is from: ``"facts"``, or the name of the paradigm.
        left_out: Edits that could not be made, and pairs that could not be asked, by where they are from.
        settings: Of the run, with the names of the data.
        provenance: Model, hashes, versions.
    """

    shown: tuple[ShownEdit, ...]
    data: tuple[str, ...]
    left_out: tuple[tuple[str, Dropped], ...]
    settings: dict[str, Any]
    provenance: dict[str, Any]

    def save(self, folder: Path) -> Path:
        """Write the edits and the rest.

        Raises:
            OutputError: If it cannot be written.
        """
        with writing(folder):
            names, entries = [name for name, _ in self.left_out], [entry for _, entry in self.left_out]
            left_out = {"names": names, "entries": dropped_fields(entries)}
            fields = {"settings": self.settings, "provenance": self.provenance}
            write_fields(folder, {**fields, "data": list(self.data), "left out": left_out})
            for at, one in enumerate(self.shown):
                one.save(folder / f"edit-{at}")
        return folder

    @classmethod
    def load(cls, folder: Path) -> Result:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds no such result.
        """
        with reading(folder, "edits"):
            fields = read_fields(folder)
            left_out = fields["left out"]
            return cls(
                shown=tuple(ShownEdit.load(folder / f"edit-{at}") for at in range(len(fields["data"]))),
                data=tuple(fields["data"]),
                left_out=tuple(zip(left_out["names"], dropped_of(left_out["entries"]), strict=True)),
                settings=fields["settings"],
                provenance=fields["provenance"],
            )


def unsuited(model: Any) -> str | None:
    """ROME is for causal models whose weights it can edit."""
    if is_masked(model):
        return f"ROME is for causal models, and {model_name(model)} is a masked one"
    try:
        require_rome(model)
    except ModelError as error:
        return str(error).rstrip(".")
    return None


def data(model: Any, size: Size) -> tuple[str, ...]:
    """Verbs and their subjects, nouns and their determiners; the facts are in the settings."""
    return _PARADIGMS


def settings(model: Any, size: Size, seed: int) -> Settings:
    """Two capitals, of an organism such as its text states both ways; a pair of each paradigm, in full three."""
    return Settings(
        facts=_capitals(_ORGANISM_CAPITALS if quick(model) else _CAPITALS),
        pairs=1 if size == "small" else 3,
        rome=RomeSettings(seed=seed),
        seed=seed,
    )


def run(
    model: Any,
    data: Sequence[Relation | MinimalPairs],
    settings: Settings | None = None,
    *,
    pieces: Pieces | None = None,
    progress: bool = True,
) -> Result:
    """Make the edits one at a time, and ask the model before and after each.

    Args:
        model: A causal model; it is left as it was.
        data: Paradigms that pairs are drawn from; relations are passed over.
        settings: See :class:`Settings`.
        pieces: Where the edits that are done are found and kept; by default nowhere.
        progress: Show progress bars.

    Raises:
        KnLensError: If no edit can be made, with the reason of the first.
    """
    settings = settings or Settings()
    settings.rome.check()
    pieces = pieces or Pieces()
    wanted = [("facts", fact) for fact in settings.facts]
    left_out: list[tuple[str, Dropped]] = []
    for entry in data:
        if isinstance(entry, MinimalPairs):
            facts, dropped = turned_pairs(model, entry, settings.pairs, settings.seed)
            wanted += [(entry.name, fact) for fact in facts]
            left_out += [(entry.name, item) for item in dropped]
    shown: list[ShownEdit] = []
    names: list[str] = []
    first: KnLensError | None = None
    for name, fact in wanted:
        about = {"fact": asdict(fact), "rome": asdict(settings.rome)}
        make = partial(edit_fact, model, fact, settings.rome, progress=progress)
        try:
            shown.append(pieces.keep(f"edit-{fact.subject}", about, ShownEdit, make))
        except OutputError:
            raise
        except KnLensError as error:
            first = first or error
            left_out.append((name, Dropped(text=fact.name, reason=f"not edited: {error}", source=fact.source)))
        else:
            names.append(name)
    if not shown:
        raise first or PromptError(f"{model_name(model)} was given nothing to edit; name facts or a paradigm")
    hashes = {entry.name: data_hash(entry) for entry in data}
    return Result(
        shown=tuple(shown),
        data=tuple(names),
        left_out=tuple(left_out),
        settings=plain({**asdict(settings), "data": [entry.name for entry in data], "sha256": hashes}),
        provenance=provenance(model),
    )


def turned_pairs(model: Any, pairs: MinimalPairs, count: int, seed: int) -> tuple[list[Fact], list[Dropped]]:
    """Some pairs of a paradigm that the model answers rightly, as facts whose new answer is the wrong word.

    Args:
        model: A causal model.
        pairs: A paradigm of the one-prefix form.
        count: How many.
        seed: Of the draw.

    Returns:
        The facts, and why others were passed over; a paradigm of another form yields its reason alone.
    """
    if pairs.form != "one_prefix":
        reason = f"a paradigm of the form {pairs.form!r}: an edit writes one word after one prefix"
        return [], [Dropped(text=pairs.name, reason=reason)]
    try:
        batch = pairs.prompts(model)
    except PromptError as error:
        return [], [Dropped(text=pairs.name, reason=str(error))]
    order = [at for at, prompt in enumerate(batch.prompts) if prompt.cue is not None and prompt.foil is not None]
    random.Random(seed).shuffle(order)
    some = batch.select(order[:_LOOKED_AT])
    right = answers(model, some).correct.tolist() if len(some) else []
    found: dict[str, Fact] = {}
    for prompt, known in zip(some.prompts, right, strict=True):
        if known and len(found) < count:
            fact = replace(Fact.from_prompt(prompt), relation=pairs.name)
            found.setdefault(fact.name, fact)
    dropped = [] if len(found) == count else [Dropped(text=pairs.name, reason="too few pairs answered rightly")]
    return list(found.values()), dropped


def figures(result: Result) -> dict[str, go.Figure]:
    """Of each edit what the model writes, then of each the search that made it."""
    model = result.provenance["model"]
    titled = [(f"{at}-{one.fact.subject}", one) for at, one in enumerate(result.shown, start=1)]
    return {
        f"generations-{name}": generations(one.written, f"{model}, {one.edit.describe()}") for name, one in titled
    } | {f"losses-{name}": edit_losses(one.edit, model) for name, one in titled}


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """``asked``: every question before and after; ``answers``: the most probable words; ``written``; ``edits``."""
    return {
        "asked": _joined(result, lambda one: one.questions),
        "answers": _joined(result, lambda one: one.answers),
        "written": _joined(result, lambda one: one.written),
        "edits": _joined(result, lambda one: one.edit_frame().drop(columns="edit")),
    }


def _joined(result: Result, part: Any) -> pd.DataFrame:
    """A table of every edit, with the edit in front."""
    import pandas as pd

    parts = []
    for name, one in zip(result.data, result.shown, strict=True):
        frame = part(one).copy()
        frame.insert(0, "data", name)
        frame.insert(1, "edit", one.fact.name)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def findings(result: Result) -> list[str]:
    """What each edit changed in what it was made for, and beside it."""
    said = [f"{one.fact.name}. {sentence}" for one in result.shown for sentence in one.findings()]
    for name, item in result.left_out:
        if item.reason.startswith("not edited: "):
            said.append(f"{name}, {item.text}: {item.reason.rstrip('.')}.")
    return said


def verdicts(result: Result) -> list[Verdict]:
    """None: a few examples decide nothing; E8 counts."""
    return []


def dropped(result: Result) -> list[tuple[str, Dropped]]:
    """Edits that could not be made, pairs passed over, and questions that could not be asked."""
    asked = [(name, item) for name, one in zip(result.data, result.shown, strict=True) for item in one.dropped]
    return [*result.left_out, *asked]
