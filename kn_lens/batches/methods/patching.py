"""Activation, attribution and path patching, and direct logit attribution, in batches."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from kn_lens.batches.methods.join import ByPrompt
from kn_lens.batches.methods.method import ONE_OR_SEVERAL, Method, MethodSettings, Preparation, Work, by_block
from kn_lens.batches.methods.tracing import STATE_EFFECTS, DirectionName, MetricFits, MetricName
from kn_lens.errors import ModelError, PromptError, SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.prompts.batch import PromptBatch
    from kn_lens.tracing.direct_logit_attribution import DirectLogits
    from kn_lens.tracing.patch_effects import PatchEffects

Component = Literal["head", "q", "k", "v", "pattern", "mlp", "attn", "resid", "neuron"]

_UNIT = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*")


def unit_of(value: Any) -> Any:
    """``"5:12"`` as (5, 12); anything else as it is."""
    found = _UNIT.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else (int(found[1]), int(found[2]))


def _receiver(value: Any) -> Any:
    found = unit_of(value)
    is_unit = isinstance(found, list | tuple) and len(found) == 2 and all(type(part) is int for part in found)
    if found != "logits" and not is_unit:
        raise ValueError(f"is {value!r}; give logits, or a head as layer:index, as in 5:12")
    return found


class PatchingSettings(MethodSettings):
    """Options of :func:`kn_lens.activation_patching` and :func:`kn_lens.attribution_patching`; ``component`` takes
    several, ``swaps`` a mapping from cues to new ones.
    """

    component: Annotated[tuple[Component, ...], ONE_OR_SEVERAL] = ("head",)
    positions: Literal["each", "sum"] = "each"
    direction: DirectionName = "sufficiency"
    swaps: dict[str, str] | None = None
    metric: MetricName | None = None


class PathPatchingSettings(MethodSettings):
    """Options of :func:`kn_lens.path_patching`; ``component`` takes several, ``receiver`` is ``"logits"`` or a head
    as ``"layer:index"``.
    """

    receiver: Annotated[Literal["logits"] | tuple[int, int], BeforeValidator(_receiver)] = "logits"
    component: Annotated[tuple[Literal["q", "k", "v"], ...], ONE_OR_SEVERAL] = ("q",)
    direction: DirectionName = "sufficiency"
    swaps: dict[str, str] | None = None
    metric: MetricName | None = None


class _Patching(Method):
    """What the three share: twins, which planning finds among all prompts, and one result per component."""

    variant_name = "component"
    needs_cues: ClassVar[bool] = True
    joined: ClassVar[ByPrompt] = STATE_EFFECTS

    def check_model(self, model: Any, settings: Any) -> None:
        """See :meth:`Method.check_model`."""
        from kn_lens.streams import stream_of

        for component in settings.component:
            stream_of(model, component)

    def twins(self, settings: Any) -> bool:
        """Always."""
        return True

    def prepare(self, model: Any, settings: Any) -> Preparation:
        """Only whether the metric suits the prompts."""
        return MetricFits(settings.metric)

    def compute(self, model: Any, work: Work) -> PatchEffects:
        """See :meth:`Method.compute`."""
        import kn_lens

        options = work.settings.model_dump(exclude={"component", "swaps"})
        return getattr(kn_lens, self.name)(
            model,
            work.posed,
            component=work.variant,
            swaps=work.swaps,
            memory_budget=work.memory_budget,
            progress=False,
            **options,
        )

    def frame(self, result: PatchEffects, work: Work) -> pd.DataFrame:
        """One row per prompt and state, one column per metric."""
        return by_block(result.to_frame(), self.done(result, work))


class ActivationPatchingMethod(_Patching):
    """:func:`kn_lens.activation_patching`."""

    name = "activation_patching"
    Settings = PatchingSettings


class AttributionPatchingMethod(_Patching):
    """:func:`kn_lens.attribution_patching`."""

    name = "attribution_patching"
    Settings = PatchingSettings

    def check(self, settings: PatchingSettings) -> None:
        """See :meth:`Method.check`."""
        if settings.metric == "kl" and settings.direction == "necessity":
            raise SettingsError(
                "there is no estimate: the KL divergence has its minimum in the clean run, where its gradient is 0; "
                "take direction: sufficiency or another metric"
            )


class PathPatchingMethod(_Patching):
    """:func:`kn_lens.path_patching`."""

    name = "path_patching"
    Settings = PathPatchingSettings

    def check(self, settings: PathPatchingSettings) -> None:
        """See :meth:`Method.check`."""
        if settings.receiver == "logits" and len(settings.component) > 1:
            raise SettingsError(
                f"component is {', '.join(settings.component)} and the receiver is the logits, which read no "
                f"component; name a head as receiver, or leave component out"
            )

    def check_model(self, model: Any, settings: PathPatchingSettings) -> None:
        """See :meth:`Method.check_model`."""
        from kn_lens.errors import UnitsError
        from kn_lens.sites import site_of
        from kn_lens.streams import stream_of
        from kn_lens.tracing.writes import check_writes_directly

        check_writes_directly(model, "path patching")
        if settings.receiver == "logits":
            return
        layer, unit = settings.receiver
        site_of(model, "head").check([(layer, unit)], model)
        if layer == 0:
            raise UnitsError(f"receiver {layer}:{unit} is in the first layer: no head writes before it")
        for component in settings.component:
            count = stream_of(model, component).n_units
            if count is not None and unit >= count:
                raise UnitsError(f"receiver {layer}:{unit}: the model has {count} groups of {component} in a layer")


_PARTS = ("heads", "mlp", "mlp_bias", "neurons", "attention_bias", "embedding", "final_bias")


class DirectLogitSettings(MethodSettings):
    """Options of :func:`kn_lens.direct_logit_attribution`."""

    neurons: bool = False


class DirectLogitMethod(Method):
    """:func:`kn_lens.direct_logit_attribution`."""

    name = "direct_logit_attribution"
    Settings = DirectLogitSettings
    joined: ClassVar[ByPrompt] = ByPrompt(fields=frozenset([*_PARTS, "total", "foils", "prompts"]))

    def check_model(self, model: Any, settings: DirectLogitSettings) -> None:
        """See :meth:`Method.check_model`."""
        from kn_lens.models.checks import has_plain_mlp
        from kn_lens.models.kind import model_name
        from kn_lens.tracing.writes import check_writes_directly

        check_writes_directly(model, "direct logit attribution")
        if (getattr(model.cfg, "output_logits_soft_cap", 0.0) or 0.0) > 0:
            raise ModelError(f"{model_name(model)} caps its logits, which are then no sum of contributions")
        if settings.neurons and not has_plain_mlp(model):
            raise ModelError(f"in {model_name(model)} an MLP's output is no sum over its neurons; take neurons: false")

    def prepare(self, model: Any, settings: DirectLogitSettings) -> Preparation:
        """Only whether there is a rival word for each prompt."""
        return _Foils()

    def compute(self, model: Any, work: Work) -> DirectLogits:
        """See :meth:`Method.compute`."""
        from kn_lens.tracing.direct_logit_attribution import direct_logit_attribution

        return direct_logit_attribution(
            model,
            work.posed,
            neurons=work.settings.neurons,
            memory_budget=work.memory_budget,
            progress=False,
        )

    def frame(self, result: DirectLogits, work: Work) -> pd.DataFrame:
        """One row per prompt and part; of neurons the 100 of the largest contributions."""
        return by_block(result.to_frame(), self.done(result, work))


class _Foils:
    """Refuses two-prefix pairs that name no foil, before anything is computed."""

    def add(self, batch: PromptBatch) -> None:
        """Take in a block of prompts."""
        if batch.rivals is not None:
            lacking = next((prompt for prompt in batch.prompts if prompt.foil is None), None)
            if lacking is not None:
                raise PromptError(
                    f"{lacking.text!r} is a two-prefix pair without a foil: there is no rival word to take a logit "
                    f"difference against; take activation_patching, or give foils"
                )

    def values(self) -> dict[str, Any]:
        """Nothing."""
        return {}
