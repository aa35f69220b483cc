"""From data to units: attribute, search on one half of the prompts, and measure how local the answer is."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from kn_lens.attribution.integrated_gradients import integrated_gradients
from kn_lens.attribution.quadrature import Rule, check_steps
from kn_lens.attribution.scores import AttributionScores
from kn_lens.errors import OutputError, SettingsError, near_matches
from kn_lens.localization.measures import Concentration, concentration, n_sample_similarity
from kn_lens.localization.search import KnowledgeNeurons, check_search, search_groups
from kn_lens.localization.stability import split_half, stability
from kn_lens.prompts.batch import PromptBatch
from kn_lens.prompts.load import data_hash
from kn_lens.prompts.minimal_pairs import MinimalPairs
from kn_lens.prompts.positions import Positions
from kn_lens.prompts.relations import Relation
from kn_lens.scoring import answers
from kn_lens.sites import SiteName

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

_FIELDS = "localization.json"
_PLAIN = ("data", "kind", "selection", "test", "similarity", "stability", "accuracy", "data_hash")


@dataclass(frozen=True, kw_only=True)
class LocalizeSettings:
    """Settings of a localisation; defaults are the paper's, but for the number of groups and prompts."""

    site: str = "mlp"
    steps: int = 20
    rule: str = "riemann"
    positions: str = "target"
    threshold: float = 0.2
    share: float = 0.7
    count: tuple[int, int] = (2, 5)
    groups: int | None = 5
    prompts: int | None = 6
    seed: int = 0

    def check(self) -> None:
        """Refuse settings out of their range before any model is loaded.

        Raises:
            SettingsError: Naming the first one.
        """
        check_steps(self.steps)
        check_search(self.threshold, self.share, self.count)
        for value, known, what in (
            (self.site, get_args(SiteName), "site"),
            (self.rule, get_args(Rule), "rule"),
            (self.positions, get_args(Positions), "positions"),
        ):
            if value not in known:
                raise SettingsError(f"no {what} {value!r}.{near_matches(value, known)} Known: {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class Localization:
    """What was found for one data set.

    Attributes:
        data: Its name; ``kind`` is ``"facts"`` or ``"pairs"``.
        scores: Attribution of all prompts.
        selection, test: Indices of the prompts that units were searched on, and of the others.
        found: Units by group.
        similarity: R₁² of each group of at least two prompts.
        stability: Mean Jaccard overlap under resampling, by group.
        curve: Concentration of |α|.
        accuracy: Share of the prompts that the model answers right.
        data_hash: SHA-256 of the data's file.
    """

    data: str
    kind: str
    scores: AttributionScores
    selection: list[int]
    test: list[int]
    found: dict[str, KnowledgeNeurons]
    similarity: dict[str, float]
    stability: dict[str, float]
    curve: Concentration
    accuracy: float
    data_hash: str | None = field(default=None)

    def save(self, folder: str | Path) -> Path:
        """Write the scores into a subfolder of ``folder`` (made if needed), and the rest as JSON.

        Raises:
            OutputError: If it cannot be written.
        """
        folder = Path(folder)
        self.scores.save(folder / "scores")
        fields = {name: getattr(self, name) for name in _PLAIN}
        fields["found"] = {name: asdict(found) for name, found in self.found.items()}
        try:
            (folder / _FIELDS).write_text(json.dumps(fields, indent=1, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}") from None
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Localization:
        """Read back what :meth:`save` wrote.

        Raises:
            OutputError: If the folder holds none, or a damaged one.
        """
        folder = Path(folder)
        scores = AttributionScores.load(folder / "scores")
        try:
            fields = json.loads((folder / _FIELDS).read_text(encoding="utf-8"))
            found = {name: _units_from(entry) for name, entry in fields["found"].items()}
            plain = {name: fields[name] for name in _PLAIN}
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(f"{folder} holds no readable localization ({error})") from None
        return cls(scores=scores, found=found, curve=concentration(scores), **plain)

    def groups_frame(self) -> pd.DataFrame:
        """One row per group: units, τ, R₁², stability, and how the search ended."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "data": self.data,
                    "group": name,
                    "prompts": len(self.scores.groups[name]),
                    "|KN|": len(found),
                    "τ": found.share,
                    "R₁²": self.similarity.get(name, float("nan")),
                    "stability": self.stability.get(name, float("nan")),
                    "in range": found.in_range,
                    "note": found.note,
                    "units": " ".join(f"{layer}:{unit}" for layer, unit in found.units),
                }
                for name, found in self.found.items()
            ]
        )

    def summary(self) -> dict[str, Any]:
        """Means over groups (|KN|, τ, R₁², stability) and over prompts (concentration, convergence)."""
        groups = self.groups_frame()
        ten = self.curve.shares[:, self.curve.ks.index(10)] if 10 in self.curve.ks else self.curve.shares[:, -1]
        return {
            "data": self.data,
            "kind": self.kind,
            "groups": len(groups),
            "prompts": len(self.scores),
            "|KN|": float(groups["|KN|"].mean()),
            "τ": float(groups["τ"].mean()),
            "R₁²": float(groups["R₁²"].mean()),
            "stability": float(groups["stability"].mean()),
            "top 10 share": float(ten.mean()),
            "Gini": float(self.curve.gini.mean()),
            "participation": float(self.curve.participation_ratio.mean()),
            "max |delta|": float(self.scores.convergence_delta.abs().max()),
            "accuracy": self.accuracy,
        }


def _units_from(entry: dict[str, Any]) -> KnowledgeNeurons:
    units = tuple((layer, unit) for layer, unit in entry["units"])
    return KnowledgeNeurons(**{**entry, "units": units, "frequency": tuple(entry["frequency"])})


def localize(
    model: Any, data: Relation | MinimalPairs, settings: LocalizeSettings, *, progress: bool = True
) -> Localization:
    """Find the units that a data set's answers hang on, group by group, and measure how local they are."""
    batch = group_prompts(model, data, settings)
    scores = integrated_gradients(
        model,
        batch,
        site=settings.site,
        steps=settings.steps,
        rule=settings.rule,
        positions=settings.positions,  # type: ignore[arg-type]
        progress=progress,
    )
    return localization_of(model, batch, scores, settings, data=data.name, kind=data.kind, sha256=data_hash(data))


def localization_of(
    model: Any,
    batch: PromptBatch,
    scores: AttributionScores,
    settings: LocalizeSettings,
    *,
    data: str,
    kind: str,
    sha256: str | None = None,
) -> Localization:
    """What :func:`localize` finds in the attribution of some prompts.

    Args:
        model: The model.
        batch: The prompts.
        scores: Their attribution.
        settings: Those of the search and its seed count.
        data: Name of the data set.
        kind: ``"facts"`` or ``"pairs"``.
        sha256: Of the data's file.
    """
    selection, test = split_half(scores, settings.seed)
    search = {"threshold": settings.threshold, "share": settings.share, "count": settings.count}
    chosen = scores.select(selection)
    repeated = {name: indices for name, indices in scores.groups.items() if len(indices) > 1}
    halves = {name: indices for name, indices in chosen.groups.items() if len(indices) > 1}
    return Localization(
        data=data,
        kind=kind,
        scores=scores,
        selection=selection,
        test=test,
        found=search_groups(chosen, **search),
        similarity={name: _similarity(scores, name, indices) for name, indices in repeated.items()},
        stability={
            name: stability(chosen.select(indices), seed=settings.seed, **search).mean_jaccard
            for name, indices in halves.items()
        },
        curve=concentration(scores),
        accuracy=float(answers(model, batch).correct.float().mean()),
        data_hash=sha256,
    )


def _similarity(scores: AttributionScores, group: str, indices: list[int]) -> float:
    """R₁² of a group; NaN, and a log line, if a prompt of it has no direction (its probability underflows)."""
    try:
        return n_sample_similarity(scores.select(indices))
    except SettingsError as error:
        log.warning("no R₁² for %s: %s", group, error)
        return float("nan")


def group_prompts(model: Any, data: Relation | MinimalPairs, settings: LocalizeSettings) -> PromptBatch:
    """The prompts of some groups of a data set; pairs by data augmentation where their cue is known."""
    options: dict[str, Any] = {"groups": settings.groups, "per_group": settings.prompts, "seed": settings.seed}
    return (
        data.prompts(model, **options) if isinstance(data, Relation) else data.prompts(model, augment=True, **options)
    )
