"""The notebooks run as they are, use what is public, and hold outputs of their own code that a code host can show."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
from pathlib import Path

import pytest

import kn_lens as kn

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PLOTLY, PICTURE, PAGE = "application/vnd.plotly.v1+json", "image/png", "text/html"
NAMES = (
    "1_find_knowledge_neurons",
    "2_switch_them_off",
    "3_where_does_a_fact_become_an_answer",
    "4_heads_or_neurons",
    "5_edit_a_capital_and_ask_back",
    "6_your_own_model_and_data",
)


def _execute():
    spec = importlib.util.spec_from_file_location("notebooks_execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


execute = _execute()


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def shown(cell):
    """What a cell shows by ``kn.plots.show``, in order."""
    found = [output.data for output in cell.outputs if output.output_type == "display_data"]
    assert len(found) == cell.source.count("kn.plots.show(")
    return found


def said(notebook):
    """Per code cell, what kinds of output there are, pictures and pages aside."""
    return [
        [
            (output.output_type, PLOTLY in output.get("data", {}))
            for output in cell.outputs
            if output.get("name") != "stderr"
        ]
        for cell in execute.code_cells(notebook)
    ]


def test_all_notebooks_are_there_and_in_the_index() -> None:
    assert [path.stem for path in execute.notebooks()] == list(NAMES)
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        question = read(name).cells[0].source.splitlines()[0].removeprefix("# ")
        assert f"[{question}]({name}.ipynb)" in index


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_shows_its_figures(name, tmp_path, monkeypatch) -> None:
    if name != NAMES[-1]:  # pictures take most of the time, and one notebook with some is enough
        monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    path = Path(shutil.copy(FOLDER / f"{name}.ipynb", tmp_path))
    ran = execute.executed(path, timeout=120)
    figures = [data for cell in execute.code_cells(ran) for data in shown(cell)]
    assert len(figures) >= 1
    for data in figures:
        if PLOTLY in data:
            assert data[PLOTLY]["data"]
        else:
            assert "CircuitsVis.render(" in data[PAGE]
    if "written: mine.pdf" in str(ran):  # there is a browser
        assert all(PICTURE in data for data in figures)
    assert not [
        cell.source for cell in execute.code_cells(ran) if cell.outputs and cell.outputs[0].output_type == "error"
    ]
    # The outputs committed are of this code, and of the kinds that it gives.
    committed = read(name)
    assert committed.metadata["kn_lens"]["outputs_of_code"] == execute.code_hash(ran)
    assert said(committed) == said(ran)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_can_be_shown(name) -> None:
    path = FOLDER / f"{name}.ipynb"
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert path.stat().st_size < 1_000_000
    assert len(notebook.cells) <= 12
    title, last = notebook.cells[0].source.splitlines()[0], notebook.cells[-1].source
    assert re.fullmatch(r"# [^#].*\?", title)
    assert last.startswith("## What to try next")
    assert 'MODEL = "tiny-causal"' in execute.code_cells(notebook)[0].source
    for data in (data for cell in execute.code_cells(notebook) for data in shown(cell)):
        assert data[PICTURE].startswith("iVBORw0KGgo")  # a PNG, in base64
        assert PLOTLY in data or PAGE not in data
    assert not re.search(r"/(tmp|home|root|work)/", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_only_public_names_are_used(name) -> None:
    for cell in execute.code_cells(read(name)):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                assert set(modules) <= {"kn_lens", "pandas", "json", "pathlib"}
            elif isinstance(node, ast.Attribute):
                whole = ast.unparse(node)
                assert not node.attr.startswith("_") or node.attr == "__name__"
                if whole.startswith("kn.plots."):
                    assert whole.split(".")[2] in kn.plots.__all__
                elif whole.startswith("kn."):
                    assert whole.split(".")[1].partition("(")[0] in kn.__all__


def test_without_a_browser_figures_are_shown_without_pictures(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    notebook = nbformat.v4.new_notebook()
    source = "import kn_lens as kn\nkn.plots.show(kn.plots.layers_of_units({'facts': [(0, 1)]}, 2))"
    notebook.cells.append(nbformat.v4.new_code_cell(source))
    path = tmp_path / "one.ipynb"
    nbformat.write(notebook, path)
    (cell,) = execute.executed(path, timeout=120).cells
    (data,) = shown(cell)
    assert PLOTLY in data
    assert PICTURE not in data
    assert data["text/plain"] == "Layers of the units found"
