"""The files of a run of one edit by ROME."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from kn_lens.plots.single_edit import edit_losses, generations
from kn_lens.runs.output import OutputFolder, output_folder
from kn_lens.studies.edit_fact import RomeSettings
from kn_lens.studies.shown_edit import ShownEdit


def save_edit(out: Path, shown: ShownEdit, settings: RomeSettings) -> None:
    """Write a run: manifest, tables, the edit, figures."""
    with output_folder(out, {"command": "rome", "settings": asdict(settings), **about_edit(shown)}) as folder:
        write_edit(folder, shown)


def about_edit(shown: ShownEdit) -> dict[str, Any]:
    """What a manifest says of an edit."""
    fact = shown.fact
    return {
        "fact": {name: value for name, value in asdict(fact).items() if value},
        "old answer": "the model's own" if shown.own_old else "given",
        "inverse questions": shown.inverse,
        "layer": shown.edit.layer,
        "norm": shown.edit.norm,
        "seconds": shown.seconds,
        "dropped": [vars(entry) for entry in shown.dropped],
        "edit": "edit",
        "provenance": shown.edit.provenance,
        "findings": shown.findings(),
    }


def write_edit(folder: OutputFolder, shown: ShownEdit) -> None:
    """The tables ``asked``, ``answers``, ``written``, ``losses``; the edit; the figures ``losses``, ``generations``."""
    folder.write_table("asked", shown.questions)
    folder.write_table("answers", shown.answers)
    folder.write_table("written", shown.written)
    folder.write_table("losses", shown.edit.to_frame())
    shown.edit.save(folder.path / "edit")
    model = shown.edit.provenance["model"]
    folder.write_figure("losses", edit_losses(shown.edit, model))
    folder.write_figure("generations", generations(shown.written, f"{model}, {shown.edit.describe()}"))
