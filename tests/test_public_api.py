"""The public names: all there, spelled as in design.md, and quick to import."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import kn_lens as kn


def in_a_fresh_process(code):
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("name", kn.__all__)
def test_every_public_name_is_there(name):
    assert getattr(kn, name) is not None
    assert name in dir(kn)


def test_what_type_checkers_see_is_what_is_there():
    """The imports under TYPE_CHECKING and the table of lazy names say the same."""
    tree = ast.parse(Path(kn.__file__).read_text(encoding="utf-8"))
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    seen = {
        (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module != "kn_lens"  # plots, a subpackage
    }
    told = {(f"kn_lens.{module}", name) for module, names in kn._PUBLIC.items() for name in names}
    assert seen == told
    assert set(kn.__all__) == {name for _, name in told} | {"plots", "__version__"}


def test_import_is_light():
    """Neither torch nor TransformerLens, nor anything else that is slow, is imported before it is needed."""
    heavy = ("torch", "transformer_lens", "transformers", "numpy", "scipy", "pandas", "plotly", "datasets")
    found = in_a_fresh_process(f"import sys, kn_lens; print([m for m in {heavy!r} if m in sys.modules])")
    assert found == "[]"


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'kn_lens' has no attribute 'integrated_gradient'"):
        kn.integrated_gradient  # noqa: B018


def test_the_names_of_the_design():
    """Of its example, what this part of the work covers."""
    for name in (
        "load_model",
        "load_relation",
        "load_minimal_pairs",
        "integrated_gradients",
        "find_knowledge_neurons",
        "n_sample_similarity",
        "suppress",
        "Prompt",
        "plots",
    ):
        assert name in kn.__all__
    parameters = inspect.signature(kn.integrated_gradients).parameters
    assert list(parameters)[:2] == ["model", "prompts"]
    defaults = {name: parameters[name].default for name in ("site", "steps", "rule", "positions")}
    assert defaults == {"site": "mlp", "steps": 20, "rule": "riemann", "positions": "target"}
    search = inspect.signature(kn.find_knowledge_neurons).parameters
    assert {name: search[name].default for name in ("threshold", "share", "count")} == {
        "threshold": 0.2,
        "share": 0.7,
        "count": (2, 5),
    }
    assert inspect.signature(kn.suppress).parameters["factor"].default == 0.0


def test_errors_are_value_errors():
    for name in ("DataError", "ModelError", "OutputError", "PromptError", "SettingsError", "UnitsError"):
        assert issubclass(getattr(kn, name), kn.KnLensError)
        assert issubclass(getattr(kn, name), ValueError)


def test_public_functions_are_documented():
    for name in kn.__all__:
        entry = getattr(kn, name)
        if inspect.isfunction(entry) or inspect.isclass(entry):
            assert entry.__doc__
            assert not entry.__doc__.startswith(f"{name}("), name  # a docstring of its own, not dataclass's
