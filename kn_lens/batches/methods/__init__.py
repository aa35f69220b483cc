"""The methods that a run can be made of, by the names of their public functions."""

from __future__ import annotations

from kn_lens.batches.methods.attribution import (
    GradientTimesActivationMethod,
    IntegratedGradientsMethod,
    MaxActivationMethod,
)
from kn_lens.batches.methods.editing import EvaluateEditsMethod
from kn_lens.batches.methods.localization import AblationCurveMethod, KnowledgeNeuronsMethod
from kn_lens.batches.methods.method import Method, MethodSettings, Preparation, Work
from kn_lens.batches.methods.patching import (
    ActivationPatchingMethod,
    AttributionPatchingMethod,
    DirectLogitMethod,
    PathPatchingMethod,
)
from kn_lens.batches.methods.suppression import SuppressMethod
from kn_lens.batches.methods.tracing import AttentionKnockoutMethod, CausalTraceMethod
from kn_lens.errors import SettingsError, near_matches

__all__ = ["METHODS", "Method", "MethodSettings", "Preparation", "Work", "method_named"]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        CausalTraceMethod(),
        AttentionKnockoutMethod(),
        ActivationPatchingMethod(),
        AttributionPatchingMethod(),
        PathPatchingMethod(),
        DirectLogitMethod(),
        IntegratedGradientsMethod(),
        GradientTimesActivationMethod(),
        MaxActivationMethod(),
        KnowledgeNeuronsMethod(),
        SuppressMethod(),
        AblationCurveMethod(),
        EvaluateEditsMethod(),
    )
}


def method_named(name: str) -> Method:
    """The method of a name.

    Raises:
        SettingsError: If there is none; near matches are named.
    """
    if name not in METHODS:
        raise SettingsError(f"no method {name!r}.{near_matches(name, METHODS)} Methods: {', '.join(METHODS)}")
    return METHODS[name]
