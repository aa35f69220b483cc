"""The folder a command writes: checked before the work begins, filled under another name, renamed when whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.errors import OutputError

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MANIFEST = "manifest.json"


def slug(name: str) -> str:
    """A data set's name as part of a file name: ``blimp:x`` becomes ``blimp-x``, a path its stem."""
    return re.sub(r"[^\w.-]+", "-", Path(name).stem if "/" in name else name).strip("-")


def check_output(out: Path, *, replace: bool = False) -> None:
    """Refuse a folder that cannot take a run, before any work is done.

    Args:
        out: The folder; it need not exist.
        replace: Accept a former run there (a folder with a manifest), to be replaced.

    Raises:
        OutputError: It holds files, is no folder, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (replace and (out / MANIFEST).is_file()):
        raise OutputError(f"{out} is not empty; name a new folder, or empty this one")
    out = out.resolve()
    parent = out.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(f"cannot write {out}: {parent} is a file")
    if not os.access(parent, os.W_OK) or (out.is_dir() and not os.access(out, os.W_OK)):
        raise OutputError(f"cannot write {out}: no permission in {parent}")


@contextmanager
def output_folder(out: Path, manifest: dict[str, Any]) -> Iterator[OutputFolder]:
    """A folder to fill; it appears as ``out`` only when the block ends without an error."""
    out = out.resolve()  # also where it is "." or a link
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from None
    try:
        folder = OutputFolder(partial)
        yield folder
        folder.write_json(MANIFEST, {**manifest, "files": folder.files()})
        partial.chmod(0o755)
        _put_in_place(partial, out)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, out: Path) -> None:
    """Rename the whole folder, or, where there is one already (a former run, an empty folder), its contents."""
    if not out.exists():
        partial.rename(out)
        return
    for old in out.iterdir():
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    for new in sorted(partial.iterdir(), key=lambda path: path.name == MANIFEST):  # the manifest last
        new.rename(out / new.name)


class OutputFolder:
    """Writes tables, figures and JSON below one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write_json(self, name: str, value: Any) -> None:
        """A JSON file, indented, in UTF-8."""
        (self.path / name).write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """A table as ``name.parquet`` and ``name.csv``."""
        table.to_parquet(self.path / f"{name}.parquet", index=False)
        table.to_csv(self.path / f"{name}.csv", index=False)

    def write_figure(self, name: str, figure: go.Figure) -> None:
        """A figure as one HTML file that opens without a network."""
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        title = (figure.to_dict()["layout"].get("title", {}).get("text") or name).split("</b>")[0].removeprefix("<b>")
        body = figure.to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False, "responsive": True})
        page = (
            "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            f"<title>{title}</title></head><body style='margin:0'>{body}</body></html>\n"
        )
        (folder / f"{name}.html").write_text(page, encoding="utf-8")

    def files(self) -> list[str]:
        """What has been written, relative to the folder."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_file())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run.

    Raises:
        OutputError: If the folder holds none, or it cannot be read.
    """
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OutputError(f"{folder} holds no {MANIFEST}: it is not a folder that kn-lens wrote") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder / MANIFEST} cannot be read ({error})") from None
