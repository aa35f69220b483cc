"""Scores of units, prompt by prompt, in batches: integrated gradients and the two cheaper ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from kn_lens.batches.methods.join import ByPrompt
from kn_lens.batches.methods.method import ONE_OR_SEVERAL, Method, MethodSettings, Work, by_block
from kn_lens.batches.methods.tracing import PositionsName

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.attribution.scores import AttributionScores

SiteName = Literal["mlp", "mlp_pre", "head"]
Sites = Annotated[tuple[SiteName, ...], ONE_OR_SEVERAL]
RuleName = Literal["riemann", "trapezoid", "midpoint", "gauss_legendre", "adaptive"]


class ScoreSettings(MethodSettings):
    """Options of :func:`kn_lens.gradient_times_activation`, :func:`kn_lens.max_activation`; ``site`` takes several."""

    site: Sites = ("mlp",)
    positions: PositionsName = "target"


class IntegratedGradientsSettings(ScoreSettings):
    """Options of :func:`kn_lens.integrated_gradients`; ``site`` takes several."""

    steps: int = Field(default=20, ge=2)
    rule: RuleName = "riemann"
    tolerance: float = Field(default=1e-3, gt=0)


def needs_cue(positions: str) -> bool:
    """Whether these positions are those of a cue."""
    return positions in ("cue", "cue_last")


class _Scores(Method):
    """What the three share."""

    variant_name = "site"
    targets: ClassVar[Literal["single", "any"]] = "any"
    joined: ClassVar[ByPrompt] = ByPrompt(fields=frozenset(["values", "probability", "convergence_delta", "prompts"]))

    def asks_for_cues(self, settings: Any) -> bool:
        """Where units are read at the cue."""
        return needs_cue(settings.positions)

    def compute(self, model: Any, work: Work) -> AttributionScores:
        """See :meth:`Method.compute`."""
        import kn_lens

        options = work.settings.model_dump(exclude={"site"})
        if self.name != "max_activation":  # which takes few prompts at once anyway
            options["memory_budget"] = work.memory_budget
        return getattr(kn_lens, self.name)(model, work.posed, site=work.variant, progress=False, **options)

    def frame(self, result: AttributionScores, work: Work) -> pd.DataFrame:
        """One row per prompt and unit, the 100 units of the largest scores."""
        return by_block(result.to_frame(), self.done(result, work))


class IntegratedGradientsMethod(_Scores):
    """:func:`kn_lens.integrated_gradients`."""

    name = "integrated_gradients"
    Settings = IntegratedGradientsSettings


class GradientTimesActivationMethod(_Scores):
    """:func:`kn_lens.gradient_times_activation`."""

    name = "gradient_times_activation"
    Settings = ScoreSettings


class MaxActivationMethod(_Scores):
    """:func:`kn_lens.max_activation`."""

    name = "max_activation"
    Settings = ScoreSettings
