"""Units switched off or up in batches; a factor above 1 enhances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from kn_lens.batches.methods.attribution import SiteName, needs_cue
from kn_lens.batches.methods.join import ByPrompt
from kn_lens.batches.methods.localization import check_ablation_alone
from kn_lens.batches.methods.method import Method, MethodSettings, Preparation, Work, by_block
from kn_lens.batches.methods.patching import unit_of
from kn_lens.batches.methods.tracing import PositionsName
from kn_lens.errors import NothingLeft, UnitsError

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.prompts.batch import PromptBatch
    from kn_lens.suppression.effect import UnitEffect

MOST_PROBES = 12
"""As many as :func:`kn_lens.suppress` takes."""

NO_UNITS = "no units given for its group"
"""Why a prompt is left out where units are given by group."""


def _unit_texts(value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list | tuple):
        raise ValueError(f"is {_told(value)}; give a list of units, each as 'layer:index'")
    texts = []
    for entry in given:
        unit = unit_of(entry)
        if not (isinstance(unit, list | tuple) and len(unit) == 2 and all(type(part) is int for part in unit)):
            raise ValueError(f"holds {_told(entry)}; write a unit as 'layer:index', as in '5:12'")
        texts.append(f"{unit[0]}:{unit[1]}")
    return tuple(dict.fromkeys(texts))


def _told(value: Any) -> str:
    """A value; of a number also what it may have been meant to be."""
    quotes = " (YAML reads 5:12 without quotes as a number)" if isinstance(value, int) else ""
    return f"{value!r}{quotes}"


def _units(value: Any) -> Any:
    """Units as texts: a tuple, or one by group."""
    found = {str(name): _unit_texts(units) for name, units in value.items()} if isinstance(value, Mapping) else None
    found = _unit_texts(value) if found is None else found
    if not any(found.values() if isinstance(found, dict) else found):
        raise ValueError("holds no units; give some, each as 'layer:index'")
    return found


class SuppressSettings(MethodSettings):
    """Options of :func:`kn_lens.suppress`; ``units`` are texts ``"layer:index"``, a list or one by group."""

    units: Annotated[tuple[str, ...] | dict[str, tuple[str, ...]], BeforeValidator(_units)]
    factor: float = Field(default=0.0, allow_inf_nan=False)
    ablation: Literal["zero", "mean", "resample"] = "zero"
    site: SiteName = "mlp"
    positions: PositionsName = "target"
    probes: tuple[str, ...] | None = None
    controls: int = Field(default=100, ge=0)


class SuppressMethod(Method):
    """:func:`kn_lens.suppress`; the default probes are the most frequent answers of all prompts of a data set.

    Prompts of a group without units are left out and counted.
    """

    name = "suppress"
    Settings = SuppressSettings
    joined: ClassVar[ByPrompt] = ByPrompt(
        fields=frozenset(
            ["target", "foil", "rival", "top", "target_ids", "probe_probabilities", "units", "prompts", "drawn"]
        )
    )

    def check(self, settings: SuppressSettings) -> None:
        """See :meth:`Method.check`."""
        check_ablation_alone(settings.ablation, "kn.suppress")

    def check_model(self, model: Any, settings: SuppressSettings) -> None:
        """See :meth:`Method.check_model`."""
        from kn_lens.errors import SettingsError
        from kn_lens.prompts.tokens import TokenResolver, UnusablePrompt
        from kn_lens.sites import site_of

        by_group = settings.units if isinstance(settings.units, dict) else {"": settings.units}
        site_of(model, settings.site).check([unit_of(text) for texts in by_group.values() for text in texts], model)
        resolver = TokenResolver(model)
        for word in settings.probes or ():
            try:
                resolver.single_token(word)
            except UnusablePrompt as error:
                raise SettingsError(f"probe {error}") from None

    def asks_for_cues(self, settings: SuppressSettings) -> bool:
        """Where units are scaled at the cue."""
        return needs_cue(settings.positions)

    def prepare(self, model: Any, settings: SuppressSettings) -> Preparation:
        """The most frequent answers, unless probes are given."""
        return _Probes(model, settings)

    def compute(self, model: Any, work: Work) -> UnitEffect:
        """See :meth:`Method.compute`."""
        from kn_lens.prompts.prompt import Dropped
        from kn_lens.suppression.suppress import suppress
        from kn_lens.tracing.answered import only

        batch, settings = work.posed, work.settings
        kept = _with_units(batch, settings)
        if not kept:
            left = [Dropped(text=prompt.text, reason=NO_UNITS, source=prompt.source) for prompt in batch.prompts]
            raise NothingLeft("no units are given for the groups of these prompts", left)
        given = settings.units
        units: Any = (
            {name: [unit_of(text) for text in texts] for name, texts in given.items()}
            if isinstance(given, dict)
            else [unit_of(text) for text in given]
        )
        options = settings.model_dump(exclude={"units", "probes"})
        return suppress(
            model,
            only(batch, kept, NO_UNITS),
            units,
            probes=work.prepared.get("probes", settings.probes),
            seed=work.seed,
            memory_budget=work.memory_budget,
            progress=False,
            **options,
        )

    def frame(self, result: UnitEffect, work: Work) -> pd.DataFrame:
        """One row per prompt: probabilities and answers before and after, and their means over the random draws."""
        from kn_lens.suppression.effect import CONTROLS

        frame = result.answers_frame()
        frame.insert(0, "prompt", range(len(frame)))
        if result.target.shape[1] > 2:
            frame["control_target"] = result.target[:, CONTROLS].double().mean(1).numpy()
            frame["control_correct"] = result.correct[:, CONTROLS].double().mean(1).numpy()
            frame["control_flipped"] = result.flipped[:, CONTROLS].double().mean(1).numpy()
        return by_block(frame, self.done(result, work))


def _with_units(batch: PromptBatch, settings: SuppressSettings) -> list[int]:
    """The prompts that units are given for."""
    from kn_lens.suppression.replacement import group_names

    if not isinstance(settings.units, dict):
        return list(range(len(batch)))
    return [at for at, name in enumerate(group_names(batch)) if settings.units.get(name)]


class _Probes:
    """The most frequent targets and foils of all prompts, as words that are one token each.

    First tokens of longer foils, which are no words, are passed over.
    """

    def __init__(self, model: Any, settings: SuppressSettings) -> None:
        self.model, self.settings = model, settings
        self._targets: dict[int, int] = {}
        self._foils: dict[int, int] = {}
        self._words: dict[int, str] = {}
        self._seen = False
        self._groups: dict[str, None] = {}

    def add(self, batch: PromptBatch) -> None:
        """Take in a block of prompts."""
        for name in batch.groups:
            if len(self._groups) < 3:
                self._groups[name] = None
        kept = _with_units(batch, self.settings)
        self._seen = self._seen or bool(kept)
        for at in kept:
            entry = batch.resolved[at]
            for counts, ids in ((self._targets, entry.target_ids), (self._foils, entry.foil_ids)):
                if ids:
                    counts[ids[0]] = counts.get(ids[0], 0) + 1
                    self._words.setdefault(ids[0], batch.decode(ids[0]))

    def values(self) -> dict[str, Any]:
        """``probes``, unless the settings have them.

        Raises:
            UnitsError: If units are given by group, and for none of the groups there are.
        """
        from kn_lens.prompts.tokens import TokenResolver, UnusablePrompt

        if not self._seen and isinstance(self.settings.units, dict):
            raise UnitsError(
                f"units are given for groups {sorted(self.settings.units)[:3]} and the prompts have groups "
                f"{sorted(self._groups)}"
            )
        if self.settings.probes is not None:
            return {}
        counts = dict(self._targets)
        for token, count in self._foils.items():
            counts[token] = counts.get(token, 0) + count
        resolver = TokenResolver(self.model)
        probes: list[str] = []
        for token in sorted(counts, key=lambda token: -counts[token]):
            word = self._words[token]
            try:
                found = resolver.single_token(word)
            except UnusablePrompt:
                continue
            if found == token and len(probes) < MOST_PROBES:
                probes.append(word)
        return {"probes": probes}
