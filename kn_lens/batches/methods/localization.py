"""Knowledge neurons and ablation curves in batches, group by group: a block never parts a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from kn_lens.batches.methods.attribution import IntegratedGradientsSettings, RuleName, Sites, needs_cue
from kn_lens.batches.methods.join import ByPrompt
from kn_lens.batches.methods.method import Method, MethodSettings, Work, by_block, with_texts
from kn_lens.batches.methods.tracing import PositionsName
from kn_lens.errors import NothingLeft, SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.localization.curve import AblationCurve
    from kn_lens.prompts.prompt import Prompt
    from kn_lens.studies.localized import Localized

SEARCHED = "searched: units of its group were ranked on it"
"""Why a prompt has no point on an ablation curve."""

_AT_K = ("flipped", "correct", "target", "norm")
"""What a curve measures at each k, and of the random draws too."""


def first_value(values: list[Any]) -> Any:
    """That of the first part."""
    return values[0]


class KnowledgeNeuronsSettings(MethodSettings):
    """Settings of :class:`kn_lens.localization.localize.LocalizeSettings`; ``site`` takes several."""

    site: Sites = ("mlp",)
    steps: int = Field(default=20, ge=2)
    rule: RuleName = "riemann"
    positions: PositionsName = "target"
    threshold: float = Field(default=0.2, gt=0, lt=1)
    share: float = Field(default=0.7, ge=0, lt=1)
    count: tuple[int, int] = (2, 5)


class KnowledgeNeuronsMethod(Method):
    """Attribution, then :func:`kn_lens.find_knowledge_neurons` on one half of each group's prompts, as ``localize``."""

    name = "knowledge_neurons"
    variant_name = "site"
    Settings = KnowledgeNeuronsSettings
    whole_groups: ClassVar[bool] = True
    joined: ClassVar[ByPrompt] = ByPrompt(
        fields=frozenset(["shares", "gini", "participation_ratio"]),
        merged={
            "rows": lambda parts: [row for rows in parts for row in rows],
            "prompts": sum,
            "searched": sum,
            "accuracy": first_value,  # weighed by prompts in join
            "gap": max,
            "data_kind": first_value,
        },
    )

    def check(self, settings: KnowledgeNeuronsSettings) -> None:
        """See :meth:`Method.check`."""
        fewest, most = settings.count
        if not 1 <= fewest <= most:
            raise SettingsError(f"count is {fewest}–{most}; give fewest and most with 1 ≤ fewest ≤ most")

    def asks_for_cues(self, settings: KnowledgeNeuronsSettings) -> bool:
        """Where units are read at the cue."""
        return needs_cue(settings.positions)

    def compute(self, model: Any, work: Work) -> Localized:
        """See :meth:`Method.compute`."""
        from kn_lens.attribution.integrated_gradients import integrated_gradients
        from kn_lens.localization.localize import LocalizeSettings, localization_of
        from kn_lens.studies.localized import Localized

        chosen = LocalizeSettings(
            **work.settings.model_dump(exclude={"site"}),
            site=work.variant,
            groups=None,
            prompts=None,
            seed=work.seed,
        )
        scores = integrated_gradients(
            model,
            work.posed,
            site=chosen.site,
            steps=chosen.steps,
            rule=chosen.rule,
            positions=chosen.positions,  # type: ignore[arg-type]
            memory_budget=work.memory_budget,
            progress=False,
        )
        kind = "pairs" if all(map(_is_pair, scores.prompts)) else "facts"
        found = localization_of(model, work.posed, scores, chosen, data=work.data.name, kind=kind)
        kept = Localized.of(found)
        search = {"threshold": chosen.threshold, "share": chosen.share, "count": list(chosen.count)}
        return replace(kept, settings={**kept.settings, **search, "seed": chosen.seed})

    def frame(self, result: Localized, work: Work) -> pd.DataFrame:
        """One row per group and unit found, with the group's measures; ``prompt`` is the group's first.

        A group of which no unit was found has one row, with layer and unit −1.
        """
        import pandas as pd

        starts = work.posed.groups
        rows = []
        for row in result.rows:
            group = {"prompt": starts[row["group"]][0], "group": row["group"]}
            measures = {
                "prompts": row["prompts"],
                "units": len(row["units"]),
                "share": row["τ"],
                "similarity": row["R₁²"],
                "stability": row["stability"],
                "top_10_share": row["top 10 share"],
                "in_range": row["in range"],
            }
            units = list(zip(row["units"], row["frequency"], strict=True)) or [((-1, -1), float("nan"))]
            rows += [
                {**group, "layer": layer, "unit": unit, "frequency": frequency, **measures}
                for (layer, unit), frequency in units
            ]
        return with_texts(pd.DataFrame(rows))

    def done(self, result: Localized, work: Work) -> list[int]:
        """All: each prompt is attributed."""
        return list(range(len(work.posed)))

    def join(self, results: Sequence[Localized]) -> Localized:
        """See :meth:`Method.join`; accuracy is that over all prompts."""
        found = super().join(results)
        right = sum(part.accuracy * part.prompts for part in results)
        return replace(found, accuracy=right / found.prompts)


def _is_pair(prompt: Prompt) -> bool:
    return prompt.foil is not None or prompt.form == "two_prefix"


class AblationCurveSettings(IntegratedGradientsSettings):
    """Options of :func:`kn_lens.integrated_gradients`, by which units are ranked, and of
    :func:`kn_lens.ablation_curve`; ``positions`` are those of both.
    """

    ks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None = None
    controls: int = Field(default=20, ge=1)
    ablation: Literal["zero", "mean", "resample"] = "zero"


class AblationCurveMethod(Method):
    """:func:`kn_lens.ablation_curve` of one half of each group's prompts, by the attribution of the other half."""

    name = "ablation_curve"
    variant_name = "site"
    Settings = AblationCurveSettings
    whole_groups: ClassVar[bool] = True
    joined: ClassVar[ByPrompt] = ByPrompt(
        fields=frozenset(
            ["taken", "clean_target", "stream", "prompts", "drawn", *_AT_K, *(f"control_{name}" for name in _AT_K)]
        ),
        merged={"answered_wrongly": sum, "searched": sum},
    )

    def check(self, settings: AblationCurveSettings) -> None:
        """See :meth:`Method.check`."""
        check_ablation_alone(settings.ablation, "kn.ablation_curve")
        if "mlp_pre" in settings.site:
            raise SettingsError(
                "site is mlp_pre, whose units do not write to the residual stream themselves; take mlp or head"
            )

    def asks_for_cues(self, settings: AblationCurveSettings) -> bool:
        """Where units are read at the cue."""
        return needs_cue(settings.positions)

    def compute(self, model: Any, work: Work) -> AblationCurve:
        """See :meth:`Method.compute`."""
        from kn_lens.attribution.integrated_gradients import integrated_gradients
        from kn_lens.localization.ablation import ablation_curve
        from kn_lens.localization.stability import split_half
        from kn_lens.prompts.prompt import Dropped

        batch, settings = work.posed, work.settings
        selection, test = split_half(batch, work.seed)
        searched = tuple(
            Dropped(text=prompt.text, reason=SEARCHED, source=prompt.source)
            for prompt in (batch.prompts[at] for at in selection)
        )
        if not test:
            raise NothingLeft("each group has a single prompt, which is searched: none is left to be tested", searched)
        scores = integrated_gradients(
            model,
            batch.select(selection),
            site=work.variant,
            steps=settings.steps,
            rule=settings.rule,
            tolerance=settings.tolerance,
            positions=settings.positions,
            memory_budget=work.memory_budget,
            progress=False,
        )
        try:
            curve = ablation_curve(
                model,
                batch.select(test),
                scores,
                ks=settings.ks,
                controls=settings.controls,
                ablation=settings.ablation,
                seed=work.seed,
                memory_budget=work.memory_budget,
                progress=False,
            )
        except NothingLeft as error:
            raise NothingLeft(str(error), (*error.dropped, *searched)) from None
        return replace(curve, dropped=(*curve.dropped, *searched))

    def frame(self, result: AblationCurve, work: Work) -> pd.DataFrame:
        """One row per tested prompt and k: units taken, answer, p(target), norm taken over the residual stream's, and
        the mean of each over the random draws.
        """
        import pandas as pd

        prompts, ks = len(result), len(result.ks)
        columns = {
            "taken": result.taken,
            "flipped": result.flipped,
            "correct": result.correct,
            "target": result.target,
            "norm": result.relative_norm,
            "control_flipped": result.control_flipped.double().mean(-1),
            "control_correct": result.control_correct.double().mean(-1),
            "control_target": result.control_target.double().mean(-1),
            "control_norm": result.control_relative_norm.double().mean(-1),
        }
        frame = pd.DataFrame(
            {
                "prompt": [at for at in range(prompts) for _ in range(ks)],
                "group": [prompt.group or prompt.target for prompt in result.prompts for _ in range(ks)],
                "k": list(result.ks) * prompts,
                "clean_target": result.clean_target.repeat_interleave(ks).numpy(),
                **{name: values.flatten().numpy() for name, values in columns.items()},
            }
        )
        return by_block(frame, self.done(result, work))


def check_ablation_alone(ablation: str, function: str) -> None:
    """Refuse ablations that take values from the other prompts of a batch.

    Raises:
        SettingsError: With the reason, and what to do.
    """
    if ablation != "zero":
        raise SettingsError(
            f"ablation is {ablation}, which takes values from the other prompts, and a run is computed block by "
            f"block: what it says of a prompt would depend on its block; take ablation: zero, or call {function} on "
            f"all prompts at once"
        )
