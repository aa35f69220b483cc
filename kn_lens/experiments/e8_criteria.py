"""Experiment E8: do edited facts behave as knowledge?

Editors are judged on the same facts by what each criterion asks (Niu et al. 2024): the prompt itself (reliability),
other wordings (generality), what should stay (locality), the inverse question (symmetry) and other words for the same
(synonymy). Facts are drawn of which the unedited model knows the inverse or the other words, so that a failure after an
edit is the edit's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens._version import __version__
from kn_lens.criteria.cases import applicable_criteria, edit_cases
from kn_lens.criteria.evaluate import evaluate_edits
from kn_lens.criteria.evaluation import EditEvaluation
from kn_lens.criteria.questions import EditCases
from kn_lens.criteria.scores import GATED
from kn_lens.editing.edit import Editor, require_editable
from kn_lens.editing.rome import require_rome
from kn_lens.errors import KnLensError, ModelError, OutputError, PromptError, SettingsError
from kn_lens.experiments.criteria_verdicts import criteria_verdicts
from kn_lens.experiments.sizes import Size, quick
from kn_lens.experiments.verdicts import Verdict
from kn_lens.models.kind import is_masked
from kn_lens.plots.editing import edit_cascade, edit_criteria
from kn_lens.prompts.load import data_hash
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.prompt import Dropped
from kn_lens.prompts.relations import Relation
from kn_lens.results import provenance
from kn_lens.studies.evaluate_editors import EvaluateSettings, check_editors
from kn_lens.studies.evaluated import Evaluated, joined
from kn_lens.studies.pieces import Pieces
from kn_lens.studies.saved import plain, read_fields, reading, write_fields, writing

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

TITLE = "Do edited facts behave as knowledge?"
PAPER = "Criteria table (GPT-2 XL, LLaMA-2 7B)"
ABOUT = (
    "Facts get another answer, one at a time: by ROME, and by editing the neurons that attribution finds. After each "
    "edit the model is asked the prompt itself, other wordings, unrelated questions, the inverse question, and the "
    "same in other words. The last two count only where the unedited model answers the like rightly for its own facts."
)

_FACTS, _AGREEMENT = ("P36", "P101"), "subject_verb_agreement_distractor"
_QUICK = {"rome": 40, "neurons": 40}
_QUICK_MASKED = {"neurons": 20}
_OTHERS = {"rome": 16, "neurons": 8}
"""Of models that take seconds an edit. Sixteen, which two relations of eight are too, are the fewest that can tell that
something is seldom: if none does it, the interval ends below a fifth."""
_OTHERS_AGREEMENT = 8
_FULL = {"rome": 100, "neurons": 100}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run.

    Attributes:
        edits: Editor → how many facts of each relation it edits. A masked model takes no ``"rome"``.
        agreement: Editor → how many minimal pairs of each paradigm it turns round.
        known: Only facts of which the unedited model passes a probe of symmetry or synonymy, where there are any.
        seed: Of every draw, and of the editors.
    """

    edits: Mapping[str, int] = field(default_factory=lambda: {"rome": 20, "neurons": 20})
    agreement: Mapping[str, int] = field(default_factory=lambda: {"rome": 20})
    known: bool = True
    seed: int = 0

    def of(self, data: Relation | MinimalPairs) -> Mapping[str, int]:
        """Editor → how many edits of a data set."""
        return self.edits if isinstance(data, Relation) else self.agreement


@dataclass(frozen=True, kw_only=True)
class Result:
    """Evaluations of editors.

    Attributes:
        found: Of each data set.
        kinds: Of each, ``"facts"`` or ``"pairs"``.
        failed: ``"P36, neurons"`` → why there is no evaluation.
        settings: Of the run, with the names of the data.
        provenance: Model, hashes, versions.
    """

    found: tuple[Evaluated, ...]
    kinds: tuple[str, ...]
    failed: Mapping[str, str]
    settings: dict[str, Any]
    provenance: dict[str, Any]

    def save(self, folder: Path) -> Path:
        """Write the evaluations of each data set and the rest.

        Raises:
            OutputError: If it cannot be written.
        """
        with writing(folder):
            fields = {"settings": self.settings, "provenance": self.provenance, "failed": dict(self.failed)}
            write_fields(folder, {**fields, "kinds": list(self.kinds)})
            for at, entry in enumerate(self.found):
                entry.save(folder / f"evaluated-{at}")
        return folder

    @classmethod
    def load(cls, folder: Path) -> Result:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds no such result.
        """
        with reading(folder, "evaluations"):
            fields = read_fields(folder)
            kinds = tuple(fields.pop("kinds"))
            found = tuple(Evaluated.load(folder / f"evaluated-{at}") for at in range(len(kinds)))
            return cls(found=found, kinds=kinds, **fields)

    def of_facts(self, editor: str) -> list[EditEvaluation]:
        """The evaluations of an editor on facts."""
        return [
            entry.evaluations[editor]
            for entry, kind in zip(self.found, self.kinds, strict=True)
            if kind == "facts" and editor in entry.evaluations
        ]


def unsuited(model: Any) -> str | None:
    """Whether the model's weights can be edited."""
    try:
        require_editable(model)
    except ModelError as error:
        return str(error).rstrip(".")
    return None


def data(model: Any, size: Size) -> tuple[str, ...]:
    """Capitals, which have an inverse, and fields of work, which have synonyms; for ROME also verbs."""
    return _FACTS if is_masked(model) else (*_FACTS, _AGREEMENT)


def settings(model: Any, size: Size, seed: int) -> Settings:
    """ROME and neurons; of masked models neurons alone."""
    return _settings(model, size, seed)


def _settings(model: Any, size: Size, seed: int) -> Settings:
    masked = not _takes_rome(model)
    edits = _FULL if size == "full" else (_QUICK_MASKED if masked else _QUICK) if quick(model) else _OTHERS
    if masked:
        return Settings(edits={"neurons": edits["neurons"]}, agreement={}, seed=seed)
    turned = _OTHERS_AGREEMENT if edits is _OTHERS else edits["rome"]
    return Settings(edits=edits, agreement={"rome": turned}, seed=seed)


def run(
    model: Any,
    data: Sequence[Relation | MinimalPairs],
    settings: Settings | None = None,
    *,
    pieces: Pieces | None = None,
    progress: bool = True,
) -> Result:
    """Judge each editor on each data set.

    Args:
        model: A loaded model; it is left as it was.
        data: Facts and pairs.
        settings: See :class:`Settings`; by default those of the size ``"small"``.
        pieces: Where finished evaluations, and the edits of an unfinished one, are found and kept; by default nowhere.
        progress: Show progress bars.

    Raises:
        SettingsError: If an editor is unknown, or no edit is asked for.
        ModelError: If the model cannot be edited, or an editor does not suit it.
        KnLensError: If no evaluation can be made, with the reason of the first.
    """
    settings = settings or _settings(model, "small", 0)
    pieces = pieces or Pieces()
    named = dict.fromkeys([*settings.edits, *settings.agreement])
    editors = EvaluateSettings(editors=tuple(named), seed=settings.seed)
    editors.check()
    check_editors(model, editors)
    found: list[Evaluated] = []
    kinds: list[str] = []
    failed: dict[str, str] = {}
    first: KnLensError | None = None
    for entry in data:
        wanted = settings.of(entry)
        draw = cache(partial(_cases, model, entry, max(wanted.values(), default=0), settings))
        made: dict[str, EditEvaluation] = {}
        for name, edits in wanted.items():
            about = {"data": entry.name, "sha256": data_hash(entry), "editor": name, "edits": edits}
            about |= {"known": settings.known, "seed": settings.seed}
            options = {"edits": edits, "seed": settings.seed, "progress": progress}
            options["journal"] = pieces.path(f"journal-{entry.name}-{name}", {**about, "kn_lens": __version__})
            make = partial(_evaluation, model, editors.editor(name), draw, options)
            try:
                made[name] = pieces.keep(f"evaluation-{entry.name}-{name}", about, EditEvaluation, make)
            except OutputError:
                raise
            except KnLensError as error:
                first = first or error
                failed[f"{entry.name}, {name}"] = str(error)
        if made:
            found.append(_evaluated(entry, made))
            kinds.append(entry.kind)
    if not found:
        raise first or SettingsError("no edits are asked for; give an editor and how many it shall make")
    return Result(
        found=tuple(found),
        kinds=tuple(kinds),
        failed=failed,
        settings=plain({**asdict(settings), "data": [entry.name for entry in data]}),
        provenance=provenance(model),
    )


def _takes_rome(model: Any) -> bool:
    try:
        require_rome(model)
    except ModelError:
        return False
    return True


def _cases(model: Any, data: Relation | MinimalPairs, edits: int, settings: Settings) -> EditCases:
    """The draw, of known facts where the model knows any."""
    if settings.known and set(GATED) & set(applicable_criteria(data)):
        try:
            return edit_cases(model, data, edits=edits, seed=settings.seed, known=True)
        except PromptError:  # none is known: what is gated cannot be judged then, and the evaluation says so
            pass
    return edit_cases(model, data, edits=edits, seed=settings.seed)


def _evaluation(model: Any, editor: Editor, draw: Callable[[], EditCases], options: dict[str, Any]) -> EditEvaluation:
    return evaluate_edits(model, editor, draw(), **options)


def _evaluated(data: Relation | MinimalPairs, made: dict[str, EditEvaluation]) -> Evaluated:
    first = next(iter(made.values()))
    return Evaluated(
        data=data.name,
        data_hash=data_hash(data),
        criteria=first.criteria,
        drawn=max(len(one) + len(one.failed) for one in made.values()),
        dropped=tuple(dict.fromkeys(item for one in made.values() for item in one.dropped)),
        evaluations=made,
    )


def figures(result: Result) -> dict[str, go.Figure]:
    """``criteria`` of each data set, then ``cascade`` of each."""
    model = result.provenance["model"]
    found = {}
    for name, draw in (("criteria", edit_criteria), ("cascade", edit_cascade)):
        for entry in result.found:
            alone = f", {next(iter(entry.evaluations))}" if len(entry.evaluations) == 1 else ""
            found[f"{name}-{entry.data}"] = draw(entry.evaluations, f"{model}, {entry.data}{alone}")
    return found


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """``summary`` by criterion; ``cascade``; ``by-label``: how the model was taught; ``edits``."""
    import pandas as pd

    def together(parts: Iterator[pd.DataFrame]) -> pd.DataFrame:
        kept = [part for part in parts if len(part)]
        return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()

    found = {
        "summary": together(entry.summary() for entry in result.found),
        "cascade": together(entry.cascade() for entry in result.found),
        "by-label": together(entry.by_label() for entry in result.found),
        "edits": together(
            joined(entry.data, {name: one.edits_frame() for name, one in entry.evaluations.items()})
            for entry in result.found
        ),
    }
    return {name: table for name, table in found.items() if len(table)}


def findings(result: Result) -> list[str]:
    """What each editor did on each data set, criterion by criterion."""
    said = [
        f"{heading}: {sentence}"
        for entry in result.found
        for heading, sentences in entry.findings().items()
        for sentence in sentences
    ]
    return said + [f"{name}: not judged ({reason.rstrip('.')})." for name, reason in result.failed.items()]


def verdicts(result: Result) -> list[Verdict]:
    """Whether the new answer comes, by ROME and by neurons, and what follows it."""
    return criteria_verdicts({name: result.of_facts(name) for name in result.settings["edits"]})


def dropped(result: Result) -> list[tuple[str, Dropped]]:
    """Facts, questions and edits left out."""
    return [(entry.data, item) for entry in result.found for item in entry.dropped]
