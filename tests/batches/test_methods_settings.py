"""The options of the methods: those of the public functions, and what is refused before anything is computed."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

import kn_lens as kn
from kn_lens.batches.methods import METHODS, attribution, editing, method_named, patching, tracing
from kn_lens.errors import SettingsError, UnitsError
from kn_lens.studies.evaluate_editors import EvaluateSettings


def test_a_variant_for_each_stream_component_and_site():
    for name, option, chosen in (
        ("causal_trace", "stream", ("resid", "mlp")),
        ("activation_patching", "component", ("q", "head")),
        ("max_activation", "site", ("head",)),
    ):
        method = METHODS[name]
        assert method.variants(method.Settings(**{option: [*chosen, chosen[0]]})) == chosen
        assert method.variants(method.Settings(**{option: chosen[0]})) == (chosen[0],)
    assert METHODS["attention_knockout"].variants(METHODS["attention_knockout"].Settings()) == ("",)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("causal_trace", {"swaps": {"a": "b"}}, "swaps is given and the corruption is 'noise'"),
        ("causal_trace", {"stream": ["resid", "neuron"]}, "say which layers"),
        ("causal_trace", {"stream": ["resid", "head"], "window": 3}, "window is 3 for stream 'head'"),
        ("attention_knockout", {"heads": True, "window": 2}, "window is 2 with heads"),
        ("attribution_patching", {"metric": "kl", "direction": "necessity"}, "its gradient is 0"),
        ("path_patching", {"component": ["q", "v"]}, "the receiver is the logits"),
        ("suppress", {"units": ["1:2"], "ablation": "mean"}, "would depend on its block"),
        ("ablation_curve", {"ablation": "resample"}, "would depend on its block"),
        ("ablation_curve", {"site": ["mlp", "mlp_pre"]}, "do not write to the residual stream"),
        ("knowledge_neurons", {"count": [5, 2]}, "count is 5–2"),
        ("evaluate_edits", {"layer": 1, "layers": [1]}, "give one of them"),
        ("evaluate_edits", {"layer": 1, "editors": "neurons"}, "neurons take no layer"),
        (
            "evaluate_edits",
            {"layers": [1], "editors": ["heads", "neurons"]},
            "heads and neurons cannot be made at",
        ),
    ],
)
def test_settings_that_are_refused(name, settings, message):
    method = METHODS[name]
    with pytest.raises(SettingsError, match=message):
        method.check(method.Settings(**settings))


@pytest.mark.parametrize(
    ("name", "settings", "kind", "message"),
    [
        ("causal_trace", {"layers": [9]}, SettingsError, "layer 9 is not in the model"),
        ("path_patching", {"receiver": "9:1"}, UnitsError, "9:1"),
        ("path_patching", {"receiver": "0:1"}, UnitsError, "first layer"),
        ("suppress", {"units": {"a": ["1:2"], "b": ["7:0"]}}, UnitsError, "unit 7:0 is not in"),
        ("suppress", {"units": ["1:2"], "probes": ["Brussels and Madrid"]}, SettingsError, "probe"),
        ("evaluate_edits", {"layers": [9]}, ValueError, "no layer 9"),
    ],
)
def test_what_a_model_lacks_is_refused(organism, name, settings, kind, message):
    method = METHODS[name]
    with pytest.raises(kind, match=message):
        method.check_model(organism("tiny-causal"), method.Settings(**settings))


RUNS_OWN = {"seed", "memory_budget", "progress", "sources", "mean", "journal", "edits"}
"""Options that a run gives itself: ``mean`` is measured, ``edits`` are the groups of a data entry."""


@pytest.mark.parametrize("name", [name for name in METHODS if hasattr(kn, name)])
def test_settings_are_the_options_of_the_function(name):
    parameters = inspect.signature(getattr(kn, name)).parameters
    options = {
        key: parameter.default
        for key, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and key not in RUNS_OWN
    }
    fields = dict(METHODS[name].Settings.model_fields)
    added: set[str] = set()
    if name == "suppress":
        assert fields.pop("units").is_required()
    if name == "evaluate_edits":
        study = EvaluateSettings()
        options |= {key: getattr(study, key) for key in ("editors", "known", "layer", "layers")}
    if name == "ablation_curve":
        scored = {key: field.default for key, field in METHODS["integrated_gradients"].Settings.model_fields.items()}
        added = set(scored)
        assert {key: fields[key].default for key in added} == scored
        assert options.pop("positions") is None  # as in the scores
    assert set(fields) - added == set(options)
    for key, default in options.items():
        own = fields[key].default
        assert own == default or own == (default,), key


def test_settings_of_the_search_are_those_of_localize():
    from kn_lens.localization.localize import LocalizeSettings

    settings, public = METHODS["knowledge_neurons"].Settings(), LocalizeSettings()
    for key in type(settings).model_fields:
        own = getattr(settings, key)
        assert own == getattr(public, key) or own == (getattr(public, key),), key
    assert set(type(settings).model_fields) == set(vars(public)) - {"groups", "prompts", "seed"}


def test_names_are_those_of_the_library():
    """Written out in the settings, which must not import torch."""
    from kn_lens.attribution.quadrature import Rule
    from kn_lens.batches.methods import suppression
    from kn_lens.criteria.questions import CRITERIA
    from kn_lens.editing.editors import EDITORS
    from kn_lens.prompts.positions import Positions
    from kn_lens.sites import SiteName
    from kn_lens.studies.evaluate_editors import _swept, _takes
    from kn_lens.suppression.suppress import _MAX_PROBES
    from kn_lens.tracing.activation_patching import COMPONENTS
    from kn_lens.tracing.causal_trace import STREAMS
    from kn_lens.tracing.metrics import METRICS

    assert get_args(tracing.Stream) == STREAMS
    assert get_args(tracing.MetricName) == METRICS
    assert get_args(tracing.PositionsName) == get_args(Positions)
    assert get_args(patching.Component) == COMPONENTS
    assert get_args(attribution.SiteName) == get_args(SiteName)
    assert get_args(attribution.RuleName) == get_args(Rule)
    assert get_args(editing.EditorName) == tuple(EDITORS)
    assert get_args(editing.Criterion) == CRITERIA
    assert _swept(EDITORS) == editing.SWEPT
    assert set(editing.TAKING_LAYER) == {name for name in EDITORS if _takes(name, "layer")}
    assert suppression.MOST_PROBES == _MAX_PROBES


NO_METHODS = {"accuracy", "answers", "enhance"}
"""Asked of prompts, but no experiment: plain answers, and ``suppress`` with another factor."""


def test_every_function_of_prompts_is_a_method():
    """Whoever adds a method to the package adds it to the batches too."""
    of_prompts = set()
    for name in kn.__all__:
        function = getattr(kn, name)
        if inspect.isfunction(function) and list(inspect.signature(function).parameters)[:2] == ["model", "prompts"]:
            of_prompts.add(name)
    assert of_prompts - NO_METHODS == set(METHODS) - {"knowledge_neurons", "evaluate_edits"}


def test_a_name_that_there_is_not():
    with pytest.raises(SettingsError, match="Did you mean 'causal_trace'"):
        method_named("causal_tracing")


def test_methods_are_quick_to_import():
    import subprocess
    import sys

    code = "import sys, kn_lens.batches.methods; print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
