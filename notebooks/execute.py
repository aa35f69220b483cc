"""Run the notebooks anew and keep their outputs: ``python notebooks/execute.py [NOTEBOOK ...]``.

Kept are texts, tables, interactive figures and a picture of each; what a reader's own run brings back is left out:
pages with scripts of a megabyte, progress bars, times.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
PICTURE, PAGE = "image/png", "text/html"

log = logging.getLogger("notebooks")


def notebooks() -> list[Path]:
    """The notebooks, in order."""
    return sorted(FOLDER.glob("[0-9]_*.ipynb"))


def executed(path: Path, timeout: int = 600) -> Any:
    """A copy of a notebook with the outputs of a run in an empty folder, by this Python; the file stays as it is.

    Neither a kernel installed elsewhere nor the home folder has a part in it.

    Args:
        path: The notebook.
        timeout: Seconds that a cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    with tempfile.TemporaryDirectory() as folder:
        manager = AsyncKernelManager(
            kernel_name="python3",
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),  # ipykernel's own, which runs this Python
            connection_file=str(Path(folder) / "kernel.json"),
        )
        work = Path(folder) / "work"
        work.mkdir()
        client = NotebookClient(
            notebook, km=manager, timeout=timeout, record_timing=False, resources={"metadata": {"path": str(work)}}
        )
        client.execute(env={**os.environ, "IPYTHONDIR": folder, "PLOTLY_RENDERER": "plotly_mimetype"})
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    """The cells with code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_hash(notebook: Any) -> str:
    """SHA-256 of all code; kept with the outputs, it tells whether they are of this code."""
    return hashlib.sha256("\0".join(cell.source for cell in code_cells(notebook)).encode("utf-8")).hexdigest()


def slimmed(notebook: Any) -> Any:
    """The notebook with what a code host can show: no page where there is a picture of it, and no progress bars."""
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            data = output.get("data", {})
            if PICTURE in data:
                data.pop(PAGE, None)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "kn_lens": {"outputs_of_code": code_hash(notebook)},
    }
    return notebook


def main(names: list[str]) -> None:
    """Run the notebooks named, or all, and write each with its outputs."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for path in [Path(name).resolve() for name in names] or notebooks():
        notebook = slimmed(executed(path))
        nbformat.validate(notebook)
        path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        pictures = sum(PICTURE in output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs)
        log.info("%s: %d pictures, %.0f kB", path.name, pictures, path.stat().st_size / 1000)


if __name__ == "__main__":
    main(sys.argv[1:])
